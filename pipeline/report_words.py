"""What a report says in sentences: what was trained, how good it is, and what to look at twice. Everything is HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from pipeline.collapse import collapse_warnings
from pipeline.report_samples import Embeddings, Thumbnails, spread
from pipeline.runs import Run, in_words


def code(text: str) -> str:
    """Plain text as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def baselines(results: Mapping[str, float], metric: str) -> dict[str, float]:
    """The metric of each run that was given as a baseline, best first."""
    head, tail = "baseline/", f"/{metric}"
    found = {k[len(head) : -len(tail)]: v for k, v in results.items() if k.startswith(head) and k.endswith(tail)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def majority_share(embeddings: Embeddings | None) -> float | None:
    """The accuracy of always naming the commonest class of the test samples."""
    if embeddings is None or not (known := embeddings.label[embeddings.label >= 0]).size:
        return None
    return float(np.bincount(known).max() / known.size)


def what_was_trained(run: Run, thumbnails: Thumbnails | None) -> str:
    """One paragraph: networks, losses, data, length."""
    config = run.config
    if not config:
        return "<p>What was trained is not known, because <code>config.yaml</code> is missing.</p>"
    losses = [
        f"<code>{escape(str(name))}</code> × {escape(str(_mapping(term).get('weight', 1)))}"
        for name, term in _mapping(config.get("losses")).items()
    ]
    words = f"A {_network(config.get('student'), run.results.get('parameters/student'))}"
    if teacher := config.get("teacher"):
        seen = thumbnails.teacher_modality if thumbnails and thumbnails.teacher is not None else ""
        size = run.results.get("parameters/teacher")
        words += f" learnt from a frozen teacher, the {_network(teacher, size, seen)}"
    else:
        words += " was trained without a teacher"
    words += f", by {_listed(losses)}." if losses else "."
    return f"<p>{words} {_circumstances(run)}</p>"


def how_good(run: Run, embeddings: Embeddings | None, thumbnails: Thumbnails | None) -> str:
    """Paragraphs: accuracy, frozen features, retrieval; each against teacher, untrained network and baselines."""
    results = run.results
    names = ("student", "teacher")
    if thumbnails is not None and thumbnails.student_modality != thumbnails.teacher_modality:
        names = (thumbnails.student_modality, thumbnails.teacher_modality)
    sentences = [_accuracy(results, embeddings), _probe(results), *_retrieval(results, *map(escape, names))]
    return "".join(f"<p>{words}</p>" for words in sentences if words)


def warnings(run: Run, embeddings: Embeddings | None) -> list[str]:
    """Signs that something went wrong, a sentence of plain text each; empty if there are none."""
    found = [
        f"{key} is not finite at {bad} of the logged steps."
        for key in sorted({key for row in run.log.values() for key in row})
        if (bad := sum(not math.isfinite(value) for value in run.series(key)[1]))
    ]
    warmup = _mapping(run.config.get("train")).get("warmup", 0)
    if run.log and max(run.log) > (warmup if isinstance(warmup, int) else 0):
        keys = {key for row in run.log.values() for key in row}
        found += collapse_warnings({key: value for key in sorted(keys) if (value := run.last(key)) is not None})
    if embeddings is not None and embeddings.broken:
        found.append(f"{embeddings.broken} embeddings are not finite; they are shown as zeros.")
    if embeddings is not None and (wide := spread(embeddings.student)) < 0.05:
        found.append(
            f"The student's test embeddings are nearly all the same (spread {wide:.3f} of 1): it has collapsed."
        )
    results, share = run.results, majority_share(embeddings)
    top1 = results.get("student/top1")
    if top1 is not None and share is not None and top1 <= share:
        found.append(f"Always naming the commonest class would be as good ({in_words('student/top1', share)}).")
    for metric in ("student/probe", "student/knn", "retrieval/student_to_teacher/R@1"):
        other = f"random/{metric.removeprefix('student/')}"
        if metric in results and other in results and results[metric] <= results[other]:
            found.append(f"{metric} is no better than that of an untrained network.")
    steps, values = run.series("held_out/top1")
    if values and max(values) - values[-1] > 0.02:
        best = steps[values.index(max(values))]
        found.append(
            f"Top-1 on held-out samples was best at step {best:,} ({in_words('top1', max(values))}) and ended at "
            f"{in_words('top1', values[-1])}: it may be overfitting."
        )
    return found


def parameters(count: float) -> str:
    """`213450` as `0.21 M`."""
    return f"{count / 1e6:.2f} M" if count >= 1e4 else f"{count:,.0f}"


def _circumstances(run: Run) -> str:
    data = _mapping(run.config.get("data"))
    parts = []
    if run.log:
        epoch = run.last("epoch")
        parts.append(f"{max(run.log):,} steps" + (f" ({epoch:.3g} epochs)" if epoch is not None else ""))
    if shards := data.get("shards"):
        parts.append(f"on <code>{escape(str(shards))}</code>")
    if isinstance(share := data.get("labels"), float) and share < 1:
        parts.append(f"labels seen for {100 * share:.3g} % of the samples")
    if run.seed is not None:
        parts.append(f"seed {run.seed}")
    text = ", ".join(parts)
    return f"It ran {text}." if run.log else f"The log is missing; {text}." if text else ""


def _accuracy(results: Mapping[str, float], embeddings: Embeddings | None) -> str:
    metric = "student/top1"
    if (top1 := results.get(metric)) is None:
        return ""
    n = results.get("samples/test")
    words = f"It names the right class for <b>{in_words(metric, top1)}</b> of "
    words += f"{n:,.0f} test samples" if n else "the test samples"
    if n:
        words += f" (± {196 * math.sqrt(top1 * (1 - top1) / n):.1f} points at 95 % for the choice of samples)"
    others = []
    if (teacher := results.get("teacher/top1")) is not None:
        others.append(f"its teacher {in_words(metric, teacher)}")
    others += [
        f"{escape(name)} {in_words(metric, value)}" for name, value in list(baselines(results, metric).items())[:4]
    ]
    if (share := majority_share(embeddings)) is not None:
        others.append(f"always naming the commonest class {in_words(metric, share)}")
    words += f"; {_listed(others)}." if others else "."
    best = next(iter(baselines(results, metric).values()), None)
    if best is not None and teacher is not None and best < top1 < teacher:
        closed = (top1 - best) / (teacher - best)
        words += f" That closes {100 * closed:.0f} % of the gap between the best baseline and the teacher."
    return words


def _probe(results: Mapping[str, float]) -> str:
    if (probe := results.get("student/probe")) is None:
        return ""
    words = f"A linear probe on its frozen features reaches <b>{in_words('probe', probe)}</b>"
    pairs = {"the teacher's": results.get("teacher/probe"), "an untrained network's": results.get("random/probe")}
    others = [f"{name} {in_words('probe', value)}" for name, value in pairs.items() if value is not None]
    return words + (f"; {_listed(others)}." if others else ".")


def _retrieval(results: Mapping[str, float], student: str, teacher: str) -> list[str]:
    sentences = []
    for way, a, b in (("student_to_teacher", student, teacher), ("teacher_to_student", teacher, student)):
        metric = f"retrieval/{way}/"
        if (first := results.get(f"{metric}R@1")) is None:
            continue
        words = (
            f"Shown the {a} side of a sample, it finds the {b} side first in <b>{in_words('R@1', first)}</b> of cases"
        )
        if (ten := results.get(f"{metric}R@10")) is not None:
            words += f" and among the first ten in {in_words('R@10', ten)}"
        if (untrained := results.get(f"random/{metric}R@1")) is not None:
            words += f" (untrained: first in {in_words('R@1', untrained)})"
        sentences.append(words + ".")
    return sentences


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
    """A teacher's run, or its runs."""
    return _listed([str(one) for one in run]) if isinstance(run, list) else str(run)


def _named(component: Any) -> str:
    """The name of a config's component, which is a name or a mapping with one."""
    if isinstance(component, list):
        return " + ".join(_named(part) for part in component)
    name = component.get("name") if isinstance(component, dict) else component
    return escape(str(name)) if name else "unnamed"


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
