"""RGB: every kind of photo becomes uint8 RGB, faults are ValueErrors, colours change only when asked."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from modalities import RGB, Depth, Geometry

WHOLE = Geometry()


def encode(image: np.ndarray, kind: str = ".png") -> bytes:
    """RGB, RGBA or grey to a file's bytes, losslessly but for JPEG."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    quality = [cv2.IMWRITE_WEBP_QUALITY, 101] if kind == ".webp" else []
    return cv2.imencode(kind, image, quality)[1].tobytes()


def photo(height: int = 96, width: int = 80) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 40)], -1).astype(np.uint8)


@pytest.mark.parametrize(("kind", "tolerance"), [(".png", 0), (".webp", 0), (".jpg", 6)])
def test_decodes_to_rgb_in_this_order(kind, tolerance):
    decoded = RGB().decode(encode(photo(), kind), {})
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - photo()).mean() <= tolerance


def test_sixteen_bits_become_eight_by_scale():
    deep = np.array([[0, 257, 200 * 257, 65535]], np.uint16)
    assert RGB().decode(encode(deep), {})[0, :, 0].tolist() == [0, 1, 200, 255]


def test_grey_is_repeated():
    grey = photo()[..., 0]
    assert np.array_equal(RGB().decode(encode(grey), {}), np.repeat(grey[..., None], 3, 2))


def test_transparency_is_laid_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[0, :, 3] = [0, 255, 51]
    assert RGB().decode(encode(rgba), {})[0].tolist() == [[255, 255, 255], [200, 0, 0], [244, 204, 204]]


