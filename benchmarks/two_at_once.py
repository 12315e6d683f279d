"""Start two processes that write one folder, stop or kill the first, and check that the results are never mixed.

python -m benchmarks.two_at_once --rounds 20
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.kill_and_resume import kill_all, start, wcord
from benchmarks.kill_and_resume import run as complete
from pipeline.common.files import host

OFFSET = 5.0
"""The second process starts up to so many seconds after the first."""

EVENTS = ("neither", "stopped", "killed")
PATIENCE = 120.0
CONFIG = """
run: {folder}/unset
data: {{shards: {folder}/data, batch_size: 16, workers: 1, crop: [0.6, 1.0]}}
student: {{modality: depth, encoder: {{name: cnn5, width: 8, size: 32}}}}
losses: {{cross_entropy: {{}}}}
train: {{steps: 10, warmup: 2, log_every: 5, trackers: []}}
"""


@dataclass(frozen=True)
class Contest:
    """A command with two settings that write to one output.

    Attributes:
        commands: The command with each of the settings.
        output: The folder.
        written: Pattern of the files in the folder that the command writes.
    """

    commands: tuple[list[str], list[str]]
    output: Path
    written: str = "**/*"

    def clear(self) -> None:
        """Remove what the command has written."""
        if self.written == "**/*":
            shutil.rmtree(self.output, ignore_errors=True)
        for path in self.leftovers():
            path.unlink() if path.is_file() else shutil.rmtree(path)
        for path in self.output.glob(self.written):
            path.unlink()

    def leftovers(self) -> list[Path]:
        """Locks, notes and temporary files."""
        hidden = [path for parent in {self.output.parent, self.output} for path in parent.glob(".*.*")]
        return [*(path for path in hidden if path.name != ".packing"), *self.output.rglob("*.part-*")]

    def content(self) -> dict[str, str]:
        """File -> hash of all that does not depend on the time."""
        found = {}
        for path in sorted(self.output.glob(self.written)):
            if path.is_file():
                data = path.read_bytes()
                if path.name == "metrics.jsonl":
                    lines = map(json.loads, data.splitlines())
                    data = repr([(line.get("step"), line.get("loss")) for line in lines]).encode()
                elif path.name == "README.md":  # contains latencies
                    data = re.sub(rb"[\d.]+", b"", data)
                found[path.relative_to(self.output).as_posix()] = hashlib.sha256(data).hexdigest()
        return found


@dataclass
class Process:
    """A started command."""

    number: int
    popen: subprocess.Popen[str]
    output: str = ""

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self.popen.pid

    def end(self) -> int:
        """Wait for it; its exit code."""
        try:
            self.output += self.popen.communicate(timeout=PATIENCE)[0] or ""
        except subprocess.TimeoutExpired:
            kill_all(self.popen)
            self.output += f"did not end within {PATIENCE:.0f} s"
        return self.popen.wait()


def started(contest: Contest, number: int) -> Process:
    """Start the command with one of the two settings."""
    return Process(number, start(contest.commands[number]))


def references(contest: Contest) -> list[dict[str, str]]:
    """The results of both settings, each made alone."""
    found = []
    for command in contest.commands:
        contest.clear()
        complete(command)
        found.append(contest.content())
    if found[0] == found[1]:
        raise SystemExit(f"{contest.output}: both settings give the same result; a mix would not be seen")
    return found


def disturb(process: Process, event: str, rng: random.Random) -> None:
    """Stop a process for some seconds, or kill it; half the time with its child processes."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        hit = [parent, *(parent.children(recursive=True) if rng.random() < 0.5 else [])]
        for one in hit:
            with suppress(psutil.NoSuchProcess):
                one.kill() if event == "killed" else one.suspend()
        if event == "stopped":
            time.sleep(rng.uniform(1, 4))
            for one in hit:
                with suppress(psutil.NoSuchProcess):
                    one.resume()


def compete(contest: Contest, event: str, rng: random.Random) -> tuple[Process, Process]:
    """Start both settings in a random order and with a random offset, disturb the first, and wait for the ends."""
    numbers = rng.sample((0, 1), 2)
    offset, at = rng.uniform(0, OFFSET), rng.uniform(1, 12)
    begun = time.monotonic()
    first = second = started(contest, numbers[0])
    todo: list[tuple[float, str]] = sorted([(offset, "start"), *([(at, event)] if event != "neither" else [])])
    for due, what in todo:
        time.sleep(max(0.0, begun + due - time.monotonic()))
        if what == "start":
            second = started(contest, numbers[1])
        else:
            disturb(first, what, rng)
    first.end(), second.end()
    return first, second


