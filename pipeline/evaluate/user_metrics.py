"""User-defined metrics: functions of labels and predictions, such as those in `sklearn.metrics`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from losses.registry import import_object
from pipeline.common.errors import UserError

Metric = Callable[[np.ndarray, np.ndarray], float]
"""`metric(label, prediction)`: class indices of the labelled samples, int64 `[N]` each; returns a number."""


def load_metrics(paths: Sequence[str]) -> dict[str, Metric]:
    """Import the functions of `evaluation.metrics`.

    Args:
        paths: `package.module:function` each.

    Returns:
        Name of the function -> function.

    Raises:
        UserError: A function cannot be imported, or two have the same name.
    """
    found: dict[str, Metric] = {}
    for path in paths:
        try:
            metric = import_object(path)
        except Exception as error:  # importing user code may raise any error
            raise UserError(f"evaluation.metrics: {error}") from error
        name = path.partition(":")[2]
        if not callable(metric) or name in found:
            reason = (
                "another metric has the same name" if name in found else "is not a function metric(label, prediction)"
            )
            raise UserError(f"evaluation.metrics: {path}: {reason}.")
        found[name] = metric
    return found


def user_scores(metrics: Mapping[str, Metric], label: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Compute the metrics of the labelled samples; empty if there are none.

    Args:
        metrics: Name -> function.
        label: Class indices `[N]`, -1 for unknown.
        prediction: Predicted class indices `[N]`.

    Raises:
        UserError: A metric fails or does not return a number.
    """
    known = label >= 0
    found: dict[str, float] = {}
    for name, metric in metrics.items() if known.any() else ():
        try:
            found[name] = float(metric(label[known].astype(np.int64), prediction[known].astype(np.int64)))
        except Exception as error:  # noqa: PERF203 - of the user's own code
            raise UserError(f"metric {name}: {type(error).__name__}: {error}") from error
    return found
