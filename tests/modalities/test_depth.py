"""Depth: metres stay metres, missing readings stay missing, normals are those of the mirrored and cropped scene."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from modalities import RGB, Depth, Geometry
from modalities.depth import DepthMap, dropped, normals, quantised, transform

WHOLE = Geometry()
RANDOM = [Geometry.draw(np.random.default_rng(seed), (0.4, 1.0), flip=True) for seed in range(12)]
CAMERA = (90.0, 90.0, 47.5, 35.5)


def png(units: np.ndarray) -> bytes:
    return cv2.imencode(".png", units)[1].tobytes()


def photo(suffix: str, channels: int) -> bytes:
    return cv2.imencode(suffix, np.full((4, 4, channels), 9, np.uint8))[1].tobytes()


def depth_map(metres: np.ndarray, camera: tuple[float, float, float, float] = CAMERA) -> DepthMap:
    metres = metres.astype(np.float32)
    return DepthMap(metres, metres > 0, camera)


def ramp(height: int = 72, width: int = 96) -> np.ndarray:
    return np.linspace(1, 3, height * width).reshape(height, width)


def plane(normal: np.ndarray, distance: float = 2.0, height: int = 72, width: int = 96) -> np.ndarray:
    """Depth of the plane `normal . X = -distance` seen by CAMERA."""
    fx, fy, cx, cy = CAMERA
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u, float)], -1)
    metres = -distance / (rays @ normal)
    assert metres.min() > 0
    return metres


# Bytes


def test_units_become_metres_and_zero_is_no_reading():
    units = np.array([[0, 1, 1500, 65535]], np.uint16)
    decoded = Depth().decode(png(units), {})
    assert decoded.metres.dtype == np.float32
    np.testing.assert_allclose(decoded.metres[0], [0, 0.001, 1.5, 65.535], rtol=1e-6)
    assert decoded.valid.tolist() == [[False, True, True, True]]
    assert Depth(scale=0.0002).decode(png(units), {}).metres[0, 2] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(np.full((4, 4), 9, np.uint8)), "^8-bit PNG: .* 16 bits; convert it to a 16-bit PNG in millimetres$"),
        (png(np.full((4, 4, 3), 9, np.uint16)), "^a PNG with 3 channels: depth requires a 16-bit PNG or TIFF"),
        (photo(".jpg", 3), "^a JPEG with 3 channels: depth requires a 16-bit PNG or TIFF with one channel, or .npy$"),
        (photo(".jpg", 1), "^8-bit JPEG: depth requires 16 bits"),
        (photo(".webp", 3), "^a WebP with 3 channels: "),
        (png(ramp().astype(np.uint16))[:-20], "truncated: its end is missing"),
        (b"", "not a JPEG, PNG or WebP file"),
        (b"something else" * 20, "not a JPEG, PNG or WebP file"),
    ],
)
def test_other_bytes_are_value_errors_in_words(data, message):
    with pytest.raises(ValueError, match=message):
        Depth().decode(data, {})


def test_intrinsics_come_from_meta_in_the_maps_own_pixels():
    units = png(np.ones((240, 320), np.uint16))
    given = {"fx": 500, "fy": 510, "cx": 319.5, "cy": 239.5}
    assert Depth().decode(units, {"intrinsics": given}).intrinsics == (500, 510, 319.5, 239.5)
    halved = Depth().decode(units, {"intrinsics": given | {"width": 640, "height": 480}}).intrinsics
    np.testing.assert_allclose(halved, (250, 255, 159.5, 119.5))


def test_without_intrinsics_the_field_of_view_is_sixty_degrees():
    fx, fy, cx, cy = Depth().decode(png(np.ones((240, 320), np.uint16)), {}).intrinsics
    assert 2 * math.degrees(math.atan(160 / fx)) == pytest.approx(60)
    assert (fy, cx, cy) == (fx, 159.5, 119.5)


@pytest.mark.parametrize(
    "bad",
    [
        "none",
        [1, 2, 3, 4],
        {"fx": 1},
        {"fx": 0, "fy": 1, "cx": 0, "cy": 0},
        {"fx": "x", "fy": 1, "cx": 0, "cy": 0},
        {"fx": 10**400, "fy": 1, "cx": 0, "cy": 0},
    ],
)
def test_intrinsics_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match=r"intrinsics.*fx, fy, cx, cy"):
        Depth().decode(png(np.ones((4, 4), np.uint16)), {"intrinsics": bad})


# Geometry and missing readings


@pytest.mark.parametrize("geometry", RANDOM)
@pytest.mark.parametrize("size", [24, 64, 128])
def test_missing_readings_never_leak_into_metres(geometry, size):
    rng = np.random.default_rng(0)
    metres = rng.uniform(2, 3, (72, 96)) * (rng.random((72, 96)) < 0.7)
    metres[20:40, 30:60] = 0
    moved = transform(depth_map(metres), geometry, size)
    assert moved.metres[moved.valid].min() >= 2 - 1e-5
    assert moved.metres[moved.valid].max() <= 3 + 1e-5
    assert not moved.metres[~moved.valid].any()
    assert moved.valid.any()
    assert not moved.valid.all()


def test_shrinking_averages_what_was_read():
    metres = np.array([[1, 3, 2, 0], [1, 3, 0, 0], [1, 1, 2, 0], [1, 5, 4, 0]], float)
    moved = transform(depth_map(metres), WHOLE, 2)
    np.testing.assert_allclose(moved.metres, [[2, 0], [2, 3]], atol=1e-6)
    assert moved.valid.tolist() == [[True, False], [True, True]]  # a quarter read is too little, half is enough


@pytest.mark.parametrize("geometry", RANDOM)
def test_rgb_and_depth_of_other_resolution_show_the_same_part(geometry):
    """A ball, drawn in both: after any geometry its two centres lie within a source pixel of each other."""
    size = 64
    photo, metres = np.zeros((240, 320, 3), np.uint8), np.full((72, 96), 3.0)
    centre = np.array([(geometry.left + geometry.right) / 2 + 0.1, (geometry.top + geometry.bottom) / 2 - 0.05])
    for image, value in ((photo, 255), (metres, 1.0)):
        height, width = image.shape[:2]
        y, x = np.mgrid[:height, :width]
        image[np.hypot((x + 0.5) / width - centre[0], (y + 0.5) / height - centre[1]) < 0.12] = value
    seen = RGB().augment(photo, geometry, size, None)[0].double() / 255
    near = (3 - Depth(far=4.0).augment(depth_map(metres), geometry, size, None)[0].double().add(1).mul(2)) / 2

    def middle(mass):
        rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        return torch.stack([(mass * columns).sum(), (mass * rows).sum()]) / mass.sum()

    x0, y0, x1, y1 = geometry.box(72, 96)
    pixel = size / min(x1 - x0, y1 - y0)
    assert (middle(seen) - middle(near)).abs().max() < pixel
    side = middle(near)[0] - size / 2  # it lies right of the middle, or left of it when mirrored
    assert (side < -2) if geometry.flip else (side > 2)


# What the encoder sees


def test_depth_and_validity_on_a_known_scale():
    metres = np.zeros((32, 32))
    metres[:, 8:16], metres[:, 16:24], metres[:, 24:] = 1.0, 2.0, 9.0
    tensor = Depth(near=1.0, far=5.0).augment(depth_map(metres), WHOLE, 32, None)
    assert tensor.dtype == torch.float32
    assert tensor[0, 0, ::8].tolist() == [0, -1, -0.5, 1]
    assert tensor[1, 0, ::8].tolist() == [0, 1, 1, 1]


def test_centred_depth_does_not_change_with_distance():
    near, far = ramp(), ramp() + 2.5
    seen = [Depth(centre=True, span=0.5).augment(depth_map(m), WHOLE, 48, None) for m in (near, far)]
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=0)
    assert np.median(seen[0][0]) == pytest.approx(0, abs=1e-5)
    rows = seen[0][0].mean(1)
    assert rows[20] == pytest.approx((2 * 20.5 / 48 - 1) / 0.5, abs=0.01)  # the ramp: 1 m at the top, 3 m at the bottom
    assert rows[[0, -1]].tolist() == [-1, 1]


@pytest.mark.parametrize("centre", [False, True])
def test_images_are_three_times_the_depth_in_zero_to_one(centre):
    adapter, plain = Depth(input="image", centre=centre, far=4.0), Depth(centre=centre, far=4.0)
    metres = ramp()
    metres[:10] = 0
    image, depth = (a.augment(depth_map(metres), RANDOM[0], 48, None) for a in (adapter, plain))
    assert image.shape == (3, 48, 48)
    for channel in image:
        torch.testing.assert_close(channel, (depth[0] + 1) / 2 * depth[1])


@pytest.mark.parametrize(("kind", "channels"), [("depth", 2), ("depth+normals", 5), ("image", 3)])
def test_the_number_of_channels_is_known_before_data(kind, channels):
    adapter = Depth(input=kind)
    assert adapter.channels == channels
    for metres in (ramp(), np.zeros((72, 96))):  # also with no reading at all
        for centred in (adapter, Depth(input=kind, centre=True)):
            tensor = centred.augment(depth_map(metres), RANDOM[1], 32, np.random.default_rng(0))
            assert tensor.shape == (channels, 32, 32)
            assert tensor.dtype == torch.float32
            assert tensor.isfinite().all()
    features = adapter.encoder({"name": "cnn5", "size": 32})(torch.stack([tensor, tensor]))
    assert features.pooled.shape == (2, 128)


def test_near_beyond_far_is_refused():
    with pytest.raises(ValueError, match="near"):
        Depth(near=3.0, far=2.0)


# Normals

TILTS = [np.array(n) / np.linalg.norm(n) for n in ([0.0, 0, -1], [0.7, 0, -1], [0, -0.6, -1], [-0.5, 0.4, -1])]


@pytest.mark.parametrize("normal", TILTS)
@pytest.mark.parametrize("geometry", [WHOLE, Geometry(flip=True), *RANDOM])
def test_a_tilted_plane_has_its_analytic_normal_after_any_geometry(normal, geometry):
    tensor = Depth(input="depth+normals").augment(depth_map(plane(normal)), geometry, 64, None).numpy()
    expected = normal * ([-1, 1, 1] if geometry.flip else [1, 1, 1])
    inner = tensor[2:, 4:-4, 4:-4]  # enlarging repeats the border, which is no plane
    np.testing.assert_allclose(inner, np.broadcast_to(expected[:, None, None], inner.shape), atol=0.04)
    np.testing.assert_allclose(inner.mean((1, 2)), expected, atol=0.004)


def test_a_flip_mirrors_the_normals_of_a_curved_surface():
    u, v = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64))
    bowl = depth_map(2 + 0.3 * np.sin(2 * u + 0.5) + 0.2 * v**2, (70.0, 70.0, 28.0, 33.0))
    adapter = Depth(input="depth+normals")
    plain, flipped = (adapter.augment(bowl, Geometry(flip=flip), 64, None)[2:] for flip in (False, True))
    mirrored = plain.flip(2) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    # A normal looks to the right neighbour, so mirrored normals sit one pixel aside.
    torch.testing.assert_close(flipped[:, :-1, :-1], mirrored[:, :-1, 1:], atol=0.02, rtol=0)
    assert plain[0].std() > 0.1


def test_normals_are_unit_or_zero_and_zero_where_a_neighbour_is_missing():
    metres = ramp()
    metres[30, 40] = 0
    field = normals(depth_map(metres)).transpose(1, 2, 0)
    length = np.linalg.norm(field, axis=-1)
    assert np.all((np.abs(length - 1) < 1e-5) | (length == 0))
    assert length[30, 40] == length[30, 39] == length[29, 40] == 0
    assert length[30, 41] > 0
    assert length[31, 40] > 0
    assert np.all(field[..., 2] <= 0)  # they face the camera


# Training only


def test_training_scales_depth_and_drops_readings_as_asked():
    flat, seen = depth_map(np.full((64, 64), 2.0)), []
    for seed in range(200):
        tensor = Depth(far=4.0, jitter=0.1, dropout=0.2).augment(flat, WHOLE, 64, np.random.default_rng(seed))
        kept = tensor[1] > 0
        metres = (tensor[0][kept] + 1) * 2
        assert metres.max() - metres.min() < 1e-5  # one factor for all of the map: surfaces keep their shape
        assert not tensor[0][~kept].any()
        seen.append((metres[0].item() / 2, 1 - kept.double().mean().item()))
    factors, lost = np.array(seen).T
    assert 0.9 <= factors.min() < 0.93
    assert 1.07 < factors.max() <= 1.1
    assert lost.mean() == pytest.approx(0.2, abs=0.02)


def test_zero_means_nothing_is_changed_in_training():
    adapter = Depth(input="depth+normals", jitter=0, dropout=0)
    plain, drawn = (adapter.augment(depth_map(ramp()), RANDOM[0], 48, rng) for rng in (None, np.random.default_rng(0)))
    assert torch.equal(plain, drawn)


def test_a_dropped_reading_takes_its_normal_along_but_not_its_neighbours():
    adapter = Depth(input="depth+normals", dropout=0.3)
    tensor = adapter.augment(depth_map(plane(TILTS[1])), WHOLE, 64, np.random.default_rng(1))[:, :-1, :-1]
    assert torch.equal(tensor[2:].abs().sum(0) > 0, tensor[1] > 0)


def test_views_of_two_sizes_lose_the_same_rectangle():
    def rectangle(size, seed):
        mask = dropped(size, 0.3, np.random.default_rng(seed)).astype(np.uint8)
        opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 5)))  # single pixels vanish
        return cv2.resize(opened, (64, 64), interpolation=cv2.INTER_NEAREST_EXACT) > 0

    agreement = [(rectangle(64, seed) == rectangle(128, seed)).mean() for seed in range(20)]
    assert min(agreement) > 0.95
    assert max(rectangle(64, seed).mean() for seed in range(20)) > 0.15


def test_picture_shows_missing_readings_black_and_survives_outliers():
    metres = ramp()
    metres[:5], metres[40, 40] = 0, 60.0
    picture = Depth().picture(depth_map(metres))
    assert picture.dtype == np.uint8
    assert picture.shape == (72, 96, 3)
    assert not picture[:5].any()
    assert picture[6:].any(-1).all()
    near, far = picture[8, 0].astype(int), picture[70, 90].astype(int)
    assert near[2] > near[0]  # near is blue, far is red, whatever one wild pixel says
    assert far[0] > far[2]
    assert not Depth().picture(depth_map(np.zeros((4, 4)))).any()


def test_caption_tells_the_metres_of_the_colours() -> None:
    metres = np.linspace(1.0, 3.0, 96 * 72, dtype=np.float32).reshape(72, 96)
    caption = Depth().caption(depth_map(metres))
    assert caption.text == "1.04 to 2.96 m"  # the 2nd and 98th percentile
    picture = Depth().picture(depth_map(metres))
    ends = ["#{:02x}{:02x}{:02x}".format(*picture[place]) for place in ((0, 0), (-1, -1))]
    assert [caption.colours[0], caption.colours[-1]] == ends
    assert Depth().caption(depth_map(np.zeros((4, 4)))).text == "no depth values"


def test_quantisation_rounds_as_a_stereo_camera_does() -> None:
    metres = np.linspace(0.5, 8, 4096, dtype=np.float32).reshape(64, 64)
    metres[0, 0] = 0
    seen = quantised(metres, 0.01)
    assert seen[0, 0] == 0
    steps = (1 / seen[metres > 0]) / 0.01
    np.testing.assert_allclose(steps, steps.round(), atol=1e-3)
    assert (np.abs(seen - metres) <= 0.51 * 0.01 * metres**2 / (1 - 0.01 * metres)).all()
    assert np.array_equal(quantised(metres, 0.0), metres)


def test_fraying_moves_edges_and_nothing_else() -> None:
    raw = np.full((64, 64), 1000, np.uint16)
    raw[:, 32:] = 2000
    depth = Depth(ragged=2, jitter=0.0, dropout=0.0, near=0.0, far=4.0)
    seen = depth.augment(depth.decode(png(raw), {}), Geometry(), 64, np.random.default_rng(0))[0].numpy()
    assert (seen[:, :30] == -0.5).all()
    assert (seen[:, 34:] == 0).all()
    edge = seen[:, 30:34]
    assert set(np.unique(edge)) == {-0.5, 0.0}
    assert len(np.unique(edge, axis=0)) > 4
    still = depth.augment(depth.decode(png(raw), {}), Geometry(), 64, None)[0].numpy()
    assert (still[:, :32] == -0.5).all()


@pytest.mark.parametrize("kind", ["depth", "depth+normals", "normals", "inverse", "vertex", "hha", "image"])
def test_coverage_is_the_share_of_pixels_with_a_reading(kind: str) -> None:
    depth = Depth(input=kind, near=0.3, dropout=0)  # type: ignore[arg-type]
    metres = np.full((32, 32), 2, np.float32)
    metres[:, 8:] = 0
    value = DepthMap(metres, metres > 0, (30.0, 30.0, 15.5, 15.5))
    batch = depth.collate([depth.augment(value, Geometry(), 32, None)] * 2)
    coverage = depth.coverage(batch)
    assert coverage is not None
    assert coverage.tolist() == [0.25, 0.25]
