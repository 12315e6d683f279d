"""What is written about a run while it trains: metrics.jsonl, trackers, a line for the person who waits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.collapse import collapse_warnings
from pipeline.config import Config
from pipeline.cost import energy_joules, peak_memory_mib
from pipeline.model import Distillation
from pipeline.prepare import Batch
from pipeline.runs import read_line
from pipeline.schedule import Schedule
from pipeline.shards import write_atomic
from pipeline.trackers import show, start_trackers


class Log:
    """`waiting` for a batch, `add` its losses, and now and then `write` a line of their means."""

    def __init__(self, config: Config, run: Path, step: int, schedule: Schedule, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.schedule = config, accelerator, schedule
        self.terms: dict[str, Tensor] = {}
        self.warned: set[str] = set()
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
        """The next batch, with the time that it takes counted as waiting for data."""
        if self.written:  # the clock stands still while checkpoints and checks are made after a line
            self._restart()
        before = time.perf_counter()
        batch = next(batches)
        took = time.perf_counter() - before
        self.waited += min(took, batch.pop("loading", took))  # the rest was for a teacher that runs ahead
        return batch

    def add(self, loss: Tensor, terms: dict[str, Tensor], batch: Batch) -> None:
        """Take in a step: the loss and its weighted terms, scalars each, and the batch's share of unpaired samples."""
        self.count += 1
        alone = {"unpaired": 1 - batch["paired"].to(loss.device).float().mean()} if "paired" in batch else {}
        for name, value in {"loss": loss.detach(), **{f"loss/{k}": v for k, v in terms.items()}, **alone}.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value

    def write(
        self, step: int, rate: float, norm: Tensor | float, model: Distillation, skipped: Mapping[str, int], undone: int
    ) -> None:
        """Average the terms since the last line over steps and ranks, and write them with the losses' metrics, which
        some losses know of their own rank's samples only.

        skipped: training samples that were passed over so far, by cause. undone: steps that this process has not taken
        because their gradient was not finite.
        """
        if not self.terms:  # no step was taken since the last line
            return
        seconds = time.perf_counter() - self.since
        means = self._over_ranks({name: value / self.count for name, value in self.terms.items()})
        undone += int(self.spent.get("nonfinite_steps", 0))
        row = {
            "epoch": step / self.schedule.steps_per_epoch,
            **means,
            "lr": rate,
            "grad_norm": float(norm),
            "samples_per_second": self.count * self.config.data.batch_size / seconds,
            "data_wait": self.waited / seconds,
            **self._cost(),
            **self._over_ranks(model.metrics()),
            **({"nonfinite_steps": float(undone)} if undone else {}),
            **{f"skipped/{cause}": float(count) for cause, count in skipped.items()},
        }
        self.scalars(step, row)
        self.written = True
        if self.accelerator.is_main_process:
            print(self._line(step, row), flush=True)
            if step > max(self.config.train.warmup, self.schedule.steps // 5):  # before, features still form
                self._warn(row)

    def _over_ranks(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Means of scalars that every rank has under the same names."""
        if not values:
            return {}
        own = torch.stack([value.detach().float().to(self.accelerator.device) for value in values.values()])
        return dict(zip(values, self.accelerator.reduce(own, "mean").tolist(), strict=True))

    def _cost(self) -> dict[str, float]:
        """Since the run began, interruptions left out."""
        device = self.accelerator.device
        cost = {
            "seconds": self.spent.get("seconds", 0.0) + time.perf_counter() - self.start,
            "peak_memory_mib": max(self.spent.get("peak_memory_mib", 0.0), peak_memory_mib(device)),
        }
        if self.energy is not None and (now := energy_joules(device)) is not None:
            cost["energy_joules"] = self.spent.get("energy_joules", 0.0) + now - self.energy
        return cost

    def scalars(self, step: int, row: dict[str, float]) -> None:
        """Write values of a step to `metrics.jsonl` and the trackers, by the first process."""
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
            f"waiting for data {row['data_wait']:.0%}  {int(left // 60)}:{int(left % 60):02d} left"
            + (f"  {skipped} samples skipped" if skipped else "")
            + (f"  {row['unpaired']:.0%} without the teacher's view" if "unpaired" in row else "")
            + (f"  {row['nonfinite_steps']:.0f} steps not finite" if "nonfinite_steps" in row else "")
        )

    def _warn(self, row: dict[str, float]) -> None:
        for warning in collapse_warnings(row):
            if (kind := warning.split("(")[0]) not in self.warned:
                self.warned.add(kind)
                print(f"warning: {warning}", flush=True)

    def close(self) -> None:
        """End the trackers."""
        if self.accelerator.is_main_process:
            for tracker in self.trackers:
                tracker.finish()


def _keep_lines_to(path: Path, step: int) -> dict[str, float]:
    """Drop the log lines after the checkpoint that a run goes on from: their steps come again; and unreadable ones.

    Returns the last line with what the run had cost by then; empty if there is none.
    """
    if not path.exists():
        return {}
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    kept = [(line, row) for line in lines if (row := read_line(line)) is not None and row["step"] <= step]
    write_atomic(path, b"".join(line for line, _ in kept))
    return next((row for _, row in reversed(kept) if "seconds" in row), {})
