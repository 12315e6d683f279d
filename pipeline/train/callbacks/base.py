"""The interface of callbacks: `Callback` and the `Context` that every event receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from pipeline.config.settings import Config
from pipeline.models.distillation import Distillation
from pipeline.models.network import Joint, Network


@dataclass(frozen=True)
class Context:
    """The information that a callback receives with each event.

    Attributes:
        step: Number of finished steps.
        steps: Number of steps of the run.
        model: Teacher, student and losses.
        optimizer: The optimiser.
        metrics: In `on_step`, the loss and its terms (`loss`, `loss/kd`) as detached scalars of this process, also for
            a step that was skipped because of a non-finite gradient. In `on_validation`, the validation metrics as
            floats. Otherwise empty.
        config: The config of the run.
        run: The run folder.
        main: Whether this is the first process. Only this process should write files or log.
        monitor: The validation metric that selects `best/` (`evaluation.monitor`); None without validation.
        stop: Ends the run after this step, with a reason, e.g. `context.stop("no improvement")`. The run then logs,
            writes a checkpoint and the student, and counts as finished.
    """

    step: int
    steps: int
    model: Distillation
    optimizer: torch.optim.Optimizer
    metrics: Mapping[str, Any]
    config: Config
    run: Path
    main: bool
    monitor: str | None
    stop: Callable[[str], None]

    @property
    def student(self) -> Network | Joint:
        """The student that is being trained."""
        return self.model.student


class Callback:
    """Code that the training loop calls at its events. Subclass it and override the events that you need.

    A config lists callbacks in `train.callbacks`, by name or as `package.module:Class`; keywords are passed to the
    constructor. By default, events are called in the first process only. If `every_process` is set, they are called in
    all processes and must do the same in each; otherwise, the processes would train different models. An error in an
    event ends the run with a message that contains the name of the callback.

    A run that is stopped by a signal does not call `on_end`; the resumed run does. `on_start` is called again when a
    run is resumed.

    Example:
        ```python
        class Slowest(wcord.Callback):
            def on_step(self, context):
                if context.step % 100 == 0:
                    print(context.step, float(context.metrics["loss"]))
        ```
    """

    every_process: ClassVar[bool] = False

    def on_start(self, context: Context) -> None:
        """Called before the first step, also when a run is resumed. `load_state_dict` is called afterwards."""

    def on_step(self, context: Context) -> None:
        """Called after each optimiser step."""

    def on_validation(self, context: Context) -> None:
        """Called after each validation, with its metrics."""

    def on_checkpoint(self, context: Context) -> None:
        """Called after each checkpoint has been written."""

    def on_end(self, context: Context) -> None:
        """Called after the last step, once the student has been written."""

    def state_dict(self) -> dict[str, Any]:
        """The state for checkpoints: name -> tensor or JSON value."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Args:
            state: What `state_dict` returned; tensors are on the CPU.
        """

    def student(self, student: Network | Joint) -> Network | Joint:
        """The network that is validated, and written to `student/` and `best/`; by default the trained student itself.

        To override it, set `every_process`, since all processes validate.

        Args:
            student: The trained student, or what an earlier callback returned.
        """
        return student
