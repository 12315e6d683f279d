"""A learning-rate finder: the loss at exponentially increasing learning rates (Smith 2017, arXiv 1506.01186)."""

from __future__ import annotations

import json
import logging
import math
from typing import Annotated, Any

from annotated_types import Ge, Gt
from torch.optim import Optimizer

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.train.callbacks.base import Callback, Context

log = logging.getLogger(__name__)

FILE = "learning_rate_finder.json"
SMOOTHING = 0.9
"""Weight of the previous mean in the smoothed loss."""
NOISY = 10
"""Number of initial values of the smoothed loss that are ignored, since they average few steps."""
DIVERGED = 4.0
"""The run ends early if the smoothed loss exceeds this multiple of its minimum."""


class LearningRateFinder(Callback):
    """Increases the learning rate step by step, ends the run, and suggests a value for `train.learning_rate`.

    The suggestion is the rate at which the smoothed loss falls fastest. Rates and losses are written to
    `learning_rate_finder.json` in the run folder. The student of such a run is useless: train again without this
    callback, with `--overwrite` or in another run folder. Set `train.steps` to at least `steps`.

    Args:
        low: The first learning rate.
        high: The last learning rate.
        steps: Number of steps.
    """

    every_process = True

    def __init__(
        self,
        *,
        low: Annotated[float, Gt(0)] = 1e-6,
        high: Annotated[float, Gt(0)] = 1.0,
        steps: Annotated[int, Ge(20)] = 100,
    ) -> None:
        if high <= low:
            raise ValueError(f"high: {high:g} must be greater than low: {low:g}")
        self.low, self.high, self.steps = low, high, steps
        self.losses: list[float] = []

    def rate(self, step: int) -> float:
        """The learning rate of a step; steps start at 0."""
        return float(self.low * (self.high / self.low) ** (step / (self.steps - 1)))

    def on_start(self, context: Context) -> None:
        """Make the optimiser use the learning rate of the search."""
        if context.steps < self.steps:
            raise UserError(
                f"learning_rate_finder.steps: is {self.steps}, but the run has only {context.steps} steps; increase "
                "train.steps."
            )
        context.optimizer.register_step_pre_hook(self._set_rate)

    def _set_rate(self, optimizer: Optimizer, args: Any, keywords: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate(len(self.losses))

    def on_step(self, context: Context) -> None:
        """Record the loss; after the last step, write the file and stop."""
        self.losses.append(float(context.metrics["loss"]))
        curve = smoothed(self.losses)
        if len(curve) < self.steps and curve[-1] <= DIVERGED * max(min(curve), 1e-12) and math.isfinite(curve[-1]):
            return
        best = self.rate(steepest(curve))
        if context.main:
            rows = [{"learning_rate": self.rate(i), "loss": loss} for i, loss in enumerate(self.losses)]
            text = json.dumps({"suggestion": best, "steps": rows}, indent=1)
            write_atomic(context.run / FILE, text.encode())
            log.info(f"learning_rate_finder: the loss falls fastest at {best:.2g}; curve: {context.run / FILE}")
        context.stop(f"search finished; set train.learning_rate={best:.2g} and remove learning_rate_finder")

    def state_dict(self) -> dict[str, Any]:
        """The losses so far."""
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.losses = list(state["losses"])


def smoothed(losses: list[float]) -> list[float]:
    """The bias-corrected exponential moving average of losses."""
    mean, found = 0.0, []
    for number, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**number))
    return found


def steepest(curve: list[float]) -> int:
    """Index of the steepest descent of a curve before its minimum, without the first few noisy values."""
    lowest = min(range(len(curve)), key=lambda i: curve[i] if math.isfinite(curve[i]) else math.inf)
    inner = range(min(NOISY, max(lowest - 1, 1)), max(lowest, 2))
    slopes = {i: curve[i + 1] - curve[i - 1] for i in inner if i + 1 < len(curve)}
    return min(slopes, key=slopes.__getitem__) if slopes else lowest
