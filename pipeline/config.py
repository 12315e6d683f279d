"""What an experiment consists of: the schema of its YAML, and `load`, which names every fault at once.

Over 300 lines: every setting stands here with the words of `wcord config explain` and docs/config-reference.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.components import check_components
from pipeline.configfile import Document, Key, dump
from pipeline.errors import UserError
from pipeline.explain import explain, near
from pipeline.run_format import FORMAT, check_format

SHIPPED = next(
    (folder for parent in Path(__file__).parents[:2] if (folder := parent / "configs").is_dir()),
    Path(__file__).parent / "configs",
)
"""The folder of the shipped configs: inside an installed package, beside the packages in a checkout."""

Component = dict[str, Any]
"""`name` and the keywords that the class of that name is built with."""


class Section(BaseModel):
    """A part of a config: unknown keys, other types, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Section):
    """What the student is trained on, and how samples become batches."""

    shards: str = Field(min_length=1, description="Folder of the packed data set, with its dataset.json.")
    join: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[],
        description="Folders of other packed data sets; they complete the samples with what has the same key.",
    )
    label: str = Field(
        default="label",
        min_length=1,
        description="Which label of dataset.json's classes is the task; a mask's is segmentation.",
    )
    labels: float = Field(default=1.0, gt=0, le=1, description="Fraction of training samples whose label is seen.")
    batch_size: int = Field(default=64, gt=0, description="Samples a step, over all processes.")
    workers: int = Field(default=2, ge=0, description="Loader processes for each training process; 0 loads in it.")
    shuffle: int = Field(
        default=2000, ge=0, description="Samples in the shuffle buffer; 0 keeps the order of the shards."
    )
    crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = Field(
        default=(1.0, 1.0),
        strict=False,
        description="Range of the random crop's area, shared by all modalities of a sample.",
    )
    max_faulty: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Largest fraction of samples that may be unreadable: they are skipped, counted and listed. 0: the "
        "first one ends the run.",
    )
    unpaired: Literal["error", "skip", "keep"] = Field(
        default="error",
        description="Of samples that lack a modality: error; skip them; or keep those that lack only the teacher's for "
        "the losses that need no teacher.",
    )
    pad: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(gt=0)]] | None = Field(
        default=None,
        strict=False,
        description="Random shift, shared like the crop and instead of it: [p, n] is by up to p of n pixels, and what "
        "it uncovers is black: a crop of the padded image. CIFAR's is [4, 32].",
    )
    flip: bool = Field(default=False, description="Mirror half of the samples, all modalities of a sample alike.")
    in_memory: bool = Field(
        default=False,
        description="Hold the training set on the device, decoded, and augment it there: for small photos, rgb with "
        "jitter 0, with pad and flip.",
    )

    @field_validator("crop")
    @classmethod
    def _ordered(cls, crop: tuple[float, float]) -> tuple[float, float]:
        if crop[0] > crop[1]:
            raise ValueError("must be [smallest, largest]")
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
            plain = {"join": [], "max_faulty": 0.0, "unpaired": "error", "crop": (1.0, 1.0)}
            if streamed := [name for name, value in plain.items() if getattr(self, name) != value]:
                raise ValueError(f"in_memory cannot be together with {' and '.join(streamed)}: set it to false")
        return self


class Network(Section):
    """A modality and the encoder that reads it; or a list of each, for a network that sees several."""

    modality: Component | list[Component] = Field(description="Name of the modality, or {name: ..., its own keywords}.")
    encoder: Component | list[Component] = Field(
        description="Name of one of the modality's encoders, or {name: ..., its keywords}."
    )

    @model_validator(mode="after")
    def _as_many(self) -> Network:
        _check_as_many(self.modality, self.encoder)
        return self


class ZeroShot(Section):
    """What a teacher with a text tower reads of each class, in place of a head."""

    template: str = Field(default="a photo of a {}", description="A sentence; {} becomes the name of the class.")
    names: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)] | None = Field(
        default=None,
        description="The classes in words, in the data set's order; where it has no classes, they are these.",
    )

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError("must have one {}, where the name of the class is put")
        return template

    @field_validator("names")
    @classmethod
    def _distinct(cls, names: list[str] | None) -> list[str] | None:
        if names and len(set(names)) < len(names):
            raise ValueError("must differ from each other")
        return names


