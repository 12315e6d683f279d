"""`wcord index SHARDS …`: index existing WebDataset shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.common.console import say
from pipeline.common.errors import UserError


def index(
    shards: Annotated[
        list[str], typer.Argument(help="WebDataset shards: tars, globs, folders or patterns such as {000..399}.tar.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Output folder of the index; pass it as data.shards.")],
    split: Annotated[
        list[str],
        typer.Option(
            help="A held-out split: a fraction of the samples (test=0.02) or whole shards (test=PATTERN); repeatable."
        ),
    ] = [],  # noqa: B006
    group: Annotated[
        str,
        typer.Option(help="Where to find a sample's group, e.g. json:clip. All samples of a group stay in one split."),
    ] = "",
    label: Annotated[
        str, typer.Option(help="Where to find the class label: a member such as cls, or json:path.to.value.")
    ] = "label",
    field: Annotated[
        list[str],
        typer.Option(help="A field and its extensions, if they are not detected: rgb=image.jpg,img; repeatable."),
    ] = [],  # noqa: B006
    hashed: Annotated[
        bool,
        typer.Option(
            "--hash", help="Also compute the SHA-256 of local shards, which requires reading them completely."
        ),
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Number of worker processes; default: one per core.")] = None,
    name: Annotated[str, typer.Option(help="Name of the dataset.")] = "",
) -> None:
    """Index existing WebDataset shards.

    Reads the tar headers and writes dataset.json with counts, splits and classes. The shards are not copied.
    """
    from pipeline.packing.index import index as write_index

    splits = dict(_pair(text, "--split", "test=0.02") for text in split)
    fields = {name: own.split(",") for name, own in (_pair(text, "--field", "rgb=jpg,png") for text in field)}
    dataset = write_index(
        shards, out, splits=splits, group=group, label=label, fields=fields, hashed=hashed, workers=workers, name=name
    )
    named = dataset.named({})
    for split_name, own in dataset.splits.items():
        size = sum(shard.bytes for shard in own) / 1e6
        say(f"{split_name}: {dataset.samples(split_name)} samples in {len(own)} shards, {size:.1f} MB")
    say(f"members: {', '.join(f'{member} {samples}' for member, samples in sorted(named.fields.items()))}")
    for label_name, classes in dataset.classes.items():
        say(f"{label_name}: {len(classes)} classes")
    say(f"The index is in {out}. To train on it, set data.shards={out}.")


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"{option} {text}: must be NAME=VALUE, such as {option} {example}.")
    return name, value
