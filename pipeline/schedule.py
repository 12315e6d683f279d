"""How many steps a run takes, and the learning rate of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.config import Train


@dataclass(frozen=True)
class Schedule:
    """What `train` asks for, on a training set of so many steps an epoch."""

    train: Train
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.train.steps or (self.train.epochs or 0) * self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """Linear warm-up to the peak; then half a cosine to 0 at the last step, or a tenth after each milestone.

        step: counts from 1.
        """
        train = self.train
        if step <= train.warmup:
            return train.learning_rate * step / train.warmup
        if train.schedule == "step":
            epochs = (step - 1) // self.steps_per_epoch  # that are over
            return train.learning_rate * 0.1 ** sum(epochs >= milestone for milestone in train.milestones)
        done = (step - train.warmup) / max(self.steps - train.warmup, 1)
        return train.learning_rate * (1 + math.cos(math.pi * done)) / 2
