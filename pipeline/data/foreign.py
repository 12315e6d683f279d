"""Foreign shards, written by other tools: read in place, with a `dataset.json` that is created on first use."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from glob import has_magic
from hashlib import blake2b
from itertools import chain
from pathlib import Path

from filelock import FileLock

from pipeline.common.file_names import say_skipped
from pipeline.common.files import write_atomic
from pipeline.data.dataset import MANIFEST, Dataset, Shard, Stated
from pipeline.data.division import REST, Division
from pipeline.data.label_column import LabelColumn, without_samples
from pipeline.data.label_value import LabelValue, class_names
from pipeline.data.remote import cache_folder, is_remote
from pipeline.data.shard_index import Count, Wanted, count_shards
from pipeline.data.shard_urls import SEPARATOR, shard_urls
from pipeline.data.stated_counts import stated_counts

log = logging.getLogger(__name__)

USUAL_LABEL = ("label", LabelValue("cls"))
"""Name and location of the default label."""

PACKING = ".pack"
"""Folder with the state of `wcord pack`. A dataset with this folder but without a manifest is incomplete."""

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
"""Word in the name of a shard or folder -> split, as in the `datasets` library."""


def is_foreign(spec: str | Path) -> bool:
    """Whether this refers to foreign shards: a pattern, a tar, a wids index, or a local folder without `dataset.json`.

    A remote folder counts as packed, since only a request could find out whether it has a `dataset.json`.

    Args:
        spec: Folder, URL or pattern, as in `data.shards`.
    """
    text = str(spec)
    if (
        SEPARATOR in text
        or "{" in text
        or has_magic(text)
        or text.endswith((".tar", ".json"))
        or text.startswith("pipe:")
    ):
        return is_remote(text) or not (Path(text) / MANIFEST).exists()
    if is_remote(text):
        return False
    folder = Path(text)
    return not (folder / MANIFEST).exists() and not (folder / PACKING).exists() and any(folder.rglob("*.tar*"))


def index_folder(spec: str | Path) -> Path:
    """Folder in the cache for the `dataset.json` and the cached teacher features of foreign shards.

    Args:
        spec: Folder or pattern, as in `data.shards`.
    """
    parts = [part if is_remote(part) else str(Path(part).absolute()) for part in str(spec).split(SEPARATOR)]
    return (
        cache_folder()
        / "indexes"
        / blake2b(SEPARATOR.join(parts).encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()
    )


def index_once(spec: str | Path, folder: Path, label: str = "label", tolerant: bool = False) -> Dataset:
    """Index foreign shards on first use. Later calls only count shards that have changed.

    Args:
        spec: Folder or pattern, as in `data.shards`.
        folder: Folder of the index.
        label: The label whose values become classes, as in `data.label`.
        tolerant: Count a damaged shard as far as it can be read.

    Returns:
        The manifest.

    Raises:
        UserError: There are no such shards, or one of them cannot be read.
    """
    urls = shard_urls(str(spec))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "index.lock"):  # one process per machine counts, the others wait
        # In this process: worker processes would be spawned, which breaks scripts without a `__main__` guard.
        wanted = Wanted(labels_of(label), tolerant=tolerant)
        return write_index(str(spec), urls, folder, splits_by_name(urls), wanted, workers=1)


def labels_of(label: str) -> tuple[tuple[str, LabelValue], ...]:
    """Name and location of the labels to count: the default label, and the requested one.

    Args:
        label: The requested label, as in `data.label`.
    """
    asked = () if label == USUAL_LABEL[0] else ((label, LabelValue.parse(label)),)
    return (USUAL_LABEL, *asked)


def write_index(
    patterns: str,
    urls: Sequence[str],
    folder: Path,
    splits: Mapping[str, str],
    wanted: Wanted,
    workers: int,
    name: str = "",
    fields: Mapping[str, Sequence[str]] = {},
) -> Dataset:
    """Count shards and write a `dataset.json` with their URLs. Shards are not copied.

    Args:
        patterns: `data.shards`, which may name indexes of wids.
        urls: URLs or paths of the shards.
        folder: Folder for `dataset.json` and the stored counts, from which an interrupted call resumes.
        splits: URL -> split of a whole shard. The default is `train`.
        wanted: What to count besides samples and members.
        workers: Number of processes.
        name: Name of the dataset; "" for the name of the first shard's folder.
        fields: Field -> extensions, if they are not detected.

    Returns:
        The manifest.

    Raises:
        UserError: A shard cannot be read.
    """
    from pipeline.common.progress import Progress  # imports rich, which training does not use

    with Progress("counting", len(urls), "shards") as progress:
        counts = count_shards(urls, wanted, folder, workers, progress.advance, partial(stated_counts, patterns))
    dataset = describe(counts, splits, wanted.division, name or Path(urls[0]).parent.name or "shards")
    if fields:
        dataset = dataset.model_copy(update={"names": dataset.named(fields).names})
    data = dataset.model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n"
    if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() != data:
        write_atomic(folder / MANIFEST, data)
        for label, own in _values(counts).items():
            LabelColumn.of(label, own).say()
        for line in _uncovered(counts, splits):
            log.info(f"note: {line}")
        say_skipped(dataset.name, sum((Counter(count.left) for count in counts), Counter[str]()))
    return dataset


def describe(counts: Sequence[Count], splits: Mapping[str, str], division: Division | None, name: str) -> Dataset:
    """Build the manifest of counted shards.

    Args:
        counts: Counts of the shards.
        splits: URL -> split of a whole shard. The default is `train`.
        division: The rule that assigns the samples of a shard to splits, if there is one.
        name: Name of the dataset.
    """
    files = plain_names([count.url for count in counts])
    found: dict[str, list[Shard]] = {}
    fields = Counter[str]()
    for count in counts:
        fields.update(count.fields)
    for count in counts:
        stated = Stated(by=count.stated, extensions=tuple(sorted(fields))) if count.stated else None
        for split, samples in (count.splits or {splits.get(count.url, REST): count.samples}).items():
            shard = Shard(
                file=files[count.url],
                samples=samples,
                bytes=count.bytes,
                sha256=count.sha256,
                url=count.url,
                state=count.state,
                total=count.samples,
                stated=stated,
            )
            found.setdefault(split, []).append(shard)
    return Dataset(
        name=name,
        recipe="webdataset",
        extensions=dict(sorted(fields.items())),
        fields={},
        splits=dict(sorted(found.items(), key=lambda item: item[0] != REST)),
        classes={label: names for label, own in _values(counts).items() if (names := class_names(own))},
        units={},
        split_rule=_rule(division) if division else "by shard",
        division=division,
    )


def _rule(division: Division) -> str:
    shares = ", ".join(f"{split} {share:g}" for split, share in division.shares.items())
    return f"{shares}, by hash of {division.group or 'the key'}"


def _values(counts: Sequence[Count]) -> dict[str, set[str]]:
    """Label -> its distinct values in all shards."""
    values: dict[str, set[str]] = {}
    for count in counts:
        for label, own in count.labels.items():
            values.setdefault(label, set()).update(own)
    return values


def _uncovered(counts: Sequence[Count], splits: Mapping[str, str]) -> Iterator[str]:
    """Classes that occur, but not in every split with labels. Nothing if the values of a shard are not known."""
    if any(count.stated or (count.splits and count.labels and not count.held) for count in counts):
        return
    found: dict[str, dict[str, set[str]]] = {}
    for count in counts:
        for split, labels in (count.held or {splits.get(count.url, REST): count.labels}).items():
            for label, own in labels.items():
                found.setdefault(label, {}).setdefault(split, set()).update(own)
    for label, by_split in found.items():
        column = LabelColumn.of(label, set().union(*by_split.values()))
        for split, values in by_split.items():
            classes = set(map(column.read, values)).intersection(column.names)
            if classes and (absent := [name for name in column.names if name not in classes]):
                yield without_samples(label, split, absent)


def plain_names(urls: Sequence[str]) -> dict[str, str]:
    """Choose a unique file name for each shard, from which the names of its cached-feature shards are derived.

    Args:
        urls: URLs or paths of the shards.

    Returns:
        URL -> file name.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for url in urls:
        parts = re.sub(r"^\w+://", "", url).split("/")
        choices = chain(
            ("-".join(parts[-number:]) for number in range(1, len(parts) + 1)),
            (f"{number}-{parts[-1]}" for number in range(len(urls))),
        )
        plain = (_plain(choice) for choice in choices)
        names[url] = next(name for name in plain if name not in taken)
        taken.add(names[url])
    return names


def _plain(name: str) -> str:
    """A file name without path separators that is not hidden."""
    stem = re.sub(r"[^\w.-]", "_", name.removesuffix(".tar")).lstrip("_.-")
    return f"{stem or 'shard'}.tar"


def splits_by_name(urls: Sequence[str]) -> dict[str, str]:
    """Derive splits from words such as `val` in the names of shards and their folders.

    Parent folders common to all shards are ignored. If no shard would be left for training, all are used for training.

    Args:
        urls: URLs or paths of the shards.

    Returns:
        URL -> split.
    """
    paths = [re.sub(r"^\w+://|^/+", "", url) for url in urls]
    shared = os.path.commonpath(paths) if len(urls) > 1 else paths[0].rpartition("/")[0]
    found = {}
    for url, path in zip(urls, paths, strict=True):
        rest = path.removeprefix(shared)
        words = re.split(r"[^a-z]+", rest.lower())
        found[url] = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), REST)
    return found if REST in found.values() else dict.fromkeys(urls, REST)
