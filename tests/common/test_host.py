"""Settings of the operating system: what the garbage collector traverses, and the cores of loader processes."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator

import psutil
import pytest
from torch import multiprocessing

from pipeline.common.host import garbage_of_steps_only, yield_to_training


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


def _occupy(core: int, loads: bool) -> None:
    os.sched_setaffinity(0, {core})
    if loads:
        yield_to_training()
    while True:
        pass


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_loader_gets_its_share_of_a_core_that_another_program_uses() -> None:
    core = min(os.sched_getaffinity(0))
    context = multiprocessing.get_context("fork")
    pair = [context.Process(target=_occupy, args=(core, loads), daemon=True) for loads in (True, False)]
    used = [0.0, 0.0]
    try:
        for process in pair:
            process.start()
        while sum(used) < 0.5:
            time.sleep(0.05)
            used = [psutil.Process(process.pid).cpu_times().user for process in pair]
    finally:
        for process in pair:
            process.kill()
            process.join()
    assert used[0] > 0.3 * sum(used)  # with nice 10, it would be a tenth
