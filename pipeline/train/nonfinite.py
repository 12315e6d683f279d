"""Skip and count steps with a non-finite gradient. Several in a row end the run with a diagnosis."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.data.views import Batch
from pipeline.models.distillation import Distillation, DistillationOutput
from pipeline.train.fsdp import whole

IN_A_ROW = 10
"""Number of consecutive skipped steps that end the run. In fp16, each halves the scale: 10 reduce 65,536 to 64."""


class NonFinite:
    """Decides whether to skip a step. The gradient norm is the same on all ranks, so all ranks agree.

    Args:
        model: The model.
        run: The run folder.
        rank: Rank of this process.
    """

    def __init__(self, model: Distillation, run: Path, rank: int) -> None:
        self.model, self.run, self.rank = model, run, rank
        self.gradient: dict[str, str] = {}
        self.steps = self.row = 0
        # The forward pass updates the statistics of batch normalisation before the gradient is known.
        self.statistics = [b for b in model.student.buffers() if b.is_floating_point()]
        self.before = [b.clone() for b in self.statistics]

    def begin(self) -> None:
        """Save the statistics that the forward pass will update; a checkpoint may have averaged them over ranks."""
        if self.statistics:
            torch._foreach_copy_(self.before, self.statistics)

    def watch(self, accelerator: Accelerator) -> None:
        """Save the gradient norm of each part if this step may end the run, since clipping turns all into NaN."""
        if self.row == IN_A_ROW - 1:
            scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
            parameters = self.model.named_parameters()
            self.gradient = _norms((name, p.grad / scale) for name, p in parameters if p.grad is not None)

    def skips(self, step: int, batch: Batch, output: DistillationOutput, norm: Tensor) -> bool:
        """Decide whether to skip a step. If so, undo its effect on the running statistics of the student.

        Args:
            step: Number of the step.
            batch: The batch.
            output: Output of the forward pass.
            norm: Gradient norm.

        Raises:
            UserError: This is the tenth skipped step in a row. Sample keys, losses, and norms of features, weights and
                gradient have been written to a file.
        """
        if torch.isfinite(norm):
            self.row = 0
            return False
        self.steps, self.row = self.steps + 1, self.row + 1
        if self.statistics:
            torch._foreach_copy_(self.statistics, self.before)
        if self.row == IN_A_ROW:
            self._stop(step, batch, output, norm)
        return True

    def _stop(self, step: int, batch: Batch, output: DistillationOutput, norm: Tensor) -> None:
        values = {name: float(value) for name, value in output.terms.items()}
        path = self.run / f"nonfinite_rank{self.rank}.json"
        about = {
            "step": step,
            "grad_norm": str(float(norm)),
            "losses": {k: str(v) for k, v in values.items()},
            "gradient": self.gradient,
            "weights": _norms((name, p.detach()) for name, p in self.model.named_parameters() if p.requires_grad),
            "features": {role: [str(n) for n in x.norm(dim=1).tolist()] for role, x in output.pooled.items()},
            "keys": batch["key"],
        }
        write_atomic(path, json.dumps(about, indent=1).encode())
        bad = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
        what = f"the loss is not finite ({', '.join(bad)})" if bad else "the gradient is not finite, but the losses are"
        raise UserError(
            f"step {step}: {what}, in {IN_A_ROW} consecutive steps, which were all skipped. Sample keys, losses, and "
            f"norms of features, weights and gradient are in {path}. Lower train.learning_rate or the weight of that "
            "loss, and resume from the last checkpoint with --resume."
        )


def _norms(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Norm of each part of the model, e.g. `student.encoder.layers`, `losses.wcord.critic`. Call it on all ranks."""
    squares: dict[str, float] = {}
    for name, value in named:
        part = ".".join(name.split(".")[:3])
        squares[part] = squares.get(part, 0.0) + float(whole(value).double().square().sum())
    return {part: str(math.sqrt(square)) for part, square in squares.items()}
