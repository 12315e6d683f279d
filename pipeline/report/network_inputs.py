"""Shows the network inputs of a config: their statistics, and a contact sheet of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalities.base import FEW_READINGS
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.data.augmentation import Augmentation
from pipeline.data.decoding import meta_of
from pipeline.data.pictures import draw
from pipeline.data.prepare import Prepare
from pipeline.data.shard_reader import Sample
from pipeline.data.skipped import SampleError
from pipeline.data.source import OpenDataset, Source
from pipeline.data.views import View, several
from pipeline.models.build import build_model
from pipeline.report.contact_sheet import write_sheet

SAMPLES, PLACES = 64, 8
"""Number of samples to read, and number of places in the training split to read them from."""

ROWS = 12
"""Pairs on the contact sheet."""

MANY = 0.5
"""Inputs are reported as saturated if the median fraction of values at the ends of the range exceeds this."""


def network_inputs(config: Config, sheet: Path) -> tuple[list[str], list[str]]:
    """Run the views of a config, with its augmentation, on some samples of the training split.

    Args:
        config: The config.
        sheet: PNG to write: a row per sample, a column per input.

    Returns:
        One line of facts per input, and notes on inputs with little information.

    Raises:
        UserError: The networks cannot be built, or no sample can be read.
    """
    data = OpenDataset.from_config(config)
    views = build_model(config, data).views
    prepare = Prepare(data.split("train"), views, Augmentation.from_config(config))
    raws, prepared, unread = _read(prepare)
    if not prepared:
        raise UserError(f"{data.folder}: no sample can be read; {unread[0] if unread else 'the split is empty'}")
    facts, notes = [], [f"{len(unread)} samples cannot be read. The first: {unread[0]}"] if unread else []
    columns = []
    for role, sight in views.items():
        for number, view in enumerate(several(sight)):
            inputs = [s[role] if s[role] is None or isinstance(sight, View) else s[role][number] for s in prepared]
            fact, own = _statistics(f"{role}: {view.modality.name}", view, [x for x in inputs if x is not None])
            facts.append(fact)
            notes += own
            shown = zip(inputs[:ROWS], raws[:ROWS], strict=True)
            columns.append([None if x is None else _picture(view, x, raw) for x, raw in shown])
    write_sheet(sheet, columns)
    return [f"{len(prepared)} training samples, as the networks receive them; example pairs: {sheet}", *facts], notes


def _read(prepare: Prepare) -> tuple[list[Sample], list[Sample], list[str]]:
    """Raw and prepared samples, and the messages of those that cannot be used."""
    source, raws, prepared, unread = prepare.source, [], [], []
    for raw in chain.from_iterable(_places(source, prepare.members)):
        try:
            prepared.append(prepare(raw, 0))
            raws.append(raw)
        except SampleError as error:  # noqa: PERF203
            unread.append(str(error))
    return raws, prepared, unread


def _places(source: Source, members: frozenset[str]) -> Iterator[Iterator[Sample]]:
    length = SAMPLES // PLACES
    if source.samples <= SAMPLES:
        yield source.read(members, 0, source.samples, 0)
        return
    for start in np.linspace(0, source.samples - length, PLACES).round().astype(int):
        yield source.read(members, int(start), int(start) + length, 0)


def _statistics(name: str, view: View, inputs: list[Tensor]) -> tuple[str, list[str]]:
    """The facts of one input as a line, and notes."""
    if not inputs:
        return f"  {name}: none", [f"{name}: none of these samples has it"]
    values = [x.float() for x in inputs]
    low, high = min(float(x.min()) for x in values), max(float(x.max()) for x in values)
    mean = float(torch.stack([x.mean() for x in values]).mean())
    constant = sum(float(x.min()) == float(x.max()) for x in values)
    ends = (0.0, 255.0) if inputs[0].dtype == torch.uint8 else (-1.0, 1.0)
    shape = " x ".join(map(str, inputs[0].shape))
    fact, notes = f"  {name}: {shape}, values {low:.3g} to {high:.3g}, mean {mean:.3g}", []
    shares = view.modality.coverage(view.modality.collate(inputs))
    if shares is not None:
        median = float(shares.median())
        fact += f", values in {median:.1%} of the pixels (median)"
        if median < FEW_READINGS:
            notes.append(f"{name}: only {median:.1%} of the pixels contain a value at {view.size} x {view.size} pixels")
    if inputs[0].dtype.is_floating_point or inputs[0].dtype == torch.uint8:
        first = [x[:1] if x.ndim == 3 and shares is not None else x for x in values]
        edge = float(torch.stack([((x <= ends[0]) | (x >= ends[1])).float().mean() for x in first]).median())
        fact += f", {edge:.1%} of the values at the ends of the range"
        if edge > MANY:
            notes.append(
                f"{name}: {edge:.1%} of the values are saturated; adjust the range of the modality, e.g. near and far"
            )
    if constant:
        notes.append(f"{name}: {constant} of {len(inputs)} inputs are constant")
    return fact, notes


def _picture(view: View, x: Tensor, raw: Mapping[str, Any]) -> np.ndarray:
    """An image as the network receives it, uint8 RGB; for other data, the picture of the sample."""
    if x.ndim != 3 or not (x.dtype == torch.uint8 or x.dtype.is_floating_point):
        sample = dict(raw)
        picture, _ = draw(view.modality, sample, meta_of(sample))
    elif x.dtype == torch.uint8 and len(x) == 3:
        picture = x.permute(1, 2, 0).numpy()
    else:
        first = x[0].float().numpy()
        grey = (255 * (first - first.min()) / max(float(np.ptp(first)), 1e-6)).astype(np.uint8)
        picture = np.repeat(grey[..., None], 3, 2)
    return picture
