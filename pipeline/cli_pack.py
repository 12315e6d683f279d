"""`wcord pack RECIPE …`: paired recordings into shards, a command a recipe."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.recipes import Plan

commands = typer.Typer(no_args_is_help=True, help="Pack paired recordings into shards.")

Out = Annotated[Path, typer.Argument(help="Folder for the shards and dataset.json.")]
Fields = Annotated[list[str], typer.Option("--field", help="What a sample consists of: rgb=…, depth=…, one each.")]
Masks = Annotated[
    list[str], typer.Option("--mask", help="A field that is a mask, its classes and values: mask=floor:0,hand:255.")
]
Intrinsics = Annotated[
    str | None,
    typer.Option(help="Of the depth camera, pixels: fx,fy,cx,cy, then ,width,height if of an image of another size."),
]
Gravity = Annotated[str | None, typer.Option(help="Of the depth camera: x right, y down, z away, as 0,1,0.")]
Test = Annotated[float, typer.Option(help="Share of the samples for the test split, whole groups each.")]
Val = Annotated[float, typer.Option(help="Share of the samples for the val split.")]
Seed = Annotated[int, typer.Option(help="Seed of the split and of the order of samples.")]
ShardMB = Annotated[float, typer.Option("--shard-mb", help="Target size of a shard in MB.")]
Workers = Annotated[int | None, typer.Option(help="Processes; all cores by default.")]
MaxRefused = Annotated[float, typer.Option(help="Share of samples that may be refused before packing fails.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another packing in that folder.")]
Licence = Annotated[str, typer.Option(help="Licence of the data, for dataset.json.")]
Name = Annotated[str | None, typer.Option(help="Name of the data set.")]


@commands.command("manifest")
def manifest(
    manifest: Annotated[Path, typer.Argument(help="CSV (with a header) or JSONL file, a row a sample.")],
    out: Out,
    field: Fields,
    label: Annotated[list[str], typer.Option(help="Column of classes; the first is the task's.")] = [],  # noqa: B006
    group: Annotated[str | None, typer.Option(help="Column or template of what stays in one split.")] = None,
    split: Annotated[str | None, typer.Option(help="Column that holds train, val or test.")] = None,
    key: Annotated[str | None, typer.Option(help="Column or template that names samples.")] = None,
    partners: Annotated[
        Path | None,
        typer.Option(help="Second table: each row gets a partner of its class and split, as {partner.COLUMN}."),
    ] = None,
    mask: Masks = [],  # noqa: B006
    intrinsics: Intrinsics = None,
    gravity: Gravity = None,
    test: Test = 0.2,
    val: Val = 0.0,
    seed: Seed = 0,
    shard_mb: ShardMB = 64.0,
    workers: Workers = None,
    max_refused: MaxRefused = 0.05,
    overwrite: Overwrite = False,
    name: Name = None,
    licence: Licence = "not stated",
) -> None:
    """Pack what a table lists: --field rgb=photos/{id}.jpg --field depth=depth_path --label class --group clip."""
    from pipeline.recipes import add_camera, add_masks, parse_fields
    from pipeline.recipes import manifest as recipe

    plan = recipe.plan(
        manifest,
        parse_fields(field),
        label,
        group,
        split,
        key,
        name=name,
        licence=licence,
        partners=partners,
        seed=seed,
    )
    add_camera(add_masks(plan, mask), intrinsics, gravity)
    _pack(plan, out, test, val, seed, shard_mb, workers, max_refused, overwrite)


@commands.command("folders")
def folders(
    root: Annotated[Path, typer.Argument(help="Folder that holds a folder for each field.")],
    out: Out,
    field: Fields,
    label_from: Annotated[
        Literal["parent"] | None, typer.Option(help="parent: the folder that a file lies in names its class.")
    ] = None,
    split_from: Annotated[
        Literal["top"] | None, typer.Option(help="top: the first folder of a path is train, val or test.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="parent, or a regular expression on the path.")] = None,
    mask: Masks = [],  # noqa: B006
    intrinsics: Intrinsics = None,
    gravity: Gravity = None,
    test: Test = 0.2,
    val: Val = 0.0,
    seed: Seed = 0,
    shard_mb: ShardMB = 64.0,
    workers: Workers = None,
    max_refused: MaxRefused = 0.05,
    overwrite: Overwrite = False,
    name: Name = None,
    licence: Licence = "not stated",
) -> None:
    """Pack parallel folders, matched by path without suffix: --field rgb=photos --field depth=maps."""
    from pipeline.recipes import add_camera, add_masks, parse_fields
    from pipeline.recipes import folders as recipe

    plan = recipe.plan(root, parse_fields(field), label_from, split_from, group, name, licence)
    add_camera(add_masks(plan, mask), intrinsics, gravity)
    _pack(plan, out, test, val, seed, shard_mb, workers, max_refused, overwrite)


@commands.command("huggingface")
def huggingface(
    source: Annotated[Path, typer.Argument(help="Folder of `Dataset.save_to_disk`, or of Parquet files.")],
    out: Out,
    field: Annotated[
        list[str], typer.Option("--field", help="What a sample consists of: rgb=COLUMN …; else by the columns' types.")
    ] = [],  # noqa: B006
    label: Annotated[
        list[str], typer.Option(help="Column of classes, the first is the task's; else all class labels.")
    ] = [],  # noqa: B006
    group: Annotated[str | None, typer.Option(help="Column of what stays in one split.")] = None,
    intrinsics: Intrinsics = None,
    gravity: Gravity = None,
    test: Test = 0.2,
    val: Val = 0.0,
    seed: Seed = 0,
    shard_mb: ShardMB = 64.0,
    workers: Workers = None,
    max_refused: MaxRefused = 0.05,
    overwrite: Overwrite = False,
    name: Name = None,
    licence: Licence = "not stated",
) -> None:
    """Pack a folder of the Hugging Face `datasets` library; a single split is cut by --test and --val."""
    from pipeline.recipes import add_camera, parse_fields
    from pipeline.recipes import huggingface as recipe

    plan = add_camera(recipe.plan(source, parse_fields(field), label, group, name, licence), intrinsics, gravity)
    _pack(plan, out, test, val, seed, shard_mb, workers, max_refused, overwrite)


@commands.command("dataset")
def dataset(
    dataset: Annotated[str, typer.Argument(help="Its name, such as cifar10; a wrong one lists all.")],
    source: Annotated[Path, typer.Argument(help="Folder that it was unpacked into.")],
    out: Out,
    seed: Seed = 0,
    shard_mb: ShardMB = 64.0,
    workers: Workers = None,
    max_refused: MaxRefused = 0.05,
    overwrite: Overwrite = False,
) -> None:
    """Pack a public data set from the files as their authors publish them, with its official splits."""
    from pipeline.recipes import known as recipe

    _pack(recipe.plan(dataset, source), out, 0.0, 0.0, seed, shard_mb, workers, max_refused, overwrite)


@commands.command("tabletop")
def tabletop(
    out: Out,
    scenes: Annotated[int, typer.Option(help="How many scenes.")] = 3000,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 96,
    test: Test = 0.2,
    val: Val = 0.0,
    seed: Seed = 0,
    shard_mb: ShardMB = 64.0,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Generate paired scenes of one object on a table: photo, depth, mask, caption, sound."""
    from pipeline.recipes import tabletop as recipe

    _pack(recipe.plan(scenes, seed, size), out, test, val, seed, shard_mb, workers, 0.0, overwrite)


def _pack(
    plan: Plan,
    out: Path,
    test: float,
    val: float,
    seed: int,
    shard_mb: float,
    workers: int | None,
    max_refused: float,
    overwrite: bool,
) -> None:
    from pipeline.pack import pack as run_pack

    if not (test >= 0 and val >= 0 and test + val < 1):
        raise UserError(f"--test {test} and --val {val}: must be at least 0 and leave something for training.")
    if not (math.isfinite(shard_mb) and shard_mb > 0):
        raise UserError(f"--shard-mb {shard_mb}: a number of MB above 0 is wanted, such as 64.")
    run_pack(
        plan,
        out,
        fractions={"train": 1 - test - val, "val": val, "test": test},
        seed=seed,
        shard_bytes=max(int(shard_mb * 1e6), 1),
        workers=workers or os.cpu_count() or 1,
        max_refused=max_refused,
        overwrite=overwrite,
    )
