"""Runs the measurements one after another, each in a process of its own, until the time is used up."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu.plan import DATA, MACHINE, MEASUREMENTS, ROOT, Measurement
from benchmarks.gpu.record import Record

PATIENCE = 10.0
"""Seconds that a process may take to end after its time."""

Outcome = dict[str, Any]
"""State (measured, failed or left out), reason, numbers, seconds, and seconds until the end of the warm-up."""


class Process(Protocol):
    """A running measurement."""

    def wait(self, timeout: float) -> int:
        """Its exit code; `subprocess.TimeoutExpired` if it does not end in time."""

    def kill(self) -> None:
        """Kill it with the processes that it started."""


class Subprocess:
    """The process of a measurement.

    Args:
        each: The measurement.
        arguments: Arguments of `python -m benchmarks.gpu`.
        log: File for its output.
    """

    def __init__(self, each: Measurement, arguments: list[str], log: Path) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, *each.launcher, "-m", "benchmarks.gpu", *arguments]
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path}
            )

    def wait(self, timeout: float) -> int:
        return self.popen.wait(timeout)

    def kill(self) -> None:
        from benchmarks.kill_and_resume import kill_all  # imports torch

        if self.popen.poll() is None:
            kill_all(self.popen)
            self.popen.wait()


Start = Callable[[Measurement, list[str], Path], Process]
"""Starts the process of a measurement; see `Subprocess`."""


class Runner:
    """Runs measurements within a time.

    Args:
        folder: Folder of the results.
        minutes: The time.
        small: Whether to run the small form, also if there is a GPU.
        start: Starts the process of a measurement.
    """

    def __init__(self, folder: Path, minutes: float, small: bool, start: Start = Subprocess) -> None:
        self.folder, self.small, self.start, self.deadline = folder, small, start, time.time() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, command: str) -> Record:
        """Measure what is not finished yet, in the order of the plan.

        Args:
            command: The command, for the record.
        """
        machine = self.outcome(MACHINE)
        if machine["state"] != "measured":
            raise SystemExit(f"the machine cannot be described: {machine['reason']}; see {self.folder / 'machine.log'}")
        cpu = machine["found"]["device"] == "CPU"
        self.small = self.small or cpu
        record = Record(self.folder, machine["found"] | {"small": self.small, "date": _now(), "command": command})
        record.write()
        data: Outcome | None = None
        for each in MEASUREMENTS:
            if record.done(each.name):
                _say(each.title, "finished earlier")
                continue
            if cpu and each.needs_gpu:
                outcome = _left_out(each.needs_gpu)
            elif each.needs_data:
                data = data or self._prepared()
                outcome = self._within_time(each, record) if data["state"] == "measured" else _without(data)
            else:
                outcome = self._within_time(each, record)
            numbers = {"numbers": outcome.pop("found")} if "found" in outcome else {}
            record.add(each.name, {"title": each.title, **outcome, **numbers, "date": _now()})
            _say(each.title, f"{outcome['state']}: {outcome['reason']}" if "reason" in outcome else "measured")
        return record

    def _prepared(self) -> Outcome:
        """Make the data, which takes little time if they exist."""
        outcome = self.outcome(DATA)
        _say(DATA.title, outcome.get("reason", f"ready after {outcome['seconds']:.0f} s"))
        return outcome

    def _within_time(self, each: Measurement, record: Record) -> Outcome:
        """Measure if the time suffices for the shortest start and warm-up of its kind so far.

        The measurement itself checks the time again after its warm-up.
        """
        starts = record.starts(each.function)
        left = self.deadline - time.time()
        if starts and left < min(starts):
            return _left_out(f"its start and warm-up take about {min(starts):.0f} s; {max(left, 0):.0f} s remain")
        return self.outcome(each)

    def outcome(self, each: Measurement) -> Outcome:
        """Run the process of a measurement."""
        left = self.deadline - time.time()
        if left <= 0:
            return _left_out("no time remains")
        path, log, begun = self.folder / f"{each.name}.outcome.json", self.folder / f"{each.name}.log", time.time()
        path.unlink(missing_ok=True)
        arguments = ["--measure", each.name, "--out", str(self.folder), "--runner", str(os.getpid())]
        arguments += ["--started", str(begun), "--deadline", str(self.deadline), *(["--small"] if self.small else [])]
        code = _wait(self.start(each, arguments, log), left + PATIENCE)
        if path.exists():
            found: Outcome = json.loads(path.read_bytes())
            path.unlink()
            return found
        if code is None:
            return _left_out(f"not finished within the {left:.0f} s that remained")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        reason = f"its process ended with {how}; see {log.name}"
        return {"state": "failed", "reason": reason, "seconds": time.time() - begun}


def _wait(process: Process, seconds: float) -> int | None:
    """Wait for a process, and kill it if it takes longer or if this one is interrupted.

    Returns:
        Its exit code; None if it took longer.
    """
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return None
    except BaseException:
        process.kill()
        raise


def _left_out(reason: str) -> Outcome:
    return {"state": "left out", "reason": reason, "seconds": 0.0}


def _without(data: Mapping[str, Any]) -> Outcome:
    return {"state": data["state"], "reason": f"no data: {data['reason']}", "seconds": 0.0}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _say(title: str, text: str) -> None:
    print(f"{title}: {text}", flush=True)


def command_line(arguments: list[str]) -> str:
    """The command, as typed."""
    return shlex.join(["python", "-m", "benchmarks.gpu", *arguments])
