"""Settings of the operating system: what the garbage collector traverses while a run trains."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from pipeline.common.host import garbage_of_steps_only


@pytest.fixture
def thawed() -> Iterator[None]:
    """As a process starts: the tests' own objects are frozen otherwise."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("thawed")
def test_what_existed_before_is_excluded_until_the_end() -> None:
    with garbage_of_steps_only():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("thawed")
def test_what_the_caller_froze_stays_frozen() -> None:
    gc.freeze()
    before = gc.get_freeze_count()
    with garbage_of_steps_only():
        pass
    assert gc.get_freeze_count() == pytest.approx(before, rel=0.01)
    gc.unfreeze()