class Teacher(Section):
    """The frozen network that the student learns from: one trained here, or one with pretrained weights."""

    run: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=2)] | None = Field(
        default=None,
        description="Run folder of a trained network; brings modality and encoder. Of several, features are joined and "
        "class probabilities averaged.",
    )
    modality: Component | list[Component] | None = Field(
        default=None, description="Name of the modality, or {name: ..., its own keywords}; or a list of them."
    )
    encoder: Component | list[Component] | None = Field(
        default=None, description="Name of a pretrained encoder, or {name: ..., its keywords}; or a list of them."
    )

    zero_shot: ZeroShot | None = Field(
        default=None,
        description="Class probabilities from the names of the classes, by an encoder with a text tower, as CLIP.",
    )
    cache: Annotated[str, Field(pattern=r"^\w[\w-]*$")] | None = Field(
        default=None,
        description="Name under which `wcord cache` stores the teacher's features beside the shards; training then "
        "reads them and does not run the teacher.",
    )
    views: int = Field(default=1, gt=0, description="Augmented views of each sample in the cache; epochs take turns.")
    cache_dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Number format in the cache.")

    @model_validator(mode="after")
    def _either(self) -> Teacher:
        if self.run is not None and (self.modality or self.encoder):
            raise ValueError("has a run, which brings its own modality and encoder: remove those, or the run")
        if self.run is None and not (self.modality and self.encoder):
            raise ValueError("needs `run: <run folder>`, or else both `modality:` and `encoder:`")
        if self.zero_shot and not isinstance(self.encoder, dict):
            raise ValueError("zero_shot needs one pretrained encoder with a text tower, not a run or several encoders")
        _check_as_many(self.modality, self.encoder)
        return self


def _check_as_many(modality: Any, encoder: Any) -> None:
    if isinstance(modality, list) != isinstance(encoder, list) or (
        isinstance(modality, list) and (len(modality) != len(encoder) or len(modality) < 2)
    ):
        raise ValueError("a list of modalities needs a list of as many encoders, two at least")


class Train(Section):
    """How long, and how, the student is trained."""

    steps: int | None = Field(default=None, gt=0, description="Optimiser steps.")
    epochs: int | None = Field(default=None, gt=0, description="Passes over the training set, instead of steps.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Learning rate at its peak, after the warmup.")
    schedule: Literal["cosine", "step"] = Field(
        default="cosine", description="After the warmup: half a cosine to 0, or a tenth after each milestone."
    )
    milestones: list[Annotated[int, Field(gt=0)]] = Field(
        default=[], description="Epochs after which `schedule: step` divides the learning rate by 10, e.g. [150, 180]."
    )
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="AdamW, or SGD with momentum.")
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay.")
    decay_vectors: bool = Field(
        default=False,
        description="Decay biases, norms and temperatures as well: the protocol of the published CIFAR tables.",
    )
    warmup: int = Field(default=100, ge=0, description="Steps of linear warmup.")
    clip: float | None = Field(default=5.0, gt=0, description="Largest norm of the gradient; null for any.")
    micro_batch: int | None = Field(
        default=None,
        gt=0,
        description="Samples of each process that the networks hold at a time; the losses see the whole batch all the "
        "same (gradient caching). null: all at once.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Make the student's activations again in the backward pass instead of keeping them."
    )
    compile: bool = Field(
        default=False, description="Compile student and teacher by torch.compile, on a GPU transport's iterations too."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Number format; auto asks the device."
    )
    log_every: int = Field(default=20, gt=0, description="Steps between lines of metrics.jsonl.")
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        default=["tensorboard"],
        description="Where the lines of metrics.jsonl are shown; all but tensorboard: `pip install 'wcord[track]'`.",
    )
    checkpoint_every: int = Field(default=500, gt=0, description="Steps between checkpoints.")
    timeout: float = Field(
        default=600.0,
        gt=0,
        le=1e7,
        description="Seconds that a process waits for the others before it ends with an error.",
    )
    keep: int = Field(default=2, gt=0, description="How many of the newest checkpoints stay.")

    @model_validator(mode="after")
    def _once(self) -> Train:
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "compile and gradient_checkpointing do not go together: torch cannot compile blocks whose "
                "running statistics are put back; set one of them to false"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs either `steps` or `epochs`; where another file sets one, set that to null")
        if (self.schedule == "step") != bool(self.milestones) or self.milestones != sorted(set(self.milestones)):
            raise ValueError("`schedule: step` and ascending `milestones` need each other")
        if self.epochs is not None and any(milestone >= self.epochs for milestone in self.milestones):
            raise ValueError(f"milestones: {self.milestones} must be below epochs: {self.epochs}")
        return self


