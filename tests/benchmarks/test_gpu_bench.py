"""`python -m benchmarks.gpu` in its small form: everything is measured or has a reason, also after a kill."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from launching import Started

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.limits import Limits, OutOfTimeError, seconds_per_call
from benchmarks.gpu.plan import DATA, MACHINE, MEASUREMENTS, ROOT, Measurement
from benchmarks.gpu.record import Record
from benchmarks.gpu.runner import Runner, Subprocess

NAMES = [each.name for each in MEASUREMENTS]
ON_CPU = {each.name for each in MEASUREMENTS if not each.needs_gpu and each.name != "sinkhorn_flash"}
FIRST = MEASUREMENTS[0].name


class Forked(Started):
    """A measurement in a process that is forked, since importing torch would take longer than the measurement."""

    names: list[str]

    def __init__(self, each: Measurement, arguments: list[str], log: Path) -> None:
        self.names.append(each.name)
        super().__init__(arguments, Path(program.__file__))


def outcomes(folder: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((folder / "results.json").read_bytes())
    return held


def killed_after_the_first(folder: Path) -> None:
    """Start the command, and kill it, but not the measurement that it runs, when one measurement is finished."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--minutes", "9", "--out", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None and FIRST not in _finished(folder):
                time.sleep(0.05)
            running = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
    assert _finished(folder) == {FIRST}
    assert psutil.wait_procs(running, timeout=20)[1] == []  # a measurement ends with the command


def _finished(folder: Path) -> set[str]:
    path = folder / "results.json"
    return {name for name, each in outcomes(folder)["measurements"].items()} if path.exists() else set()


