"""What every loss reads and how every loss is built: `Features`, `Dims` and the `Loss` contract."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Batch = Mapping[str, Any]
"""What the stream yields. Losses read `label [B]` and `group [B]`, both int64, -1 where unknown, and `index [B]`,
int64, each sample's place in the training set. Where the task is a mask, `mask [B, H, W]` has the class of each pixel,
int64, -1 where unknown, and all labels are -1. LocalTransport also reads `weight [B]`, float, of those who call it
themselves: the stream gives none."""


@dataclass
class Features:
    """What an encoder returns and every loss reads.

    pooled: `[B, D]`, one vector a sample.
    maps: `[B, C, H, W]` feature maps, shallow to deep (or tokens `[B, N, C]`); may be empty.
    logits: `[B, K]` class scores, `[B, K, H, W]` where each pixel has a class, or None where the network has no head.
    """

    pooled: Tensor
    maps: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None


@dataclass(frozen=True)
class Dims:
    """The sizes of a network's `Features`, known before any data flows.

    pooled: D of `pooled`. maps: C of each map. classes: K of `logits`, None without a head.
    dense: the logits are of pixels, `[B, K, H, W]`.
    """

    pooled: int
    maps: tuple[int, ...] = ()
    classes: int | None = None
    dense: bool = False


def full_precision(x: Tensor) -> Tensor:
    """At least fp32: half types become fp32, float64 stays (so that gradients can be checked in it)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def known(batch: Batch, name: str, samples: Tensor) -> Tensor:
    """`label`, `group` or `index [B]` of samples `[B, ...]`, int64; -1, which is unknown, where the batch has none."""
    found: Tensor = batch[name] if name in batch else samples.new_full((len(samples),), -1, dtype=torch.int64)
    return found


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """ValueError if a keyword's value is none of its choices; a config's is checked by its annotation."""
    if value not in choices:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(choices)}")


class Loss(nn.Module):
    """A term of the objective: `loss(student, teacher, batch) -> scalar`, fp32.

    Its mean over the ranks, which DDP takes of the gradients, is the loss of the global batch: one that compares
    samples gathers them, one that does not may look at its own.

    A loss is built as `LossClass(student_dims, teacher_dims, **own_keywords)`; a config names the keywords and
    their annotations are what it is validated against. Projections and critics are ordinary parameters;
    queues and banks are registered buffers, so that checkpoints hold them. One that reads `maps` sets `needs_maps`: the
    pipeline hands them to no other. One that keeps something of each sample sets `needs_index` and has a keyword
    `samples`, which the pipeline fills with the size of the training set. One that also reads logits of pixels sets
    `reads_pixels`.
    """

    needs_teacher: ClassVar[bool] = True
    needs_teacher_logits: ClassVar[bool] = False
    needs_student_logits: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = False
    reads_pixels: ClassVar[bool] = False
    needs_index: ClassVar[bool] = False

    _last: tuple[Tensor, ...] = ()
    """What a loss keeps of its last forward for `metrics`, detached."""

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar, fp32.

        student, teacher: their features in full precision, the teacher's without gradient. batch: see `Batch`.
        """
        raise NotImplementedError

    def metrics(self) -> dict[str, Tensor]:
        """What is worth plotting of the last forward, as detached scalar tensors; nothing before the first. All ranks
        ask for it together."""
        return {}
