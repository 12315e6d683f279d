"""`wcord pack RECIPE …`: pack paired data into shards, with one subcommand per recipe.

More than 350 lines, since it contains the options of each recipe with their help texts.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.pack_options import (
    Extensions,
    Fields,
    Filters,
    Gravity,
    Intrinsics,
    Licence,
    Masks,
    MaxRefused,
    Name,
    Out,
    Overwrite,
    Part,
    Seed,
    ShardMB,
    Test,
    Val,
    Workers,
)
from pipeline.common.console import say
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.packing.recipes.plan import Plan

commands = typer.Typer(
    no_args_is_help=True, help="Pack paired data into WebDataset shards, with one subcommand per kind of source."
)


@commands.command(
    "manifest",
    epilog="""\b
Example:
  wcord pack manifest index.csv data/own --field rgb=photos/{id}.jpg --field depth=depth_path --label class""",
)
def manifest(
    manifest: Annotated[Path, typer.Argument(help="CSV file with a header, or JSONL file; one row per sample.")],
    out: Out,
    field: Fields,
    label: Annotated[
        list[str], typer.Option(help="Column with class names; repeatable. The first one is the default task.")
    ] = [],  # noqa: B006
    group: Annotated[
        str | None,
        typer.Option(
            help="Column or template of each sample's group (clip, subject, scene). A group stays in one split."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Column with the split: train, val or test.")] = None,
    key: Annotated[str | None, typer.Option(help="Column or template that gives the sample keys.")] = None,
    partners: Annotated[
        Path | None,
        typer.Option(
            help="Second table. Each row is paired with a row of this table that has the same class and split; refer "
            "to it as {partner.COLUMN}."
        ),
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
    part: Part = None,
    name: Name = None,
    licence: Licence = "not stated",
) -> None:
    """Pack the files that a CSV or JSONL table lists.

    A field is a column with paths (depth=depth_path), or a template that contains columns (rgb=photos/{id}.jpg).
    """
    from pipeline.packing.recipes import manifest as recipe
    from pipeline.packing.recipes.plan import add_camera, add_masks, parse_fields

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
    _pack(plan, out, test, val, seed, shard_mb, workers, max_refused, overwrite, part)


@commands.command(
    "folders",
    epilog="""\b
Example:
  wcord pack folders recordings data/mine --field rgb=photos --field depth=depth --label-from parent""",
)
def folders(
    root: Annotated[Path, typer.Argument(help="Folder with one subfolder per field.")],
    out: Out,
    field: Fields,
    label_from: Annotated[
        Literal["parent"] | None,
        typer.Option(help="parent: the class of a file is the name of the folder that contains it."),
    ] = None,
    split_from: Annotated[
        Literal["top"] | None,
        typer.Option(help="top: take the split from the top-level folder of the path (train, val or test)."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Keep groups of samples in one split: parent (files of one folder), or a regular expression matched "
            "anywhere in the path, without the root, the field folder and the suffix. The group name is its capture "
            "groups joined by /, or the whole match if there are none."
        ),
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
    part: Part = None,
    name: Name = None,
    licence: Licence = "not stated",
) -> None:
    """Pack parallel folders.

    Files with the same path within their field folders, ignoring the extension, form a sample.
    """
    from pipeline.packing.recipes import folders as recipe
    from pipeline.packing.recipes.plan import add_camera, add_masks, parse_fields

    plan = recipe.plan(root, parse_fields(field), label_from, split_from, group, name, licence)
    add_camera(add_masks(plan, mask), intrinsics, gravity)
    _pack(plan, out, test, val, seed, shard_mb, workers, max_refused, overwrite, part)


@commands.command(
    "huggingface",
    epilog="""\b
Examples:
  wcord pack huggingface scenes data/scenes --field rgb=image --field depth=depth_map --label room
  wcord pack huggingface hub:ylecun/mnist data/mnist""",
)
def huggingface(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder written by `Dataset.save_to_disk`, or with Parquet files; or a dataset on the Hub: "
            "hub:OWNER/NAME, hub:OWNER/NAME/CONFIGURATION, hub:OWNER/NAME@REVISION."
        ),
    ],
    out: Out,
    field: Annotated[
        list[str],
        typer.Option(
            "--field", help="A field and its column: rgb=COLUMN; repeatable. Default: derived from the column types."
        ),
    ] = [],  # noqa: B006
    label: Annotated[
        list[str],
        typer.Option(
            help="Column with classes; repeatable. The first one is the default task. Default: all ClassLabel columns."
        ),
    ] = [],  # noqa: B006
    group: Annotated[
        str | None, typer.Option(help="Column with each sample's group. A group stays in one split.")
    ] = None,
    intrinsics: Intrinsics = None,
    gravity: Gravity = None,
    test: Test = 0.2,
    val: Val = 0.0,
    seed: Seed = 0,
    shard_mb: ShardMB = 64.0,
    workers: Workers = None,
    max_refused: MaxRefused = 0.05,
    overwrite: Overwrite = False,
    part: Part = None,
    name: Name = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the data; default: the licence that the Hub states.")
    ] = None,
) -> None:
    """Pack a dataset saved with the Hugging Face `datasets` library, or a dataset on the Hugging Face Hub.

    Existing splits are kept. If there is only one, --test and --val set the fractions to split off.
    """
    from pipeline.packing.recipes import huggingface as recipe
    from pipeline.packing.recipes.plan import add_camera, parse_fields

    plan = add_camera(recipe.plan(source, parse_fields(field), label, group, name, licence), intrinsics, gravity)
    _pack(plan, out, test, val, seed, shard_mb, workers, max_refused, overwrite, part)


@commands.command(
    "webdataset",
    epilog="""\b
