"""Callbacks: shipped or user-defined code that the training loop calls. Each shipped callback has its own file."""

from pipeline.train.callbacks.base import Callback
from pipeline.train.callbacks.early_stopping import EarlyStopping
from pipeline.train.callbacks.ema import EMA
from pipeline.train.callbacks.learning_rate_finder import LearningRateFinder

CALLBACKS: dict[str, type[Callback]] = {
    "ema": EMA,
    "early_stopping": EarlyStopping,
    "learning_rate_finder": LearningRateFinder,
}
"""Name in configs -> class."""

__all__ = ["CALLBACKS", "EMA", "Callback", "EarlyStopping", "LearningRateFinder"]
