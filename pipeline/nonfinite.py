"""Steps whose gradient is not finite: undone and counted; a few in a row end the run with a diagnosis."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.errors import UserError
from pipeline.model import Distillation
from pipeline.prepare import Batch
from pipeline.sharding import whole
from pipeline.shards import write_atomic

IN_A_ROW = 10
"""So many end the run. In fp16 the scale halves with each: 10 of them bring it from 65,536 to 64."""


class NonFinite:
    """Decides of every step whether it counts. The gradient's norm is the same on all ranks, so they agree."""

    def __init__(self, model: Distillation, run: Path, rank: int) -> None:
        self.model, self.run, self.rank = model, run, rank
        self.gradient: dict[str, str] = {}
        self.steps = self.row = 0
        # A forward pass moves the batch norms' statistics before anyone knows what it leads to.
        self.statistics = [b for b in model.student.buffers() if b.is_floating_point()]
        self.before = [b.clone() for b in self.statistics]

    def begin(self) -> None:
        """Note the statistics that the step's forward pass moves; a checkpoint may have averaged them over ranks."""
        if self.statistics:
            torch._foreach_copy_(self.before, self.statistics)

    def watch(self, accelerator: Accelerator) -> None:
        """Note the gradient's norms, part by part, where this step may be the last: clipping makes all of it NaN."""
        if self.row == IN_A_ROW - 1:
            scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
            parameters = self.model.named_parameters()
            self.gradient = _norms((name, p.grad / scale) for name, p in parameters if p.grad is not None)

    def skips(self, step: int, batch: Batch, terms: dict[str, Tensor], norm: Tensor) -> bool:
        """True for a step that is not to be taken; its effect on the student's statistics is undone.

        Raises UserError at the tenth in a row, and writes the batch's keys, the losses, and the norms of features,
        weights and gradient for people to see.
        """
        if torch.isfinite(norm):
            self.row = 0
            return False
        self.steps, self.row = self.steps + 1, self.row + 1
        if self.statistics:
            torch._foreach_copy_(self.statistics, self.before)
        if self.row == IN_A_ROW:
            self._stop(step, batch, terms, norm)
        return True

    def _stop(self, step: int, batch: Batch, terms: dict[str, Tensor], norm: Tensor) -> None:
        values = {name: float(value) for name, value in terms.items()}
        path = self.run / f"nonfinite_rank{self.rank}.json"
        about = {
            "step": step,
            "grad_norm": str(float(norm)),
            "losses": {k: str(v) for k, v in values.items()},
            "gradient": self.gradient,
            "weights": _norms((name, p.detach()) for name, p in self.model.named_parameters() if p.requires_grad),
            "features": {role: [str(n) for n in x.norm(dim=1).tolist()] for role, x in self.model.pooled.items()},
            "keys": batch["key"],
        }
        write_atomic(path, json.dumps(about, indent=1).encode())
        bad = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
        what = f"the loss is not finite ({', '.join(bad)})" if bad else "the gradient is not finite, the losses are"
        raise UserError(
            f"step {step}: {what}, in {IN_A_ROW} steps in a row; none of them was taken. The batch's keys, the losses, "
            f"and the norms of its features, the weights and the gradient are in {path}. Lower train.learning_rate or "
            "the weight of that loss, and go on from the last checkpoint with --resume."
        )


def _norms(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """The norm over each part of the model: `student.encoder.layers`, `student.head.weight`, `losses.wcord.critic` …;
    called by all ranks."""
    squares: dict[str, float] = {}
    for name, value in named:
        part = ".".join(name.split(".")[:3])
        squares[part] = squares.get(part, 0.0) + float(whole(value).double().square().sum())
    return {part: str(math.sqrt(square)) for part, square in squares.items()}
