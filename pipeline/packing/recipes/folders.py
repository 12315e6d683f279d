"""The recipe `folders`: one folder per field; the files of a sample have the same path except for the extension."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Literal

from pipeline.common.errors import UserError
from pipeline.common.file_names import nfc, say_skipped
from pipeline.common.spill import blob, scratch, unblob
from pipeline.common.walk import files_under
from pipeline.data.label_column import sort_classes
from pipeline.data.member_formats import member_name
from pipeline.packing.recipes.plan import (
    UNITS,
    Plan,
    Refusal,
    SourceSample,
    check_unique,
    refusal,
    safe_key,
    sift,
    spilled,
    stamp,
)
from pipeline.packing.splits import SPLITS

_NO_GROUP = "no group"


def plan(
    root: str | Path,
    fields: Mapping[str, str],
    label_from: Literal["parent"] | None = None,
    split_from: Literal["top"] | None = None,
    group: str | None = None,
    name: str | None = None,
    licence: str = "not stated",
) -> Plan:
    """Plan a dataset from parallel folders: `photos/cat/001.jpg` belongs to `maps/cat/001.png`.

    Paths are compared in one Unicode normal form. Samples that lack a field are rejected. Hidden files and
    operating-system files (`Thumbs.db`, …) are skipped, and links to folders are followed.

    Args:
        root: The folder that contains the folders of the fields.
        fields: Field -> its folder, relative to `root`: `{"rgb": "photos", "depth": "maps"}`.
        label_from: `parent` uses the name of the folder of a file (`cat`) as its class.
        split_from: `top` takes the split from the top-level folder of the path (`train/cat/001`): train, val or test.
        group: `parent` keeps the files of a folder in one split. Otherwise, a regular expression that is matched
            anywhere in the path, without the root, the field folder and the suffix (`cat/001`); its capture groups,
            joined by `/`, or else the whole match, are the group. With None, every sample is a separate group.
        name: Name of the dataset; None means the name of the folder.
        licence: Licence of the data.

    Raises:
        UserError: A folder is missing or empty, or the regular expression is invalid or matches no path.
    """
    if not fields:
        raise UserError("no fields: specify each field and its folder, e.g. `--field rgb=photos --field depth=maps`.")
    reader = _Reader(fields, label_from is not None, split_from is not None, _grouping(group))
    samples, refused = sift(reader.read(stem, paths) for stem, paths in _matched(Path(root), fields))
    if not samples and all(refusal.reason.startswith(_NO_GROUP) for refusal in refused):
        raise UserError(
            f"all {len(refused)} samples were rejected: the pattern of --group, `{group}`, matches no path, e.g. "
            f"`{refused[0].reason.rpartition(' does not match `')[2]}. Paths are without the root, the field folder "
            "and the suffix."
        )
    check_unique(samples)
    names = sort_classes(reader.class_name(sample.source) for sample in samples) if label_from else []
    if label_from:
        numbers = {name: number for number, name in enumerate(names)}
        samples = spilled(sample._replace(label=numbers[reader.class_name(sample.source)]) for sample in samples)
    return Plan(
        recipe="folders",
        name=name or Path(root).resolve().name,
        options={"fields": dict(fields), "label_from": label_from, "split_from": split_from, "group": group},
        samples=samples,
        refused=refused,
        classes={"label": names} if label_from else {},
        units=dict(unit for field, unit in UNITS.items() if field in fields),
        licence=licence,
        split_rule="given by the first folder" if split_from else None,
    )


@dataclass(frozen=True)
class _Reader:
    """The settings of the recipe. Makes a sample (without label) from the files with the same path."""

    folders: Mapping[str, str]
    has_label: bool
    has_split: bool
    grouping: re.Pattern[str] | None

    def class_name(self, stem: str) -> str:
        """`x/cat/001` -> `cat`; the folder of the split does not count as a class."""
        within = stem.partition("/")[2] if self.has_split else stem
        return within.rpartition("/")[0].rpartition("/")[2]

    def read(self, stem: str, paths: Mapping[str, Sequence[str]]) -> SourceSample | Refusal:
        try:
            return self._sample(stem, paths)
        except (ValueError, OSError) as error:
            return refusal(safe_key(stem), next(path for found in paths.values() for path in found), error)

    def _sample(self, stem: str, paths: Mapping[str, Sequence[str]]) -> SourceSample:
        """Raises ValueError for an invalid name or a missing field, OSError for a missing file."""
        files = dict(_member(field, folder, paths.get(field, ())) for field, folder in self.folders.items())
        split = stem.partition("/")[0] if self.has_split else None
        if split and split not in SPLITS:
            raise ValueError(f"no split: the first folder is `{split}`, expected one of {', '.join(SPLITS)}")
        if self.has_label and not self.class_name(stem):
            raise ValueError("no label: the file is not in a class folder")
        size, mark = stamp(files.values())
        return SourceSample(
            key=safe_key(stem),
            group=_group(stem, self.grouping),
            size=size,
            stamp=mark,
            files=files,
            split=split,
            source=stem,
        )


def _matched(root: Path, fields: Mapping[str, str]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Every path without extension, sorted, with the files of each field."""
    db = scratch("files (stem BLOB, field TEXT, path BLOB)")
    left: Counter[str] = Counter()
    for field, folder in fields.items():
        _refuse_shards(root / folder)
        found = ((blob(stem), field, blob(path)) for stem, path in _files(root / folder, left))
        if not db.executemany("INSERT INTO files VALUES (?, ?, ?)", found).rowcount > 0:
            raise UserError(f"{root / folder}: the folder does not exist or is empty. Set it with --field NAME=FOLDER.")
    say_skipped(str(root), left)
    for stem, several in groupby(db.execute("SELECT * FROM files ORDER BY stem, path"), key=itemgetter(0)):
        paths: dict[str, list[str]] = defaultdict(list)
        for _, field, path in several:
            paths[field].append(unblob(path))
        yield unblob(stem), paths


