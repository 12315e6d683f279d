"""The settings of an experiment: the schema of its YAML, and `load`, which reports all errors at once.

More than 350 lines, because it contains all settings with the descriptions that `wcord config explain` and
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
from pipeline.config.shipped import SHIPPED

IN_PYTHON = "python"
"""Replaces shards and modality in the config of a run of `wcord.distill`."""

AUTO = "auto"
"""The `teacher.cache` that training fills itself."""

Component = dict[str, Any]
"""The `name` of a class, and its keywords."""


class Section(BaseModel):
    """A section of a config. Unknown keys, wrong types, NaN and infinity are rejected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Text = Annotated[str, Field(min_length=1)]


class SourceSettings(Section):
    """One dataset of a mixture."""

    path: Text = Field(description="A packed or indexed folder, or existing WebDataset shards.")
    weight: float = Field(default=1.0, gt=0, description="Relative share of the samples; weights need not sum to 1.")
    fields: dict[str, Text | list[Text]] = Field(
        default={}, description="For existing WebDataset shards: field -> file extensions of its members."
    )
    label: Text = Field(default="label", description="The label to predict.")
    classes: list[Text] | Text = Field(
        default=[], description="Class names of this dataset, if its shards contain indices."
    )
    names: dict[Text, Text] = Field(
        default={}, description="Class name in this dataset -> class name in the first dataset, where they differ."
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
    """The training data, and how batches are made from it."""

    shards: Text | Annotated[list[Text | SourceSettings], Field(min_length=1)] = Field(
        description="The dataset: a packed or indexed folder, or existing WebDataset shards (a folder, glob, tar "
        "or pattern such as s3://bucket/{000..399}.tar), or a list of these. A list with {path: …, weight: …} is a "
        "mixture, of which only the first dataset is used for evaluation.",
    )
    sampling: Literal["once", "with_replacement"] = Field(
        default="once",
        description="once: every sample of a dataset appears once per pass. with_replacement: whole shards are drawn "
        "at random, with replacement.",
    )
    epoch_samples: int | None = Field(
        default=None,
        gt=0,
        description="Samples per epoch for a mixture or for sampling with replacement; null means the size of the "
        "data.",
    )
    fields: dict[str, Text | list[Text]] = Field(
        default={},
        description="For existing WebDataset shards: field -> file extensions of its members, such as "
        "{rgb: [jpg, png], text: txt}. Common extensions are detected.",
    )
    classes: list[Text] | Text = Field(
        default=[],
        description="Class names in order, or a text file with one name per line, if the shards contain class indices.",
    )
    join: list[Text] = Field(
        default=[],
        description="Folders of other packed datasets, whose fields are added to the samples with the same keys.",
    )
    label: str = Field(
        default="label",
        min_length=1,
        description="The label to predict: a key of `classes` in dataset.json; a mask means segmentation. For existing "
        "WebDataset shards: a member such as cls, or a value in a JSON member: json:path.to.value.",
    )
    label_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Fraction of training samples whose label is used; the other labels are hidden. Each sample is "
        "chosen independently, by a hash of its key and `seed`, so the number per class varies. Runs with the same "
        "seed, such as a student and its baseline, use the same labels.",
    )
    stages: list[Text] = Field(
        default=[],
        description="Your own functions (package.module:name) that take and yield samples, like webdataset stages. "
        "They can change or drop samples.",
    )
    batch_size: int = Field(default=64, gt=0, description="Samples per step over all processes (global batch size).")
    workers: int = Field(
        default=2,
        ge=0,
        description="Data loader workers per training process; 0 loads the data in the training process itself.",
    )
    shuffle: int = Field(
        default=2000, ge=0, description="Size of the shuffle buffer in samples; 0 keeps the order of the shards."
    )
    crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = Field(
        default=(1.0, 1.0),
        strict=False,
        description="Range of the area of the random crop, relative to the image. All modalities of a sample get the "
        "same crop.",
    )
    max_faulty: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Maximum tolerated fraction of unreadable samples, which are skipped, counted and listed. With 0, "
        "the first unreadable sample ends the run.",
    )
    max_pixels: int = Field(
        default=25_000_000,
        gt=0,
        le=100_000_000,
        description="Maximum number of pixels of an image; larger images count as unreadable. A pixel of a PNG with "
        "16-bit RGBA counts twice. Decoding takes up to 12 bytes per pixel in each worker.",
    )
    unpaired: Literal["error", "skip", "keep"] = Field(
        default="error",
        description="What to do with samples that lack a modality. error: end the run. skip: skip them. keep: use "
        "those that lack only the teacher's modality, for losses that need no teacher; skip the others.",
    )
    pairs: Literal["correct", "noisy"] = Field(
        default="correct",
        description="Whether the two sides of each sample match. noisy: some do not, as with captions from the web or "
        "unsynchronised cameras. The run then estimates which ones, leaves them out of the losses that need the "
        "teacher, and lists all pairs in pairs.jsonl.",
    )
    pad: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(gt=0)]] | None = Field(
        default=None,
        strict=False,
        description="Random shift of the zero-padded image (replaces `crop`), the same for all modalities. [p, n] "
        "shifts by up to p pixels at an image size of n. For CIFAR: [4, 32].",
    )
    flip: bool = Field(default=False, description="Random horizontal flip, the same for all modalities of a sample.")
    in_memory: bool = Field(
        default=False,
        description="Keep the decoded training set in device memory and augment it there. For small photos; requires "
        "rgb with jitter 0, pad and flip.",
    )

    @property
    def mixed(self) -> bool:
        """Whether samples are drawn from a mixture or with replacement, instead of each once per epoch."""
        return self.sampling == "with_replacement" or len(self.sources) > 1

    @property
    def sources(self) -> list[SourceSettings]:
        """The dataset, or the datasets of a mixture. A list of plain paths is a single dataset, as in webdataset."""
        given = [self.shards] if isinstance(self.shards, str) else self.shards
        if all(isinstance(one, str) for one in given):
            given = ["::".join(map(str, given))]
        return [self._plain(one) if isinstance(one, str) else one for one in given]

    def _plain(self, path: str) -> SourceSettings:
        """A dataset that is specified by its path only: the section supplies its other settings."""
        return SourceSettings(path=path, label=self.label, fields=self.fields, classes=self.classes)

    @property
    def address(self) -> str:
        """Path or URL of the dataset, or of the first one of a mixture."""
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
            raise ValueError("crop and pad cannot be combined: set `crop: [1, 1]` or `pad: null`")
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
        description="Name of an encoder for this modality, or {name: ..., keywords}."
    )

    @model_validator(mode="after")
    def _as_many(self) -> NetworkSettings:
        _check_as_many(self.modality, self.encoder)
        return self


