"""The HTML report of a run."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import hand_on

if TYPE_CHECKING:
    from pipeline.report.page import report as report

__getattr__ = hand_on(__name__, {"report": "page"})