def _refuse_shards(folder: Path) -> None:
    """Raise UserError for a folder that only contains tars and the files that tools write next to them."""
    suffixes = {path.suffix for path in islice(files_under(folder), 100)}
    if ".tar" in suffixes and suffixes <= {".tar", ".json", ".parquet"}:
        raise UserError(
            f"{folder}: the files are tars, not one file per sample. WebDataset shards need no packing: set "
            f"data.shards to this folder, or run `wcord index {folder} --out FOLDER`. To repack them, for example with "
            f"smaller photos, run `wcord pack webdataset {folder} FOLDER`."
        )


def _files(folder: Path, left: Counter[str]) -> Iterator[tuple[str, str]]:
    """The files in a folder: relative path without extension (with `/`), and path."""
    found = files_under(folder, left=left)
    return ((nfc(path.relative_to(folder).with_suffix("").as_posix()), str(path)) for path in found)


def _member(field: str, folder: str, paths: Sequence[str]) -> tuple[str, str]:
    if not paths:
        raise ValueError(f"its {field} is missing: no file with the same name in `{folder}`")
    if len(paths) > 1:
        raise ValueError(f"its {field} is ambiguous: {' and '.join(paths)} have the same name")
    return member_name(field, paths[0]), paths[0]


def _grouping(group: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(r"(.*)/" if group == "parent" else nfc(group)) if group else None
    except re.error as error:
        raise UserError(f"group: `{group}` is neither `parent` nor a regular expression: {error}.") from None


def _group(stem: str, grouping: re.Pattern[str] | None) -> str:
    if grouping is None:
        return safe_key(stem)
    if (match := grouping.search(stem)) is None:
        raise ValueError(f"{_NO_GROUP}: `{grouping.pattern}` does not match `{stem}`")
    return "/".join(part for part in match.groups() if part is not None) or match[0]
