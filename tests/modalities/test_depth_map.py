"""Points, normals, gravity and HHA against analytic planes and spheres and against Open3D's own rays."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
import pytest
import torch

from modalities import Depth, Geometry
from modalities.depth_map import DepthMap, down, gravity, hha, normals, transform, vertices
from modalities.encoders.pointnet import PointNet
from modalities.open3d_loader import import_open3d
from modalities.testing import check_modality

CAMERA = (90.0, 95.0, 46.5, 36.5)
HEIGHT, WIDTH = 72, 96
DEGREES = math.pi / 180


def rays(camera: tuple[float, float, float, float] = CAMERA) -> np.ndarray:
    fx, fy, cx, cy = camera
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u, float)], -1)


def depth_map(metres: np.ndarray, down: tuple[float, float, float] | None = None) -> DepthMap:
    valid = np.isfinite(metres) & (metres > 0)
    return DepthMap(np.where(valid, metres, 0).astype(np.float32), valid, CAMERA, down)


def by_pixel(planes: np.ndarray) -> np.ndarray:
    """`[3, H, W]` as `[H, W, 3]`."""
    return planes.transpose(1, 2, 0)


def plane(normal: np.ndarray, distance: float) -> np.ndarray:
    """Depth of `normal . X = -distance`, infinite where it is behind the camera."""
    with np.errstate(divide="ignore"):
        metres = -distance / (rays() @ normal)
    return np.where(metres > 0, metres, np.inf)


def sphere(centre: np.ndarray, radius: float) -> np.ndarray:
    r = rays()
    a, b, c = (r * r).sum(-1), -2 * r @ centre, centre @ centre - radius**2
    root = b * b - 4 * a * c
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / (2 * a), 0)


def room(tilt: float, roll: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Depth of a floor 1.5 m under a camera that looks down by `tilt` and is rolled, a wall 4 m away and one to the
    left; and where gravity is. Degrees."""
    pitch = np.array([[1, 0, 0], [0, np.cos(tilt * DEGREES), -np.sin(tilt * DEGREES)],
                      [0, np.sin(tilt * DEGREES), np.cos(tilt * DEGREES)]])  # fmt: skip
    turn = np.array([[np.cos(roll * DEGREES), -np.sin(roll * DEGREES), 0],
                     [np.sin(roll * DEGREES), np.cos(roll * DEGREES), 0], [0, 0, 1]])  # fmt: skip
    world = turn @ pitch  # world directions as the camera sees them
    floor, back, left = (world @ np.array(n, float) for n in ((0, -1, 0), (0, 0, -1), (1, 0, 0)))
    depth = np.minimum(np.minimum(plane(floor, 1.5), plane(back, 4.0)), plane(left, 2.0))
    return depth, world @ np.array([0.0, 1, 0])


def test_vertices_lie_on_the_sphere_and_where_open3d_s_rays_hit() -> None:
    centre, radius = np.array([0.1, -0.2, 2.0]), 0.6
    depth = depth_map(sphere(centre, radius))
    points = by_pixel(vertices(depth))
    distance = np.linalg.norm(points[depth.valid] - centre, axis=-1)
    np.testing.assert_allclose(distance, radius, atol=1e-5)
    assert (points[~depth.valid] == 0).all()

    o3d = import_open3d()
    ball = o3d.geometry.TriangleMesh.create_sphere(radius, 200).translate(centre)
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.t.geometry.TriangleMesh.from_legacy(ball))
    directions = rays().reshape(-1, 3)
    beams = np.concatenate([np.zeros_like(directions), directions], 1).astype(np.float32)
    hit = scene.cast_rays(o3d.core.Tensor(beams))
    t = hit["t_hit"].numpy().reshape(HEIGHT, WIDTH)
    both = cv2.erode((np.isfinite(t) & depth.valid).astype(np.uint8), np.ones((3, 3))) > 0
    np.testing.assert_allclose(points[both], (t[..., None] * rays())[both], atol=2e-3)
    own, theirs = by_pixel(normals(depth)), hit["primitive_normals"].numpy().reshape(HEIGHT, WIDTH, 3)
    inner = cv2.erode(both.astype(np.uint8), np.ones((9, 9))) > 0
    assert ((own * theirs).sum(-1)[inner] > math.cos(6 * DEGREES)).all()


