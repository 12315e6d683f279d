"""The state of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from pipeline.config.settings import Config
from pipeline.data.mixture import Mixture
from pipeline.data.source import Source
from pipeline.models.distillation import Distillation
from pipeline.models.network import Joint, Network
from pipeline.train.callbacks.events import Callbacks
from pipeline.train.fill_cache import Filling
from pipeline.train.fsdp import plain_student
from pipeline.train.guard import Guard
from pipeline.train.held_out import HeldOut
from pipeline.train.plain_data import PlainData
from pipeline.train.schedule import Schedule


@dataclass(frozen=True)
class Training:
    """A run that is ready for the next step.

    Attributes:
        config: The config.
        accelerator: The accelerator.
        source: The training split, a mixture, or a loader.
        held_out: What validation measures during training, or None.
        schedule: The schedule.
        distillation: The model.
        spare: With FSDP, a copy of the student that is not sharded.
        model: The model as wrapped by Accelerate.
        optimizer: The optimiser.
        guard: The collapse guard.
        identity: Everything that must not change when the run is resumed.
        callbacks: The callbacks.
        filling: With `teacher.cache: auto`, the cache that this run fills; None if there is none, or it is complete.
    """

    config: Config
    accelerator: Accelerator
    source: Source | Mixture | PlainData
    held_out: HeldOut | None
    schedule: Schedule
    distillation: Distillation
    spare: Network | Joint | None
    model: nn.Module
    optimizer: AcceleratedOptimizer
    guard: Guard
    identity: dict[str, Any]
    callbacks: Callbacks
    filling: Filling | None = None

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.config.run)

    def student(self) -> Network | Joint:
        """The student to validate and save, with full weights; callbacks may replace it. Call it on all ranks."""
        return self.callbacks.student(plain_student(self.distillation, self.spare))
