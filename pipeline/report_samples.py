"""The parts of a report that show test samples: the retrieval gallery, the embedding map, the confusion matrix."""

from __future__ import annotations

import base64
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from pipeline import charts
from pipeline.errors import UserError

QUERIES, NEIGHBOURS, MAP_SAMPLES, PICTURE = 12, 5, 300, 112


@dataclass(frozen=True)
class Embeddings:
    """`evaluation/embeddings.npz`: test samples in one common space.

    keys `[N]`; label `[N]` int, -1 unknown; classes `[K]`; prediction `[N]` int or None; student `[N, D]` and
    teacher `[N, D]` (or None without a teacher), float32, L2-normalised. broken: vectors that were not finite and
    stand as zeros.
    """

    keys: np.ndarray
    label: np.ndarray
    classes: list[str]
    prediction: np.ndarray | None
    student: np.ndarray
    teacher: np.ndarray | None
    broken: int = 0

    def class_name(self, index: int) -> str:
        return self.classes[index] if 0 <= index < len(self.classes) else "unknown"

    def predicted(self, row: int) -> str:
        """What the student takes a sample for, in words; "" where it has no class head."""
        index = -1 if self.prediction is None else int(self.prediction[row])
        return f"predicted {self.class_name(index)}" if index >= 0 else ""


@dataclass(frozen=True)
class Thumbnails:
    """`evaluation/thumbnails.npz`: pictures `[n, h, w, 3]` uint8 of the embeddings' rows `rows [n]`."""

    rows: np.ndarray
    student: np.ndarray
    teacher: np.ndarray | None
    student_modality: str
    teacher_modality: str


def read_embeddings(folder: Path) -> Embeddings | None:
    """Read a run's embeddings; None if there are none. Raises UserError if the file is not what `evaluate` writes."""
    path = folder / "evaluation" / "embeddings.npz"
    if (data := _load(path)) is None:
        return None
    keys = _array(path, data, "keys", 1, "U")
    classes = _array(path, data, "classes", 1, "U") if _filled(data, "classes") else np.empty(0, "U1")
    label, student = _array(path, data, "label", 1, "iu", len(keys)), _array(path, data, "student", 2, "f", len(keys))
    teacher = _array(path, data, "teacher", 2, "f", len(keys)) if _filled(data, "teacher") else None
    prediction = _array(path, data, "prediction", 1, "iu", len(keys)) if _filled(data, "prediction") else None
    if teacher is not None and teacher.shape != student.shape:
        raise _fault(path, f"student {list(student.shape)} and teacher {list(teacher.shape)} are not in one space")
    for name, indices in (("label", label), ("prediction", prediction)):
        if indices is not None and indices.max() >= len(classes):
            raise _fault(path, f"{name} {indices.max()} has no name in classes")
    sides = [side.astype(np.float32) for side in (student, teacher) if side is not None]
    broken = int(sum((~np.isfinite(side).all(axis=1)).sum() for side in sides))
    sides = [np.nan_to_num(side, posinf=0, neginf=0) for side in sides]
    names = [str(name) for name in classes]
    return Embeddings(keys, label, names, prediction, sides[0], sides[1] if len(sides) > 1 else None, broken)


def read_thumbnails(folder: Path, samples: int) -> Thumbnails | None:
    """Read a run's pictures, of `samples` embeddings; None if there are none. UserError as for the embeddings."""
    path = folder / "evaluation" / "thumbnails.npz"
    if (data := _load(path)) is None:
        return None
    rows = _array(path, data, "rows", 1, "iu")
    if rows.min() < 0 or rows.max() >= samples:
        raise _fault(path, f"rows point outside the {samples} embeddings")
    student = _array(path, data, "student", 4, "u", len(rows))
    teacher = _array(path, data, "teacher", 4, "u", len(rows)) if _filled(data, "teacher") else None
    names = [str(data.get(f"{side}_modality", side)) for side in ("student", "teacher")]
    return Thumbnails(rows, student, teacher, names[0], names[1])


