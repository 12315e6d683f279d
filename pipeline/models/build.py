"""Build teacher, student and losses from a config, and check that they fit together."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch

from losses import get as get_loss
from losses.base import Loss
from modalities.encoders.zero_shot import ZeroShot as ZeroShotHead
from pipeline.common.console import rank
from pipeline.common.errors import UserError
from pipeline.config.components import TERM
from pipeline.config.settings import Config, ZeroShot
from pipeline.data.augmentation import Augmentation
from pipeline.data.feature_cache import Fingerprint, open_cache
from pipeline.data.manifest import local, verify_files
from pipeline.data.source import OpenDataset
from pipeline.models.cached_teacher import CachedTeacher
from pipeline.models.distillation import Distillation
from pipeline.models.hub_student import student_folder
from pipeline.models.initial_weights import initialise
from pipeline.models.network import Joint, Network, build_network, digest, load_network, load_single, sight
from pipeline.models.pair_filter import PairFilter
from pipeline.models.precision import precision_of

log = logging.getLogger(__name__)


def build_model(config: Config, data: OpenDataset | None = None, samples: int | None = None) -> Distillation:
    """Build teacher, student and losses.

    Args:
        config: The config.
        data: Its dataset; None opens it.
        samples: Number of training samples of all datasets of a mixture; None means those of `data`.

    Returns:
        The model, on the CPU.

    Raises:
        UserError: Parts of the config do not fit together. The message specifies them.
    """
    data = data or OpenDataset.from_config(config)
    kinds: dict[str, type[Loss]] = {name: get_loss(name) for name in config.losses}
    classes = class_names(config, data)
    if not any(kind.needs_student_logits for kind in kinds.values()):
        classes = None  # no loss would train a head
    dense = classes is not None and data.dense
    torch.manual_seed(config.seed)
    student = build_network(config.student.modality, config.student.encoder, classes, "student", dense)
    if config.student.init_from is not None:
        initialise(student, config.student.init_from)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise UserError(
            "student.encoder.freeze: the encoder is frozen and no loss trains a head, so the student has no trainable "
            "parameters. Add cross_entropy or kd to the losses, or remove freeze."
        )
    live = build_teacher(config, data)
    measure = any(kind.needs_sizes for kind in kinds.values())
    student_dims = replace(student.dims, sizes=_map_sizes("student", student) if measure else ())
    teacher: Network | Joint | CachedTeacher | None = live
    if live is not None and config.teacher is not None and config.teacher.named_cache is not None:
        teacher = _cached(config, live, kinds.values(), data)
    teacher_dims = None
    if live is not None and teacher is not None:
        teacher_dims = replace(teacher.dims, sizes=_map_sizes("teacher", live) if measure else ())
    losses: dict[str, Loss] = {}
    for name, keywords in config.losses.items():
        loss = kinds[name]
        _check_logits(name, loss, teacher, student, config)
        own = {k: v for k, v in keywords.items() if k not in TERM}
        if loss.needs_index:
            own["samples"] = _samples(name, own.get("samples"), samples or data.manifest.samples("train"))
        try:
            losses[name] = loss(student_dims, teacher_dims, **own)  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(f"losses.{name}: {error}") from None
    weights = {name: float(keywords.get("weight", 1.0)) for name, keywords in config.losses.items()}
    pair_filter = None
    if config.data.pairs == "noisy" and teacher_dims is not None:
        pair_filter = PairFilter(student_dims.pooled, teacher_dims.pooled, samples or data.manifest.samples("train"))
    model = Distillation(teacher, student, losses, weights, config.train.micro_batch, pair_filter)
    _check_first_steps(model)
    return model


def _check_first_steps(model: Distillation) -> None:
    parts = model.student._networks() if isinstance(model.student, Joint) else [model.student]
    waiting = {p for part in parts if part.frozen_steps for p in part.encoder.parameters()}
    if not any(parameter.requires_grad and parameter not in waiting for parameter in model.parameters()):
        raise UserError(
            "student.encoder.freeze: only the encoder is trained, so there is nothing to train while it is frozen. Add "
            "cross_entropy or kd to the losses, or remove freeze."
        )


def _map_sizes(side: str, network: Network | Joint) -> tuple[tuple[int, ...] | None, ...]:
    try:
        return network.map_sizes()
    except ValueError as error:
        raise UserError(f"{side}: {error}") from None


def build_teacher(config: Config, data: OpenDataset | None = None) -> Network | Joint | None:
    """Build the frozen teacher.

    Args:
        config: The config.
        data: Its dataset, which supplies the classes for a zero-shot teacher; None opens it if needed.

    Returns:
        The network of one or several finished runs, or a pretrained network without a head; None if the config has no
        teacher.

    Raises:
        UserError: A network cannot be built or loaded, or the class names of a zero-shot teacher are invalid.
    """
    if config.teacher is None:
        return None
    if isinstance(config.teacher.run, list):
        return Joint([load_single(student_folder(run)) for run in config.teacher.run], None)
    if config.teacher.run is not None:
        return load_network(student_folder(config.teacher.run))
    assert config.teacher.modality is not None
    assert config.teacher.encoder is not None
    teacher = build_network(config.teacher.modality, config.teacher.encoder, None, "teacher")
    if config.teacher.zero_shot is not None:
        classes = class_names(config, data or OpenDataset.from_config(config))
        _name_classes(cast(Network, teacher), config.teacher.zero_shot, classes)
    return teacher


def class_names(config: Config, data: OpenDataset) -> list[str] | None:
    """Get the classes of the task.

    Args:
        config: The config.
        data: Its dataset.

    Returns:
        The classes of the dataset, else those of `teacher.zero_shot.names`, else None.
    """
    zero_shot = config.teacher.zero_shot if config.teacher else None
    return data.classes or (zero_shot.names if zero_shot else None)


def _name_classes(teacher: Network, zero_shot: ZeroShot, classes: list[str] | None) -> None:
    """Add a zero-shot head to a vision tower: the text tower's embeddings of the class names."""
    if classes is None:
        raise UserError("teacher.zero_shot.names: the dataset has no classes; list the class names here.")
    names = zero_shot.names or [name.replace("_", " ") for name in classes]
    if len(names) != len(classes):
        raise UserError(
            f"teacher.zero_shot.names: has {len(names)} names, but the data has {_some(classes)}; set one name per "
            "class."
        )
    sentences = [zero_shot.template.replace("{}", name) for name in names]
    encoder = teacher.spec["encoder"]
    try:
        if encoder.get("weights") == "random":
            raise ValueError("requires pretrained weights; remove `weights: random` from the encoder")
        teacher.head = ZeroShotHead(teacher.encoder, encoder.get("model", ""), sentences)
    except ValueError as error:
        raise UserError(f"teacher.zero_shot: {error}") from None
    teacher.classes = classes


