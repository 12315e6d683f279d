"""Early stopping: end a run when a validation metric no longer improves."""

from __future__ import annotations

import logging
import math
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from pipeline.common.errors import UserError
from pipeline.runs.reader import lower_is_better
from pipeline.train.callbacks.base import Callback, Context

log = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Ends the run when a validation metric has not improved for `patience` validations.

    Args:
        monitor: Name of a validation metric, e.g. `top1`; None for the one that selects `best/`
            (`evaluation.monitor`).
        patience: Number of consecutive validations without improvement.
        min_delta: Smallest change that counts as an improvement.
        mode: Whether the metric should decrease (min) or increase (max). auto decides by its name: losses and ranks
            should decrease.
    """

    def __init__(
        self,
        *,
        monitor: str | None = None,
        patience: Annotated[int, Gt(0)] = 5,
        min_delta: Annotated[float, Ge(0)] = 0.0,
        mode: Literal["auto", "min", "max"] = "auto",
    ) -> None:
        self.monitor, self.patience, self.min_delta, self.mode = monitor, patience, min_delta, mode
        self.best = -math.inf
        self.best_step = self.waited = 0

    def on_start(self, context: Context) -> None:
        """Check that validation is enabled."""
        if context.monitor is None:
            raise UserError("early_stopping: requires validation during training; set evaluation.every.")
        self.monitor = self.monitor or context.monitor

    def on_validation(self, context: Context) -> None:
        """Compare the metric with the best one so far."""
        assert self.monitor is not None
        if self.monitor not in context.metrics:
            known = ", ".join(context.metrics) or "none"
            raise UserError(
                f"early_stopping.monitor: there is no validation metric {self.monitor!r}. Choose one of: {known}. "
                "For loss and R@k, set evaluation.monitor."
            )
        falls = self.mode == "min" or (self.mode == "auto" and lower_is_better(self.monitor))
        value = float(context.metrics[self.monitor])
        score = -value if falls else value
        if score > self.best + self.min_delta:
            self.best, self.best_step, self.waited = score, context.step, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            best = -self.best if falls else self.best
            context.stop(
                f"{self.monitor} has not improved in {self.waited} validations; the best was {best:.4g} at step "
                f"{self.best_step}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The best value and the number of validations since then."""
        best = None if self.best == -math.inf else self.best
        return {"monitor": self.monitor, "best": best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them, unless they are of another metric."""
        if (other := state.get("monitor", self.monitor)) != self.monitor:
            log.warning(
                f"early_stopping: resets its state, because the monitored metric changed from {other} to "
                f"{self.monitor}."
            )
            return
        self.best = -math.inf if state["best"] is None else state["best"]
        self.best_step, self.waited = state["best_step"], state["waited"]
