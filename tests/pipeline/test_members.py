"""Members are opened, not believed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from sources import (
    png,
    wav,
)

from modalities.image_header import image_size
from pipeline.members import inspect, read_label, summarise


@pytest.mark.parametrize(
    ("member", "data", "reason"),
    [
        ("text.txt", b"  \n", "empty"),
        ("text.txt", b"caf\xe9", "not UTF-8"),
        ("mask.png", png(np.full((4, 4, 3), 255, np.uint8)), "single channel"),
        ("audio.wav", b"RIFX" + bytes(60), "not a WAV"),
        ("audio.flac", b"OggS" + bytes(60), "not a FLAC"),
        ("label.txt", b"1.5", "not a class index"),
        ("meta.json", b"[1]", "not a JSON object"),
        ("meta.json", b"[" * 100_000, "not JSON"),
        ("emg.npy", b"\x93NUMPY\1\0", "NumPy|header|EOF|magic"),
        ("rgb.png", b"\x89PNG\r\n\x1a\n" + bytes(8) + b"\0\1\0\0" * 2 + b"IEND\xaeB`\x82", "65536 x 65536 pixels"),
    ],
)
def test_members_that_are_not_what_they_say_raise(member: str, data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        inspect(member, data)


def test_wav_files_are_held_against_their_header() -> None:
    inspect("audio.wav", wav())
    inspect("audio.wav", wav(announced=0xFFFFFFFF))
    for data, reason in (
        (wav()[:-1], "truncated"),
        (wav(0), "without sound"),
        (wav()[:40], "without sound"),
        (wav(sound=b"\0\0"), "silent"),
    ):
        with pytest.raises(ValueError, match=reason):
            inspect("audio.wav", data)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_image_size_is_what_the_decoder_finds_and_every_cut_is_noticed(suffix: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8)
    data = cv2.imencode(suffix, image)[1].tobytes()
    assert image_size(data) == (53, 37)
    for cut in (1, 2, 17, len(data) // 2, len(data) - 9):
        with pytest.raises(ValueError, match=r"truncated|neither"):
            image_size(data[:-cut])


def test_labels_are_held_against_the_number_of_classes() -> None:
    assert read_label(b"2", 3) == read_label(b"2\n") == 2
    with pytest.raises(ValueError, match="out of range: there are 3 classes, 0 to 2"):
        read_label(b"3", 3)


@pytest.mark.parametrize("readings", [1, 2, 7, 200])
def test_the_median_reading_is_numpy_s(readings: int) -> None:
    depth = np.zeros((20, 20), np.uint16)
    depth.flat[:readings] = np.random.default_rng(readings).integers(1, 65536, readings)
    depth.flat[0] = 65535
    found = inspect("depth.png", cv2.imencode(".png", depth)[1].tobytes()).depth
    assert found is not None
    assert summarise(found) == (np.median(depth[depth > 0]), np.mean(depth[depth > 0] == 65535))
