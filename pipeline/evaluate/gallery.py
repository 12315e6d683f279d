"""The retrieval gallery: queries in the student's modality and the nearest pictures in the teacher's modality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.config.settings import Config
from pipeline.runs.artifacts import Embeddings, Thumbnails, read_embeddings, read_thumbnails
from pipeline.runs.reader import read_log
from pipeline.runs.trackers import send_picture

QUERIES, NEIGHBOURS = 12, 5
EDGE, GAP = 3, 6
COLOURS = {"right": (46, 160, 67), "wrong": (207, 34, 46), "open": (128, 128, 128)}


@dataclass(frozen=True)
class Query:
    """One row of the gallery.

    Attributes:
        place: Index of the query among the thumbnails.
        row: Index of the query among the embeddings.
        similarity: Cosine similarity to all teacher embeddings, `[N]`.
        nearest: Indices of the nearest teacher thumbnails, nearest first.
    """

    place: int
    row: int
    similarity: np.ndarray
    nearest: tuple[int, ...]


def queries(e: Embeddings, thumbnails: Thumbnails) -> list[Query]:
    """Choose queries evenly across the classes, to avoid cherry-picking.

    Raises:
        ValueError: The run has no teacher.
    """
    if e.teacher is None or thumbnails.teacher is None:
        raise ValueError("a gallery requires embeddings and pictures of a teacher")
    rows = thumbnails.rows
    by_class = np.argsort(e.label[rows], kind="stable")
    found = []
    for place in by_class[np.linspace(0, len(rows) - 1, min(QUERIES, len(rows))).round().astype(int)]:
        similarity = e.teacher @ e.student[rows[place]]
        nearest = np.argsort(-similarity[rows], kind="stable")[:NEIGHBOURS]
        found.append(Query(int(place), int(rows[place]), similarity, tuple(map(int, nearest))))
    return found


def verdict(e: Embeddings, row: int, other: int) -> Literal["right", "wrong", "open"]:
    """Whether two samples have the same class; `open` if a class is unknown."""
    if e.label[row] < 0 or e.label[other] < 0:
        return "open"
    return "right" if e.label[row] == e.label[other] else "wrong"


def picture(e: Embeddings, thumbnails: Thumbnails) -> np.ndarray:
    """Render the gallery as uint8 RGB `[H, W, 3]`, one row per query.

    Neighbours of the same class as the query have a green border, all others a red one.
    """
    assert thumbnails.teacher is not None
    lines = []
    for query in queries(e, thumbnails):
        cells = [_cell(thumbnails.student[query.place], (255, 255, 255))]
        cells += [
            _cell(thumbnails.teacher[place], COLOURS[verdict(e, query.row, int(thumbnails.rows[place]))])
            for place in query.nearest
        ]
        lines.append(np.concatenate(cells, 1))
    return np.concatenate(lines)


def _cell(thumbnail: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    height, width, _ = thumbnail.shape
    cell = np.full((height + 2 * GAP, width + 2 * GAP, 3), 255, np.uint8)
    cell[GAP - EDGE : EDGE - GAP, GAP - EDGE : EDGE - GAP] = colour
    cell[GAP:-GAP, GAP:-GAP] = thumbnail
    return cell


def track_gallery(run: Path, config: Config) -> None:
    """Send the gallery of an evaluated run to its trackers, if it has a teacher."""
    embeddings = read_embeddings(run)
    thumbnails = read_thumbnails(run, len(embeddings.keys)) if embeddings is not None else None
    if embeddings is None or thumbnails is None or thumbnails.teacher is None:
        return
    steps = read_log(run / "metrics.jsonl", [])
    send_picture(config, run, "gallery", picture(embeddings, thumbnails), max(steps, default=0))
