"""The interface of losses: `Features`, `Dims`, `Loss` and `LossOutput`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Batch = dict[str, Any]
"""A batch of B samples from the data stream.

Losses read `label [B]` and `group [B]`, int64, where -1 means unknown, and `index [B]`, int64, the index of each sample
in the training set. In segmentation, `mask [B, H, W]`, int64, contains the class of each pixel (-1 means unknown), and
all labels are -1. LocalTransport also reads `weight [B]`, float, if the caller sets it; the data stream does not.
"""


@dataclass
class Features:
    """The output of an encoder and the input of every loss.

    Attributes:
        pooled: `[B, D]`, one vector per sample.
        maps: Feature maps `[B, C, H, W]` (of a series `[B, C, 1, L]`), or tokens `[B, N, C]`, from shallow to deep; may
            be empty.
        logits: Class scores `[B, K]`, or `[B, K, H, W]` in segmentation; None if the network has no head.
    """

    pooled: Tensor
    maps: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None

    @property
    def map_channels(self) -> tuple[int, ...]:
        """C of each map."""
        return tuple(m.shape[1] if m.ndim == 4 else m.shape[2] for m in self.maps)


@dataclass(frozen=True)
class Dims:
    """The sizes of the `Features` of a network, known before any data is read.

    Attributes:
        pooled: D of `pooled`.
        maps: C of each map.
        classes: K of `logits`; None if the network has no head.
        dense: Whether the logits are per pixel, `[B, K, H, W]`.
        sizes: `(H, W)` of each map, `(N,)` of tokens, None if the size varies between batches; empty if it was not
            requested.
    """

    pooled: int
    maps: tuple[int, ...] = ()
    classes: int | None = None
    dense: bool = False
    sizes: tuple[tuple[int, ...] | None, ...] = ()


def full_precision(x: Tensor) -> Tensor:
    """Convert to at least fp32: half-precision types become fp32; float64 is kept for gradient checks."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def known(batch: Batch, name: str, samples: Tensor) -> Tensor:
    """Get an int64 column of a batch, or -1 (unknown) for all samples if the batch lacks the column.

    Args:
        batch: The batch.
        name: `label`, `group` or `index`.
        samples: Any tensor `[B, ...]`; only its length and device are used.

    Returns:
        `[B]`, int64.
    """
    found: Tensor = batch[name] if name in batch else samples.new_full((len(samples),), -1, dtype=torch.int64)
    return found


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Check the value of a keyword. For configs, the annotation has already been checked.

    Raises:
        ValueError: The value is not one of the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(choices)}")


Metrics = Callable[[], Mapping[str, Tensor]]
"""A function that returns metrics by name: detached scalar tensors.

It is called only when metrics are logged, on all ranks at once. It must not keep the graph alive: detach its inputs.
"""


class LossOutput(NamedTuple):
    """The output of a loss: the scalar and its metrics.

    Attributes:
        loss: The loss, a scalar, fp32.
        metrics: Computes the metrics of this batch. By default there are none.
        parts: For a loss with several terms: keyword of the weight of a term (any name except `weight`) -> weighted
            term. The terms add up to the loss. The collapse guard measures and reduces each separately. Empty for a
            loss with a single term.
    """

    loss: Tensor
    metrics: Metrics = dict
    parts: Mapping[str, Tensor] = {}

    @classmethod
    def sum_of(cls, parts: Mapping[str, Tensor], metrics: Metrics = dict) -> LossOutput:
        """Make the output of a loss that is the sum of its parts."""
        return cls(torch.stack([*parts.values()]).sum(), metrics, parts)


class Loss(nn.Module):
    """A term of the objective. `loss(student, teacher, batch)` returns an fp32 scalar for `backward`.

    The loss of the global batch is the mean over ranks, which DDP computes for the gradients. A loss that compares
    samples must therefore gather them; all other losses use the local samples.

    A loss is built as `LossClass(student_dims, teacher_dims, **keywords)`. Configs set the keywords and are validated
    against their annotations. Projections and critics are parameters; queues and banks are registered buffers, so they
    are saved in checkpoints.

    Class attributes declare what a loss requires:

    - `needs_teacher`, `needs_teacher_logits`, `needs_student_logits`: the teacher, and logits.
    - `needs_maps`: `Features.maps`. Other losses do not receive maps.
    - `needs_sizes`: `Dims.sizes`, the sizes of the maps.
    - `needs_index`: `batch["index"]`, for a loss that keeps state per sample. The pipeline sets its keyword `samples`
    to the size of the training set. Such a loss cannot be computed on held-out samples.
    - `reads_pixels`: the loss also supports per-pixel logits.
    - `per_sample`: the loss is a mean over independent samples, without statistics or queues. Only such losses support
    gradient accumulation. The default, False, is always safe.
    - `never_decayed`: names of parameters without weight decay, such as a temperature.
    """

    needs_teacher: ClassVar[bool] = True
    needs_teacher_logits: ClassVar[bool] = False
    needs_student_logits: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = False
    needs_sizes: ClassVar[bool] = False
    reads_pixels: ClassVar[bool] = False
    never_decayed: ClassVar[tuple[str, ...]] = ()
    needs_index: bool = False
    per_sample: bool = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "metrics" in vars(cls):
            warnings.warn(
                f"{cls.__qualname__}.metrics() will no longer be called from version 0.4: return "
                "LossOutput(loss, metrics) from forward",
                FutureWarning,
                stacklevel=2,
            )

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor | LossOutput:
        """Compute the loss of a batch. This is the only method that a loss must define.

        Args:
            student: Features of the student, in full precision.
            teacher: Features of the teacher, in full precision and without gradient.
            batch: See `Batch`.

        Returns:
            A scalar, or a `LossOutput` with metrics.
        """
        raise NotImplementedError

    def __call__(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the scalar loss."""
        return self.with_metrics(student, teacher, batch).loss

    def with_metrics(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
        """Compute the loss together with its metrics.

        Raises:
            TypeError: `forward` returns neither a tensor nor a `LossOutput`.
        """
        found = super().__call__(student, teacher, batch)
        if isinstance(found, Tensor):
            return LossOutput(found, getattr(self, "metrics", dict))  # a method `metrics`, as before 0.2
        if not isinstance(found, LossOutput):
            raise TypeError(
                f"{type(self).__name__}.forward returned a {type(found).__name__}: return a scalar tensor, or "
                "LossOutput(loss, metrics)"
            )
        return found

    def averaged(self, batch: Batch) -> Tensor:
        """Count the samples that a `per_sample` loss averages over, e.g. only labelled ones.

        Args:
            batch: See `Batch`, with `key`.

        Returns:
            An integer scalar on the device of the batch; by default, the number of samples.
        """
        tensors = [value for value in batch.values() if isinstance(value, Tensor)]
        return torch.tensor(len(batch["key"]), device=tensors[0].device if tensors else None)

    @classmethod
    def suspects(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        """List settings that are known to cause a collapse of the student.

        Args:
            settings: Keywords of the loss as in the config, including defaults.

        Returns:
            Keyword -> suggested value, the most likely cause first. Empty if only the weight can be the cause.
        """
        return {}
