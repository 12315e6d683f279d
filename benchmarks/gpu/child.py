"""The process of one measurement: runs its function, and writes what it found, or why it failed, to a file."""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from pathlib import Path

from benchmarks.gpu.limits import Limits, OutOfTimeError
from benchmarks.gpu.plan import find
from pipeline.common.errors import UserError
from pipeline.common.files import alive, write_atomic


def measure(name: str, folder: Path, small: bool, deadline: float, started: float, runner: int) -> None:
    """Run one measurement, and write its outcome to `FOLDER/NAME.outcome.json`.

    Args:
        name: Name of the measurement.
        folder: Folder of the results, with the data.
        small: Whether to measure the small form.
        deadline: Time in seconds since the epoch at which it must have ended.
        started: Time at which the process was started.
        runner: ID of the process that runs all measurements. This one ends with it.
    """
    threading.Thread(target=_end_with, args=(runner,), daemon=True).start()
    limits = Limits(small, deadline, started)
    each = find(name)
    module, function = each.function.split(":")
    outcome: dict[str, object]
    try:
        work = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
        outcome = {"state": "measured", "found": work(limits, folder, **each.settings)}
    except OutOfTimeError as error:
        outcome = {"state": "left out", "reason": str(error)}
    except Exception as error:  # a failure of any kind must not end the other measurements
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        outcome = {"state": "failed", "reason": f"{kind}{' '.join(str(error).split())}"[:400]}
    outcome |= {"start_up": limits.start_up, "seconds": time.time() - started}
    write_atomic(folder / f"{name}.outcome.json", json.dumps(outcome).encode())


def _end_with(runner: int) -> None:
    """End this process when another one has ended: two measurements at once would disturb each other."""
    while alive(runner):
        time.sleep(1)
    os._exit(1)
