"""The text of the report, as HTML: what was trained, how well it performs, and warnings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from pipeline.evaluate.probes import never_predicted
from pipeline.runs.artifacts import Confusion, Embeddings, Thumbnails, spread
from pipeline.runs.collapse import collapse_warnings
from pipeline.runs.reader import Run, format_metric, is_fraction, lower_is_better, random_order


def code(text: str) -> str:
    """Escape plain text as HTML, and convert backticks to code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def baselines(results: Mapping[str, float], metric: str) -> dict[str, float]:
    """A metric of each baseline, best first."""
    head, tail = "baseline/", f"/{metric}"
    found = {k[len(head) : -len(tail)]: v for k, v in results.items() if k.startswith(head) and k.endswith(tail)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def majority_share(embeddings: Embeddings | None) -> float | None:
    """Accuracy of always predicting the most frequent class of the test samples; None without labels."""
    if embeddings is None or not (known := embeddings.label[embeddings.label >= 0]).size:
        return None
    return float(np.bincount(known).max() / known.size)


def what_was_trained(run: Run, thumbnails: Thumbnails | None) -> str:
    """One paragraph on networks, losses, data and length of training."""
    config = run.config
    if not config:
        return "<p>The settings of the run are unknown, because <code>config.yaml</code> is missing.</p>"
    losses = [
        f"<code>{escape(str(name))}</code> × {escape(str(_mapping(term).get('weight', 1)))}"
        for name, term in _mapping(config.get("losses")).items()
    ]
    words = f"A {_network(config.get('student'), run.results.get('parameters/student'))}"
    if teacher := config.get("teacher"):
        seen = thumbnails.teacher_modality if thumbnails and thumbnails.teacher is not None else ""
        size = run.results.get("parameters/teacher")
        words += f" was trained from a frozen teacher, the {_network(teacher, size, seen)}"
    else:
        words += " was trained without a teacher"
    words += f", with {_listed(losses)}." if losses else "."
    return f"<p>{words} {_circumstances(run)}</p>"


def how_good(run: Run, embeddings: Embeddings | None, thumbnails: Thumbnails | None) -> str:
    """Paragraphs on accuracy, frozen features and retrieval, compared with teacher, untrained network and baselines."""
    results = run.results
    names = ("student", "teacher")
    if thumbnails is not None and thumbnails.student_modality != thumbnails.teacher_modality:
        names = (thumbnails.student_modality, thumbnails.teacher_modality)
    sentences = [_accuracy(run, embeddings), _probe(results), *_retrieval(results, *map(escape, names))]
    return "".join(f"<p>{words}</p>" for words in sentences if words)


def warnings(run: Run, embeddings: Embeddings | None, confusion: Confusion | None = None) -> list[str]:
    """Warnings about the run, a sentence of plain text each."""
    found = [
        f"{key} is not finite at {bad} of the logged steps."
        for key in sorted({key for row in run.log.values() for key in row})
        if (bad := sum(not math.isfinite(value) for value in run.series(key)[1]))
    ]
    warmup = _mapping(run.config.get("train")).get("warmup", 0)
    if run.log and max(run.log) > (warmup if isinstance(warmup, int) else 0):
        keys = {key for row in run.log.values() for key in row}
        found += collapse_warnings(
            {key: value for key in sorted(keys) if (value := run.last(key)) is not None},
            _mapping(run.config.get("losses")),
        )
    if embeddings is not None and embeddings.broken:
        found.append(f"{embeddings.broken} embeddings are not finite and are shown as zeros.")
    if embeddings is not None and (wide := spread(embeddings.student)) < 0.05:
        found.append(
            f"The test embeddings of the student are nearly identical (spread {wide:.3f} of 1): the student has "
            "collapsed."
        )
    results, share = run.results, majority_share(embeddings)
    top1 = results.get("student/top1")
    if top1 is not None and share is not None and top1 <= share:
        found.append(
            f"Always predicting the most frequent class would be at least as good "
            f"({format_metric('student/top1', share)})."
        )
    if confusion is not None and "student" in confusion.roles:
        counts = confusion.roles["student"]
        found += filter(None, [never_predicted(counts, confusion.classes)])
    for metric in ("student/probe", "student/knn", "retrieval/student_to_teacher/R@1"):
        other = f"random/{metric.removeprefix('student/')}"
        if metric in results and other in results and results[metric] <= results[other]:
            found.append(f"{metric} is not better than that of an untrained network.")
    return found + _past_its_best(run)


def _past_its_best(run: Run) -> list[str]:
    found = []
    for metric, name in {"top1": "Top-1", "mIoU": "mIoU", "R@10": "R@10", "loss": "The loss"}.items():
        steps, values = run.series(f"held_out/{metric}")
        if not values:
            continue
        best = min(values) if lower_is_better(metric) else max(values)
        if abs(best - values[-1]) > (0.02 if is_fraction(metric) else 0.1 * abs(best)):
            found.append(
                f"{name} on held-out samples was best at step {steps[values.index(best)]:,} "
                f"({format_metric(metric, best)}) and ended at {format_metric(metric, values[-1])}: "
                "it may be overfitting."
            )
    return found


def parameters(count: float) -> str:
    """Format a number of parameters: `213450` as `0.21 M`."""
    return f"{count / 1e6:.2f} M" if count >= 1e4 else f"{count:,.0f}"


def _circumstances(run: Run) -> str:
    data = _mapping(run.config.get("data"))
    parts = []
    if run.log:
        epoch = run.last("epoch")
        parts.append(f"{max(run.log):,} steps" + (f" ({epoch:.3g} epochs)" if epoch is not None else ""))
    if shards := data.get("shards"):
        given = shards if isinstance(shards, list) else [shards]
        paths = [str(one["path"]) if isinstance(one, dict) and "path" in one else str(one) for one in given]
        parts.append("on " + " and ".join(f"<code>{escape(path)}</code>" for path in paths))
    if isinstance(share := data.get("label_fraction"), float) and share < 1:
        parts.append(f"labels for {100 * share:.3g} % of the samples")
    if run.seed is not None:
        parts.append(f"seed {run.seed}")
    text = ", ".join(parts)
    return f"It ran {text}." if run.log else f"The log is missing; {text}." if text else ""


def _accuracy(run: Run, embeddings: Embeddings | None) -> str:
    metric = "student/top1"
    results, split = run.results, escape(run.split)
    if (top1 := results.get(metric)) is None:
        return ""
    n = results.get("samples/test")
    words = f"It classifies <b>{format_metric(metric, top1)}</b> of "
    words += f"{n:,.0f} {split} samples correctly" if n else f"the {split} samples correctly"
    if n:
        words += (
            f" (± {196 * math.sqrt(top1 * (1 - top1) / n):.1f} points, 95 % confidence interval over these samples)"
        )
    others = []
    if (teacher := results.get("teacher/top1")) is not None:
        others.append(f"teacher {format_metric(metric, teacher)}")
    others += [
        f"{escape(name)} {format_metric(metric, value)}" for name, value in list(baselines(results, metric).items())[:4]
    ]
    if (share := majority_share(embeddings)) is not None:
        others.append(f"always predicting the most frequent class {format_metric(metric, share)}")
    words += f"; {_listed(others)}." if others else "."
    best = next(iter(baselines(results, metric).values()), None)
    if best is not None and teacher is not None and best < top1 < teacher:
        closed = (top1 - best) / (teacher - best)
        words += f" This closes {100 * closed:.0f} % of the gap between the best baseline and the teacher."
    return words


def _probe(results: Mapping[str, float]) -> str:
    if (probe := results.get("student/probe")) is None:
        return ""
    words = f"A linear probe on its frozen features reaches <b>{format_metric('probe', probe)}</b>"
    pairs = {"teacher": results.get("teacher/probe"), "untrained network": results.get("random/probe")}
    others = [f"{name} {format_metric('probe', value)}" for name, value in pairs.items() if value is not None]
    return words + (f"; {_listed(others)}." if others else ".")


def _retrieval(results: Mapping[str, float], student: str, teacher: str) -> list[str]:
    sentences = []
    for way, a, b in (("student_to_teacher", student, teacher), ("teacher_to_student", teacher, student)):
        metric = f"retrieval/{way}/"
        if (first := results.get(f"{metric}R@1")) is None:
            continue
        share = f"<b>{format_metric('R@1', first)}</b>"
        words = f"For a {a} query, the matching {b} sample is ranked first in {share} of cases"
        if (ten := results.get(f"{metric}R@10")) is not None:
            words += f" and in the top ten in {format_metric('R@10', ten)}"
        beside = []
        if (untrained := results.get(f"random/{metric}R@1")) is not None:
            beside.append(f"untrained network: first in {format_metric('R@1', untrained)}")
        if (chance := results.get(random_order(f"{metric}R@1"))) is not None:
            beside.append(f"chance: {format_metric('R@1', chance)}")
        words += f" ({'; '.join(beside)})" if beside else ""
        sentences.append(words + "." + _median_rank(results, f"{metric}median_rank"))
    return sentences


def _median_rank(results: Mapping[str, float], metric: str) -> str:
    if (median := results.get(metric)) is None or (chance := results.get(random_order(metric))) is None:
        return ""
    low, high = results.get(f"{metric}_low", median), results.get(f"{metric}_high", median)
    shown = [format_metric(metric, value) for value in (median, low, high, chance)]
    return f" The median rank is <b>{shown[0]}</b> (95 % interval {shown[1]} to {shown[2]}; chance {shown[3]})."


def _network(side: Any, count: float | None, modality: str = "") -> str:
    spec = _mapping(side)
    size = "" if count is None else f"{parameters(count)} parameters"
    if spec.get("run"):
        return f"<b>{escape(modality)}</b> network of <code>{escape(run_names(spec['run']))}</code>" + (
            size and f" ({size})"
        )
    inside = ", ".join(filter(None, [_named(spec.get("encoder")), size]))
    return f"<b>{_named(spec.get('modality'))}</b> network ({inside})"


def run_names(run: Any) -> str:
    """The run of a teacher, or its runs, as text."""
    return _listed([str(one) for one in run]) if isinstance(run, list) else str(run)


def _named(component: Any) -> str:
    """The name of a component of a config, which is a name or a mapping with one."""
    if isinstance(component, list):
        return " + ".join(_named(part) for part in component)
    name = component.get("name") if isinstance(component, dict) else component
    return escape(str(name)) if name else "unnamed"


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