class Student(NetworkSettings):
    """The network to train."""

    init_from: Text | None = Field(
        default=None,
        description="Run folder whose encoder weights initialise the student, e.g. an RGB teacher with the same "
        "architecture. The first convolution is adapted to the student's input channels.",
    )


class ZeroShot(Section):
    """Class names for a teacher with a text tower; they replace a classification head."""

    template: str = Field(default="a photo of a {}", description="Prompt template; {} is replaced by the class name.")
    names: Annotated[list[Text], Field(min_length=2)] | None = Field(
        default=None,
        description="Readable class names in the order of the dataset's classes. If the dataset has no classes, these "
        "are the classes.",
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
        description="Run folder of a trained network, or the name of an exported one on the Hugging Face Hub "
        "(you/name); it determines modality and encoder. With a list (ensemble), features are concatenated and class "
        "probabilities averaged.",
    )
    modality: Component | list[Component] | None = Field(
        default=None, description="Name of the modality, or {name: ..., keywords}; or a list of them."
    )
    encoder: Component | list[Component] | None = Field(
        default=None, description="Name of a pretrained encoder, or {name: ..., keywords}; or a list of them."
    )

    zero_shot: ZeroShot | None = Field(
        default=None,
        description="Zero-shot classification by class names, for an encoder with a text tower such as CLIP.",
    )
    cache: Annotated[str, Field(pattern=r"^\w[\w-]*$")] | None = Field(
        default=None,
        description="Name of the teacher's feature cache, which `wcord cache` writes to the dataset folder (for "
        "existing shards: to the index folder or, without an index, to $WCORD_CACHE). Training reads the cached "
        "features instead of running the teacher. auto: training fills the cache itself, in its first epoch.",
    )
    views: int = Field(
        default=1, gt=0, description="Augmented views per sample in the cache; successive epochs cycle through them."
    )
    cache_dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Data type of the cache.")

    @property
    def fills_cache(self) -> bool:
        """Whether training fills the cache in its first epoch."""
        return self.cache == AUTO

    @property
    def named_cache(self) -> str | None:
        """Name of a cache that must exist before training; None if there is none."""
        return None if self.fills_cache else self.cache

    @model_validator(mode="after")
    def _either(self) -> Teacher:
        if self.run is not None and (self.modality or self.encoder):
            raise ValueError(
                "`run` already determines modality and encoder; remove either `run`, or `modality` and `encoder`"
            )
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
    """Learning rate factors of the student's parts, e.g. to fine-tune a pretrained encoder."""

    encoder: float = Field(default=1.0, gt=0, description="Learning rate factor for the student's encoder.")
    head: float = Field(default=1.0, gt=0, description="Learning rate factor for the student's head.")
    losses: float = Field(
        default=1.0, gt=0, description="Learning rate factor for the projections and critics of the losses."
    )


