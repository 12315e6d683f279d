"""What was measured so far: one JSON file, and the Markdown table of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import MEASUREMENTS, Measurement, find
from pipeline.common.files import write_atomic

SAME = ("device", "torch", "small")
"""What the measurements of one file must have in common."""


class Record:
    """The results of a folder, written to `results.json` and `table.md` after every change.

    Args:
        folder: The folder.
        about: The machine, the command and the form of the measurements.

    Raises:
        SystemExit: The folder contains results of another device, version of PyTorch or form.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.path = folder, folder / "results.json"
        self.outcomes: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            held = json.loads(self.path.read_bytes())
            if unlike := [name for name in SAME if held[name] != about[name]]:
                differences = ", ".join(f"{name} {held[name]}, now {about[name]}" for name in unlike)
                raise SystemExit(f"{self.path}: measured with {differences}. Choose another folder with --out.")
            self.outcomes = held["measurements"]
        self.about = dict(about)

    def done(self, name: str) -> bool:
        """Whether a measurement is finished. Failed ones are repeated: their cause may have been removed."""
        return self.outcomes.get(name, {}).get("state") == "measured"

    def starts(self, function: str) -> list[float]:
        """Seconds of the start and warm-up of the finished measurements of one kind."""
        kinds = {each.name: each.function for each in MEASUREMENTS}
        return [
            outcome["start_up"]
            for name, outcome in self.outcomes.items()
            if self.done(name) and kinds[name] == function
        ]

    def add(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Store the outcome of a measurement."""
        self.outcomes[name] = dict(outcome)
        self.write()

    def write(self) -> None:
        """Write both files."""
        held = self.about | {"measurements": self.outcomes}
        write_atomic(self.path, (json.dumps(held, indent=1) + "\n").encode())
        write_atomic(self.folder / "table.md", self.table().encode())

    def table(self) -> str:
        """One row per measurement, in the order of the plan."""
        about = self.about
        lines = [
            f"{about['device']}, driver {about['driver']}, PyTorch {about['torch']}, {about['cores']} CPU cores, "
            f"{about['date'][:10]}" + (", small form" if about["small"] else ""),
            "",
            f"    {about['command']}",
            "",
            "| measurement | median (range) | speed |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {each.title} | {_cell(self.outcomes.get(each.name))} | {self._speed(each)} |" for each in MEASUREMENTS
        ]
        return "\n".join(lines) + "\n"

    def _speed(self, each: Measurement) -> str:
        """The speed relative to the measurement that it is compared with, such as `0.55 x bf16`."""
        if not (each.against and self.done(each.name) and self.done(each.against)):
            return ""
        own, base = (self.outcomes[name]["numbers"] for name in (each.name, each.against))
        name = find(each.against).title.rpartition(", ")[2]
        ratios = []
        for unit in own:
            kind, separator, size = unit.partition(" for ")
            if kind in ("samples/s", "ms") and unit in base:
                ratio = own[unit]["median"] / base[unit]["median"]
                ratios.append(f"{ratio if kind == 'samples/s' else 1 / ratio:.2f} x {name}{separator}{size}")
        return "; ".join(ratios)


def _cell(outcome: Mapping[str, Any] | None) -> str:
    if outcome is None:
        return "not measured yet"
    if outcome["state"] != "measured":
        return f"{outcome['state']}: {outcome['reason']}".replace("|", "/")
    return "; ".join(_quantity(unit, number) for unit, number in outcome["numbers"].items())


def _quantity(unit: str, number: Mapping[str, Any]) -> str:
    """Such as `1,234 (1,200 to 1,250) samples/s`."""
    spread = f" ({_digits(number['least'])} to {_digits(number['most'])})" if len(number["values"]) > 1 else ""
    return f"{_digits(number['median'])}{spread} {unit}"


def _digits(value: float) -> str:
    """Three significant digits, and all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
