"""The command line: `wcord COMMAND …`, the same as `python -m wcord COMMAND …`.

More than 350 lines, since each command has its help text and examples here.
"""

from __future__ import annotations

import logging
import signal
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from pipeline.cli.check import check
from pipeline.cli.config import commands as config_commands
from pipeline.cli.index import index
from pipeline.cli.pack import commands as pack_commands
from pipeline.common.console import log_to_console, rank, say, say_data, world_size
from pipeline.common.disk_errors import PLACES
from pipeline.common.errors import UserError
from pipeline.common.host import without_garbage_collection
from pipeline.common.say_once import say_error
from pipeline.common.working_folder import search_last

if TYPE_CHECKING:
    from pipeline.data.skipped import Skipped

ORDER = (
    *("demo", "config", "index", "pack", "check", "cache", "train", "evaluate", "report", "compare", "bench"),
    *("export", "predict", "embed", "search", "serve"),
)
"""The commands in workflow order."""


class Commands(TyperGroup):
    """Lists commands in workflow order and does not truncate their summaries."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in `ORDER`, followed by all others in registration order."""
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one entry per command, with the full first sentence of its help text."""
        commands = [(name, self.commands[name].get_short_help_str(limit=1000)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(commands)


# Each command imports what it needs in its body, so `wcord --help` and errors about options appear at once.
app = typer.Typer(
    name="wcord",
    cls=Commands,
    help="Cross-modal knowledge distillation: train a small model of one modality from a teacher of another.",
    epilog="""\b
Example: train a depth student from an RGB teacher
  wcord pack folders recordings data/mine --field rgb=photos --field depth=depth --label-from parent
  wcord train rgb_teacher data.shards=data/mine run=runs/teacher
  wcord train rgb_to_depth data.shards=data/mine teacher.run=runs/teacher run=runs/student
  wcord evaluate runs/student

Run `wcord COMMAND --help` for the options of a command and an example.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(pack_commands, name="pack", cls=Commands)
app.add_typer(config_commands, name="config", cls=Commands)
app.command(
    "index",
    epilog="""\b
Examples:
  wcord index "laion/{00000..00399}.tar" --out data/laion --split test=0.01
  wcord index s3://bucket/cc12m --out data/cc12m --label json:category --group json:clip --split test=0.02""",
)(index)
app.command(
    "check",
    epilog="""\b
Examples:
  wcord check data/mine
  wcord check "cc3m/{00000..00003}.tar"
  wcord check data/mine --config rgb_to_depth teacher.run=runs/teacher
  wcord check data/mine --listed runs/student/skipped.jsonl
  wcord check --pairs runs/student""",
)(check)

PIPE_WIDTH = 500
"""Columns of a table that goes to a file or another program, so that no cell is cut."""

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that override the config: section.key=value …")]


def _print_version(asked: bool) -> None:
    if asked:
        say(version("wcord"))
        raise typer.Exit


@app.callback()
def options(
    asked: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Hide progress; print only results, warnings and errors.")
    ] = False,
) -> None:
    """Apply the global options, which come before the command."""
    log_to_console(logging.WARNING if quiet else logging.INFO)


@app.command(epilog="\b\nExamples:\n  wcord demo\n  wcord demo --folder demo2 --seed 1")
def demo(
    folder: Annotated[Path, typer.Option(help="Output folder for data, runs and report.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Random seed for data generation and training.")] = 0,
) -> None:
    """Run a complete experiment on synthetic data in a few minutes.

    Generates paired data, trains an RGB teacher and two depth students, evaluates all three and writes a report.
    """
    from pipeline.cli.demo import demo as run_demo

    run_demo(folder, seed)


