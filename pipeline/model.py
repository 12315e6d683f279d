"""The one module of a run: frozen teacher, student and losses, so that DDP sees every trainable parameter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor, nn

from losses import LOSSES, Features, LocalTransport, PositionTransport
from losses.base import Loss, full_precision
from losses.diagnostics import effective_rank, relative_std
from losses.gather import gather
from modalities.encoders import find
from modalities.encoders.zero_shot import ZeroShot as ZeroShotHead
from pipeline.config import Config, ZeroShot
from pipeline.errors import UserError
from pipeline.gradient_cache import in_parts
from pipeline.launch import precision_of
from pipeline.network import Joint, Network, build_network, digest, load_network, load_single, sight
from pipeline.paired import nothing, term
from pipeline.prepare import Batch, Sight
from pipeline.shards import load_dataset, verify_files
from pipeline.sidecar import Cache, CachedTeacher, Fingerprint, open_cache
from pipeline.source import Policy, Source, open_split


class Distillation(nn.Module):
    """`model(batch) -> (total, terms)`: the weighted sum of the losses, and each of them before its weight.

    teacher: None for supervised training. losses: name -> loss. weights: name -> weight. micro_batch: samples that the
    networks see at a time (`pipeline.gradient_cache`); None for all of them.
    """

    def __init__(
        self,
        teacher: Network | Joint | CachedTeacher | None,
        student: Network | Joint,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float],
        micro_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.micro_batch = micro_batch
        self.teacher = teacher.requires_grad_(False) if teacher is not None else None
        self.student = student
        self.losses = nn.ModuleDict({_module_name(name): loss for name, loss in losses.items()})
        self.names = {_module_name(name): name for name in losses}
        self.weights = dict(weights)
        self.needs_maps = any(loss.needs_maps for loss in losses.values())
        self._measured: set[str] = set()  # the losses that have seen a batch
        self.train()

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        student = self._features(self.student, batch["student"])
        teacher = self.teach(batch)
        self.pooled = {
            role: x.pooled.detach() for role, x in (("student", student), ("teacher", teacher)) if x is not None
        }
        terms: dict[str, Tensor] = {}
        # The networks may run in half precision; the losses never do.
        with torch.autocast(student.pooled.device.type, enabled=False):
            for name, loss in cast(Mapping[str, Loss], self.losses).items():
                value = term(loss, student, teacher, batch)
                terms[self.names[name]] = nothing(loss, student) if value is None else value
                if value is not None:
                    self._measured.add(name)
        total = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        return total, {name: value.detach() for name, value in terms.items()}

    def teach(self, batch: Batch) -> Features | None:
        """The teacher's features of a batch, without gradient; those that the batch brings along, if it does."""
        if self.teacher is None:
            return None
        if isinstance(batch["teacher"], Features):
            return batch["teacher"]
        if isinstance(self.teacher, CachedTeacher):
            return _full(self.teacher(batch["teacher"]))
        with torch.no_grad():
            return self._features(self.teacher, batch["teacher"])

    def _features(self, network: nn.Module, x: Any) -> Features:
        features: Features = (
            network(x) if self.micro_batch is None else in_parts(network, x, self.micro_batch, self.needs_maps)
        )
        return _full(features if self.needs_maps else Features(features.pooled, logits=features.logits))

    @property
    def views(self) -> dict[str, Sight]:
        """What has to be read of a sample: nothing for a teacher whose features are cached."""
        seen = self.teacher is not None and not isinstance(self.teacher, CachedTeacher)
        teacher: dict[str, Sight] = {"teacher": cast(Network | Joint, self.teacher).view} if seen else {}
        return teacher | {"student": self.student.view}

    @property
    def cache(self) -> Cache | None:
        """The cached features that stand for the teacher, if it is cached."""
        return self.teacher.cache if isinstance(self.teacher, CachedTeacher) else None

    def teacher_identity(self) -> dict[str, str] | None:
        """A short hash of the teacher's weights, and its `sight`; the same if its features are cached."""
        if self.teacher is None:
            return None
        if self.cache is not None:
            return self.cache.fingerprint.model_dump(include={"weights", "sight"})
        return {"weights": digest(self.teacher), "sight": sight(cast(Network | Joint, self.teacher))}

    def metrics(self) -> dict[str, Tensor]:
        """The losses' own metrics of their last batch, and how many directions student and teacher use in it."""
        own = {
            f"{self.names[name]}/{key}": value
            for name, loss in cast(Mapping[str, Loss], self.losses).items()
            if name in self._measured
            for key, value in loss.metrics().items()
        }
        last = {side: gather(x) for side, x in self.pooled.items()}
        ranks = {f"{side}/effective_rank": effective_rank(x) for side, x in last.items()}
        return own | ranks | {"student/std": relative_std(last["student"])}

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything that training changes: all but the frozen teacher."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("teacher.")}

    def compile_parts(self, device: torch.device) -> None:
        """Compile student and teacher in place, which leaves the names of their weights as they are, and transport's
        iterations, but for a CPU, which has a faster way. The rest of the losses talks to other processes."""
        for network in (self.student, self.teacher):
            if isinstance(network, (Network, Joint)):
                network.compile()
        for loss in self.losses.modules():
            if isinstance(loss, (LocalTransport, PositionTransport)):
                loss.compiled = device.type != "cpu"

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError, as load_state_dict does, if the state is of another student or other losses."""
        teacher = {k: v for k, v in self.state_dict().items() if k.startswith("teacher.")}
        self.load_state_dict(dict(state) | teacher)


def build_model(config: Config) -> Distillation:
    """Build teacher, student and losses; UserError says which part of the config does not fit which."""
    kinds: dict[str, type[Loss]] = {name: find(name, LOSSES, Loss, "loss") for name in config.losses}
    dataset = load_dataset(config.data.shards)
    classes = class_names(config)
    if not any(kind.needs_student_logits for kind in kinds.values()):
        classes = None  # nothing would train a head
    dense = classes is not None and config.data.label in dataset.masks
    torch.manual_seed(config.seed)
    student = build_network(config.student.modality, config.student.encoder, classes, "student", dense)
    teacher: Network | Joint | CachedTeacher | None = build_teacher(config)
    if teacher is not None and config.teacher is not None and config.teacher.cache is not None:
        teacher = _cached(config, cast(Network | Joint, teacher), kinds.values())
    losses: dict[str, Loss] = {}
    for name, keywords in config.losses.items():
        loss = kinds[name]
        _check_logits(name, loss, teacher, student, config)
        own = {k: v for k, v in keywords.items() if k != "weight"}
        if loss.needs_index:
            own["samples"] = _samples(name, own.get("samples"), dataset.samples("train"))
        try:
            losses[name] = loss(student.dims, teacher.dims if teacher else None, **own)  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(f"losses.{name}: {error}") from None
    weights = {name: float(keywords.get("weight", 1.0)) for name, keywords in config.losses.items()}
    return Distillation(teacher, student, losses, weights, config.train.micro_batch)


def build_teacher(config: Config) -> Network | Joint | None:
    """The frozen teacher: of a finished run or several, or pretrained without a head; None if the config has none."""
    if config.teacher is None:
        return None
    if isinstance(config.teacher.run, list):
        return Joint([load_single(Path(run) / "student") for run in config.teacher.run], None)
    if config.teacher.run is not None:
        return load_network(Path(config.teacher.run) / "student")
    assert config.teacher.modality is not None
    assert config.teacher.encoder is not None
    teacher = build_network(config.teacher.modality, config.teacher.encoder, None, "teacher")
    if config.teacher.zero_shot is not None:
        _name_classes(cast(Network, teacher), config.teacher.zero_shot, class_names(config))
    return teacher


def class_names(config: Config) -> list[str] | None:
    """The task's classes: the data set's, or else those whose names a zero-shot teacher is given; None without any."""
    zero_shot = config.teacher.zero_shot if config.teacher else None
    classes = load_dataset(config.data.shards).classes.get(config.data.label)
    return classes or (zero_shot.names if zero_shot else None)


def _name_classes(teacher: Network, zero_shot: ZeroShot, classes: list[str] | None) -> None:
    """Give a vision tower the classes that its text tower reads the names of."""
    if classes is None:
        raise UserError("teacher.zero_shot.names: the data has no classes, so list the names of those that are meant.")
    names = zero_shot.names or [name.replace("_", " ") for name in classes]
    if len(names) != len(classes):
        raise UserError(
            f"teacher.zero_shot.names: {len(names)} names, but the data has {_some(classes)}; give a name for each."
        )
    sentences = [zero_shot.template.replace("{}", name) for name in names]
    encoder = teacher.spec["encoder"]
    try:
        if encoder.get("weights") == "random":
            raise ValueError("needs the model's own weights; remove `weights: random` of the encoder")
        teacher.head = ZeroShotHead(teacher.encoder, encoder.get("model", ""), sentences)
    except ValueError as error:
        raise UserError(f"teacher.zero_shot: {error}") from None
    teacher.classes = classes


def fingerprint(config: Config, teacher: Network | Joint, source: Source) -> Fingerprint:
    """What a cache of this teacher's features on this split has to agree on with the config."""
    data = config.data
    area = f"crop {data.crop[0]} to {data.crop[1]}" if data.pad is None else f"pad {data.pad[0]} of {data.pad[1]}"
    draw = f"seed {config.seed}, {area}, flip {data.flip}"
    shards = {shard.file: shard.sha256 for shard in source.shards}
    joined = [load_dataset(folder).digest() for folder in data.join]
    return Fingerprint(weights=digest(teacher), sight=sight(teacher), draw=draw, shards=shards, joined=joined)


