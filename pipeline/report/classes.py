"""Per-class results: confusion matrix, gains over a baseline, and the transport plan of one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from pipeline.evaluate.retrieval import interval
from pipeline.report import svg as charts
from pipeline.report.tables import TableCell, table
from pipeline.runs.artifacts import Confusion, Embeddings

BATCH = 64
"""Maximum number of test samples in the transport plan."""


def confusion_matrix(confusion: Confusion) -> str:
    """The confusion matrix of the student and its most frequent mistakes, as HTML."""
    counts, classes = confusion.roles["student"], confusion.classes
    svg = charts.matrix(counts, classes, "Confusion matrix")
    mistakes = frequent_confusions(counts, classes)
    words = f"{counts.sum():,} test samples; rows are true classes, columns are predictions of the student."
    beside = (
        f'<div class="card scroll"><h4>Most frequent mistakes</h4>{mistakes}</div>'
        if mistakes
        else "<p>No mistakes.</p>"
    )
    return f'<p class="hint">{words}</p><div class="columns"><div class="card scroll">{svg}</div>{beside}</div>'


def frequent_confusions(counts: np.ndarray, classes: Sequence[str], most: int = 8) -> str:
    """The most frequent mistakes as an HTML table; empty if there are none."""
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    rows: list[list[TableCell]] = []
    for i in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        true, predicted = divmod(int(i), len(counts))
        if times := int(wrong[true, predicted]):
            share = 100 * times / counts[true].sum()
            rows.append([classes[true], classes[predicted], (times, f"{times:,}"), (share, f"{share:.0f} %")])
    return table(["true", "predicted", "count", "of that class"], rows) if rows else ""


def gains(confusion: Confusion) -> str:
    """Accuracy per class, and the student's gain over the best baseline with a 95 % interval, as HTML."""
    student = confusion.roles["student"]
    baselines = {role: counts for role, counts in confusion.roles.items() if role.startswith("baseline/")}
    best = max(baselines, key=lambda role: _right(baselines[role]).sum() / baselines[role].sum(), default=None)
    others = {"teacher": confusion.roles.get("teacher")}
    if best is not None:
        others = {best.removeprefix("baseline/"): baselines[best], **others}
    others = {name: counts for name, counts in others.items() if counts is not None}
    head = ["class", "samples", "student", *others, *(["gain", "95 % from", "to", ""] if best is not None else [])]
    rows: list[list[TableCell]] = []
    for i, name in enumerate(confusion.classes):
        n = int(student[i].sum())
        if n == 0:
            continue
        row: list[TableCell] = [
            name,
            (n, f"{n:,}"),
            _share(student, i),
            *(_share(c, i) for c in others.values() if c is not None),
        ]
        if best is not None:
            row += _gain(student, baselines[best], i)
        rows.append(row)
    if best is None:
        words = "<code>evaluation.baselines</code> contains no baseline with these classes."
    else:
        words = (
            f"Gain over <b>{escape(best.removeprefix('baseline/'))}</b>, the best baseline, in points. The interval "
            "(Newcombe 1998) accounts for the sampling of the test set and treats the two results as independent. If "
            "it contains 0, the gain is not significantly different from 0."
        )
    return f'<p class="hint">{words}</p><div class="scroll">{table(head, rows)}</div>'


def _right(counts: np.ndarray) -> np.ndarray:
    return np.diag(counts)


def _share(counts: np.ndarray, i: int) -> TableCell:
    total = counts[i].sum()
    if total == 0:
        return "-"
    share = 100 * counts[i, i] / total
    return float(share), f"{share:.1f} %"


def _gain(student: np.ndarray, baseline: np.ndarray, i: int) -> list[TableCell]:
    n, m = student[i].sum(), baseline[i].sum()
    if m == 0:
        return ["-", "-", "-", "-"]
    p, q = student[i, i] / n, baseline[i, i] / m
    low, high = difference_interval(p, n, q, m)
    verdict = "within noise" if low <= 0 <= high else "better" if low > 0 else "worse"
    return [*((100 * value, f"{100 * value:+.1f}") for value in (p - q, low, high)), verdict]


def difference_interval(p: float, n: float, q: float, m: float) -> tuple[float, float]:
    """The 95 % interval of `p - q` (Newcombe 1998, method 10).

    Args:
        p: A proportion in [0, 1].
        n: Number of samples of `p`.
        q: A proportion in [0, 1].
        m: Number of samples of `q`.
    """
    (low_p, high_p), (low_q, high_q) = interval(p, n), interval(q, m)
    return p - q - math.hypot(p - low_p, high_q - q), p - q + math.hypot(high_p - p, q - low_q)


def transport_plan(e: Embeddings, losses: Any) -> str:
    """Draw the transport plan between student and teacher embeddings of test samples, as HTML.

    Args:
        e: Embeddings with a teacher.
        losses: The losses of the config, for epsilon.
    """
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
        f"{n} test samples{' ordered by class' if e.labelled else ''}: rows are samples of the student, columns "
        "samples of the teacher, and the intensity of a pixel is the square root of the mass that the plan transports "
        f"between them. The plan does not know the pairs. <b>{100 * np.trace(plan):.1f} %</b> of the mass lies on the "
        f"diagonal, between true pairs; a uniform plan has {100 / n:.1f} % there."
    )
    if same.any():
        words += (
            f" Pairs of the same class have <b>{100 * plan[same].sum():.1f} %</b>; uniform: {100 * same.mean():.1f} %."
        )
    words += (
        f" The cost is 1 - cos of the embeddings above, epsilon {epsilon:g}; the loss itself uses its own projections."
    )
    image = charts.pixels(np.sqrt(plan / plan.max()), charts.RIGHT, "Transport plan")
    return f'<p class="hint">{words}</p><div class="card plan-card">{image}</div>'


def _epsilon(losses: Any) -> float:
    """Epsilon of the run's transport loss, or a default of 0.1."""
    for name in ("wcord", "local_transport"):
        term = losses.get(name) if isinstance(losses, dict) else None
        if isinstance(term, dict) and isinstance(found := term.get("epsilon"), float) and found > 0:
            return found
    return 0.1