def test_normals_are_those_of_planes_and_of_open3d() -> None:
    normal = np.array([0.3, -0.4, -1]) / np.linalg.norm([0.3, -0.4, -1])
    flat = by_pixel(normals(depth_map(plane(normal, 2.0))))
    np.testing.assert_allclose(flat[:-1, :-1], np.broadcast_to(normal, (HEIGHT - 1, WIDTH - 1, 3)), atol=1e-3)

    rough = 2 + np.random.default_rng(0).normal(0, 0.05, (HEIGHT, WIDTH))
    rough[10:20, 30:40] = 0
    depth = depth_map(rough)
    o3d = import_open3d()
    camera = o3d.core.Tensor(np.array([[CAMERA[0], 0, CAMERA[2]], [0, CAMERA[1], CAMERA[3]], [0, 0, 1]]))
    image = o3d.t.geometry.Image(o3d.core.Tensor(depth.metres[..., None]))
    theirs = image.create_vertex_map(camera, 0.0).create_normal_map(0.0).as_tensor().numpy()
    own = by_pixel(normals(depth))
    np.testing.assert_array_equal(own.any(-1), theirs.any(-1))  # nothing where a neighbour is missing
    np.testing.assert_allclose(own, theirs, atol=0.05)  # theirs are a little shorter than 1
    lengths = np.linalg.norm(theirs, axis=-1, keepdims=True)
    np.testing.assert_allclose(own, theirs / np.maximum(lengths, 1e-9), atol=1e-4)


@pytest.mark.parametrize("tilt", [10, 25, 40])
@pytest.mark.parametrize("roll", [0, -15])
def test_gravity_height_and_angle_of_a_floor_tilted_by_a_known_angle(tilt: float, roll: float) -> None:
    metres, true = room(tilt, roll)
    depth = depth_map(metres)
    normal = by_pixel(normals(depth))
    found = down(normal[np.linalg.norm(normal, axis=-1) > 0.5], np.array([0, 1, 0], np.float32))
    assert found @ true > math.cos(3 * DEGREES)
    for source in (depth, depth_map(metres, tuple(true))):
        height, angle = hha(source)
        exact = 3 * DEGREES if source.gravity is None else 1e-2
        facing = normal @ true
        floor, wall = facing < -0.9, np.abs(facing) < 0.1
        assert floor.any()
        # Where two surfaces meet, normals are of neither: a few per cent of the pixels.
        assert np.percentile(np.abs(angle[floor] - math.pi), 90) < exact
        if wall.any():
            assert np.percentile(np.abs(angle[wall] - math.pi / 2), 90) < exact
        expected = 1.5 - by_pixel(vertices(depth)) @ true
        np.testing.assert_allclose(height[floor], expected[floor] - expected[floor].min(), atol=0.25)
        if source.gravity is not None:
            above = np.maximum(expected - np.percentile(expected, 1), 0)
            np.testing.assert_allclose(height[depth.valid], above[depth.valid], atol=1e-4)


def test_a_flip_turns_gravity_and_points_with_the_picture() -> None:
    metres, true = room(20, 10)
    depth = depth_map(metres, tuple(true))
    plain, flipped = (transform(depth, Geometry(flip=flip), 64) for flip in (False, True))
    mirrored = by_pixel(vertices(plain))[:, ::-1] * [-1, 1, 1]
    np.testing.assert_allclose(by_pixel(vertices(flipped)), mirrored, atol=1e-5)
    assert flipped.gravity == (-plain.gravity[0], *plain.gravity[1:])  # type: ignore[index]
    np.testing.assert_allclose(hha(flipped)[0], hha(plain)[0][:, ::-1], atol=1e-4)


def test_a_crop_keeps_points_where_they_are() -> None:
    """A plane stays the same plane, seen through other intrinsics."""
    normal = np.array([0.3, -0.4, -1]) / np.linalg.norm([0.3, -0.4, -1])
    for seed in range(5):
        geometry = Geometry.draw(np.random.default_rng(seed), (0.4, 0.9), flip=False)
        part = transform(depth_map(plane(normal, 2.0)), geometry, 48)
        inner = by_pixel(vertices(part))[3:-3, 3:-3].reshape(-1, 3)
        np.testing.assert_allclose(inner @ normal, -2.0, atol=5e-3)


