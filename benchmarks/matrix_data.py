"""Packs real pairs of photos, depth, audio and text for `wcord bench configs/bench/matrix.yaml`.

    python -m benchmarks.matrix_data --gestures DIR --signs DIR --spoken DIR --emoji DIR

gestures: RGB-D frames with index.csv, hand_rgb/ and hand_depth/; the test split consists of two sessions with unique
backgrounds. signs: photos of signed digits, DIGIT/*.JPG. spoken: recordings/DIGIT_SPEAKER_INDEX.wav; indices 0 to 4
are the official test split. emoji: index.csv with two drawing styles, names, keywords and categories.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.packing.pack import pack
from pipeline.packing.recipes import manifest
from pipeline.packing.recipes.plan import Plan

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FRACTIONS = {"train": 0.8, "val": 0.0, "test": 0.2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in "gestures", "signs", "spoken", "emoji":
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/matrix_data"))
    options = parser.parse_args()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    plans = {
        "gestures": gestures(options.gestures.resolve(), out),
        "hand_digits": hand_digits(options.gestures.resolve(), options.spoken.resolve(), out),
        "digits": digits(options.signs.resolve(), options.spoken.resolve(), out),
        "digit_names": digit_names(options.spoken.resolve(), out),
        "emoji": emoji(options.emoji.resolve(), out),
    }
    for name, plan in plans.items():
        pack(plan, out / name, fractions=FRACTIONS)


def gestures(source: Path, out: Path) -> Plan:
    """Frames of hands; the text is the name of the gesture."""
    rows = _hands(source)
    for row in rows:
        row["name"] = row["class"].replace("_", " ")
    fields = {"rgb": f"{source}/hand_rgb/{{id}}.jpg", "depth": f"{source}/hand_depth/{{id}}.png", "text": "name"}
    return manifest.plan(write_table(out / "gestures.csv", rows), fields, ["class"], split="split")


def hand_digits(source: Path, spoken: Path, out: Path) -> Plan:
    """Depth maps of hands and recordings of digits: each of the ten gestures represents one digit."""
    rows = _hands(source)
    for row in rows:
        row["class"] = NAMES[int(row["label"])]
    fields = {"depth": f"{source}/hand_depth/{{id}}.png", "audio": "partner.sound"}
    partners = write_table(out / "spoken.csv", _spoken(spoken))
    return manifest.plan(write_table(out / "hands.csv", rows), fields, ["class"], split="split", partners=partners)


def digits(signs: Path, spoken: Path, out: Path) -> Plan:
    """Photos of signed digits, each with a recording of the same digit.

    Photos of one student have consecutive numbers: the last fifth of every digit is the test split.
    """
    rows = []
    for digit, name in enumerate(NAMES):
        files = sorted((signs / str(digit)).iterdir())
        for number, file in enumerate(files):
            split = "train" if number < 0.8 * len(files) else "test"
            rows.append({"photo": str(file), "class": name, "split": split, "id": f"{digit}_{file.stem}"})
    table = write_table(out / "signs.csv", rows)
    fields = {"rgb": "photo", "audio": "partner.sound"}
    partners = write_table(out / "spoken.csv", _spoken(spoken))
    return manifest.plan(table, fields, ["class"], split="split", partners=partners)


def digit_names(spoken: Path, out: Path) -> Plan:
    """Recordings of spoken digits, with the name of the digit as text."""
    table = write_table(out / "digit_names.csv", _spoken(spoken))
    return manifest.plan(table, {"audio": "sound", "text": "class"}, ["class"], split="split")


def emoji(source: Path, out: Path) -> Plan:
    """Two drawings of each emoji (if both exist), and its captions: name, other names, keywords."""
    rows = [row for row in csv.DictReader((source / "index.csv").open()) if row["image_twemoji"]]
    for row in rows:
        row["captions"] = "\n".join(filter(None, (row["name"], row["aliases"], row["keywords"])))
    fields = {"rgb": f"{source}/{{image}}", "twemoji": f"{source}/{{image_twemoji}}", "text": "captions"}
    return manifest.plan(write_table(out / "emoji.csv", rows), fields, ["category"])


def _hands(source: Path) -> list[dict[str, str]]:
    """In a session (`clip`), one person shows all gestures. A split by gesture would leak the backgrounds of the test
    split.
    """
    rows = list(csv.DictReader((source / "index.csv").open()))
    for row in rows:
        row["split"] = "test" if row["clip"] == "clip05" else "train"
    return rows


def _spoken(spoken: Path) -> list[dict[str, str]]:
    rows = []
    for file in sorted((spoken / "recordings").glob("*.wav")):
        digit, _, index = file.stem.split("_")
        split = "test" if int(index) < 5 else "train"
        rows.append({"sound": str(file), "class": NAMES[int(digit)], "split": split, "id": file.stem})
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


if __name__ == "__main__":
    main()
