"""The tables of the suite: score of each method in each setting, and its regret to the best baseline."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.settings import Setting
from pipeline.runs.compare import paired_difference

Scores = dict[str, dict[int, float]]
"""Method -> seed -> score in per cent."""

SPLITS = {"test": "Test", "val": "Validation"}
SHARED = {
    True: "teacher trained on the same classes",
    False: "teacher trained on other classes, or no classes",
}


def print_tables(settings: Mapping[str, Setting], out: Path, seeds: int, kinds: Mapping[str, Any]) -> None:
    """Print scores and regrets on the test splits, and on the validation splits, by which the default is chosen."""
    order = ["labels", "untrained", *kinds["rivals"], *kinds["ours"], *kinds["forms"]]
    for split in SPLITS:
        for shared, title in SHARED.items():
            found = {name: scores(out / name, seeds, split) for name, s in settings.items() if s.logits == shared}
            methods = [method for method in order if any(method in own for own in found.values())]
            header = ["method", *(f"{name}, {settings[name].measure}" for name in found)]
            print(f"\n### {SPLITS[split]} split: {title}\n")
            print_rows(header, [[m, *(cell(own.get(m)) for own in found.values())] for m in methods])
            print("\nRegret: the lead of the best single baseline in points; negative if the method is better.\n")
            print_rows([*header, "worst"], [[m, *regrets(m, found, list(kinds["rivals"]))] for m in methods])
            print("\nDifference from the labels-only baseline, or from an untrained student, in points.\n")
            print_rows(header, [[m, *(against_nothing(own, m) for own in found.values())] for m in methods[1:]])


def scores(folder: Path, seeds: int, split: str) -> Scores:
    """Read the scores of a setting."""
    found: Scores = {}
    for seed in range(seeds):
        for file in sorted(folder.glob(f"*_seed{seed}/results.json")):
            method = file.parent.name.rpartition("_seed")[0]
            found.setdefault(method, {})[seed] = 100 * json.loads(file.read_bytes())[split]
    return found


def regret(own: Scores, method: str, rivals: Sequence[str]) -> float | None:
    """Difference in points between the mean of the best baseline and that of a method."""
    best = max(
        (statistics.fmean(own[rival].values()) for rival in rivals if rival in own and rival != method), default=None
    )
    return None if method not in own or best is None else best - statistics.fmean(own[method].values())


def regrets(method: str, found: Mapping[str, Scores], rivals: Sequence[str]) -> list[str]:
    points = [regret(own, method, rivals) for own in found.values()]
    known = [value for value in points if value is not None]
    return ["-" if value is None else f"{value:.1f}" for value in points] + [f"{max(known):.1f}" if known else "-"]


def against_nothing(own: Scores, method: str) -> str:
    """Paired difference over seeds to training without a teacher, with its interval."""
    base = own.get("labels") or own.get("untrained")
    if base is None or method not in own or own[method] is base:
        return "-"
    difference = paired_difference([own[method][s] - base[s] for s in sorted(own[method].keys() & base.keys())], False)
    if difference.low is None:
        return f"{difference.mean:+.1f}"
    return f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def cell(own: Mapping[int, float] | None) -> str:
    if not own:
        return "-"
    mean = statistics.fmean(own.values())
    return f"{mean:.1f} ± {statistics.stdev(own.values()):.1f}" if len(own) > 1 else f"{mean:.1f}"


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (header, ["---", *("---:" for _ in header[1:])], *rows):
        print("| " + " | ".join(row) + " |")