@pytest.mark.slow
def test_a_killed_run_resumes_and_measures_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    killed_after_the_first(tmp_path)
    first = outcomes(tmp_path)["measurements"][FIRST]
    Forked.names = []
    record = Runner(tmp_path, minutes=9, small=True, start=Forked).run("the command")
    assert Forked.names[:2] == [MACHINE.name, DATA.name]
    assert set(Forked.names[2:]) == ON_CPU - {FIRST} | {"sinkhorn_flash"}
    held = outcomes(tmp_path)
    assert held["measurements"][FIRST] == first
    assert list(held["measurements"]) == NAMES
    assert {name for name, each in held["measurements"].items() if each["state"] == "measured"} >= ON_CPU
    for each in held["measurements"].values():
        check(each)
    assert held["command"] == "the command"
    assert {"device", "driver", "torch", "date"} <= held.keys()
    rows = [line for line in record.table().splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [each.title for each in MEASUREMENTS]
    assert (tmp_path / "table.md").read_text() == record.table()


def check(outcome: Mapping[str, Any]) -> None:
    """Every number is finite and positive, or there is a reason. Two solvers may agree exactly."""
    if outcome["state"] != "measured":
        assert outcome["reason"]
        return
    assert outcome["numbers"]
    for name, number in outcome["numbers"].items():
        for value in (*number["values"], number["median"], number["least"], number["most"]):
            assert math.isfinite(value)
            assert value > 0 or (value == 0 and name.startswith("difference"))
        if name.startswith("difference"):
            assert number["most"] < 1e-4  # all solvers solve the same problem


class Scripted:
    """A process that writes a given outcome, or ends with a given code, or does not end."""

    script: Mapping[str, object]
    killed: list[str]

    def __init__(self, each: Measurement, arguments: list[str], log: Path) -> None:
        self.name = each.name
        found = self.script.get(each.name, {"state": "measured", "found": NUMBERS, "start_up": 5.0, "seconds": 1.0})
        self.code = found if isinstance(found, int) else 0
        if isinstance(found, dict):
            (log.parent / f"{each.name}.outcome.json").write_text(json.dumps(found))

    def wait(self, timeout: float) -> int:
        if self.code == ENDLESS:
            raise subprocess.TimeoutExpired(self.name, timeout)
        return self.code

    def kill(self) -> None:
        self.killed.append(self.name)


NUMBERS = {"ms": {"median": 2.0, "least": 1.0, "most": 3.0, "values": [2.0, 1.0, 3.0]}}
ENDLESS = 99
GPU = {"device": "NVIDIA T4", "driver": "1", "torch": "2", "cores": 2}
ON_GPU = {"state": "measured", "found": GPU, "start_up": 0.0, "seconds": 1.0}


def scripted(folder: Path, minutes: float = 9, **script: object) -> dict[str, Any]:
    Scripted.script, Scripted.killed = {"machine": ON_GPU} | script, []
    Runner(folder, minutes, False, Scripted).run("the command")
    found: dict[str, Any] = outcomes(folder)["measurements"]
    return found


def test_what_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    found = scripted(tmp_path, compress_fp32=-11, transfer_fp32=1, sinkhorn_eager=ENDLESS)
    reasons = {name: each["reason"] for name, each in found.items() if "reason" in each}
    assert reasons.keys() == {"compress_fp32", "transfer_fp32", "sinkhorn_eager"}
    assert "SIGSEGV" in reasons["compress_fp32"]
    assert "exit code 1" in reasons["transfer_fp32"]
    assert "not finished" in reasons["sinkhorn_eager"]
    assert Scripted.killed == ["sinkhorn_eager"]
    table = (tmp_path / "table.md").read_text()
    assert "| 2 (1 to 3) ms |" in table
    fast = {"ms": {"median": 0.5, "least": 0.5, "most": 0.5, "values": [0.5]}}
    slow = {"samples/s": fast["ms"]}
    given = {"state": "measured", "start_up": 5.0, "seconds": 1.0}
    repeated = scripted(tmp_path, sinkhorn_eager=given | {"found": fast}, compress_fp32=given | {"found": slow})
    assert {each["state"] for each in repeated.values()} == {"measured"}
    assert repeated["global_own"] == found["global_own"]  # only what failed is measured again
    assert "| 2 (1 to 3) ms | 0.25 x Sinkhorn eager |" in (tmp_path / "table.md").read_text()


def test_without_data_the_losses_are_measured(tmp_path: Path) -> None:
    found = scripted(tmp_path, data=1)
    for each in MEASUREMENTS:
        assert found[each.name]["state"] == ("failed" if each.needs_data else "measured")


def test_a_budget_that_does_not_suffice_is_said(tmp_path: Path) -> None:
    found = scripted(tmp_path, minutes=4 / 60)  # each start takes 5 s
    assert found[FIRST]["state"] == found["sinkhorn_eager"]["state"] == "measured"  # the first of its kind
    assert "its start and warm-up take about 5 s" in found["compress_fp32"]["reason"]


def test_results_of_another_machine_are_not_mixed(tmp_path: Path) -> None:
    scripted(tmp_path)
    with pytest.raises(SystemExit, match=r"device NVIDIA T4, now A100.*--out"):
        Record(tmp_path, GPU | {"device": "A100", "small": False})


def test_a_measurement_beyond_its_time_is_killed_with_its_processes(tmp_path: Path) -> None:
    sleep = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    each, log = Measurement("endless", "", "", launcher=("-c", sleep)), tmp_path / "log"
    process = Subprocess(each, [], log)
    own = psutil.Process(process.popen.pid)
    while not (children := own.children()):
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    process.kill()  # harmless if it has ended
    assert psutil.wait_procs([own, *children], timeout=10)[1] == []


def test_repeats_start_only_if_the_time_suffices() -> None:
    calls: list[float] = []

    def work() -> None:
        calls.append(time.sleep(0.02) or 0.0)

    now = time.time()
    assert min(seconds_per_call(work, Limits(True, now + 60, now))) >= 0.02
    assert len(calls) == 3  # warm-up, estimate, one repeat
    with pytest.raises(OutOfTimeError, match="needs about"):
        seconds_per_call(work, Limits(True, now, now))
