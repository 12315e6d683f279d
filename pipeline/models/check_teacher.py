"""Rejects a useless frozen teacher: one with random weights, or with features that are constant or not finite.

A frozen student encoder with random weights triggers a warning.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

import modalities
from losses import Features
from losses.diagnostics import relative_std
from losses.gather import gather
from losses.registry import find
from modalities.encoders import Encoder
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.data.views import Batch
from pipeline.models.cached_teacher import CachedTeacher
from pipeline.models.distillation import Distillation
from pipeline.models.network import Joint, Network
from pipeline.models.sharded import is_sharded

log = logging.getLogger(__name__)

FEWEST, MOST = 8, 256
"""Minimum number of samples to judge whether features vary, and the number of samples that is checked."""
CONSTANT = 1e-6
"""Relative standard deviation below which features count as constant: the size of rounding errors."""
ONE_DIMENSIONAL = 1e-3
"""Ratio of the second to the first singular value of centred features below which they lie on a line."""


def check_weights(config: Config) -> None:
    """Check that the teacher has weights, before any data is opened.

    Teachers from runs are trained. A user-defined class may load its own weights; `check_features` covers these.

    Args:
        config: Config of the run.

    Raises:
        UserError: A teacher would have random weights, and its encoder is not marked with `weights: random`; or it has
            LoRA.
    """
    teacher = config.teacher
    if teacher is None or teacher.modality is None or teacher.encoder is None:
        return
    several = isinstance(teacher.encoder, list)
    both: Any = (teacher.modality, teacher.encoder)
    pairs = zip(*both, strict=True) if several else [both]
    for number, (modality, encoder) in enumerate(pairs):
        where = f"teacher.encoder[{number}]" if several else "teacher.encoder"
        if encoder.get("lora") is not None:
            raise UserError(f"{where}.lora: a frozen teacher is never trained; remove lora, or set it for the student.")
        if (cure := _missing(modality["name"], encoder)) is not None:
            raise UserError(
                f"{where}: {encoder['name']} has random weights, and a frozen teacher is never trained. Set "
                f"`teacher.run` to a trained run, {cure}, or, if an untrained teacher is intended, "
                f"`{{name: {encoder['name']}, weights: random, ...}}`."
            )


def warn_of_random_student(config: Config) -> None:
    """Warn if the student's whole encoder is frozen and has random weights, without `weights: random`.

    Args:
        config: Config of the run.
    """
    if config.student.init_from is not None:
        return
    encoder = config.student.encoder
    one = not isinstance(encoder, list)
    both: Any = (config.student.modality, encoder)
    for number, (modality, own) in enumerate([both] if one else zip(*both, strict=True)):
        if own.get("freeze") is True and (cure := _missing(modality["name"], own)) is not None:
            log.warning(
                f"student.encoder{'' if one else f'[{number}]'}: {own['name']} has random weights and is frozen, so "
                f"its features stay random. Remove `freeze`, set `student.init_from`, or {cure}."
            )


def _missing(modality: str, encoder: Mapping[str, Any]) -> str | None:
    """How to fix an encoder with random weights that is not marked as such; None if it has weights."""
    if "weights" in encoder:
        return None
    try:
        known = modalities.get(modality)
        cls: type[Encoder] = find(encoder["name"], known.encoders, Encoder, "encoder")
    except (ValueError, ImportError):  # building it raises a clear error
        return None
    if cls.__module__.partition(".")[0] != modalities.__name__:
        return None
    weights = inspect.signature(cls).parameters.get("weights")
    if weights is None:
        return "use a pretrained encoder such as transformers"
    if weights.default in (None, "random"):
        return "set `weights` to a weight file, or to `factory` if the factory loads them"
    return None


def check_first_batch(model: Distillation, batch: Batch, accelerator: Accelerator) -> None:
    """Check the teacher's features on the first global training batch. Call it on all ranks.

    Args:
        model: The model; nothing is checked without a teacher.
        batch: The samples of this rank.
        accelerator: The accelerator.

    Raises:
        UserError: See `check_features`.
    """
    if model.teacher is None:
        return
    if any(is_sharded(p) for p in model.parameters()):  # FSDP gathers weights only for a complete step of the model
        return
    with accelerator.autocast():
        own = model.teach(batch)
    assert own is not None
    # The sum over a map is small enough to gather, and finite only if the map is finite.
    maps = [gather(found.flatten(1).double().sum(1)) for found in own.maps]
    features = Features(gather(own.pooled), maps, None if own.logits is None else gather(own.logits))
    paired = gather(batch["paired"]) if "paired" in batch else None
    check_features(features, parts_of(model.teacher), paired)


def parts_of(teacher: Network | Joint | CachedTeacher) -> dict[str, int]:
    """Name of each network of a teacher (for messages) -> its number of columns in `pooled`."""
    if isinstance(teacher, CachedTeacher):
        return {f"cached teacher {teacher.cache.name}": teacher.dims.pooled}
    if isinstance(teacher, Network):
        plain = teacher.modality is None  # a module that was passed to `wcord.distill`
        return {"teacher" if plain else f"teacher ({teacher.modality.name})": teacher.dims.pooled}
    return {f"teacher {n} ({part.modality.name})": part.dims.pooled for n, part in enumerate(teacher._networks(), 1)}


def check_features(features: Features, parts: Mapping[str, int], rows: Tensor | None = None) -> None:
    """Check that features are finite and that those of each network vary over the samples.

    Logits are not required to vary, since a batch may contain a single class. Nor are fewer than `FEWEST` samples.

    Args:
        features: Features of B samples.
        parts: What `parts_of` returned.
        rows: The samples to look at, bool `[B]`; None for all.

    Raises:
        UserError: Values are not finite, or the features of a network are constant or lie on a line.
    """
    check_finite(features, parts, rows)
    chosen = slice(None) if rows is None else rows
    start = 0
    for name, columns in parts.items():
        pooled = features.pooled[chosen, start : start + columns].detach()
        start += columns
        if fault := _flat(pooled[:MOST].cpu().double()):
            raise UserError(
                f"the features of the {name} {fault} in the first {len(pooled[:MOST])} samples, so there is nothing "
                "to learn from them. Check the network's weights, the layer that `pooled` comes from, and the "
                "preprocessing (size, mean and std)."
            )


def check_finite(features: Features, parts: Mapping[str, int], rows: Tensor | None = None) -> None:
    """Check that features are finite; the arguments are those of `check_features`.

    Raises:
        UserError: Some values are NaN or infinite.
    """
    chosen = slice(None) if rows is None else rows
    for number, found in enumerate(features.maps):
        _finite(found[chosen], f"feature map {number} of the teacher is")
    if features.logits is not None:
        _finite(features.logits[chosen], "the logits of the teacher are")
    start = 0
    for name, columns in parts.items():
        _finite(features.pooled[chosen, start : start + columns], f"the features of the {name} are")
        start += columns


def _flat(pooled: Tensor) -> str | None:
    """Description of how features `[B, D]` fail to vary; None if they vary."""
    samples, dim = pooled.shape
    if samples < FEWEST:
        return None
    if (spread := float(relative_std(pooled))) < CONSTANT:
        return f"are constant (relative standard deviation {spread:.1g})"
    if dim < 3:
        return None
    values = torch.linalg.svdvals(pooled - pooled.mean(0))
    if (ratio := float(values[1] / values[0])) >= ONE_DIMENSIONAL:
        return None
    return f"are one-dimensional (rank 1: the second singular value is {ratio:.1g} of the first)"


def _finite(x: Tensor, what: str) -> None:
    bad = int((~x.isfinite()).unsqueeze(1).flatten(1).any(1).sum())
    if bad:
        raise UserError(
            f"{what} not finite (NaN or infinite) in {bad} of {len(x)} samples ({100 * bad / len(x):.1f} %). Check the "
            "weights and the preprocessing; if values overflow in half precision, set train.precision=fp32."
        )
