"""Schedules of loss weights: `losses.NAME.schedule` in a config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import NotRequired, TypedDict

DEFAULTS: dict[str, Any] = {"warmup": 0.0, "decay": "none", "from": 0.0, "unit": "epochs"}

SHAPE: Any = {
    "description": "Factor on the weight of the loss that depends on the training step: "
    "`schedule: {warmup: 20, decay: cosine, from: 150}`. It is stateless, so resumed runs continue it exactly."
}

FIELDS: dict[str, Any] = {
    "warmup": NotRequired[Annotated[float, Ge(0), Field(description="Duration of a linear warmup from 0.")]],
    "decay": NotRequired[
        Annotated[
            Literal["none", "cosine"],
            Field(description="Decay after `from`: none, or a cosine that reaches 0 at the end of training."),
        ]
    ],
    "from": NotRequired[
        Annotated[float, Ge(0), Field(description="Start of the decay; must not be before the end of the warmup.")]
    ],
    "unit": NotRequired[Annotated[Literal["epochs", "steps"], Field(description="Unit of `warmup` and `from`.")]],
}


def _whole(written: dict[str, Any]) -> dict[str, Any]:
    """The schedule with its defaults. Raises ValueError if its parts are inconsistent."""
    schedule = DEFAULTS | written
    if schedule["decay"] == "none":
        if schedule["from"]:
            raise ValueError(
                "`from` sets the start of a decay, but there is no `decay`; add `decay: cosine`, or remove `from`"
            )
        return schedule
    start = written.get("from", schedule["warmup"])
    if start < schedule["warmup"]:
        raise ValueError(f"from: must be at least the warmup, {schedule['warmup']:g}")
    return schedule | {"from": start}


_REFUSING = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=SHAPE)

WeightSchedule: Any = Annotated[
    with_config(_REFUSING)(TypedDict("WeightSchedule", FIELDS)),  # type: ignore[operator]
    AfterValidator(_whole),
]
"""A schedule of a loss weight in a config."""


def factor(schedule: Mapping[str, Any], step: int, steps: int, steps_per_epoch: int) -> float:
    """Compute the factor of a weight, in [0, 1].

    A decay that would start after the end of the training has no effect.

    Args:
        schedule: The schedule with all keys, as in a loaded config.
        step: Step number, starting at 1.
        steps: Total number of training steps.
        steps_per_epoch: Number of steps per epoch.
    """
    unit = steps_per_epoch if schedule["unit"] == "epochs" else 1
    warmup, start = schedule["warmup"] * unit, schedule["from"] * unit
    if step < warmup:
        return float(step / warmup)
    if schedule["decay"] == "none" or step <= start:
        return 1.0
    return (1 + math.cos(math.pi * (step - start) / (steps - start))) / 2
