"""Intervals in a config: a number of steps, or of epochs such as `2 epochs`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

_EPOCHS = re.compile(r"(\d+(?:\.\d+)?) epochs?")


def _checked(value: Any) -> int | str:
    if isinstance(value, str) and (epochs := _EPOCHS.fullmatch(value)) and float(epochs[1]) > 0:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError("must be a number of steps above 0, or of epochs such as `2 epochs`")


Interval = Annotated[
    int | str,
    PlainValidator(_checked),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0},
                {"type": "string", "pattern": f"^{_EPOCHS.pattern}$", "examples": ["2 epochs"]},
            ]
        }
    ),
]
"""An interval of the training: a number of steps above 0, or of epochs such as `2 epochs` or `0.5 epochs`."""


def in_steps(interval: int | str, steps_per_epoch: int) -> int:
    """Convert an interval to steps, rounded to at least 1.

    Args:
        interval: A valid `Interval`, or 0.
        steps_per_epoch: Number of steps of an epoch.
    """
    if isinstance(interval, int):
        return interval
    return max(1, round(float(interval.split()[0]) * steps_per_epoch))