def spread(embeddings: np.ndarray) -> float:
    """How far unit vectors `[N, D]` spread: 1 - |mean|^2, from 0 (all the same) to 1 (evenly around the sphere)."""
    return float(1 - np.square(embeddings.mean(axis=0)).sum())


def true_pair_rank(similarity: np.ndarray, true: int) -> float:
    """The rank, from 1, of candidate `true` in `similarity [N]`; candidates of equal similarity share their mean rank.

    So a collapsed network, to which all are alike, gets N / 2 and not 1.
    """
    value = similarity[true]
    return 1 + float((similarity > value).sum() + ((similarity == value).sum() - 1) / 2)


def gallery(e: Embeddings, thumbnails: Thumbnails) -> str:
    """Queries in the student's modality and the pictures of the teacher's modality that lie nearest, as HTML."""
    if e.teacher is None or thumbnails.teacher is None:
        raise ValueError("a gallery needs the embeddings and the pictures of a teacher")
    rows = thumbnails.rows
    # Evenly over the classes, so that what is shown was not picked for its looks.
    by_class = np.argsort(e.label[rows], kind="stable")
    chosen = by_class[np.linspace(0, len(rows) - 1, min(QUERIES, len(rows))).round().astype(int)]
    parts = []
    for query in chosen:
        row = int(rows[query])
        similarity = e.teacher @ e.student[row]
        rank = true_pair_rank(similarity, row)
        nearest = np.argsort(-similarity[rows], kind="stable")[:NEIGHBOURS]
        name = e.class_name(int(e.label[row]))
        pictures = [_picture(thumbnails.student[query], name, e.predicted(row) or "query", "query")]
        for candidate in nearest:
            other = int(rows[candidate])
            known = e.label[row] >= 0 and e.label[other] >= 0
            verdict = ("right" if e.label[other] == e.label[row] else "wrong") if known else "open"
            mark = {"right": "✓ ", "wrong": "✗ ", "open": ""}[verdict]
            words = f"{mark}{e.class_name(int(e.label[other]))}"
            note = "true pair" if other == row else f"cos {similarity[other]:.2f}"
            kind = verdict + (" pair" if other == row else "")
            pictures.append(_picture(thumbnails.teacher[candidate], words, note, kind, str(e.keys[other])))
        among = "among these" if row in rows[nearest] else "not among these"
        parts.append(
            f'<div class="query-row"><div class="strip">{"".join(pictures)}</div>'
            f"<p>True pair: rank {rank:,.0f} of {len(e.keys):,}, {among}. "
            f"<code>{escape(str(e.keys[row]))}</code></p></div>"
        )
    return f'<div class="gallery">{"".join(parts)}</div>'


def embedding_map(e: Embeddings) -> tuple[str, str]:
    """The map as SVG, and in words how it was made."""
    rows = np.unique(np.linspace(0, len(e.keys) - 1, min(MAP_SAMPLES, len(e.keys))).round().astype(int))
    sides = [e.student] if e.teacher is None else [e.student, e.teacher]
    vectors = np.concatenate([side[rows] for side in sides])
    flat, method = _to_plane(vectors)
    points = []
    for i, (x, y) in enumerate(flat):
        side, row = i // len(rows), int(rows[i % len(rows)])
        predicted = f" · {e.predicted(row)}" if side == 0 and e.predicted(row) else ""
        title = f"{e.keys[row]} · {e.class_name(int(e.label[row]))}{predicted} · {('student', 'teacher')[side]}"
        points.append(charts.Point(float(x), float(y), side, int(max(e.label[row], -1)), row, title))
    words = f"{method} of {len(rows):,} of {len(e.keys):,} samples"
    return charts.scatter(points, len(e.classes), "Embedding map"), words