def test_palettes_with_transparency_too():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 90, 80, 70])
    image.putdata([0, 1])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=0)
    assert RGB().decode(file.getvalue(), {})[0].tolist() == [[255, 255, 255], [90, 80, 70]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_of_other_kinds_is_not_followed(kind):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(file, kind, exif=exif, lossless=True)
    assert np.array_equal(RGB().decode(file.getvalue(), {}), photo())


def test_exif_turns_jpegs_upright():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(photo()).save(file, "JPEG", exif=exif, quality=95)
    decoded = RGB().decode(file.getvalue(), {})
    assert decoded.shape == (80, 96, 3)
    assert np.abs(decoded.astype(int) - np.rot90(photo(), -1)).mean() < 6


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp"])
def test_files_cut_short_are_refused_not_filled_with_grey(kind):
    data = encode(np.random.default_rng(0).integers(0, 255, (96, 80, 3), dtype=np.uint8), kind)
    for keep in (len(data) - 2, len(data) * 3 // 4, len(data) // 2):
        with pytest.raises(ValueError, match=f"its end is missing after {keep} bytes"):
            RGB().decode(data[:keep], {})
    for keep in (40, 3):
        with pytest.raises(ValueError, match=r"not a JPEG, PNG or WebP file|its end is missing"):
            RGB().decode(data[:keep], {})


def test_an_image_that_would_unpack_to_gigabytes_is_refused_by_its_header() -> None:
    rows = zlib.compress(bytes(10_000_000))  # of 1.2 GB, the rest would be as short
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    for modality in (RGB(), Depth()):
        with pytest.raises(ValueError, match="the image has 20000 x 20000 pixels; between 1 and 100000000"):
            modality.decode(data, {})


def test_bytes_of_pixels_do_not_count_as_texts() -> None:
    """In large files, the end of a chunk's name occurs by chance, here 900 times."""
    rows = b"".join(b"\0" + b"TXt" * 30 for _ in range(30))
    size = struct.pack(">IIBBBBB", 30, 30, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    image = RGB().decode(b"\x89PNG\r\n\x1a\n" + b"".join(packed), {})
    assert image[0, 0].tolist() == [*b"TXt"]


def test_cmyk_is_read_as_pillow_reads_it() -> None:
    file = io.BytesIO()
    Image.fromarray(photo()).convert("CMYK").save(file, "JPEG", quality=95)
    expected = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(RGB().decode(file.getvalue(), {}) - expected).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_read(kind: str) -> None:
    frames = [Image.fromarray(photo()), Image.fromarray(255 - photo())]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(RGB().decode(file.getvalue(), {}).astype(int) - photo()).mean() < 3


def test_what_follows_a_jpegs_end_is_no_fault():
    assert RGB().decode(encode(photo(), ".jpg") + b"\0" * 500, {}).shape == photo().shape


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"no photo at all" * 50, b"\xff\xd8"])
def test_other_bytes_are_value_errors(data):
    with pytest.raises(ValueError):
        RGB().decode(data, {})


def test_augment_gives_channels_first_at_the_size_asked_for():
    tensor = RGB().augment(photo(), WHOLE, 48, None)
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (3, 48, 48)
    assert np.array_equal(tensor.numpy(), WHOLE.resize(photo(), 48).transpose(2, 0, 1))


def test_colours_change_only_with_an_rng_and_a_jitter():
    plain = RGB().augment(photo(), WHOLE, 48, None)
    assert torch.equal(RGB(jitter=0).augment(photo(), WHOLE, 48, np.random.default_rng(0)), plain)
    drawn = [RGB(jitter=0.3).augment(photo(), WHOLE, 48, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    change = (drawn[0].float() - plain.float()).abs().mean()
    assert 2 < change < 80


def test_views_of_two_sizes_see_the_same_colours():
    """A teacher and a student of one modality may differ in size."""
    large, small = (RGB(jitter=0.5).augment(photo(), WHOLE, size, np.random.default_rng(5)) for size in (64, 32))
    assert (large.float().mean((1, 2)) - small.float().mean((1, 2))).abs().max() < 1.5


class Factors:
    """An rng that gives the three factors, so that each can be checked by itself."""

    def __init__(self, *factors: float) -> None:
        self.factors = factors

    def uniform(self, low: float, high: float, count: int) -> np.ndarray:
        assert count == len(self.factors)
        return np.array(self.factors)


def test_brightness_scales_contrast_keeps_the_mean_grey_saturation_keeps_each_grey():
    image = (photo() // 2 + 60).astype(np.uint8)
    grey = np.array([0.299, 0.587, 0.114])

    def jittered(*factors):
        return RGB().augment(image, WHOLE, 80, Factors(*factors)).numpy().transpose(1, 2, 0).astype(float)

    plain = jittered(1, 1, 1)
    np.testing.assert_allclose(jittered(0.7, 1, 1), plain * 0.7, atol=0.6)
    stretched = jittered(1, 0.5, 1)
    assert abs((stretched @ grey).mean() - (plain @ grey).mean()) < 0.6
    np.testing.assert_allclose(np.ptp(stretched), np.ptp(plain) / 2, atol=1.1)
    np.testing.assert_allclose(jittered(1, 1, 0), np.repeat((plain @ grey)[..., None], 3, 2), atol=1)
    np.testing.assert_allclose(jittered(1, 1, 1.2) @ grey, plain @ grey, atol=1)


def test_the_encoder_has_the_modalitys_mean_unless_the_spec_gives_one():
    assert RGB().encoder({"name": "cnn5"}).preprocessing.mean == (0.485, 0.456, 0.406)
    own = RGB().encoder({"name": "cnn5", "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]})
    assert own.preprocessing.mean == (0.1, 0.2, 0.3)


def test_picture_is_the_photo():
    assert np.array_equal(RGB().picture(photo()), photo())


def test_another_field_is_read_in_the_same_formats() -> None:
    assert RGB().members == RGB.fields
    assert RGB(field="noto").members == ("noto.jpg", "noto.png", "noto.webp")


@pytest.mark.parametrize("shape", [(150, 70), (150, 70, 3), (150, 70, 4), (1, 3, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_conversion_in_strips_is_that_of_the_whole_image(shape: tuple[int, ...], dtype: type) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)
    expected = cv2.convertScaleAbs(image, alpha=255 / 65535) if dtype == np.uint16 else image
    if len(shape) == 2:
        expected = np.repeat(expected[..., None], 3, 2)
    if shape[2:] == (4,):
        alpha = expected[..., 3:].astype(np.float32) / 255
        expected = (255 + alpha * (expected[..., :3] - np.float32(255))).round().astype(np.uint8)
    decoded = RGB().decode(cv2.imencode(".png", image)[1].tobytes(), {})
    np.testing.assert_array_equal(decoded, expected[..., ::-1])
