"""The settings of a benchmark: the schema of its YAML, and `load`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.bench.tables import TEACHER
from pipeline.common.errors import UserError
from pipeline.config.document import Document, Key
from pipeline.config.messages import explain
from pipeline.config.settings import Section
from pipeline.config.shipped import SHIPPED

Losses = dict[str, dict[str, Any] | None]


class Experiment(Section):
    """A config with overrides."""

    config: str = Field(
        min_length=1, description="YAML file, relative to that of the benchmark, or name of a shipped config."
    )
    set: dict[str, Any] = Field(default={}, description="Overrides: `data.shards: folder`, `student.modality: rgb`.")


class Pair(Experiment):
    """A student experiment, with the teacher for methods that need one."""

    teacher: str | list[str] | None = Field(
        default=None,
        description="One of the names in `teachers`, or a list of names for a joint teacher; null means the section "
        "`teacher` of the config.",
    )
    methods: dict[str, Losses] = Field(
        default={}, description="Method -> losses, for methods whose losses differ for this pair."
    )


class Noise(Section):
    """How the training pairs are corrupted."""

    pairs: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        min_length=1,
        description="Fractions of mismatched training pairs: every pair of the benchmark is repeated for each. The "
        "teachers are trained on the correct pairs.",
    )

    @field_validator("pairs")
    @classmethod
    def _distinct(cls, pairs: list[float]) -> list[float]:
        if len(set(pairs)) < len(pairs):
            raise ValueError("must be distinct")
        return pairs


class Choice(Section):
    """Values to choose from."""

    choice: list[Any] = Field(min_length=1, description="The values, which are equally likely.")


Space = list[float] | Choice
"""The two ends of a range, in which a number is drawn log-uniformly; or a choice."""


class Tune(Section):
    """A random search over settings of losses, with the same number of trials for every method."""

    trials: int = Field(gt=0, description="Number of trials per method and pair.")
    seeds: int = Field(default=1, gt=0, description="Number of seeds per trial, starting at 0.")
    split: str = Field(default="val", min_length=1, description="The split on which trials are scored with `metric`.")
    over: dict[str, dict[str, Space]] = Field(
        min_length=1,
        description="Method -> `LOSS.SETTING` -> the ends of a range of numbers, such as [0.1, 100], or "
        "{choice: [...]}.",
    )

    @field_validator("over")
    @classmethod
    def _ranges(cls, over: dict[str, dict[str, Space]]) -> dict[str, dict[str, Space]]:
        for method, spaces in over.items():
            if not spaces:
                raise ValueError(f"{method}: has no settings to tune; add one, such as kd.weight: [0.1, 100]")
            for setting, space in spaces.items():
                if isinstance(space, list) and not (len(space) == 2 and 0 < space[0] < space[1]):
                    raise ValueError(
                        f"{method}.{setting}: must be [low, high] with 0 < low < high, or {{choice: [...]}}, "
                        f"got {space}"
                    )
        return over


class Bench(Section):
    """The settings of a benchmark matrix."""

    run: str = Field(min_length=1, description="Folder for all runs and the tables.")
    seeds: int = Field(default=3, gt=0, description="Number of seeds per cell, starting at 0; teachers use seed 0.")
    baseline: str = Field(description="Name of the method that all others are compared with.")
    metric: str = Field(default="student/top1", description="The result to show in the table: a key of results.json.")
    views: int = Field(
        default=0,
        ge=0,
        description="Number of augmented views per training sample in the cache of teacher features; epochs cycle "
        "through "
        "them. Methods that need no feature maps share the cache of a seed. 0: no cache, every cell runs the teacher.",
    )
    teachers: dict[str, Experiment] = Field(
        default={}, description="Name -> teacher, which is trained once with the losses of its config."
    )
    pairs: dict[str, Pair] = Field(min_length=1, description="Name -> student and teacher: the columns of the table.")
    methods: dict[str, Losses] = Field(min_length=1, description="Name -> losses: the rows of the table.")
    published: dict[str, dict[str, float]] = Field(
        default={}, description="Pair -> method or `teacher` -> published result in per cent, shown next to ours."
    )
    noise: Noise | None = Field(default=None, description="Repeats the pairs with mismatched training samples.")
    tune: Tune | None = Field(default=None, description="Tunes methods on another split before they are compared.")

    @model_validator(mode="after")
    def _known(self) -> Bench:
        _check_known("baseline", [self.baseline], "method", self.methods)
        if TEACHER in self.methods:
            raise ValueError(f"methods: {TEACHER} is reserved for the results of the teachers; choose another name")
        _check_known("tune.over", self.tune.over if self.tune else (), "method", self.methods)
        _check_known("published", self.published, "pair", self.pairs)
        for name, figures in self.published.items():
            _check_known(f"published.{name}", figures, "method", {TEACHER: None, **self.methods})
        for name, pair in self.pairs.items():
            _check_known(f"pairs.{name}.teacher", several(pair.teacher), "teacher", self.teachers)
            _check_known(f"pairs.{name}.methods", pair.methods, "method", self.methods)
        return self


def _check_known(where: str, names: Iterable[str], kind: str, known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: there is no {kind} {name!r}; choose one of {', '.join(known) or 'none'}")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Bench:
    """Read the YAML of a benchmark.

    Args:
        path: A file, or the name of a shipped benchmark.
        overrides: For example `seeds=1`.

    Raises:
        UserError: The settings are invalid. The message lists all errors, one per line.
    """
    return _load(path, overrides, frozenset())


def _load(path: str | Path, overrides: Sequence[str], texts: AbstractSet[Key]) -> Bench:
    document = Document(find(path), overrides, texts=texts)
    bench = None
    try:
        bench = Bench.model_validate(document.data)
    except ValidationError as error:
        sections: dict[Key, type[Section]] = {(): Bench, ("noise",): Noise, ("tune",): Tune}
        explain(document, error, (), {key: list(section.model_fields) for key, section in sections.items()})
    if document.texts > texts:
        return _load(path, overrides, document.texts)
    document.check()
    assert bench is not None
    return bench


def find(path: str | Path) -> Path:
    """Find the file of a benchmark: a path, or a shipped one named `bench/matrix` or `matrix`.

    Raises:
        UserError: There is no such benchmark.
    """
    given, shipped = Path(path), SHIPPED / "bench"
    if given.is_file():
        return given
    named = shipped / f"{given.name.removesuffix('.yaml')}.yaml"
    if str(given.parent) in (".", "bench") and named.is_file():
        return named
    names = sorted(file.stem for file in shipped.glob("*.yaml"))
    shipped_names = ", ".join(names) or "none"
    raise UserError(f"{path}: no such benchmark. Pass a YAML file, or the name of a shipped one: {shipped_names}.")


def several(names: str | list[str] | None) -> list[str]:
    """The teachers of a pair as a list; [] if its config has its own teacher."""
    return [names] if isinstance(names, str) else names or []
