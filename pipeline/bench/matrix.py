"""A matrix of runs: every pair of teacher and student with every method and seed, and the resulting tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.bench.noise import BrokenCopy, plan_copy, write_copy
from pipeline.bench.scheduler import Cell, places, run_cells
from pipeline.bench.settings import Bench, Experiment, Losses, Pair, find, load, several
from pipeline.bench.tables import Entry, Tuned, entries, write
from pipeline.bench.tune import choose, draw, with_values
from pipeline.common.errors import UserError
from pipeline.config.components import find_loss
from pipeline.config.settings import Config
from pipeline.data.source import open_dataset
from pipeline.models.input_modalities import student_modalities, teacher_modalities
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
    unchanged. Copies with mismatched pairs are written before, and tuned methods are run with the settings of their
    best trial. Writes `table.md`, `.csv`, `.tex` and `plot.png` to the folder of the benchmark, and tables and a plot
    of all metrics for each pair.

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
    columns = _columns(bench, near, teachers)
    trials, cells = dict(_trials(bench, near, columns)), dict(_cells(bench, near, columns))
    tuned = bench.tune.over if bench.tune else {}
    fixed = [config for (_, method, _), config in cells.items() if method not in tuned]
    copies = {str(column.copy.folder): column.copy for column in columns.values() if column.copy}
    _check([*teachers.values(), *cells.values()], copies, "evaluation.split")
    _check(trials.values(), copies, "tune.split")
    for config in (*teachers.values(), *trials.values(), *fixed):
        _check_done(config)
    for copy in copies.values():
        write_copy(copy)
    where = places(jobs)
    run_cells([Cell("run", config) for config in _waiting(teachers.values())], where)
    waiting = _waiting([*trials.values(), *cells.values()])
    caches = {config.teacher.cache: config for config in waiting if config.teacher and config.teacher.named_cache}
    run_cells([Cell("cache", config) for config in caches.values()], where)
    run_cells([Cell("run", config) for config in _waiting(trials.values())], where)
    chosen = _choose(bench, columns, trials)
    cells = dict(_cells(bench, near, columns, chosen))
    for config in cells.values():
        _check_done(config)
    run_cells([Cell("run", config) for config in _waiting(cells.values())], where)
    tables = {}
    for name in columns:
        groups = [Group(method, tuple(_runs(bench, cells, name, method))) for method in bench.methods]
        tables[name] = compare_groups(groups, Path(bench.run) / name, bench.baseline)
    found = entries(tables, bench.metric, bench.published, chosen)
    write(found, Path(bench.run))
    return found


@dataclass(frozen=True)
class Column:
    """A column of the table: a pair, and the copy of its data with mismatched pairs, if any."""

    pair: Pair
    copy: BrokenCopy | None = None


def _columns(bench: Bench, near: Path, teachers: Mapping[str, Config]) -> dict[str, Column]:
    found: dict[str, Column] = {}
    for name, pair in bench.pairs.items():
        for share in bench.noise.pairs if bench.noise else [0.0]:
            copy = _plan_copy(bench, near, name, teachers, share) if share else None
            found[f"{name} ({100 * share:g} % broken)" if share else name] = Column(pair, copy)
    return found


def _plan_copy(bench: Bench, near: Path, name: str, teachers: Mapping[str, Config], share: float) -> BrokenCopy:
    pair, live = bench.pairs[name], bench.model_copy(update={"views": 0})
    losses = [_losses(bench, Column(pair), method) for method in bench.methods]
    taught = next((own for own in losses if any(find_loss(loss).needs_teacher for loss in own)), losses[0])
    config = _cell(live, near, Column(pair), taught, f"{bench.run}/{name}", 0)
    student = list(student_modalities(config))
    teacher = [modality for _, modality in teacher_modalities(config)]
    if pair.teacher:  # they may not be trained yet
        teacher = [modality for one in several(pair.teacher) for modality in student_modalities(teachers[one])]
    return plan_copy(config, student, teacher, share, Path(bench.run) / "broken")


def _check(wanted: Iterable[Config], copies: Mapping[str, BrokenCopy], key: str) -> None:
    """Check that the data have the splits to evaluate. Copies are checked by their source."""
    for shards, split in dict.fromkeys((config.data.address, config.evaluation.split) for config in wanted):
        source = copies[shards].source if shards in copies else shards
        open_dataset(source).check_split(split, f"{key}: ")


def _runs(bench: Bench, cells: Mapping[tuple[str, str, int], Config], pair: str, method: str) -> Iterator[Run]:
    for seed in range(bench.seeds):
        yield read_run(Path(cells[pair, method, seed].run))


def _waiting(configs: Iterable[Config]) -> list[Config]:
    return [config for config in configs if not (Path(config.run) / "results.json").is_file()]


def _cells(
    bench: Bench,
    near: Path,
    columns: Mapping[str, Column],
    tuned: Mapping[tuple[str, str], Tuned] | None = None,
) -> Iterator[tuple[tuple[str, str, int], Config]]:
    for name, column in columns.items():
        for method in bench.methods:
            losses = _losses(bench, column, method)
            if chosen := (tuned or {}).get((name, method)):
                losses = with_values(losses, chosen.values, f"tune.over.{method}")
            for seed in range(bench.seeds):
                folder = str(Path(bench.run) / name / f"{method}_s{seed}")
                yield (name, method, seed), _cell(bench, near, column, losses, folder, seed)


def _trials(
    bench: Bench, near: Path, columns: Mapping[str, Column]
) -> Iterator[tuple[tuple[str, str, int, int], Config]]:
    """Pair, method, number of the trial and seed -> config."""
    if (tune := bench.tune) is None:
        return
    for name, column in columns.items():
        for method, spaces in tune.over.items():
            for trial in range(tune.trials):
                values = draw(method, spaces, trial)
                losses = with_values(_losses(bench, column, method), values, f"tune.over.{method}")
                for seed in range(tune.seeds):
                    folder = str(Path(bench.run) / name / "tuning" / f"{method}_t{trial}_s{seed}")
                    config = _cell(bench, near, column, losses, folder, seed, {"evaluation.split": tune.split})
                    yield (name, method, trial, seed), config


def _choose(
    bench: Bench, columns: Iterable[str], trials: Mapping[tuple[str, str, int, int], Config]
) -> dict[tuple[str, str], Tuned]:
    """Pair and method -> the settings of its best trial."""
    if (tune := bench.tune) is None:
        return {}
    found = {}
    for name in columns:
        for method in tune.over:
            runs = [
                [read_run(Path(trials[name, method, trial, seed].run)) for seed in range(tune.seeds)]
                for trial in range(tune.trials)
            ]
            found[name, method] = choose(tune, method, runs, bench.metric)
    return found


def _losses(bench: Bench, column: Column, method: str) -> Losses:
    return column.pair.methods.get(method, bench.methods[method])


def _cell(
    bench: Bench,
    near: Path,
    column: Column,
    losses: Losses,
    run: str,
    seed: int,
    more: Mapping[str, Any] | None = None,
) -> Config:
    """The config of one student."""
    kinds = [find_loss(loss) for loss in losses]
    own: dict[str, Any] = {"losses": losses, **(more or {})}
    if column.copy:
        own["data.shards"] = str(column.copy.folder)
    taught = any(kind.needs_teacher for kind in kinds)
    if not taught:
        own["teacher"] = None
    elif runs := [_teacher_run(bench, teacher) for teacher in several(column.pair.teacher)]:
        own["teacher"] = {"run": runs if len(runs) > 1 else runs[0]}
    config = _config(near, column.pair, run, seed, own)
    cached = bool(bench.views) and taught and not any(kind.needs_maps for kind in kinds)
    if cached:
        own |= {"teacher.cache": _cache_name(config), "teacher.views": bench.views}
    elif config.teacher is not None and config.teacher.named_cache is not None:
        own |= {"teacher.cache": None, "teacher.views": 1}  # its views are those of another seed
    else:
        return config
    return _config(near, column.pair, run, seed, own)


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
