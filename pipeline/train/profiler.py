"""Profile training steps: a summary, and a trace for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from pipeline.data.views import Batch
from pipeline.models.distillation import Distillation

log = logging.getLogger(__name__)

TRACE = "profile.json"
SKIPPED, STEPS = 3, 10
"""Number of first steps to skip, since they also allocate and compile; and number of steps to record after them."""

ADVICE = {
    "data": "more data.workers, data.in_memory for small photos, or teacher.cache=auto to skip the teacher's inputs",
    "teacher": "teacher.cache=auto runs it only once per sample, if the views repeat (docs: long runs)",
    "student": "train.precision=bf16 or train.compile=true, or a smaller encoder",
    "backward": "train.precision=bf16 or train.compile=true, or a smaller encoder",
    "losses": "a smaller `queue` or `dim` of the most expensive loss",
    "optimiser": "a larger data.batch_size, which needs fewer steps",
    "rest": "less frequent checkpoints and validation: train.checkpoint_every, evaluation.every",
}


class Profile:
    """Hooks on networks, losses and optimiser, which are removed after the trace has been written.

    Time is attributed to the innermost running part. Parts end with a synchronisation, which attributes GPU work to the
    part that launched it and makes profiled steps slower. Recomputation of the student in the backward pass (gradient
    caching) counts as student. Clipping and communication count as backward.

    Args:
        run: The run folder.
        model: The model.
        optimizer: The optimiser.
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
        """Yield the same batches; the time spent waiting for each counts as data."""
        while True:
            if not self.done:
                self._begin("data")
            batch = next(batches)
            if not self.done:
                self._end()
            yield batch

    def close(self) -> None:
        """Write the trace of the steps so far, unless it has been written."""
        if self.done:
            return
        self.done = True
        for hook in self.hooks:
            hook.remove()
        if (steps := self.steps - SKIPPED) < 1:
            log.info(f"profile: nothing recorded in {self.steps} steps; at least {SKIPPED + 1} are needed.")
            return
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.run / TRACE))
        log.info(f"{describe_profile(self.spent, steps)} Trace: {self.run / TRACE} (open it in ui.perfetto.dev).")

    def _begin(self, name: str) -> None:
        self._charge()
        span = record_function(name)
        span.__enter__()
        self.open.append((name, span))

    def _end(self) -> None:
        self._charge()
        self.open.pop()[1].__exit__(None, None, None)

    def _charge(self, between: str | None = None) -> None:
        """Attribute the time since the last mark to the running part, or to `between` if no part is running."""
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


def describe_profile(spent: dict[str, float], steps: int) -> str:
    """Describe where steps spent their time, with the most expensive part first, and how to reduce it.

    Args:
        spent: Part -> seconds; each loss is `losses NAME`.
        steps: Number of steps.
    """
    whole = sum(spent.values())
    parts: dict[str, float] = defaultdict(float)
    for name, seconds in spent.items():
        parts[name.split(" ")[0]] += seconds
    losses = {name.split(" ", 1)[1]: seconds for name, seconds in spent.items() if name.startswith("losses ")}
    ordered = sorted(parts, key=lambda name: -parts[name])
    shares = {name: f"{name} {100 * parts[name] / whole:.0f}%" for name in ordered}
    if len(losses) > 1:
        each = (f"{name} {100 * losses[name] / whole:.0f}%" for name in sorted(losses, key=lambda name: -losses[name]))
        shares["losses"] += f" ({', '.join(each)})"
    return (
        f"profile: a step took {whole / steps * 1e3:.1f} ms: {', '.join(shares.values())}. "
        f"To reduce {ordered[0]}: {ADVICE[ordered[0]]}."
    )
