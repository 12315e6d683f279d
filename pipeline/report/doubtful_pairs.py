"""Lists the most doubtful pairs of a run on noisy pairs, and draws those that can be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modalities.base import Caption, Modality
from pipeline import config as configs
from pipeline.common.console import one_line
from pipeline.common.errors import UserError
from pipeline.config.settings import Config, SourceSettings
from pipeline.data.decoding import meta_of
from pipeline.data.pictures import draw
from pipeline.data.shard_reader import Sample
from pipeline.data.source import OpenDataset, Source
from pipeline.data.views import same_modality
from pipeline.models.input_modalities import student_modalities, teacher_modalities
from pipeline.report.contact_sheet import write_sheet
from pipeline.runs.pairs_file import MISMATCHED, PAIRS, SHEET, Pair, read_pairs

LISTED = 20
"""Number of pairs that `wcord check --pairs` lists."""

TOLERANT = 0.99
"""`data.max_faulty` for reading the pairs: what cannot be read is reported, and ends nothing."""

OTHER = "The data has changed since the training; pass the original data: wcord check SHARDS --pairs RUN."
NO_DOUBT = (
    "No pair is doubtful: either all pairs match, or the student does not predict the teacher's features well enough "
    "to tell."
)


class Drawn(NamedTuple):
    """A picture of one side of a pair.

    Attributes:
        role: `student` or `teacher`.
        modality: Name of the modality.
        picture: uint8 RGB `[H, W, 3]`.
        caption: Its caption.
    """

    role: str
    modality: str
    picture: np.ndarray
    caption: Caption


def check_pairs(run: Path, shards: str | None = None, sheet: Path | None = None) -> list[str]:
    """List the most doubtful pairs of a run, and draw them on a contact sheet.

    Args:
        run: The run folder.
        shards: The dataset, if it has moved since the training.
        sheet: PNG to write, with a row per pair; None for `doubtful_pairs.png` in the run folder.

    Returns:
        The report, one line each.

    Raises:
        UserError: The run has no list of pairs, its config cannot be read, or `shards` cannot replace its datasets or
            contains none of the doubtful pairs.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run folder (no config.yaml). Pass the run folder that `wcord train` created.")
    if not (pairs := read_pairs(run)):
        raise UserError(
            f"{run / PAIRS}: not found or empty. Runs with `data.pairs=noisy` write it at the end of training: train "
            "with this setting first."
        )
    doubtful = most_doubtful(pairs, LISTED)
    drawn, notes = draw_pairs(configs.load(run / "config.yaml"), doubtful, shards)
    if shards is not None and doubtful and not drawn:
        raise UserError(notes[0])
    lines = [f"{run}: {summary(pairs)}"]
    if doubtful:
        lines.append(f"the {len(doubtful)} most doubtful pairs, with the probability that they match:")
        lines += [f"  {pair.key} in {shard_of(pair, pairs)}: {percent(pair)}" for pair in doubtful]
    else:
        notes.append(NO_DOUBT)
    if shown := {pair: drawn[pair] for pair in doubtful if pair in drawn}:
        path = sheet or run / SHEET
        columns = [[side and side.picture for side in column] for column in zip(*shown.values(), strict=True)]
        write_sheet(path, columns, [f"{one_line(pair.key)}\nmatches: {percent(pair)}" for pair in shown])
        lines.append(f"pictures: {path}")
    elif doubtful and shards is None:
        notes.append(f"if the dataset has moved: wcord check SHARDS --pairs {run}")
    return [one_line(line) for line in [*lines, *(f"note: {note}" for note in notes)]]


def summary(pairs: Sequence[Pair]) -> str:
    """How many pairs are probably mismatched, as a sentence without a full stop."""
    count = sum(pair.matches <= MISMATCHED for pair in pairs)
    return f"{count:,} of {len(pairs):,} training pairs ({100 * count / len(pairs):.1f} %) are probably mismatched"


