"""One self-contained HTML page about a run: what it is, how good, how it went, what it sees, how to make it again."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from pipeline.errors import UserError
from pipeline.report_classes import confusion_matrix, gains, transport_plan
from pipeline.report_gallery import class_legend, embedding_map, gallery
from pipeline.report_masks import masks_section
from pipeline.report_results import FRACTIONS, chart, comparison, curve, curves, grid, main_metric, numbers, tiles
from pipeline.report_run import cost, faults, reproduce, what_happened
from pipeline.report_samples import (
    Confusion,
    Embeddings,
    Thumbnails,
    read_confusion,
    read_embeddings,
    read_thumbnails,
)
from pipeline.report_words import code, how_good, warnings, what_was_trained
from pipeline.runs import Run, labels, read_run
from pipeline.shards import write_atomic


def report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of the first run, with the others beside it in its charts and tables, and return its path.

    out: the page, by default `report.html` in the first run's folder. What a run folder lacks is said in the page; a
    run that was not finished gets one too.
    Raises UserError for no runs, a folder that is not a run, or a file in it that is not what a run writes.
    """
    if not runs:
        raise UserError("Nothing to report on: give at least one run folder.")
    read = [read_run(folder) for folder in runs]
    path = out or read[0].folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page(read).encode())
    return path


def page(runs: Sequence[Run]) -> str:
    """The report as HTML."""
    run, names = runs[0], labels(runs)
    embeddings, confusion = read_embeddings(run.folder), read_confusion(run.folder)
    thumbnails = read_thumbnails(run.folder, len(embeddings.keys)) if embeddings is not None else None
    sections = {
        "Results": _results(runs, names, embeddings),
        "Comparison": comparison(runs),
        "Curves": curves(runs, names),
        "Gallery": _gallery(run, embeddings, thumbnails),
        "Embedding map": _map(run, embeddings, thumbnails),
        "Transport plan": _plan(run, embeddings),
        "Confusion matrix": _confusion(run, confusion),
        "Class by class": gains(confusion) if confusion is not None and "student" in confusion.roles else "",
        **masks_section(run),
        "Data faults": faults(run),
        "Cost": cost(runs, names),
        "All numbers": numbers(runs, names) or _missing(run, "numbers", "results.json"),
        "Reproduce": reproduce(run),
    }
    sections = {heading: content for heading, content in sections.items() if content}
    ids = {heading: heading.lower().replace(" ", "-") for heading in sections}
    nav = "".join(f'<a href="#{ids[heading]}">{heading}</a>' for heading in sections)
    body = _summary(runs, names, embeddings, thumbnails) + "".join(
        f'<section id="{ids[heading]}"><h2>{heading}</h2>{content}</section>' for heading, content in sections.items()
    )
    script = _part("js")
    return Template(_part("html")).substitute(
        # Only the page's own script may run, so that no text from data ever can.
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
    return files("pipeline").joinpath(f"report_page.{suffix}").read_text(encoding="utf-8")


def _summary(
    runs: Sequence[Run], names: Sequence[str], embeddings: Embeddings | None, thumbnails: Thumbnails | None
) -> str:
    """What happened, in words; one figure; the first numbers; what to look at twice."""
    run = runs[0]
    words = what_was_trained(run, thumbnails) + how_good(run, embeddings, thumbnails)
    if metric := main_metric(run):
        figure = chart(runs, names, metric, embeddings)
    else:
        figure = curve([run], "loss") if run.last("loss") is not None else ""
    notes = {
        "Look twice": warnings(run, embeddings),
        "What is missing": [f"{name}: {note}" for r, name in zip(runs, names, strict=True) for note in r.notes],
    }
    return (
        _notes("What happened", what_happened(run))
        + f'<div class="summary"><div>{words}</div>{figure}</div>{tiles(run)}'
        + "".join(_notes(heading, found) for heading, found in notes.items())
    )


def _notes(heading: str, notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{code(note)}</li>" for note in notes)
    return f'<div class="notes"><strong>{heading}</strong><ul>{items}</ul></div>'


def _results(runs: Sequence[Run], names: Sequence[str], embeddings: Embeddings | None) -> str:
    cards = [card for metric in FRACTIONS if (card := chart(runs, names, metric, embeddings))]
    if not cards:
        return _missing(runs[0], "results", "results.json")
    words = (
        "On the test split. The teacher is the bar to reach, the others are to beat. A whisker is the 95 % interval "
        "for the choice of test samples (Wilson), not for the seed: give the runs of several seeds for that."
    )
    return f'<p class="hint">{words}</p>{grid(cards)}'


def _gallery(run: Run, embeddings: Embeddings | None, thumbnails: Thumbnails | None) -> str:
    if embeddings is None:
        return _missing(run, "gallery", "evaluation/embeddings.npz")
    if embeddings.teacher is None:
        return "<p>No gallery: without a teacher there is nothing to retrieve from.</p>"
    if thumbnails is None or thumbnails.teacher is None:
        return _missing(run, "gallery", "evaluation/thumbnails.npz")
    a, b = f"<b>{escape(thumbnails.student_modality)}</b>", f"<b>{escape(thumbnails.teacher_modality)}</b>"
    words = (
        f"Left, a test sample as the student sees it ({a}); right, the {b} pictures nearest to it among the "
        f"{len(thumbnails.rows):,} samples that have pictures. ✓ and ✗ say whether the class is the query's; a ring "
        f"marks the sample's own pair, whose rank is among all {len(embeddings.keys):,} embeddings. The queries are "
        "spread evenly over the classes, not chosen; cos is the similarity."
    )
    return f'<p class="hint">{words}</p>{gallery(embeddings, thumbnails)}'


def _map(run: Run, embeddings: Embeddings | None, thumbnails: Thumbnails | None) -> str:
    if embeddings is None:
        return _missing(run, "map", "evaluation/embeddings.npz")
    card, made = embedding_map(embeddings, thumbnails)
    marks = "A circle is the student's embedding"
    marks += ", a cross the teacher's of the same sample" if embeddings.teacher is not None else ""
    how = "Point at a mark to see what it is and where its pair lies; pick a class to see it alone."
    words = f"{marks}; colours are classes. {made}; distances between far groups mean little."
    return (
        f'<p class="hint">{words} <span class="screen">{how}</span></p>'
        f'<div class="legend screen">{class_legend(embeddings)}</div>{card}'
    )


def _plan(run: Run, embeddings: Embeddings | None) -> str:
    if embeddings is None or embeddings.teacher is None or len(embeddings.keys) < 2:
        return ""
    return transport_plan(embeddings, run.config.get("losses"))


def _confusion(run: Run, confusion: Confusion | None) -> str:
    if confusion is None:
        return _missing(run, "confusion matrix", "evaluation/confusion.npz")
    if "student" not in confusion.roles:
        return "<p>No confusion matrix: no sample has both a class and a prediction.</p>"
    return confusion_matrix(confusion)


def _missing(run: Run, what: str, file: str) -> str:
    """Of a run that was not measured at all, the summary says so."""
    if not run.results:
        return ""
    command = escape(run.command("evaluate"))
    return f"<p>No {what}: <code>{file}</code> is missing. <code>{command}</code> writes it.</p>"
