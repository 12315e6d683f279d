"""A matrix of runs: every pair of teacher and student with every method and seed, and the resulting tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.bench.scheduler import Cell, places, run_cells
from pipeline.bench.settings import Bench, Experiment, Losses, Pair, find, load, several
from pipeline.bench.tables import Entry, entries, write
from pipeline.common.errors import UserError
from pipeline.config.components import find_loss
from pipeline.config.settings import Config
from pipeline.data.source import open_dataset
from pipeline.runs.compare import Group, compare_groups
from pipeline.runs.reader import Run, read_run


def run_bench(path: str | Path, overrides: Sequence[str] = (), jobs: int | None = None) -> list[Entry]:
    """Read the YAML of a benchmark and run it; see `run_matrix`.

    Args:
        path: A file, or the name of a shipped benchmark.
        overrides: For example `seeds=1`.
        jobs: Number of cells to run in parallel; None means one per GPU or, without GPUs, one per core.
    """
    return run_matrix(load(path, overrides), find(path).parent, jobs)


def run_matrix(bench: Bench, near: Path, jobs: int | None = None) -> list[Entry]:
    """Train and evaluate all unfinished cells, then compare all cells.

    Each cell is an ordinary run folder, `run/PAIR/METHOD_sSEED`, which is started, resumed or, if it is finished, left
    unchanged. Writes `table.md`, `.csv`, `.tex` and `plot.png` to the folder of the benchmark, and tables and a plot of
    all metrics for each pair.

    Args:
        bench: The settings.
        near: The folder to which the configs of the experiments are relative.
        jobs: Number of cells to run in parallel; None means one per GPU or, without GPUs, one per core.

    Returns:
        The entries of the table.

    Raises:
        UserError: A config is invalid or data is missing (raised before anything is trained); or cells failed (raised
            after all others are finished).
    """
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
        for method, usual in bench.methods.items():
            for seed in range(bench.seeds):
                folder = str(Path(bench.run) / name / f"{method}_s{seed}")
                yield (name, method, seed), _cell(bench, near, pair, pair.methods.get(method, usual), folder, seed)


def _cell(bench: Bench, near: Path, pair: Pair, losses: Losses, run: str, seed: int) -> Config:
    """The config of one student."""
    kinds = [find_loss(loss) for loss in losses]
    own: dict[str, Any] = {"losses": losses}
    taught = any(kind.needs_teacher for kind in kinds)
    if not taught:
        own["teacher"] = None
    elif runs := [_teacher_run(bench, teacher) for teacher in several(pair.teacher)]:
        own["teacher"] = {"run": runs if len(runs) > 1 else runs[0]}
    config = _config(near, pair, run, seed, own)
    cached = bool(bench.views) and taught and not any(kind.needs_maps for kind in kinds)
    if cached:
        own |= {"teacher.cache": _cache_name(config), "teacher.views": bench.views}
    elif config.teacher is not None and config.teacher.cache is not None:
        own |= {"teacher.cache": None, "teacher.views": 1}  # its views are those of another seed
    return _config(near, pair, run, seed, own)


def _cache_name(config: Config) -> str:
    """A cache name that is the same for cells with the same teacher inputs."""
    seen_by_it = {"shards", "join", "label", "crop", "flip", "pad"}
    data = config.data.model_dump(include=seen_by_it, exclude_none=True, mode="json")
    teacher = config.teacher and (config.teacher.run or config.teacher.model_dump(exclude={"cache", "views"}))
    seen = json.dumps([teacher, data, config.seed])
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


def _check_done(config: Config) -> None:
    """Check that a finished run in this folder has the same config, so the table does not mix configs."""
    run = Path(config.run)
    done = (run / "results.json").is_file() or (run / "student").is_dir()
    if done and configs.load(run / "config.yaml") != config:
        raise UserError(
            f"{run}: its settings differ from those of the benchmark. Choose another `run` for the benchmark, or "
            "delete this folder to train it again."
        )
