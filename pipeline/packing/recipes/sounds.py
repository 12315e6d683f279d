"""Published audio datasets: ESC-50 and Speech Commands."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.spill import Spilled
from pipeline.data.label_column import sort_classes
from pipeline.packing.recipes.plan import Plan, Refusal, SourceSample, refusal, safe_key, spilled, stamp
from pipeline.packing.recipes.table import read_table


def esc50(source: Path) -> Plan:
    """Plan ESC-50 from `meta/esc50.csv` and `audio/`.

    Folds 1 to 4 are the training split, fold 5 is the test split. Clips of one recording are in the same fold.

    Args:
        source: Folder with the extracted files.

    Raises:
        UserError: The table is missing or lacks a column.
    """
    rows, refused = read_table(source / "meta" / "esc50.csv")
    if missing := {"filename", "fold", "category", "src_file"} - set(rows[0][1]):
        raise UserError(
            f"{source / 'meta' / 'esc50.csv'}: missing column {', '.join(sorted(missing))}; use the file of ESC-50."
        )
    names = sort_classes(row["category"] for _, row in rows)
    samples = spilled()
    for where, row in rows:
        file, group = row["filename"], row["src_file"]
        split = "test" if row["fold"] == "5" else "train"
        _add(samples, refused, source / "audio" / file, file, group, names.index(row["category"]), split, where)
    return Plan(
        "esc50",
        "esc50",
        {"source": str(source)},
        samples,
        refused,
        {"label": names},
        {},
        "CC BY-NC 3.0",
        "official folds",
    )


def speech_commands(source: Path) -> Plan:
    """Plan Speech Commands from one folder per word, `validation_list.txt` and `testing_list.txt`.

    File names start with the speaker, which is the group. Folders with a leading underscore contain background noise
    and are skipped.

    Args:
        source: Folder with the extracted files.

    Raises:
        UserError: A list is missing.
    """
    held_out = dict.fromkeys(_lines(source / "validation_list.txt"), "val")
    held_out |= dict.fromkeys(_lines(source / "testing_list.txt"), "test")
    words = sort_classes(path.name for path in source.iterdir() if path.is_dir() and path.name[0] not in "._@")
    samples = spilled()
    refused: list[Refusal] = []
    for word in words:
        for path in sorted((source / word).glob("*.wav")):
            relative = f"{word}/{path.name}"
            speaker = re.sub(r"_nohash_\d+$", "", path.stem)
            split = held_out.get(relative, "train")
            _add(samples, refused, path, relative, speaker, words.index(word), split, relative)
    return Plan(
        "speech_commands", "speech_commands", {"source": str(source)}, samples, refused, {"label": words}, {},
        "CC BY 4.0", "official lists",
    )  # fmt: skip


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the file is part of the dataset and defines the splits.") from None


def _add(
    samples: Spilled[SourceSample],
    refused: list[Refusal],
    path: Path,
    name: str,
    group: str,
    label: int,
    split: str,
    where: str,
) -> None:
    key = safe_key(str(Path(name).with_suffix("")))
    try:
        size, mark = stamp([str(path)])
    except OSError as error:
        refused.append(refusal(key, where, error))
        return
    files = {"audio.wav": str(path)}
    samples.append(SourceSample(key, group, size, mark, files, label=label, split=split, source=name))