def fingerprint(config: Config, teacher: Network | Joint, data: OpenDataset) -> Fingerprint:
    """Compute the fingerprint that a cache of teacher features must match.

    Args:
        config: The config.
        teacher: The teacher.
        data: The dataset.

    Returns:
        The fingerprint of the teacher, its input and the training split.
    """
    draw = "; ".join([str(Augmentation.from_config(config)), *config.data.stages])
    shards = {shard.file: shard.content for shard in data.manifest.splits["train"]}
    joined = [manifest.digest() for _, manifest in data.others]
    return Fingerprint(weights=digest(teacher), sight=sight(teacher), draw=draw, shards=shards, joined=joined)


def _cached(config: Config, teacher: Network | Joint, losses: Iterable[type[Loss]], data: OpenDataset) -> CachedTeacher:
    assert config.teacher is not None
    assert config.teacher.cache is not None
    folder = local(data.folder)
    cache = open_cache(folder, config.teacher.cache, fingerprint(config, teacher, data))
    for key, wanted, held in (
        ("views", config.teacher.views, cache.views),
        ("cache_dtype", config.teacher.cache_dtype, cache.dtype),
    ):
        if wanted != held:
            raise UserError(
                f"teacher.{key}: is {wanted}, but the cache has {held}; run `wcord cache` again, or set {held}."
            )
    cache.check_faulty(data.manifest.samples("train"), config.data.max_faulty)
    if not config.data.max_faulty:
        verify_files(folder, cache.sidecars.values(), "wcord cache")
    if (own := precision_of(config)) != cache.precision and rank() == 0:
        log.warning(
            f"{cache.name}: the cached teacher features were computed in {cache.precision}, while this run uses {own}."
        )
    if teacher.dims.maps and not cache.maps and any(loss.needs_maps for loss in losses):
        raise UserError(
            f"teacher.cache: {cache.name} has no feature maps, but a loss requires them; run `wcord cache` again."
        )
    return CachedTeacher(cache)


def _check_logits(
    name: str,
    loss: type[Loss],
    teacher: Network | Joint | CachedTeacher | None,
    student: Network | Joint,
    config: Config,
) -> None:
    if loss.needs_student_logits and student.classes is None:
        raise UserError(
            f"losses.{name}: requires class logits, but {config.data.shards} has no classes for the label "
            f"`{config.data.label}`. Set data.label to where the class is (a label of a packed dataset; a member or a "
            "JSON value of other shards, such as cls or json:category), or remove this loss."
        )
    if loss.needs_student_logits and student.dims.dense and not loss.reads_pixels:
        raise UserError(
            f"losses.{name}: requires one class per sample, but data.label `{config.data.label}` is a mask, with one "
            "class per pixel. Remove this loss; cross_entropy and kd support masks."
        )
    if not loss.needs_teacher_logits or teacher is None:
        return
    if teacher.classes and teacher.dims.dense != student.dims.dense:
        what = ("one class per sample", "one class per pixel")
        raise UserError(
            f"losses.{name}: the student predicts {what[student.dims.dense]}, the teacher {what[teacher.dims.dense]}. "
            "Train the teacher with the same data.label, or use a feature loss such as wcord."
        )
    if teacher.classes != student.classes:
        cure = "Remove this loss, or use a feature loss such as wcord."
        if teacher.classes and _numbered(student.classes) and not _numbered(teacher.classes):
            cure = f"Set data.label or data.classes as for the teacher. Otherwise: {cure[0].lower()}{cure[1:]}"
        raise UserError(
            f"losses.{name}: requires a teacher with the same classes. The data has {_some(student.classes)}; the "
            f"teacher has {_some(teacher.classes)}. {cure}"
        )


def _samples(name: str, given: int | None, actual: int) -> int:
    """The number of samples for which a loss keeps state: the training samples, unless the config sets more."""
    if given is not None and given < actual:
        raise UserError(
            f"losses.{name}.samples: {given}, but the training split has {actual} samples; remove the key to use "
            "that number."
        )
    return given or actual


def _numbered(classes: list[str] | None) -> bool:
    """Whether classes have indices instead of names, as in shards without class names."""
    return classes is not None and classes == [str(number) for number in range(len(classes))]


def _some(classes: list[str] | None) -> str:
    if not classes:
        return "no classes"
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})"