class Train(Section):
    """Duration and optimisation of the training."""

    steps: int | None = Field(default=None, gt=0, description="Optimiser steps.")
    epochs: int | None = Field(default=None, gt=0, description="Passes over the training set; an alternative to steps.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak learning rate, after the warmup.")
    learning_rate_factors: LearningRateFactors = Field(
        default_factory=LearningRateFactors, description="Learning rate factors of the student's parts."
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Layer-wise learning rate decay: each layer of the encoder gets this factor times the learning "
        "rate of the next one, e.g. 0.75 to fine-tune a transformer; 1 disables it.",
    )
    schedule: Literal["cosine", "step"] = Field(
        default="cosine",
        description="After the warmup: cosine decay to 0, or multiplication by 0.1 after each milestone.",
    )
    milestones: list[Annotated[int, Field(gt=0)]] = Field(
        default=[],
        description="Epochs after which `schedule: step` multiplies the learning rate by 0.1, e.g. [150, 180].",
    )
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="AdamW, or SGD with momentum 0.9.")
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay.")
    decay_vectors: bool = Field(
        default=False,
        description="Apply weight decay also to biases and normalisation layers, as in the published CIFAR tables. The "
        "temperature, scale and bias of a contrastive loss are always exempt.",
    )
    warmup: int = Field(default=100, ge=0, description="Steps of linear warmup.")
    clip: float | None = Field(default=5.0, gt=0, description="Maximum gradient norm; null disables clipping.")
    guard: bool = Field(
        default=True,
        description="Reduce the weight of a loss that makes the student collapse; false only logs a warning.",
    )
    micro_batch: int | None = Field(
        default=None,
        gt=0,
        description="Micro-batch size per process. Losses are still computed on the full batch (gradient caching). "
        "null disables micro-batches.",
    )
    accumulate: int = Field(
        default=1,
        gt=0,
        description="Number of parts that a batch is divided into (gradient accumulation). Only for losses that do not "
        "compare samples; for all others, use micro_batch.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute the student's activations in the backward pass to save memory."
    )
    compile: bool = Field(
        default=False,
        description="Compile student and teacher with torch.compile, and on a GPU also the Sinkhorn iterations.",
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
        description="List of callbacks: ema, early_stopping, learning_rate_finder, or your own package.module:Class. "
        "With keywords: {name: ..., keywords}.",
    )
    checkpoint_every: Interval = Field(
        default=500, description="Steps between checkpoints, or epochs such as `2 epochs`."
    )
    timeout: float = Field(
        default=600.0,
        gt=0,
        le=1e7,
        description="Seconds that a process waits for the other processes or for its data loader before it fails.",
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
    """Which metrics are measured, on which samples, and which runs to compare with."""

    split: str = Field(
        default="test",
        min_length=1,
        description="Split that is evaluated. If `every` is set, use a validation split, since it selects `best/`.",
    )
    every: Literal[0] | Interval = Field(
        default=0,
        description="Steps between validations on `split` during training, or epochs such as `2 epochs`; 0 disables "
        "them.",
    )
    monitor: Literal["auto", "top1", "mIoU", "loss", "R@1", "R@5", "R@10"] = Field(
        default="auto",
        description="Validation metric that selects `best/`: top1, mIoU, loss, or R@k (recall at k when retrieving the "
        "matching teacher feature). auto: top1 (mIoU for masks) if the split has labels and a loss trains logits, else "
        "R@10.",
    )
    metrics: list[Text] = Field(
        default=[],
        description="Your own metrics: functions package.module:name that take (label, prediction), two NumPy arrays "
        "of class indices, and return a number, e.g. sklearn.metrics:balanced_accuracy_score.",
    )
    baselines: list[str] = Field(default=[], description="Run folders to compare with.")
    samples: int | None = Field(
        default=None,
        gt=0,
        description="Number of training samples for linear probes and k-NN (the first ones); null means all.",
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
        description="Loss terms: a mapping from a loss name (or package.module:Class) to its weight and keywords. "
        "Overriding a loss with null removes it.",
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
            raise ValueError("teacher.cache does not support a mixture of datasets; set it to null")
        return self

    @model_validator(mode="after")
    def _views_repeat(self) -> Config:
        if self.teacher is None or not self.teacher.fills_cache:
            return self
        if self.data.mixed:
            raise ValueError(
                "teacher.cache: auto requires epochs that contain each sample once; set data.sampling to once, or fill "
                "a cache with a name of your own by `wcord cache`"
            )
        whole = {"crop": (1.0, 1.0), "pad": None, "flip": False}
        varied = [f"data.{name}" for name, value in whole.items() if getattr(self.data, name) != value]
        if varied and self.teacher.views == 1:
            raise ValueError(
                f"teacher.cache: auto stores what the teacher sees in the first epoch, but {' and '.join(varied)} "
                f"change{'s' if len(varied) == 1 else ''} it in every epoch. Set teacher.views to the number of views "
                "of each sample to store and repeat, e.g. 4, or disable this augmentation"
            )
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
                        f"run: is the same folder as {key} ({folder}), which this run would overwrite; choose another "
                        "`run`"
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
        UserError: The config is invalid, or belongs to a run of `wcord.distill`. The message has one line per error,
            with key, expected value, and line or override.
    """
    return _load(path, overrides, frozenset())


def _load(path: str | Path, overrides: Sequence[str], texts: AbstractSet[Key]) -> Config:
    document = Document(_find(path), overrides, _defaults(), texts)
    check_format(document.data.get("format"), path)
    if made_in_python(document.data):
        raise UserError(
            f"{path}: is the config of a wcord.distill run. Its data and modules exist only in the calling program, so "
            "this command cannot build them. To evaluate the student, pass `validation` and `metrics` to wcord.distill."
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
    """Whether plain data is the config of a run of `wcord.distill`, which does not contain its data and modules."""
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
    """Default values. With these, `${data.batch_size}` works even if a file does not set it."""
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
