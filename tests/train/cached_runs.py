"""Losses of the students of cached teachers, and what they log."""

from __future__ import annotations

import json
from pathlib import Path

LOSSES = "  kd: {}\n  wcord: {dim: 8}"


def losses(run: Path) -> list[float]:
    """The objective of each logged step."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
