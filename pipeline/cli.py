"""The command line: `wcord COMMAND …`, the same as `python -m pipeline COMMAND …`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError

app = typer.Typer(
    name="wcord",
    help="Move what a model of one modality knows into a model of another.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that replace the config's: key.sub=value …")]


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped config.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint of this run.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier run of the same name.")] = False,
) -> None:
    """Train a teacher, or a student with a teacher, into the config's run folder."""
    from pipeline import config as configs
    from pipeline.train import train as run_training

    run_training(configs.load(config, overrides or []), resume, overwrite)


@app.command()
def evaluate(run: Annotated[Path, typer.Argument(help="Run folder of a finished training.")]) -> None:
    """Measure a run: accuracy, probes, retrieval; writes results.json."""
    from pipeline.evaluate import evaluate as measure

    if int(os.environ.get("RANK", "0")) == 0:  # under a launcher, the first process does it
        for name, value in measure(run).items():
            print(f"{name:45s} {value:,.4f}".rstrip("0").rstrip("."))


def main() -> None:
    """Run the command; a fault of the user's is one message without a traceback, and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
