"""Jobs in several processes, and how far they are."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.common.errors import UserError
from pipeline.common.process_pool import map_jobs, report_progress
from pipeline.common.progress import Progress

# Many processes.


def kill_yourself(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def double(number: int) -> int:
    report_progress(2)
    if number < 0:
        raise ValueError("negative")
    return 2 * number


@pytest.mark.parametrize("workers", [1, 2])
def test_each_does_every_job_once_and_counts(workers: int) -> None:
    ticks: list[int] = []
    assert sorted(map_jobs(double, range(9), workers, ticks.append)) == list(range(0, 18, 2))
    assert sum(ticks) == 18
    with pytest.raises(ValueError, match="negative"):
        list(map_jobs(double, [1, 2, -1], workers, ticks.append))


def test_a_killed_worker_is_a_user_error() -> None:
    with pytest.raises(UserError, match="worker process was killed"):
        list(map_jobs(kill_yourself, range(6), 2, lambda count: None))


def test_progress_says_a_line_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress("packing", 10) as progress:
        progress.advance(5)
        assert not capsys.readouterr().err
        monkeypatch.setattr(Progress, "SECONDS", 0.0)
        progress.advance(1)
    assert "packing: 6 of 10 samples" in capsys.readouterr().err
