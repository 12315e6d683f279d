"""A matrix of runs: every pair of teacher and student with every method and seed, and the resulting tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from pipeline import config as configs
from pipeline.bench.scheduler import Cell, places, run_cells
from pipeline.bench.tables import TEACHER, Entry, entries, write
from pipeline.common.errors import UserError
from pipeline.config.components import find_loss
from pipeline.config.document import Document, Key
from pipeline.config.messages import explain
from pipeline.config.settings import SHIPPED, Config, Section
from pipeline.data.source import open_dataset
from pipeline.runs.compare import Group, compare_groups
from pipeline.runs.reader import Run, read_run

Losses = dict[str, dict[str, Any] | None]


class Experiment(Section):
    """A config with overrides."""

    config: str = Field(
        min_length=1, description="YAML file, relative to that of the benchmark, or name of a shipped config."
    )
    set: dict[str, Any] = Field(default={}, description="Overrides: `data.shards: folder`, `student.modality: rgb`.")


class Pair(Experiment):
    """A student experiment, with the teacher for methods that need one."""

    teacher: str | list[str] = Field(
        description="One of the names in `teachers`, or a list of names for a joint teacher."
    )
    methods: dict[str, Losses] = Field(
        default={}, description="Method -> losses, for methods whose losses differ for this pair."
    )


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
        description="Name -> teacher, which is trained once with the losses of its config."
    )
    pairs: dict[str, Pair] = Field(min_length=1, description="Name -> student and teacher: the columns of the table.")
    methods: dict[str, Losses] = Field(min_length=1, description="Name -> losses: the rows of the table.")
    published: dict[str, dict[str, float]] = Field(
        default={}, description="Pair -> method or `teacher` -> published result in per cent, shown next to ours."
    )

    @model_validator(mode="after")
    def _known(self) -> Bench:
        _check_known("baseline", [self.baseline], "method", self.methods)
        if TEACHER in self.methods:
            raise ValueError(f"methods: {TEACHER} is reserved for the results of the teachers; choose another name")
        _check_known("published", self.published, "pair", self.pairs)
        for name, figures in self.published.items():
            _check_known(f"published.{name}", figures, "method", {TEACHER: None, **self.methods})
        for name, pair in self.pairs.items():
            _check_known(f"pairs.{name}.teacher", _several(pair.teacher), "teacher", self.teachers)
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
        explain(document, error, (), {(): list(Bench.model_fields)})
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


def run_bench(path: str | Path, overrides: Sequence[str] = (), jobs: int | None = None) -> list[Entry]:
    """Train and evaluate all unfinished cells, then compare all cells.

    Each cell is an ordinary run folder, `run/PAIR/METHOD_sSEED`, which is started, resumed or, if it is finished, left
    unchanged. Writes `table.md`, `.csv`, `.tex` and `plot.png` to the folder of the benchmark, and tables and a plot of
    all metrics for each pair.

    Args:
        path: A file, or the name of a shipped benchmark.
        overrides: For example `seeds=1`.
        jobs: Number of cells to run in parallel; None means one per GPU or, without GPUs, one per core.

    Returns:
        The entries of the table.

    Raises:
        UserError: A config is invalid or data is missing (raised before anything is trained); or cells failed (raised
            after all others are finished).
    """
    bench, near = load(path, overrides), find(path).parent
    teachers = {name: _config(near, teacher, _teacher_run(bench, name), 0) for name, teacher in bench.teachers.items()}
    cells = dict(_cells(bench, near))
    wanted = [*teachers.values(), *cells.values()]
    for shards, split in dict.fromkeys((config.data.address, config.evaluation.split) for config in wanted):
        open_dataset(shards).check_split(split, "evaluation.split: ")
    for config in wanted:
        _check_done(config)
    where = places(jobs)
    run_cells([Cell("run", config) for config in _waiting(teachers.values())], where)
    waiting = _waiting(cells.values())
    caches = {config.teacher.cache: config for config in waiting if config.teacher and config.teacher.cache}
    run_cells([Cell("cache", config) for config in caches.values()], where)
    run_cells([Cell("run", config) for config in waiting], where)
    tables = {}
    for pair in bench.pairs:
        groups = [Group(method, tuple(_runs(bench, cells, pair, method))) for method in bench.methods]
        tables[pair] = compare_groups(groups, Path(bench.run) / pair, bench.baseline)
    found = entries(tables, bench.metric, bench.published)
    write(found, Path(bench.run))
    return found


def _runs(bench: Bench, cells: Mapping[tuple[str, str, int], Config], pair: str, method: str) -> Iterator[Run]:
    for seed in range(bench.seeds):
        yield read_run(Path(cells[pair, method, seed].run))


def _waiting(configs: Iterable[Config]) -> list[Config]:
    return [config for config in configs if not (Path(config.run) / "results.json").is_file()]


def _cells(bench: Bench, near: Path) -> Iterator[tuple[tuple[str, str, int], Config]]:
    for name, pair in bench.pairs.items():
        run = [_teacher_run(bench, teacher) for teacher in _several(pair.teacher)]
        for method, usual in bench.methods.items():
            losses = pair.methods.get(method, usual)
            kinds = [find_loss(loss) for loss in losses]
            teacher = {"run": run if len(run) > 1 else run[0]} if any(k.needs_teacher for k in kinds) else None
            for seed in range(bench.seeds):
                folder = str(Path(bench.run) / name / f"{method}_s{seed}")
                config = _config(near, pair, folder, seed, {"teacher": teacher, "losses": losses})
                if bench.views and teacher and not any(k.needs_maps for k in kinds):
                    cache = {"cache": _cache_name(config), "views": bench.views}
                    config = _config(near, pair, folder, seed, {"teacher": teacher | cache, "losses": losses})
                yield (name, method, seed), config


def _cache_name(config: Config) -> str:
    """A cache name that is the same for cells with the same teacher inputs."""
    seen_by_it = {"shards", "join", "label", "crop", "flip", "pad"}
    data = config.data.model_dump(include=seen_by_it, exclude_none=True, mode="json")
    seen = json.dumps([config.teacher and config.teacher.run, data, config.seed])
    return f"bench_{hashlib.sha256(seen.encode()).hexdigest()[:12]}"


def _config(near: Path, experiment: Experiment, run: str, seed: int, more: Mapping[str, Any] | None = None) -> Config:
    values = {**experiment.set, **(more or {}), "run": run, "seed": seed}
    file = near / experiment.config
    return configs.load(
        file if file.is_file() else experiment.config,
        [f"{key}={json.dumps(value)}" for key, value in values.items()],
    )


def _teacher_run(bench: Bench, name: str) -> str:
    return str(Path(bench.run) / "teachers" / name)


def _several(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def _check_done(config: Config) -> None:
    """Check that a finished run in this folder has the same config, so the table does not mix configs."""
    run = Path(config.run)
    done = (run / "results.json").is_file() or (run / "student").is_dir()
    if done and configs.load(run / "config.yaml") != config:
        raise UserError(
            f"{run}: its settings differ from those of the benchmark. Choose another `run` for the benchmark, or "
            "delete this folder to train it again."
        )
