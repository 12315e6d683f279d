"""Image sets in binary files, a record each: CIFAR-10, CIFAR-100 and STL-10 as their authors publish them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import UserError
from pipeline.recipes import Plan, Sample, spilled, stamp
from pipeline.scratch import Spilled


def cifar10(source: Path) -> Plan:
    """`data_batch_1.bin` to `5`, `test_batch.bin`, `batches.meta.txt`: a byte of class, then 32x32 in planes."""
    files = {f"data_batch_{n}.bin": "train" for n in range(1, 6)} | {"test_batch.bin": "test"}
    samples = _records(source, files, before=1, label=0)
    return _plan("cifar10", source, samples, {"label": _names(source / "batches.meta.txt")})


def cifar100(source: Path) -> Plan:
    """`train.bin`, `test.bin` and the names: a byte of coarse class, one of fine class, then 32x32 in planes."""
    samples = _records(source, {"train.bin": "train", "test.bin": "test"}, before=2, label=1, other=("coarse", 0))
    names = {"label": _names(source / "fine_label_names.txt"), "coarse": _names(source / "coarse_label_names.txt")}
    return _plan("cifar100", source, samples, names)


def stl10(source: Path) -> Plan:
    """`{train,test,unlabeled}_X.bin` (96x96, column by column), `{train,test}_y.bin` from 1 on, `class_names.txt`.

    Unlabelled images join the training split, as the set is meant to be used.
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
                f"{labels}: {len(given)} labels for {count} images in {path.name}; unpack the archive again."
            )
        mark = stamp([str(path)])[1]
        for number, label in enumerate(given.tolist()):
            arguments = (str(path), number * 3 * 96 * 96, 96, True)
            key = f"{name}_{number:06d}"
            samples.append(_sample(key, split, mark, arguments, None if label == 0 else label - 1, {}))
    return _plan("stl10", source, samples, {"label": _names(source / "class_names.txt")})


def _records(
    source: Path, files: Mapping[str, str], before: int, label: int, other: tuple[str, int] | None = None
) -> Spilled[Sample]:
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
) -> Sample:
    return Sample(key, key, 4000, mark, arguments=arguments, label=label, labels=more, split=split, source=key)


def _image(path: str, offset: int, side: int, by_columns: bool) -> dict[str, bytes]:
    """A PNG of the planes that lie at an offset: no loss, and any reader opens it."""
    planes = np.fromfile(path, np.uint8, 3 * side * side, offset=offset).reshape(3, side, side)
    image = planes.transpose(2, 1, 0) if by_columns else planes.transpose(1, 2, 0)
    return {"rgb.png": cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()}


def _plan(name: str, source: Path, samples: Spilled[Sample], classes: dict[str, list[str]]) -> Plan:
    for label, names in classes.items():
        found = (s.label if label == "label" else s.labels[label] for s in samples)
        if (most := max((x for x in found if x is not None), default=-1)) >= len(names):
            raise UserError(
                f"{source}: class {most} in the files, but there are {len(names)} names; are they of this set?"
            )
    options, units = {"source": str(source)}, {"rgb.png": "uint8 sRGB"}
    return Plan(name, name, options, samples, classes=classes, units=units, split_rule="official", make=_image)


def _count(path: Path, size: int) -> int:
    try:
        count, rest = divmod(path.stat().st_size, size)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. The binary version of the set is wanted, unpacked.") from None
    if rest or not count:
        raise UserError(
            f"{path}: {path.stat().st_size} bytes are no whole number of records of {size}; unpack it again."
        )
    return count


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. It is part of the set; unpack the archive again.") from None


def _names(path: Path) -> list[str]:
    return _read(path).decode().split()
