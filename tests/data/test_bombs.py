"""Hostile members: each is decoded in under 1 s with under 300 MB, or refused with the reason."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from launching import FORKED
from PIL import Image
from safetensors.torch import save

from modalities import RGB, Audio, Depth, Modality, Points, Text
from pipeline.data import feature_cache
from pipeline.data.decoding import check_members, check_pixels, decode_member, meta_of
from pipeline.data.masks import read_mask
from pipeline.data.member_formats import inspect, read_label
from pipeline.data.skipped import SampleError

SECONDS, MEGABYTES = 1.0, 300.0
PACKED = zlib.compress(bytes(range(256)) * 80_000, 1)
UNPACKED_IN = 0.4
"""CPU time (s) in which the machine of the limits unpacks `PACKED` 15 times, to 300 MB."""
LARGE = (4000, 6000)
"""Height and width of the photo of a camera of 24 megapixels."""

MODALITIES: dict[str, Modality] = {
    modality.name: modality for modality in (RGB(), Depth(), Audio(), Text(), Points())
}  # fmt: skip


def encoded(suffix: str, image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, image, list(options))[1].tobytes()


def flat(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.full(shape, 7, dtype)


def photo(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def fast_png(image: np.ndarray) -> bytes:
    return encoded(".png", image, cv2.IMWRITE_PNG_COMPRESSION, 1)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(width: int, height: int, bits: int, colour: int, *chunks: bytes) -> bytes:
    """A PNG with this header and these chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def pixels(rows: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(rows))


def with_chunks(*chunks: bytes) -> bytes:
    """A small PNG with additional chunks."""
    return png_of(4, 4, 8, 2, *chunks, pixels(bytes(4 * 13)))


def text_chunks(count: int) -> bytes:
    """Compressed texts that unpack to 8 MB each."""
    return with_chunks(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(8_000_000), 9))] * count)


def animated_png(frames: int) -> bytes:
    control = struct.pack(">IIIIIHHBB", 0, 4, 4, 0, 0, 1, 1, 0, 0)
    return with_chunks(chunk(b"acTL", struct.pack(">II", frames, 0)), chunk(b"fcTL", control))


def jpeg_with(insertion: bytes) -> bytes:
    """A JPEG with bytes after its start marker."""
    data = encoded(".jpg", photo(60, 60))
    return data[:2] + insertion + data[2:]


def progressive(height: int, width: int, sampling: int = 0x221111) -> bytes:
    flags = cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling
    return encoded(".jpg", photo(height, width), *flags)


def scans(count: int, height: int, width: int) -> bytes:
    """A progressive JPEG whose last scan is there `count` times."""
    data = progressive(height, width)
    last = data.rfind(b"\xff\xda")
    last = data.rfind(b"\xff\xc4", 0, last) if data.rfind(b"\xff\xc4", 0, last) > last - 300 else last
    return data[:last] + data[last:-2] * count + data[-2:]