@app.command(
    epilog="""\b
Example:
  wcord cache rgb_to_depth data.shards=data/mine teacher.run=runs/teacher teacher.cache=photos"""
)
def cache(
    config: Annotated[str, typer.Argument(help="YAML file, or name of a shipped config.")],
    overrides: Overrides = None,
) -> None:
    """Run the teacher of a config once and store its features.

    The features are stored in the dataset folder; for existing shards, in the folder of the index or, without an
    index, in $WCORD_CACHE. `teacher.cache` in the config sets the name of the cache. Later runs that use this name
    read the stored features instead of running the teacher. With `teacher.cache: auto`, training does the same in its
    first epoch, and this command is not needed.
    """
    from pipeline import config as configs
    from pipeline.data.missing import check_folders

    loaded = configs.load(config, overrides or [])
    check_folders(loaded.data.sources)
    from pipeline.train.cache_teacher import cache as write_cache
    from pipeline.train.cache_teacher import describe

    path = write_cache(loaded)
    if rank() == 0:
        say(describe(path))


@app.command(
    epilog="""\b
Examples:
  wcord train rgb_to_depth data.shards=data/mine teacher.run=runs/teacher run=runs/student
  wcord train my_config.yaml train.steps=2000
  wcord train my_config.yaml train.steps=2000 --resume"""
)
def train(
    config: Annotated[str, typer.Argument(help="YAML file, or name of a shipped config.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run in the run folder.")] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Print a time breakdown of the training step and write a trace to profile.json."
        ),
    ] = False,
) -> None:
    """Train a teacher, or distil a student from a teacher.

    All results are written to the run folder, which is `run` in the config.
    """
    with without_garbage_collection():  # until the first step
        from pipeline import config as configs
        from pipeline.data.missing import check_folders

        loaded = configs.load(config, overrides or [])
        check_folders(loaded.data.sources)
        from pipeline.train.loop import train as run_training
        from pipeline.train.signals import Stopped

        try:
            run_training(loaded, resume, overwrite, profile)
        except Stopped as stopped:
            signal.signal(
                stopped.number, signal.SIG_IGN
            )  # `timeout` sends SIGTERM twice, and Python removes its handlers before exit
            say(stopped, error=True)
            raise typer.Exit(stopped.code) from None


@app.command(
    epilog="""\b
Examples:
  wcord evaluate runs/student
  wcord evaluate runs/student --split val
  wcord evaluate runs/student --probe data/stl10"""
)
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of a completed training.")],
    probe: Annotated[
        list[Path],
        typer.Option(help="Also run linear probes on the student's layers on this packed dataset; repeatable."),
    ] = [],  # noqa: B006
    split: Annotated[
        str | None,
        typer.Option(
            help="Split to measure; default: evaluation.split. Results of any other split are saved to "
            "results_SPLIT.json."
        ),
    ] = None,
) -> None:
    """Evaluate a run: accuracy, linear probes, retrieval.

    Prints the metrics and saves them to results.json in the run folder.
    """
    from pipeline.evaluate.evaluate_run import evaluate as measure

    if rank():
        say(
            f"RANK={rank()} is set: under a launcher, only rank 0 evaluates, so this process does nothing. If you do "
            "not use a launcher, run `unset RANK WORLD_SIZE LOCAL_RANK` first.",
            error=True,
        )
    else:
        results = measure(run, probe, split)
        ends = {f"{name}_{end}" for name in results for end in ("low", "high")}
        for name, value in results.items():
            if name not in ends:
                say(f"{name:48s} {_short(value)}{_interval(results, name)}")


def _interval(results: Mapping[str, float], name: str) -> str:
    """The 95 % interval of a result, if it has one."""
    if f"{name}_low" not in results:
        return ""
    return f" [{_short(results[f'{name}_low'])}, {_short(results[f'{name}_high'])}]"


def _short(value: float) -> str:
    return f"{value:,.4f}".rstrip("0").rstrip(".")


