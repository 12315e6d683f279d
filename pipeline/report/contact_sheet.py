"""Draws a contact sheet: a PNG with a row per sample and a column per modality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import cv2
import numpy as np

from pipeline.common.files import write_atomic
from pipeline.evaluate.write_artifacts import thumbnail

SIDE = 160
"""Side of a picture in pixels."""

TEXT, CHARACTERS, LINE = 300, 40, 16
"""Width of the texts in pixels and in characters, and the height of a line in pixels."""


def write_sheet(path: Path, columns: Sequence[Sequence[np.ndarray | None]], texts: Sequence[str] = ()) -> None:
    """Write a contact sheet.

    Args:
        path: The PNG.
        columns: Pictures of each modality, uint8 RGB `[H, W, 3]`; None for a missing one. They are scaled to the size
            of a tile. Short columns are filled up.
        texts: A text beside each row; empty for a sheet without texts. Characters that the font lacks become question
            marks.
    """
    rows = max(map(len, columns))
    tiles = [np.vstack([_tile(one) for one in [*column, *[None] * (rows - len(column))]]) for column in columns]
    beside = [np.vstack([_text(text) for text in texts])] if texts else []
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, cv2.imencode(".png", np.hstack([*tiles, *beside])[..., ::-1])[1].tobytes())


def _tile(picture: np.ndarray | None) -> np.ndarray:
    return np.zeros((SIDE, SIDE, 3), np.uint8) if picture is None else thumbnail(np.ascontiguousarray(picture), SIDE)


def _text(text: str) -> np.ndarray:
    tile = np.full((SIDE, TEXT, 3), 255, np.uint8)
    lines = [part for line in text.encode("ascii", "replace").decode().splitlines() for part in wrap(line, CHARACTERS)]
    for row, line in enumerate(lines[: SIDE // LINE - 1]):
        place = (8, LINE * (row + 1))
        cv2.putText(tile, line, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (20, 20, 20), 1, cv2.LINE_AA)
    return tile
