"""The retrieval gallery and the embedding map, with pictures of test samples."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from modalities.base import Caption
from pipeline.evaluate.gallery import Query, queries, verdict
from pipeline.report import svg as charts
from pipeline.runs.artifacts import Embeddings, Thumbnails

MAP_SAMPLES, PICTURE = 300, 112
COLUMNS = 20
"""Pictures per row of the sprite sheet that the map reads."""


def true_pair_rank(similarity: np.ndarray, true: int) -> float:
    """Rank of a candidate, starting at 1. Candidates with equal similarity share their mean rank.

    A collapsed network, for which all candidates are equally similar, therefore gets a rank of about N / 2 instead of
    1.

    Args:
        similarity: `[N]`.
        true: Index of the candidate (the true pair).
    """
    value = similarity[true]
    return 1 + float((similarity > value).sum() + ((similarity == value).sum() - 1) / 2)


def gallery(e: Embeddings, thumbnails: Thumbnails) -> str:
    """Queries in the student's modality with the nearest pictures of the teacher's modality, as HTML."""
    return f'<div class="gallery">{"".join(_query(e, thumbnails, query) for query in queries(e, thumbnails))}</div>'


def _query(e: Embeddings, thumbnails: Thumbnails, query: Query) -> str:
    """One query and its nearest pictures."""
    row, rank = query.row, true_pair_rank(query.similarity, query.row)
    name = e.class_name(int(e.label[row]))
    note = e.predicted(row) or ("query" if name else "")
    figures = [_figure(thumbnails, "student", query.place, name or "query", note, "query")]
    for place in query.nearest:
        other = int(thumbnails.rows[place])
        kind = verdict(e, row, other)
        mark = {"right": "✓ ", "wrong": "✗ ", "open": ""}[kind]
        words = f"{mark}{e.class_name(int(e.label[other]))}"
        note = "true pair" if other == row else f"cos {query.similarity[other]:.2f}"
        if not e.labelled:
            words, note = note, ""
        style = kind + (" pair" if other == row else "")
        figures.append(_figure(thumbnails, "teacher", place, words, note, style, str(e.keys[other])))
    among = "among these" if query.place in query.nearest else "not among these"
    return (
        f'<div class="query-row"><div class="strip">{"".join(figures)}</div>'
        f"<p>True pair: rank {rank:,.0f} of {len(e.keys):,}, {among}. <code>{escape(str(e.keys[row]))}</code></p></div>"
    )


def embedding_map(e: Embeddings, thumbnails: Thumbnails | None) -> tuple[str, str]:
    """Draw the embedding map of the samples with pictures, or of any samples if there are none.

    Returns:
        The SVG with the card that shows a sample, and a description of the method.
    """
    every = np.unique(np.linspace(0, len(e.keys) - 1, min(MAP_SAMPLES, len(e.keys))).round().astype(int))
    rows = every if thumbnails is None else thumbnails.rows[:MAP_SAMPLES]
    sides = [e.student] if e.teacher is None else [e.student, e.teacher]
    vectors = np.concatenate([side[rows] for side in sides])
    flat, method = _to_plane(vectors)
    points = []
    for i, (x, y) in enumerate(flat):
        side, place = divmod(i, len(rows))
        row, role = int(rows[place]), ("student", "teacher")[side]
        words = [str(e.keys[row]), e.class_name(int(e.label[row])), role, e.predicted(row) if side == 0 else ""]
        words.append(thumbnails.text(role, place) if thumbnails is not None else "")
        title = "\n".join(filter(None, words))
        points.append(charts.Point(float(x), float(y), side, int(max(e.label[row], -1)), place, title))
    made = f"{method} of {len(rows):,} of {len(e.keys):,} samples"
    svg = charts.scatter(points, len(e.classes), "Embedding map")
    return f'<div class="map-card card">{svg}{_sample_card(thumbnails)}</div>', made


def _sample_card(thumbnails: Thumbnails | None) -> str:
    """The card in which the page's script shows the selected sample, with one sprite sheet per modality."""
    sides = [] if thumbnails is None else [(thumbnails.student_modality, thumbnails.student)]
    if thumbnails is not None and thumbnails.teacher is not None:
        sides.append((thumbnails.teacher_modality, thumbnails.teacher))
    figures = "".join(
        f'<figure hidden><img alt="" data-side="{pictures.shape[2]}" data-columns="{COLUMNS}" '
        f'style="width:{pictures.shape[2]}px;height:{pictures.shape[1]}px" '
        f'src="{_jpeg(_sheet(pictures[:MAP_SAMPLES]))}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, pictures in sides
    )
    return f'<div id="sample" class="screen"><div class="pictures">{figures}</div><output></output></div>'


