"""The command line: `wcord COMMAND …`, the same as `python -m pipeline COMMAND …`."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli_config import commands as config_commands
from pipeline.cli_pack import commands as pack_commands
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.skipped import Skipped

# What a command needs is imported inside it: `wcord --help` and a mistyped option answer at once.
app = typer.Typer(
    name="wcord",
    help="Move what a model of one modality knows into a model of another.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(pack_commands, name="pack")
app.add_typer(config_commands, name="config")

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings in place of the config's: key.sub=value …")]
RunFolders = Annotated[list[Path], typer.Argument(help="Run folders, the first is the main one.")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of data and training.")] = 0,
) -> None:
    """Make paired data, train an RGB teacher and two depth students, and write the report; a few minutes."""
    from pipeline.demo import demo as run_demo

    run_demo(folder, seed)


@app.command()
def check(
    shards: Annotated[Path, typer.Argument(help="Folder of a packed data set.")],
    ranks: Annotated[int, typer.Option(help="Processes that will train on it.")] = 1,
    workers: Annotated[int, typer.Option(help="Loader workers of each.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Do not open images and sounds.")] = False,
    listed: Annotated[Path | None, typer.Option(help="Only the samples that a run skipped: its skipped.jsonl.")] = None,
) -> None:
    """Read a packed data set and name every fault, a line each; exit code 1 if there is one."""
    from pipeline.check import check as run_check
    from pipeline.recheck import recheck

    report = recheck(shards, listed) if listed else run_check(shards, ranks, workers, quick)
    print(report)
    raise typer.Exit(1 if report.faults else 0)


@app.command()
def cache(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped config.")],
    overrides: Overrides = None,
) -> None:
    """Run the config's teacher once and store its features beside the shards, under the name `teacher.cache`."""
    from pipeline import config as configs

    loaded = configs.load(config, overrides or [])
    from pipeline.cache import cache as write_cache
    from pipeline.cache import describe

    path = write_cache(loaded)
    if int(os.environ.get("RANK", "0")) == 0:
        print(describe(path))


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped config.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run of that name.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say what a step spends its time on; trace in profile.json.")
    ] = False,
) -> None:
    """Train a teacher, or a student with a teacher, into the config's run folder."""
    from pipeline import config as configs

    loaded = configs.load(config, overrides or [])
    from pipeline.stopping import Stopped
    from pipeline.train import train as run_training

    try:
        run_training(loaded, resume, overwrite, profile)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise typer.Exit(stopped.code) from None


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished training.")],
    probe: Annotated[
        list[Path], typer.Option(help="Packed data set, its own or another, to probe the student's layers on.")
    ] = [],  # noqa: B006
) -> None:
    """Measure a run: accuracy, probes, retrieval; writes results.json."""
    from pipeline.evaluate import evaluate as measure

    if int(os.environ.get("RANK", "0")) == 0:  # under a launcher the first process does it
        for name, value in measure(run, probe).items():
            print(f"{name:48s} {value:,.4f}".rstrip("0").rstrip("."))


@app.command()
def compare(
    runs: RunFolders,
    out: Annotated[Path, typer.Option(help="Folder for table.md, table.csv, plot.png.")] = Path("compare"),
    baseline: Annotated[str | None, typer.Option(help="Method that the others are compared with.")] = None,
) -> None:
    """Compare evaluated runs: a table and a plot; runs that differ only by seed are averaged."""
    from rich import print as show

    from pipeline.compare import compare as run_compare
    from pipeline.compare import write

    found = run_compare(runs, baseline=baseline)
    show(found.terminal())
    write(found, out)
    print(f"{out}: table.md, table.csv and plot.png are written.")


@app.command()
def bench(
    config: Annotated[str, typer.Argument(help="YAML of a bench (teachers, pairs, methods), or a shipped one's name.")],
    overrides: Overrides = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs side by side; by default one a GPU, or a core.")] = None,
) -> None:
    """Train and compare a matrix of pairs, methods and seeds; goes on where it stopped."""
    from pipeline.bench import run_bench
    from pipeline.bench_table import markdown

    print(markdown(run_bench(config, overrides or [], jobs)))


