"""Configs: every form of fault with its exact place, overrides, references, and the way back to YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import TypedDict

import losses
import modalities
from losses import Dims, Loss
from modalities import Encoder, Modality
from pipeline.common.errors import UserError
from pipeline.config import Config, load
from pipeline.config import settings as config
from pipeline.config.components import parameters
from pipeline.config.outline import outline
from pipeline.config.settings import SECTIONS, shipped


class Transport(Loss):
    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        epsilon: Annotated[float, Gt(0)],
        anchor: Annotated[float, Ge(0), Lt(1)] = 0.2,
        space: Literal["teacher", "shared"] = "teacher",
        range: tuple[float, float] = (0.0, 1.0),
        exclude: tuple[Literal["label", "group"], ...] = (),
        queue: Annotated[int, Le(99)] | None = None,
        either: int | str = 1,
        learn: bool = True,
        **anything: Any,
    ) -> None:
        super().__init__()


DEFAULTS = {
    "anchor": 0.2,
    "space": "teacher",
    "range": (0.0, 1.0),
    "exclude": (),
    "queue": None,
    "either": 1,
    "learn": True,
}


class Supervised(Loss):
    needs_teacher = False


class Banked(Loss):
    needs_index = True

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        samples: int | None = None,
        scale: float = 4,
        pair: list[int] = (1, 2),  # type: ignore[assignment]
        untyped: Any = (1, 2),
        limit: float = float("inf"),
        refused: Annotated[float, Gt(0)] = 0.0,
        made: Any = object,
    ) -> None:
        super().__init__()


class Net(Encoder):
    def __init__(self, channels: int, *, width: Annotated[int, Gt(0)] = 8, weights: str = "random") -> None:
        raise AssertionError("a config is checked without building anything")


@dataclass(frozen=True)
class Sonar(Modality):  # type: ignore[misc]
    name: ClassVar[str] = "sonar"
    encoders: ClassVar[Mapping[str, type[Encoder]]] = {"net": Net}
    near: Annotated[float, Ge(0)] = 0.5
    bands: tuple[int, ...] = (1,)


@pytest.fixture
def _components(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, a modality and an encoder that the tests know, in place of the real ones."""
    monkeypatch.setattr(outline("losses"), "LOSSES", {"supervised": Supervised, "transport": Transport})
    for module in modalities, outline("modalities"):  # the first one names the known ones in messages
        monkeypatch.setitem(module.MODALITIES, "sonar", Sonar)


LENGTH = "requires either `steps` or `epochs`; set the other one to null"
EXPERIMENT = """\
run: runs/sonar_${seed}
data:
  shards: shards/sea
  batch_size: 32
teacher:
  run: runs/teacher
student:
  modality: sonar
  encoder: {name: net, width: 4}
losses:
  supervised:
  transport:
    weight: 2
    epsilon: 1e-1
train:
  steps: 1000
  learning_rate: 1e-3
"""
Read = Callable[..., Config]