class Evaluation(Section):
    """What is measured, on which samples, against what."""

    split: str = Field(default="test", min_length=1, description="Split of the data set that is measured on.")
    every: int = Field(
        default=0, ge=0, description="Steps between top-1 checks on that split during training; 0 is never."
    )
    baselines: list[str] = Field(default=[], description="Run folders to compare with.")
    samples: int | None = Field(
        default=None, gt=0, description="Training samples that probes and k-NN learn from, the first ones; null: all."
    )
    neighbours: int = Field(default=10, gt=0, description="k of the k-nearest-neighbour classifier.")


class Config(Section):
    """One experiment."""

    run: str = Field(min_length=1, description="Run folder, e.g. runs/depth_wcord; all results go there.")
    seed: int = Field(default=0, ge=0, le=10**18, description="Seed of everything random.")
    data: Data = Field(description="What the student is trained on.")
    teacher: Teacher | None = Field(
        default=None, description="The frozen network that the student learns from; null for none."
    )
    student: Network = Field(description="The network that is trained.")
    losses: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="Terms of the objective: name, or package.module:Class, to weight and keywords; an override to "
        "null takes one away.",
    )
    train: Train = Field(description="The optimisation.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="What is measured.")
    format: int = Field(default=FORMAT, description="Of a run folder, where the program writes it: how to read it.")

    @model_validator(mode="after")
    def _not_cached(self) -> Config:
        if self.data.in_memory and self.teacher is not None and self.teacher.cache is not None:
            raise ValueError("data.in_memory cannot be together with teacher.cache: set one of them to false or null")
        return self

    @model_validator(mode="after")
    def _own_folder(self) -> Config:
        read = {
            "teacher.run": self.teacher.run if self.teacher else None,
            "evaluation.baselines": self.evaluation.baselines,
        }
        for key, written in read.items():
            for folder in [written] if isinstance(written, str) else written or []:
                if Path(folder).resolve() == Path(self.run).resolve():
                    raise ValueError(
                        f"run: is also {key} ({folder}), which training would write over; choose another `run`"
                    )
        return self

    def to_yaml(self) -> str:
        """The whole config, defaults included, as YAML that `load` reads back to an equal one."""
        return dump(self.model_dump(mode="json"))


SECTIONS: dict[Key, type[Section]] = {
    (): Config,
    ("data",): Data,
    ("teacher",): Teacher,
    ("teacher", "zero_shot"): ZeroShot,
    ("student",): Network,
    ("train",): Train,
    ("evaluation",): Evaluation,
}


def shipped() -> list[str]:
    """The names of the configs that come with the program."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or a shipped config by name, with overrides such as `train.steps=100`.

    Raises UserError naming every fault, a line each: key, what was expected, and in which line or override.
    """
    document = Document(_find(path), overrides, _defaults())
    check_format(document.data.get("format"), path)
    data = check_components(document)
    config = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        explain(document, error, (), {key: list(model.model_fields) for key, model in SECTIONS.items()})
    document.check()
    assert config is not None
    return config


def _find(path: str | Path) -> Path:
    given = Path(path)
    if given.is_file():
        return given
    if given.name == str(path) and (named := SHIPPED / f"{given.name.removesuffix('.yaml')}.yaml").is_file():
        return named
    names = shipped()
    match = near(given.stem, names)
    hint = f"Did you mean {match}? " if match else ""
    raise UserError(
        f"{path}: no such config. {hint}Give a YAML file, or a shipped config: {', '.join(names) or 'none'}"
    )


def _defaults() -> dict[str, Any]:
    """What a file may leave out, so that `${data.batch_size}` finds it."""
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
