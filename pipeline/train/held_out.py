"""What validation measures during training: the split, the monitored metric, and what the metric needs."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator

from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.data.source import OpenDataset, Source
from pipeline.evaluate.retrieval import DEPTHS
from pipeline.models.build import build_teacher
from pipeline.models.distillation import Distillation
from pipeline.models.network import Joint, Network


@dataclass(frozen=True)
class HeldOut:
    """What validation measures during training.

    Attributes:
        source: The split.
        monitor: The metric that selects `best/`: `top1`, `mIoU`, `loss`, `R@1`, `R@5` or `R@10`.
        scored: Whether the split has labels and the student has logits, so that `top1` or `mIoU` is measured.
        training: The training split, which the map between student and teacher is fitted on.
        teacher: The teacher for `loss` and `R@k`; None if there is none, or it is not needed.
        terms: Names of the losses that can be computed on held-out samples.
    """

    source: Source
    monitor: str
    scored: bool
    training: Source
    teacher: Network | Joint | None
    terms: tuple[str, ...]


def open_held_out(
    config: Config, dataset: OpenDataset, training: Source, model: Distillation, accelerator: Accelerator
) -> HeldOut | None:
    """Open the split for validation, and check that it can be measured by `evaluation.monitor`.

    Args:
        config: The config.
        dataset: The dataset.
        training: Its training split.
        model: The model, not yet prepared by Accelerate.
        accelerator: The accelerator.

    Returns:
        What validation measures; None without validation.

    Raises:
        UserError: The split or the losses do not have what the metric needs.
    """
    if not config.evaluation.every:
        return None
    source = dataset.split(config.evaluation.split)
    labelled = source.labelled()
    scored = labelled and model.student.classes is not None
    monitor: str = config.evaluation.monitor
    if monitor == "auto":
        monitor = _by_label(source) if scored or config.teacher is None else "R@10"
    terms = tuple(name for module, name in model.names.items() if not model.losses[module].needs_index)
    if monitor in ("top1", "mIoU"):
        _check_labels(monitor, source, labelled, scored)
    elif monitor == "loss":
        _check_terms(terms)
    else:
        _check_retrieval(monitor, source, config)
    teacher = None if monitor in ("top1", "mIoU") else _teacher(config, dataset, model, accelerator)
    return HeldOut(source, monitor, scored, training, teacher, terms)


def no_labels(source: Source) -> str:
    """The error message for a split without usable labels."""
    return (
        f"evaluation.every: requires labelled samples in evaluation.split, but {source.folder} has no usable ones "
        "there. Set evaluation.every to 0."
    )


def _by_label(source: Source) -> str:
    return "mIoU" if source.task.mask else "top1"


def _check_labels(monitor: str, source: Source, labelled: bool, scored: bool) -> None:
    if not labelled:
        raise UserError(no_labels(source))
    if not scored:
        raise UserError(
            "evaluation.every: validation requires class logits, but no loss trains them; set it to 0, or add "
            "cross_entropy or kd."
        )
    if monitor != (own := _by_label(source)):
        raise UserError(f"evaluation.monitor: {monitor}, but the metric of data.label `{source.task.label}` is {own}.")


def _check_terms(terms: tuple[str, ...]) -> None:
    if not terms:
        raise UserError(
            "evaluation.monitor: loss, but each loss compares with a bank of training samples, which has no held-out "
            "samples; set it to R@10."
        )


def _check_retrieval(monitor: str, source: Source, config: Config) -> None:
    if config.teacher is None:
        raise UserError(
            f"evaluation.monitor: {monitor} is the retrieval of the teacher's features, but there is no teacher; set "
            "it to loss."
        )
    depth = next(k for k in DEPTHS if monitor == f"R@{k}")
    if source.samples <= depth:
        raise UserError(
            f"evaluation.monitor: {monitor} is always 1, since the split `{config.evaluation.split}` has only "
            f"{source.samples} samples; hold out more samples, or set it to loss."
        )


def _teacher(
    config: Config, dataset: OpenDataset, model: Distillation, accelerator: Accelerator
) -> Network | Joint | None:
    """The teacher of the model, or another copy: a cache has no held-out samples, and FSDP shards the weights."""
    if isinstance(model.teacher, (Network, Joint)) and not accelerator.is_fsdp2:
        return model.teacher
    teacher = build_teacher(config, dataset)
    return teacher and teacher.requires_grad_(False).eval().to(accelerator.device)
