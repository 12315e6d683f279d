"""Random search over settings of losses: the trials of a method, and the choice of the best one."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.bench.settings import Choice, Losses, Space, Tune
from pipeline.bench.tables import Tuned
from pipeline.common.errors import UserError
from pipeline.runs.reader import Run, lower_is_better

OUTER = 0.1
"""A chosen value in this part of its range, at either end and in log space, suggests a larger range."""


def draw(method: str, spaces: Mapping[str, Space], trial: int) -> dict[str, Any]:
    """Draw the settings of a trial, each independently of the other settings and of the number of trials.

    Args:
        method: Name of the method.
        spaces: `LOSS.KEY` -> two ends of a range, or a choice.
        trial: Number of the trial, from 0.

    Returns:
        `LOSS.KEY` -> value; numbers of a range are log-uniform, with three significant digits.
    """
    return {setting: _drawn(space, random.Random(f"{method}/{setting}/{trial}")) for setting, space in spaces.items()}


def _drawn(space: Space, rng: random.Random) -> Any:
    if isinstance(space, Choice):
        return rng.choice(space.choice)
    low, high = space
    value = math.exp(rng.uniform(math.log(low), math.log(high)))
    return min(max(float(f"{value:.3g}"), low), high)


def with_values(losses: Losses, values: Mapping[str, Any], where: str) -> Losses:
    """Set values in the losses of a method.

    Args:
        losses: Loss -> its settings.
        values: `LOSS.KEY` -> value.
        where: Config path for messages.

    Raises:
        UserError: The method has no such loss.
    """
    found = dict(losses)
    for setting, value in values.items():
        loss, _, key = setting.rpartition(".")
        if loss not in found:
            known = ", ".join(f"{name}.weight" for name in losses)
            raise UserError(
                f"{where}.{setting}: must be LOSS.SETTING, with a loss of the method and one of its settings, such as "
                f"{known}."
            )
        found[loss] = {**(found[loss] or {}), key: value}
    return found


def choose(tune: Tune, method: str, trials: Sequence[Sequence[Run]], metric: str) -> Tuned:
    """Choose the trial with the best mean score over its seeds; the first one if several are equal.

    Args:
        tune: The settings of the search.
        method: Name of the method.
        trials: Trial -> its runs, one per seed.
        metric: Key of `results.json`.

    Raises:
        UserError: No trial has a score.
    """
    scores = {
        number: statistics.fmean(run.results[metric] for run in runs)
        for number, runs in enumerate(trials)
        if all(metric in run.results for run in runs)
    }
    if not scores:
        raise UserError(
            f"tune.over.{method}: no trial has the result {metric} on the split `{tune.split}`, see "
            f"{trials[0][0].folder / 'results.json'}. Set `metric` to one of its results, or `tune.split` to a split "
            "with labels."
        )
    best = (min if lower_is_better(metric) else max)(scores, key=lambda number: scores[number])
    spaces = tune.over[method]
    values = draw(method, spaces, best)
    outer = tuple(setting for setting, value in values.items() if is_outer(spaces[setting], value))
    return Tuned(values, scores[best], tune.split, tune.trials, outer)


def is_outer(space: Space, value: Any) -> bool:
    """Whether a value is close to an end of its range in log space. A choice has no ends."""
    if isinstance(space, Choice):
        return False
    low, high = (math.log(end) for end in space)
    place = (math.log(value) - low) / (high - low)
    return min(place, 1 - place) < OUTER