def _sheet(pictures: np.ndarray) -> np.ndarray:
    """Arrange pictures `[n, h, w, 3]` in a grid with COLUMNS columns."""
    n, height, width, _ = pictures.shape
    lines = -(-n // COLUMNS)
    padded = np.zeros((lines * COLUMNS, height, width, 3), np.uint8)
    padded[:n] = pictures
    grid = padded.reshape(lines, COLUMNS, height, width, 3).swapaxes(1, 2)
    return grid.reshape(lines * height, COLUMNS * width, 3)


def class_legend(e: Embeddings) -> str:
    """A button per class, in its colour, to highlight the class with the page's script; empty without labels."""
    if not e.labelled:
        return ""
    present = sorted({int(max(i, -1)) for i in e.label})
    buttons = "".join(
        f'<button type="button" data-group="{i}"><i style="background:{charts.colour(i, len(e.classes))}"></i>'
        f"{escape(e.class_name(i))}</button>"
        for i in present
    )
    return f'<div class="legend screen">{buttons}</div>'


def _figure(thumbnails: Thumbnails, role: str, index: int, words: str, note: str, kind: str, key: str = "") -> str:
    pictures, modality = (
        (thumbnails.student, thumbnails.student_modality)
        if role == "student"
        else (thumbnails.teacher, thumbnails.teacher_modality)
    )
    assert pictures is not None
    return figure(modality, pictures[index], thumbnails.caption(role, index), words, note, kind, key)


def figure(
    modality: str,
    picture: np.ndarray,
    captions: Sequence[Caption],
    words: str,
    note: str = "",
    kind: str = "",
    title: str = "",
) -> str:
    """A picture with its captions, colour scale or audio player, as HTML; text is shown as text.

    Args:
        modality: Name of the modality.
        picture: uint8 RGB `[H, W, 3]`.
        captions: Captions of the modalities in the picture.
        words: First line below it.
        note: Second line.
        kind: CSS class.
        title: Text that appears when the pointer is on the figure.
    """
    if modality == "text" and captions:
        shown = f'<blockquote tabindex="0">{escape(captions[0].text)}</blockquote>'
    else:
        shown = f'<img alt="{escape(words)}" src="{_jpeg(_small(picture))}">' + "".join(map(_beside, captions))
    hint = f' title="{escape(title)}"' if title else ""
    small = f"<small>{escape(note)}</small>" if note else ""
    return f'<figure class="{kind}"{hint}>{shown}<figcaption>{escape(words)}{small}</figcaption></figure>'


def _beside(caption: Caption) -> str:
    if caption.sound:
        sound = base64.b64encode(caption.sound).decode()
        return (
            f'<button type="button" class="play screen" aria-label="play, or pause">▶ {escape(caption.text)}</button>'
            f'<audio preload="none" src="data:audio/mpeg;base64,{sound}"></audio>'
        )
    if caption.colours:
        ramp = f'<i style="background:linear-gradient(90deg,{",".join(caption.colours)})"></i>'
        return f'<div class="scale">{ramp}<small>{escape(caption.text)}</small></div>'
    return f'<div class="scale"><small>{escape(caption.text)}</small></div>' if caption.text else ""


def _small(image: np.ndarray) -> np.ndarray:
    import cv2

    longest = max(image.shape[:2])
    if longest <= PICTURE:
        return image
    size = [max(1, round(side * PICTURE / longest)) for side in image.shape[1::-1]]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _jpeg(image: np.ndarray) -> str:
    import cv2

    # OpenCV writes BGR.
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"


def _to_plane(vectors: np.ndarray) -> tuple[np.ndarray, str]:
    """Project `[M, D]` to `[M, 2]` with t-SNE (van der Maaten and Hinton 2008), or PCA for very few points."""
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
    # t-SNE's threads synchronise so often that, on a busy machine, two take ten times as long as one.
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors), "t-SNE"
