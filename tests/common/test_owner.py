"""Who owns a folder: the second is told, the dead own nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.common.files import host
from pipeline.common.owner import owned

HOLDER = """
import os, sys, time
from pathlib import Path
from pipeline.common.owner import owned
with owned(Path(sys.argv[1]), sys.argv[2]):
    if sys.argv[3:] and not os.fork():
        time.sleep(1.5)  # a child that outlives its killed parent, with the lock
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path, work: str = "", *child: str) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), work, *child],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.parametrize("stopped", [False, True])
def test_the_second_is_told_host_and_process(tmp_path: Path, stopped: bool) -> None:
    holder = hold(tmp_path / "run")
    try:
        if stopped:
            os.kill(holder.pid, signal.SIGSTOP)
        with (
            pytest.raises(UserError, match=rf"process {holder.pid} on host {host()} is writing to it"),
            owned(tmp_path / "run"),
        ):
            pass
        with owned(tmp_path / "another"):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_the_lock_of_a_killed_owner_is_free_once_its_children_have_ended(tmp_path: Path) -> None:
    holder = hold(tmp_path / "run", "", "child")
    holder.kill()
    holder.wait()
    begun = time.monotonic()
    with owned(tmp_path / "run"):
        assert time.monotonic() - begun < 20
    assert not list(tmp_path.iterdir())


def test_the_same_work_is_shared_and_other_work_is_not(tmp_path: Path) -> None:
    holder = hold(tmp_path / "data", "same")
    try:
        with owned(tmp_path / "data", "same"):
            pass
        for other in ("other", ""):
            with pytest.raises(UserError, match="is writing to it"), owned(tmp_path / "data", other):
                pass
    finally:
        holder.kill()
        holder.wait()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with owned(tmp_path / "run"):
        assert {path.name for path in tmp_path.iterdir()} == {".run.lock", ".run.owner"}
    assert not list(tmp_path.iterdir())


def test_another_owner_is_awaited_for_as_long_as_asked(tmp_path: Path) -> None:
    holder = hold(tmp_path / "data", "")
    with pytest.raises(UserError, match="is writing to it"), owned(tmp_path / "data", "", 0.3):
        pass
    ending = threading.Timer(0.3, holder.kill)
    ending.start()
    begun = time.monotonic()
    with owned(tmp_path / "data", "", 60):
        assert time.monotonic() - begun < 30
    holder.wait()