def judge(contest: Contest, alone: list[dict[str, str]], event: str, rng: random.Random) -> tuple[str, list[str]]:
    """One round.

    Returns:
        The outcome in words, and the faults.
    """
    contest.clear()
    both = compete(contest, event, rng)
    codes = [process.popen.returncode for process in both]
    faults = [text for one, other in (both, both[::-1]) for text in misfits(one, other, event == "killed")]
    winners = [process for process in both if process.popen.returncode == 0]
    words = {0: "done", 2: "refused", -9: "killed"}
    outcome = ", ".join(
        f"{name} {words.get(code, code)}" for name, code in zip(("first", "second"), codes, strict=True)
    )
    if not winners:
        winners = [started(contest, both[1].number)]
        code = winners[0].end()
        outcome += ", next start done"
        faults += [f"the next start ended with {code}: {winners[0].output[-500:]}"] if code else []
    found = contest.content()
    if not any(found == alone[process.number] for process in winners):
        faults.append(f"mixed: {differences(found, alone)}")
    faults += [f"left behind: {path}" for path in contest.leftovers()]
    return outcome, faults


def misfits(process: Process, other: Process, killed: bool) -> list[str]:
    """What is wrong with the exit code and the message of a process."""
    code, text = process.popen.returncode, process.output
    if "Traceback" in text:
        return [f"a traceback: {text[-1500:]}"]
    if code == 0 or (code == -9 and killed):
        return []
    refused = re.search(r"process (\d+) on host (.+?) is writing to it", " ".join(text.split()))
    if code == 2 and refused and (int(refused[1]), refused[2]) == (other.pid, host()):
        return []
    if code == 2 and "already exists; choose a new folder" in text and other.popen.returncode == 0:
        return []  # the other export was complete by then
    return [f"exit code {code}: {text[-1500:]}"]


def differences(found: dict[str, str], alone: list[dict[str, str]]) -> str:
    """The files in which a result differs from each of the two."""
    names = [sorted(name for name in {*found, *one} if found.get(name) != one.get(name)) for one in alone]
    return " / ".join(", ".join(some[:6]) or "none" for some in names)


def contests(folder: Path) -> dict[str, Contest]:
    """Make a dataset and two finished runs, and the commands that use them."""
    path, data = folder / "student.yaml", folder / "data"
    path.write_text(CONFIG.format(folder=folder))
    scenes = ("--size", "32", "--workers", "2")
    complete(wcord("pack", "tabletop", str(data), "--scenes", "120", "--shard-mb", "0.3", *scenes))
    runs = [folder / "one", folder / "two"]
    for seed, run in enumerate(runs):
        complete(wcord("train", str(path), f"run={run}", "student.modality=rgb", f"seed={seed}"))
    out = [folder / "work" / name for name in ("run", "packed", "exported")]
    trained = wcord("train", str(path), f"run={out[0]}", "--overwrite")
    packed = wcord("pack", "tabletop", str(out[1]), "--shard-mb", "0.05", "--overwrite", *scenes)
    cached = wcord("cache", str(path), "teacher.cache=held", "teacher.views=12", "losses={cosine: {}}")
    return {
        "train": Contest(([*trained, "train.steps=120"], [*trained, "train.steps=100", "seed=1"]), out[0]),
        "pack": Contest(([*packed, "--scenes", "40"], [*packed, "--scenes", "30", "--seed", "1"]), out[1]),
        "cache": Contest(([*cached, f"teacher.run={runs[0]}"], [*cached, f"teacher.run={runs[1]}"]), data, "*held*"),
        "export": Contest(
            (wcord("export", str(runs[0]), str(out[2])), wcord("export", str(runs[1]), str(out[2]))), out[2]
        ),
    }


def rounds(contest: Contest, count: int, rng: random.Random, say: Callable[[str], None] = print) -> list[str]:
    """Run so many rounds, and print a table of the outcomes.

    Returns:
        The faults.
    """
    alone, faults = references(contest), list[str]()
    table: Counter[tuple[str, str]] = Counter()
    for number in range(count):
        event = rng.choice(EVENTS)
        outcome, found = judge(contest, alone, event, rng)
        table[f"first {event}" if event != "neither" else event, outcome] += 1
        faults += [f"round {number}, {event}, {outcome}: {fault}" for fault in found]
    for (event, outcome), times in sorted(table.items()):
        say(f"  {times:3d}  {event:14s}  {outcome}")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", default=["train", "pack", "cache", "export"])
    options = parser.parse_args()
    faulty = 0
    with tempfile.TemporaryDirectory() as name:
        held = contests(Path(name))
        for command in options.commands:
            contest = held[command]
            print(f"{command}: {options.rounds} rounds", flush=True)
            faults = rounds(contest, options.rounds, random.Random(f"{options.seed} {command}"))
            faulty += len(faults)
            print(*(f"  FAULT {fault}" for fault in faults), f"  {len(faults)} faults", sep="\n", flush=True)
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
