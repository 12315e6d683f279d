"""Makes photos of flickering symbols and the EEG of somebody who looks at them, and a table for `wcord pack manifest`.

python make_data.py FOLDER [COUNT]

Each symbol flickers at a frequency of its own, which the visual cortex follows: steady-state visual evoked potentials.
"""

import csv
import sys
from pathlib import Path

import cv2
import numpy as np

SYMBOLS = {"disc": 8.0, "square": 10.0, "cross": 12.0, "triangle": 15.0}  # Hz
CHANNELS, RATE, SECONDS = 8, 128, 3  # the rate is in Hz


def main(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for kind in "photo", "eeg":
        (folder / kind).mkdir(parents=True, exist_ok=True)
    with (folder / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "class"])
        for number in range(count):
            name = list(SYMBOLS)[number % len(SYMBOLS)]
            cv2.imwrite(str(folder / f"photo/{number:04d}.png"), photo(name, rng))
            np.save(folder / f"eeg/{number:04d}.npy", recording(SYMBOLS[name], rng))
            table.writerow([f"{number:04d}", name])


def photo(name: str, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """uint8 BGR: the symbol at a random place, in random colours."""
    mask, scale = np.zeros((size, size), np.uint8), int(rng.integers(9, 15))
    x, y = (int(value) for value in rng.integers(20, size - 20, 2))
    if name == "disc":
        cv2.circle(mask, (x, y), scale, 255, -1)
    elif name == "square":
        cv2.rectangle(mask, (x - scale, y - scale), (x + scale, y + scale), 255, -1)
    elif name == "cross":
        cv2.line(mask, (x - scale, y), (x + scale, y), 255, 5)
        cv2.line(mask, (x, y - scale), (x, y + scale), 255, 5)
    else:
        cv2.fillPoly(mask, [np.array([(x, y - scale), (x - scale, y + scale), (x + scale, y + scale)])], 255)
    image = np.where(mask[..., None] > 0, rng.integers(150, 256, 3), rng.integers(0, 100, 3))
    return (image + rng.normal(0, 12, (size, size, 3))).clip(0, 255).astype(np.uint8)


def recording(frequency: float, rng: np.random.Generator) -> np.ndarray:
    """float32 `[CHANNELS, time]`, microvolts: the response, strongest at the back of the head, and noise."""
    time = np.arange(RATE * SECONDS) / RATE
    phase = rng.uniform(0, 2 * np.pi)
    response = np.sin(2 * np.pi * frequency * time + phase) + 0.4 * np.sin(4 * np.pi * frequency * time + phase)
    strength = np.linspace(0, 8, CHANNELS) * rng.uniform(0.6, 1.4)
    drift = rng.normal(0, 0.5, (CHANNELS, len(time))).cumsum(1)
    noise = drift - drift.mean(1, keepdims=True) + rng.normal(0, 3, (CHANNELS, len(time)))
    return (strength[:, None] * response + noise).astype(np.float32)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 400)
