"""Geometry: what is drawn keeps its promises, and every kind of data sees the same part of the scene."""

from __future__ import annotations

import numpy as np
import pytest

from modalities import Geometry

RANDOM = [Geometry.draw(np.random.default_rng(seed), (0.3, 1.0), flip=True) for seed in range(20)]


@pytest.mark.parametrize("area", [(0.1, 0.2), (0.5, 1.0), (0.95, 1.0), (1.0, 1.0)])
def test_drawn_crop_lies_inside_and_has_the_area_asked_for(area):
    rng = np.random.default_rng(0)
    for _ in range(300):
        g = Geometry.draw(rng, area, flip=True)
        assert 0 <= g.left < g.right <= 1 + 1e-12
        assert 0 <= g.top < g.bottom <= 1 + 1e-12
        drawn = (g.right - g.left) * (g.bottom - g.top)
        assert area[0] - 1e-9 <= drawn <= area[1] + 1e-9


def test_draws_follow_the_seed_and_flip_only_when_allowed():
    def draw(seed, flip=True):
        return Geometry.draw(np.random.default_rng(seed), (0.5, 1.0), flip)

    assert draw(3) == draw(3) != draw(4)
    assert {draw(seed).flip for seed in range(20)} == {False, True}
    assert not any(draw(seed, flip=False).flip for seed in range(20))


def test_the_whole_is_untouched_and_a_flip_mirrors():
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(Geometry().resize(image, 16), image)
    assert np.array_equal(Geometry(flip=True).resize(image, 16), image[:, ::-1])
    half = Geometry(0.5, 0.0, 1.0, 0.25)
    assert np.array_equal(half.crop(image), image[:4, 8:])


def test_what_lies_outside_is_zero_at_any_resolution():
    for height, width in [(16, 16), (32, 64), (48, 48)]:
        image = np.ones((height, width, 2), np.float32)
        shifted = Geometry(-0.25, 0.125, 0.75, 1.125, flip=True).resize(image, 16)
        assert (shifted[:14, :12] == 1).all()
        assert not shifted[14:].any()
        assert not shifted[:, 12:].any()
    valid = np.ones((16, 16), bool)
    assert Geometry(0.5, -0.5, 1.5, 0.5).crop(valid).sum() == 64


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("size", [16, 24, 96])
def test_a_flip_commutes_with_scaling(nearest, size):
    image = np.random.default_rng(0).random((40, 56), dtype=np.float32)
    plain = Geometry(0.25, 0.0, 1.0, 0.75).resize(image, size, nearest)
    flipped = Geometry(0.25, 0.0, 1.0, 0.75, flip=True).resize(image, size, nearest)
    np.testing.assert_allclose(flipped, plain[:, ::-1], atol=1e-6)


@pytest.mark.parametrize("size", [9, 40, 64])
def test_an_even_surface_stays_even_up_to_its_border(size):
    for geometry in RANDOM:
        assert (geometry.resize(np.full((72, 96), 200, np.uint8), size) == 200).all()


def test_nearest_invents_no_label_and_shrinking_averages():
    labels = np.random.default_rng(0).choice(np.array([0, 7, 255], np.uint8), (50, 70))
    assert set(np.unique(RANDOM[0].resize(labels, 24, nearest=True))) <= {0, 7, 255}
    noise = np.random.default_rng(0).normal(0, 1, (256, 256)).astype(np.float32)
    for size in (128, 64, 32):  # the mean of n readings has a deviation of 1 / sqrt(n)
        assert 256 // size * 0.7 < 1 / Geometry().resize(noise, size).std() < 256 // size * 1.4


@pytest.mark.parametrize("geometry", RANDOM)
@pytest.mark.parametrize("size", [17, 64, 100])
def test_a_ramp_stays_a_ramp(geometry, size):
    """Steps in it would be false edges in depth, and false normals."""
    ramp = np.repeat(np.arange(120, dtype=np.float32)[None], 90, 0)
    steps = np.diff(geometry.resize(ramp, size)[size // 2])[4:-5]  # the border is repeated
    x0, _, x1, _ = geometry.box(90, 120)
    np.testing.assert_allclose(steps, (x1 - x0) / size * (-1 if geometry.flip else 1), rtol=0.03)


def test_a_box_has_at_least_one_pixel_even_of_a_tiny_source():
    for g in [*RANDOM, Geometry(0.999, 0.999, 1.0, 1.0), Geometry(0.0, 0.0, 1e-6, 1e-6)]:
        for shape in [(1, 1), (2, 3), (480, 640)]:
            x0, y0, x1, y1 = g.box(*shape)
            assert 0 <= x0 < x1 <= shape[1]
            assert 0 <= y0 < y1 <= shape[0]


@pytest.mark.parametrize("geometry", RANDOM)
def test_intrinsics_follow_the_pixels(geometry):
    """A source pixel's ray is the ray of the pixel that it becomes, mirrored by a flip."""
    height, width, size = 90, 120, 64
    source = (100.0, 110.0, 57.0, 48.0)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    # Where each pixel comes from: scaling is linear, so resized coordinates are the coordinates of resized pixels.
    u, v = geometry.resize(columns, size), geometry.resize(rows, size)
    fx, fy, cx, cy = geometry.intrinsics(source, (height, width), size)
    i, j = np.meshgrid(np.arange(size), np.arange(size))
    inner = (slice(4, -4), slice(4, -4))  # enlarging repeats the border
    sign = -1 if geometry.flip else 1
    np.testing.assert_allclose(((i - cx) / fx)[inner], sign * ((u - source[2]) / source[0])[inner], atol=5e-3)
    np.testing.assert_allclose(((j - cy) / fy)[inner], ((v - source[3]) / source[1])[inner], atol=5e-3)


def test_the_centre_is_a_share_of_each_side_and_one_changes_nothing():
    drawn = Geometry(0.1, 0.2, 0.5, 1.0, flip=True)
    assert drawn.centre(1.0) == drawn
    inner = drawn.centre(0.5)
    assert (inner.left, inner.top, inner.right, inner.bottom) == pytest.approx((0.2, 0.4, 0.4, 0.8))
    assert inner.flip
