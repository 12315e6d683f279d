"""Tables of the real pairs of the settings: one row per sample, with absolute paths and columns for splitting."""

from __future__ import annotations

import csv
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

Row = dict[str, str]


def gestures(data: Path, out: Path) -> list[Row]:
    """RGB-D frames of ten hand gestures by three people, in sessions (clips)."""
    source = data / "hand_gestures_rgbd"
    rows = list(csv.DictReader((source / "index.csv").open()))
    for row in rows:
        row["rgb"], row["depth"] = (
            str(source / f"hand_rgb/{row['id']}.jpg"),
            str(source / f"hand_depth/{row['id']}.png"),
        )
    return [{name: row[name] for name in ("id", "class", "subject", "clip", "rgb", "depth")} for row in rows]


def scenes(data: Path, out: Path) -> list[Row]:
    """1,000 RGB-D frames of a walk through one room, in five folds of blocks of 25 consecutive frames."""
    source = data / "seven_scenes_rgbd"
    names = sorted(file.stem for file in (source / "rgb").iterdir())
    return [
        {
            "id": name,
            "fold": str(int(name) // 25 % 5),
            "rgb": str(source / "rgb" / f"{name}.jpg"),
            "depth": str(source / "depth" / f"{name}.png"),
        }
        for name in names
    ]


def signs(data: Path, out: Path) -> list[Row]:
    """Photos of signed digits, each with a recording of the same digit.

    Ten photos per person have consecutive numbers. The photos of different folds are paired with different recordings.
    """
    draw = random.Random(0)
    rows = []
    for digit in map(str, range(10)):
        sounds: dict[int, list[Path]] = {}
        for file in sorted((data / "spoken_digits" / "recordings").glob(f"{digit}_*.wav")):
            sounds.setdefault(int(file.stem.rpartition("_")[2]) // 5, []).append(file)
        photos = sorted((data / "sign_digits" / digit).iterdir())
        for number, photo in enumerate(photos):
            fold = 10 * number // len(photos)
            row = {"id": f"{digit}_{photo.stem}", "class": digit, "fold": str(fold), "rgb": str(photo)}
            rows.append(row | {"audio": str(draw.choice(sounds[fold]))})
    return rows


def emoji(data: Path, out: Path) -> list[Row]:
    """Two drawings of each emoji, its captions (name, other names, keywords) and its category."""
    source = data / "emoji"
    rows = []
    for row in csv.DictReader((source / "index.csv").open()):
        if row["image_twemoji"]:
            own = {"id": Path(row["image"]).stem, "class": row["category"]}
            own["fold"] = str(zlib.crc32(own["id"].encode()) % 10)
            own["rgb"], own["drawing"] = (str(source / row[name]) for name in ("image", "image_twemoji"))
            own["text"] = "\n".join(filter(None, (row["name"], row["aliases"], row["keywords"])))
            rows.append(own)
    return rows


def cifar(data: Path, out: Path) -> list[Row]:
    """A subset of CIFAR-10: the test images, and the training images, the last fifth of which is a separate fold."""
    folder = out / "cifar10"
    if not (folder / ".complete").exists():
        with zipfile.ZipFile(data / "cifar10_jpg" / "cifar10_subset.zip") as archive:
            archive.extractall(folder)
        (folder / ".complete").touch()
    rows = []
    for split in "train", "test":
        for category in sorted((folder / split).iterdir()):
            files = sorted(category.iterdir())
            for number, file in enumerate(files):
                fold = "val" if split == "train" and number >= 0.8 * len(files) else split
                own = {"id": f"{split}_{category.name}_{file.stem}", "class": category.name, "fold": fold}
                rows.append(own | {"rgb": str(file)})
    return rows


TABLES: dict[str, Callable[[Path, Path], list[Row]]] = {
    "gestures": gestures,
    "scenes": scenes,
    "signs": signs,
    "emoji": emoji,
    "cifar": cifar,
}
