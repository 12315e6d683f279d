"""Members are opened, not believed."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from point_clouds import KINDS, cloud, written
from sources import (
    png,
    sound_file,
    wav,
)

from modalities import RGB, Depth, Text
from modalities.audio import read_sound
from modalities.image_header import image_size
from modalities.sound_header import knows_its_length, sound_kind
from pipeline.data import member_formats as members
from pipeline.data.manifest import write_shard
from pipeline.data.masks import read_mask
from pipeline.data.member_formats import inspect, member_name, read_label, summarise
from pipeline.data.member_names import member_names


@pytest.mark.parametrize(
    ("member", "data", "reason"),
    [
        ("text.txt", b"  \n", "empty"),
        ("text.txt", b"caf\xe9", "not UTF-8"),
        ("mask.png", png(np.full((4, 4, 3), 255, np.uint8)), "single channel"),
        ("audio.wav", b"RIFX" + bytes(60), "not a WAV, FLAC, OGG or MP3 file"),
        ("audio.flac", wav(), "a wav file with the extension .flac"),
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
    for length in (0xFFFFFFFF, 0x7FFFF000, 0x80000000):
        inspect("audio.wav", wav(announced=length))
    for data, reason in (
        (wav()[:-1], "truncated"),
        (wav(0), "has no samples"),
        (wav()[:40], "has no samples"),
        (wav(sound=b"\0\0"), "silent"),
    ):
        with pytest.raises(ValueError, match=reason):
            inspect("audio.wav", data)


@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_sound_is_heard_to_its_end(kind: str, heard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the audio extra as far as the header says: a FLAC's says nothing of where the file ends."""
    monkeypatch.setattr(members, "can_hear", lambda: heard)
    data = sound_file(np.random.default_rng(0).normal(0, 0.1, 12_000), kind)
    inspect(f"audio.{kind}", data)
    for cut in (1, 100, len(data) // 2) if heard or kind != "flac" else ():
        with pytest.raises(ValueError, match=r"truncated|cannot read an audio file"):
            inspect(f"audio.{kind}", data[:-cut])
    for garbage in (bytes(500), b"no sound" * 60):
        with pytest.raises(ValueError, match="not a WAV, FLAC, OGG or MP3 file"):
            inspect(f"audio.{kind}", garbage)


def test_sound_that_is_no_sound_is_refused() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 4000)
    for samples, reason in ((np.where(np.arange(4000) == 7, np.nan, noise), "NaN or infinite"), (0 * noise, "silent")):
        with pytest.raises(ValueError, match=reason):
            inspect("audio.wav", sound_file(samples, "wav", "FLOAT"))


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_sound_that_is_damaged_in_the_middle_is_refused(kind: str) -> None:
    damaged = bytearray(sound_file(np.random.default_rng(0).normal(0, 0.1, 80_000), kind))
    middle = len(damaged) // 2
    damaged[middle : middle + 400] = bytes(400)
    with pytest.raises(ValueError, match=r"cannot read an audio file|of 80000 samples are readable"):
        inspect(f"audio.{kind}", bytes(damaged))


def test_an_mp3_that_does_not_count_its_frames_is_read_as_it_is() -> None:
    """Decoders then guess from its bytes, a picture in front of the sound included."""
    data = sound_file(np.random.default_rng(0).normal(0, 0.1, 80_000), "mp3")
    bare = data[data.find(data[:2], 4) :]
    assert not knows_its_length(bare)
    assert knows_its_length(data)
    inspect("audio.mp3", b"ID3\4\0\0\0\1\0\0" + bytes(1 << 14) + bare)


