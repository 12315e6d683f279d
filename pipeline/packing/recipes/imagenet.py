"""ImageNet (ILSVRC 2012) and subsets: one folder per synset, in the original or the Kaggle layout."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.file_names import left_by
from pipeline.common.walk import files_under
from pipeline.packing.recipes.matlab import read_matlab
from pipeline.packing.recipes.plan import Plan, Refusal, SourceSample, refusal, safe_key, spilled, stamp

SOLUTION, MAPPING, DEVKIT = "LOC_val_solution.csv", "LOC_synset_mapping.txt", "ILSVRC2012_devkit_t12/data"


def imagenet(source: Path) -> Plan:
    """Plan ImageNet from `train/SYNSET/*.JPEG`, and `val/SYNSET/*.JPEG` or `val/*.JPEG`.

    The validation split becomes the test split, since the labels of the original test split are not public. Class
    names, and labels of photos that are not in a synset folder, are read from `LOC_synset_mapping.txt` and
    `LOC_val_solution.csv` (Kaggle) or from `ILSVRC2012_devkit_t12/` (original).

    Args:
        source: Folder with the extracted files.

    Raises:
        UserError: The folder or the labels are missing.
    """
    root = next((r for r in (source, source / "ILSVRC/Data/CLS-LOC") if (r / "train").is_dir()), None)
    if root is None:
        raise UserError(f"{source}: contains neither train/ nor ILSVRC/Data/CLS-LOC/train/.")
    folders = (path.name for path in (root / "train").iterdir() if path.is_dir() and path.name[0] != ".")
    synsets = sorted(name for name in folders if left_by(name) is None)
    numbers = {synset: number for number, synset in enumerate(synsets)}
    flat = any(path.parent == root / "val" for path in files_under(root / "val"))
    labels = _held_out(source) if flat else {}
    samples = spilled()
    refused: list[Refusal] = []
    for split, path in _photos(root):
        synset = path.parent.name if path.parent.parent.name == split else labels.get(path.stem, "")
        relative = path.relative_to(root).as_posix()
        key = safe_key(f"{split}-{path.stem}")
        try:
            if synset not in numbers:
                raise ValueError(f"its synset `{synset}` is not among the {len(synsets)} in train/")
            size, mark = stamp([str(path)])
        except (ValueError, OSError) as error:
            refused.append(refusal(key, relative, error))
            continue
        label, shard_split = numbers[synset], "test" if split == "val" else "train"
        files = {"rgb.jpg": str(path)}
        samples.append(SourceSample(key, key, size, mark, files, label=label, split=shard_split, source=relative))
    classes = {"label": _distinct(synsets, _names(source))}
    licence = "ImageNet terms of access: research, not commercial"
    return Plan("imagenet", "imagenet", {"source": str(source)}, samples, refused, classes, {}, licence, "official")


def _photos(root: Path) -> Iterator[tuple[str, Path]]:
    for split in ("train", "val"):
        photos = (path for path in files_under(root / split) if path.suffix.lower() in (".jpeg", ".jpg"))
        yield from ((split, path) for path in photos)


def _held_out(source: Path) -> dict[str, str]:
    """Name of a validation photo -> its synset."""
    path = source / SOLUTION
    if path.is_file():
        with path.open(newline="") as file:
            return {row[0]: row[1].split()[0] for row in csv.reader(file) if len(row) == 2 and row[1].strip()}
    truth = source / DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
    if not truth.is_file():
        raise UserError(
            f"{source}: the photos in val/ have no synset folders; add {SOLUTION} or {DEVKIT} for their labels."
        )
    synset = {number: synset for number, synset, _ in _devkit(source)}
    lines = truth.read_text().split()
    return {f"ILSVRC2012_val_{n:08d}": synset.get(int(line), line) for n, line in enumerate(lines, 1)}


def _names(source: Path) -> dict[str, str]:
    """Synset -> its words (English names)."""
    path = source / MAPPING
    if path.is_file():
        return dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if " " in line)
    return {synset: words for _, synset, words in _devkit(source)} if (source / DEVKIT).is_dir() else {}


def _devkit(source: Path) -> list[tuple[int, str, str]]:
    """Number, synset and words of every class."""
    found = read_matlab(source / DEVKIT / "meta.mat", "synsets").ravel()
    return [tuple(one[name].item() for name in ("ILSVRC2012_ID", "WNID", "words")) for one in found]  # type: ignore[misc]


def _distinct(synsets: list[str], words: dict[str, str]) -> list[str]:
    """The first name of each class, followed by the synset if several classes share it (such as crane)."""
    first = [words.get(synset, synset).partition(",")[0].strip() for synset in synsets]
    count = Counter(first)
    return [name if count[name] == 1 else f"{name} {synset}" for name, synset in zip(first, synsets, strict=True)]
