"""Run folders for the tests of the report, and a page as a parser sees it."""

from __future__ import annotations

import base64
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.evaluate.write_artifacts import count_confusion, write_arrays

CLASSES = ["ball", "cone", "cube", "<script>alert(1)</script>", 'ring" onload="x']
CONFIG: dict[str, Any] = {
    "run": "runs/depth",
    "seed": 0,
    "data": {"shards": "data/tabletop", "label_fraction": 0.1, "batch_size": 64},
    "teacher": {"run": "runs/rgb_teacher"},
    "student": {"modality": {"name": "depth"}, "encoder": {"name": "cnn5", "width": 32}},
    "losses": {"cross_entropy": {"weight": 1.0}, "wcord": {"weight": 0.8}},
    "train": {"steps": 600, "warmup": 100},
    "evaluation": {"split": "test"},
}
RESULTS = {
    "samples/test": 300,
    "parameters/student": 213450,
    "parameters/teacher": 563210,
    "student/top1": 0.7133333333333334,
    "student/balanced": 0.70123,
    "student/probe": 0.7366666666666667,
    "student/knn": 0.69,
    "teacher/top1": 0.8433333333333334,
    "teacher/probe": 0.85,
    "random/probe": 0.41,
    "random/knn": 0.37,
    "baseline/labels_only/student/top1": 0.54,
    "baseline/kd/student/top1": 0.69,
    "retrieval/student_to_teacher/R@1": 0.34,
    "retrieval/student_to_teacher/R@10": 0.81,
    "retrieval/student_to_teacher/median_rank": 3.0,
    "retrieval/teacher_to_student/R@1": 0.31,
    "random/retrieval/student_to_teacher/R@1": 0.0033,
}


def make_run(folder: Path, samples: int = 60, top1: float = 0.7133333333333334, seed: int = 0, side: int = 32) -> Path:
    """A run folder as `train` and `evaluate` leave it, with a cut-short last log line and hostile names."""
    rng = np.random.default_rng(seed)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "student").mkdir()
    (folder / "config.yaml").write_text("# wcord 0.1.0\n" + yaml.safe_dump({**CONFIG, "seed": seed}, sort_keys=False))
    lines = [json.dumps(_log_row(step, rng)) for step in range(20, 601, 20)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 620, "loss": 0.']))
    (folder / "results.json").write_text(json.dumps({**RESULTS, "student/top1": top1}))

    label = np.arange(samples) % len(CLASSES)
    centres = rng.normal(size=(len(CLASSES), 16))
    own = centres[label] + 0.35 * rng.normal(size=(samples, 16))
    teacher, student = (own + noise * rng.normal(size=own.shape) for noise in (0.1, 0.35))
    wrong = rng.random(samples) > top1
    np.savez_compressed(
        folder / "evaluation" / "embeddings.npz",
        keys=np.array([f"clip{i:03d}<b>" for i in range(samples)]),
        label=label,
        classes=np.array(CLASSES),
        prediction=np.where(wrong, rng.integers(0, len(CLASSES), samples), label),
        student=unit(student),
        teacher=unit(teacher),
    )
    predicted = np.where(wrong, (label + 1) % len(CLASSES), label)
    write_arrays(
        folder / "evaluation" / "confusion.npz",
        {
            "classes": np.array(CLASSES),
            "student": count_confusion(label, predicted, len(CLASSES)),
            "teacher": count_confusion(label, label, len(CLASSES)),
            "baseline/kd": count_confusion(label, (label + 1) % len(CLASSES), len(CLASSES)),
        },
    )
    rows = np.arange(0, samples, 2)
    pictures = np.stack([_shape(int(label[row]), side, rng) for row in rows])
    np.savez_compressed(
        folder / "evaluation" / "thumbnails.npz",
        rows=rows,
        student=np.repeat(pictures.mean(3, keepdims=True).astype(np.uint8), 3, axis=3),
        teacher=pictures,
        student_modality=np.array("depth"),
        teacher_modality=np.array("rgb"),
    )
    depth = {"text": "0.50 to 1.25 m", "colours": ["#30123b", "#7a0403"], "sound": ""}
    sound = {"text": "1.0 s <b>", "colours": [], "sound": base64.b64encode(b"ID3 tune").decode()}
    captions = {"student": [[depth]] * len(rows), "teacher": [[sound]] * len(rows)}
    (folder / "evaluation" / "captions.json").write_text(json.dumps(captions))
    return folder


def _log_row(step: int, rng: np.random.Generator) -> dict[str, float]:
    fall = math.exp(-step / 200)
    row = {
        "epoch": step / 100,
        "loss": 0.4 + 2.2 * fall + 0.05 * rng.normal(),
        "loss/cross_entropy": 0.2 + 1.4 * fall + 0.04 * rng.normal(),
        "loss/wcord": 0.2 + 0.8 * fall + 0.03 * rng.normal(),
        "lr": 1e-3 * min(1, step / 100) * (1 + math.cos(math.pi * step / 600)) / 2,
        "grad_norm": 2 + 30 * fall**8 + 0.2 * rng.normal(),
        "samples_per_second": 850 + 30 * rng.normal(),
        "tflops": 41.2,
        "mfu": 0.0416,
        "data_wait": abs(0.02 + 0.01 * rng.normal()),
        "wcord/global/similarity_gap": 0.6 * (1 - fall),
        "wcord/global/effective_rank": 4 + 20 * (1 - fall),
        "student/std": 0.8,
    }
    return {"step": step, **row, **({"held_out/top1": 0.72 * (1 - fall)} if step % 100 == 0 else {})}


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def _shape(kind: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """A picture of one of five shapes on a grey table."""
    y, x = np.mgrid[:side, :side] / side - 0.5 - rng.uniform(-0.12, 0.12, (2, 1, 1))
    r = np.hypot(x, y)
    inside = [r < 0.3, (y > -0.3) & (np.abs(x) < 0.25 * (y + 0.3)) & (y < 0.3), np.maximum(abs(x), abs(y)) < 0.25]
    inside += [np.abs(x) + np.abs(y) < 0.32, (r < 0.32) & (r > 0.18)]
    colour = rng.integers(60, 255, 3) * (0.75 + 0.5 * (0.5 - y))[..., None]
    noise = rng.normal(0, 4, (side, side, 3))
    return np.clip(np.where(inside[kind][..., None], colour, 120 + 60 * y[..., None]) + noise, 0, 255).astype(np.uint8)


class Page(HTMLParser):
    """Checks that tags close in order; gathers what would load, the scripts, and the text."""

    VOID = frozenset(("meta", "img", "br", "wbr", "link", "input", "hr"))

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.numbers: dict[str, float] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data
