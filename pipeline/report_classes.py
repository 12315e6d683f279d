"""Classes one by one: what is taken for what, what each gained over a baseline, and one batch's transport plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from pipeline import charts
from pipeline.report_results import interval
from pipeline.report_samples import Confusion, Embeddings
from pipeline.report_tables import Cell, table

BATCH = 64
"""Test samples in the transport plan that is drawn, at most."""


def confusion_matrix(confusion: Confusion) -> str:
    """The student's confusion matrix beside its commonest mistakes."""
    counts, classes = confusion.roles["student"], confusion.classes
    svg = charts.matrix(counts, classes, "Confusion matrix")
    mistakes = frequent_confusions(counts, classes)
    words = f"{counts.sum():,} test samples; a row is a true class, a column what the student took it for."
    beside = (
        f'<div class="card scroll"><h4>Commonest mistakes</h4>{mistakes}</div>' if mistakes else "<p>No mistakes.</p>"
    )
    return f'<p class="hint">{words}</p><div class="columns"><div class="card scroll">{svg}</div>{beside}</div>'


def frequent_confusions(counts: np.ndarray, classes: Sequence[str], most: int = 8) -> str:
    """The commonest mistakes as an HTML table; "" if there are none."""
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    rows: list[list[Cell]] = []
    for i in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        true, predicted = divmod(int(i), len(counts))
        if times := int(wrong[true, predicted]):
            share = 100 * times / counts[true].sum()
            rows.append([classes[true], classes[predicted], (times, f"{times:,}"), (share, f"{share:.0f} %")])
    return table(["true", "taken for", "times", "of that class"], rows) if rows else ""


def gains(confusion: Confusion) -> str:
    """Each class's share of right answers, and what the student has over the best baseline, with a 95 % interval."""
    student = confusion.roles["student"]
    baselines = {role: counts for role, counts in confusion.roles.items() if role.startswith("baseline/")}
    best = max(baselines, key=lambda role: _right(baselines[role]).sum() / baselines[role].sum(), default=None)
    others = {"teacher": confusion.roles.get("teacher")}
    if best is not None:
        others = {best.removeprefix("baseline/"): baselines[best], **others}
    others = {name: counts for name, counts in others.items() if counts is not None}
    head = ["class", "samples", "student", *others, *(["gain", "95 % from", "to", ""] if best is not None else [])]
    rows: list[list[Cell]] = []
    for i, name in enumerate(confusion.classes):
        n = int(student[i].sum())
        if n == 0:
            continue
        row: list[Cell] = [
            name,
            (n, f"{n:,}"),
            _share(student, i),
            *(_share(c, i) for c in others.values() if c is not None),
        ]
        if best is not None:
            row += _gain(student, baselines[best], i)
        rows.append(row)
    if best is None:
        words = "No baseline that knows these classes was named in <code>evaluation.baselines</code>."
    else:
        words = (
            f"Gain over <b>{escape(best.removeprefix('baseline/'))}</b>, the best baseline, in points. The interval "
            "(Newcombe 1998) is for the choice of test samples, as if each had samples of its own; where "
            "it holds 0, the gain is within noise."
        )
    return f'<p class="hint">{words}</p><div class="scroll">{table(head, rows)}</div>'


def _right(counts: np.ndarray) -> np.ndarray:
    return np.diag(counts)


def _share(counts: np.ndarray, i: int) -> Cell:
    total = counts[i].sum()
    if total == 0:
        return "-"
    share = 100 * counts[i, i] / total
    return float(share), f"{share:.1f} %"


def _gain(student: np.ndarray, baseline: np.ndarray, i: int) -> list[Cell]:
    n, m = student[i].sum(), baseline[i].sum()
    if m == 0:
        return ["-", "-", "-", "-"]
    p, q = student[i, i] / n, baseline[i, i] / m
    low, high = difference_interval(p, n, q, m)
    verdict = "within noise" if low <= 0 <= high else "better" if low > 0 else "worse"
    return [*((100 * value, f"{100 * value:+.1f}") for value in (p - q, low, high)), verdict]


def difference_interval(p: float, n: float, q: float, m: float) -> tuple[float, float]:
    """The 95 % interval of `p - q`, shares of `n` and of `m` samples (Newcombe 1998, method 10)."""
    (low_p, high_p), (low_q, high_q) = interval(p, n), interval(q, m)
    return p - q - math.hypot(p - low_p, high_q - q), p - q + math.hypot(high_p - p, q - low_q)


def transport_plan(e: Embeddings, losses: Any) -> str:
    """The plan between both sides of a batch of test samples, as a heat map, and in words how much of it is right."""
    import torch

    from losses import sinkhorn

    assert e.teacher is not None
    rows = np.unique(np.linspace(0, len(e.keys) - 1, min(BATCH, len(e.keys))).round().astype(int))
    rows = rows[np.argsort(e.label[rows], kind="stable")]
    epsilon = _epsilon(losses)
    cost = 1 - torch.from_numpy(e.student[rows] @ e.teacher[rows].T)
    plan = sinkhorn(cost, epsilon, 100).numpy()
    n, label = len(rows), e.label[rows]
    same = (label[:, None] == label) & (label >= 0)
    words = (
        f"{n} test samples in order of their classes: a row is what the student sees of one, a column what the teacher "
        f"sees, and a pixel how much of the row's mass the plan sends there (stronger is more, by its square root). "
        f"The plan does not know the pairs. <b>{100 * np.trace(plan):.1f} %</b> of the mass lies on the diagonal, on "
        f"true pairs; even spreading would put {100 / n:.1f} % there."
    )
    if same.any():
        words += f" On pairs of one class lie <b>{100 * plan[same].sum():.1f} %</b>, against {100 * same.mean():.1f} %."
    words += (
        f" Cost: 1 - cos of the embeddings above, epsilon {epsilon:g}; the loss itself compares its own projections."
    )
    image = charts.pixels(np.sqrt(plan / plan.max()), charts.RIGHT, "Transport plan")
    return f'<p class="hint">{words}</p><div class="card plan-card">{image}</div>'


def _epsilon(losses: Any) -> float:
    """That of the run's transport loss, or the default of `sinkhorn`."""
    for name in ("wcord", "local_transport"):
        term = losses.get(name) if isinstance(losses, dict) else None
        if isinstance(term, dict) and isinstance(found := term.get("epsilon"), float) and found > 0:
            return found
    return 0.1
