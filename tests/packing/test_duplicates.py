"""Equal members in several splits, and photos that look alike, are counted."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.member_formats import Facts
from pipeline.packing.duplicates import Duplicates, compared, content, decode_hashes, encode_hashes, look


def smooth(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)
    return cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.mark.parametrize(("shared", "fault"), [(0, None), (8, False), (30, True)])
def test_equal_content_is_counted_with_examples(shared: int, fault: bool | None) -> None:
    found = Duplicates()
    train = [("rgb", content(b"%d" % n), f"k{n}") for n in range(400)]
    found.add("train", "train-000000.tar", train)
    test = [("rgb", content(b"%d" % (n if n < shared else n + 1000)), f"t{n}") for n in range(100)]
    found.add("test", "test-000000.tar", test)
    lines = list(found.lines({"train": 400, "test": 100}))
    assert [is_fault for is_fault, _ in lines] == ([] if fault is None else [fault])
    if lines:
        assert lines[0][1].startswith(
            f"rgb: {shared} of 100 samples of test have the same content as samples of train: "
        )
        assert "train-000000.tar: k0 and test-000000.tar: t0" in lines[0][1]


def test_a_repetition_within_a_split_is_none() -> None:
    found = Duplicates()
    found.add("train", "a.tar", [("rgb", 1, "a"), ("rgb", 1, "b")])
    found.add("test", "b.tar", [("rgb", 2, "c"), ("depth", 1, "c")])
    assert list(found.lines({"train": 2, "test": 1})) == []


def test_photos_that_were_saved_again_look_alike_and_others_do_not() -> None:
    found = Duplicates()
    looks = [("look", number, f"k{n}") for n in range(60) if (number := look(jpeg(smooth(n)))) is not None]
    found.add("train", "a.tar", looks)
    again = [cv2.resize(smooth(n), (200, 150), interpolation=cv2.INTER_AREA) for n in range(5)]
    others = [smooth(n) for n in range(100, 160)]
    found.add(
        "test", "b.tar", [("look", look(jpeg(image, 60)) or 0, f"t{n}") for n, image in enumerate(again + others)]
    )
    ((is_fault, line),) = found.lines({"train": 60, "test": 65})
    assert not is_fault
    assert line.startswith(
        "5 of 65 photos of test look like photos of train (near duplicates): a.tar: k0 and b.tar: t0"
    )


def test_a_photo_without_structure_looks_like_none() -> None:
    assert look(jpeg(np.full((64, 64, 3), 90, np.uint8))) is None


def test_hashes_survive_the_summary() -> None:
    numbers = [content(bytes([n])) for n in range(9)]
    assert decode_hashes(encode_hashes(numbers)) == numbers


def test_masks_and_texts_are_equal_by_nature() -> None:
    grey = Facts((8, 8), mask=np.zeros((8, 8), np.uint8))
    assert not compared("mask.png", grey)
    assert not compared("text.txt", Facts())
    assert compared("rgb.png", grey)
    assert compared("audio.flac", Facts())
