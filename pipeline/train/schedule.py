"""The number of steps of a run, and the learning rate and loss weights of each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.interval import in_steps
from pipeline.config.settings import Train
from pipeline.config.weight_schedule import factor


@dataclass(frozen=True)
class Schedule:
    """The schedule of a run.

    Args:
        train: Section `train` of the config.
        steps_per_epoch: Number of batches of the training set.
        losses: Section `losses` of the config: name -> `weight`, `schedule` and keywords.
    """

    train: Train
    steps_per_epoch: int
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the run."""
        return self.train.steps or (self.train.epochs or 0) * self.steps_per_epoch

    def is_due(self, interval: int | str, step: int) -> bool:
        """Whether a step is the last one of an interval, such as `train.checkpoint_every`.

        Args:
            interval: Number of steps, or of epochs such as `2 epochs`.
            step: Number of the step, from 1.
        """
        return step % in_steps(interval, self.steps_per_epoch) == 0

    def learning_rate(self, step: int) -> float:
        """The learning rate: linear warm-up, then cosine decay to 0, or a factor of 0.1 after each milestone.

        Args:
            step: Step number, starting at 1.
        """
        train = self.train
        if step <= train.warmup:
            return train.learning_rate * step / train.warmup
        if train.schedule == "step":
            epochs = (step - 1) // self.steps_per_epoch  # finished epochs
            return train.learning_rate * 0.1 ** sum(epochs >= milestone for milestone in train.milestones)
        done = (step - train.warmup) / max(self.steps - train.warmup, 1)
        return train.learning_rate * (1 + math.cos(math.pi * done)) / 2

    def weights(self, step: int) -> dict[str, float]:
        """Weight of each loss, including its schedule.

        Args:
            step: Step number, starting at 1.
        """
        return {
            name: float(keywords.get("weight", 1.0))
            * (factor(keywords["schedule"], step, self.steps, self.steps_per_epoch) if "schedule" in keywords else 1)
            for name, keywords in self.losses.items()
        }
