"""Sets of recordings as their authors publish them: ESC-50 and Speech Commands."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.recipes import Plan, Refusal, Sample, number_classes, refusal, safe_key, spilled, stamp
from pipeline.recipes.table import read_table
from pipeline.scratch import Spilled


def esc50(source: Path) -> Plan:
    """`meta/esc50.csv` and `audio/`: folds 1 to 4 are the training split, fold 5 the test; clips of one recording
    share a fold."""
    rows, refused = read_table(source / "meta" / "esc50.csv")
    if missing := {"filename", "fold", "category", "src_file"} - set(rows[0][1]):
        raise UserError(f"{source / 'meta' / 'esc50.csv'}: has no column {', '.join(sorted(missing))}; is it ESC-50's?")
    names = number_classes(row["category"] for _, row in rows)
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
    """A folder a word, `validation_list.txt` and `testing_list.txt`; a file's name begins with its speaker.

    Folders with a leading underscore hold background noise, not words.
    """
    held_out = dict.fromkeys(_lines(source / "validation_list.txt"), "val")
    held_out |= dict.fromkeys(_lines(source / "testing_list.txt"), "test")
    words = number_classes(path.name for path in source.iterdir() if path.is_dir() and path.name[0] not in "._")
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
        raise UserError(f"{path}: {error.strerror}; it is part of the set and says what is held out.") from None


def _add(
    samples: Spilled[Sample],
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
    samples.append(Sample(key, group, size, mark, files, label=label, split=split, source=name))