@app.command(
    epilog="""\b
Example:
  wcord compare runs/student runs/student_s1 runs/labels runs/labels_s1 --out comparison"""
)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of evaluated runs.")],
    out: Annotated[Path, typer.Option(help="Output folder for table.md, table.csv and plot.png.")] = Path("compare"),
    baseline: Annotated[
        str | None, typer.Option(help="Method that all others are compared with; default: that of the first run.")
    ] = None,
) -> None:
    """Compare evaluated runs in a table and a plot.

    Runs that differ only in the seed are averaged.
    """
    from rich.console import Console

    from pipeline.runs.compare import compare as run_compare
    from pipeline.runs.compare import write

    found = run_compare(runs, baseline=baseline)
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(found.terminal())
    write(found, out)
    say(f"{out}: wrote table.md, table.csv and plot.png.")


@app.command(
    epilog="""\b
Examples:
  wcord bench cifar10_small
  wcord bench my_bench.yaml --jobs 2
  wcord bench --quick rgb_to_depth data.shards=data/mine teacher.run=runs/teacher"""
)
def bench(
    config: Annotated[
        str,
        typer.Argument(help="YAML file of a benchmark, or name of a shipped one; with --quick, of a training config."),
    ],
    overrides: Overrides = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Number of runs in parallel; default: one per GPU, or per core without a GPU."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Does the teacher of a training config help? Compare short runs of five methods."),
    ] = False,
    minutes: Annotated[float | None, typer.Option(min=0, help="With --quick: time budget; default: 10.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="With --quick: number of seeds per method; default: 1.")
    ] = None,
) -> None:
    """Train and compare every combination of pair, method and seed.

    To resume an interrupted benchmark, run the same command again.
    """
    if (processes := world_size()) > 1:  # each run would wait for the others of the launcher
        raise UserError(
            f"WORLD_SIZE={processes} is set: run `wcord bench` without a launcher, since it starts one process per GPU "
            "itself. If you do not use a launcher, run `unset RANK WORLD_SIZE LOCAL_RANK` first."
        )
    if quick:
        from pipeline.bench.quick import MINUTES
        from pipeline.bench.quick import quick as run_quick

        say(run_quick(config, overrides or [], MINUTES if minutes is None else minutes, seeds or 1, jobs))
        return
    if minutes is not None or seeds is not None:
        raise UserError("--minutes and --seeds require --quick; a benchmark sets the number of seeds with seeds=3.")
    from pipeline.bench.matrix import run_bench
    from pipeline.bench.tables import markdown

    say(markdown(run_bench(config, overrides or [], jobs)))


@app.command(epilog="\b\nExample:\n  wcord report runs/student runs/labels")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders. The report is about the first one; the others are for comparison."),
    ],
    out: Annotated[Path | None, typer.Option(help="HTML file; default: report.html in the first run folder.")] = None,
) -> None:
    """Write a self-contained HTML report about a run and compare it with other runs."""
    from pipeline.report.page import report as write_report

    say(write_report(runs, out))


@app.command(epilog="\b\nExample:\n  wcord export runs/student exported")
def export(
    run: Annotated[Path, typer.Argument(help="Run folder of a completed training.")],
    out: Annotated[Path, typer.Argument(help="Output folder; must be new or empty.")],
    push: Annotated[
        str | None, typer.Option(help="Also upload the folder to this Hugging Face Hub repository: you/name.")
    ] = None,
) -> None:
    """Export a student for use without wcord: safetensors, PyTorch, ONNX (fp32 and int8) and a model card."""
    from pipeline.export.bundle import export as write_export
    from pipeline.export.bundle import push as upload

    done = write_export(run, out)
    say(f"{out}: written; README.md describes the files.", *done.notes)
    if push:
        say(upload(out, push))


Finished = Annotated[
    str,
    typer.Argument(help="Run folder, exported folder, or the Hugging Face Hub name (you/name) of an exported student."),
]
Places = Annotated[list[Path], typer.Argument(help="Input files, folders, packed datasets or shards.")]


@app.command(epilog="\b\nExample:\n  wcord predict runs/student recordings/depth --out labels.csv")
def predict(
    run: Finished,
    places: Places,
    out: Annotated[
        Path | None, typer.Option(help="Output file, .csv or .jsonl; default: CSV on the standard output.")
    ] = None,
) -> None:
    """Classify files with a student.

    Writes the most likely class and all class probabilities of each file. The exit code is 1 if a file could not be
    read.
    """
    from pipeline.inference.batch import write_predictions
    from pipeline.models.hub_student import local_folder

    skipped: list[Skipped] = []
    say_data(write_predictions(local_folder(run), places, out, skipped))
    _name(skipped)


