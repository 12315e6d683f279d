"""Inputs for a trained network: files, folders of files, packed datasets and single shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.common.disk_errors import machine_fault
from pipeline.common.errors import UserError
from pipeline.common.walk import files_under
from pipeline.data.dataset import MANIFEST, Layout
from pipeline.data.decoding import check_members, check_pixels, decode_view
from pipeline.data.manifest import load_dataset, verify_files
from pipeline.data.member_formats import SAME_FORMAT
from pipeline.data.member_names import USUAL_NAMES
from pipeline.data.shard_reader import CURE, Sample, read_range, read_samples
from pipeline.data.skipped import SampleError, Skipped
from pipeline.data.views import View, ViewSpec, required_members


@dataclass(frozen=True)
class Input:
    """One sample: its key (the path of a file), and a function that loads it and may raise SampleError."""

    key: str
    look: Callable[[], Any]


def find_inputs(places: Iterable[str | Path], sight: ViewSpec) -> Iterator[Input]:
    """Yield all samples of files, folders, packed datasets (with dataset.json, all splits) and `.tar` shards.

    In a folder, files with an extension of the modality are read in sorted order, including subfolders and links.
    Hidden files are skipped.

    Args:
        places: The paths.
        sight: The view of the network.

    Raises:
        UserError: A path does not exist or contains nothing to read; or a network with several modalities is given
            single files, which do not define samples as shards do.
    """
    for place in map(Path, places):
        if (place / MANIFEST).is_file() or place.suffix == ".tar":
            yield from (Input(raw["__key__"], partial(look_at_sample, sight, raw)) for raw in _raw(place, sight))
            continue
        if not isinstance(sight, View):
            names = " and ".join(view.modality.name for view in sight)
            raise UserError(f"{place}: this network requires {names} for each sample; use shards that contain both.")
        for path in _files(place, sight):
            yield Input(str(path), partial(look_at_file, sight, path))


def look_at_sample(sight: ViewSpec, raw: Sample) -> Any:
    """Load the input of a network from a raw sample of a shard.

    Raises:
        SampleError: A member is missing, too large or cannot be decoded.
    """
    check_members(raw)
    return decode_view(sight, raw)


def look_at_file(view: View, path: Path) -> Any:
    """Load the input of a network from a file.

    Raises:
        SampleError: The file cannot be read.
        UserError: The machine fails: no permission, too many open files.
    """
    try:
        return look_at(view, path.read_bytes())
    except (OSError, ValueError) as error:
        if fault := machine_fault(error, path):
            raise fault from None
        raise SampleError(Skipped(path.name, 0, str(path), "unreadable", f"{path}: {error}", False)) from None


def look_at(view: View, data: bytes) -> Any:
    """Load the input of a network from the bytes of one shard member or file.

    Raises:
        ValueError: The bytes are not valid for the modality.
    """
    check_pixels(data)
    return view.whole(view.modality.decode(data, {}))


def _files(place: Path, view: View) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: no such file or folder. Pass files, folders, packed datasets or shards.")
    suffixes = {f".{member.rpartition('.')[2]}" for member in view.modality.members}
    suffixes |= {f".{other}" for other, suffix in SAME_FORMAT.items() if f".{suffix}" in suffixes}
    try:
        found = [path for path in files_under(place) if path.suffix.lower() in suffixes and path.is_file()]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}.") from None
    if not found:
        raise UserError(
            f"{place}: no {view.modality.name} files found ({', '.join(sorted(suffixes))}); hidden files are skipped."
        )
    return found


def _raw(place: Path, sight: ViewSpec) -> Iterator[Sample]:
    folder = place if place.is_dir() else place.parent
    members = required_members(sight)
    if (folder / MANIFEST).is_file():
        dataset = load_dataset(folder)
        named = False
        for split, own in dataset.splits.items():
            shards = [shard for shard in own if place in (folder, shard.path(folder))]
            named = named or bool(shards)
            verify_files(folder, shards)
            stop = sum(shard.samples for shard in shards)
            yield from read_range(dataset.layout(folder, split), shards, 0, stop, members)
        if named:
            return
    try:
        with ExitStack() as stack:
            file, layout = stack.enter_context(place.open("rb")), Layout(folder, USUAL_NAMES)
            for number, raw in enumerate(read_samples(file, str(place), members, layout)):
                yield raw | {"__place__": number}
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: {error}. {CURE}") from None