@app.command()
def report(
    runs: RunFolders,
    out: Annotated[Path | None, typer.Option(help="HTML file; report.html in the first run by default.")] = None,
) -> None:
    """Write a self-contained HTML page about a run, with others beside it."""
    from pipeline.report import report as write_report

    print(write_report(runs, out))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished training.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    push: Annotated[str | None, typer.Option(help="Upload it to this repository of the hub: you/name.")] = None,
) -> None:
    """Write the student for people without this program: safetensors, PyTorch, ONNX in 32 and 8 bits, a model card."""
    from pipeline.export import export as write_export
    from pipeline.export import push as upload

    done = write_export(run, out)
    print(f"{out}: written; README.md says what is in it.", *done.notes, sep="\n")
    if push:
        print(upload(out, push))


Finished = Annotated[Path, typer.Argument(help="Run folder of a finished training, or an exported folder.")]
Places = Annotated[list[Path], typer.Argument(help="Files, folders of files, packed data sets, or shards.")]


@app.command()
def predict(
    run: Finished,
    places: Places,
    out: Annotated[Path | None, typer.Option(help="A .csv or .jsonl file; printed as CSV without it.")] = None,
) -> None:
    """Label files: the likeliest class of each, and all probabilities; exit code 1 if some could not be read."""
    from pipeline.embed import predict as write_predictions

    skipped: list[Skipped] = []
    print(write_predictions(run, places, out, skipped), end="")
    _name(skipped)


@app.command()
def embed(
    run: Finished,
    places: Places,
    out: Annotated[Path | None, typer.Option(help="A .npy file, keys beside it, or a .parquet file.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder for an index that `wcord search` reads.")] = None,
    by: Annotated[Literal["student", "teacher"], typer.Option(help="Which of the two sees the inputs.")] = "student",
) -> None:
    """Embed files, into a table or into an index to search; exit code 1 if some could not be read."""
    from pipeline.embed import embed as write_embeddings

    skipped: list[Skipped] = []
    count = write_embeddings(run, places, out, index, by, skipped)
    print(f"{count} embeddings in {' and '.join(str(place) for place in (out, index) if place)}")
    _name(skipped)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def search(
    context: typer.Context,
    index: Annotated[Path, typer.Argument(help="Folder that `wcord embed --index` wrote.")],
    count: Annotated[int, typer.Option(min=1, help="How many to list.")] = 10,
) -> None:
    """List the samples nearest to a query of either modality: --depth query.png, --text "a red ball"."""
    from pipeline.search import search as run_search

    given = context.args
    if len(given) == 1 and "=" in given[0]:
        name, _, query = given[0].partition("=")
        given = [name, query]
    if len(given) != 2 or not given[0].startswith("--"):
        raise UserError("give one query: --MODALITY FILE, such as --depth query.png; of text the sentence itself.")
    for hit in run_search(index, given[0].removeprefix("--"), given[1], count):
        print(f"{hit.similarity:7.4f}  {hit.key}")


@app.command()
def serve(
    run: Finished,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this one are seen by the network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Open a page on this machine: drop a file, see its class and its nearest samples in both modalities."""
    from pipeline.serve import serve as run_server

    run_server(run, host, port)


def _name(skipped: Sequence[Skipped]) -> None:
    """Say what could not be read; exit code 1 if that is anything."""
    for one in skipped:
        print(f"skipped: {one.message}", file=sys.stderr)
    if skipped:
        raise typer.Exit(1)


_FULL = "no space left. Nothing half-written counts; free space and go on with `--resume`."
_PLACES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,  # of this user's share of the disk
    errno.EACCES: "may not be read or written. Change its rights, or choose another place.",
    errno.EPERM: "may not be read or written. Change its rights, or choose another place.",
    errno.EROFS: "cannot be written there. Choose another place.",
    errno.ENOTDIR: "is or lies below a file, where a folder is needed. Choose another place.",
    errno.EISDIR: "is a folder. Give the name of a file.",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one.",
}
"""What is wrong with a place that a command was given, and what to do."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what a person can mend is a message without a traceback, and exit code 2."""
    sys.path.insert(0, str(Path.cwd()))  # so that `my_package.thermal:Thermal` is found where the user works
    try:
        app(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        from pipeline.stream import worker_died

        if (died := worker_died(error)) is None:
            raise
        print(f"error: {died}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _PLACES:
            raise
        print(f"error: {error.filename2 or error.filename or 'the disk'}: {_PLACES[error.errno]}", file=sys.stderr)
        sys.exit(2)
    except sqlite3.OperationalError as error:
        print(f"error: temporary files: {error}. Set SQLITE_TMPDIR to a folder with more room.", file=sys.stderr)
        sys.exit(2)