def stated_jpeg(height: int, width: int) -> bytes:
    """A small JPEG whose header states another size."""
    data = encoded(".jpg", photo(60, 60))
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def turned(height: int, width: int) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = 6
    Image.fromarray(photo(height, width)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def tiff(*entries: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """A TIFF with these entries: tag, type, count, value."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4) + data


def deflated_tiff(height: int, width: int) -> bytes:
    body = zlib.compress(bytes(2 * height * width), 9)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 8), (262, 3, 1, 1)]
    start = 8 + 2 + 12 * 9 + 4
    tags += [(273, 4, 1, start), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(body))]
    return tiff(*tags, data=body)


def npy(header: str, body: bytes = bytes(64)) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + body


def shaped(kind: str, shape: str) -> bytes:
    return npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}")


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npz(*arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, *arrays)
    return file.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return file.getvalue()


def understated_npz() -> bytes:
    """An archive whose directory states fewer bytes than its member unpacks to."""
    data = npz(np.zeros((5000, 5000)))
    return data.replace(struct.pack("<I", 200_000_128), struct.pack("<I", 1000))


def flac(seconds: int, channels: int = 2) -> bytes:
    tone = np.sin(np.arange(16_000) / 10)[:, None] / 2
    file = io.BytesIO()
    pytest.importorskip("soundfile").write(file, np.tile(tone, (seconds, channels)), 16_000, format="FLAC")
    return file.getvalue()


def wav_header(length: int, rate: int, channels: int, body: bytes) -> bytes:
    about = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
    chunks = b"fmt " + struct.pack("<I", 16) + about + b"data" + struct.pack("<I", length) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def ply(count: int, columns: int = 3, body: bytes = b"") -> bytes:
    names = ["x", "y", "z", *(f"c{n}" for n in range(columns - 3))]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    lines += [f"property float {name}" for name in names]
    return "\n".join([*lines, "end_header\n"]).encode() + body


def pcd(count: int, kind: str, body: bytes) -> bytes:
    lines = ["VERSION 0.7", "FIELDS x y z", "SIZE 4 4 4", "TYPE F F F", f"WIDTH {count}", "HEIGHT 1", f"POINTS {count}"]
    return "\n".join([*lines, f"DATA {kind}\n"]).encode() + body


Bomb = tuple[str, Callable[[], bytes], str]
"""Member; what makes its bytes; pattern of the reason of its refusal, empty if it is read."""

BOMBS: dict[str, Bomb] = {
    "png_that_states_gigapixels": ("rgb.png", lambda: png_of(60_000, 60_000, 8, 2, pixels(b"")), "pixels, more than"),
    "png_of_2^31_columns": ("rgb.png", lambda: png_of(2**31 - 1, 1, 8, 2, pixels(b"")), "pixels, more than"),
    "png_without_pixels": ("rgb.png", lambda: png_of(0, 4, 8, 2, pixels(b"")), "between 1 and"),
    "png_with_less_data_than_stated": ("rgb.png", lambda: png_of(4900, 4900, 8, 2, pixels(b"")), "complete JPEG"),
    "png_with_more_data_than_stated": ("rgb.png", lambda: png_of(4, 4, 8, 2, pixels(bytes(300_000_000))), ""),
    "png_colour_profile_bomb": (
        "rgb.png", lambda: with_chunks(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(300_000_000)))), ""),
    "png_text_bombs": ("rgb.png", lambda: text_chunks(1000), "compressed texts; at most"),
    "png_texts_within_the_limit": ("rgb.png", lambda: text_chunks(20), ""),
    "png_of_empty_chunks": (
        "mask.png", lambda: png_of(4, 4, 8, 3, chunk(b"PLTE", bytes(768)), chunk(b"IDAT", b"") * 300_000,
                                   pixels(bytes(20))), ""),
    "png_palette_of_1_bit": (
        "mask.png", lambda: png_of(24_000, 1000, 1, 3, chunk(b"PLTE", bytes(6)), pixels(bytes(1000 * 3001))), ""),
    "png_palette_as_photo": (
        "rgb.png", lambda: png_of(6000, 4000, 1, 3, chunk(b"PLTE", bytes(6)), pixels(bytes(4000 * 751))), ""),
    "png_with_a_million_frames": ("rgb.png", lambda: animated_png(1_000_000), ""),
    "png_of_24_megapixels_16_bit": ("rgb.png", lambda: fast_png(flat(*LARGE, 3, dtype=np.uint16)), ""),
    "png_of_12_megapixels_16_bit_rgba": ("rgb.png", lambda: fast_png(flat(3000, 4000, 4, dtype=np.uint16)), ""),
    "png_of_24_megapixels_16_bit_rgba": (
        "rgb.png", lambda: fast_png(flat(*LARGE, 4, dtype=np.uint16)), "of 8 bytes, which count twice"),
    "png_of_24_megapixels_rgba": ("rgb.png", lambda: fast_png(flat(*LARGE, 4)), ""),
    "photo_of_24_megapixels": ("rgb.jpg", lambda: encoded(".jpg", photo(*LARGE)), ""),
    "photo_of_32_megapixels": ("rgb.jpg", lambda: encoded(".jpg", photo(5000, 6400)), "data.max_pixels: 25000000"),
    "turned_photo_of_24_megapixels": ("rgb.jpg", lambda: turned(*LARGE), ""),
    "progressive_photo_of_24_megapixels": ("rgb.jpg", lambda: progressive(*LARGE), ""),
    "progressive_photo_with_full_chroma": ("rgb.jpg", lambda: progressive(*LARGE, 0x111111), ""),
    "jpeg_that_states_65535_pixels": ("rgb.jpg", lambda: stated_jpeg(65_535, 65_535), "pixels, more than"),
    "jpeg_of_many_scans": ("rgb.jpg", lambda: scans(5000, 600, 600), "scans; at most"),
    "jpeg_of_scans_within_the_limit": ("rgb.jpg", lambda: scans(38, 2000, 3000), ""),
    "jpeg_of_fill_bytes": ("rgb.jpg", lambda: jpeg_with(b"\xff" * 30_000_000), ""),
    "jpeg_of_empty_segments": ("rgb.jpg", lambda: jpeg_with(b"\xff\xe5\0\2" * 5_000_000), "truncated"),
    "webp_that_states_268_megapixels": (
        "rgb.webp", lambda: b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 18) + b"\x2f"
        + b"\xff\xff\xff\x0f" + bytes(13), "pixels, more than"),
    "webp_of_24_megapixels": ("rgb.webp", lambda: encoded(".webp", flat(*LARGE, 3), cv2.IMWRITE_WEBP_QUALITY, 101), ""),
    "gif": ("rgb.png", lambda: b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(1000), "not a JPEG, PNG"),
    "exr": ("rgb.png", lambda: b"\x76\x2f\x31\x01" + bytes(1000), "not a JPEG, PNG"),
    "depth_of_24_megapixels": ("depth.png", lambda: fast_png(flat(*LARGE, dtype=np.uint16)), ""),
    "tiff_of_24_megapixels": ("depth.tiff", lambda: deflated_tiff(*LARGE), "no valid|without any depth"),
    "tiff_that_unpacks_to_gigabytes": ("depth.tiff", lambda: deflated_tiff(9000, 9000), "pixels, more than"),
    "tiff_of_many_tags": (
        "depth.tiff", lambda: tiff(*[(273, 1, 9_000_000, 8)] * 60_000, data=bytes(9_000_000)), "strips or tiles"),
    "npy_of_a_huge_shape": ("depth.npy", lambda: shaped("'<f4'", "(1000000, 1000000)"), "not a complete NumPy"),
    "npy_of_a_huge_row": ("depth.npy", lambda: shaped("('<f4', (1000000, 100000))", "(1, 1)"), "not a complete NumPy"),
    "npy_of_a_deep_header": ("depth.npy", lambda: npy("(" * 20_000), "not a complete NumPy"),
    "npy_of_objects": ("depth.npy", lambda: saved(np.array([[{}]], dtype=object)), "not a complete NumPy"),
    "npy_of_no_size": ("depth.npy", lambda: shaped("'<f4'", "(0, 1000000000)"), "no valid|without any depth"),
    "npy_of_128_megabytes": ("depth.npy", lambda: saved(np.full((4000, 3990), 1.5)), ""),
    "npy_of_more": ("depth.npy", lambda: saved(np.full((4100, 4000), 1.5)), "at most 128000000"),
    "npz_of_16_megapixels": ("depth.npz", lambda: npz(np.full((4000, 3990), 1.5)), ""),
    "npz_of_half_floats": ("depth.npz", lambda: npz(np.full(LARGE, 1.5, np.float16)), ""),
    "npz_that_unpacks_to_gigabytes": ("depth.npz", lambda: npz(np.zeros((12_000, 12_000), bool)), "unpacks to more"),
    "npz_that_understates_its_size": ("depth.npz", understated_npz, "not an archive|not a complete NumPy"),
    "npz_in_an_npz": (
        "depth.npz", lambda: archive({"a.npy": archive({"a.npy": saved(np.ones((9, 9)))})}), "not a complete NumPy"),
    "npz_of_many_members": (
        "depth.npz", lambda: archive({f"{n}.npy": b"" for n in range(20_000)}), "it has 20000 arrays"),
    "text_of_megabytes": ("text.txt", lambda: b"word " * 20_000_000, "bytes of captions"),
    "text_of_marks": ("text.txt", lambda: ("a" + "\u0301\u0316" * 200_000).encode(), "combining marks"),
    "text_of_lines": ("text.txt", lambda: b"a\n" * 30_000, ""),
    "label_of_digits": ("label.txt", lambda: b"9" * 50_000_000, "not a class index"),
    "json_of_brackets": ("meta.json", lambda: b"[" * 1_000_000, "not (valid )?JSON"),
    "json_of_digits": ("meta.json", lambda: b'{"a": ' + b"9" * 1_000_000 + b"}", "not (valid )?JSON"),
    "json_of_objects": ("meta.json", lambda: json.dumps({"a": [{}] * 250_000}).encode(), ""),
    "json_of_megabytes": ("meta.json", lambda: b" " * 50_000_000 + b"{}", "at most 1048576"),
    "wav_that_states_4_gigabytes": (
        "audio.wav", lambda: wav_header(2**32 - 2, 16_000, 2, bytes(1000)), "truncated|silent|readable|no samples"),
    "wav_of_32767_channels": (
        "audio.wav", lambda: wav_header(65_534, 16_000, 32_767, bytes(65_534)), "cannot read an audio|silent"),
    "wav_of_1_hertz": ("audio.wav", lambda: wav_header(200_000, 1, 1, b"\1\2" * 100_000), "too long"),
    "wav_of_a_prime_rate": ("audio.wav", lambda: wav_header(200_000, 2**31 - 1, 1, b"\1\2" * 100_000), "filter is too"),
    "flac_of_15_minutes": ("audio.flac", lambda: flac(930), ""),
    "flac_of_hours": ("audio.flac", lambda: flac(3600, 1), "too long"),
    "ply_that_states_4_billion": ("points.ply", lambda: ply(2**32), "points of"),
    "ply_of_many_columns": ("points.ply", lambda: ply(10, 4000), "of 16000 bytes|end of its header"),
    "ply_of_eight_million": ("points.ply", lambda: ply(8_000_000, body=bytes(96_000_000)), ""),
    "ply_of_a_long_header": ("points.ply", lambda: b"ply\ncomment " + b"x" * 50_000_000, "end of its header"),
    "pcd_that_unpacks_to_gigabytes": (
        "points.pcd", lambda: pcd(10**9, "binary_compressed", struct.pack("<II", 10, 12 * 10**9 % 2**32)), "points of"),
    "npz_of_points": ("points.npz", lambda: npz(np.ones((8_000_000, 3), np.float32)), ""),
    "npz_of_many_points": ("points.npz", lambda: npz(np.ones((11_000_000, 3), np.float32)), "unpacks to more"),
    "bin_of_two_columns": ("points.bin", lambda: bytes(4 * 10_000_001), "not a point cloud"),
    "safetensors_of_a_long_header": ("0.safetensors", lambda: struct.pack("<Q", 2**62) + bytes(100), "invalid cached"),
    "safetensors_beyond_its_end": (
        "0.safetensors", lambda: save({"pooled": torch.zeros(4)}).replace(b"[0,16]", b"[0,99]"), "invalid cached"),
}  # fmt: skip


def read(member: str, data: bytes) -> None:
    """Decode a member as the loader does."""
    field, _, suffix = member.partition(".")
    raw = {"__url__": "a.tar", "__key__": "s", "__place__": 0, member: data}
    check_members(raw)
    if suffix == "safetensors":
        feature_cache.decode(data)
    elif field == "mask":
        read_mask(data, [0, 1])
    elif field == "label":
        read_label(data)
    elif field == "meta":
        meta_of(raw)
    else:
        decode_member(MODALITIES[field], raw, {})


def examine(member: str, data: bytes) -> None:
    """Check a member as `wcord check` does."""
    check_pixels(data)
    inspect(member, data)


def resident(name: str) -> float:
    """An entry of the status of this process in MB."""
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def measure(call: Callable[[], Any], connection: Any) -> None:
    """Send the CPU time in seconds (what an idle machine takes), the peak memory in MB, and the reason of a refusal."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # warnings of decoders
    before, begun, reason = resident("VmRSS"), time.process_time(), ""
    try:
        call()
    except (ValueError, SampleError) as error:
        reason = str(error)
    connection.send((time.process_time() - begun, resident("VmHWM") - before, reason))


def cost(call: Callable[[], Any]) -> tuple[float, float, str]:
    """Run a call in a child process that has imported everything."""
    ours, theirs = FORKED.Pipe()
    child = FORKED.Process(target=measure, args=(call, theirs))
    child.start()
    assert ours.poll(60), "it does not end"
    found: tuple[float, float, str] = ours.recv()
    child.join()
    return found


def unpack() -> None:
    for _ in range(15):
        zlib.decompress(PACKED)


def seconds_here() -> float:
    """The limit in CPU time of this machine, which may be slower, or busy."""
    return SECONDS * max(1.0, cost(unpack)[0] / UNPACKED_IN)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_read_with_little_or_refused(name: str) -> None:
    member, make, reason = BOMBS[name]
    data = make()
    for number, call in enumerate((read, examine)):
        seconds, megabytes, said = cost(partial(call, member, data))
        if seconds >= (limit := SECONDS):  # once more, against what the machine does at the same time
            limit = seconds_here()
            seconds, megabytes, said = cost(partial(call, member, data))
        print(f"{name} {call.__name__}: {seconds:.2f} s, {megabytes:.0f} MB{', refused: ' + said if said else ''}")
        assert seconds < limit
        assert megabytes < MEGABYTES
        assert number or bool(said) == bool(reason)
        assert number or re.search(reason, said), said
