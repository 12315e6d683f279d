"""The log of a run: metrics.jsonl, trackers, and console lines."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from losses.base import Metrics
from pipeline.common.files import write_atomic
from pipeline.common.resources import energy_joules, peak_memory_mib
from pipeline.config.settings import Config
from pipeline.data.views import Batch
from pipeline.models.distillation import DistillationOutput
from pipeline.models.precision import precision_of
from pipeline.runs.reader import read_line
from pipeline.runs.trackers import show, start_trackers
from pipeline.train.guard import Guard
from pipeline.train.schedule import Schedule
from pipeline.train.throughput import Throughput

log = logging.getLogger(__name__)


class Log:
    """Collects the losses of all steps, and writes a log line with their means on request.

    Call `waiting` for a batch, `add` after each step, and `write` at intervals.

    Args:
        config: The config.
        run: The run folder.
        step: Number of finished steps.
        schedule: The schedule.
        accelerator: The accelerator.
    """

    def __init__(self, config: Config, run: Path, step: int, schedule: Schedule, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.schedule = config, accelerator, schedule
        self.throughput = Throughput(accelerator.device, precision_of(config))
        self.terms: dict[str, Tensor] = {}
        self.first, self.start = step, time.perf_counter()
        self.spent: dict[str, float] = {}
        self.energy: float | None = None
        self._restart()
        if accelerator.is_main_process:
            self.path = run / "metrics.jsonl"
            self.spent = _keep_lines_to(self.path, step)
            self.energy = energy_joules(accelerator.device)
            self.trackers = start_trackers(config, run, step)

    def _restart(self) -> None:
        self.count, self.waited, self.since, self.written = 0, 0.0, time.perf_counter(), False
        self.terms = {}

    def waiting(self, batches: Iterator[Batch]) -> Batch:
        """Get the next batch, and measure the time as data wait."""
        if self.written:  # checkpoints and validation after a line do not count
            self._restart()
        before = time.perf_counter()
        batch = next(batches)
        took = time.perf_counter() - before
        self.waited += min(took, batch.pop("loading", took))  # the rest was spent on the teacher in the parallel thread
        if "counted" in batch:
            self.throughput.add(batch.pop("counted"))
        return batch

    def add(self, output: DistillationOutput, batch: Batch) -> None:
        """Add a step: its loss and terms, and the fraction of unpaired samples of the batch."""
        self.count += 1
        alone = {"unpaired": 1 - batch["paired"].to(output.loss.device).float().mean()} if "paired" in batch else {}
        for name, value in {**output.scalars(), **alone}.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value

    def write(
        self,
        step: int,
        rate: float,
        norm: Tensor | float,
        weights: Mapping[str, float],
        metrics: Metrics,
        guard: Guard,
        skipped: Mapping[str, int],
        undone: int,
        drawn: Mapping[str, int],
    ) -> None:
        """Write means of the terms since the last line over steps and ranks, together with metrics of the losses.

        Metrics are averaged over ranks, since some losses compute them on local samples only.

        Args:
            step: Number of the step.
            rate: Learning rate.
            norm: Gradient norm.
            weights: Loss -> weight.
            metrics: Metrics of the step.
            guard: The collapse guard.
            skipped: Cause -> number of training samples skipped so far.
            undone: Number of steps that this process has skipped because of a non-finite gradient.
            drawn: Source of a mixture -> number of samples so far.
        """
        if not self.terms:  # all steps since the last line were skipped
            return
        seconds = time.perf_counter() - self.since
        means = self._over_ranks({name: value / self.count for name, value in self.terms.items()})
        undone += int(self.spent.get("nonfinite_steps", 0))
        row = {
            "epoch": step / self.schedule.steps_per_epoch,
            **means,
            "lr": rate,
            **{f"weight/{name}": weights[name] for name, own in self.config.losses.items() if "schedule" in own},
            "grad_norm": float(norm),
            "samples_seen": float(step * self.config.data.batch_size),
            "samples_per_second": self.count * self.config.data.batch_size / seconds,
            "data_wait": self.waited / seconds,
            **self.throughput.row(self.count / seconds),
            **self._cost(),
            **self._over_ranks(metrics()),
            **guard.told(),
            **({"nonfinite_steps": float(undone)} if undone else {}),
            **{f"skipped/{cause}": float(count) for cause, count in skipped.items()},
            **{f"drawn/{source}": float(count) for source, count in drawn.items()},
        }
        self.scalars(step, row)
        self.written = True
        log.info(self._line(step, row))

    def _over_ranks(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over ranks of scalars, which have the same names on all ranks."""
        if not values:
            return {}
        own = torch.stack([value.detach().float().to(self.accelerator.device) for value in values.values()])
        return dict(zip(values, self.accelerator.reduce(own, "mean").tolist(), strict=True))

    def _cost(self) -> dict[str, float]:
        """Cost since the run began, not counting interruptions."""
        device = self.accelerator.device
        cost = {
            "seconds": self.spent.get("seconds", 0.0) + time.perf_counter() - self.start,
            "peak_memory_mib": max(self.spent.get("peak_memory_mib", 0.0), peak_memory_mib(device)),
        }
        if self.energy is not None and (now := energy_joules(device)) is not None:
            cost["energy_joules"] = self.spent.get("energy_joules", 0.0) + now - self.energy
        return cost

    def scalars(self, step: int, row: dict[str, float]) -> None:
        """Write values of a step to `metrics.jsonl` and the trackers, on the first process."""
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
            show(self.trackers, row, step)

    def _line(self, step: int, row: dict[str, float]) -> str:
        steps = self.schedule.steps
        left = (time.perf_counter() - self.start) / (step - self.first) * (steps - step)
        terms = " ".join(f"{k.removeprefix('loss/')} {v:.3f}" for k, v in row.items() if k.startswith("loss/"))
        skipped = sum(int(v) for k, v in row.items() if k.startswith("skipped/"))
        return (
            f"step {step}/{steps}  loss {row['loss']:.3f} ({terms})  {row['samples_per_second']:.0f} samples/s  "
            f"data wait {100 * row['data_wait']:.0f} %  {timedelta(seconds=int(left))} left"
            + (f"  {skipped} samples skipped" if skipped else "")
            + (f"  {100 * row['unpaired']:.0f} % without teacher input" if "unpaired" in row else "")
            + (f"  {row['nonfinite_steps']:.0f} non-finite steps skipped" if "nonfinite_steps" in row else "")
        )

    def close(self) -> None:
        """Finish the trackers."""
        if self.accelerator.is_main_process:
            for tracker in self.trackers:
                tracker.finish()


def _keep_lines_to(path: Path, step: int) -> dict[str, float]:
    """Remove unreadable log lines, and the lines of steps that a run repeats when it resumes from a checkpoint.

    Returns the last line with the cost of the run; empty if there is none.
    """
    if not path.exists():
        return {}
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    kept = [(line, row) for line in lines if (row := read_line(line)) is not None and row["step"] <= step]
    write_atomic(path, b"".join(line for line, _ in kept))
    return next((row for _, row in reversed(kept) if "seconds" in row), {})
