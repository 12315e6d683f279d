"""`wcord.distill`: the training loop for plain modules and a plain data loader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from pydantic import ValidationError
from torch import nn

from losses import get as get_loss
from losses.base import Loss
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.config.components import TERM, check_keywords
from pipeline.config.settings import IN_PYTHON, Config
from pipeline.data.views import Batch
from pipeline.evaluate.user_metrics import Metric, user_scores
from pipeline.models.distillation import Distillation
from pipeline.models.network import digest
from pipeline.models.plain import PlainNetwork
from pipeline.train.callbacks import Callback
from pipeline.train.callbacks.events import Callbacks
from pipeline.train.loop import assemble, run_training
from pipeline.train.plain_data import PlainData, as_batch
from pipeline.train.schedule import Schedule
from pipeline.train.state import Training

LossSpec = str | Mapping[str, Any] | Loss


def distill(
    teacher: nn.Module | None,
    student: nn.Module,
    data: Iterable[Any] | Callable[[int], Iterable[Any]],
    losses: Sequence[LossSpec],
    *,
    run: str | Path,
    callbacks: Sequence[Callback] = (),
    validation: Iterable[Any] = (),
    metrics: Mapping[str, Metric] = {},
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    **train: Any,
) -> Path:
    """Distil one module into another with any data loader, using the loop, checkpoints and logs of `wcord.train`.

    A module returns `losses.Features`, or a tensor `[B, D]`, which is used as `pooled`, and also as the logits if a
    loss reads logits.

    Args:
        teacher: The teacher, which stays frozen; None for supervised training.
        student: The student, which is trained in place.
        data: The training batches: a loader, which is iterated again for each epoch, or a function that takes the
            number of batches to skip and returns an endless iterator, such as `lambda start: wcord.stream(...,
            start=start)`. A batch is a dict with `student` and `teacher`, `(input, label)`, `(teacher input, student
            input)` or `(teacher input, student input, label)`. With several processes, it is the global batch.
        losses: Names, dicts of `name`, `weight` and keywords, or instances of `wcord.losses.Loss`.
        run: The run folder. The student is written to `student/model.safetensors`, with its own weight names.
        callbacks: Called during training.
        validation: Batches for `metrics`, evaluated after training.
        metrics: Name -> `metric(label, prediction)`, class indices as NumPy arrays. Written to `results.json`.
        seed: Random seed.
        resume: Resume from the newest checkpoint, if there is one.
        overwrite: Delete an earlier run in the same folder.
        train: Settings of the section `train`, e.g. `steps` or `epochs`, `learning_rate`.

    Returns:
        The run folder.

    Raises:
        UserError: The user can fix the problem.
    """
    source = PlainData(data, seed)
    example = source.first()
    named, settings = _named(losses)
    config = _config(run, seed, len(example["key"]), student, settings, train)
    if source.steps is None and (config.train.epochs or isinstance(config.train.checkpoint_every, str)):
        raise UserError("the data has no length: set steps instead of epochs, also for checkpoint_every.")

    def set_up(accelerator: Accelerator, own: Callbacks) -> tuple[Training, str]:
        model = _model(teacher, student, example, named, config)
        identity = _identity(teacher, student, settings, config)
        schedule = Schedule(config.train, source.steps or config.train.steps or 1, config.losses)
        training = assemble(config, accelerator, own, source, None, schedule, model, identity)
        return training, f"data passed in Python: {source.samples} training samples"

    finish = partial(_write_results, batches=validation, metrics=metrics)
    return run_training(config, set_up, callbacks, resume, overwrite, finish=finish)


def _named(losses: Sequence[LossSpec]) -> tuple[dict[str, Loss | type[Loss]], dict[str, dict[str, Any]]]:
    """Name -> loss, and name -> weight and keywords."""
    named: dict[str, Loss | type[Loss]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for spec in losses:
        if isinstance(spec, Loss):
            name = type(spec).__name__
            own: dict[str, Any] = {"weight": 1.0}
            found: Loss | type[Loss] = spec
        else:
            own = {"weight": 1.0} | ({} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "name"})
            name = spec if isinstance(spec, str) else str(spec.get("name"))
            try:
                found = get_loss(name)
            except ValueError as error:
                raise UserError(f"losses: {error}") from None
            check_keywords(found, {k: v for k, v in own.items() if k not in TERM}, f"losses.{name}", keyword_only=True)
        if name in named:
            raise UserError(f"losses: {name} is passed twice; remove one of them.")
        named[name], settings[name] = found, own
    return named, settings


def _config(
    run: str | Path, seed: int, batch: int, student: nn.Module, losses: Mapping[str, Any], train: Mapping[str, Any]
) -> Config:
    kind = f"{type(student).__module__}:{type(student).__qualname__}"
    try:
        return Config.model_validate(
            {
                "run": str(run),
                "seed": seed,
                "data": {"shards": IN_PYTHON, "batch_size": batch, "workers": 0},
                "student": {"modality": {"name": IN_PYTHON}, "encoder": {"name": kind}},
                "losses": losses,
                "train": dict(train),
            }
        )
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"wcord.distill: {faults}.") from None


def _identity(
    teacher: nn.Module | None, student: nn.Module, losses: Mapping[str, Any], config: Config
) -> dict[str, Any]:
    """What must be unchanged to resume the run, as it is read back from JSON."""
    identity = {
        "student": {k: list(v.shape) for k, v in student.state_dict().items()},
        "teacher": {"weights": digest(teacher)} if teacher is not None else None,
        "losses": losses,
        "seed": config.seed,
        "data": {"batch_size": config.data.batch_size},
    }
    found: dict[str, Any] = json.loads(json.dumps(identity))
    return found


def _model(
    teacher: nn.Module | None,
    student: nn.Module,
    example: Batch,
    losses: Mapping[str, Loss | type[Loss]],
    config: Config,
) -> Distillation:
    kinds = [loss if isinstance(loss, type) else type(loss) for loss in losses.values()]
    torch.manual_seed(config.seed)
    own = PlainNetwork(student, example["student"], "student", any(k.needs_student_logits for k in kinds))
    other = None
    if teacher is not None:
        other = PlainNetwork(teacher, example["teacher"], "teacher", any(k.needs_teacher_logits for k in kinds))
    built: dict[str, Loss] = {}
    for name, loss in losses.items():
        kind = loss if isinstance(loss, type) else type(loss)
        if kind.needs_teacher and other is None:
            raise UserError(f"losses.{name}: requires a teacher; pass `teacher`, or remove this loss.")
        if kind.needs_index and "index" not in example:
            raise UserError(f"losses.{name}: requires `index` in each batch, the index of each sample in the data.")
        keywords = {k: v for k, v in config.losses[name].items() if k not in TERM}
        try:
            built[name] = loss if isinstance(loss, Loss) else loss(own.dims, other and other.dims, **keywords)  # type: ignore[call-arg, arg-type]
        except (ValueError, TypeError) as error:
            raise UserError(f"losses.{name}: {error}") from None
    weights = {name: float(keywords["weight"]) for name, keywords in config.losses.items()}
    return Distillation(other, own, built, weights, config.train.micro_batch)


def _write_results(training: Training, batches: Iterable[Any], metrics: Mapping[str, Metric]) -> None:
    """Write the metrics of the student, if there are any, to `results.json`."""
    if metrics and training.accelerator.is_main_process:
        scores = _evaluate(training, batches, metrics)
        write_atomic(training.run / "results.json", json.dumps(scores, indent=1).encode())


@torch.no_grad()
def _evaluate(training: Training, batches: Iterable[Any], metrics: Mapping[str, Metric]) -> dict[str, float]:
    student = training.student().eval()
    labels: list[np.ndarray] = []
    predictions: list[np.ndarray] = []
    for raw in batches:
        batch = send_to_device(as_batch(raw, 0), training.accelerator.device)
        features = student(batch["student"])
        if "label" not in batch or (features.logits is None):
            raise UserError("metrics: require labels in the batches of `validation`, and a loss that trains logits.")
        labels.append(batch["label"].cpu().numpy())
        predictions.append(features.logits.argmax(1).cpu().numpy())
    if not labels:
        raise UserError("metrics: `validation` yielded no batches; pass held-out batches with labels.")
    scores = user_scores(metrics, np.concatenate(labels), np.concatenate(predictions))
    return {f"student/{name}": value for name, value in scores.items()}
