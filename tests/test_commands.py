"""Every command of the README and of the docs: what needs nothing foreign is run, and of the rest each word exists."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from foreign_shards import captioned, img2dataset, shard_writer
from launching import Started

from pipeline.cli.app import ORDER, app
from pipeline.common.files import sha256
from pipeline.config.reference import explain_key
from pipeline.data.dataset import MANIFEST
from pipeline.data.manifest import load_dataset
from pipeline.packing.synthetic import scenes as tabletop

ROOT = Path(__file__).parents[1]
COMMAND = typer.main.get_command(app)
STEPS = 6
STORIES = {
    "README": (
        "README.md",
        "docs/training.md",
        "docs/exporting.md",
        "docs/long-runs.md",
        "docs/config-reference.md",
        "docs/api.md",
    ),
    "shards": ("docs/your-own-shards.md",),
    "tutorials": ("docs/tutorial-laptop.md", "docs/tutorial-rented-machine.md"),
}
"""Pages whose `sh` and `python` blocks run in one folder, in order; YAML under `# name.yaml` becomes a file there."""

NOT_HERE = ("make ", "git ", "cd ", "pip ", "elsewhere/bin/pip ", "python -m benchmarks")
"""What a test cannot run: it would need the network, or hours."""


def recordings(folder: Path) -> None:
    """Paired photos and depth maps as the pages describe them, and a table of them."""
    rows = ["photo,map,class"]
    for index in range(160):
        scene = tabletop.scene(0, index, 48)
        name = tabletop.CLASSES[int(scene["label.txt"])]
        files = {"photos": "rgb.jpg", "depth": "depth.png"}
        paths = {field: f"{field}/{name}/{index:04d}.{member.split('.')[1]}" for field, member in files.items()}
        for field, member in files.items():
            path = folder / "recordings" / paths[field]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(scene[member])
        rows.append(f"{paths['photos']},{paths['depth']},{name}")
    (folder / "recordings" / "index.csv").write_text("\n".join(rows))


def shards_of_others(folder: Path) -> None:
    """What somebody has already who comes with shards: of img2dataset, and with classes."""
    img2dataset(folder / "cc3m", [40, 40, 40, 40])
    shard_writer(folder / "shards", map(captioned, range(160)), maxcount=16)


def damage(folder: Path) -> None:
    """Break one depth map of a packed dataset, as a faulty disk would have before the packing."""
    dataset = load_dataset(folder)
    shard = dataset.splits["train"][0]
    path = folder / shard.file
    with tarfile.open(path) as tar:
        at = next(member.offset_data for member in tar if member.name.endswith(".depth.png"))
    data = bytearray(path.read_bytes())
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    dataset.splits["train"][0] = shard.model_copy(update={"sha256": sha256(path)})
    (folder / MANIFEST).write_text(dataset.model_dump_json())


def programs(folder: Path) -> str:
    """A PATH on which `wcord` is this checkout's, and `python` the one of this test."""
    folder.mkdir()
    (folder / "wcord").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m wcord "$@"\n')
    (folder / "wcord").chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