@pytest.fixture
def read(_components: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Load the text as x.yaml, with pairs of its text replaced, and overrides."""
    monkeypatch.chdir(tmp_path)

    def read(
        *changes: tuple[str, str], overrides: Sequence[str] = (), text: str = EXPERIMENT, name: str = "x.yaml"
    ) -> Config:
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        Path(name).write_text(text, encoding="utf-8")
        return load(name, overrides)

    return read


@pytest.fixture
def faults(read: Read) -> Callable[..., list[str]]:
    def faults(*changes: tuple[str, str], **more: Any) -> list[str]:
        with pytest.raises(UserError) as caught:
            read(*changes, **more)
        return str(caught.value).split("\n")

    return faults


Faults = Callable[..., list[str]]


def test_a_good_file_has_its_values_and_the_defaults(read: Read) -> None:
    experiment = read()
    assert experiment.run == "runs/sonar_0"
    assert experiment.data.batch_size == 32
    assert experiment.data.crop == (1.0, 1.0)
    assert experiment.train.learning_rate == 1e-3
    assert experiment.train.optimizer == "adamw"
    assert experiment.teacher is not None
    assert experiment.teacher.run == "runs/teacher"
    assert experiment.student.modality == {"name": "sonar"}
    assert experiment.student.encoder == {"name": "net", "width": 4}
    assert experiment.losses == {"supervised": {"weight": 1.0}, "transport": DEFAULTS | {"weight": 2.0, "epsilon": 0.1}}
    assert isinstance(experiment.losses["transport"]["weight"], float)
    assert experiment.evaluation.split == "test"


def test_a_config_cannot_be_changed(read: Read) -> None:
    with pytest.raises(ValidationError):
        read().train.steps = 5  # type: ignore[misc]


# fmt: off
FAULTS = [
    ("epsilon: 1e-1", "epsilon: -1", 14, "losses.transport.epsilon: must be above 0, got -1"),
    ("weight: 2", "weight: -2", 13, "losses.transport.weight: must be at least 0, got -2"),
    ("weight: 2", "weight: heavy", 13, 'losses.transport.weight: must be a number, got "heavy"'),
    ("weight: 2", "anchor: 1.0", 13, "losses.transport.anchor: must be below 1, got 1.0"),
    ("weight: 2", "queue: 100", 13, "losses.transport.queue: must be at most 99, got 100"),
    ("weight: 2", "learn: 1", 13, "losses.transport.learn: must be true or false, got 1"),
    ("weight: 2", "space: mine", 13, "losses.transport.space: must be 'teacher' or 'shared', got \"mine\""),
    ("weight: 2", "range: [1]", 13, "losses.transport.range: must have 2 or more entries, got [1]"),
    ("weight: 2", "range: [1, 2, 3]", 13,
     "losses.transport.range: must not have more entries than 2, got [1, 2, 3]"),
    ("weight: 2", "exclude:\n      - label\n      - all", 15,
     "losses.transport.exclude[1]: must be 'label' or 'group', got \"all\""),
    ("weight: 2", "either: [1]", 13,
     "losses.transport.either: must be an integer or must be a string, got [1]"),
    ("    epsilon: 1e-1\n", "", 12, "losses.transport.epsilon: is required and missing"),
    ("  supervised:", "  supervised: 5", 11, "losses.supervised: must be a mapping `key: value`, got 5"),
    ("  transport:\n", "  transprot:\n", 12, "losses.transprot: unknown key; did you mean transport?"),
    ("  supervised:", "  hinge:", 11,
     "losses.hinge: unknown key; allowed are supervised, transport, or your own package.module:Class"),
    ("weight: 2", "wieght: 2", 13, "losses.transport.wieght: unknown key; did you mean weight?"),
    ("weight: 2", "student: 2", 13,
     "losses.transport.student: unknown key; allowed are weight, schedule, epsilon, anchor, space, range, exclude, "
     "queue, either, learn"),
    ("  steps: 1000\n", "", 15, f"train: {LENGTH}"),
    ("steps: 1000", "steps: 1000\n  epochs: 3", 15, f"train: {LENGTH}"),
    ("steps: 1000", "steps:", 15, f"train: {LENGTH}"),
    ("steps: 1000", "epochs: 0", 16, "train.epochs: must be above 0, got 0"),
    ("steps: 1000", "epochs: 9\n  schedule: step", 15,
     "train: `schedule: step` requires ascending `milestones`, and vice versa"),
    ("steps: 1000", "epochs: 9\n  milestones: [3]", 15,
     "train: `schedule: step` requires ascending `milestones`, and vice versa"),
    ("steps: 1000", "epochs: 9\n  schedule: step\n  milestones: [5, 3]", 15,
     "train: `schedule: step` requires ascending `milestones`, and vice versa"),
    ("steps: 1000", "epochs: 9\n  schedule: step\n  milestones: [3, 9]", 15,
     "train: milestones: [3, 9] must be below epochs: 9"),
    ("steps: 1000", "steps: 0", 16, "train.steps: must be above 0, got 0"),
    ("steps: 1000", "steps: 10.5", 16, "train.steps: must be an integer, got 10.5"),
    ("steps: 1000", "steps: true", 16, "train.steps: must be an integer, got true"),
    ("steps: 1000", "steps: '1000'", 16, 'train.steps: must be an integer, got "1000"'),
    ("1e-3", ".nan", 17, "train.learning_rate: must be a finite number, got NaN"),
    ("1e-3", "0.0", 17, "train.learning_rate: must be above 0, got 0.0"),
    ("learning_rate: 1e-3", "optimizer: adam", 17, "train.optimizer: must be 'adamw' or 'sgd', got \"adam\""),
    ("learning_rate: 1e-3", "batch_size: 8", 17,
     "train.batch_size: unknown key; did you mean data.batch_size?"),
    ("learning_rate: 1e-3", "zzz: 8", 17,
     "train.zzz: unknown key; allowed are steps, epochs, learning_rate, learning_rate_factors, layer_decay, schedule, "
     "milestones, optimizer, weight_decay, decay_vectors, warmup, clip, guard, micro_batch, accumulate, "
     "gradient_checkpointing, compile, precision, log_every, trackers, callbacks, checkpoint_every, timeout, "
     "keep_checkpoints"),
    ("batch_size: 32", "pad: [4, 4]", 2, "data: pad: must be [p, n] with p below n: a shift by up to p of n pixels"),
    ("batch_size: 32", "pad: [-1, 4]", 4, "data.pad[0]: must be at least 0, got -1"),
    ("batch_size: 32", "pad: [4, 32]\n  crop: [0.5, 1]", 2,
     "data: crop and pad cannot be combined: set `crop: [1, 1]` or `pad: null`"),
    ("batch_size: 32", "flip: 1", 4, "data.flip: must be true or false, got 1"),
    ("batch_size: 32", "label_fraction: 0", 4, "data.label_fraction: must be above 0, got 0"),
    ("batch_size: 32", "label_fraction: 2", 4, "data.label_fraction: must be at most 1, got 2"),
    ("batch_size: 32", "label:", 4, "data.label: must be a string, got nothing"),
    ("batch_size: 32", "label: [2]", 4, "data.label: must be a string, got [2]"),
    ("batch_size: 32", "label: ''", 4, 'data.label: must not be empty, got ""'),
    ("batch_size: 32", "crop: 0.5", 4, "data.crop: must be a list, got 0.5"),
    ("batch_size: 32", "crop: [0.5]", 4, "data.crop: must have 2 or more entries, got [0.5]"),
    ("batch_size: 32", "crop: [0.9, 0.5]", 4, "data.crop: must be [minimum, maximum], got [0.9, 0.5]"),
    ("batch_size: 32", "crop: [0, 1]", 4, "data.crop[0]: must be above 0, got 0"),
    ("  modality: sonar\n", "", 7, "student.modality: is required and missing"),
    ("modality: sonar", "modality: 3", 8,
     'student.modality: must be a name, or {name: ..., settings}, got 3'),
    ("modality: sonar", "modality: [sonar, sonar]", 7,
     "student: a list of modalities requires a list of encoders of the same length, at least two"),
    ("modality: sonar", "modality: {near: 1}", 8,
     'student.modality: must be a name, or {name: ..., settings}, got {"near": 1}'),
    ("modality: sonar", "modality: {name: sonar, near: -1}", 8,
     "student.modality.near: must be at least 0, got -1"),
    ("modality: sonar", "modality:\n    name: sonar\n    fra: 2", 10,
     "student.modality.fra: unknown key; allowed are name, near, bands"),
    ("width: 4", "width: 0", 9, "student.encoder.width: must be above 0, got 0"),
    ("width: 4", "widht: 4", 9, "student.encoder.widht: unknown key; did you mean width?"),
    ("width: 4", "channels: 4", 9, "student.encoder.channels: unknown key; allowed are name, width, weights, freeze"),
    ("  run: runs/teacher", "  {}", 5,
     "teacher: requires `run: <run folder>`, or both `modality:` and `encoder:`"),
    ("  run: runs/teacher", "  run: runs/teacher\n  modality: sonar", 5,
     "teacher: `run` already determines modality and encoder; remove either `run`, or `modality` and `encoder`"),
    ("teacher:\n  run: runs/teacher\n", "", 10,
     "losses.transport: requires a teacher; add `teacher:`, or remove this loss"),
    ("run: runs/sonar_${seed}\n", "", 0, "run: is required and missing"),
    ("run: runs/sonar_${seed}", "run: {a: 5}", 1, 'run: must be a string, got {"a": 5}'),
    ("run: runs/sonar_${seed}", "run: r\nsede: 5", 2, "sede: unknown key; did you mean seed?"),
]
# fmt: on


@pytest.mark.parametrize(("old", "new", "line", "message"), FAULTS)
def test_one_fault_is_one_line_with_its_place(faults: Faults, old: str, new: str, line: int, message: str) -> None:
    place = f"x.yaml line {line}" if line else "x.yaml"
    assert faults((old, new)) == [f"{message} ({place})"]


@pytest.mark.parametrize("part", ["modality: sona", "encoder: nte"])
def test_unknown_modalities_and_encoders_have_near_misses(faults: Faults, part: str) -> None:
    key, name = part.split(": ")
    old = "modality: sonar" if key == "modality" else "encoder: {name: net, width: 4}"
    (bare,) = faults((old, part))
    line = 8 if key == "modality" else 9
    assert bare.startswith(f"student.{key}: ")
    assert bare.endswith(f"(x.yaml line {line})")
    assert ("sonar" if key == "modality" else "net") in bare
    (full,) = faults((old, f"{key}:\n    name: {name}"))
    assert full.startswith(f"student.{key}.name: ")
    assert full.endswith(f"(x.yaml line {line + 1})")


def test_all_faults_come_at_once_in_the_order_of_the_file_then_of_the_overrides(faults: Faults) -> None:
    found = faults(
        ("batch_size: 32", "batch_size: 0"),
        ("width: 4", "width: 0"),
        ("weight: 2", "wieght: 2"),
        ("${seed}", "${sede}"),
        ("  steps: 1000", "  steps: 5\n  steps: 6"),
        overrides=["train.clip=0", "nonsense", "seed=x"],
    )
    assert [line.split(": ")[0] for line in found] == [
        "run",
        "data.batch_size",
        "student.encoder.width",
        "losses.transport.wieght",
        "train.steps",
        "train.clip",
        "seed",
        'override "nonsense"',
    ]


def test_an_empty_file_names_all_that_is_required(faults: Faults) -> None:
    required = [f"{key}: is required and missing (x.yaml)" for key in ("run", "data.shards", "student", "losses")]
    assert sorted(faults(text="")) == sorted([*required, f"train: {LENGTH} (x.yaml)"])


def test_a_config_needs_a_loss(faults: Faults) -> None:
    text = EXPERIMENT[: EXPERIMENT.index("losses:")] + "losses: {}\ntrain: {steps: 1}\n"
    assert faults(text=text) == ["losses: must have 1 or more entries, got {} (x.yaml line 10)"]


# Overrides


def test_overrides_beat_the_file_and_the_last_beats_the_first(read: Read) -> None:
    experiment = read(
        overrides=[
            "train.steps=5",
            "train.steps=6",
            "seed=3",
            "train.learning_rate=2e-4",
            "data.crop=[0.5, 1]",
            "data.crop[1]=0.75",
            "losses.transport.epsilon=0.5",
            "losses[supervised].weight=3",
            "student.modality={name: sonar, bands: [1, 2]}",
            "evaluation.baselines=[runs/a, runs/b]",
            "data.label=colour=red",
            "data.flip=yes",
        ]
    )
    assert (experiment.train.steps, experiment.seed, experiment.run) == (6, 3, "runs/sonar_3")
    assert experiment.train.learning_rate == 2e-4
    assert experiment.data.crop == (0.5, 0.75)
    assert experiment.data.label == "colour=red"
    assert experiment.data.flip is True
    assert experiment.losses == {"supervised": {"weight": 3.0}, "transport": DEFAULTS | {"weight": 2.0, "epsilon": 0.5}}
    assert experiment.student.modality == {"name": "sonar", "bands": (1, 2)}
    assert experiment.evaluation.baselines == ["runs/a", "runs/b"]


def test_an_override_to_null_takes_a_loss_away(read: Read) -> None:
    experiment = read(overrides=["losses.transport=null"])
    assert list(experiment.losses) == ["supervised"]
    assert read(overrides=["teacher=null", "losses.transport="]).teacher is None  # nothing asks for one any more
    again = read(overrides=["losses.transport=null", "losses.transport.epsilon=1"])
    assert list(again.losses) == ["supervised", "transport"]
    with pytest.raises(UserError, match=r"losses.transprt: .*transport"):
        read(overrides=["losses.transprt=null"])


@pytest.mark.parametrize(
    ("key", "section"), [("teacher.run", "run: {}"), ("teacher.run", "run: [other, {}]"), ("evaluation.baselines", "")]
)
def test_a_run_does_not_replace_what_it_learns_from(make_config: Any, tmp_path: Path, key: str, section: str) -> None:
    folder = tmp_path / "a" / ".." / "run"
    path = make_config("run", f"teacher: {{{section.format(folder)}}}" if section else "")
    more = [] if section else [f"evaluation.baselines=[{folder}]"]
    with pytest.raises(UserError, match=rf"run: is the same folder as {key} .*choose another `run`"):
        load(path, more)
    assert load(path, [*more, f"run={tmp_path / 'other'}"]).run


def test_an_override_replaces_what_was_there(read: Read) -> None:
    experiment = read(overrides=["teacher=null", "losses={supervised: {}}"])
    assert experiment.teacher is None
    assert list(experiment.losses) == ["supervised"]
    assert read(overrides=["teacher=", "losses={supervised: }"]) == experiment


# fmt: off
FAULTS_OF_OVERRIDES = [
    ("data.workers=two", 'data.workers: must be an integer, got "two" (override data.workers=two)'),
    ("data.wrokers=2", "data.wrokers: unknown key; did you mean workers? (override data.wrokers=2)"),
    ("steps=2", "steps: unknown key; did you mean train.steps? (override steps=2)"),
    ("losses.transport={anchor: 3, epsilon: 1}",
     "losses.transport.anchor: must be below 1, got 3 (override losses.transport={anchor: 3, epsilon: 1})"),
    ("losses.transport={}",
     "losses.transport.epsilon: is required and missing (override losses.transport={})"),
    ("seed=\n'a\n b'", "seed: must be an integer, got \"a b\" (override seed=\\n'a\\n b')"),
    (f"seed={2**64}", f"seed: must be at most {10**18}, got {2**64} (override seed={2**64})"),
    ("train.timeout=1e300", "train.timeout: must be at most 10000000, got 1e+300 (override train.timeout=1e300)"),
    ("run.x=2", 'run: must be a string, got {"x": 2} (override run.x=2)'),
    ("data.crop[0]=2", "data.crop[0]: must be at most 1, got 2 (override data.crop[0]=2)"),
    ("data.crop[2]=1", 'override "data.crop[2]=1": data.crop[2] cannot be set'),
    ("data.crop.x=1", 'override "data.crop.x=1": data.crop.x cannot be set'),
    ("train.steps", 'override "train.steps": must be key=value, e.g. train.steps=1000'),
    ("=5", 'override "=5": must be key=value, e.g. train.steps=1000'),
    ("train..steps=5", 'override "train..steps=5": must be key=value, e.g. train.steps=1000'),
    ("losses.mine.py:Mine.weight=1",
     'override "losses.mine.py:Mine.weight=1": put the class in brackets: '
     'losses[package.module:Class].weight=1'),
    ("train.steps=100 # many",
     'train.steps: must be an integer, got "100 # many"; it contains a comment (#), which is not ignored; remove '
     "it (override train.steps=100 # many)"),
    ("evaluation.baselines=[a # b]",
     'evaluation.baselines: must be a list, got "[a # b]"; it is not readable YAML: line 1, column 8: '),
    ("data.workers=@2", 'data.workers: must be an integer, got "@2"; it is not readable YAML: line 1, column 1: '),
    ("data.crop=[0.5, # low\n 1]",
     'data.crop: must be a list, got "[0.5, # low\\n 1]"; it contains a comment (#), which is not ignored; remove it '
     "(override data.crop=[0.5, # low\\n 1])"),
    ("run=a\0b", 'override "run=a\\x00b": is not readable: '),
    ("run=", 'run: must not be empty, got "" (override run=)'),
    ("teacher.run=[a]",
     'teacher.run: must be a string or must have 2 or more entries, got ["a"] (override teacher.run=[a])'),
    ("run=${nope}",
     'run: refers to a missing key or to itself, got "${nope}" (override '
     'run=${nope})'),
]
# fmt: on


@pytest.mark.parametrize(("override", "message"), FAULTS_OF_OVERRIDES)
def test_faults_of_overrides_name_the_override(faults: Faults, override: str, message: str) -> None:
    (found,) = faults(overrides=[override])
    assert found == message if not message.endswith(": ") else found.startswith(message)


# Settings that are text


TEXTS = [
    "2024_01_05", "2024-01-05", "1e5", "007", "0x1f", "1_0", "on", "No", "true", "null", "~", ".inf", "12:30", "=", "-",
    "/data/set #2", "#2", "a: b", "C:\\runs: x", "key:", "[a", "[a, b]", "{a}", "{000..399}.tar", "@home", "!x", "*a",
    "&a b", "%d", "`x`", "'open", '"', "a 'b'", "? a", "- a", "| a", "> a", "--- a", "a, b", "é ☃", "a\\tb", "a\nb",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_an_override_of_a_text_is_that_text(read: Read, text: str) -> None:
    keys = ["run", "data.label", "data.shards", "teacher.cache", "student.encoder.weights"]
    keys = keys if text.isalnum() else keys[:2] + keys[4:]
    experiment = read(overrides=[f"{key}={text}" for key in keys])
    assert (experiment.run, experiment.data.label, experiment.student.encoder["weights"]) == (text, text, text)  # type: ignore[call-overload]
    if len(keys) > 3 and experiment.teacher:
        assert (experiment.data.shards, experiment.teacher.cache) == (text, None if text == "null" else text)
    assert config.load(_written(experiment)) == experiment


def _written(experiment: Config) -> Path:
    Path("again.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    return Path("again.yaml")


def test_overrides_are_text_wherever_text_is_the_only_choice_that_fits(read: Read) -> None:
    experiment = read(
        overrides=[
            "run='2024: #1'",
            "evaluation.baselines=[2024_01_05, on, a]",
            "data.classes=[0, 01, no]",
            "data.shards=[{path: 1_0, label: 2.0}, {path: b}]",
            "losses.transport.either=12",
            "teacher.cache=",
        ]
    )
    assert experiment.run == "2024: #1"
    assert experiment.evaluation.baselines == ["2024_01_05", "on", "a"]
    assert experiment.data.classes == ["0", "01", "no"]
    assert [(source.path, source.label) for source in experiment.data.sources] == [("1_0", "2.0"), ("b", "label")]
    assert experiment.losses["transport"]["either"] == 12
    assert experiment.teacher is not None
    assert experiment.teacher.cache is None


def test_a_text_in_a_file_is_what_is_written(read: Read) -> None:
    experiment = read(
        ("runs/sonar_${seed}", "2024_01_05"),
        ("batch_size: 32", "label: 1.0\n  classes: [yes, 007]\n  join: ['x_${run}']"),
        ("width: 4", "weights: 1e5"),
    )
    assert (experiment.run, experiment.data.label, experiment.data.classes) == ("2024_01_05", "1.0", ["yes", "007"])
    assert experiment.data.join == ["x_2024_01_05"]
    assert experiment.student.encoder == {"name": "net", "weights": "1e5"}


# References


def test_references_keep_the_type_and_reach_defaults(read: Read) -> None:
    experiment = read(
        ("batch_size: 32", "batch_size: 32\n  shuffle: ${.batch_size}"),
        ("learning_rate: 1e-3", "warmup: ${data.workers}\n  log_every: ${data.shuffle}"),
        ("${seed}", "${seed}_${train.optimizer}_${data.crop[0]}"),
        overrides=["seed=7"],
    )
    assert experiment.run == "runs/sonar_7_adamw_1.0"
    assert experiment.data.shuffle == experiment.train.log_every == 32
    assert experiment.train.warmup == 2


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "a_${oc.env:HOME,x}",
        "${ oc.env : HOME }",
        "${${seed}:HOME}",
        "${oc.decode:1}",
        "${",
        "\\${seed}",
    ],
)
def test_references_that_compute_or_read_the_environment_are_refused(faults: Faults, text: str) -> None:
    (found,) = faults(("runs/sonar_${seed}", f"'{text}'"))
    assert found.startswith("run: only ${key.sub} is supported")
    assert found.endswith("(x.yaml line 1)")


@pytest.mark.parametrize("text", ["${run}", "${data.label}"])
def test_references_in_a_circle_are_refused(faults: Faults, text: str) -> None:
    found = faults(("runs/sonar_${seed}", text), ("batch_size: 32", "label: ${run}"))
    assert found[0] == (f'run: refers to a missing key or to itself, got "{text}" (x.yaml line 1)')


# The file


def test_a_key_given_twice_names_both_lines(faults: Faults) -> None:
    assert faults(("  batch_size: 32", "  batch_size: 32\n  shards: other")) == [
        "data.shards: is set twice, in lines 3 and 5; keep one (x.yaml line 5)"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: [a\nseed: 1\n", "x.yaml: is not readable YAML: line 2, column 5: expected ',' or ']', but got ':'"),
        ("run: a\n  seed: 1\n", "x.yaml: is not readable YAML: line 2, column 7: mapping values are not allowed here"),
        ("run: a\n\tseed: 1\n", "x.yaml: is not readable YAML: line 2, column 1: found character '\\t'"),
        ("run: &a x\nseed: *a\n", "x.yaml: is not readable YAML: line 2, column 7: aliases (*name) are not supported"),
        ("run: !!python/object/apply:os.getcwd []\n", "x.yaml: is not readable YAML: line 1, column 6: "),
        ("run: !!python/name:os.system\n", "x.yaml: is not readable YAML: line 1, column 6: "),
        ("seed: !!int two\n", 'x.yaml: is not readable YAML: line 1, column 7: "two" does not match its tag'),
        ("[a, b]: 1\n", "x.yaml: is not readable YAML: line 1, column 1: a key must be plain text"),
        ("run: a\n---\nrun: b\n", "x.yaml: is not readable YAML: line 2, column 1: "),
        ("- run\n", 'x.yaml: must consist of lines `key: value`, got ["run"]'),
        ("run: " + "[" * 1000 + "\n", "x.yaml: is nested too deeply"),
        ("run: a\x00b\n", "x.yaml: is not readable: unacceptable character #x0000"),
    ],
)
def test_yaml_that_is_none_names_line_and_column(faults: Faults, text: str, message: str) -> None:
    (found,) = faults(text=text)
    assert found.startswith(message)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"run: \xff\n")
    with pytest.raises(UserError, match=r"x\.yaml: is not UTF-8 text \(byte 5\)"):
        load(path)


def test_dates_and_words_stay_text_where_text_is_expected(read: Read) -> None:
    assert read(("runs/sonar_${seed}", "2024-01-01")).run == "2024-01-01"


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.0e-3", "0.001", "+1e-3", ".1e-2", "1_0e-4"])
def test_numbers_in_every_notation_are_numbers(read: Read, number: str) -> None:
    assert read(("1e-3", number)).train.learning_rate == 1e-3


# Shipped configs


@pytest.fixture
def ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "sea_sonar.yaml").write_text(EXPERIMENT)
    (folder / "air.yaml").write_text(EXPERIMENT)
    (folder / "notes.txt").write_text("")
    monkeypatch.setattr(config, "SHIPPED", folder)


@pytest.mark.usefixtures("ships")
def test_shipped_configs_are_found_by_name(read: Read) -> None:
    assert shipped() == ["air", "sea_sonar"]
    assert load("sea_sonar") == load("sea_sonar.yaml") == load(Path("sea_sonar")) == read()


@pytest.mark.usefixtures("ships")
def test_a_file_comes_before_a_shipped_config(read: Read) -> None:
    assert read(overrides=["seed=1"], name="air.yaml").seed == 1
    Path("sea_sonar").mkdir()
    assert load("sea_sonar").seed == 0


@pytest.mark.usefixtures("ships")
@pytest.mark.parametrize("name", ["sea_sonra", "configs/sea_sonar.yaml"])
def test_a_missing_file_lists_the_shipped_configs(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load(name)
    assert str(caught.value) == (
        f"{name}: no such config. Did you mean sea_sonar? Use a YAML file, or a shipped config: air, sea_sonar"
    )


@pytest.mark.usefixtures("ships")
@pytest.mark.parametrize("name", ["../shipped/air", "air.txt", ""])
def test_a_name_is_no_path_into_the_shipped_configs(name: str, read: Read) -> None:
    with pytest.raises(UserError, match="no such config"):
        load(name)


# The way back


@pytest.mark.parametrize(
    "text",
    ["1e3", "1E-3", ".5e1", "12", "0x1f", "1_0", "1:30", "null", "~", "yes", "off", "2024-01-01", "a: b", " a ", "é",
     "#a", "- a", "a\nb", "=", "<<", "*a", "'", '"', "!a", "???x", "x" * 200 + " " + "y" * 200, "\\", "$seed", "{}"],
)  # fmt: skip
def test_text_of_any_look_comes_back(read: Read, text: str) -> None:
    experiment = read(("runs/sonar_${seed}", json.dumps(text)))
    assert experiment.run == text
    assert read(text=experiment.to_yaml()) == experiment


def test_a_config_comes_back_equal_with_all_it_can_hold(read: Read) -> None:
    experiment = read(
        ("weight: 2", "weight: 1e-7\n    range: [0.25, 3]\n    exclude: [label, group]\n    queue: null"),
        ("modality: sonar", "modality: {name: sonar, bands: [1, 2, 3]}"),
        overrides=["teacher=null", "losses.transport=null", "losses={supervised: {weight: 0}}", "data.crop=[0.2, 1]"],
    )
    assert read(text=experiment.to_yaml()) == experiment
    full = read(("weight: 2", "weight: 1e-7\n    range: [0.25, 3]\n    exclude: [label, group]\n    queue: null"))
    assert full.losses["transport"]["range"] == (0.25, 3.0)
    again = read(text=full.to_yaml())
    assert again == full
    assert again.to_yaml() == full.to_yaml()


def test_the_resolved_yaml_holds_the_defaults_and_no_references(read: Read) -> None:
    text = read().to_yaml()
    assert "${" not in text
    assert "run: runs/sonar_0\n" in text
    assert "  crop: [1.0, 1.0]\n" in text
    assert "  checkpoint_every: 500\n" in text


# Classes of one's own

MODULE = """
from typing import Annotated, ClassVar, TYPE_CHECKING
from annotated_types import Gt
from losses import Loss
from modalities import Encoder, Modality
if TYPE_CHECKING:
    from nowhere import Nothing

class Mine(Loss):
    needs_teacher = False
    def __init__(self, student, teacher, *, margin: Annotated[float, Gt(0)], untyped=None, net: Encoder | None = None):
        super().__init__()

class Lazy(Loss):
    def __init__(self, student, teacher, *, x: "Nothing"):
        super().__init__()

class Net(Encoder):
    def __init__(self, channels, *, layers: int = 1):
        super().__init__()

class Radar(Modality):
    def __init__(self, gain: float = 1.0):
        pass
    def encoder(self, spec):
        pass

number = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_terms_of_test.py").write_text(MODULE)
    (tmp_path / "broken_terms_of_test.py").write_text("1 / 0")
    monkeypatch.delitem(sys.modules, "own_terms_of_test", raising=False)
    return "own_terms_of_test"


def test_a_loss_holds_the_defaults_that_a_config_can_say(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what the pipeline fills in, nor what the file that `to_yaml` writes could not be read back with."""
    monkeypatch.setitem(outline("losses").LOSSES, "banked", Banked)
    said = {"weight": 1.0, "scale": 4.0, "pair": [1, 2], "untyped": [1, 2]}
    for written, more in (("", {}), ("{samples: 9}", {"samples": 9})):
        experiment = read(("  supervised:", f"  banked: {written}"))
        assert experiment.losses["banked"] == said | more
        assert isinstance(experiment.losses["banked"]["scale"], float)
        assert read(text=experiment.to_yaml()) == experiment


def test_a_written_config_keeps_its_objective_when_a_default_changes(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read()
    defaults = Transport.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "anchor", 0.7)
    assert read().losses["transport"]["anchor"] == 0.7
    assert read(text=before.to_yaml()) == before
    assert read(text=before.to_yaml(), overrides=["losses.transport.queue=7"]).losses["transport"]["queue"] == 7


def test_own_classes_are_checked_like_the_others(read: Read, faults: Faults, module: str) -> None:
    changes = [
        ("  supervised:", f"  {module}:Mine: {{margin: 2, untyped: [1]}}"),
        ("modality: sonar", f"modality: {{name: '{module}:Radar', gain: 2}}"),
        ("encoder: {name: net, width: 4}", f"encoder: {{name: '{module}:Net', layers: 3}}"),
    ]
    experiment = read(*changes)
    assert experiment.losses[f"{module}:Mine"] == {"weight": 1.0, "margin": 2.0, "untyped": [1], "net": None}
    assert experiment.student.modality == {"name": f"{module}:Radar", "gain": 2.0}
    assert experiment.student.encoder == {"name": f"{module}:Net", "layers": 3}
    assert read(text=experiment.to_yaml()) == experiment
    assert read(*changes, overrides=[f"losses[{module}:Mine].margin=3"]).losses[f"{module}:Mine"]["margin"] == 3
    assert faults(*changes, overrides=[f"losses[{module}:Mine].margin=0"]) == [
        f"losses.{module}:Mine.margin: must be above 0, got 0 (override losses[{module}:Mine].margin=0)"
    ]
    (found,) = faults(*changes, overrides=["student.encoder.layers=x"])
    assert found.startswith("student.encoder.layers: must be an integer")


def test_a_modality_that_lists_no_encoders_checks_them_itself(read: Read, module: str) -> None:
    experiment = read(
        ("modality: sonar", f"modality: {module}:Radar"), ("{name: net, width: 4}", "{name: x, y: [1, {z: 2}]}")
    )
    assert experiment.student.encoder == {"name": "x", "y": [1, {"z": 2}]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.terms:Mine", "no_such_package"),
        ("own_terms_of_test:Miner", "Miner"),
        ("own_terms_of_test:number", "Loss"),
        ("own_terms_of_test:Net", "Loss"),
        ("broken_terms_of_test:Mine", "ZeroDivisionError: division by zero"),
        ("own_terms_of_test:Lazy", "the annotations of Lazy cannot be evaluated: name 'Nothing' is not defined"),
        (":Mine", ""),
        ("own_terms_of_test:", ""),
    ],
)
@pytest.mark.usefixtures("module")
def test_own_classes_that_cannot_be_had_are_named(faults: Faults, name: str, message: str) -> None:
    (found,) = faults(("  supervised:", f"  '{name}': {{}}"))
    assert found.startswith((f"losses.{name}: ", f"losses[{name}]: "))
    assert message in found
    assert found.endswith("(x.yaml line 11)")


# Signatures


def test_parameters_are_the_keyword_only_ones_with_their_bounds() -> None:
    class Nested(BaseModel):
        x: int

    class Some:
        def __init__(self, a: int, b: int = 2, *, c: Annotated[int, Gt(0)], d: Nested | None = None, **e: int) -> None:
            pass

    Some.__init__.__annotations__["d"] = Nested | None
    assert list(parameters(Some, keyword_only=True)) == ["c", "d"]
    assert list(parameters(Some, keyword_only=False)) == ["a", "b", "c", "d"]


def test_a_class_without_a_constructor_takes_nothing(faults: Faults) -> None:
    assert parameters(object, keyword_only=False) == {}
    assert faults(("  supervised:", "  supervised: {x: 1}")) == [
        "losses.supervised.x: unknown key; allowed are weight, schedule (x.yaml line 11)"
    ]


COMPONENTS = [
    *((loss, True) for loss in losses.LOSSES.values()),
    *((modality, False) for modality in modalities.MODALITIES.values()),
    *((encoder, True) for modality in modalities.MODALITIES.values() for encoder in modality.encoders.values()),
]


@pytest.mark.parametrize(("component", "keyword_only"), dict.fromkeys(COMPONENTS), ids=str)
def test_the_settings_of_every_built_in_component_can_be_validated(component: type, keyword_only: bool) -> None:
    fields = parameters(component, keyword_only=keyword_only)
    assert Any not in [get_args(field)[0] for field in fields.values()]
    assert TypeAdapter(TypedDict("Settings", fields)).json_schema()["type"] == "object"  # type: ignore[operator]


# The schema


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_config_is_good_and_short(name: str) -> None:
    assert load(name).run.startswith("runs/")
    assert len((config.SHIPPED / f"{name}.yaml").read_text().splitlines()) < 40


def test_every_field_says_what_it_is() -> None:
    for section in SECTIONS.values():
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            assert field.description.endswith(".")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_config_says_what_it_is_and_why_each_choice(name: str) -> None:
    """The first line is a sentence, for `wcord config list`; what is no mere name or place has a comment."""
    first, *lines = (config.SHIPPED / f"{name}.yaml").read_text().splitlines()
    assert first.startswith("# ")
    assert first.endswith((".", ":"))
    chosen = [line for line in lines if not line.startswith("#") and any(sign.isdigit() for sign in line.split("#")[0])]
    assert [line for line in chosen if "#" not in line and "shards:" not in line] == []
