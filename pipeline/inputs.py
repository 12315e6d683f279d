"""What a person hands to a finished network: files, folders of files, packed data sets and single shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from modalities.base import Geometry
from pipeline.errors import UserError
from pipeline.prepare import Sight, View, look, members_of
from pipeline.recipes.tree import files_under
from pipeline.samples import CURE, Sample, read_range, read_samples
from pipeline.shards import MANIFEST, load_dataset, verify_files
from pipeline.skipped import SampleError, Skipped


@dataclass(frozen=True)
class Input:
    """One sample: its key (of a file, the path), and a function to what the network sees; it may raise SampleError."""

    key: str
    look: Callable[[], Any]


def find_inputs(places: Iterable[str | Path], sight: Sight) -> Iterator[Input]:
    """All samples of files, folders, packed data sets (folders with dataset.json, all splits) and `.tar` shards.

    Of a folder, those files are taken whose suffix the modality reads, in sorted order, and those of its sub-folders,
    links followed, hidden ones left out.
    Raises UserError for a place that is not there or has nothing to read, and for files where a network sees several
    modalities: only shards say which belong together.
    """
    for place in map(Path, places):
        if (place / MANIFEST).is_file() or place.suffix == ".tar":
            yield from (Input(raw["__key__"], partial(look, sight, raw)) for raw in _raw(place, sight))
            continue
        if not isinstance(sight, View):
            names = " and ".join(view.modality.name for view in sight)
            raise UserError(f"{place}: this network sees {names} of a sample together; give shards that hold both.")
        for path in _files(place, sight):
            yield Input(str(path), partial(look_at_file, sight, path))


def look_at_file(view: View, path: Path) -> Any:
    """What a network sees of a file; SampleError for one that cannot be read."""
    try:
        return look_at(view, path.read_bytes())
    except (OSError, ValueError) as error:
        raise SampleError(Skipped(path.name, 0, str(path), "unreadable", f"{path}: {error}", False)) from None


def look_at(view: View, data: bytes) -> Any:
    """What a network sees of the bytes of one member; ValueError, in words, for bytes that are not of its modality."""
    return view.modality.augment(view.modality.decode(data, {}), Geometry(), view.size, None)


def _files(place: Path, view: View) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: no such file or folder. Give files, folders, packed data sets or shards.")
    suffixes = {f".{member.rpartition('.')[2]}" for member in view.modality.members}
    suffixes |= {".jpeg"} if ".jpg" in suffixes else set()
    try:
        found = [path for path in files_under(place) if path.suffix.lower() in suffixes and path.is_file()]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}.") from None
    if not found:
        raise UserError(
            f"{place}: holds no {view.modality.name} files ({', '.join(sorted(suffixes))}); hidden ones are left out."
        )
    return found


def _raw(place: Path, sight: Sight) -> Iterator[Sample]:
    folder = place if place.is_dir() else place.parent
    members = members_of(sight)
    if (folder / MANIFEST).is_file():
        shards = [shard for split in load_dataset(folder).splits.values() for shard in split]
        shards = [shard for shard in shards if place in (folder, folder / shard.file)]
        if shards:
            verify_files(folder, shards)
            yield from read_range(folder, shards, 0, sum(shard.samples for shard in shards), members)
            return
    try:
        with ExitStack() as stack:
            for number, raw in enumerate(read_samples(stack.enter_context(place.open("rb")), str(place), members)):
                yield raw | {"__place__": number}
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: {error}. {CURE}") from None
