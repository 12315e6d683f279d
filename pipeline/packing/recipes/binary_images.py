"""Image datasets published as binary files with fixed-size records: CIFAR-10, CIFAR-100 and STL-10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.spill import Spilled
from pipeline.packing.recipes.plan import Plan, SourceSample, spilled, stamp


def cifar10(source: Path) -> Plan:
    """Plan CIFAR-10 from `data_batch_1.bin` to `5`, `test_batch.bin` and `batches.meta.txt`.

    Each record consists of one byte for the class and a 32 x 32 image in channel planes.

    Args:
        source: Folder with the extracted binary version.

    Raises:
        UserError: A file is missing or damaged.
    """
    files = {f"data_batch_{n}.bin": "train" for n in range(1, 6)} | {"test_batch.bin": "test"}
    samples = _records(source, files, before=1, label=0)
    return _plan("cifar10", source, samples, {"label": _names(source / "batches.meta.txt")})


def cifar100(source: Path) -> Plan:
    """Plan CIFAR-100 from `train.bin`, `test.bin` and the lists of class names.

    Each record consists of one byte for the coarse class, one for the fine class, and a 32 x 32 image in channel
    planes.

    Args:
        source: Folder with the extracted binary version.

    Raises:
        UserError: A file is missing or damaged.
    """
    samples = _records(source, {"train.bin": "train", "test.bin": "test"}, before=2, label=1, other=("coarse", 0))
    names = {"label": _names(source / "fine_label_names.txt"), "coarse": _names(source / "coarse_label_names.txt")}
    return _plan("cifar100", source, samples, names)


def stl10(source: Path) -> Plan:
    """Plan STL-10 from `{train,test,unlabeled}_X.bin`, `{train,test}_y.bin` and `class_names.txt`.

    Images are 96 x 96 in column-major order; labels start at 1. Unlabelled images are added to the training split, as
    intended by the authors.

    Args:
        source: Folder with the extracted binary version.

    Raises:
        UserError: A file is missing or damaged.
    """
    samples = spilled()
    for name, split in (("train", "train"), ("test", "test"), ("unlabeled", "train")):
        path, labels = source / f"{name}_X.bin", source / f"{name}_y.bin"
        if name == "unlabeled" and not path.is_file():
            continue
        count = _count(path, 3 * 96 * 96)
        given = np.frombuffer(_read(labels), np.uint8) if name != "unlabeled" else np.zeros(count, np.uint8)
        if len(given) != count:
            raise UserError(
                f"{labels}: has {len(given)} labels for {count} images in {path.name}; extract the archive again."
            )
        mark = stamp([str(path)])[1]
        for number, label in enumerate(given.tolist()):
            arguments = (str(path), number * 3 * 96 * 96, 96, True)
            key = f"{name}_{number:06d}"
            samples.append(_sample(key, split, mark, arguments, None if label == 0 else label - 1, {}))
    return _plan("stl10", source, samples, {"label": _names(source / "class_names.txt")})


def _records(
    source: Path, files: Mapping[str, str], before: int, label: int, other: tuple[str, int] | None = None
) -> Spilled[SourceSample]:
    samples, size = spilled(), before + 3 * 32 * 32
    for name, split in files.items():
        path = source / name
        count, mark = _count(path, size), stamp([str(path)])[1]
        for number, head in enumerate(np.memmap(path, np.uint8, "r", shape=(count, size))[:, :before]):
            arguments = (str(path), number * size + before, 32, False)
            more = {other[0]: int(head[other[1]])} if other else {}
            samples.append(_sample(f"{path.stem}_{number:05d}", split, mark, arguments, int(head[label]), more))
    return samples


def _sample(
    key: str, split: str, mark: str, arguments: Sequence[str | int], label: int | None, more: Mapping[str, int]
) -> SourceSample:
    return SourceSample(key, key, 4000, mark, arguments=arguments, label=label, labels=more, split=split, source=key)


def _image(path: str, offset: int, side: int, by_columns: bool) -> dict[str, bytes]:
    """The image at an offset, as PNG, which is lossless."""
    planes = np.fromfile(path, np.uint8, 3 * side * side, offset=offset).reshape(3, side, side)
    image = planes.transpose(2, 1, 0) if by_columns else planes.transpose(1, 2, 0)
    return {"rgb.png": cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()}


def _plan(name: str, source: Path, samples: Spilled[SourceSample], classes: dict[str, list[str]]) -> Plan:
    for label, names in classes.items():
        found = (s.label if label == "label" else s.labels[label] for s in samples)
        if (most := max((x for x in found if x is not None), default=-1)) >= len(names):
            raise UserError(
                f"{source}: the files contain class {most}, but there are only {len(names)} class names; use matching "
                "files."
            )
    options, units = {"source": str(source)}, {"rgb.png": "uint8 sRGB"}
    return Plan(name, name, options, samples, classes=classes, units=units, split_rule="official", make=_image)


def _count(path: Path, size: int) -> int:
    try:
        count, rest = divmod(path.stat().st_size, size)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Extract the binary version of the dataset here.") from None
    if rest or not count:
        raise UserError(
            f"{path}: {path.stat().st_size} bytes is not a multiple of the record size {size}; extract the archive "
            "again."
        )
    return count


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}. The file is part of the dataset; extract the archive again."
        ) from None


def _names(path: Path) -> list[str]:
    return _read(path).decode().split()
