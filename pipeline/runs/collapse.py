"""Derives warnings about a collapsed student or an idle loss from the metrics of a step, with a suggested fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from losses import get as get_loss
from losses.base import Loss
from pipeline.config.document import show_key

LEAST_GAP, LEAST_STD, LEAST_RANK = 0.05, 0.1, 3.0
LEAST_SHARE = 0.3
"""Minimum effective rank, as a fraction of the teacher's.

A dual without log keeps about a quarter; losses that separate all pairs keep half or more
(`tests/runs/test_collapse.py`). `rgb_to_depth` drops to 0.4 while its features form.
"""
LARGEST_MARGINAL_ERROR = 0.15
LEAST_TEACHER_STD, LEAST_TEACHER_RANK, LEAST_NEGATIVES, ENOUGH_LABELS = 1e-3, 1.2, 1.0, 20
ONE_CLASS, TWO_CLASSES = 1.001, 2.5
"""Effective numbers of classes. With two classes, a teacher needs only one direction."""
CONSTANT, OF_LABELS = 3.0, 0.15
"""Predictions count as constant below this many classes and this fraction of the labels' classes beyond one."""

PREDICTED, LABELLED, LABELS = "student/predicted_classes", "student/labelled_classes", "student/labels"
"""Effective number of classes, `exp(entropy)`, of the predictions of a batch and of all labels so far; label count."""

Losses = Mapping[str, Mapping[str, Any] | None]
"""The losses of a config: name -> settings."""


COLLAPSES = ("gap", "std", "rank", "predictions")
IDLE = ("teacher", "negatives", "labels")


@dataclass(frozen=True)
class Sign:
    """A symptom of collapse or of an idle component.

    Attributes:
        loss: The loss concerned; None for the features and predictions of the student.
        kind: One of COLLAPSES, which lowering the driving weight would help against; one of IDLE, where a component has
            no effect; or `share` or `marginals`.
        text: The observation, as a sentence without the full stop.
        cure: The fix, as a sentence, if it does not depend on the settings of the loss.
    """

    loss: str | None
    kind: str
    text: str
    cure: str = ""

    @property
    def collapse(self) -> bool:
        """Whether lowering the driving weight would help."""
        return self.kind in COLLAPSES

    @property
    def idle(self) -> bool:
        """Whether a component has no effect, regardless of the student."""
        return self.kind in IDLE


def collapse_warnings(metrics: Mapping[str, float], losses: Losses | None = None) -> list[str]:
    """Make a warning with a suggested fix for each symptom. Symptoms are only meaningful after warm-up.

    Args:
        metrics: Metrics of one line of metrics.jsonl.
        losses: The losses of the config. Suggestions only refer to their settings.

    Returns:
        One or more sentences per symptom.
    """
    known = losses or {}
    return [f"{sign.text}. {sign.cure or cure(sign.loss, known)}" for sign in signs(metrics, known)]


def signs(metrics: Mapping[str, float], losses: Losses) -> list[Sign]:
    """The symptoms in the metrics, those of the student first."""
    return [
        *_of_student(metrics),
        *_of_data(metrics),
        *(sign for key in metrics for sign in _of_loss(key, metrics, losses)),
    ]


def cure(loss: str | None, losses: Losses, driver: tuple[str, str] | None = None) -> str:
    """Suggest a change of settings, as a sentence with full config keys.

    Args:
        loss: The loss concerned; None means all losses that need a teacher.
        losses: The losses of the config.
        driver: Loss and keyword of the part with the largest gradient on the features, if it was measured.
    """
    name = driver[0] if driver else loss
    names = [name] if name is not None else [one for one in losses if _class(one).needs_teacher]
    for one in names:
        suspects = _class(one).suspects(losses.get(one) or {})
        key = driver[1] if driver and driver[1] in suspects else next(iter(suspects), None)
        if key is not None:
            return f"Set {setting((one, key), losses)} to {suspects[key]}."
    lower = [setting(driver, losses)] if driver else [setting((one, "weight"), losses) for one in names]
    return f"Lower {' or '.join([*lower, '`train.learning_rate`'])}."


def setting(part: tuple[str, str], losses: Losses) -> str:
    """The full config key, in backticks, of the weight of a loss or of a part of it."""
    loss, key = part
    own = key if key in (losses.get(loss) or {}) else "weight"
    return f"`{show_key(('losses', loss, own))}`"


