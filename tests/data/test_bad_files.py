"""Every kind of bad file among good ones in a packed dataset: named, counted, and the loader goes on."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from sources import jpeg, png, sound_file

from modalities import RGB, Audio, Depth, Modality, Text
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.manifest import write_shard
from pipeline.data.member_formats import inspect
from pipeline.data.source import Policy, open_split
from pipeline.data.stream import TrainStream, loader
from pipeline.data.views import View

RNG = np.random.default_rng(0)
METRES = RNG.uniform(0.5, 3, (24, 32))
DEPTH = png((1000 * METRES).astype(np.uint16))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(*arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    return buffer.getvalue()


def tiff(image: np.ndarray) -> bytes:
    return cv2.imencode(".tiff", image, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()


def npy_header(text: bytes) -> bytes:
    """A `.npy` whose description of its array is that text."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(64)


def huge_png(bits: int, colour: int) -> bytes:
    """A header of 20,000 x 20,000 pixels, whose few bytes would unpack to gigabytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


NOISE = RNG.normal(0, 0.1, 4000)
WAV, FLAC, OGG, MP3 = (sound_file(NOISE, kind) for kind in ("WAV", "FLAC", "OGG", "MP3"))
TIFF = tiff(np.full((9, 9), 700, np.uint16))
GIF = b"GIF89a" + bytes(60)

BAD: dict[str, tuple[Modality, str, bytes, dict[str, tuple[str, bytes, str]]]] = {
    "rgb": (RGB(), "rgb.jpg", jpeg(0), {
        "truncated": ("rgb.jpg", jpeg(1)[:-40], "truncated"),
        "truncated_png": ("rgb.png", png(np.zeros((9, 9, 3), np.uint8))[:-6], "truncated"),
        "no_bytes": ("rgb.jpg", b"", "not a JPEG, PNG or WebP file"),
        "zero_bytes": ("rgb.jpg", bytes(500), "not a JPEG, PNG or WebP file"),
        "a_sound": ("rgb.jpg", WAV, "not a JPEG, PNG or WebP file"),
        "animated_gif": ("rgb.png", GIF, "not a JPEG, PNG or WebP file"),
        "huge": ("rgb.png", huge_png(8, 2), "20000 x 20000 pixels"),
        "floats": ("rgb.png", cv2.imencode(".tiff", np.ones((4, 4), np.float32))[1].tobytes(), "not a JPEG"),
    }),
    "depth": (Depth(), "depth.png", DEPTH, {
        "truncated": ("depth.png", DEPTH[:-6], "truncated"),
        "no_bytes": ("depth.png", b"", "not a JPEG, PNG or WebP file"),
        "zero_bytes": ("depth.png", bytes(500), "not a JPEG, PNG or WebP file"),
        "a_photo": ("depth.png", jpeg(0), "a JPEG with 3 channels: depth requires a 16-bit PNG"),
        "eight_bit": ("depth.png", png(np.ones((9, 9), np.uint8)), "8-bit PNG: depth requires 16 bits"),
        "huge": ("depth.png", huge_png(16, 0), "20000 x 20000 pixels"),
        "no_reading": ("depth.png", png(np.zeros((9, 9), np.uint16)), "has no valid pixel"),
        "nan_npy": ("depth.npy", npy(np.full((9, 9), np.nan)), "has no valid pixel"),
        "infinite_npy": ("depth.npy", npy(np.full((9, 9), np.inf)), "has no valid pixel"),
        "cut_npy": ("depth.npy", npy(METRES)[:300], "not a complete NumPy array"),
        "two_arrays_npz": ("depth.npz", npz(METRES, METRES), "it has 2 arrays (arr_0.npy, arr_1.npy)"),
        "cut_npz": ("depth.npz", npz(METRES)[:-9], "not an archive with one NumPy array"),
        "cut_tiff": ("depth.tiff", TIFF[:-6], "the TIFF is truncated"),
        "floats_tiff": ("depth.tiff", tiff(METRES.astype(np.float32)), "32-bit TIFF: depth requires 16 bits"),
        "open_bracket_npy": ("depth.npy", npy_header(b"(((\n"), "not a complete NumPy array"),
        "endless_npy": (
            "depth.npy",
            npy_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s, 2)}\n" % (b"9" * 30)),
            "not a complete NumPy array",
        ),
        "whole_numbers_npy": ("depth.npy", npy(np.ones((9, 9), int)), "depth.npy must be float"),
    }),
    "audio": (Audio(rate=8000), "audio.wav", WAV, {
        "truncated_wav": ("audio.wav", WAV[: len(WAV) // 2], "the WAV file is truncated"),
        "truncated_flac": ("audio.flac", FLAC[: len(FLAC) // 2], "cannot read an audio file"),
        "truncated_ogg": ("audio.ogg", OGG[:-1], "the OGG file is truncated"),
        "truncated_mp3": ("audio.mp3", MP3[: len(MP3) // 2], "the MP3 is truncated"),
        "header_alone": ("audio.wav", WAV[:30], "cannot read an audio file"),
        "no_bytes": ("audio.wav", b"", "cannot read an audio file"),
        "zero_bytes": ("audio.wav", bytes(500), "cannot read an audio file"),
        "a_photo": ("audio.wav", jpeg(0), "cannot read an audio file"),
        "no_samples": ("audio.wav", sound_file(np.zeros(0)), "no samples"),
        "nan": ("audio.wav", sound_file(np.where(np.arange(4000) == 7, np.nan, NOISE), "WAV", "FLOAT"), "NaN"),
        "silent": ("audio.wav", sound_file(np.zeros(4000)), "completely silent"),
    }),
    "text": (Text(), "text.txt", b"a cat", {
        "no_bytes": ("text.txt", b"", "text is empty"),
        "blank": ("text.txt", b" \n\n\t", "text is empty"),
        "zero_bytes": ("text.txt", bytes(500), "zero bytes"),
        "a_photo": ("text.txt", jpeg(0), "not UTF-8"),
        "heap_of_marks": ("text.txt", ("a" + "\u0301\u0316" * 200_000).encode(), "400000 consecutive combining marks"),
        "cut_letter": ("text.txt", "grün".encode()[:3], "not UTF-8"),
    }),
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", list(BAD))
def test_bad_files_are_named_and_counted_and_the_loader_goes_on(tmp_path: Path, name: str, workers: int) -> None:
    modality, good_member, good, bad = BAD[name]
    samples = [(f"good{n}", {good_member: good}) for n in range(len(bad) + 4)]
    for n, (key, (member, data, _)) in enumerate(bad.items()):
        samples.insert(2 * n, (key, {member: data}))
    shard = write_shard(tmp_path / "train-000000.tar", samples)
    about = Dataset(
        name="bad",
        recipe="test",
        fields={good_member: 1},
        splits={"train": [shard]},
        classes={},
        units={},
        split_rule="",
    )
    (tmp_path / MANIFEST).write_text(about.model_dump_json())
    source = open_split(tmp_path, "train", "label", policy=Policy(max_faulty=0.9))
    stream = TrainStream(source, {"student": View(modality, 16)}, batch=2, shuffle=0)
    batches = loader(stream, workers, torch.device("cpu"))
    seen = [next(batches) for _ in range(stream.steps_per_epoch)]
    messages = {s.key: (s.cause, s.message) for batch in seen for s in batch["skipped"]}
    assert messages.keys() == bad.keys()
    for key, (member, _, words) in bad.items():
        cause, message = messages[key]
        assert cause == member
        assert words in message, key
        assert f"train-000000.tar: sample {key}: {member}: " in message  # where it is
    assert {key for batch in seen for key in batch["key"]} == {key for key, _ in samples} - bad.keys()
    json.dumps([message for _, message in messages.values()])  # as skipped.jsonl holds them


@pytest.mark.parametrize("member", [f"{name}/{key}" for name, (*_, bad) in BAD.items() for key in bad])
def test_packing_and_checking_refuse_them_too(member: str) -> None:
    name, _, key = member.partition("/")
    path, data, _ = BAD[name][3][key]
    with pytest.raises(ValueError):
        inspect(path, data)


def test_odd_files_that_are_good_are_read() -> None:
    """Some kinds that look wrong are not: 16-bit photos, animations (their first picture), NaN among metres."""
    deep = RGB().decode(png(np.full((4, 4, 3), 65_535, np.uint16)), {})
    assert (deep == 255).all()
    for kind in ("PNG", "WEBP"):
        red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
        file = io.BytesIO()
        red.save(file, kind, save_all=True, append_images=[blue], lossless=True)
        inspect(f"rgb.{kind.lower()}", file.getvalue())
        assert (RGB().decode(file.getvalue(), {}) == (255, 0, 0)).all()
    metres = np.full((4, 4), 1.5)
    metres[0, 0] = np.nan
    depth = Depth().decode(npy(metres), {})
    assert (depth.valid.sum(), depth.metres[0, 0]) == (15, 0)
