"""Evaluation of a finished run: metrics, probes, retrieval, cost and segmentation scores."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import hand_on

if TYPE_CHECKING:
    from pipeline.evaluate.evaluate_run import Embedded as Embedded
    from pipeline.evaluate.evaluate_run import embed as embed
    from pipeline.evaluate.evaluate_run import evaluate as evaluate
    from pipeline.evaluate.evaluate_run import probe_layers as probe_layers

__getattr__ = hand_on(
    __name__,
    {
        "Embedded": "evaluate_run",
        "embed": "evaluate_run",
        "evaluate": "evaluate_run",
        "probe_layers": "evaluate_run",
    },
)