def _of_student(metrics: Mapping[str, float]) -> Iterator[Sign]:
    predicted, labelled = metrics.get(PREDICTED), metrics.get(LABELLED, 0.0)
    # A small sample of labels contains fewer classes by chance, so the bound depends on the labels so far.
    if predicted is not None and predicted < min(CONSTANT, 1 + OF_LABELS * (labelled - 1)):
        yield Sign(
            None,
            "predictions",
            f"student: nearly all predictions are one class (effectively {predicted:.2f} classes; the labels have "
            f"{labelled:.1f})",
        )
    if (std := metrics.get("student/std", 1.0)) < LEAST_STD:
        yield Sign(None, "std", f"student: the features of all samples are nearly identical (relative std {std:.3f})")
    # K classes need no more than K - 1 directions.
    least = min(LEAST_RANK, 0.6 * (labelled - 1)) if labelled else LEAST_RANK
    if (rank := metrics.get("student/effective_rank", least)) < least:
        yield Sign(None, "rank", f"student: the features have a low effective rank ({rank:.1f})")


def _of_data(metrics: Mapping[str, float]) -> Iterator[Sign]:
    """Teachers and labels without any signal."""
    labelled = metrics.get(LABELLED, 0.0)
    if metrics.get("teacher/std", 1.0) < LEAST_TEACHER_STD:
        yield Sign(
            None,
            "teacher",
            "teacher: its features are the same for all samples of a batch, so no loss can learn from them",
            "Check that its modality reads the right field, and that its weights are trained.",
        )
    elif metrics.get("teacher/effective_rank", 2.0) < LEAST_TEACHER_RANK and not 1 < labelled < TWO_CLASSES:
        yield Sign(
            None,
            "teacher",
            "teacher: its features lie on one line (effective rank 1), so losses can learn only one number per sample",
            "Use a teacher that was trained on more classes, or only losses that read logits.",
        )
    if 0 < labelled < ONE_CLASS and metrics.get(LABELS, 0.0) >= ENOUGH_LABELS:
        yield Sign(
            None,
            "labels",
            "labels: all labels so far belong to one class, so losses that read labels learn nothing",
            "Check `data.label`; if the shards are sorted by class, raise `data.shuffle`.",
        )


def _of_loss(key: str, metrics: Mapping[str, float], losses: Losses) -> Iterator[Sign]:
    part, _, name = key.rpartition("/")
    if part in ("student", "teacher", ""):
        return
    loss = next((one for one in losses if f"{part}/".startswith(f"{one}/")), part.split("/")[0])
    value, of_teacher = metrics[key], metrics.get("teacher/effective_rank", 0.0)
    if name == "similarity_gap" and value < LEAST_GAP:
        yield Sign(
            loss,
            "gap",
            f"{part}: positive and negative similarities are indistinguishable (similarity gap {value:.3f})",
        )
    if name == "projected_std" and value < LEAST_STD:
        yield Sign(loss, "std", f"{part}: the features of all samples are nearly identical (relative std {value:.3f})")
    if name == "effective_rank" and value < min(LEAST_RANK, of_teacher / 2 or LEAST_RANK):
        yield Sign(loss, "rank", f"{part}: the features have a low effective rank ({value:.1f})")
    elif name == "effective_rank" and value < LEAST_SHARE * of_teacher:
        text = f"{part}: the projection has a much lower effective rank than the teacher "
        yield Sign(loss, "share", f"{text}({value:.1f}, teacher {of_teacher:.1f})")
    if name == "negatives" and value < LEAST_NEGATIVES:
        yield Sign(
            loss,
            "negatives",
            f"{part}: samples have almost no negatives ({value:.1f} on average), so the loss has nothing to contrast",
            _more_negatives(loss, losses),
        )
    if name == "marginal_error" and value > LARGEST_MARGINAL_ERROR:
        raised = " or ".join(_own(loss, losses, "iterations", "epsilon"))
        yield Sign(
            loss,
            "marginals",
            f"{part}: the transport plan does not satisfy its marginals (error {value:.2f} of 2): too few iterations "
            "for this epsilon",
            f"Raise {raised}." if raised else "",
        )


def _more_negatives(loss: str, losses: Losses) -> str:
    excluded = _own(loss, losses, "exclude")
    cures = [f"remove the label or group that all samples share from {excluded[0]}"] if excluded else []
    cures += [f"raise {one}" for one in (*_own(loss, losses, "queue"), "`data.batch_size`")]
    text = ", or ".join(cures)
    return f"{text[0].upper()}{text[1:]}."


def _own(loss: str, losses: Losses, *keys: str) -> list[str]:
    """Full config keys of those settings that the loss has; all of them if its settings are unknown."""
    settings = losses.get(loss)
    return [f"`{show_key(('losses', loss, key))}`" for key in keys if settings is None or key in settings]


def _class(name: str) -> type[Loss]:
    """The class of a loss; the base class if it cannot be imported, e.g. in a report on another user's run."""
    try:
        return get_loss(name)
    except Exception:  # importing a third-party class runs its module, which may raise anything
        return Loss
