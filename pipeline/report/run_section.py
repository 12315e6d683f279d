"""Status of a run, skipped data, cost, and how to reproduce it."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from html import escape

from pipeline.common.errors import UserError
from pipeline.config.settings import made_in_python
from pipeline.data.skipped import SKIPPED, read_skipped
from pipeline.report.sentences import code, parameters, run_names
from pipeline.report.tables import TableCell, table
from pipeline.runs.reader import Run

LISTED = 50
"""Maximum number of skipped samples in the list."""


def what_happened(run: Run) -> list[str]:
    """Progress and next steps of a run that is not completely trained and evaluated, as sentences of plain text."""
    again, resumed, anew = _commands(run)
    stopped = sorted(run.folder.glob("nonfinite_rank*.json"))
    trained = (run.folder / "student").is_dir()
    if trained and run.results:
        return []
    if trained:
        if made_in_python(run.config):
            return [
                "Training has finished, but the student was not evaluated, because no `metrics` were passed to "
                "wcord.distill."
            ]
        return [f"Training has finished, but the run has not been evaluated. Next: `{run.command('evaluate')}`."]
    if not run.log and not stopped:
        return [
            f"No step was logged: training has not started, or it stopped before the first log line. Next: {again}."
        ]
    found = [_how_far(run)]
    if stopped:
        found.append(_not_finite(stopped[0].name, stopped[0].read_bytes()))
    elif run.log and (bad := [k for k, v in run.log[max(run.log)].items() if not math.isfinite(v)]):
        found.append(f"Not finite at the last step: {', '.join(sorted(bad))}.")
    checkpoints = sorted(path.name for path in run.folder.glob("checkpoints/step_*"))
    if checkpoints:
        step = int(re.sub(r"\D", "", checkpoints[-1]) or 0)
        found.append(f"The newest checkpoint is from step {step:,}. Next: resume with {resumed}.")
    else:
        found.append(f"There is no checkpoint. Next: start again with {anew}.")
    return found


def _commands(run: Run) -> tuple[str, str, str]:
    """What starts, resumes and replaces a training, as words of a sentence."""
    if made_in_python(run.config):
        call = "the program that called `wcord.distill`"
        return f"start {call}", f"`resume=True` in {call}", f"`overwrite=True` in {call}"
    command = run.command("train", "config.yaml") if run.config else "wcord train CONFIG"
    return f"`{command}`", f"`{command} --resume`", f"`{command} --overwrite`"


def _how_far(run: Run) -> str:
    train = run.config.get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    words = "Training has not finished: "
    if not run.log:
        return words + "no step was logged."
    last = max(run.log)
    words += f"the last logged step is {last:,}"
    words += f" of {steps:,} ({last / steps:.0%})" if isinstance(steps, int) and steps > 0 else ""
    return words + ". It may still be running, or it was stopped or crashed; see the last lines of its terminal or log."


def _not_finite(name: str, data: bytes) -> str:
    words = "Training stopped because the gradient was not finite in several consecutive steps"
    try:
        about = json.loads(data)
        losses = ", ".join(f"{loss} {value}" for loss, value in about["losses"].items())
        words += f", the last one step {about['step']} (losses: {losses}; gradient norm {about['grad_norm']})"
    except (ValueError, KeyError, TypeError, AttributeError):
        words += f", but `{name}`, which contains the details, is damaged"
    words += f". `{name}` lists the sample keys of the batch and the norms of features, weights and gradient."
    return f"{words} Lower `train.learning_rate` or the weight of that loss."


def faults(run: Run) -> str:
    """Samples of each dataset of a mixture, skipped samples by cause, and skipped steps, as HTML."""
    parts = [_drawn_samples(run), _skipped_samples(run)]
    if alone := run.results.get("unpaired/train") or run.last("unpaired"):
        parts.append(
            f"<p>{alone:.1%} of the training samples had no teacher view and were used only for losses that need no "
            "teacher.</p>"
        )
    if undone := run.results.get("train/nonfinite_steps") or run.last("nonfinite_steps"):
        parts.append(f"<p>{undone:,.0f} training steps were skipped because their gradient was not finite.</p>")
    return "".join(parts)


def _drawn_samples(run: Run) -> str:
    last = run.log[max(run.log)] if run.log else {}
    drawn = {name.removeprefix("drawn/"): value for name, value in last.items() if name.startswith("drawn/")}
    if not drawn:
        return ""
    total = sum(drawn.values())
    rows: list[list[TableCell]] = [
        [name, (value, f"{value:,.0f}"), (value / total, f"{value / total:.1%}")] for name, value in drawn.items()
    ]
    words = "Training samples drawn from each dataset of the mixture."
    return f'<p class="hint">{words}</p>{table(["dataset", "samples", "share"], rows)}'


def _skipped_samples(run: Run) -> str:
    try:
        listed = read_skipped(run.folder / SKIPPED)
    except UserError as error:
        return f"<p>{code(str(error))}</p>"
    counted = {
        split: {
            k.removeprefix(f"skipped/{split}/"): v for k, v in run.results.items() if k.startswith(f"skipped/{split}/")
        }
        for split in ("train", "test")
    }
    # A run without results has only the list.
    counted["train"] = counted["train"] or {cause: float(n) for cause, n in Counter(s.cause for s in listed).items()}
    causes = sorted({cause for split in counted.values() for cause in split})
    if not causes:
        return "<p>No samples were skipped in training or evaluation.</p>"
    rows: list[list[TableCell]] = [
        [cause, *((n := counted[split].get(cause, 0), f"{n:,.0f}") for split in counted)] for cause in causes
    ]
    parts = ['<p class="hint">Skipped samples, each counted once.</p>', table(["cause", *counted], rows)]
    if listed:
        first: list[list[TableCell]] = [[s.shard, s.key, s.cause, s.message] for s in listed[:LISTED]]
        parts.append(f"<h3>The first {len(first)} of {len(listed):,} in training</h3>")
        parts.append(f'<div class="scroll">{table(["shard", "key", "cause", "what was wrong"], first)}</div>')
    return "".join(parts)


def cost(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Two tables: the cost of training and the cost of the networks, as HTML."""
    training: list[list[TableCell]] = []
    for run, name in zip(runs, names, strict=True):
        seconds = run.results.get("train/seconds") or run.last("seconds")
        memory = run.results.get("train/peak_memory_mib") or max(run.series("peak_memory_mib")[1], default=None)
        energy = run.results.get("train/energy_joules") or run.last("energy_joules")
        speed, tflops = run.last("samples_per_second"), run.last("tflops")
        if seconds or memory or speed:
            training.append(
                [
                    name,
                    (seconds, _duration(seconds)) if seconds else "-",
                    (memory, f"{memory:,.0f} MiB") if memory else "-",
                    (energy, f"{energy / 1000:,.1f} kJ") if energy else "not available",
                    (speed, f"{speed:,.0f}") if speed else "-",
                    (tflops, _tflops(tflops, run.last("mfu"))) if tflops else "-",
                ]
            )
    parts = []
    if training:
        head = ["training", "wall time", "peak memory", "energy", "samples/s at the end", "TFLOP/s per process (MFU)"]
        parts.append(f'<div class="scroll">{table(head, training)}</div>')
    if networks := _networks(runs[0]):
        head = ["network", "parameters", "multiply-adds per sample", "latency of one sample"]
        parts.append(f'<h3>Networks</h3><div class="scroll">{table(head, networks)}</div>')
    if not parts:
        return "<p>Unknown: the log contains no times, and <code>results.json</code> contains no sizes.</p>"
    words = (
        "Memory is that of the GPU or, on a CPU, of the training process without its data loader workers. Energy is "
        "reported by the GPU, if supported. MFU is TFLOP/s divided by the dense peak of the GPU, if that is known, "
        "and includes recomputed forward passes. Latency is the median of 20 passes on the machine that ran the "
        "evaluation, which may have been busy."
    )
    return f'<p class="hint">{words}</p>{"".join(parts)}'


