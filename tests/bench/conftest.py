"""What the tests of benchmarks share."""

from __future__ import annotations

import pytest
from launching import FORKED


@pytest.fixture(autouse=True)
def _no_imports_in_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are forked from a process that has imported everything; a killed bench runs as users run it."""
    monkeypatch.setattr("pipeline.bench.scheduler.multiprocessing.get_context", lambda _: FORKED)
