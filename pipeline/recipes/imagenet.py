"""ImageNet (ILSVRC 2012) and its subsets: a folder of photos a synset, as published or as Kaggle lays it out."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.recipes import Plan, Refusal, Sample, refusal, safe_key, spilled, stamp
from pipeline.recipes.matlab import read_matlab
from pipeline.recipes.tree import files_under

SOLUTION, MAPPING, DEVKIT = "LOC_val_solution.csv", "LOC_synset_mapping.txt", "ILSVRC2012_devkit_t12/data"


def imagenet(source: Path) -> Plan:
    """`train/SYNSET/*.JPEG`, and `val/SYNSET/*.JPEG` or `val/*.JPEG`; val is the test split, for nobody has the labels
    of the other. Class names, and the labels of photos that lie in no synset's folder, are in Kaggle's
    `LOC_synset_mapping.txt` and `LOC_val_solution.csv`, or in the authors' `ILSVRC2012_devkit_t12/`."""
    root = next((r for r in (source, source / "ILSVRC/Data/CLS-LOC") if (r / "train").is_dir()), None)
    if root is None:
        raise UserError(f"{source}: there is no folder train/ in it, nor ILSVRC/Data/CLS-LOC/train/.")
    synsets = sorted(path.name for path in (root / "train").iterdir() if path.is_dir() and path.name[0] != ".")
    numbers = {synset: number for number, synset in enumerate(synsets)}
    flat = any(path.is_file() and path.name[0] != "." for path in (root / "val").glob("*"))
    labels = _held_out(source) if flat else {}
    samples = spilled()
    refused: list[Refusal] = []
    for split, path in _photos(root):
        synset = path.parent.name if path.parent.parent.name == split else labels.get(path.stem, "")
        relative = path.relative_to(root).as_posix()
        key = safe_key(f"{split}-{path.stem}")
        try:
            if synset not in numbers:
                raise ValueError(f"its synset `{synset}` is none of the {len(synsets)} in train/")
            size, mark = stamp([str(path)])
        except (ValueError, OSError) as error:
            refused.append(refusal(key, relative, error))
            continue
        label, shard_split = numbers[synset], "test" if split == "val" else "train"
        files = {"rgb.jpg": str(path)}
        samples.append(Sample(key, key, size, mark, files, label=label, split=shard_split, source=relative))
    classes = {"label": _distinct(synsets, _names(source))}
    licence = "ImageNet terms of access: research, not commercial"
    return Plan("imagenet", "imagenet", {"source": str(source)}, samples, refused, classes, {}, licence, "official")


def _photos(root: Path) -> Iterator[tuple[str, Path]]:
    for split in ("train", "val"):
        photos = (path for path in files_under(root / split) if path.suffix.lower() in (".jpeg", ".jpg"))
        yield from ((split, path) for path in photos)


def _held_out(source: Path) -> dict[str, str]:
    """Name of a photo of val -> its synset."""
    path = source / SOLUTION
    if path.is_file():
        with path.open(newline="") as file:
            return {row[0]: row[1].split()[0] for row in csv.reader(file) if len(row) == 2 and row[1].strip()}
    truth = source / DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
    if not truth.is_file():
        raise UserError(
            f"{source}: photos lie in val/ itself; their labels are in {SOLUTION} or {DEVKIT}, put it here."
        )
    synset = {number: synset for number, synset, _ in _devkit(source)}
    lines = truth.read_text().split()
    return {f"ILSVRC2012_val_{n:08d}": synset.get(int(line), line) for n, line in enumerate(lines, 1)}


def _names(source: Path) -> dict[str, str]:
    """Synset -> its words."""
    path = source / MAPPING
    if path.is_file():
        return dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if " " in line)
    return {synset: words for _, synset, words in _devkit(source)} if (source / DEVKIT).is_dir() else {}


def _devkit(source: Path) -> list[tuple[int, str, str]]:
    """Number, synset and words of every class."""
    found = read_matlab(source / DEVKIT / "meta.mat", "synsets").ravel()
    return [tuple(one[name].item() for name in ("ILSVRC2012_ID", "WNID", "words")) for one in found]  # type: ignore[misc]


def _distinct(synsets: list[str], words: dict[str, str]) -> list[str]:
    """The first word of each, with the synset where several have the same (there are two cranes)."""
    first = [words.get(synset, synset).partition(",")[0].strip() for synset in synsets]
    count = Counter(first)
    return [name if count[name] == 1 else f"{name} {synset}" for name, synset in zip(first, synsets, strict=True)]