def _networks(run: Run) -> list[list[TableCell]]:
    rows: list[list[TableCell]] = []
    for role in ("student", "teacher"):
        size, operations = run.results.get(f"parameters/{role}"), run.results.get(f"multiply_adds/{role}")
        device, latency = next(
            ((k.split("/")[-1], v) for k, v in run.results.items() if k.startswith(f"latency_ms/{role}/")), ("", None)
        )
        if size is not None:
            rows.append(
                [
                    role,
                    (size, parameters(size)),
                    (operations, f"{operations / 1e6:,.2f} M") if operations else "-",
                    (latency, f"{latency:.2f} ms ({device})") if latency else "-",
                ]
            )
    return rows


def _tflops(value: float, mfu: float | None) -> str:
    return f"{value:.3g}" + (f" ({100 * mfu:.1f} %)" if mfu is not None else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def reproduce(run: Run) -> str:
    """Versions, commands and the complete config, as HTML."""
    if not run.config:
        return "<p>The run cannot be reproduced: <code>config.yaml</code> is missing.</p>"
    config, again = run.folder / "config.yaml", f"{run.folder}_again"
    lines = (
        ["wcord", "train", str(config), f"run={again}"],
        ["wcord", "evaluate", again],
        ["wcord", "report", again],
    )
    commands = "\n".join(shlex.join(line) for line in lines)
    teacher = run.config.get("teacher")
    needs = "the same packed data"
    if isinstance(teacher, dict) and teacher.get("run"):
        needs += f" and the teacher run <code>{escape(run_names(teacher['run']))}</code>"
    text = config.read_text(encoding="utf-8", errors="replace")
    head = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    made = "".join(f"<li>{escape(line)}</li>" for line in head)
    versions = f"<p>Made with:</p><ul>{made}</ul>" if made else "<p>The versions are unknown.</p>"
    repeat = f"<p>To repeat the run with {needs}:</p><pre><code>{escape(commands)}</code></pre>"
    if made_in_python(run.config):
        repeat = "<p>To repeat the run, start the program that called <code>wcord.distill</code>.</p>"
    return f"{versions}{repeat}<h3>config.yaml</h3><pre><code>{escape(text)}</code></pre>"