def _cached(config: Config, teacher: Network | Joint, losses: Iterable[type[Loss]]) -> CachedTeacher:
    assert config.teacher is not None
    assert config.teacher.cache is not None
    source = open_split(config.data.shards, "train", config.data.label, policy=Policy(config.data.max_faulty))
    cache = open_cache(source.folder, config.teacher.cache, fingerprint(config, teacher, source))
    for key, wanted, held in (
        ("views", config.teacher.views, cache.views),
        ("cache_dtype", config.teacher.cache_dtype, cache.dtype),
    ):
        if wanted != held:
            raise UserError(f"teacher.{key}: {wanted}, but the cache holds {held}; cache it again, or set {held}.")
    cache.check_faulty(source.samples, config.data.max_faulty)
    if not source.tolerant:
        verify_files(source.folder, cache.sidecars.values(), "wcord cache")
    if (own := precision_of(config)) != cache.precision:
        PartialState().print(
            f"{cache.name}: the teacher's features were computed in {cache.precision}; this run itself would compute "
            f"them in {own}."
        )
    if teacher.dims.maps and not cache.maps and any(loss.needs_maps for loss in losses):
        raise UserError(f"teacher.cache: {cache.name} holds no feature maps, which a loss needs; cache it again.")
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
            f"losses.{name}: needs class logits, but {config.data.shards} has no classes for the label "
            f"`{config.data.label}`; remove this loss."
        )
    if loss.needs_student_logits and student.dims.dense and not loss.reads_pixels:
        raise UserError(
            f"losses.{name}: needs one class a sample, but data.label `{config.data.label}` is a mask: a class for "
            "each pixel. Remove this loss; cross_entropy and kd read pixels."
        )
    if not loss.needs_teacher_logits or teacher is None:
        return
    if teacher.classes and teacher.dims.dense != student.dims.dense:
        what = ("one class a sample", "a class for each pixel")
        raise UserError(
            f"losses.{name}: the student tells {what[student.dims.dense]}, the teacher {what[teacher.dims.dense]}. "
            "Train the teacher with the same data.label, or use a feature loss such as wcord."
        )
    if teacher.classes != student.classes:
        raise UserError(
            f"losses.{name}: needs a teacher of the same classes. The data has {_some(student.classes)}; the teacher "
            f"{_some(teacher.classes)}. Remove this loss, or use a feature loss such as wcord."
        )


def _samples(name: str, given: int | None, actual: int) -> int:
    """How many samples a loss keeps something of: all training samples, unless the config says more."""
    if given is not None and given < actual:
        raise UserError(
            f"losses.{name}.samples: {given}, but the training split has {actual} samples; remove it, and their number "
            "is taken from the data set."
        )
    return given or actual


def _full(features: Features) -> Features:
    """The same features in full precision."""
    logits = features.logits
    return Features(
        full_precision(features.pooled),
        [full_precision(x) for x in features.maps],
        None if logits is None else full_precision(logits),
    )


def _some(classes: list[str] | None) -> str:
    if not classes:
        return "no classes"
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})"


def _module_name(name: str) -> str:
    return re.sub(r"\W", "_", name)
