"""`wcord bench --quick`: does the teacher of a config help? Short runs of a few methods within a time budget.

A few steps of the most expensive method are timed first. Every run then gets as many steps as the budget allows. They
are written to `quick.json`, so the same command resumes with the same number.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline import config as configs
from pipeline.bench.matrix import run_matrix
from pipeline.bench.quick_table import LABELS, RECALL, rows_of, table, verdict
from pipeline.bench.scheduler import Cell, places, run_cells
from pipeline.bench.settings import Bench, Losses, Pair
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.config.settings import Config
from pipeline.data.mixture import open_mixture
from pipeline.data.source import OpenDataset
from pipeline.data.stream import steps_per_epoch
from pipeline.models.build import build_teacher, class_names
from pipeline.runs.reader import read_run
from pipeline.train.schedule import Schedule

log = logging.getLogger(__name__)

MINUTES = 10.0
"""Default time budget."""

TIMED = 8
"""Number of steps of a timing run. Its seconds per step are the median, since the first step also allocates memory."""

FEWEST = 20
"""The fewest steps that are worth comparing."""

USED = 0.9
"""Fraction of the remaining budget to plan for, since durations vary."""

BASE = "base.yaml"


@dataclass(frozen=True)
class Task:
    """What the data and the teacher of a config allow.

    Attributes:
        metric: The result to compare: a key of `results.json`.
        methods: Method -> losses, the most expensive one last.
        steps: Number of steps of the config.
    """

    metric: str
    methods: dict[str, Losses]
    steps: int

    @property
    def labelled(self) -> bool:
        """Whether there are labels; else the reference is an untrained student."""
        return LABELS in self.methods


def quick(
    path: str | Path,
    overrides: Sequence[str] = (),
    minutes: float = MINUTES,
    seeds: int = 1,
    jobs: int | None = None,
) -> str:
    """Train short runs of the usual methods with the teacher of a config, and compare them.

    The runs are in the folder `RUN_quick`, where RUN is the run folder of the config, with the text in `quick.md`.

    Args:
        path: A training config with a teacher: a YAML file, or the name of a shipped one.
        overrides: Overrides of the config, such as `train.steps=1000`.
        minutes: Time budget.
        seeds: Number of seeds per method.
        jobs: Number of runs in parallel; None means one per GPU or, without GPUs, one per core.

    Returns:
        The table and the answer, as Markdown.

    Raises:
        UserError: The config is invalid or has no teacher, the budget is too small, or runs failed.
    """
    config = configs.load(path, [*overrides, "evaluation.baselines=[]"])
    if config.teacher is None:
        raise UserError(
            f"{path}: has no teacher, so there is nothing to compare. Add `teacher`, e.g. teacher.run=runs/teacher."
        )
    folder = Path(f"{config.run}_quick")
    task = _task(config)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "quick.json.lock"):  # two commands at the same time must agree on the number of steps
        steps = _planned_steps(config, task, folder, minutes, seeds, jobs)
        write_atomic(folder / BASE, sized(config, steps, task.steps).to_yaml().encode())
    bench = _bench(folder, task, seeds)
    run_matrix(bench, folder, jobs)
    runs = {
        method: [read_run(folder / pair / f"{method}_s{seed}") for seed in range(seeds)]
        for pair in bench.pairs
        for method in bench.methods
    }
    rows = rows_of(runs, task.metric, labelled=task.labelled)
    text = f"{table(rows, task.metric)}\n{verdict(rows, steps, task.steps)}\n"
    write_atomic(folder / "quick.md", text.encode())
    return text


def _bench(folder: Path, task: Task, seeds: int) -> Bench:
    name = folder.name.removesuffix("_quick")
    baseline = next(iter(task.methods))
    return Bench(
        run=str(folder),
        seeds=seeds,
        baseline=baseline,
        metric=task.metric,
        pairs={name: Pair(config=BASE)},
        methods=task.methods,
    )


def _task(config: Config) -> Task:
    """Look at labels and classes of the data and the teacher."""
    data = OpenDataset.from_config(config)
    data.check_split(config.evaluation.split, "evaluation.split: ")
    train = data.split("train", config.data.label_fraction, config.seed)
    labelled = bool(data.classes) and train.labelled() and data.split(config.evaluation.split).labelled()
    teacher, classes = build_teacher(config, data), class_names(config, data)
    assert teacher is not None
    logits = bool(classes) and teacher.classes == classes and teacher.dims.dense == data.dense
    batch = config.data.batch_size
    epoch = open_mixture(config, data).steps_per_epoch(batch) if config.data.mixed else steps_per_epoch(train, batch)
    accuracy = "student/mIoU" if data.dense else "student/top1"
    steps = Schedule(config.train, epoch).steps
    return Task(accuracy if labelled else RECALL, methods_for(labelled, logits), steps)


def methods_for(labelled: bool, logits: bool) -> dict[str, Losses]:
    """The methods and their losses with the weights that the documentation recommends.

    Args:
        labelled: Whether the data have labels.
        logits: Whether the teacher has the classes of the student.
    """
    labels: Losses = {"cross_entropy": {}} if labelled else {}
    kd: Losses = {"kd": {"weight": 3.0}}
    methods = {LABELS: labels} if labelled else {}
    methods |= {"kd": labels | kd} if logits else {}
    methods |= {"regression": labels | {"cosine": {"weight": 3.0}}, "wcord": labels | {"wcord": {}}}
    return methods | ({"wcord + kd": labels | {"wcord": {}} | kd} if logits else {})


def sized(config: Config, steps: int, full: int) -> Config:
    """A config with a number of steps, and the warmup in proportion. Validation during training is off.

    Args:
        config: The config.
        steps: The number of steps.
        full: Number of steps of the config. If it is the same, the schedule stays as it is.
    """
    kept = [one for one in config.train.callbacks if _name(one) != "early_stopping"]  # it requires validation
    changed: dict[str, Any] = {"callbacks": kept}
    if steps != full:
        warmup = round(config.train.warmup * steps / full)
        changed |= {"steps": steps, "epochs": None, "warmup": warmup, "schedule": "cosine", "milestones": []}
    evaluation = config.evaluation.model_copy(update={"every": 0})
    train = config.train.model_copy(update=changed)
    return config.model_copy(update={"train": train, "evaluation": evaluation})


def _name(callback: str | Mapping[str, Any]) -> str:
    return callback if isinstance(callback, str) else str(callback.get("name"))


def _planned_steps(config: Config, task: Task, folder: Path, minutes: float, seeds: int, jobs: int | None) -> int:
    """The number of steps of each run: as planned by an earlier start of the same command, else from a timing."""
    seen = json.dumps([config.model_dump(mode="json"), task.methods, minutes, seeds], sort_keys=True)
    asked = hashlib.sha256(seen.encode()).hexdigest()
    plan = folder / "quick.json"
    if plan.is_file() and (earlier := json.loads(plan.read_bytes()))["asked"] == asked:
        return int(earlier["steps"])
    where = places(jobs)
    runs = len(task.methods) * seeds
    at_once = min(len(where), runs)
    log.info(f"timing {TIMED} steps of the most expensive method")
    begun = time.perf_counter()
    step = _time_steps(config, task, folder, at_once, jobs)
    spent = time.perf_counter() - begun
    steps = affordable_steps(60 * minutes - spent, step, spent - TIMED * step, math.ceil(runs / at_once))
    if steps < (fewest := min(FEWEST, task.steps)):
        needed = math.ceil((spent + math.ceil(runs / at_once) * (spent + fewest * step) / USED) / 60)
        raise UserError(
            f"{runs} runs of {fewest} steps take about {needed} minutes on this machine, more than the budget of "
            f"{minutes:g}. Set --minutes {needed}, or lower data.batch_size."
        )
    steps = min(steps, task.steps)
    log.info(f"{step:.3g} s per step: {steps} of {task.steps} steps for each of {runs} runs")
    write_atomic(plan, json.dumps({"asked": asked, "steps": steps, "seconds_per_step": step}).encode())
    return steps


def affordable_steps(seconds: float, step: float, overhead: float, rounds: int) -> int:
    """Compute the number of steps of each run within a time budget.

    Args:
        seconds: The budget for all runs.
        step: Seconds per step.
        overhead: Seconds of a run in addition to its steps: start and evaluation.
        rounds: Number of runs, one after another, on each device.
    """
    return max(math.floor((USED * seconds / rounds - max(overhead, 0.0)) / step), 0)


def _time_steps(config: Config, task: Task, folder: Path, at_once: int, jobs: int | None) -> float:
    """Seconds per step of the most expensive method, with as many runs in parallel as later."""
    timing = folder / "timing"
    shutil.rmtree(timing, ignore_errors=True)
    losses = json.dumps(list(task.methods.values())[-1])
    short = sized(config, TIMED, task.steps)
    timing.mkdir()
    (timing / BASE).write_bytes(short.to_yaml().encode())
    own = [f"losses={losses}", "teacher.cache=null", "teacher.views=1", "train.log_every=1", "train.trackers=[]"]
    cells = [
        Cell("run", configs.load(timing / BASE, [*own, f"run={timing / str(number)}"])) for number in range(at_once)
    ]
    run_cells(cells, places(jobs))
    seconds = max(read_run(Path(cell.config.run)).results["train/seconds_per_step"] for cell in cells)
    shutil.rmtree(timing)
    return seconds
