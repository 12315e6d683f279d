"""A matrix of runs: every pair of teacher and student with every method over seeds, and the tables that come of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from pipeline import config as configs
from pipeline.compare import Comparison, compare
from pipeline.components import find_loss
from pipeline.config import Config, Section
from pipeline.configfile import Document
from pipeline.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.explain import explain
from pipeline.shards import load_dataset, write_atomic
from pipeline.train import train

Losses = dict[str, dict[str, Any] | None]


class Experiment(Section):
    """An ordinary config and what is different here."""

    config: str = Field(min_length=1, description="YAML file, relative to the bench's own, or a shipped config's name.")
    set: dict[str, Any] = Field(default={}, description="Overrides: `data.shards: folder`, `student.modality: rgb`.")


class Pair(Experiment):
    """A student's experiment, and the teacher it has where a method needs one."""

    teacher: str | list[str] = Field(description="Name of one of `teachers`, or of several that teach together.")


class Bench(Section):
    """A matrix of runs, its own config."""

    run: str = Field(min_length=1, description="Folder of all runs and of the tables.")
    seeds: int = Field(default=3, gt=0, description="Seeds of every cell, from 0; teachers have seed 0.")
    baseline: str = Field(description="Name of the method that the others are compared with.")
    teachers: dict[str, Experiment] = Field(description="Name -> what is trained, once, with the config's own losses.")
    pairs: dict[str, Pair] = Field(min_length=1, description="Name -> student and teacher: the rows of the matrix.")
    methods: dict[str, Losses] = Field(min_length=1, description="Name -> losses: the columns of the matrix.")

    @model_validator(mode="after")
    def _known(self) -> Bench:
        if self.baseline not in self.methods:
            raise ValueError(f"baseline: no method is called {self.baseline}; there are {', '.join(self.methods)}")
        for name, pair in self.pairs.items():
            for teacher in _several(pair.teacher):
                if teacher not in self.teachers:
                    known = ", ".join(self.teachers) or "none"
                    raise ValueError(f"pairs.{name}.teacher: no teacher is called {teacher}; there are {known}")
        return self


def load(path: str | Path, overrides: Sequence[str] = ()) -> Bench:
    """Read a bench's YAML with overrides such as `seeds=1`; UserError names every fault, a line each."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file. Give the YAML of a bench, e.g. configs/bench/matrix.yaml.")
    document = Document(Path(path), overrides)
    bench = None
    try:
        bench = Bench.model_validate(document.data)
    except ValidationError as error:
        explain(document, error, (), {(): list(Bench.model_fields)})
    document.check()
    assert bench is not None
    return bench


def run_bench(path: str | Path, overrides: Sequence[str] = (), jobs: int | None = None) -> dict[str, Comparison]:
    """Train and evaluate all cells that are not done yet, then compare: pair -> its table.

    Every cell is an ordinary run folder, `run/PAIR/METHOD_sSEED`, that is finished, resumed or started; what was
    trained before is not trained again. Cells spread over `jobs` processes, by default one a core, or one where there
    is a GPU. Writes `table.md` into the bench's folder, and one with a plot for each pair.

    Raises UserError, before anything is trained, for a config that does not hold or data that are not there, and
    afterwards for cells that failed: those are named, and the others are finished first.
    """
    bench, near = load(path, overrides), Path(path).parent
    teachers = {name: _config(near, teacher, _teacher_run(bench, name), 0) for name, teacher in bench.teachers.items()}
    cells = dict(_cells(bench, near))
    for config in (*teachers.values(), *cells.values()):
        load_dataset(config.data.shards)
        _check_done(config)
    for stage in (list(teachers.values()), list(cells.values())):
        _run_all(stage, jobs or _jobs())
    tables: dict[str, Comparison] = {}
    for pair in bench.pairs:
        runs = [Path(config.run) for (name, _, _), config in cells.items() if name == pair]
        tables[pair] = compare(runs, Path(bench.run) / pair, bench.baseline)
    write_atomic(Path(bench.run) / "table.md", summary(tables).encode())
    return tables


def summary(tables: Mapping[str, Comparison]) -> str:
    """One table of all pairs as Markdown: top-1, or mIoU of masks, of each method, and its difference from the
    baseline."""
    first = next(iter(tables.values()))
    baseline = first.baseline.name
    others = [group.name for group in first.groups if group is not first.baseline]
    header = ["pair", "teacher", baseline, *(part for name in others for part in (name, f"{name} minus {baseline}"))]
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    for pair, table in tables.items():
        groups = {group.name: group for group in table.groups}
        metric = next((m for m in ("student/top1", "student/mIoU") if m in table.metrics), "student/top1")
        row = [pair, _percent(groups[others[-1]].cell(metric.replace("student", "teacher"))) if others else "-"]
        row.append(_percent(table.baseline.cell(metric)))
        for name in others:
            difference = table.difference(groups[name], metric)
            verdict = f": {difference.verdict}" if difference else ""
            row += [_percent(groups[name].cell(metric)), _percent(difference, signed=True) + verdict]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _percent(cell: Any, signed: bool = False) -> str:
    if cell is None:
        return "-"
    spread = f" ± {100 * cell.std:.1f}" if cell.std else ""
    return f"{100 * cell.mean:{'+' if signed else ''}.1f}{spread}"


def _cells(bench: Bench, near: Path) -> Iterator[tuple[tuple[str, str, int], Config]]:
    for name, pair in bench.pairs.items():
        run = [_teacher_run(bench, teacher) for teacher in _several(pair.teacher)]
        for method, losses in bench.methods.items():
            needed = any(find_loss(loss).needs_teacher for loss in losses)
            teacher = {"run": run if len(run) > 1 else run[0]} if needed else None
            for seed in range(bench.seeds):
                folder = str(Path(bench.run) / name / f"{method}_s{seed}")
                yield (name, method, seed), _config(near, pair, folder, seed, {"teacher": teacher, "losses": losses})


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
    """A finished run under this name is of this very config, or the table would mix two."""
    run = Path(config.run)
    if (run / "results.json").is_file() and configs.load(run / "config.yaml") != config:
        raise UserError(
            f"{run}: was made with other settings than the bench now has. Choose another `run` for the bench, or "
            "delete this folder to train it again."
        )


def _jobs() -> int:
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def _run_all(cells: Sequence[Config], jobs: int) -> None:
    waiting = [config for config in cells if not (Path(config.run) / "results.json").is_file()]
    failed: list[str] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        running = {pool.submit(_run, config, jobs): config for config in waiting}
        for done, job in enumerate(as_completed(running), 1):
            run = running[job].run
            print(f"[{done}/{len(waiting)}] {run}", flush=True)
            if error := job.exception():
                failed.append(f"{run}: {error}")
    if failed:
        raise UserError("\n".join([f"{len(failed)} of {len(waiting)} runs failed; the others are kept:", *failed]))


def _run(config: Config, jobs: int) -> None:
    import torch

    if jobs > 1:
        torch.set_num_threads(max((os.cpu_count() or 1) // jobs, 1))
    run = Path(config.run)
    run.parent.mkdir(parents=True, exist_ok=True)
    # Progress of runs side by side would tear each other's lines.
    with run.with_name(f"{run.name}.log").open("a") as log, redirect_stdout(log):
        train(config, resume=True)
    evaluate(run)
