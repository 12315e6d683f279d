"""Damage one file of a finished run folder at a time and count the commands that end in a traceback.

python -m benchmarks.damaged_runs --cases 2000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.kill_and_resume import run as complete
from benchmarks.kill_and_resume import wcord
from pipeline.cli.app import main as command_line
from pipeline.common.errors import UserError
from pipeline.inference.server import Desk

DEEP = b"[" * 100_000
STRANGE: list[Any] = [
    *(None, True, -1, 0, 10**12, 10**400, 1.5, float("nan"), float("inf"), [], [[]], {}, {"a": {"a": 1}}, [None]),
    *("", "a\0b", "\udcff", "\x1b[2J<b>", "x" * 5000, "./", ".", "./..", "/etc/passwd", "/", ["."], ["a", 1]),
]
"""Values that take the place of others in JSON and YAML."""

USED = {
    "config.yaml": ("report", "compare", "search", "serve", "evaluate", "export"),
    "results.json": ("report", "compare"),
    "student/network.json": ("predict", "search", "serve", "evaluate", "export"),
    "student/model.safetensors": ("predict", "serve", "evaluate"),
    "student/space.safetensors": ("search", "serve"),
    "index/index.json": ("search",),
    "index/vectors.faiss": ("search",),
    "evaluation": ("report", "serve"),
}
"""File or folder in a run -> commands that read it; `report` reads the others."""

COMMANDS = ("report", "compare", "predict", "search", "serve", "evaluate")

CONFIG = """
run: {folder}/unset
data: {{shards: {folder}/data, batch_size: 16, workers: 0}}
student: {{modality: depth, encoder: {{name: cnn5, width: 4, size: 16}}}}
losses: {{cross_entropy: {{}}}}
train: {{steps: 20, log_every: 5, warmup: 2}}
"""


@dataclass(frozen=True)
class Case:
    """One damage: `apply` changes `file` of a run folder."""

    file: str
    name: str
    apply: Callable[[Path], None]


def files(run: Path) -> list[str]:
    """The files of a run that its commands read, relative to the folder."""
    skip = ("checkpoints", "tensorboard", "best")
    found = (path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file())
    return [str(path) for path in found if path.parts[0] not in skip and path.suffix != ".lock"]


def cases(run: Path, seed: int = 0) -> Iterator[Case]:
    """Endless damages of a run folder, over all its files in turn."""
    rng, names = random.Random(seed), files(run)
    content = {name: (run / name).read_bytes() for name in names}
    generic = (truncated, emptied, flipped, foreign, deep, folder_instead, broken_link, removed)
    while True:
        for name in names:
            specific: list[Any] = []
            if name.endswith((".json", ".jsonl", ".yaml")):
                specific = [structured] * 12
            elif name.endswith(".npz"):
                specific = [arrays] * 8
            if name.endswith("network.json"):
                specific += [loops] * 4
            yield rng.choice([*generic, *specific])(name, content[name], rng)


def truncated(name: str, data: bytes, rng: random.Random) -> Case:
    return Case(name, "truncated", writes(data[: rng.randrange(len(data) + 1)]))


def emptied(name: str, data: bytes, rng: random.Random) -> Case:
    return Case(name, "emptied", writes(b""))


def flipped(name: str, data: bytes, rng: random.Random) -> Case:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 3, 30])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return Case(name, "flipped", writes(bytes(changed)))


def foreign(name: str, data: bytes, rng: random.Random) -> Case:
    """Bytes that are no UTF-8 in a name."""
    place = data.find(b'"') + 1
    return Case(name, "not UTF-8", writes(data[:place] + b"\xff\xfe" + data[place:]))


def deep(name: str, data: bytes, rng: random.Random) -> Case:
    return Case(name, "deep", writes(rng.choice([DEEP, b'{"a":' * 100_000, b"a: " + DEEP[:3000]])))


def folder_instead(name: str, data: bytes, rng: random.Random) -> Case:
    return Case(name, "a folder", lambda path: path.mkdir())


def broken_link(name: str, data: bytes, rng: random.Random) -> Case:
    target = rng.choice(["nowhere", Path(name).name])  # the latter is itself
    return Case(name, "a broken link", lambda path: path.symlink_to(target))


def removed(name: str, data: bytes, rng: random.Random) -> Case:
    return Case(name, "removed", lambda path: None)


def structured(name: str, data: bytes, rng: random.Random) -> Case:
    """A value of JSON or YAML replaced or removed, or a key renamed."""
    lines = data.splitlines() if name.endswith(".jsonl") else [data]
    row = rng.randrange(len(lines))
    whole = [yaml.safe_load(lines[row]) if name.endswith(".yaml") else json.loads(lines[row])]
    holder, key = rng.choice(list(places(whole)))
    value, way = rng.choice(STRANGE), rng.choice(["replaced", "replaced", "replaced", "without", "renamed"])
    if way == "without" and holder is not whole:
        del holder[key]
    elif way == "renamed" and isinstance(holder, dict):
        holder[rng.choice(["", "a\0b", "\udcff", "\x1b[2J", "<b>"])] = holder.pop(key)
    else:
        way, holder[key] = f"{key!r} replaced by {str(value)[:30]!r}", value
    lines[row] = (yaml.dump(whole[0]) if name.endswith(".yaml") else json.dumps(whole[0])).encode("utf-8", "replace")
    return Case(name, way, writes(b"\n".join(lines)))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object within a value, with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0):
        yield value, key
        yield from places(value[key])


def arrays(name: str, data: bytes, rng: random.Random) -> Case:
    """An array with another type, shape or values, or missing."""
    with np.load(io.BytesIO(data)) as file:
        held = dict(file)
    key = rng.choice(sorted(held))
    array = held[key]
    ways: dict[str, Callable[[], Any]] = {
        "empty": lambda: array[..., :0] if array.ndim else np.empty(0),
        "other axes": lambda: array[None],
        "shorter": lambda: array[:-1] if array.ndim else array,
        "a text": lambda: np.array("\x1b[2J<b>"),
        "objects": lambda: np.array([{}, None], dtype=object),
        "negative": lambda: np.full_like(array, -7) if array.dtype.kind in "if" else array,
        "huge": lambda: np.full_like(array, 2**62) if array.dtype == np.int64 else array,
        "not finite": lambda: np.full(array.shape, np.nan),
        "complex": lambda: np.zeros(array.shape, complex),
        "strange names": lambda: np.full(array.shape, "\x1b[2J<b>\udcff"),
        "missing": lambda: None,
    }
    way = rng.choice(sorted(ways))
    held = {k: v for k, v in {**held, key: ways[way]()}.items() if v is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **held)
    return Case(name, f"{key}: {way}", writes(buffer.getvalue()))


def loops(name: str, data: bytes, rng: random.Random) -> Case:
    """A network that names itself, or leads out of its folder."""
    part = rng.choice(["./", ".", "./.", "/tmp", "./../student", "./../..", "~"])
    about = rng.choice([{"networks": [part], "classes": None}, {**json.loads(data), "networks": [part, part]}])
    return Case(name, f"networks: {part}", writes(json.dumps(about).encode()))


def writes(data: bytes) -> Callable[[Path], None]:
    """What writes these bytes to a file."""

    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def attempt(command: str, run: Path, example: Path) -> str | None:
    """Run a command on a run folder in this process.

    Returns:
        Its traceback; None if it succeeded or named a fault that the user can fix.
    """
    out = run.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    arguments: dict[str, list[object]] = {
        "report": ["report", run],
        "compare": ["compare", run, "--out", out],
        "evaluate": ["evaluate", run],
        "export": ["export", run, out],
        "predict": ["predict", run, example],
        "search": ["search", run / "index", "--depth", example],
    }
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            if command == "serve":
                Desk(run).answer("student", example.read_bytes())
            else:
                command_line(list(map(str, arguments[command])))
    except UserError:
        return None
    except SystemExit as ended:
        return None if ended.code in (0, 1, 2) else f"exit code {ended.code}"
    except BaseException:
        return traceback.format_exc()
    return None


def tried(pristine: Path, case: Case, folder: Path, example: Path, commands: tuple[str, ...]) -> Iterator[str]:
    """The tracebacks of the commands that read the damaged file."""
    used = next((own for name, own in USED.items() if case.file.startswith(name)), ("report",))
    for command in set(used) & set(commands):
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(pristine, run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
        (run / case.file).unlink()
        case.apply(run / case.file)
        if found := attempt(command, run, example):
            yield f"{command}, {case.file}, {case.name}:\n{found}"


def prepare(folder: Path) -> tuple[Path, Path]:
    """Make a finished run with an index, and a file to ask about.

    Returns:
        The run folder, and the file.
    """
    path = folder / "student.yaml"
    path.write_text(CONFIG.format(folder=folder))
    complete(wcord("pack", "tabletop", f"{folder}/data", "--scenes", "60", "--size", "32"))
    complete(wcord("train", str(path), f"run={folder}/teacher", "student.modality=rgb"))
    run = folder / "student"
    complete(wcord("train", str(path), f"run={run}", f"teacher={{run: {folder}/teacher}}"))
    complete(wcord("evaluate", str(run)))
    complete(wcord("embed", str(run), f"{folder}/data", "--index", str(run / "index")))
    return run, example_of(folder)


def example_of(folder: Path) -> Path:
    """A depth map."""
    import cv2

    path = folder / "example.png"
    cv2.imwrite(str(path), np.full((32, 32), 900, np.uint16))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", default=[*COMMANDS])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pristine, example = prepare(Path(name))
        found: Counter[str] = Counter()
        endless = cases(pristine, options.seed)
        for number in range(options.cases):
            for text in tried(pristine, next(endless), Path(name) / "work", example, tuple(options.commands)):
                found[text.splitlines()[-1]] += 1
                print(f"case {number}: {text}", flush=True)
    print(f"{options.cases} damaged run folders, {found.total()} tracebacks")
    for line, count in found.most_common():
        print(f"{count:5d}  {line}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