Examples:
  wcord pack webdataset laion/{00000..00399}.tar data/laion --size 256 --group json:clip
  wcord pack webdataset s3://bucket/photos data/both --join s3://bucket/sounds --field rgb=jpg,png --field audio=flac
  wcord pack webdataset shards s3://bucket/set --label json:category --filter my_package.filters:aesthetic""",
)
def webdataset(
    shards: Annotated[
        list[str], typer.Argument(help="WebDataset shards: tars, globs, folders or patterns such as {000..399}.tar.")
    ],
    out: Out,
    field: Extensions = [],  # noqa: B006
    label: Annotated[
        str | None, typer.Option(help="Where to find the class label: cls, or json:path.to.value. Default: cls.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Text file with the class names in order, if the shards contain class indices.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Where to find a sample's group, e.g. json:clip. A group stays in one split.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Downscale larger photos to this short side in pixels and store them as JPEG (quality 95)."),
    ] = None,
    filters: Filters = [],  # noqa: B006
    join: Annotated[
        str | None, typer.Option(help="Other shards, whose fields are added to the samples with the same keys.")
    ] = None,
    test: Test = 0.2,
    val: Val = 0.0,
    seed: Seed = 0,
    shard_mb: ShardMB = 64.0,
    workers: Workers = None,
    max_refused: MaxRefused = 0.05,
    overwrite: Overwrite = False,
    part: Part = None,
    name: Name = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the data; default: the licence of the shards.")
    ] = None,
) -> None:
    """Repack WebDataset shards: select fields, downscale photos, filter samples, join shards.

    To train on shards as they are, use `wcord index` instead. Existing splits are kept. If there is only one, --test
    and --val set the fractions to split off.
    """
    from pipeline.packing.recipes import webdataset as recipe
    from pipeline.packing.recipes.plan import parse_fields

    recipe.refuse_inside(shards, out)
    plan = recipe.plan(
        shards,
        {name: own.split(",") for name, own in parse_fields(field).items()},
        label,
        recipe.read_classes(classes) if classes else (),
        group,
        size,
        filters,
        join,
        workers or os.cpu_count() or 1,
        name,
        licence,
    )
    _pack(plan, out, test, val, seed, shard_mb, workers, max_refused, overwrite, part)


@commands.command("dataset", epilog="\b\nExample:\n  wcord pack dataset cifar100 cifar-100-binary data/cifar100")
def dataset(
    dataset: Annotated[
        str,
        typer.Argument(
            help="Name of the dataset, such as cifar10. Pass any unknown name to list the supported datasets."
        ),
    ],
    source: Annotated[Path, typer.Argument(help="Folder with the extracted files.")],
    out: Out,
    seed: Seed = 0,
    shard_mb: ShardMB = 64.0,
    workers: Workers = None,
    max_refused: MaxRefused = 0.05,
    overwrite: Overwrite = False,
    part: Part = None,
) -> None:
    """Pack a public dataset from its original files, with the official splits."""
    from pipeline.packing.recipes import public_datasets as recipe

    _pack(recipe.plan(dataset, source), out, 0.0, 0.0, seed, shard_mb, workers, max_refused, overwrite, part)


@commands.command("tabletop", epilog="\b\nExample:\n  wcord pack tabletop data/tabletop --scenes 1000")
def tabletop(
    out: Out,
    scenes: Annotated[int, typer.Option(help="Number of scenes.")] = 3000,
    size: Annotated[int, typer.Option(help="Image height and width in pixels.")] = 96,
    test: Test = 0.2,
    val: Val = 0.0,
    seed: Seed = 0,
    shard_mb: ShardMB = 64.0,
    workers: Workers = None,
    overwrite: Overwrite = False,
    part: Part = None,
) -> None:
    """Generate and pack synthetic scenes: photo, depth, mask, caption, sound."""
    from pipeline.packing.recipes import tabletop as recipe

    _pack(recipe.plan(scenes, seed, size), out, test, val, seed, shard_mb, workers, 0.0, overwrite, part)


def _pack(
    plan: Plan,
    out: str,
    test: float,
    val: float,
    seed: int,
    shard_mb: float,
    workers: int | None,
    max_refused: float,
    overwrite: bool,
    part: str | None,
) -> None:
    from pipeline.packing.pack import MissingShardsError, Packing

    if not (test >= 0 and val >= 0 and test + val < 1):
        raise UserError(f"--test {test} and --val {val}: each must be at least 0, and their sum below 1.")
    if not (math.isfinite(shard_mb) and shard_mb > 0):
        raise UserError(f"--shard-mb {shard_mb}: must be a number of MB above 0, such as 64.")
    if part and overwrite:
        raise UserError(
            "--part and --overwrite cannot be combined: one part would delete the shards of another. Empty the folder "
            "first."
        )
    share = _share(part) if part else (1, 1)
    packing = Packing(
        plan,
        out,
        fractions={"train": 1 - test - val, "val": val, "test": test},
        seed=seed,
        shard_bytes=max(int(shard_mb * 1e6), 1),
        max_refused=max_refused,
    )
    with packing.claimed(overwrite):
        packing.write(workers or os.cpu_count() or 1, share)
        try:
            packing.finish()
        except MissingShardsError as missing:
            if not part:
                raise
            say(f"Part {part} is finished. {missing}")


def _share(part: str) -> tuple[int, int]:
    """`2/3` -> (2, 3)."""
    if match := re.fullmatch(r"(\d{1,6})/(\d{1,6})", part):
        number, parts = int(match[1]), int(match[2])
        if 1 <= number <= parts:
            return number, parts
    raise UserError(f"--part {part}: expected K/N with K from 1 to N, such as --part 2/3.")
