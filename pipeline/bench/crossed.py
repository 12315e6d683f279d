"""Intervals for the difference of two methods over both seeds and test samples.

The paired interval over seeds is about other seeds with the same test samples. This one is also about other test
samples: seeds and samples are crossed random effects, and the variance of the mean difference is estimated from the
mean squares of a two-way analysis of variance (Searle, Casella and McCulloch 1992), with the degrees of
freedom of Satterthwaite 1946. It assumes independent test samples; frames of one clip, for example, are not.
"""

from __future__ import annotations

import numpy as np

from pipeline.runs.artifacts import read_embeddings
from pipeline.runs.compare import Group
from pipeline.runs.reader import Run

METRIC = "student/top1"
"""The metric that is a mean over test samples whose values are stored."""


def crossed_interval(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean difference over seeds and samples.

    Args:
        differences: Method minus baseline for S seeds and N test samples, `[S, N]`, both at least 2.
    """
    from scipy.stats import t

    seeds, samples = differences.shape
    mean, rows, columns = differences.mean(), differences.mean(1), differences.mean(0)
    rest = differences - rows[:, None] - columns + mean
    squares = (
        samples * float(((rows - mean) ** 2).sum()) / (seeds - 1),
        seeds * float(((columns - mean) ** 2).sum()) / (samples - 1),
        float((rest**2).sum()) / ((seeds - 1) * (samples - 1)),
    )
    variance = max(squares[0] + squares[1] - squares[2], *squares[:2])  # the difference may be too small by chance
    if variance == 0:
        return float(mean), float(mean)
    freedom = variance**2 / (
        squares[0] ** 2 / (seeds - 1)
        + squares[1] ** 2 / (samples - 1)
        + squares[2] ** 2 / ((seeds - 1) * (samples - 1))
    )
    half = float(t.ppf(0.975, freedom)) * (variance / (seeds * samples)) ** 0.5
    return float(mean) - half, float(mean) + half


def crossed(group: Group, baseline: Group) -> tuple[float, float] | None:
    """The interval for the top-1 accuracy of two methods over their common seeds.

    Returns:
        The ends; None with fewer than two common seeds, or if the runs do not store the predictions of all test
        samples, as with more than 5,000.
    """
    ours, theirs = ({run.seed: run for run in own.runs if METRIC in run.results} for own in (group, baseline))
    common = [seed for seed in ours if seed in theirs]
    if group is baseline or len(common) < 2:
        return None
    rights = [(_right(ours[seed]), _right(theirs[seed])) for seed in common]
    if any(one is None or other is None for one, other in rights):
        return None
    keys = {frozenset(own) for pair in rights for own in pair if own is not None}
    if len(keys) > 1 or len(order := sorted(next(iter(keys)))) < 2:
        return None
    values = [[own[key] for key in order] for pair in rights for own in pair if own is not None]
    table = np.array(values, float).reshape(len(common), 2, len(order))
    return crossed_interval(table[:, 0] - table[:, 1])


def _right(run: Run) -> dict[str, bool] | None:
    """Key of each labelled test sample -> whether it was classified correctly; None if they are not all stored."""
    found = read_embeddings(run.folder)
    if found is None or found.prediction is None or len(found.keys) != run.results.get("samples/test"):
        return None
    known = found.label >= 0
    right = dict(zip(found.keys[known].tolist(), (found.prediction == found.label)[known].tolist(), strict=True))
    return right if right and abs(np.mean(list(right.values())) - run.results[METRIC]) < 1e-6 else None
