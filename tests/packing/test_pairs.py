"""Photos that EXIF turns, and maps beside them that nothing turns."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from modalities.exif import orientation
from pipeline.data.member_formats import Facts, inspect
from pipeline.packing.check import check
from pipeline.packing.pack import pack
from pipeline.packing.pairs import mismatched
from pipeline.packing.recipes import folders


def photo(width: int, height: int, turn: int | None) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def depth(width: int, height: int) -> bytes:
    return cv2.imencode(".png", np.full((height, width), 900, np.uint16))[1].tobytes()


@pytest.mark.parametrize("turn", [None, *range(1, 9)])
def test_the_orientation_is_that_of_pillow(turn: int | None) -> None:
    data = photo(8, 6, turn)
    assert orientation(data) == Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    for cut in range(len(data)):
        assert orientation(data[:cut]) in (1, turn)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_header_has_some_orientation(seed: int) -> None:
    rng, data = np.random.default_rng(seed), bytearray(photo(8, 6, 6))
    for at in rng.integers(2, 80, 5):
        data[at] = rng.integers(256)
    assert 1 <= orientation(bytes(data)) <= 8


@pytest.mark.parametrize(
    ("turn", "shape", "certain"),
    [
        (1, (64, 48), None),
        (3, (64, 48), False),  # upside down: the sizes do not tell
        (6, (64, 48), True),  # as the sensor gave it
        (6, (48, 64), None),  # turned with the photo
        (8, (32, 24), True),
        (1, (48, 64), True),  # no EXIF: one of them is turned
        (1, (64, 36), None),  # another camera: a note on aspect ratios
    ],
)
def test_a_map_that_does_not_fit_is_told(turn: int, shape: tuple[int, int], certain: bool | None) -> None:
    found = mismatched(
        {"rgb.jpg": inspect("rgb.jpg", photo(64, 48, turn)), "depth.png": inspect("depth.png", depth(*shape))}
    )
    assert (found and found.certain) == certain


def test_a_square_photo_that_is_turned_is_doubtful() -> None:
    found = mismatched({"rgb.jpg": Facts((48, 48), 6), "depth.png": Facts((48, 48), depth=np.ones((48, 48)))})
    assert found is not None
    assert not found.certain


@pytest.mark.parametrize(("turn", "fault"), [(3, False), (6, True)])
def test_check_and_pack_count_them(tmp_path: Path, turn: int, fault: bool, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(10):
        for name, data in (("photos", photo(64, 48, turn)), ("depth", depth(64, 48))):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{n}.{'jpg' if name == 'photos' else 'png'}").write_bytes(data)
    pack(folders.plan(tmp_path, {"rgb": "photos", "depth": "depth"}), tmp_path / "out")
    assert (
        "in 10 samples, the images do not match" if fault else "10 samples have a photo that EXIF rotates"
    ) in caplog.text
    report = check(tmp_path / "out")
    lines = report.faults if fault else [note for note in report.notes if "EXIF rotates" in note]
    assert len(lines) == (10 if fault else 1)
    assert all(f"EXIF orientation {turn} rotates rgb.jpg" in line and "pack again" in line for line in lines)
