"""One self-contained HTML page about a run: what it is, how good, how it went, what it sees, how to make it again."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from pipeline import charts
from pipeline.errors import UserError
from pipeline.report_masks import masks_section
from pipeline.report_samples import (
    Embeddings,
    Thumbnails,
    class_legend,
    confusion_counts,
    embedding_map,
    frequent_confusions,
    gallery,
    read_embeddings,
    read_thumbnails,
)
from pipeline.report_words import (
    baselines,
    code,
    how_good,
    majority_share,
    parameters,
    run_names,
    warnings,
    what_was_trained,
)
from pipeline.runs import KEY_METRICS, Run, in_words, is_fraction, labels, read_run
from pipeline.shards import write_atomic

UNLOGGED = {"step", "epoch"}
"""What every log line has and no curve shows."""


def report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of the first run, with the others beside it in its charts and tables, and return its path.

    out: the page, by default `report.html` in the first run's folder. What a run folder lacks is said in the page.
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
    embeddings = read_embeddings(run.folder)
    thumbnails = read_thumbnails(run.folder, len(embeddings.keys)) if embeddings is not None else None
    sections = {
        "Results": _results(runs, names, embeddings),
        "Curves": _curves(runs, names),
        "Gallery": _gallery(run, embeddings, thumbnails),
        "Embedding map": _map(run, embeddings),
        "Confusion matrix": _confusion(run, embeddings),
        **masks_section(run),
        "All numbers": _numbers(runs, names),
        "Reproduce": _reproduce(run),
    }
    ids = {heading: heading.lower().replace(" ", "-") for heading in sections}
    nav = "".join(f'<a href="#{ids[heading]}">{heading}</a>' for heading in sections)
    body = _summary(runs, names, embeddings, thumbnails) + "".join(
        f'<section id="{ids[heading]}"><h2>{heading}</h2>{content}</section>' for heading, content in sections.items()
    )
    template = files("pipeline").joinpath("report_page.html").read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]
    return Template(template).substitute(
        # Only the page's own script may run, so that no text from data ever can.
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=f"{escape(run.name)} - wcord report",
        kind="Student" if run.config.get("teacher") else "Supervised network" if run.config else "Run",
        heading=escape(names[0]),
        nav=f"<nav>{nav}</nav>",
        body=body,
    )


def _summary(
    runs: Sequence[Run], names: Sequence[str], embeddings: Embeddings | None, thumbnails: Thumbnails | None
) -> str:
    run = runs[0]
    parts = [what_was_trained(run, thumbnails), how_good(run, embeddings, thumbnails), _tiles(run)]
    for heading, notes in (
        ("Look twice", warnings(run, embeddings)),
        ("What is missing", [f"{name}: {note}" for r, name in zip(runs, names, strict=True) for note in r.notes]),
    ):
        if notes:
            items = "".join(f"<li>{code(note)}</li>" for note in notes)
            parts.append(f'<div class="notes"><strong>{heading}</strong><ul>{items}</ul></div>')
    return "".join(parts)


def _tiles(run: Run) -> str:
    """The few numbers that a person looks for first."""
    results = run.results
    tiles = []
    for metric in ("student/top1", "student/mIoU", "student/probe", "retrieval/student_to_teacher/R@1"):
        if metric in results:
            beside = [f"{n} {in_words(metric, v)}" for n, v in _references(results, metric) if n != "commonest class"]
            tiles.append((KEY_METRICS[metric], in_words(metric, results[metric]), " · ".join(beside[:2])))
    if size := results.get("parameters/student"):
        teacher = results.get("parameters/teacher")
        times = f"teacher {parameters(teacher)}, {teacher / size:.2g} times as many" if teacher else ""
        tiles.append(("parameters", parameters(size), times))
    body = "".join(
        f'<div class="card tile"><span>{escape(name)}</span><b>{value}</b><span>{escape(beside)}</span></div>'
        for name, value, beside in tiles
    )
    return f'<div class="tiles">{body}</div>' if tiles else ""


def _references(results: dict[str, float], metric: str) -> list[tuple[str, float]]:
    """What a metric is held against: teacher, each baseline, the student with random weights."""
    own = metric.removeprefix("student/")
    found = [("teacher", results.get(f"teacher/{own}"))] if metric.startswith("student/") else []
    found += [(name, value) for name, value in baselines(results, metric).items()]
    found += [("untrained", results.get(f"random/{own}"))]
    return [(name, value) for name, value in found if value is not None]


def _results(runs: Sequence[Run], names: Sequence[str], embeddings: Embeddings | None) -> str:
    main = runs[0].results
    cards = []
    for metric in (m for m in KEY_METRICS if is_fraction(m)):
        rows = [
            charts.Bar(name, run.results[metric], in_words(metric, run.results[metric]), "other" if i else "main")
            for i, (run, name) in enumerate(zip(runs, names, strict=True))
            if metric in run.results
        ]
        if not rows:
            continue
        # A baseline that is also one of the runs stands there already.
        references = [(n, v) for n, v in _references(main, metric) if n not in [row.label for row in rows]]
        if metric == "student/top1" and (share := majority_share(embeddings)) is not None:
            references.append(("always the commonest class", share))
        rows += [charts.Bar(n, v, in_words(metric, v), "teacher" if n == "teacher" else "") for n, v in references]
        title = KEY_METRICS[metric]
        cards.append(f'<div class="card"><h4>{title}</h4>{charts.bars(rows, 1, title)}</div>')
    if not cards:
        return _missing(runs[0], "results", "results.json")
    return (
        f'<p class="hint">On the test split. The teacher is the bar to reach, the others are to beat.</p>{_grid(cards)}'
    )


def _curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    keys = sorted({key for run in runs for row in run.log.values() for key in row} - UNLOGGED)
    groups: dict[str, list[str]] = {"Losses": [], "Validation": [], "Diagnostics": [], "Optimisation": []}
    for key in keys:
        head = key.split("/")[0]
        group = {"loss": "Losses", "val": "Validation"}.get(head, "Diagnostics" if "/" in key else "Optimisation")
        groups[group].append(key)
    if not keys:
        return "<p>No curves: <code>metrics.jsonl</code> is missing or empty. <code>wcord train</code> writes it.</p>"
    parts = [_legend(names)] if len(runs) > 1 else []
    for heading, members in groups.items():
        cards = []
        for key in members:
            chart = charts.lines([run.series(key) for run in runs], key)
            last = runs[0].last(key)
            value = "" if last is None else f"<span>last {last:.4g}</span>"
            name = escape(key).replace("/", "/<wbr>")
            body = chart or '<p class="hint">No finite value was logged.</p>'
            cards.append(f'<div class="card"><h4><code>{name}</code>{value}</h4>{body}</div>')
        if cards:
            parts.append(f"<h3>{heading}</h3>{_grid(cards)}")
    return '<p class="hint">Over optimiser steps.</p>' + "".join(parts)


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


def _map(run: Run, embeddings: Embeddings | None) -> str:
    if embeddings is None:
        return _missing(run, "map", "evaluation/embeddings.npz")
    svg, made = embedding_map(embeddings)
    marks = "A circle is the student's embedding"
    marks += ", a cross the teacher's of the same sample" if embeddings.teacher is not None else ""
    how = "Point at a mark to see what it is and where its pair lies; pick a class to see it alone."
    words = f"{marks}; colours are classes. {made}; distances between far groups mean little."
    return (
        f'<p class="hint">{words} <span class="screen">{how}</span></p>'
        f'<div class="legend screen">{class_legend(embeddings)}</div>'
        f'<div class="card">{svg}<output></output></div>'
    )


def _confusion(run: Run, embeddings: Embeddings | None) -> str:
    if embeddings is None:
        return _missing(run, "confusion matrix", "evaluation/embeddings.npz")
    if (counts := confusion_counts(embeddings)) is None:
        return "<p>No confusion matrix: no sample has both a class and a prediction.</p>"
    svg = charts.matrix(counts, embeddings.classes, "Confusion matrix")
    table = frequent_confusions(counts, embeddings.classes)
    words = f"{counts.sum():,} test samples; a row is a true class, a column what the student took it for."
    mistakes = f'<div class="card"><h4>Commonest mistakes</h4>{table}</div>' if table else "<p>No mistakes.</p>"
    return f'<p class="hint">{words}</p><div class="columns"><div class="card scroll">{svg}</div>{mistakes}</div>'


def _numbers(runs: Sequence[Run], names: Sequence[str]) -> str:
    keys = sorted({key for run in runs for key in run.results})
    if not keys:
        return _missing(runs[0], "numbers", "results.json")
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    rows = []
    for key in keys:
        cells = [
            f'<data value="{v!r}">{v:.6g}</data>' if (v := run.results.get(key)) is not None else "-" for run in runs
        ]
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        rows.append(f"<tr><td><code>{escape(key)}</code></td>{numbers}</tr>")
    table = f"<table><thead><tr><th>name</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<p class="hint">As in <code>results.json</code>.</p><div class="scroll">{table}</div>'


def _reproduce(run: Run) -> str:
    if not run.config:
        return "<p>The run cannot be repeated: <code>config.yaml</code> is missing.</p>"
    config, again = run.folder / "config.yaml", f"{run.folder}_again"
    lines = (
        ["wcord", "train", str(config), f"run={again}"],
        ["wcord", "evaluate", again],
        ["wcord", "report", again],
    )
    commands = "\n".join(shlex.join(line) for line in lines)
    teacher = run.config.get("teacher")
    needs = "the same packed data"
    if isinstance(teacher, dict) and teacher.get("run"):
        needs += f" and the teacher run <code>{escape(run_names(teacher['run']))}</code>"
    text = config.read_text(encoding="utf-8", errors="replace")
    return (
        f"<p>The same again, given {needs}:</p><pre><code>{escape(commands)}</code></pre>"
        f"<h3>config.yaml</h3><pre><code>{escape(text)}</code></pre>"
    )


def _missing(run: Run, what: str, file: str) -> str:
    command = escape(run.command("evaluate"))
    return f"<p>No {what}: <code>{file}</code> is missing. <code>{command}</code> writes it.</p>"


def _grid(cards: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(cards)}</div>'


def _legend(names: Sequence[str]) -> str:
    items = "".join(f'<span><i class="s{i}"></i><b>{escape(name)}</b></span>' for i, name in enumerate(names))
    return f'<div class="legend">{items}</div>'