@pytest.mark.parametrize("tag", [b"", bytes(300), b"ID3\4\0\0\0\0\1\x48" + bytes(200)])
def test_what_stands_before_an_mp3_does_not_count(tag: bytes) -> None:
    data = sound_file(np.random.default_rng(0).normal(0, 0.1, 12_000), "mp3")
    assert sound_kind(tag + data) == sound_kind(tag + data + b"TAG" + bytes(125)) == "mp3"
    with pytest.raises(ValueError, match="the MP3 is truncated"):
        sound_kind(tag + data[:-1])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_image_size_is_what_the_decoder_finds_and_every_cut_is_noticed(suffix: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8)
    data = cv2.imencode(suffix, image)[1].tobytes()
    assert image_size(data) == (53, 37)
    for cut in (1, 2, 17, len(data) // 2, len(data) - 9):
        with pytest.raises(ValueError, match=r"truncated|not a JPEG, PNG or WebP file"):
            image_size(data[:-cut])


def test_a_photo_s_size_is_that_of_the_upright_photo() -> None:
    """A depth map beside it that was not turned differs in aspect ratio."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (40, 30)).save(file, "JPEG", exif=exif)
    assert inspect("rgb.jpg", file.getvalue()).size == (30, 40)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("deep", [np.uint8, np.uint16])
def test_photos_of_8_and_16_bit_grey_colour_or_transparent_are_packed_and_read(channels: int, deep: type) -> None:
    data = png(np.full((6, 9, channels), np.iinfo(deep).max, deep))
    assert inspect("rgb.png", data).size == (9, 6)
    assert (RGB().decode(data, {}) == 255).all()


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
    assert summarise(found) == (np.median(depth[depth > 0]), np.mean(depth[depth > 0] == 65535), False)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_depth_of_any_float_is_millimetres(kind: type) -> None:
    found = inspect("depth.npy", npy(np.array([[80, 200], [np.nan, np.inf]], kind))).depth
    assert found is not None
    assert found.tolist() == [[80_000, 200_000], [0, 0]]


def test_depth_that_32_bit_do_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="overflow float32"):
        inspect("depth.npy", npy(np.full((2, 2), 1e300)))


TEXTS = [b"", b" \n\t\n", b"caf\xe9", b"ab\0c", b"x" * 1_000_001, "\ufeff".encode(), "\ufeff \n".encode(),
         b"a cat", "\ufeffa cat\n".encode(), b"x" * 1_000_000]  # fmt: skip


@pytest.mark.parametrize("data", TEXTS, ids=range(len(TEXTS)))
def test_texts_are_opened_as_the_loader_does(data: bytes) -> None:
    try:
        Text().decode(data, {})
        fault = None
    except ValueError as error:
        fault = str(error)
    if fault is None:
        inspect("text.txt", data)
    else:
        with pytest.raises(ValueError, match=r".") as refused:
            inspect("text.txt", data)
        assert str(refused.value) == fault or not data


@pytest.mark.parametrize(
    ("step", "levels", "coarse"), [(10, 30, True), (100, 30, True), (10, 9, False), (1, 30, False)]
)
def test_readings_in_steps_of_10_are_told_from_few_readings(step: int, levels: int, coarse: bool) -> None:
    depth = (step * np.arange(100, 100 + levels)).astype(np.uint16)[None]
    assert summarise(depth)[2] is coarse


def test_the_longest_names_fit_into_a_tar(tmp_path: Path) -> None:
    longest = member_name("o" * 20, f"a.{'s' * 14}")
    write_shard(tmp_path / "a.tar", [("k" * 64, {longest: b"x"})])
    with pytest.raises(ValueError, match="the file extension has 15 letters; the maximum is 14"):
        member_name("other", f"a.{'s' * 15}")


@pytest.mark.parametrize("kind", KINDS)
def test_point_clouds_are_read_and_are_what_they_are_called(kind: str) -> None:
    data = written(cloud(0), kind)
    assert member_name("points", f"a/b.{kind.upper()}") == f"points.{kind}"
    inspect(f"points.{kind}", data)
    other = "pcd" if kind != "pcd" else "npz"
    reason = "copy it again" if kind == "bin" else f"but those of a .{kind} file; rename it to .{kind}"
    with pytest.raises(ValueError, match=rf"not those of a .{other} file.*{reason}"):
        inspect(f"points.{other}", data)
    with pytest.raises(ValueError, match=r"truncated|not a whole|not a complete|not a point cloud"):
        inspect(f"points.{kind}", data[:-3])
    with pytest.raises(ValueError, match=r"expected \.ply or \.pcd or \.npz or \.npy or \.bin, got"):
        member_name("points", "a.xyz")


def test_the_columns_of_a_lidar_scan_are_the_config_s() -> None:
    inspect("points.bin", cloud(0)[:, [0, 1, 2, 3, 3]].tobytes())


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        file, "JPEG", progressive=True
    )
    data = file.getvalue()
    assert inspect("rgb.jpg", data).size == (64, 64)
    last = data.rindex(b"\xff\xda")
    bomb = data[:-2] + 1000 * data[last:-2] + data[-2:]
    with pytest.raises(ValueError, match=r"the JPEG has 10\d\d scans; at most 50 are accepted"):
        image_size(bomb)


# Formats of the field


@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("whole", [0, 36, 0xFFFFFFFF])
def test_a_wav_written_to_a_pipe_is_read_to_its_end(length: int, whole: int) -> None:
    exact = wav(400)
    piped = exact[:4] + whole.to_bytes(4, "little") + exact[8:40] + length.to_bytes(4, "little") + exact[44:]
    inspect("audio.wav", piped)
    assert np.array_equal(read_sound(piped, 8000)[0], read_sound(exact, 8000)[0])


def test_a_wav_without_samples_before_other_chunks_is_empty() -> None:
    empty = wav(0) + b"LIST\4\0\0\0INFO"
    empty = empty[:4] + (len(empty) - 8).to_bytes(4, "little") + empty[8:]
    with pytest.raises(ValueError, match="no samples"):
        inspect("audio.wav", empty)
    with pytest.raises(ValueError, match="no samples"):
        read_sound(empty, 8000)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_indices_of_a_palette_are_the_classes_of_a_mask(bits: int) -> None:
    classes = np.random.default_rng(bits).integers(0, 1 << bits, (13, 21)).astype(np.uint8)
    image = Image.fromarray(classes, mode="P")
    image.putpalette(np.random.default_rng(0).permutation(256).repeat(3).astype(np.uint8).tobytes()[: 3 << bits])
    file = io.BytesIO()
    image.save(file, "PNG", bits=bits, transparency=0)
    data = file.getvalue()
    assert (data[24], data[25]) == (bits, 3)
    for member in ("mask.png", "parts.png"):
        found = inspect(member, data).mask
        assert found is not None
        assert np.array_equal(found, classes)
    assert np.array_equal(read_mask(data, range(256)), classes)
    assert RGB().decode(data, {}).shape == (13, 21, 3)  # of a photo, the colours
    for at in (20, data.index(b"IDAT") + 12):
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ValueError, match=r"decode|single channel|pixels"):
            inspect("mask.png", damaged)


MILLIMETRES = np.random.default_rng(0).integers(0, 9000, (12, 17)).astype(np.uint16)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_depth_in_a_tiff_is_that_of_the_png(options: dict[str, str]) -> None:
    file = io.BytesIO()
    Image.fromarray(MILLIMETRES).save(file, "TIFF", **options)
    for data in (file.getvalue(), cv2.imencode(".tiff", MILLIMETRES)[1].tobytes()):
        found = inspect(member_name("depth", "a/b.TIF"), data).depth
        assert found is not None
        assert np.array_equal(found, MILLIMETRES)
        assert np.array_equal(Depth().decode(data, {}).metres, Depth().decode(png(MILLIMETRES), {}).metres)
        for cut in range(0, len(data), 7):
            with pytest.raises(ValueError, match=r"TIFF|empty"):
                inspect("depth.tiff", data[:cut])


def test_a_tiff_that_readers_differ_about_is_refused() -> None:
    pages = [Image.fromarray(MILLIMETRES), Image.fromarray(MILLIMETRES + 1)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="several pages"):
        inspect("depth.tiff", file.getvalue())
    for tag, value in ((274, 3), (262, 0)):
        file = io.BytesIO()
        pages[0].save(file, "TIFF", tiffinfo={tag: value} if tag == 274 else {})
        data = file.getvalue()
        if tag == 262:
            entry = data.index(b"\x06\x01\x03\0\1\0\0\0") + 8
            data = data[:entry] + bytes(4) + data[entry + 4 :]
        with pytest.raises(ValueError, match="rotated, inverted"):
            inspect("depth.tiff", data)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1)])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_depth_may_be_one_array_with_a_channel(shape: tuple[int, ...], suffix: str) -> None:
    metres = np.linspace(0.5, 2, 12, dtype=np.float32).reshape(3, 4)
    file = io.BytesIO()
    np.savez_compressed(file, depth=metres.reshape(shape))
    data = file.getvalue() if suffix == "npz" else npy(metres.reshape(shape))
    found = inspect(member_name("depth", f"a.{suffix}"), data).depth
    assert found is not None
    assert np.allclose(found, 1000 * metres)
    assert np.array_equal(Depth().decode(data, {}).metres, metres)


def test_opus_is_read() -> None:
    data = sound_file(np.random.default_rng(0).normal(0, 0.1, 8000), "OGG", "OPUS")
    assert member_name("audio", "a/b.opus") == "audio.ogg"
    assert member_names(["opus"], {}) == {"opus": "audio.ogg"}
    inspect("audio.ogg", data)
    assert len(read_sound(data, 8000)[0]) == 8000


def test_what_cannot_be_read_names_a_command() -> None:
    for path, cure in (("a.m4a", "ffmpeg -i FILE.m4a FILE.flac"), ("a.wma", "ffmpeg -i FILE.wma FILE.flac")):
        with pytest.raises(ValueError, match=cure):
            member_name("audio", path)
    with pytest.raises(ValueError, match="OpenEXR"):
        member_name("depth", "a.exr")
    with pytest.raises(ValueError, match=r"ffmpeg -i sound\.m4a sound\.flac"):
        inspect("audio.wav", b"\0\0\0\x20ftypM4A " + bytes(40))
    with pytest.raises(ValueError, match=r"ffmpeg -i sound\.m4a sound\.flac"):
        read_sound(b"\0\0\0\x20ftypM4A " + bytes(40), 8000)