@pytest.mark.parametrize("given", [None, [0, 2, 0], [0.1, 1, -0.3]])
def test_gravity_comes_from_meta(given: list[float] | None) -> None:
    found = gravity({"gravity": given})
    assert (found is None) == (given is None)
    assert found is None or np.linalg.norm(found) == pytest.approx(1)


@pytest.mark.parametrize("bad", ["down", [0, 1], [0, 0, 0], [0, math.nan, 1], [0, 10**400, 1], 3])
def test_gravity_that_is_none_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"meta.json: gravity: .*: expected three numbers"):
        gravity({"gravity": bad})


# What the encoder sees of them.


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", ">f4"])
def test_npy_holds_metres_and_what_is_no_number_is_no_reading(kind: str) -> None:
    decoded = Depth().decode(npy(np.array([[1.5, np.nan, np.inf, -1, 0, 0.25]], kind)), {})
    assert decoded.metres.dtype == np.float32
    assert decoded.metres.tolist() == [[1.5, 0, 0, 0, 0, 0.25]]
    assert decoded.valid.tolist() == [[True, False, False, False, False, True]]


@pytest.mark.parametrize(
    ("data", "words"),
    [(npy(np.ones((4, 4), np.uint16)), r"depth.npy must be float \[H, W\] in metres, but it is uint16 \[4, 4\]"),
     (npy(np.ones((4, 4, 2))), r"float64 \[4, 4, 2\]"),
     (npy(np.ones((40, 40)))[:200], "not a complete NumPy array")],
)  # fmt: skip
def test_npy_of_other_things_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Depth().decode(data, {})


def test_pickled_arrays_are_never_opened() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a complete NumPy array"):
        Depth().decode(buffer.getvalue(), {})


def test_disparity_is_depth_by_baseline_and_focal_length() -> None:
    disparity = np.array([[0, 160, 320, 16_000]], np.uint16)  # sixteenths of a pixel
    meta = {"intrinsics": {"fx": 500, "fy": 500, "cx": 2, "cy": 0.5}}
    data = cv2.imencode(".png", disparity)[1].tobytes()
    decoded = Depth(baseline=0.1, scale=1 / 16).decode(data, meta)
    np.testing.assert_allclose(decoded.metres, [[0, 5.0, 2.5, 0.05]], rtol=1e-6)
    assert decoded.valid.tolist() == [[False, True, True, True]]


def test_disparity_without_a_focal_length_is_no_depth() -> None:
    data = cv2.imencode(".png", np.full((4, 4), 160, np.uint16))[1].tobytes()
    for meta in ({}, {"intrinsics": None}):
        with pytest.raises(ValueError, match=r"meta.json has no intrinsics; .*--intrinsics fx,fy,cx,cy"):
            Depth(baseline=0.1).decode(data, meta)


@pytest.mark.parametrize(
    ("kind", "channels"), [("inverse", 2), ("normals", 4), ("vertex", 4), ("hha", 4), ("points", 3)]
)
@pytest.mark.parametrize("centre", [False, True])
def test_every_input_is_within_one_and_0_without_a_reading(kind: str, channels: int, centre: bool) -> None:
    adapter = Depth(input=kind, near=0.5, far=6.0, centre=centre, points=100)  # type: ignore[arg-type]
    assert adapter.channels == channels
    metres = room(20)[0]
    metres[20:40, 30:60] = 0
    for source in (metres, np.zeros_like(metres)):
        for rng in (None, np.random.default_rng(0)):
            tensor = adapter.augment(depth_map(source), Geometry(), 32, rng)
            assert tensor.dtype == torch.float32
            assert tensor.abs().max() <= 1 + 1e-5
            if kind == "points":
                assert tensor.shape[1] == 3
                assert 1 <= len(tensor) <= 100
            else:
                assert tensor.shape == (channels, 32, 32)
                assert (tensor[:-1].abs().sum(0)[tensor[-1] == 0] == 0).all()