def class_legend(e: Embeddings) -> str:
    """A button for each class in its colour; the page's script highlights the class in the map."""
    present = sorted({int(max(i, -1)) for i in e.label})
    return "".join(
        f'<button type="button" data-group="{i}"><i style="background:{charts.colour(i, len(e.classes))}"></i>'
        f"{escape(e.class_name(i))}</button>"
        for i in present
    )


def confusion_counts(e: Embeddings) -> np.ndarray | None:
    """Counts `[K, K]` of (true class, predicted class) over samples that have both; None if none has."""
    if e.prediction is None:
        return None
    known = (e.label >= 0) & (e.prediction >= 0)
    counts = np.zeros((len(e.classes), len(e.classes)), int)
    np.add.at(counts, (e.label[known], e.prediction[known]), 1)
    return counts if known.any() else None


def frequent_confusions(counts: np.ndarray, classes: Sequence[str], most: int = 8) -> str:
    """The commonest mistakes as an HTML table; "" if there are none."""
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    order = [i for i in np.argsort(-wrong, axis=None, kind="stable")[:most] if wrong.flat[i]]
    if not order:
        return ""
    lines = []
    for i in order:
        true, predicted = divmod(int(i), len(counts))
        share = 100 * wrong[true, predicted] / counts[true].sum()
        lines.append(
            f"<tr><td>{escape(classes[true])}</td><td>{escape(classes[predicted])}</td>"
            f'<td class="number">{wrong[true, predicted]}</td><td class="number">{share:.0f} %</td></tr>'
        )
    head = "<tr><th>true</th><th>taken for</th><th>times</th><th>of that class</th></tr>"
    return f'<table class="plain"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'


def _picture(image: np.ndarray, words: str, note: str, kind: str, key: str = "") -> str:
    import cv2

    longest = max(image.shape[:2])
    if longest > PICTURE:
        size = [max(1, round(side * PICTURE / longest)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    # OpenCV writes BGR.
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    data = base64.b64encode(jpeg.tobytes()).decode()
    title = f' title="{escape(key)}"' if key else ""
    return (
        f'<figure class="{kind}"{title}><img alt="{escape(words)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{escape(words)}<small>{escape(note)}</small></figcaption></figure>"
    )


def _to_plane(vectors: np.ndarray) -> tuple[np.ndarray, str]:
    """`[M, D]` to `[M, 2]`: t-SNE (van der Maaten and Hinton 2008), or PCA where there are too few points for it."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(vectors) < 30 or vectors.shape[1] < 3 or np.ptp(vectors, axis=0).max() < 1e-3:
        centred = vectors - vectors.mean(axis=0)
        plane = np.zeros((len(vectors), 2), np.float32)
        kept = min(2, *vectors.shape)
        plane[:, :kept] = PCA(kept, svd_solver="full").fit(centred).transform(centred)
        return plane, "PCA"
    perplexity = min(30.0, (len(vectors) - 1) / 4)
    # Its threads wait for each other so often that on a busy machine two take ten times as long as one.
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors), "t-SNE"


def _load(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            return dict(data)
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _fault(path, f"not a readable npz file ({error})") from None


def _filled(data: dict[str, np.ndarray], name: str) -> bool:
    return name in data and data[name].size > 0


def _array(
    path: Path, data: dict[str, np.ndarray], name: str, axes: int, kinds: str, length: int | None = None
) -> np.ndarray:
    """The array of that name: so many axes, a dtype of these kinds, not empty, and `length` long."""
    if name not in data:
        raise _fault(path, f"array {name!r} is missing")
    array = data[name]
    shaped = array.ndim == axes and array.size > 0 and (axes < 4 or array.shape[-1] == 3)
    if not shaped or array.dtype.kind not in kinds or (length is not None and len(array) != length):
        raise _fault(path, f"array {name!r} is {array.dtype} {list(array.shape)}, which does not fit")
    return array


def _fault(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; not what this version of `wcord evaluate` writes. Run it again for this run.")
