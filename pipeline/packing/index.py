"""Index existing WebDataset shards in place: write a `dataset.json` with their URLs, splits and classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from pipeline.common.errors import UserError
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.division import REST, Division
from pipeline.data.foreign import PACKING, labels_of, splits_by_name, write_index
from pipeline.data.shard_index import Wanted
from pipeline.data.shard_urls import SEPARATOR, shard_urls
from pipeline.packing.splits import SPLITS


def index(
    shards: Sequence[str],
    out: Path,
    *,
    splits: Mapping[str, str] = {},
    group: str = "",
    label: str = "label",
    fields: Mapping[str, Sequence[str]] = {},
    hashed: bool = False,
    workers: int | None = None,
    name: str = "",
) -> Dataset:
    """Index shards by their tar headers and write `out/dataset.json`. Shards are not copied.

    Repeating the same call resumes: it only reads shards that are new or have changed.

    Args:
        shards: Tars, brace patterns, globs or folders; local paths or URLs.
        out: Output folder.
        splits: Split -> fraction of the samples, e.g. `0.02`, or a pattern of shards that belong to the split.
        group: Location of the group of a sample, e.g. `json:clip`. Samples of a group stay in one split.
        label: The label whose values become classes, as in `data.label`.
        fields: Field -> extensions, as in `data.fields`.
        hashed: Compute the SHA-256 of local shards, which requires reading them completely.
        workers: Number of processes; None means one per CPU core.
        name: Name of the dataset.

    Returns:
        The manifest.

    Raises:
        UserError: A shard cannot be read, a split is unknown or empty, or `out` contains shards.
    """
    patterns = SEPARATOR.join(shards)
    urls = shard_urls(patterns)
    if (out / PACKING).exists() or any(Path(url).parent == out.absolute() for url in urls) or _is_packed(out):
        raise UserError(f"{out}: the folder already contains shards. Choose another folder for the index.")
    division, whole = _splits(splits, group, urls)
    wanted = Wanted(labels_of(label), division, hashed)
    dataset = write_index(patterns, urls, out, whole, wanted, workers or os.cpu_count() or 1, name, fields)
    if empty := [split for split in (REST, *splits) if not dataset.samples(split)]:
        (out / MANIFEST).unlink()
        raise UserError(f"{out}: the split `{empty[0]}` would be empty. Choose other splits.")
    return dataset


def _is_packed(out: Path) -> bool:
    """Whether the folder has a `dataset.json` that is not an index."""
    try:
        return not Dataset.model_validate_json((out / MANIFEST).read_bytes()).extensions
    except FileNotFoundError:
        return False
    except (OSError, ValidationError):
        return True


def _splits(splits: Mapping[str, str], group: str, urls: Sequence[str]) -> tuple[Division | None, dict[str, str]]:
    """The rule that assigns samples to splits, or shard -> split."""
    shares: dict[str, float] = {}
    whole: dict[str, str] = {}
    for split, rule in splits.items():
        if split not in SPLITS or split == REST:
            raise UserError(f"--split {split}: unknown; choose from {', '.join(s for s in SPLITS if s != REST)}.")
        try:
            shares[split] = float(rule)
        except ValueError:
            found = dict.fromkeys(shard_urls(rule), split)
            if outside := next((url for url in found if url not in urls), None):
                raise UserError(f"--split {split}: {outside} is not one of the indexed shards.") from None
            whole |= found
    if shares and whole:
        raise UserError("--split: use either fractions of the samples or patterns of shards, not both.")
    if group and not shares:
        raise UserError("--group: requires a split by fraction, e.g. --split test=0.02.")
    if not shares:
        return None, whole or splits_by_name(urls)
    try:
        division = Division(shares=shares, group=group)
    except ValidationError:
        raise UserError("--split: a fraction must be between 0 and 1 (exclusive), e.g. test=0.02.") from None
    if sum(shares.values()) >= 1:
        raise UserError("--split: no samples are left for training; the sum of the fractions must be below 1.")
    return division, {}
