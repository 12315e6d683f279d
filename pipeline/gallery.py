"""The retrieval gallery: queries that the student sees, and the pictures of the teacher's side that lie nearest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.config import Config
from pipeline.report_samples import Embeddings, Thumbnails, read_embeddings, read_thumbnails
from pipeline.runs import read_log
from pipeline.trackers import send_picture

QUERIES, NEIGHBOURS = 12, 5
EDGE, GAP = 3, 6
COLOURS = {"right": (46, 160, 67), "wrong": (207, 34, 46), "open": (128, 128, 128)}


@dataclass(frozen=True)
class Query:
    """place, row: of the query among the thumbnails and the embeddings. similarity `[N]`: cosine with all that the
    teacher saw. nearest: places of the thumbnails of the teacher's side, the nearest first.
    """

    place: int
    row: int
    similarity: np.ndarray
    nearest: tuple[int, ...]


def queries(e: Embeddings, thumbnails: Thumbnails) -> list[Query]:
    """A few, evenly over the classes, so that none is picked for its looks; ValueError without a teacher."""
    if e.teacher is None or thumbnails.teacher is None:
        raise ValueError("a gallery needs the embeddings and the pictures of a teacher")
    rows = thumbnails.rows
    by_class = np.argsort(e.label[rows], kind="stable")
    found = []
    for place in by_class[np.linspace(0, len(rows) - 1, min(QUERIES, len(rows))).round().astype(int)]:
        similarity = e.teacher @ e.student[rows[place]]
        nearest = np.argsort(-similarity[rows], kind="stable")[:NEIGHBOURS]
        found.append(Query(int(place), int(rows[place]), similarity, tuple(map(int, nearest))))
    return found


def verdict(e: Embeddings, row: int, other: int) -> Literal["right", "wrong", "open"]:
    """Whether two samples are of one class; `open` where a class is unknown."""
    if e.label[row] < 0 or e.label[other] < 0:
        return "open"
    return "right" if e.label[row] == e.label[other] else "wrong"


def picture(e: Embeddings, thumbnails: Thumbnails) -> np.ndarray:
    """The gallery, uint8 RGB `[H, W, 3]`: a line a query, then the nearest, edged green if of its class, else red."""
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
    """Show the gallery of an evaluated run in its trackers, if it has a teacher."""
    embeddings = read_embeddings(run)
    thumbnails = read_thumbnails(run, len(embeddings.keys)) if embeddings is not None else None
    if embeddings is None or thumbnails is None or thumbnails.teacher is None:
        return
    steps = read_log(run / "metrics.jsonl", [])
    send_picture(config, run, "gallery", picture(embeddings, thumbnails), max(steps, default=0))
