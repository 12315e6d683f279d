"""Luminance and chroma: the formula of CIE L*a*b* in float64, their ranges, and the contract of modalities."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

import modalities
from modalities import RGB, Geometry, Modality
from modalities.lab import CHROMA, WHITE, Chroma, Luminance
from modalities.testing import check_modality

# IEC 61966-2-1: linear sRGB to XYZ, and its white, D65.
TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])


def reference(photo: np.ndarray) -> np.ndarray:
    """CIE 15: L* = 116 f(Y) - 16, a* = 500 (f(X) - f(Y)), b* = 200 (f(Y) - f(Z)), relative to white, in float64."""
    srgb = photo.astype(np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / TO_XYZ.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def colours() -> np.ndarray:
    """Every 17th value of each channel, corners of the cube included: `[64, 64, 3]`."""
    return np.array(list(itertools.product(range(0, 256, 17), repeat=3)), np.uint8).reshape(64, 64, 3)


def png(photo: np.ndarray) -> bytes:
    return cv2.imencode(".png", photo[..., ::-1])[1].tobytes()


@pytest.fixture
def photo() -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)


def test_both_halves_are_those_of_the_formula() -> None:
    square = colours()
    value = RGB().decode(png(square), {})
    exact = np.moveaxis(reference(square), -1, 0)
    luminance = Luminance().augment(value, Geometry(), 64, None).numpy()
    chroma = Chroma().augment(value, Geometry(), 64, None).numpy()
    assert luminance.shape == (1, 64, 64)
    assert chroma.shape == (2, 64, 64)
    np.testing.assert_allclose(luminance * WHITE, exact[:1], atol=0.2)
    np.testing.assert_allclose(chroma * CHROMA, exact[1:], atol=0.4)


def test_ranges_are_those_that_the_docstrings_promise() -> None:
    exact = reference(colours())
    assert exact[..., 0].min() == pytest.approx(0, abs=1e-9)
    assert exact[..., 0].max() == pytest.approx(WHITE)
    assert exact[..., 1].min() == pytest.approx(-86.2, abs=0.1)
    assert exact[..., 1].max() == pytest.approx(98.3, abs=0.1)
    assert exact[..., 2].min() == pytest.approx(-107.9, abs=0.1)
    assert exact[..., 2].max() == pytest.approx(94.5, abs=0.1)


def test_greys_have_no_chroma_and_colour_leaves_luminance() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    assert np.abs(Chroma().augment(grey, Geometry(), 32, None).numpy()).max() < 2e-3
    assert np.ptp(Luminance(jitter=0).picture(grey), axis=2).max() <= 1


@pytest.mark.parametrize(("kind", "name"), [(Luminance, "luminance"), (Chroma, "chroma")])
def test_they_keep_the_contract(kind: type[Modality], name: str, photo: np.ndarray) -> None:
    assert modalities.get(name) is kind
    samples = [png(photo), png(photo[:40, :31])]
    check_modality(kind(), samples, specs=[{"name": "cnn5", "width": 4}, {"name": "resnet", "depth": 8}], size=32)