def commands(page: str, language: str = "sh") -> list[str]:
    """The lines of a page's blocks; a block of Python is one command."""
    found = []
    for kind, block in re.findall(rf"```({language})\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        joined = block.replace("\\\n", " ")
        lines = [line.split("  #")[0].strip() for line in joined.splitlines() if not line.startswith("#")]
        found += [f"python -c {shlex.quote(block)}"] if kind == "python" else filter(None, lines)
    return found


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
@pytest.mark.parametrize("story", STORIES)
def test_pages_run_from_the_first_command_to_the_last(story: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'wcord[export]'")
    recordings(tmp_path)
    shards_of_others(tmp_path)
    own = {"PATH": programs(tmp_path / "bin"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = os.environ | own | {"ACCELERATE_USE_CPU": "true"}
    for page in STORIES[story]:
        for name, text in re.findall(r"```yaml\n# (\S+\.yaml)[^\n]*\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            (tmp_path / name).write_text(text)
        if page == "docs/tutorial-rented-machine.md":
            damage(tmp_path / "data" / "mine")
        for line in commands(page, "sh|python"):
            if not line.startswith(NOT_HERE) and "--num_processes 8" not in line:
                run(line, tmp_path, environment)


def run(line: str, folder: Path, environment: dict[str, str]) -> None:
    """One line in a shell, a training with few steps; one under `timeout` is ended by its signal."""
    steps = 100_000 if line.startswith("timeout") else STEPS
    if line.endswith("--resume"):
        steps += max((int(path.name[5:]) for path in folder.glob("runs/night/checkpoints/step_*")), default=0)
    line = re.sub(r"train\.steps=\d+", "", line)
    line = re.sub(r" train (\S+)", rf" train \1 train.steps={steps} train.log_every=1", line)
    line = re.sub(r'(config\.load\("\w+", \[)', rf'\1"train.steps={steps}", ', line)
    print(f"$ {line}", flush=True)
    if loop := re.fullmatch(r"for (\w+) in ([^;]+); do (.*); done", line):
        for value in loop[2].split():
            run(loop[3].replace(f"${loop[1]}", value), folder, environment)
        return
    if line.startswith("wcord ") and not set(line) & set("|&;<>$*"):  # no shell is needed, and no import of torch
        ours = Started(shlex.split(line)[1:], environment=environment, folder=folder)
        assert ours.wait(300) == 0, f"{line}\n{ours.output()}"
        return
    line = line.replace("python -m venv ", "python -m venv --without-pip ")  # nothing is installed
    started = subprocess.Popen(
        ["bash", "-c", line], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if line.startswith("timeout"):
        log = folder / "runs" / "night" / "metrics.jsonl"
        while started.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) > 3):
            time.sleep(0.2)
        started.send_signal(signal.SIGTERM)
    output = started.communicate()[0]
    if line.startswith("timeout"):
        assert list((folder / "runs" / "night" / "checkpoints").glob("step_*")), output
    else:
        assert started.returncode == 0, f"{line}\n{output[-4000:]}"
    if line.startswith("python -m venv"):  # what `pip install` would fetch for it
        site = next((folder / line.split()[-1]).glob("lib/python*/site-packages"))
        (site / "here.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")))


PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def written(page: str) -> list[str]:
    """All that a page says in a shell: `sh` and `bash` blocks, indented lines, and words between backticks."""
    text = (ROOT / page).read_text()
    indented = [line.split("   #")[0].strip() for line in text.replace("\\\n", " ").splitlines() if line[:4] == "    "]
    inline = re.findall(r"`((?:wcord|python -m benchmarks|make) [^`…]+)`", text)
    inline = [line for line in inline if line != "wcord tuned"]  # a method in the tables of docs/results.md
    return [*commands(page, "sh|bash"), *indented, *inline]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_there_is(page: str) -> None:
    for line in written(page):
        for part in re.findall(r"(?:^|do |-m )(?:wcord|pipeline) ([^;|>]+)", line):
            check_ours(shlex.split(part))
        if found := re.search(r"python -m benchmarks\.(\w+)(.*)", line):
            file, package = ROOT / "benchmarks" / f"{found[1]}.py", ROOT / "benchmarks" / found[1] / "__main__.py"
            source = (package if package.exists() else file).read_text()
            assert all(option in source for option in re.findall(r"--(\w[\w-]*)", found[2])), line
        if found := re.fullmatch(r"make (\w[\w-]*)", line):
            assert f"\n{found[1]}:" in (ROOT / "Makefile").read_text(), line
        if found := re.search(r"--config_file (\S+)", line):
            assert (ROOT / found[1]).is_file(), line


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All commands that do something, under their names from the command line."""
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


@pytest.mark.parametrize(("name", "command"), [*leaves(COMMAND)])
def test_every_help_screen_has_an_example_of_its_command(name: str, command: Any) -> None:
    examples = [line.strip() for line in command.epilog.splitlines()[2:]]
    assert examples
    for example in examples:
        assert example.startswith(f"wcord {name}"), example
        check_ours(shlex.split(example.split(">")[0])[1:])


def test_the_help_lists_all_commands_in_workflow_order_and_uncut() -> None:
    group: Any = typer.main.get_command(app)
    context = group.make_context("wcord", [], resilient_parsing=True)
    assert sorted(group.list_commands(context)) == sorted(ORDER)
    assert group.list_commands(context) == list(ORDER)
    for one in (group, *(inner for inner in group.commands.values() if hasattr(inner, "commands"))):
        shown = " ".join(one.get_help(context).split())
        assert "..." not in shown.partition("Commands:")[2]


def check_ours(words: list[str]) -> None:
    """Fails for a command, an option or a setting that there is not."""
    command: Any = COMMAND
    while words and words[0].isalpha() and words[0].islower() and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {"--help", *(option for parameter in command.params for option in parameter.opts)}
    for word in words:
        if word.startswith("--"):
            assert word in options or "ignore_unknown_options" in command.context_settings, (
                f"{command.name} has no {word}"
            )
        elif "=" in word and any(parameter.name == "overrides" for parameter in command.params):
            explain_key(word.split("=")[0])
