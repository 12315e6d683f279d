"""The settings of an experiment: the schema of its YAML, and `load`, which reports all faults at once.

Over 300 lines, because all settings are here with their descriptions, which `wcord config explain` and
docs/config-reference.md show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.common.errors import UserError
from pipeline.common.run_format import FORMAT, check_format
from pipeline.config.components import check_components
from pipeline.config.document import Document, Key, dump
from pipeline.config.interval import Interval
from pipeline.config.messages import explain, near

SHIPPED = next(
    (folder for parent in Path(__file__).parents[1:3] if (folder := parent / "configs").is_dir()),
    Path(__file__).parents[1] / "configs",
)
"""Folder of the shipped configs: inside an installed package, or next to the packages in a checkout."""

IN_PYTHON = "python"
"""In place of shards and modality, in the config of a run of `wcord.distill`."""

Component = dict[str, Any]
"""`name` and the keywords of the class of that name."""


class Section(BaseModel):
    """A section of a config. Unknown keys, wrong types, NaN and infinity are rejected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Text = Annotated[str, Field(min_length=1)]


class SourceSettings(Section):
    """A data set of a mixture."""

    path: Text = Field(description="A packed or indexed folder, or existing WebDataset shards.")
    weight: float = Field(default=1.0, gt=0, description="Relative number of samples; weights need not sum to 1.")
    fields: dict[str, Text | list[Text]] = Field(
        default={}, description="Field -> extensions of its members, for existing WebDataset shards."
    )
    label: Text = Field(default="label", description="The label to predict.")
    classes: list[Text] | Text = Field(default=[], description="Names of its classes, if the shards contain indices.")
    names: dict[Text, Text] = Field(
        default={}, description="Its class name -> class name of the first data set, if they differ."
    )

    @property
    def extensions(self) -> dict[str, list[str]]:
        """Field -> extensions, if the config sets them."""
        return {field: [own] if isinstance(own, str) else own for field, own in self.fields.items()}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, if the config sets them.

        Raises:
            UserError: The file of class names cannot be read.
        """
        if not isinstance(self.classes, str):
            return self.classes
        try:
            return [line.strip() for line in Path(self.classes).read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"data.classes: {self.classes}: {error}. Use a text file with one class per line."
            ) from None


class Data(Section):
    """The training data, and how samples become batches."""

    shards: Text | Annotated[list[Text | SourceSettings], Field(min_length=1)] = Field(
        description="The data set: a packed or indexed folder, or existing WebDataset shards (a folder, glob, tar "
        "or pattern such as s3://bucket/{000..399}.tar), or a list of these. A list with {path: …, weight: …} is a "
        "mixture, whose first data set is evaluated.",
    )
    sampling: Literal["once", "with_replacement"] = Field(
        default="once",
        description="once: each sample of a data set once per pass. with_replacement: whole shards are drawn at "
        "random, with replacement.",
    )
    epoch_samples: int | None = Field(
        default=None,
        gt=0,
        description="Number of samples per epoch of a mixture or with replacement; null means the size of the data.",
    )
    fields: dict[str, Text | list[Text]] = Field(
        default={},
        description="Field -> extensions of its members, for existing WebDataset shards: {rgb: [jpg, png], text: txt}. "
        "Common extensions are detected.",
    )
    classes: list[Text] | Text = Field(
        default=[],
        description="Names of the classes in order, or a text file with one per line, if the shards contain indices.",
    )
    join: list[Text] = Field(
        default=[],
        description="Folders of other packed data sets, whose fields are added to the samples with the same keys.",
    )
    label: str = Field(
        default="label",
        min_length=1,
        description="The label to predict, one of the classes in dataset.json; a mask means segmentation. For existing "
        "WebDataset shards: a member such as cls, or a value in a JSON member: json:path.to.value.",
    )
    label_fraction: float = Field(
        default=1.0, gt=0, le=1, description="Fraction of training samples with a visible label."
    )
    stages: list[Text] = Field(
        default=[],
        description="User functions package.module:name that take and yield samples, like webdataset stages. They can "
        "change or drop samples.",
    )
    batch_size: int = Field(default=64, gt=0, description="Samples per step, over all processes (global batch size).")
    workers: int = Field(
        default=2, ge=0, description="Data loader workers per training process; 0 loads in the training process."
    )
    shuffle: int = Field(
        default=2000, ge=0, description="Size of the shuffle buffer in samples; 0 keeps the order of the shards."
    )
    crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = Field(
        default=(1.0, 1.0),
        strict=False,
        description="Range of the relative area of the random crop, which is the same for all modalities of a sample.",
    )
    max_faulty: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Maximum fraction of unreadable samples, which are skipped, counted and listed. With 0, the first "
        "one ends the run.",
    )
    max_pixels: int = Field(
        default=32_000_000,
        gt=0,
        le=100_000_000,
        description="Maximum number of pixels of an image; one with more is unreadable. Decoding takes up to 33 bytes "
        "per pixel in each worker.",
    )
    unpaired: Literal["error", "skip", "keep"] = Field(
        default="error",
        description="Samples that lack a modality: error ends the run; skip skips them; keep uses those that only lack "
        "the teacher's modality for losses without a teacher.",
    )
    pad: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(gt=0)]] | None = Field(
        default=None,
        strict=False,
        description="Random crop of the zero-padded image, instead of `crop` and the same for all modalities: [p, n] "
        "shifts by up to p of n pixels. For CIFAR: [4, 32].",
    )
    flip: bool = Field(default=False, description="Random horizontal flip, the same for all modalities of a sample.")
    in_memory: bool = Field(
        default=False,
        description="Keep the decoded training set on the device and augment it there. For small photos: rgb with "
        "jitter 0, with pad and flip.",
    )

    @property
    def mixed(self) -> bool:
        """Whether samples are drawn from a mixture or with replacement, instead of each once per epoch."""
        return self.sampling == "with_replacement" or len(self.sources) > 1

    @property
    def sources(self) -> list[SourceSettings]:
        """The data set, or the data sets of a mixture. A list of plain paths is one data set, as in webdataset."""
        given = [self.shards] if isinstance(self.shards, str) else self.shards
        if all(isinstance(one, str) for one in given):
            given = ["::".join(map(str, given))]
        return [self._plain(one) if isinstance(one, str) else one for one in given]

    def _plain(self, path: str) -> SourceSettings:
        """A data set given by its path only: its other settings are those of the section."""
        return SourceSettings(path=path, label=self.label, fields=self.fields, classes=self.classes)

    @property
    def address(self) -> str:
        """Path or URL of the data set, or of the first one of a mixture."""
        return self.sources[0].path

    @field_validator("crop")
    @classmethod
    def _ordered(cls, crop: tuple[float, float]) -> tuple[float, float]:
        if crop[0] > crop[1]:
            raise ValueError("must be [minimum, maximum]")
        return crop

    @model_validator(mode="after")
    def _one_geometry(self) -> Data:
        if self.pad is not None and self.pad[0] >= self.pad[1]:
            raise ValueError("pad: must be [p, n] with p below n: a shift by up to p of n pixels")
        if self.pad is not None and self.crop != (1.0, 1.0):
            raise ValueError("has both crop and pad: set `crop: [1, 1]` or `pad: null`")
        return self

    @model_validator(mode="after")
    def _streamed(self) -> Data:
        if self.in_memory:
            if self.mixed:
                raise ValueError("in_memory cannot be combined with a mixture or sampling with replacement")
            plain = {"join": [], "max_faulty": 0.0, "unpaired": "error", "crop": (1.0, 1.0), "stages": []}
            if streamed := [name for name, value in plain.items() if getattr(self, name) != value]:
                raise ValueError(f"in_memory cannot be combined with {' and '.join(streamed)}; set it to false")
        return self


class NetworkSettings(Section):
    """A modality and its encoder, or a list of each for a network with several inputs."""

    modality: Component | list[Component] = Field(description="Name of the modality, or {name: ..., keywords}.")
    encoder: Component | list[Component] = Field(
        description="Name of an encoder of the modality, or {name: ..., keywords}."
    )

    @model_validator(mode="after")
    def _as_many(self) -> NetworkSettings:
        _check_as_many(self.modality, self.encoder)
        return self


class Student(NetworkSettings):
    """The network to train."""

    init_from: Text | None = Field(
        default=None,
        description="Run folder whose encoder weights the student starts from, e.g. that of an RGB teacher of the same "
        "architecture. Its first convolution is adapted to the channels of the student.",
    )


class ZeroShot(Section):
    """Class names for a teacher with a text tower, instead of a head."""

    template: str = Field(default="a photo of a {}", description="A sentence; {} is replaced by the name of the class.")
    names: Annotated[list[Text], Field(min_length=2)] | None = Field(
        default=None,
        description="Readable class names in the order of the data set, or the classes if the data set has none.",
    )

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError("must contain {} once, for the name of the class")
        return template

    @field_validator("names")
    @classmethod
    def _distinct(cls, names: list[str] | None) -> list[str] | None:
        if names and len(set(names)) < len(names):
            raise ValueError("must be distinct")
        return names


class Teacher(Section):
    """The frozen teacher: a trained network, or one with pretrained weights."""

    run: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=2)] | None = Field(
        default=None,
        description="Run folder of a trained network, which sets modality and encoder. With a list, features are "
        "concatenated and class probabilities averaged.",
    )
    modality: Component | list[Component] | None = Field(
        default=None, description="Name of the modality, or {name: ..., keywords}; or a list of them."
    )
    encoder: Component | list[Component] | None = Field(
        default=None, description="Name of a pretrained encoder, or {name: ..., keywords}; or a list of them."
    )

    zero_shot: ZeroShot | None = Field(
        default=None,
        description="Class probabilities from class names, for an encoder with a text tower such as CLIP.",
    )
    cache: Annotated[str, Field(pattern=r"^\w[\w-]*$")] | None = Field(
        default=None,
        description="Name of the cached features of the teacher, which `wcord cache` writes next to the shards. "
        "Training reads them instead of running the teacher.",
    )
    views: int = Field(
        default=1, gt=0, description="Number of augmented views per sample in the cache; epochs cycle through them."
    )
    cache_dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Data type of the cache.")

    @model_validator(mode="after")
    def _either(self) -> Teacher:
        if self.run is not None and (self.modality or self.encoder):
            raise ValueError("has a run, which sets modality and encoder; remove either the run or these")
        if self.run is None and not (self.modality and self.encoder):
            raise ValueError("requires `run: <run folder>`, or both `modality:` and `encoder:`")
        if self.zero_shot and not isinstance(self.encoder, dict):
            raise ValueError(
                "zero_shot requires a single pretrained encoder with a text tower, not a run or several encoders"
            )
        _check_as_many(self.modality, self.encoder)
        return self


def _check_as_many(modality: Any, encoder: Any) -> None:
    if isinstance(modality, list) != isinstance(encoder, list) or (
        isinstance(modality, list) and (len(modality) != len(encoder) or len(modality) < 2)
    ):
        raise ValueError("a list of modalities requires a list of encoders of the same length, at least two")


class LearningRateFactors(Section):
    """Factors of the learning rate of each part, e.g. to fine-tune a pretrained encoder."""

    encoder: float = Field(default=1.0, gt=0, description="Factor for the encoder of the student.")
    head: float = Field(default=1.0, gt=0, description="Factor for the head of the student.")
    losses: float = Field(default=1.0, gt=0, description="Factor for the projections and critics of the losses.")


class Train(Section):
    """Duration and optimisation of the training."""

    steps: int | None = Field(default=None, gt=0, description="Optimiser steps.")
    epochs: int | None = Field(default=None, gt=0, description="Passes over the training set; an alternative to steps.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak learning rate, after the warmup.")
    learning_rate_factors: LearningRateFactors = Field(
        default_factory=LearningRateFactors, description="Factors of the learning rate of each part."
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Factor of the learning rate from each layer of the encoder to the one before it, e.g. 0.75 to "
        "fine-tune a transformer; 1 trains all layers alike.",
    )
    schedule: Literal["cosine", "step"] = Field(
        default="cosine", description="After the warmup: cosine decay to 0, or a factor of 0.1 after each milestone."
    )
    milestones: list[Annotated[int, Field(gt=0)]] = Field(
        default=[],
        description="Epochs after which `schedule: step` multiplies the learning rate by 0.1, e.g. [150, 180].",
    )
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="AdamW, or SGD with momentum 0.9.")
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay.")
    decay_vectors: bool = Field(
        default=False,
        description="Apply weight decay also to biases and norms, as in the published CIFAR tables, but not to "
        "temperature, scale and bias of a contrastive loss.",
    )
    warmup: int = Field(default=100, ge=0, description="Steps of linear warmup.")
    clip: float | None = Field(default=5.0, gt=0, description="Maximum gradient norm; null disables clipping.")
    guard: bool = Field(
        default=True,
        description="Reduce the weight of a loss that causes a collapse of the student; false only warns.",
    )
    micro_batch: int | None = Field(
        default=None,
        gt=0,
        description="Micro-batch size per process. Losses still use the whole batch (gradient caching). null disables "
        "micro-batches.",
    )
    accumulate: int = Field(
        default=1,
        gt=0,
        description="Number of parts in which a batch is processed before the optimiser step (gradient accumulation). "
        "Only for losses that do not compare samples; for the others, see micro_batch.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations of the student in the backward pass to save memory."
    )
    compile: bool = Field(
        default=False,
        description="Compile student and teacher, and on a GPU the iterations of transport, with torch.compile.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Floating-point format of the networks; auto is bf16 on GPUs that support it, else fp32.",
    )
    log_every: int = Field(default=20, gt=0, description="Steps between log lines (metrics.jsonl).")
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        default=["tensorboard"],
        description="Experiment trackers. All except tensorboard require `pip install 'wcord[track]'`.",
    )
    callbacks: list[Text | Component] = Field(
        default=[],
        description="Callbacks: ema, early_stopping, learning_rate_finder, or your own package.module:Class; or "
        "{name: ..., keywords}.",
    )
    checkpoint_every: Interval = Field(
        default=500, description="Steps between checkpoints, or epochs such as `2 epochs`."
    )
    timeout: float = Field(
        default=600.0,
        gt=0,
        le=1e7,
        description="Seconds that a process waits for the others, or for its loader processes, before it fails.",
    )
    keep_checkpoints: int = Field(default=2, gt=0, description="Number of checkpoints to keep.")

    @model_validator(mode="after")
    def _once(self) -> Train:
        if self.accumulate > 1 and self.micro_batch is not None:
            raise ValueError("has both accumulate and micro_batch; remove one of them")
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "compile and gradient_checkpointing cannot be combined, since torch cannot compile blocks whose "
                "running statistics are restored; set one of them to false"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("requires either `steps` or `epochs`; set the other one to null")
        if (self.schedule == "step") != bool(self.milestones) or self.milestones != sorted(set(self.milestones)):
            raise ValueError("`schedule: step` requires ascending `milestones`, and vice versa")
        if self.epochs is not None and any(milestone >= self.epochs for milestone in self.milestones):
            raise ValueError(f"milestones: {self.milestones} must be below epochs: {self.epochs}")
        return self


class Evaluation(Section):
    """What is measured, on which samples, and compared with what."""

    split: str = Field(default="test", min_length=1, description="Split for evaluation.")
    every: Literal[0] | Interval = Field(
        default=0,
        description="Steps between validations on that split during training, or epochs such as `2 epochs`; 0 disables "
        "them.",
    )
    monitor: Literal["auto", "top1", "mIoU", "loss", "R@1", "R@5", "R@10"] = Field(
        default="auto",
        description="The validation metric that selects `best/`: loss, or R@k, the retrieval of the teacher's view. "
        "auto: top1 (mIoU for masks) if the split has labels and a loss trains logits, else R@10.",
    )
    metrics: list[Text] = Field(
        default=[],
        description="Functions package.module:name of (label, prediction), NumPy arrays of class indices, e.g. "
        "sklearn.metrics:balanced_accuracy_score. They return a number.",
    )
    baselines: list[str] = Field(default=[], description="Run folders to compare with.")
    samples: int | None = Field(
        default=None,
        gt=0,
        description="Number of training samples for probes and k-NN (the first ones); null means all.",
    )
    neighbours: int = Field(default=10, gt=0, description="k of the k-nearest-neighbour classifier.")


class Config(Section):
    """The config of an experiment."""

    run: str = Field(min_length=1, description="Run folder for all results, e.g. runs/depth_wcord.")
    seed: int = Field(default=0, ge=0, le=10**18, description="Random seed.")
    data: Data = Field(description="The training data.")
    teacher: Teacher | None = Field(default=None, description="The frozen teacher; null for supervised training.")
    student: Student = Field(description="The network to train.")
    losses: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="Terms of the objective: name, or package.module:Class -> weight and keywords. An override to null "
        "removes one.",
    )
    train: Train = Field(description="The optimisation.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="The evaluation.")
    format: int = Field(default=FORMAT, description="Format number of a run folder, written by the program.")

    @model_validator(mode="after")
    def _not_cached(self) -> Config:
        if self.data.in_memory and self.teacher is not None and self.teacher.cache is not None:
            raise ValueError("data.in_memory cannot be combined with teacher.cache; set one of them to false or null")
        return self

    @model_validator(mode="after")
    def _accumulated(self) -> Config:
        if self.train.accumulate > 1 and self.data.unpaired == "keep":
            raise ValueError(
                "train.accumulate cannot be combined with data.unpaired: keep, since parts of a batch have different "
                "numbers of pairs; set train.micro_batch instead"
            )
        return self

    @model_validator(mode="after")
    def _cached_once(self) -> Config:
        if self.teacher is not None and self.teacher.cache is not None and len(self.data.sources) > 1:
            raise ValueError("teacher.cache does not support a mixture of data sets; set it to null")
        return self

    @model_validator(mode="after")
    def _own_folder(self) -> Config:
        read = {
            "teacher.run": self.teacher.run if self.teacher else None,
            "student.init_from": self.student.init_from,
            "evaluation.baselines": self.evaluation.baselines,
        }
        for key, written in read.items():
            for folder in [written] if isinstance(written, str) else written or []:
                if Path(folder).resolve() == Path(self.run).resolve():
                    raise ValueError(
                        f"run: is the same folder as {key} ({folder}), which would be overwritten; choose another `run`"
                    )
        return self

    def to_yaml(self) -> str:
        """Write the config with all defaults as YAML, which `load` reads back to an equal config."""
        return dump(self.model_dump(mode="json"))


SECTIONS: dict[Key, type[Section]] = {
    (): Config,
    ("data",): Data,
    ("teacher",): Teacher,
    ("teacher", "zero_shot"): ZeroShot,
    ("student",): Student,
    ("train",): Train,
    ("train", "learning_rate_factors"): LearningRateFactors,
    ("evaluation",): Evaluation,
}


def shipped() -> list[str]:
    """List the names of the shipped configs."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config.

    Args:
        path: A YAML file, or the name of a shipped config.
        overrides: Overrides such as `train.steps=100`. A setting that is text takes the text as it stands, such as
            `run=2024_01_05`.

    Returns:
        The validated config.

    Raises:
        UserError: The config is invalid, or is that of a run of `wcord.distill`. The message has one line per fault,
            with key, expectation, and line or override.
    """
    return _load(path, overrides, frozenset())


def _load(path: str | Path, overrides: Sequence[str], texts: AbstractSet[Key]) -> Config:
    document = Document(_find(path), overrides, _defaults(), texts)
    check_format(document.data.get("format"), path)
    if made_in_python(document.data):
        raise UserError(
            f"{path}: a run of wcord.distill. Its data and modules are in the program that called it, so no command "
            "can build them. Pass `validation` and `metrics` to wcord.distill to measure the student."
        )
    data = check_components(document)
    config = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        explain(document, error, (), {key: list(model.model_fields) for key, model in SECTIONS.items()})
    if document.texts > texts:
        return _load(path, overrides, document.texts)
    document.check()
    assert config is not None
    return config


def made_in_python(data: Mapping[str, Any]) -> bool:
    """Whether plain data is the config of a run of `wcord.distill`, whose data and modules are not in it."""
    part: Any = data
    for key in ("student", "modality", "name"):
        part = part.get(key) if isinstance(part, Mapping) else None
    return bool(part == IN_PYTHON)


def _find(path: str | Path) -> Path:
    given = Path(path)
    if given.is_file():
        return given
    if given.name == str(path) and (named := SHIPPED / f"{given.name.removesuffix('.yaml')}.yaml").is_file():
        return named
    names = shipped()
    match = near(given.stem, names)
    hint = f"Did you mean {match}? " if match else ""
    raise UserError(f"{path}: no such config. {hint}Use a YAML file, or a shipped config: {', '.join(names) or 'none'}")


def _defaults() -> dict[str, Any]:
    """Default values, so that `${data.batch_size}` works if a file does not set it."""
    defaults: dict[str, Any] = {}
    for key, model in SECTIONS.items():
        values = {
            name: list(field.default) if isinstance(field.default, tuple) else field.default
            for name, field in model.model_fields.items()
            if not field.is_required() and field.default_factory is None
        }
        if key == ():
            defaults.update(values)
        elif model in (Data, Train, Evaluation):
            defaults[str(key[0])] = values
    return defaults
