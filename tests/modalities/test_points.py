"""Point clouds: every kind of file says the same, damaged ones are refused, and what is done to a cloud is known."""

from __future__ import annotations

import pickle
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from point_clouds import KINDS, by_open3d, cloud, npy, npz, pcd, ply, written

from modalities import Geometry, Points
from modalities.encoders.pointnet import PointNet
from modalities.point_file import points_kind, read_points
from modalities.point_header import MOST_BYTES, MOST_POINTS
from modalities.points import chosen_rows
from modalities.testing import check_modality

WHOLE, FLIPPED = Geometry(), Geometry(flip=True)
STILL = {"rotation": 0.0, "scaling": 0.0, "jitter": 0.0}
ROWS = cloud(0)
FILES = {
    **{kind: written(ROWS, kind) for kind in KINDS},
    "ascii ply": ply(ROWS, "ascii"),
    "big-endian ply": ply(ROWS, "binary_big_endian"),
    "ascii pcd": pcd(ROWS, "ascii"),
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def with_columns(count: int, columns: list[tuple[str, str]], body: bytes, encoding: str = "ascii") -> bytes:
    properties = "".join(f"property {kind} {name}\n" for name, kind in columns)
    return f"ply\nformat {encoding} 1.0\nelement vertex {count}\n{properties}end_header\n".encode() + body


XYZ = [("x", "float"), ("y", "float"), ("z", "float")]


# Files


@pytest.mark.parametrize("kind", FILES)
def test_it_keeps_the_contract(kind: str) -> None:
    files = [FILES[kind], written(cloud(1, 2000), kind.split()[-1])]
    check_modality(Points(count=64, extra=1), files, specs=[{"name": "pointnet", "width": 8}])


@pytest.mark.parametrize("kind", FILES)
def test_all_kinds_of_file_hold_the_same_points(kind: str) -> None:
    assert points_kind(FILES[kind]) == kind.split()[-1]
    for extra in (0, 1):
        found = Points(extra=extra).decode(FILES[kind], {})
        assert found.dtype == np.float32
        assert np.array_equal(found, ROWS[:, : 3 + extra])


@pytest.mark.parametrize(
    ("kind", "encoding"), [(k, e) for k in ("ply", "pcd") for e in ("ascii", "binary", "compressed")]
)
def test_what_open3d_writes_is_read(kind: str, encoding: str) -> None:
    """Its ASCII has six digits. Colours are bytes in a PLY, and lie packed in one number of a PCD."""
    colours = rng().integers(0, 256, (60, 3), np.uint8)
    found = read_points(by_open3d(ROWS, kind, encoding, colours), 4, 4)
    wanted = np.concatenate([ROWS[:, :3], colours / 255, ROWS[:, 3:]], 1)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 if encoding == "ascii" else 1e-7)


def test_columns_of_any_type_and_order_are_found_by_name() -> None:
    columns = [("label", "uchar"), ("z", "double"), ("y", "double"), ("t", "int"), ("x", "double")]
    data = with_columns(2, columns, b"255 3 2 7 1\r\n0  6 5 -8 4e0\r\n3 0 1 2\n")
    found = Points(extra=2).decode(data, {})
    assert found.tolist() == [[1, 2, 3, 1, 7], [4, 5, 6, 0, -8]]
    kinds = np.dtype([("a", "u1"), ("z", ">f8"), ("y", ">f8"), ("t", ">i4"), ("x", ">f8")])
    body = np.array([(255, 3, 2, 7, 1), (0, 6, 5, -8, 4)], kinds).tobytes()
    assert np.array_equal(Points(extra=2).decode(with_columns(2, columns, body, "binary_big_endian"), {}), found)


@pytest.mark.parametrize("kind", ["U", "F"])
def test_packed_colours_and_padding_of_a_pcd(kind: str) -> None:
    packed = np.uint32(200 << 16 | 100 << 8 | 50)
    row = np.array([(1, 2, 3, 0, packed)], np.dtype([(n, "<f4") for n in "xyz"] + [("_", "<u4"), ("rgb", "<u4")]))
    header = f"VERSION .7\nFIELDS x y z _ rgb\nSIZE 4 4 4 1 4\nTYPE F F F U {kind}\nCOUNT 1 1 1 4 1\nWIDTH 1\n"
    found = Points(extra=3).decode(header.encode() + b"HEIGHT 1\nDATA binary\n" + row.tobytes(), {})
    np.testing.assert_allclose(found, [[1, 2, 3, 200 / 255, 100 / 255, 50 / 255]], rtol=1e-6)


