"""An exponential moving average of the student's weights (Tarvainen and Valpola 2017, arXiv 1703.01780)."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt

from pipeline.common.errors import UserError
from pipeline.models.network import Joint, Network
from pipeline.models.sharded import is_sharded
from pipeline.train.activation_checkpointing import forget_checkpoints
from pipeline.train.callbacks.base import Callback, Context


class EMA(Callback):
    """Averages the student's weights over steps. Validation and saving use the average; training continues as usual.

    After each step, `average = d * average + (1 - d) * student` with `d = min(decay, (1 + steps) / (10 + steps))`,
    which forgets the random initial weights. Running statistics of batch normalisation are averaged in the same way. It
    runs in every process, on identical weights, and doubles the memory for the student's weights.

    Args:
        decay: Weight of the previous average, in (0, 1).
    """

    every_process = True

    def __init__(self, *, decay: Annotated[float, Gt(0), Lt(1)] = 0.999) -> None:
        self.decay = decay
        self.average: Network | Joint | None = None
        self.steps = 0

    def on_start(self, context: Context) -> None:
        """Copy the student."""
        if any(is_sharded(p) for p in context.student.parameters()):
            raise UserError("ema: not supported with FSDP, which shards the weights; remove ema or train without FSDP.")
        self.average = copy.deepcopy(context.student).requires_grad_(False).eval()
        forget_checkpoints(self.average)  # they would run the blocks of the original model

    @torch.no_grad()
    def on_step(self, context: Context) -> None:
        """Update the average."""
        assert self.average is not None
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        trained = context.student.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(trained[name], 1 - decay)
            else:
                value.copy_(trained[name])

    def student(self, student: Network | Joint) -> Network | Joint:
        """The average, or the student itself before training starts."""
        return self.average if self.average is not None else student

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of steps in it."""
        return {"steps": self.steps, **(self.average.state_dict() if self.average is not None else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the average."""
        assert self.average is not None
        self.steps = state["steps"]
        self.average.load_state_dict({name: value for name, value in state.items() if name != "steps"})