@app.command(
    epilog="""\b
Examples:
  wcord embed runs/student recordings/depth --out embeddings.parquet
  wcord embed runs/student recordings/photos --by teacher --index photos.index"""
)
def embed(
    run: Finished,
    places: Places,
    out: Annotated[
        Path | None,
        typer.Option(help="Output file, .parquet or .npy; with .npy, the keys are written to a .keys.json file."),
    ] = None,
    index: Annotated[Path | None, typer.Option(help="Output folder of a search index for `wcord search`.")] = None,
    by: Annotated[Literal["student", "teacher"], typer.Option(help="Network that embeds the inputs.")] = "student",
) -> None:
    """Embed files and write the embeddings to a table or a search index.

    The exit code is 1 if a file could not be read.
    """
    from pipeline.inference.batch import write_embeddings
    from pipeline.models.hub_student import local_folder

    skipped: list[Skipped] = []
    count = write_embeddings(local_folder(run), places, out, index, by, skipped)
    say(f"{count} embeddings in {' and '.join(str(place) for place in (out, index) if place)}")
    _name(skipped)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="""\b
Examples:
  wcord search photos.index --depth query.png
  wcord search photos.index --text "a red ball" --count 5""",
)
def search(
    context: typer.Context,
    index: Annotated[Path, typer.Argument(help="Folder written by `wcord embed --index`.")],
    count: Annotated[int, typer.Option(min=1, help="Number of results.")] = 10,
) -> None:
    """Search an index with a query of either modality.

    Pass the query as an option named after its modality: --depth, --rgb or --audio with a file, --text with a sentence.
    """
    from pipeline.inference.search import search as run_search

    given = context.args
    if len(given) == 1 and "=" in given[0]:
        name, _, query = given[0].partition("=")
        given = [name, query]
    if len(given) != 2 or not given[0].startswith("--"):
        raise UserError("pass exactly one query: --MODALITY FILE, e.g. --depth query.png, or --text with a sentence.")
    for hit in run_search(index, given[0].removeprefix("--"), given[1], count):
        say(f"{hit.similarity:7.4f}  {hit.key}")


@app.command(epilog="\b\nExample:\n  wcord serve runs/student --port 8001")
def serve(
    run: Finished,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. With any other than 127.0.0.1, the page is reachable from the network."
        ),
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Serve a demo page: drop a file to see its predicted class and its nearest neighbours.

    The neighbours are shown in both modalities.
    """
    from pipeline.inference.server import serve as run_server
    from pipeline.models.hub_student import local_folder

    run_server(local_folder(run), host, port)


def _name(skipped: Sequence[Skipped]) -> None:
    """Print the skipped inputs. The exit code is 1 if there are any."""
    for one in skipped:
        say(f"skipped: {one.message}", error=True)
    if skipped:
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Errors that the user can fix are printed without a traceback, with exit code 2.

    Args:
        arguments: Command-line arguments; None means `sys.argv[1:]`.
    """
    search_last()  # finds `my_package.thermal:Thermal` in the working folder
    try:
        app(arguments)
    except UserError as error:
        say_error(str(error))
        sys.exit(2)
    except RuntimeError as error:
        from pipeline.data.stream import worker_died

        if (died := worker_died(error)) is None:
            raise
        say_error(str(died))
        sys.exit(2)
    except OSError as error:
        if error.errno not in PLACES:
            raise
        say_error(f"{error.filename2 or error.filename or 'the disk'}: {PLACES[error.errno]}")
        sys.exit(2)
    except sqlite3.OperationalError as error:
        say_error(f"temporary files: {error}. Set SQLITE_TMPDIR to a folder with more free space.")
        sys.exit(2)
