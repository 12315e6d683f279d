"""Options of `wcord pack`: those shared by several recipes, and those of webdataset that are lists."""

from __future__ import annotations

from typing import Annotated

import typer

Out = Annotated[
    str, typer.Argument(help="Output folder for the shards and dataset.json, or a URL such as s3://bucket/set.")
]
Fields = Annotated[
    list[str],
    typer.Option("--field", help="A field of each sample and its source: rgb=…, depth=…; repeat for each field."),
]
Extensions = Annotated[
    list[str],
    typer.Option(
        "--field", help="A field and its extensions: rgb=jpg,png; repeatable. Default: detect common extensions."
    ),
]
Filters = Annotated[
    list[str],
    typer.Option("--filter", help="Your own function that drops or changes samples: package.module:name."),
]
Masks = Annotated[
    list[str],
    typer.Option(
        "--mask", help="A segmentation mask field, with its classes and their pixel values: mask=floor:0,hand:255."
    ),
]
Intrinsics = Annotated[
    str | None,
    typer.Option(
        help="Intrinsics of the depth camera in pixels: fx,fy,cx,cy. Append ,width,height if they refer to another "
        "image size."
    ),
]
Gravity = Annotated[
    str | None,
    typer.Option(help="Direction of gravity in camera coordinates (x right, y down, z away), such as 0,1,0."),
]
Test = Annotated[float, typer.Option(help="Fraction of the samples for the test split. A group stays in one split.")]
Val = Annotated[float, typer.Option(help="Fraction of the samples for the val split.")]
Seed = Annotated[int, typer.Option(help="Random seed for the split and the order of the samples.")]
ShardMB = Annotated[float, typer.Option("--shard-mb", help="Target size of a shard in MB.")]
Workers = Annotated[int | None, typer.Option(help="Number of worker processes; default: one per core.")]
MaxRefused = Annotated[
    float,
    typer.Option(help="Maximum fraction of refused (rejected) samples; packing fails above it. See refused.jsonl."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset in the output folder.")]
Part = Annotated[
    str | None,
    typer.Option(help="K/N: write only part K of N, so N machines can pack one dataset together."),
]
Licence = Annotated[str, typer.Option(help="Licence of the data, recorded in dataset.json.")]
Name = Annotated[str | None, typer.Option(help="Name of the dataset, recorded in dataset.json.")]