def test_inverse_depth_is_linear_in_one_over_metres() -> None:
    metres = np.array([[0.5, 1.0, 2.0, 4.0, 8.0, 0.25]] * 6)
    seen = Depth(input="inverse", near=0.5, far=4.0).augment(depth_map(metres), Geometry(), 6, None)[0, 3]
    expected = np.clip((1 / metres[0] - 0.25) / 1.75 * 2 - 1, -1, 1)
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    with pytest.raises(ValueError, match="near: must be above 0 for input: inverse"):
        Depth(input="inverse")


def test_points_lie_on_the_surface_and_are_drawn_anew_in_training() -> None:
    normal = np.array([0.2, 0.1, -1]) / np.linalg.norm([0.2, 0.1, -1])
    adapter = Depth(input="points", near=0.0, far=4.0, points=200, jitter=0.0, dropout=0.0)
    depth = depth_map(plane(normal, 2.0))
    even, one, other = (adapter.augment(depth, Geometry(), 48, rng) for rng in
                        (None, np.random.default_rng(1), np.random.default_rng(2)))  # fmt: skip
    for points in (even, one, other):
        metres = points.numpy() * 2 + [0, 0, 2]
        assert len(points) == 200
        assert np.abs(metres @ normal + 2).max() < 0.02
    assert not torch.equal(one, other)
    assert torch.equal(even, adapter.augment(depth, Geometry(), 48, None))


def test_pointnet_is_blind_to_order_and_padding() -> None:
    torch.manual_seed(0)
    adapter, encoder = Depth(input="points"), PointNet(3, width=8).eval()
    clouds = [torch.randn(n, 3) for n in (50, 7, 1)]
    together = encoder(adapter.collate(clouds)).pooled
    alone = torch.cat([encoder(adapter.collate([cloud])).pooled for cloud in clouds])
    torch.testing.assert_close(together, alone)
    shuffled = [cloud[torch.randperm(len(cloud))] for cloud in clouds]
    torch.testing.assert_close(encoder(adapter.collate(shuffled)).pooled, together)


def test_points_keep_the_contract_and_want_their_own_encoder() -> None:
    ball = sphere(np.array([-0.4, 0.1, 2.0]), 0.5)
    units = (np.where(ball > 0, ball, room(20)[0]) * 1000).clip(0, 65_535).astype(np.uint16)
    data = cv2.imencode(".png", units)[1].tobytes()
    check_modality(Depth(input="points", points=64), [data], specs=[{"name": "pointnet", "width": 8}])
    for kind in ("hha", "vertex", "normals"):
        check_modality(Depth(input=kind, near=0.1), [data], specs=[{"name": "cnn5", "width": 4}])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pointnet requires `input: points`"):
        Depth().encoder({"name": "pointnet"})
    with pytest.raises(ValueError, match="other encoders require images"):
        Depth(input="points").encoder({"name": "cnn5"})


@pytest.mark.parametrize("size", [16, 31, 64])
def test_a_sparse_map_keeps_its_readings(size: int) -> None:
    """LiDAR: 5 % of the pixels have a reading. A pixel is the mean of the readings that it has."""
    rng = np.random.default_rng(0)
    metres = np.full((96, 320), 4.0) + rng.uniform(0, 0.5, (96, 320))
    metres[rng.random(metres.shape) > 0.05] = 0
    seen = transform(depth_map(metres), Geometry(), size)
    assert seen.valid.mean() > 0.15
    assert np.all((seen.metres[seen.valid] > 3.99) & (seen.metres[seen.valid] < 4.51))
    assert np.all(seen.metres[~seen.valid] == 0)


def test_scan_lines_are_sparse_too() -> None:
    metres = np.zeros((96, 320))
    metres[::6, ::2] = 4
    seen = transform(depth_map(metres), Geometry(), 32)
    assert seen.valid.any(1).sum() == seen.valid.all(1).sum() == 16  # all lines, each whole


@pytest.mark.parametrize("shown", [0.1, 0.3, 0.6, 1.0])
def test_the_holes_of_a_dense_map_keep_their_borders(shown: float) -> None:
    """A pixel of a dense map is valid if half of its sources are, however large the holes of the map are."""
    metres = np.full((96, 96), 2.0)
    metres[:, round(shown * 96) :] = 0
    seen = transform(depth_map(metres), Geometry(), 32)
    weight = Geometry().resize((metres > 0).astype(np.float32), 32)
    assert np.array_equal(seen.valid, weight > 0.499)
