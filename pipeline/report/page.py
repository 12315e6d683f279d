"""The self-contained HTML report of a run: summary, results, curves, examples, cost and how to reproduce it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.config.settings import made_in_python
from pipeline.report.classes import confusion_matrix, gains, transport_plan
from pipeline.report.gallery import class_legend, embedding_map, gallery
from pipeline.report.masks import masks_section
from pipeline.report.pairs_section import pairs_section
from pipeline.report.results import (
    chart,
    comparison,
    curve,
    curves,
    fractions,
    grid,
    main_metric,
    numbers,
    retrieval_table,
    tiles,
)
from pipeline.report.run_section import cost, faults, reproduce, what_happened
from pipeline.report.sentences import code, how_good, warnings, what_was_trained
from pipeline.runs.artifacts import Confusion, Embeddings, Thumbnails, read_confusion, read_embeddings, read_thumbnails
from pipeline.runs.reader import Run, labels, read_run


def report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of a run, optionally with other runs in its charts and tables for comparison.

    The report lists missing files. Unfinished runs are supported.

    Args:
        runs: Run folders. The report is about the first; the others are shown for comparison.
        out: The HTML file; None writes `report.html` to the folder of the first run.

    Returns:
        The path of the HTML file.

    Raises:
        UserError: There are no runs, a folder is not a run, or a file in it is damaged.
    """
    if not runs:
        raise UserError("Nothing to report on: pass at least one run folder.")
    read = [read_run(folder) for folder in runs]
    path = out or read[0].folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page(read).encode("utf-8", "backslashreplace"))
    return path


def page(runs: Sequence[Run]) -> str:
    """Render the report as HTML."""
    run, names = runs[0], labels(runs)
    embeddings, confusion = read_embeddings(run.folder), read_confusion(run.folder)
    thumbnails = read_thumbnails(run.folder, len(embeddings.keys)) if embeddings is not None else None
    sections = {
        "Results": _results(runs, names, embeddings),
        "Comparison": comparison(runs),
        "Gallery": _gallery(run, embeddings, thumbnails),
        "Curves": curves(runs, names),
        "Embedding map": _map(run, embeddings, thumbnails),
        "Transport plan": _plan(run, embeddings),
        "Confusion matrix": _confusion(run, confusion, embeddings),
        "Class by class": gains(confusion) if confusion is not None and "student" in confusion.roles else "",
        **masks_section(run),
        **pairs_section(run),
        "Data faults": faults(run),
        "Cost": cost(runs, names),
        "All numbers": numbers(runs, names) or _missing(run, "numbers", "results.json"),
        "Reproduce": reproduce(run),
    }
    sections = {heading: content for heading, content in sections.items() if content}
    ids = {heading: heading.lower().replace(" ", "-") for heading in sections}
    nav = "".join(f'<a href="#{ids[heading]}">{heading}</a>' for heading in sections)
    body = _summary(runs, names, embeddings, thumbnails, confusion) + "".join(
        f'<section id="{ids[heading]}"><h2>{heading}</h2>{content}</section>' for heading, content in sections.items()
    )
    script = _part("js")
    return Template(_part("html")).substitute(
        # Only this script may run, so text from the data cannot inject one.
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        script=script,
        style=_part("css"),
        title=f"{escape(run.name)} - wcord report",
        kind="Student" if run.config.get("teacher") else "Supervised network" if run.config else "Run",
        heading=escape(names[0]),
        nav=f"<nav>{nav}</nav>",
        body=body,
    )


def _part(suffix: str) -> str:
    return files("pipeline.report").joinpath(f"page.{suffix}").read_text(encoding="utf-8")


def _summary(
    runs: Sequence[Run],
    names: Sequence[str],
    embeddings: Embeddings | None,
    thumbnails: Thumbnails | None,
    confusion: Confusion | None,
) -> str:
    """The status of the run, a description, one figure, the main numbers, and warnings."""
    run = runs[0]
    words = what_was_trained(run, thumbnails) + how_good(run, embeddings, thumbnails)
    if metric := main_metric(run):
        figure = chart(runs, names, metric, embeddings)
    else:
        figure = curve([run], "loss") if run.last("loss") is not None else ""
    notes = {
        "Warnings": warnings(run, embeddings, confusion),
        "Missing": [f"{name}: {note}" for r, name in zip(runs, names, strict=True) for note in r.notes],
    }
    return (
        _notes("Status", what_happened(run))
        + f'<div class="summary"><div>{words}</div>{figure}</div>{tiles(run)}'
        + "".join(_notes(heading, found) for heading, found in notes.items())
    )


