"""RGB-D datasets, as published: NYU-Depth v2 and SUN RGB-D."""

from __future__ import annotations

import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.spill import Spilled
from pipeline.common.walk import files_under
from pipeline.data.label_column import sort_classes
from pipeline.packing.recipes.matlab import read_matlab
from pipeline.packing.recipes.plan import (
    Make,
    Plan,
    Refusal,
    SourceSample,
    refusal,
    safe_key,
    spilled,
    stamp,
)

NYU_CAMERA = {"fx": 518.857901, "fy": 519.469611, "cx": 324.582449, "cy": 252.736166, "width": 640, "height": 480}
"""In pixels, from camera_params.m of the toolbox, whose pixel indices start at 1."""

CAMERA = "intrinsics.txt"
"""The intrinsics of a scene of SUN RGB-D: three rows of three numbers."""


def nyu_depth_v2(source: Path) -> Plan:
    """Plan NYU-Depth v2 from `nyu_depth_v2_labeled.mat` (HDF5) and `splits.mat`.

    The samples are aligned photos (JPEG, quality 95), depth maps and masks, with the room type as the class: 795 for
    training and 654 for testing. `mask` uses the 894 original classes. If `classMapping40.mat` of Gupta et al. (2013)
    is in the folder, `classes` uses the 40 classes that papers usually report.

    Args:
        source: The folder.

    Raises:
        UserError: A file is missing or damaged.
    """
    path = source / "nyu_depth_v2_labeled.mat"
    train = set(read_matlab(source / "splits.mat", "trainNdxs").ravel().tolist())
    try:
        file = _open(str(path))
        kinds = [_text(file, ref) for ref in file["sceneTypes"][0]]
        scenes = [_text(file, ref) for ref in file["scenes"][0]]
        objects = [_text(file, ref) for ref in file["names"][0]]
        for name in ("images", "depths", "labels"):
            file[name]
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: not the labelled dataset of NYU-Depth v2: {error}") from None
    names, mark = sort_classes(kinds), stamp([str(path)])[1]
    classes, masks, table = {"label": names, "mask": objects}, {"mask": list(range(1, len(objects) + 1))}, None
    if (mapping := source / "classMapping40.mat").is_file():
        classes["classes"] = [str(name[0]) for name in read_matlab(mapping, "className").ravel()]
        masks["classes"] = list(range(1, len(classes["classes"]) + 1))
        table = (0, *read_matlab(mapping, "mapClass").ravel().tolist())
    samples = spilled()
    for n, (scene, kind) in enumerate(zip(scenes, kinds, strict=True)):
        split, key, label = "train" if n + 1 in train else "test", f"nyu_{n:04d}", names.index(kind)
        samples.append(SourceSample(key, scene, 500_000, mark, {}, {}, [n], label, split=split, source=f"{scene} {n}"))
    plan = _plan("nyu_depth_v2", source, samples, [], names, partial(_nyu_frame, str(path), table))
    plan.classes, plan.masks = classes, masks
    return plan


def sun_rgbd(source: Path) -> Plan:
    """Plan SUN RGB-D from the folders of `SUNRGBD/` and `SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat`.

    Each folder has `image/`, `depth_bfx/`, `intrinsics.txt` and `scene.txt`. The bit rotation of the depth maps is
    reversed.

    Args:
        source: The folder.

    Raises:
        UserError: A file is missing or damaged.
    """
    root = source / "SUNRGBD"
    listed = read_matlab(source / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat", "alltrain").ravel()
    train = {str(entry[0]).rstrip("/").partition("SUNRGBD/")[2] for entry in listed}
    found: list[tuple[Path, str, int, str]] = []
    refused: list[Refusal] = []
    for folder in sorted(path.parent for path in files_under(root) if path.name == "scene.txt"):
        try:
            size, mark = stamp([*_pair(folder), str(folder / CAMERA)])
            kind = (folder / "scene.txt").read_text().strip()
        except (OSError, ValueError) as error:
            refused.append(refusal(safe_key(str(folder.relative_to(root))), str(folder), error))
            continue
        found.append((folder, kind, size, mark))
    names = sort_classes(kind for _, kind, _, _ in found)
    samples = spilled()
    for folder, kind, size, mark in found:
        relative = folder.relative_to(root).as_posix()
        split = "train" if relative in train else "test"
        key, label = safe_key(relative), names.index(kind)
        samples.append(SourceSample(key, key, size, mark, {}, {}, [str(folder)], label, split=split, source=relative))
    return _plan("sun_rgbd", source, samples, refused, names, _sun_frame)


def _plan(
    name: str, source: Path, samples: Spilled[SourceSample], refused: list[Refusal], names: list[str], make: Make
) -> Plan:
    units = {"depth.png": "millimetres, 0 = no reading"}
    options = {"source": str(source)}
    return Plan(name, name, options, samples, refused, {"label": names}, units, split_rule="official", make=make)


def _nyu_frame(path: str, table: tuple[int, ...] | None, number: int) -> dict[str, bytes]:
    """Members of a frame. `table` maps original to coarse classes (0 means none); None without coarse classes."""
    file = _open(path)
    mask = file["labels"][number].T.astype(np.uint16)
    coarse = {} if table is None else {"classes.png": _png(np.array(table, np.uint8)[mask])}
    photo = np.ascontiguousarray(file["images"][number].transpose(2, 1, 0)[..., ::-1])
    millimetres = np.clip(1000 * np.nan_to_num(file["depths"][number].T), 0, 65_535).round().astype(np.uint16)
    return {
        "rgb.jpg": cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes(),
        "depth.png": _png(millimetres),
        "mask.png": _png(mask),
        **coarse,
        "meta.json": json.dumps({"intrinsics": NYU_CAMERA}).encode(),
    }


def _sun_frame(folder: str) -> dict[str, bytes]:
    photo, depth = _pair(Path(folder))
    raw = cv2.imread(depth, cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16:
        raise ValueError(f"{depth}: not a 16-bit PNG")
    millimetres = (raw >> 3) | (raw << 13)  # as in read3dPoints.m of the toolbox
    fx, _, cx, _, fy, cy = _matrix(Path(folder) / CAMERA)[:6]
    height, width = raw.shape
    camera = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "width": width, "height": height}
    return {
        "rgb.jpg": Path(photo).read_bytes(),
        "depth.png": _png(millimetres),
        "meta.json": json.dumps({"intrinsics": camera}).encode(),
    }


def _matrix(path: Path) -> list[float]:
    """The nine numbers of a camera matrix, row by row. Raises ValueError for anything else."""
    try:
        numbers = [float(word) for word in path.read_text().split()]
    except ValueError:
        numbers = []
    if len(numbers) != 9:
        raise ValueError(f"{path}: invalid camera: expected nine numbers")
    return numbers


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def _pair(folder: Path) -> tuple[str, str]:
    """The photo and the depth map of a scene. Raises ValueError unless there is one of each."""
    photos, maps = sorted((folder / "image").glob("*.jpg")), sorted((folder / "depth_bfx").glob("*.png"))
    if len(photos) != 1 or len(maps) != 1:
        raise ValueError(f"{len(photos)} photos in image/ and {len(maps)} maps in depth_bfx/, expected one of each")
    return str(photos[0]), str(maps[0])


@lru_cache(maxsize=1)
def _open(path: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError("NYU-Depth v2 requires h5py: pip install 'wcord[pack]'") from error
    return h5py.File(path, "r")


def _text(file: Any, reference: Any) -> str:
    return "".join(map(chr, file[reference][:].ravel()))
