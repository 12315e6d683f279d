"""`wcord check`: checks a dataset, shows what networks receive from it, or shows the doubtful pairs of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.common.console import say
from pipeline.common.errors import UserError

Shards = Annotated[
    str | None,
    typer.Argument(
        help="Folder of a packed or indexed dataset, or WebDataset shards as in data.shards. Can be omitted with "
        "--pairs."
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that override the config: section.key=value …")]
Ranks = Annotated[int, typer.Option(help="Number of training processes (world size) that will read the dataset.")]
Workers = Annotated[int, typer.Option(help="Data loader workers per training process.")]
Quick = Annotated[bool, typer.Option("--quick", help="Skip decoding of images and audio.")]
NearDuplicates = Annotated[
    bool,
    typer.Option("--near-duplicates", help="Also report near-identical photos that occur in more than one split."),
]
ConfigName = Annotated[
    str | None,
    typer.Option(help="Do not check; only show the network inputs that this config produces from the dataset."),
]
Sheet = Annotated[
    Path | None,
    typer.Option(
        help="Output PNG with pairs; default: pairs.png with --config, doubtful_pairs.png in the run folder with "
        "--pairs."
    ),
]
Listed = Annotated[Path | None, typer.Option(help="Check only the samples listed in this skipped.jsonl file of a run.")]
PairsOf = Annotated[
    Path | None,
    typer.Option(
        help="Do not check; only show the most doubtful training pairs of this run with data.pairs=noisy. The default "
        "of SHARDS is then its dataset."
    ),
]


def check(
    shards: Shards = None,
    overrides: Overrides = None,
    ranks: Ranks = 1,
    workers: Workers = 2,
    quick: Quick = False,
    near_duplicates: NearDuplicates = False,
    config: ConfigName = None,
    sheet: Sheet = None,
    listed: Listed = None,
    pairs: PairsOf = None,
) -> None:
    """Check a packed or indexed dataset, or existing WebDataset shards.

    Prints a summary of the content, then notes and faults, one line each. The exit code is 1 if there are faults.
    """
    if config is None and overrides:
        raise UserError(f"{overrides[0]}: settings override a config; add --config CONFIG.")
    if pairs is not None:
        if config is not None or listed is not None:
            raise UserError("--pairs: cannot be combined with --config or --listed. Run one command for each.")
        from pipeline.report.doubtful_pairs import check_pairs

        say(*check_pairs(pairs, shards, sheet))
        return
    if shards is None:
        raise UserError("SHARDS is missing. Pass a dataset folder or WebDataset shards: `wcord check data/mine`.")
    if config is not None:
        from pipeline import config as configs
        from pipeline.report.network_inputs import network_inputs

        loaded = configs.load(config, [f"data.shards={shards}", *(overrides or [])])
        facts, notes = network_inputs(loaded, sheet or Path("pairs.png"))
        say("\n".join([*facts, *(f"note: {note}" for note in notes)]))
        return
    from pipeline.packing.check import check as run_check
    from pipeline.packing.recheck import recheck

    report = (
        recheck(shards, listed) if listed else run_check(shards, ranks, workers, quick, near_duplicates=near_duplicates)
    )
    say(report)
    raise typer.Exit(1 if report.faults else 0)