def _notes(heading: str, notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{code(note)}</li>" for note in notes)
    return f'<div class="notes"><strong>{heading}</strong><ul>{items}</ul></div>'


def _results(runs: Sequence[Run], names: Sequence[str], embeddings: Embeddings | None) -> str:
    cards = [card for metric in fractions(runs[0]) if (card := chart(runs, names, metric, embeddings))]
    if not cards:
        return _missing(runs[0], "results", "results.json")
    accuracies = any(metric.startswith("student/") for metric in fractions(runs[0]))
    target = "The teacher is the target; the others are baselines. " if accuracies else ""
    words = (
        f"Split {escape(runs[0].split)}. {target}Whiskers are 95 % intervals (Wilson), which account for "
        "the sampling of this split but not for the random seed: add runs with other seeds for that."
    )
    return f'<p class="hint">{words}</p>{grid(cards)}{retrieval_table(runs[0])}'


def _gallery(run: Run, embeddings: Embeddings | None, thumbnails: Thumbnails | None) -> str:
    if embeddings is None:
        return _missing(run, "gallery", "evaluation/embeddings.npz")
    if embeddings.teacher is None:
        return "<p>No gallery: retrieval requires a teacher.</p>"
    if thumbnails is None or thumbnails.teacher is None:
        return _missing(run, "gallery", "evaluation/thumbnails.npz")
    a, b = f"<b>{escape(thumbnails.student_modality)}</b>", f"<b>{escape(thumbnails.teacher_modality)}</b>"
    marks, over = "A", "the test samples"
    if embeddings.labelled:
        marks, over = "✓ and ✗ mark the same or another class; a", "the classes"
    words = (
        f"Left: a test sample in the student's modality ({a}). Right: the nearest {b} pictures among the "
        f"{len(thumbnails.rows):,} samples with pictures. {marks} ring marks the "
        f"true pair, whose rank is among all {len(embeddings.keys):,} embeddings. Queries are taken at even intervals "
        f"from {over}, not hand-picked; cos is the cosine similarity."
    )
    return f'<p class="hint">{words}</p>{gallery(embeddings, thumbnails)}'


def _map(run: Run, embeddings: Embeddings | None, thumbnails: Thumbnails | None) -> str:
    if embeddings is None:
        return _missing(run, "map", "evaluation/embeddings.npz")
    card, made = embedding_map(embeddings, thumbnails)
    marks = "Circles are embeddings of the student"
    marks += ", crosses those of the teacher" if embeddings.teacher is not None else ""
    how = "Hover over a mark to show the sample and its pair"
    how += "; select a class to highlight it." if embeddings.labelled else "."
    marks += "; colours are classes" if embeddings.labelled else ""
    words = f"{marks}. {made}; large distances are not meaningful."
    return f'<p class="hint">{words} <span class="screen">{how}</span></p>{class_legend(embeddings)}{card}'


def _plan(run: Run, embeddings: Embeddings | None) -> str:
    if embeddings is None or embeddings.teacher is None or len(embeddings.keys) < 2:
        return ""
    return transport_plan(embeddings, run.config.get("losses"))


def _confusion(run: Run, confusion: Confusion | None, embeddings: Embeddings | None) -> str:
    if confusion is None:
        return _missing(run, "confusion matrix", "evaluation/confusion.npz")
    if "student" not in confusion.roles:
        if embeddings is None or not embeddings.labelled:
            return ""
        return "<p>No confusion matrix: no sample has both a class and a prediction.</p>"
    return confusion_matrix(confusion)


def _missing(run: Run, what: str, file: str) -> str:
    """A note about a missing file. Empty for runs without results, which the summary reports, and for Python runs."""
    if not run.results or made_in_python(run.config):
        return ""
    command = escape(run.command("evaluate"))
    return f"<p>No {what}: <code>{file}</code> is missing. <code>{command}</code> writes it.</p>"
