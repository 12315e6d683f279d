"""Says in words when an embedding collapses, from the metrics that the losses log."""

from __future__ import annotations

from collections.abc import Mapping

LEAST_GAP, LEAST_STD, LEAST_RANK = 0.05, 0.1, 3
LEAST_SHARE = 0.4
"""Of the teacher's effective rank: a dual without a log keeps about a quarter, what tells all pairs apart a half or
more (`tests/pipeline/test_collapse.py`)."""
LARGEST_MARGINAL_ERROR = 0.15


def collapse_warnings(metrics: Mapping[str, float]) -> list[str]:
    """One sentence for each sign of collapse among a log step's metrics; they mean nothing during the warm-up."""
    found: list[str] = []
    of_teacher = metrics.get("teacher/effective_rank", 0.0)
    for key, value in metrics.items():
        loss, _, name = key.rpartition("/")
        if name == "similarity_gap" and value < LEAST_GAP:
            found.append(
                f"{loss}: true pairs look hardly more alike than others (similarity gap {value:.3f}): the critic "
                "tells nothing, or has collapsed. Lower the loss's weight or the learning rate, or use "
                "`link: log_softmax`."
            )
        if name in ("projected_std", "std") and value < LEAST_STD:
            found.append(
                f"{loss}: all samples get nearly the same features (relative std {value:.3f}). "
                "Lower the weights of the feature losses, or anchor the plan (`anchor` below 1)."
            )
        if name == "effective_rank" and loss != "teacher":
            # The student's own features are right to keep no more directions than its classes need.
            if value < LEAST_RANK:
                found.append(
                    f"{loss}: the features use few directions (effective rank {value:.1f}). "
                    "More steps, more labels or a lower learning rate keep more; of the losses, a log-softmax link."
                )
            elif loss != "student" and value < LEAST_SHARE * of_teacher:
                found.append(
                    f"{loss}: the projection keeps few of the teacher's directions (effective rank {value:.1f}, the "
                    f"teacher's {of_teacher:.1f}). Use `link: log_softmax`, or anchor the plan (`anchor` below 1)."
                )
        if name == "marginal_error" and value > LARGEST_MARGINAL_ERROR:
            found.append(
                f"{loss}: the plan misses its marginals (error {value:.2f} of 2): too few iterations for so small an "
                "epsilon. Raise `iterations` or `epsilon`."
            )
    return found
