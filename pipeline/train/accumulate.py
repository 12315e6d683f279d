"""Gradient accumulation: several forward and backward passes per optimiser step, each on a part of the batch.

Unlike gradient caching (`train.micro_batch`), it needs no second forward pass, but each loss receives only a part of
the batch. For losses that are means over samples, the result equals that of the whole batch: each part is weighted by
its number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch

from losses.base import Loss
from losses.gather import sum_over_ranks
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.data.rows import take_rows
from pipeline.data.views import Batch
from pipeline.models.distillation import Distillation, DistillationOutput


def check_accumulation(model: Distillation, config: Config, ranks: int) -> None:
    """Check that the settings and losses support `train.accumulate`.

    Raises:
        UserError: They do not. The message explains why.
    """
    count, batch = config.train.accumulate, config.data.batch_size
    if count == 1:
        return
    if batch % (count * ranks):
        shared = f" x {ranks} processes" if ranks > 1 else ""
        raise UserError(f"train.accumulate: data.batch_size {batch} is not a multiple of {count}{shared}.")
    if model.pair_filter is not None:
        raise UserError(
            "train.accumulate: data.pairs: noisy compares the samples of a batch, so they cannot be combined. Set "
            f"train.accumulate to 1. To save memory, set train.micro_batch={batch // (count * ranks)}."
        )
    for module, loss in model.losses.items():
        if not cast(Loss, loss).per_sample:
            raise UserError(
                f"train.accumulate: losses.{model.names[module]} compares the samples of a batch, or keeps statistics "
                "about them, so it cannot be computed in parts. Set train.accumulate to 1. To save memory, set "
                f"train.micro_batch={batch // (count * ranks)}: the losses then still use the whole batch."
            )


def parts_of(batch: Batch, count: int, model: Distillation) -> Iterator[tuple[Batch, dict[str, float] | None]]:
    """Split a batch for `count` forward and backward passes.

    Args:
        batch: The batch of this rank.
        count: Number of parts.
        model: The model.

    Yields:
        Each part, and the share of each loss that it contributes; None for the only part.
    """
    if count == 1:
        yield batch, None
        return
    samples = len(batch["key"])
    bounds = [samples * i // count for i in range(count + 1)]
    parts = [cast(Batch, take_rows(batch, slice(*pair))) for pair in pairwise(bounds)]
    losses = {model.names[module]: cast(Loss, loss) for module, loss in model.losses.items()}
    counts = torch.stack([torch.stack([loss.averaged(part) for loss in losses.values()]) for part in parts])
    shares = sum_over_ranks(counts.float())
    shares = shares / shares.sum(0).clamp(min=1)
    for part, own in zip(parts, shares.tolist(), strict=True):
        yield part, dict(zip(losses, own, strict=True))


def total(outputs: list[DistillationOutput]) -> DistillationOutput:
    """Combine the outputs of the parts of a batch, without graphs. Loss metrics are those of the last part."""
    if len(outputs) == 1:
        return outputs[0]
    return outputs[-1]._replace(
        loss=torch.stack([output.loss for output in outputs]).sum(),
        terms={name: torch.stack([o.terms[name] for o in outputs]).sum() for name in outputs[0].terms},
        pooled={role: torch.cat([o.pooled[role] for o in outputs]) for role in outputs[0].pooled},
    )
