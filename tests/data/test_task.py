"""The task of raw samples: which label, whether it is handed out, and the group."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.data.skipped import SampleError
from pipeline.data.task import Task

LABEL = Task("label", 3)
MASK = Task("shape", 2, (0, 255))


def raw(key: str = "a", **members: bytes) -> dict[str, Any]:
    held = {name.replace("_", "."): data for name, data in members.items()}
    return {"__key__": key, "__url__": "train-000000.tar", "__place__": 0, **held}


def test_a_label_is_in_its_member_or_in_meta() -> None:
    assert LABEL.read(raw(label_txt=b"2\n"), {"group": "g"})["label"] == 2
    assert LABEL.read(raw(label_txt=b"2"), {"group": "g"})["group"] >= 0
    assert Task("parity", 2).read(raw(label_txt=b"2"), {"labels": {"parity": 1}}) == {"label": 1, "group": -1}
    assert LABEL.read(raw(), {}) == {"label": -1, "group": -1}
    assert Task("label", 0).read(raw(label_txt=b"2"), {}) == {"label": -1, "group": -1}
    with pytest.raises(SampleError, match=r"train-000000\.tar: sample a: label `3` is not a class index in 0..2"):
        LABEL.read(raw(label_txt=b"3"), {})


def test_a_fraction_of_the_labels_is_drawn_by_key_and_seed() -> None:
    samples = [raw(f"s{i}", label_txt=b"0") for i in range(2000)]
    few = replace(LABEL, visible=0.2, seed=1)
    shown = [few.labels(sample) for sample in samples]
    assert 0.15 < sum(shown) / len(shown) < 0.25
    assert shown == [few.labels(sample) for sample in samples]
    assert shown != [replace(few, seed=2).labels(sample) for sample in samples]
    more = [replace(few, visible=0.5).labels(sample) for sample in samples]
    assert all(a <= b for a, b in zip(shown, more, strict=True))


def test_a_mask_is_a_label_if_a_pixel_has_a_class() -> None:
    def png(value: int) -> bytes:
        return bytes(cv2.imencode(".png", np.full((4, 6), value, np.uint8))[1])

    assert MASK.members == {"label.txt", "meta.json", "shape.png"}
    mask = MASK.read_mask(raw(shape_png=png(255)))
    assert mask is not None
    assert mask.shape == (4, 6)
    assert (mask == 1).all()
    assert MASK.read(raw(label_txt=b"1"), {})["label"] == -1
    assert [MASK.labels(sample) for sample in (raw(shape_png=png(255)), raw(shape_png=png(7)), raw())] == [
        True,
        False,
        False,
    ]
    assert replace(MASK, visible=0.0).read_mask(raw(shape_png=png(255))) is None
    with pytest.raises(SampleError, match=r"sample a: shape\.png: not a JPEG"):
        MASK.labels(raw(shape_png=b"x", meta_json=json.dumps({}).encode()))
