"""The mask section of the report: input, ground truth, predictions of student and teacher."""

from __future__ import annotations

import base64
import colorsys
from html import escape

import cv2
import numpy as np

from pipeline.common.errors import UserError
from pipeline.runs.artifacts import read_arrays
from pipeline.runs.reader import Run

COLUMNS = {
    "student_picture": "student input",
    "teacher_picture": "teacher input",
    "truth": "ground truth",
    "student": "student",
    "teacher": "teacher",
}
"""Arrays of `evaluation/masks.npz` in the order of the page, and their headings."""


def masks_section(run: Run) -> dict[str, str]:
    """Make the section with masks.

    Returns:
        Heading -> HTML with a legend and a table of one row per sample; empty for a run without masks.

    Raises:
        UserError: The file is damaged.
    """
    path = run.folder / "evaluation" / "masks.npz"
    if (arrays := read_arrays(path)) is None:
        return {}
    prefix = "student/IoU/"
    iou = {key.removeprefix(prefix): value for key, value in run.results.items() if key.startswith(prefix)}
    try:
        names = [str(name) for name in arrays["classes"]]
        shown = {name: heading for name, heading in COLUMNS.items() if name in arrays}
        colours = palette(len(names))
        height, width = arrays["student_picture"].shape[1:3]
        rows = []
        for row, key in enumerate(arrays["keys"]):
            cells = (_cell(arrays[name][row], colours, width, height, f"{shown[name]}, {key}") for name in shown)
            rows.append(f"<tr>{''.join(cells)}</tr>")
    except (ValueError, KeyError, IndexError, TypeError, cv2.error) as error:
        raise UserError(f"{path}: damaged ({error}). Run `wcord evaluate` again for this run.") from None
    head = "".join(f"<th>{heading}</th>" for heading in shown.values())
    used = np.unique(np.concatenate([arrays[name].ravel() for name in shown if arrays[name].ndim == 3]))
    legend = "".join(_entry(name, colours[n], iou.get(name)) for n, name in enumerate(names) if n in used)
    words = "Test samples at even intervals, not hand-picked. White means no class. The legend shows the student's IoU."
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'
    return {"Masks": f'<p class="hint">{words}</p><div class="legend">{legend}</div>{table}'}


def palette(count: int) -> np.ndarray:
    """Colours for `count` classes, uint8 `[count + 1, 3]` RGB. Class 0 is dark; the last colour means no class."""
    hues = [colorsys.hsv_to_rgb(n * 0.618 % 1, 0.65, 0.95 - 0.25 * (n % 3 == 0)) for n in range(1, count)]
    colours = [(0.13, 0.13, 0.16), *hues, (1.0, 1.0, 1.0)]
    return (np.array(colours) * 255).round().astype(np.uint8)


def _cell(image: np.ndarray, colours: np.ndarray, width: int, height: int, words: str) -> str:
    """A picture `[H, W, 3]`, or a mask `[H, W]` in its class colours, scaled to the size of the picture."""
    return f"<td>{_picture(colours[image] if image.ndim == 2 else image, width, height, words)}</td>"


def _entry(name: str, colour: np.ndarray, iou: float | None) -> str:
    """A legend entry: class, colour and the student's IoU."""
    value = "" if iou is None else f" {100 * iou:.0f}\N{NO-BREAK SPACE}%"
    return f"<span>{_picture(colour[None, None], 12, 12, '')}{escape(name)}{value}</span>"


def _picture(rgb: np.ndarray, width: int, height: int, words: str) -> str:
    png = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(words)}">'