def most_doubtful(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """The first pairs of a sorted list, without those of which the run had no doubt."""
    return [pair for pair in pairs[:most] if pair.matches < 1]


def percent(pair: Pair) -> str:
    """The probability that a pair matches, in per cent."""
    return f"{100 * pair.matches:.1f} %"


def shard_of(pair: Pair, pairs: Sequence[Pair]) -> str:
    """The shard of a pair; for a mixture, with the number of its dataset."""
    return f"dataset {pair.source}, {pair.shard}" if any(one.source for one in pairs) else pair.shard


def draw_pairs(
    config: Config, pairs: Iterable[Pair], shards: str | None = None
) -> tuple[dict[Pair, list[Drawn | None]], list[str]]:
    """Draw both sides of pairs, without augmentation. Each shard is read once.

    Args:
        config: Config of the run.
        pairs: The pairs.
        shards: The dataset, if it has moved since the training.

    Returns:
        The pictures of each pair of which at least one side can be drawn: one per modality of the networks, None if it
        cannot be drawn. And notes on what cannot be drawn, one line each.

    Raises:
        UserError: `shards` is set for a run on a mixture.
    """
    sides = _sides(config)
    members = frozenset(("meta.json", *(member for _, modality in sides for member in modality.members)))
    drawn: dict[Pair, list[Drawn | None]] = {}
    faults: dict[str, dict[str, None]] = {}  # message -> keys, as an ordered set
    for pair, found in _samples(config, _settings(config, shards), pairs, members):
        drawn[pair] = []
        for role, modality in sides:
            try:
                drawn[pair].append(_draw(role, modality, found))
            except (UserError, ImportError) as error:  # noqa: PERF203
                drawn[pair].append(None)
                faults.setdefault(str(error), {})[pair.key] = None
    notes = [f"no picture of {', '.join(keys)}: {reason}" for reason, keys in faults.items()]
    if all(role != "teacher" for role, _ in sides):
        notes.append("no pictures of the teacher's side: the run folder of the teacher cannot be read.")
    return {pair: pictures for pair, pictures in drawn.items() if any(pictures)}, notes


def _sides(config: Config) -> list[tuple[str, Modality]]:
    """Role and modality of all inputs of the networks. Equal modalities of a role are listed once."""
    sides: list[tuple[str, Modality]] = []
    own = [("student", modality) for modality in student_modalities(config)]
    for role, modality in [*own, *(("teacher", modality) for _, modality in teacher_modalities(config))]:
        if not any(role == other and same_modality(modality, known) for other, known in sides):
            sides.append((role, modality))
    return sides


def _draw(role: str, modality: Modality, found: Sample | UserError) -> Drawn:
    if isinstance(found, UserError):
        raise found
    return Drawn(role, modality.name, *draw(modality, found, meta_of(found)))


def _settings(config: Config, shards: str | None) -> list[SourceSettings]:
    """The datasets of a config; `shards` replaces the only one."""
    given = config.data.sources
    if shards is None:
        return given
    if len(given) > 1:
        raise UserError(
            f"{shards}: the run was trained on a mixture of {len(given)} datasets, which one path cannot replace. Omit "
            f"it, and correct the paths of data.shards in the config.yaml of the run."
        )
    return [given[0].model_copy(update={"path": shards})]


def _samples(
    config: Config, settings: Sequence[SourceSettings], pairs: Iterable[Pair], members: frozenset[str]
) -> Iterator[tuple[Pair, Sample | UserError]]:
    """Each pair with its raw sample, or with the reason why it cannot be read."""
    tolerant = config.model_copy(update={"data": config.data.model_copy(update={"max_faulty": TOLERANT})})
    by_place = sorted(pairs, key=attrgetter("source", "shard", "place"))
    for number, group in groupby(by_place, attrgetter("source")):
        own = list(group)
        try:
            if number >= len(settings):
                raise UserError(f"data.shards: has no dataset {number}. Restore the config.yaml of the run.")
            source = OpenDataset.of_source(tolerant, settings[number]).split("train")
        except UserError as error:
            for pair in own:
                yield pair, error
            continue
        for shard, held in groupby(own, attrgetter("shard")):
            yield from _of_shard(source, shard, {pair.place: pair for pair in held}, members)


def _of_shard(
    source: Source, name: str, places: dict[int, Pair], members: frozenset[str]
) -> Iterator[tuple[Pair, Sample | UserError]]:
    """The same for the pairs at these places of a shard."""
    shard = next((one for one in source.shards if one.file == name), None)
    reason = UserError(f"{source.folder}: {name} does not contain it (any more). {OTHER}")
    try:
        first, last = min(places), max(places) + 1
        for raw in source.read_shard(shard, members, first, last, None) if shard is not None else ():
            if (pair := places.pop(raw["__place__"], None)) is not None:
                yield pair, _completed(source, pair, raw, members)
    except UserError as error:
        reason = error
    for pair in places.values():
        yield pair, reason


def _completed(source: Source, pair: Pair, raw: Sample, members: frozenset[str]) -> Sample | UserError:
    """A raw sample with its joined members, or the reason why it cannot be used."""
    if "__lost__" in raw:
        return UserError(f"{raw['__url__']}: {raw['__lost__']}")
    if raw["__key__"] != pair.key:
        return UserError(f"{raw['__url__']}: contains {raw['__key__']} in its place. {OTHER}")
    try:
        return source.complete(raw, members)
    except UserError as error:
        return error