def test_an_archive_s_points_come_before_xyz_before_the_first_table() -> None:
    flat = np.zeros(5)
    for arrays in (
        {"other": -ROWS, "xyz": -ROWS, "points": ROWS},
        {"other": -ROWS, "xyz": ROWS},
        {"label": flat, "first": ROWS, "second": -ROWS},
    ):
        assert np.array_equal(Points(extra=1).decode(npz(**arrays), {}), ROWS)
    with pytest.raises(ValueError, match=r"neither points nor xyz, nor an array \[N, C\]"):
        Points().decode(npz(label=flat), {})


def test_points_that_are_not_finite_are_dropped_and_none_is_too_few() -> None:
    rows = ROWS.copy()
    rows[3, 0], rows[7, 2], rows[9, 3] = np.nan, np.inf, np.nan
    for kind in KINDS:
        assert np.array_equal(Points().decode(written(rows, kind), {}), np.delete(ROWS, [3, 7], 0)[:, :3])
        assert np.array_equal(Points(extra=1).decode(written(rows, kind), {}), np.delete(ROWS, [3, 7, 9], 0))
        with pytest.raises(ValueError, match="without any finite points"):
            Points().decode(written(np.full_like(rows, np.nan), kind), {})
    assert np.array_equal(Points().decode(ply(rows, "ascii"), {}), np.delete(ROWS, [3, 7], 0)[:, :3])


