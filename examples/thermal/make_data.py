"""Generates photos and thermal images of warm objects on cool ground, and a table for `wcord pack manifest`.

python make_data.py FOLDER [COUNT]
"""

import csv
import sys
from pathlib import Path

import cv2
import numpy as np

THINGS = {"person": 34.0, "engine": 52.0, "dog": 37.0, "cup": 45.0}  # degrees Celsius


def main(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for kind in "photo", "thermal":
        (folder / kind).mkdir(parents=True, exist_ok=True)
    with (folder / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "class"])
        for number in range(count):
            name = list(THINGS)[number % len(THINGS)]
            photo, celsius = scene(name, rng)
            cv2.imwrite(str(folder / f"photo/{number:04d}.png"), photo)
            cv2.imwrite(str(folder / f"thermal/{number:04d}.png"), ((celsius + 273.15) * 100).astype(np.uint16))
            table.writerow([f"{number:04d}", name])


def scene(name: str, rng: np.random.Generator, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A photo, uint8 BGR, and the temperature of its pixels: heat spreads slightly and decreases towards the edge."""
    ground, colour = rng.integers(60, 160, 3), rng.integers(0, 256, 3)
    mask = np.zeros((size, size), np.uint8)
    centre = tuple(int(x) for x in rng.integers(20, size - 20, 2))
    scale = int(rng.integers(8, 16))
    if name == "person":
        cv2.ellipse(mask, centre, (scale // 2, scale), 0, 0, 360, 255, -1)
    elif name == "engine":
        cv2.rectangle(
            mask, (centre[0] - scale, centre[1] - scale // 2), (centre[0] + scale, centre[1] + scale // 2), 255, -1
        )
    elif name == "dog":
        cv2.ellipse(mask, centre, (scale, scale // 2), 0, 0, 360, 255, -1)
    else:
        cv2.circle(mask, centre, scale // 2, 255, -1)
    photo = np.where(mask[..., None] > 0, colour, ground) + rng.normal(0, 12, (size, size, 3))
    warmth = cv2.GaussianBlur(mask, (0, 0), 2).astype(np.float32) / 255
    celsius = 15 + (THINGS[name] - 15) * warmth + rng.normal(0, 0.1, (size, size))
    return photo.clip(0, 255).astype(np.uint8), celsius.astype(np.float32)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 400)
