"""What happened to a run, what of its data could not be used, what it cost, and how to make it again."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from html import escape

from pipeline.errors import UserError
from pipeline.report_tables import Cell, table
from pipeline.report_words import code, parameters, run_names
from pipeline.runs import Run
from pipeline.skipped import SKIPPED, read_skipped

LISTED = 50
"""Skipped samples that are listed one by one."""


def what_happened(run: Run) -> list[str]:
    """Of a run that was not trained and measured to its end: how far it came and what to do next, as plain text."""
    config = run.command("train", "config.yaml") if run.config else "wcord train CONFIG"
    stopped = sorted(run.folder.glob("nonfinite_rank*.json"))
    trained = (run.folder / "student").is_dir()
    if trained and run.results:
        return []
    if trained:
        return [f"The training has finished, but nothing has been measured. Next: `{run.command('evaluate')}`."]
    if not run.log and not stopped:
        return [
            f"No step was logged: the training has not begun, or ended before its first log line. Next: `{config}`."
        ]
    found = [_how_far(run)]
    if stopped:
        found.append(_not_finite(stopped[0].name, stopped[0].read_bytes()))
    elif run.log and (bad := [k for k, v in run.log[max(run.log)].items() if not math.isfinite(v)]):
        found.append(f"At its last step these were not finite: {', '.join(sorted(bad))}.")
    checkpoints = sorted(path.name for path in run.folder.glob("checkpoints/step_*"))
    if checkpoints:
        step = int(re.sub(r"\D", "", checkpoints[-1]) or 0)
        found.append(f"Its newest checkpoint is of step {step:,}. Next: `{config} --resume` goes on from there.")
    else:
        found.append(f"It left no checkpoint. Next: `{config} --overwrite` begins again.")
    return found


def _how_far(run: Run) -> str:
    train = run.config.get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    words = "The training has not finished: "
    if not run.log:
        return words + "no step was logged."
    last = max(run.log)
    words += f"the last logged step is {last:,}"
    words += f" of {steps:,} ({last / steps:.0%})" if isinstance(steps, int) and steps > 0 else ""
    return (
        words + ". It may still be running, or was stopped, or crashed; its own last words are in its terminal or log."
    )


def _not_finite(name: str, data: bytes) -> str:
    words = "It ended because its gradient was not finite in several steps in a row"
    try:
        about = json.loads(data)
        losses = ", ".join(f"{loss} {value}" for loss, value in about["losses"].items())
        words += f", the last of them step {about['step']} (losses: {losses}; gradient norm {about['grad_norm']})"
    except (ValueError, KeyError, TypeError, AttributeError):
        words += f", but `{name}`, which says when, is damaged"
    words += f". The batch's keys, and the norms of its features, the weights and the gradient are in `{name}`."
    return f"{words} Lower `train.learning_rate` or the weight of that loss."


def faults(run: Run) -> str:
    """Samples that training and evaluation passed over, by cause, a list of the first; those that the teacher did not
    see; steps not taken."""
    parts = [_skipped_samples(run)]
    if alone := run.results.get("unpaired/train") or run.last("unpaired"):
        parts.append(f"<p>{alone:.1%} of the training samples were kept without the teacher's view: labels alone.</p>")
    if undone := run.results.get("train/nonfinite_steps") or run.last("nonfinite_steps"):
        parts.append(f"<p>{undone:,.0f} training steps were not taken: their gradient was not finite.</p>")
    return "".join(parts)


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
    # A run that was not measured has its list alone.
    counted["train"] = counted["train"] or {cause: float(n) for cause, n in Counter(s.cause for s in listed).items()}
    causes = sorted({cause for split in counted.values() for cause in split})
    if not causes:
        return "<p>None: no sample was skipped, in training or in evaluation.</p>"
    rows: list[list[Cell]] = [
        [cause, *((n := counted[split].get(cause, 0), f"{n:,.0f}") for split in counted)] for cause in causes
    ]
    parts = ['<p class="hint">Samples that were skipped, each counted once.</p>', table(["cause", *counted], rows)]
    if listed:
        first: list[list[Cell]] = [[s.shard, s.key, s.cause, s.message] for s in listed[:LISTED]]
        parts.append(f"<h3>The first {len(first)} of {len(listed):,} in training</h3>")
        parts.append(f'<div class="scroll">{table(["shard", "key", "cause", "what was wrong"], first)}</div>')
    return "".join(parts)


def cost(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Two tables: what training took, and what the networks take."""
    training: list[list[Cell]] = []
    for run, name in zip(runs, names, strict=True):
        seconds = run.results.get("train/seconds") or run.last("seconds")
        memory = run.results.get("train/peak_memory_mib") or max(run.series("peak_memory_mib")[1], default=None)
        energy = run.results.get("train/energy_joules") or run.last("energy_joules")
        speed = run.last("samples_per_second")
        if seconds or memory or speed:
            training.append(
                [
                    name,
                    (seconds, _duration(seconds)) if seconds else "-",
                    (memory, f"{memory:,.0f} MiB") if memory else "-",
                    (energy, f"{energy / 1000:,.1f} kJ") if energy else "not told",
                    (speed, f"{speed:,.0f}") if speed else "-",
                ]
            )
    parts = []
    if training:
        head = ["training", "wall time", "peak memory", "energy", "samples/s at the end"]
        parts.append(f'<div class="scroll">{table(head, training)}</div>')
    if networks := _networks(runs[0]):
        head = ["network", "parameters", "multiply-adds a sample", "latency of one sample"]
        parts.append(f'<h3>Networks</h3><div class="scroll">{table(head, networks)}</div>')
    if not parts:
        return "<p>Not known: the log tells no time, and <code>results.json</code> no sizes.</p>"
    words = (
        "Memory is the GPU's, or on a CPU that of the training process without its loaders. Energy is the GPU's own "
        "count, where it tells. Latency is the median of 20 passes on the machine that evaluated, which may have had "
        "other work."
    )
    return f'<p class="hint">{words}</p>{"".join(parts)}'


def _networks(run: Run) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
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


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def reproduce(run: Run) -> str:
    """Versions, commands and the whole config."""
    if not run.config:
        return "<p>The run cannot be repeated: <code>config.yaml</code> is missing.</p>"
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
    versions = (
        f"<p>It was made with:</p><ul>{made}</ul>" if made else "<p>The versions that it ran with are not known.</p>"
    )
    return (
        f"{versions}<p>The same again, given {needs}:</p><pre><code>{escape(commands)}</code></pre>"
        f"<h3>config.yaml</h3><pre><code>{escape(text)}</code></pre>"
    )