BILLION = 1_000_000_000
REFUSED: list[tuple[bytes, str]] = [
    (b"", "0 bytes are not a point cloud"),
    (ROWS.tobytes()[:-4], "float32 rows of 4 columns"),
    (b"\xff\xd8\xff\xe0" * 400, "the file is damaged, or is not a point cloud"),
    (b"some other text." * 40, "the file is damaged, or is not a point cloud"),
    (npy(np.zeros((0, 3), np.float32)), "an array of float32"),
    (npy(np.zeros((4, 2))), "2 columns, but x, y, z"),
    (npy(np.zeros(12)), "points must be numbers"),
    (npy(np.full((4, 3), 1e300)), "without any finite points"),
    (npy(ROWS)[:-3], "not a complete NumPy array"),
    (npz(points=ROWS)[:-30], "not a complete archive"),
    (ply(ROWS)[:-1], "the point cloud is truncated"),
    (ply(ROWS[:0]), "the point cloud is empty"),
    (ply(ROWS, "ascii")[:-200], "the points are damaged"),
    (ply(ROWS[:, :2]), r"each of x, y and z; this one has x \(float32\), y"),
    (ply(ROWS).replace(b"vertex 60", b"vertex %d" % BILLION), f"at most {MOST_POINTS}"),
    (ply(ROWS).replace(b"vertex 60", b"vertex -1"), "'-1' is not a count"),
    (ply(ROWS).replace(b"float x", b"list uchar int x"), "vertices of the PLY contain lists"),
    (ply(ROWS).replace(b"float x", b"complex x"), "the header of the PLY is damaged"),
    (ply(ROWS).replace(b"float x", b"int x"), r"this one has x \(int32\)"),
    (ply(ROWS).replace(b"element vertex", b"element face"), "does not start with its vertices"),
    (ply(ROWS).replace(b"end_header", b"end"), "the end of its header is not within"),
    (with_columns(2, XYZ, b"1 2.0 3\n4 5\n"), "the points are damaged"),
    (with_columns(1, XYZ, b"1 2 three\n"), "the points are damaged"),
    (with_columns(9, XYZ, b"1 2 3\n" * 8 + b" " * 99), "copy it again"),
    (pcd(ROWS)[:-1], "the point cloud is truncated"),
    (pcd(ROWS).replace(b"COUNT 1 1 1 1", b"COUNT 1 1 1 540615"), "the header of the PCD is damaged"),
    (pcd(ROWS).replace(b"POINTS 60", b"POINTS 61"), "61 points of 60 x 1"),
    (pcd(ROWS).replace(b"TYPE F F F F", b"TYPE F F F Q"), "type Q with 4 bytes"),
    (pcd(ROWS).replace(b"DATA binary", b"DATA lzma"), "check DATA, FIELDS"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_whole_cloud_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Points().decode(data, {})


def test_columns_that_are_wanted_must_be_there() -> None:
    for data in FILES.values():
        with pytest.raises(ValueError, match=r"`extra: 2`|float32 rows of 4 columns|columns, but x, y, z"):
            Points(extra=2).decode(data, {})
    assert Points(columns=6).decode(ROWS.tobytes(), {}).shape == (40, 3)


def test_sizes_are_not_believed() -> None:
    """A compressed PCD that says it unpacks to more than its points have, and an archive that unpacks to gigabytes."""
    data = by_open3d(ROWS, "pcd", "compressed")
    body = data.index(b"binary_compressed\n") + 18
    with pytest.raises(ValueError, match="bytes for 60 points of 16 bytes"):
        Points().decode(data[: body + 4] + (1 << 31).to_bytes(4, "little") + data[body + 8 :], {})
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("points.npy", npy(ROWS))
    size = len(npy(ROWS)).to_bytes(4, "little")
    bomb = file.getvalue().replace(size * 2, size + (MOST_BYTES + 1).to_bytes(4, "little"))
    assert bomb != file.getvalue()
    with pytest.raises(ValueError, match="unpacks to more than"):
        Points().decode(bomb, {})


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    evil = np.array([[Evil(proof)] * 3], dtype=object)
    for data in (npy(evil), npz(points=evil), npz(other=evil), pickle.dumps(Evil(proof))):
        with pytest.raises(ValueError, match=r"."):
            Points().decode(data, {})
    assert not proof.exists()


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """One to five changes, mostly in the header: a byte, some less, some more, a cut, another number."""
    out = bytearray(data)
    for _ in range(draw.integers(1, 6)):
        end = min(len(out), 300) if draw.random() < 0.7 else len(out)
        if end < 2:
            break
        at, change = int(draw.integers(end)), draw.integers(5)
        digits = [place.start() for place in re.finditer(rb"[0-9]", out[:end])]
        if change == 0:
            out[at] = int(draw.integers(256))
        elif change == 1:
            del out[at : at + int(draw.integers(1, 20))]
        elif change == 2:
            out[at:at] = draw.bytes(int(draw.integers(1, 8)))
        elif change == 3 and draw.random() < 0.3:
            out = out[:at]
        elif digits:
            place = digits[int(draw.integers(len(digits)))]
            out[place : place + 1] = str(draw.integers(0, 10 ** int(draw.integers(1, 12)))).encode()
    return bytes(out)


@pytest.mark.parametrize("kind", [*FILES, "compressed pcd"])
def test_damaged_files_are_read_or_refused_and_nothing_else(kind: str) -> None:
    """Open3D 0.20 crashes on some of these, and returns memory that nobody wrote for others."""
    data = by_open3d(ROWS, "pcd", "compressed") if kind == "compressed pcd" else FILES[kind]
    adapter, refused = Points(count=16, extra=1), 0
    for seed in range(300):
        damaged = mutated(data, rng(seed))
        try:
            value = adapter.decode(damaged, {})
        except ValueError:
            refused += 1
            continue
        assert np.array_equal(value, adapter.decode(damaged, {}))
        assert adapter.augment(value, WHOLE, 0, rng()).isfinite().all()
    assert refused > 100


# What the encoder sees


def test_evaluation_is_deterministic_and_training_is_not() -> None:
    adapter = Points(count=32)
    value = adapter.decode(written(cloud(3, 500), "npy"), {})
    once = adapter.augment(value, WHOLE, 0, None)
    assert torch.equal(once, adapter.augment(value.copy(), WHOLE, 0, None))
    drawn = [adapter.augment(value, WHOLE, 0, rng(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize(("rows", "count"), [(1, 5), (7, 3), (7, 7), (7, 20), (500, 32)])
def test_no_point_is_taken_twice_before_all_are_taken(rows: int, count: int, seed: int | None) -> None:
    chosen = chosen_rows(rows, count, None if seed is None else rng(seed))
    times = np.bincount(chosen, minlength=rows)
    assert len(chosen) == count
    assert times.max() - times.min() <= 1


@pytest.mark.parametrize("radius", [None, 2.5])
@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_the_flip_mirrors_x(radius: float | None, up: Any) -> None:
    adapter = Points(count=40, extra=1, radius=radius, up=up, **STILL)  # type: ignore[arg-type]
    mirrored = ROWS * np.array([-1, 1, 1, 1], np.float32)
    for draw in (None, 5):
        flipped = adapter.augment(ROWS, FLIPPED, 0, draw and rng(draw))
        torch.testing.assert_close(flipped, adapter.augment(mirrored, WHOLE, 0, draw and rng(draw)))
    plain = adapter.augment(ROWS, Geometry(0.2, 0.2, 0.7, 0.7), 0, None)  # crops do not count
    sign = torch.tensor([-1, 1, 1, 1])
    torch.testing.assert_close(adapter.augment(ROWS, FLIPPED, 0, None), plain * sign)


def test_the_unit_sphere_forgets_place_and_size_and_a_radius_does_not() -> None:
    sphere, metric = Points(count=60), Points(count=60, radius=4.0)
    value, moved = ROWS[:, :3].astype(np.float64), 1000 * ROWS[:, :3].astype(np.float64) + np.array([5e5, 5e6, 100])
    seen = sphere.augment(value, WHOLE, 0, None)
    torch.testing.assert_close(seen, sphere.augment(moved, WHOLE, 0, None), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert seen.norm(dim=1).max() == pytest.approx(1)
    np.testing.assert_allclose(metric.augment(value, WHOLE, 0, None), value / 4, rtol=1e-6)
    assert not sphere.augment(np.ones((3, 3), np.float32), WHOLE, 0, None).any()


def test_coordinates_of_64_bits_keep_their_millimetres() -> None:
    """Easting and northing in metres: 32 bits hold them to half a metre."""
    near = ROWS[:, :3].astype(np.float64)
    data = npy(near + np.array([5e5, 5e6, 100]))
    seen = Points(count=60).augment(Points().decode(data, {}), WHOLE, 0, None)
    torch.testing.assert_close(seen, Points(count=60).augment(near, WHOLE, 0, None), atol=1e-6, rtol=0)


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_training_turns_about_the_vertical_within_the_limit(up: Any) -> None:
    adapter = Points(count=len(ROWS), extra=1, up=up, rotation=20.0, scaling=0.0, jitter=0.0)
    axis, angles = "xyz".index(up), []
    for seed in range(30):
        turned = adapter.augment(ROWS, WHOLE, 0, rng(seed)).numpy()
        order = [int(np.flatnonzero(ROWS[:, 3] == intensity)[0]) for intensity in turned[:, 3]]
        still = adapter.augment(ROWS, WHOLE, 0, None).numpy()[order]
        np.testing.assert_allclose(turned[:, axis], still[:, axis], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(still, axis=1), rtol=1e-5)
        others = [place for place in range(3) if place != axis]
        a, b = (points[:, others] @ [1, 1j] for points in (turned, still))
        angle = np.angle((a * b.conj()).sum(), deg=True)
        angles.append(abs(angle))
    assert 10 < max(angles) <= 20.01


def test_scaling_and_jitter_are_as_large_as_they_say() -> None:
    value = cloud(4, 4000)[:, :3]
    for seed in range(5):
        scaled = Points(count=4000, rotation=0.0, scaling=0.2, jitter=0.0).augment(value, WHOLE, 0, rng(seed))
        assert 0.8 <= scaled.norm(dim=1).max() <= 1.2
    moved = Points(count=4000, radius=1.0, rotation=0.0, scaling=0.0, jitter=0.05)
    noise = moved.augment(np.zeros_like(value), WHOLE, 0, rng())
    assert noise.std() == pytest.approx(0.05, rel=0.05)


def test_views_of_one_sample_are_turned_alike() -> None:
    """A teacher that sees more points than its student sees them from the same side."""
    value = np.array([[1.0, 2.0, 3.0]])
    few, many = (Points(count=count, radius=1.0, jitter=0.0).augment(value, WHOLE, 0, rng(3)) for count in (1, 50))
    torch.testing.assert_close(few.expand(50, 3), many)


def test_the_encoder_is_blind_to_the_order_of_points() -> None:
    torch.manual_seed(0)
    adapter = Points(count=60, extra=1)
    encoder = adapter.encoder({"name": "pointnet", "width": 8}).eval()
    assert isinstance(encoder, PointNet)
    for seed in range(5):
        value = cloud(seed)
        seen = adapter.augment(value, WHOLE, 0, None)
        again = adapter.augment(value[rng(seed).permutation(60)], WHOLE, 0, None)
        features, others = (encoder(adapter.collate([points])) for points in (seen, again))
        torch.testing.assert_close(features.pooled, others.pooled)
        assert features.pooled.shape == (1, 32)
        assert features.maps[0].shape == (1, 60, 8)


# What a person sees


def test_a_picture_is_seen_along_the_shortest_axis() -> None:
    """A flat scan from above, a wall from the front with what is up at the top."""
    corner = np.array([[0, 0, 0], [10, 0, 0], [0, 20, 0], [10, 20, 1]], np.float32)
    above = Points().picture(corner)
    assert above.shape == (128, 64, 3)
    assert above[0, 63].any()
    assert above[127, 0].any()
    assert (above[0, 63] != above[0, 0]).any()  # another height
    caption = Points().caption(corner)
    assert caption.text == "4 points; z 0.00 to 1.00"
    assert len(caption.colours) == 6
    wall = corner[:, [2, 0, 1]]  # x is short, z is long
    assert Points(up="z").picture(wall).shape == (128, 64, 3)
    assert Points(up="y").picture(wall).shape == (64, 128, 3)
    assert Points().picture(np.zeros((1, 3), np.float32)).any()


def test_networks_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="cnn5"):
        Points().encoder({"name": "cnn5"})
