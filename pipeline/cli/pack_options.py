"""Options that several recipes of `wcord pack` have."""

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
Masks = Annotated[
    list[str],
    typer.Option("--mask", help="A field that is a mask, with its classes and pixel values: mask=floor:0,hand:255."),
]
Intrinsics = Annotated[
    str | None,
    typer.Option(help="Depth camera in pixels: fx,fy,cx,cy, plus ,width,height if they refer to another image size."),
]
Gravity = Annotated[
    str | None,
    typer.Option(help="Direction of gravity in camera coordinates (x right, y down, z away), such as 0,1,0."),
]
Test = Annotated[float, typer.Option(help="Fraction of the samples for the test split; groups are not divided.")]
Val = Annotated[float, typer.Option(help="Fraction of the samples for the val split.")]
Seed = Annotated[int, typer.Option(help="Seed of the split and of the order of the samples.")]
ShardMB = Annotated[float, typer.Option("--shard-mb", help="Target size of a shard in MB.")]
Workers = Annotated[int | None, typer.Option(help="Number of processes; default: one per core.")]
MaxRefused = Annotated[float, typer.Option(help="Fraction of samples that may be rejected before packing fails.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing data set in the output folder.")]
Part = Annotated[
    str | None,
    typer.Option(help="K/N: write only the K-th of N parts of the shards, so that N machines pack one data set."),
]
Licence = Annotated[str, typer.Option(help="Licence of the data, for dataset.json.")]
Name = Annotated[str | None, typer.Option(help="Name of the data set, for dataset.json.")]
