"""Says in words when an embedding collapses, from the metrics that the losses log."""

from __future__ import annotations

from collections.abc import Mapping


def collapse_warnings(metrics: Mapping[str, float]) -> list[str]:
    """One sentence for each sign of collapse among a log step's metrics; they mean nothing during the warm-up."""
    found: list[str] = []
    for key, value in metrics.items():
        loss, _, name = key.rpartition("/")
        if name == "similarity_gap" and value < 0.05:
            found.append(
                f"{loss}: true pairs look hardly more alike than others (similarity gap {value:.3f}): the critic "
                "tells nothing, or has collapsed. Lower the loss's weight or the learning rate, or use "
                "`link: log_softmax`."
            )
        if name in ("projected_std", "std") and value < 0.1:
            found.append(
                f"{loss}: all samples get nearly the same features (relative std {value:.3f}). "
                "Lower the weights of the feature losses, or anchor the plan (`anchor` below 1)."
            )
        if name == "effective_rank" and value < 3:
            found.append(
                f"{loss}: the features use few directions (effective rank {value:.1f}). "
                "More steps, more labels or a lower learning rate keep more; of the losses, a log-softmax link."
            )
    return found
