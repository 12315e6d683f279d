"""What a step spends its time on, in words, and as a trace for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from pipeline.model import Distillation
from pipeline.prepare import Batch

TRACE = "profile.json"
SKIPPED, STEPS = 3, 10
"""The first steps also allocate and compile; then so many are recorded."""

ADVICE = {
    "data": "more data.workers, data.in_memory for small photos, or `wcord cache`, which spares the teacher's inputs",
    "teacher": "`wcord cache` runs it once instead of at every step",
    "student": "train.precision=bf16 or train.compile=true, or a smaller encoder",
    "backward": "train.precision=bf16 or train.compile=true, or a smaller encoder",
    "losses": "a smaller `queue` or `dim` of the dearest",
    "optimiser": "a larger data.batch_size takes fewer steps",
    "rest": "checkpoints and checks more seldom: train.checkpoint_every, evaluation.every",
}


class Profile:
    """Hooks on networks, losses and optimiser, which are gone once the trace is written.

    Time is charged to the innermost part that runs; parts end with a synchronisation, so that a GPU's work counts where
    it was asked for, and profiled steps are slower than others. What of the student is run again for the backward
    pass (gradient caching) counts as student. Clipping and the exchange between processes count as backward.
    """

    def __init__(self, run: Path, model: Distillation, optimizer: torch.optim.Optimizer) -> None:
        self.run, self.steps, self.done = run, 0, False
        self.spent: dict[str, float] = defaultdict(float)
        self.open: list[tuple[str, Any]] = []
        self.between, self.mark = "rest", time.perf_counter()
        self.cuda = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        self.profiler = profile(activities=activities)
        losses = {name: model.losses[key] for key, name in model.names.items()}
        parts: dict[str, nn.Module | None] = {"teacher": model.teacher, "student": model.student}
        parts |= {f"losses {name}": loss for name, loss in losses.items()}
        self.hooks = [
            handle
            for name, part in parts.items()
            if part is not None
            for handle in (
                part.register_forward_pre_hook(lambda *_, name=name: self._begin(name)),
                part.register_forward_hook(lambda *_: self._end()),
            )
        ]
        self.hooks += [
            model.register_forward_hook(lambda *_: self._charge("backward")),
            optimizer.register_step_pre_hook(lambda *_: self._begin("optimiser")),
            optimizer.register_step_post_hook(lambda *_: self._step()),
        ]

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the wait for each is charged to data."""
        while True:
            if not self.done:
                self._begin("data")
            batch = next(batches)
            if not self.done:
                self._end()
            yield batch

    def close(self) -> None:
        """Write the trace, if that was not done, of as many steps as there were."""
        if self.done:
            return
        self.done = True
        for hook in self.hooks:
            hook.remove()
        if (steps := self.steps - SKIPPED) < 1:
            print(f"profile: nothing recorded in {self.steps} steps; it takes {SKIPPED + 1} at least.", flush=True)
            return
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.run / TRACE))
        print(in_words(self.spent, steps), f"The trace: {self.run / TRACE} (ui.perfetto.dev shows it).", flush=True)

    def _begin(self, name: str) -> None:
        self._charge()
        span = record_function(name)
        span.__enter__()
        self.open.append((name, span))

    def _end(self) -> None:
        self._charge()
        self.open.pop()[1].__exit__(None, None, None)

    def _charge(self, between: str | None = None) -> None:
        """Charge the time since the last mark to what ran; `between`: what runs from here on where no part does."""
        if self.cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.spent[self.open[-1][0] if self.open else self.between] += now - self.mark
        self.mark, self.between = now, between or self.between

    def _step(self) -> None:
        self._end()
        self.between = "rest"
        self.steps += 1
        if self.steps == SKIPPED:
            self.profiler.start()
            self.spent.clear()
            self.mark = time.perf_counter()
        elif self.steps == SKIPPED + STEPS:
            self.close()


def in_words(spent: dict[str, float], steps: int) -> str:
    """What the steps spent their time on, the dearest first, and what could be done about that.

    spent: seconds by part, each loss as `losses NAME`.
    """
    whole = sum(spent.values())
    parts: dict[str, float] = defaultdict(float)
    for name, seconds in spent.items():
        parts[name.split(" ")[0]] += seconds
    losses = {name.split(" ", 1)[1]: seconds for name, seconds in spent.items() if name.startswith("losses ")}
    ordered = sorted(parts, key=lambda name: -parts[name])
    shares = {name: f"{name} {parts[name] / whole:.0%}" for name in ordered}
    if len(losses) > 1:
        each = (f"{name} {losses[name] / whole:.0%}" for name in sorted(losses, key=lambda name: -losses[name]))
        shares["losses"] += f" ({', '.join(each)})"
    return (
        f"profile: a step took {whole / steps * 1e3:.1f} ms: {', '.join(shares.values())}. "
        f"To spend less on {ordered[0]}: {ADVICE[ordered[0]]}."
    )
