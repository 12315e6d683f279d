"""Tabletop scenes: reproducible bytes, members that decode and agree with one another, sounds that tell materials."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import subprocess
import sys
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

from modalities.open3d_loader import import_open3d
from pipeline.packing.synthetic import shapes as tabletop_shapes
from pipeline.packing.synthetic import sound as tabletop_sound
from pipeline.packing.synthetic.scenes import CLASSES, FIELD_UNITS, scene
from pipeline.packing.synthetic.setting import MATERIALS, Setting, draw

ROOT = Path(__file__).resolve().parents[3]
SIZE = 64
DIGESTS = """
import hashlib
from pipeline.packing.synthetic.scenes import FIELD_UNITS, scene
for index in (5, 3):
    members = scene(1, index, {size})
    print(hashlib.sha256(b"".join(members[name] for name in FIELD_UNITS)).hexdigest())
"""


def image(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def digest(members: dict[str, bytes]) -> str:
    return hashlib.sha256(b"".join(members[name] for name in FIELD_UNITS)).hexdigest()


def setting(seed: int, index: int) -> Setting:
    return draw(np.random.default_rng(np.random.SeedSequence([seed, index]).spawn(3)[0]))


@pytest.fixture(scope="module")
def scenes() -> list[dict[str, bytes]]:
    return [scene(1, index, SIZE) for index in range(40)]


def test_bytes_depend_on_the_arguments_alone(scenes: list[dict[str, bytes]]) -> None:
    assert [scene(1, index, SIZE) for index in (39, 7, 0)] == [scenes[39], scenes[7], scenes[0]]
    assert len({digest(members) for members in [*scenes, scene(2, 0, SIZE)]}) == 41


def test_bytes_are_equal_in_another_process(scenes: list[dict[str, bytes]]) -> None:
    command = [sys.executable, "-c", DIGESTS.format(size=SIZE)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.split() == [digest(scenes[5]), digest(scenes[3])]


def test_members_decode_to_what_they_promise(scenes: list[dict[str, bytes]]) -> None:
    for index, members in enumerate(scenes):
        assert set(members) == set(FIELD_UNITS)
        rgb, depth, mask = (image(members[name]) for name in ("rgb.jpg", "depth.png", "mask.png"))
        assert (rgb.shape, rgb.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert (depth.shape, depth.dtype) == ((SIZE, SIZE), np.uint16)
        assert (mask.shape, mask.dtype) == ((SIZE, SIZE), np.uint8)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.01 < (mask > 0).mean() < 0.6
        assert 15 < rgb.mean() < 245
        assert rgb.std() > 5
        meta = json.loads(members["meta.json"])
        assert meta["index"] == index
        assert meta["source"] == "tabletop"
        assert meta["intrinsics"]["width"] == meta["intrinsics"]["height"] == SIZE
        assert 0 <= int(members["label.txt"]) < len(CLASSES)
    groups = [json.loads(members["meta.json"])["group"] for members in scenes]
    assert len(set(groups)) == len(groups)


def test_depth_is_in_range_with_some_readings_lost(scenes: list[dict[str, bytes]]) -> None:
    depths = np.stack([image(members["depth.png"]) for members in scenes])
    read = depths[depths > 0]
    assert read.min() > 100
    assert read.max() < 4200
    lost = (depths == 0).mean(axis=(1, 2))
    assert lost.min() > 0.005
    assert np.median(lost) < 0.4


def test_depth_unprojects_onto_the_object(scenes: list[dict[str, bytes]]) -> None:
    """Pixels of the mask, lifted by depth and intrinsics, fall into the box that the object fills in the world."""
    for index, members in enumerate(scenes):
        made, k = setting(1, index), json.loads(members["meta.json"])["intrinsics"]
        depth = image(members["depth.png"]) / 1000
        rows, columns = np.nonzero((image(members["mask.png"]) > 0) & (depth > 0))
        z = depth[rows, columns]
        seen = np.stack([(columns - k["cx"]) / k["fx"] * z, (rows - k["cy"]) / k["fy"] * z, z])
        world = made.camera.position + (made.camera.axes @ seen).T
        vertices = made.things[0].mesh.vertices
        margin = 0.02 + 3 * 0.003 * z.max() ** 2
        inside = (world > vertices.min(axis=0) - margin) & (world < vertices.max(axis=0) + margin)
        # What misses it are readings of the background in pixels on the outline.
        assert inside.all(axis=1).mean() > 0.75, index


def test_mask_is_where_the_object_projects_to(scenes: list[dict[str, bytes]]) -> None:
    checked = 0
    for index, members in enumerate(scenes):
        made, k = setting(1, index), json.loads(members["meta.json"])["intrinsics"]
        x, y, z = ((made.things[0].mesh.vertices - made.camera.position) @ made.camera.axes).T
        outline = np.stack([k["fx"] * x / z + k["cx"], k["fy"] * y / z + k["cy"]])
        if made.clutter or outline.min() < 0 or outline.max() > SIZE - 1:
            continue  # partly hidden, or cut by the frame
        rows, columns = np.nonzero(image(members["mask.png"]))
        found = [columns.min(), rows.min(), columns.max(), rows.max()]
        np.testing.assert_allclose(found, [*outline.min(axis=1), *outline.max(axis=1)], atol=1.6)
        checked += 1
    assert checked >= 3


def test_the_mask_of_classes_is_the_object_with_its_class(scenes: list[dict[str, bytes]]) -> None:
    for members in scenes:
        expected = (image(members["mask.png"]) > 0) * (1 + int(members["label.txt"]))
        np.testing.assert_array_equal(image(members["classes.png"]), expected)


def test_size_changes_the_pictures_and_nothing_else(scenes: list[dict[str, bytes]]) -> None:
    small = scene(1, 4, 32)
    assert image(small["depth.png"]).shape == (32, 32)
    for name in ("label.txt", "text.txt", "audio.wav"):
        assert small[name] == scenes[4][name]


def test_classes_are_equally_likely() -> None:
    counts = np.bincount([setting(3, index).label for index in range(400)], minlength=len(CLASSES))
    assert len(counts) == len(CLASSES) >= 12
    assert counts.min() > 10  # of 25 expected, standard deviation 5
    assert counts.max() < 45


def test_captions_name_class_colour_and_material(scenes: list[dict[str, bytes]]) -> None:
    for members in scenes:
        lines = members["text.txt"].decode().splitlines()
        name, material = CLASSES[int(members["label.txt"])], json.loads(members["meta.json"])["material"]
        assert len(lines) == 3
        assert all(f" {name} " in line for line in lines)
        assert material in lines[0]
        assert material in lines[1]
        assert lines[0].split()[0] == ("an" if lines[0].split()[1][0] in "aeiou" else "a")


def test_every_class_and_material_has_its_sound() -> None:
    assert set(tabletop_sound.SERIES) == set(CLASSES)
    assert set(tabletop_sound.MATERIALS) == set(MATERIALS)
    assert len(set(tabletop_sound.SERIES.values())) == len(CLASSES)


def test_sound_file_is_what_the_units_say(scenes: list[dict[str, bytes]]) -> None:
    with wave.open(io.BytesIO(scenes[0]["audio.wav"])) as reader:
        assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (16_000, 1, 2)
        assert reader.getnframes() == 8_000
        samples = np.frombuffer(reader.readframes(8_000), "<i2")
    assert 0.29 < np.abs(samples / 32768).max() < 0.91


def ringing(material: str) -> float:
    """The median over 20 knocks of the share of energy that comes later than 20 ms after the loudest moment."""
    shares = []
    for seed in range(20):
        energy = tabletop_sound.impact("mug", material, 0.2, np.random.default_rng(seed)) ** 2
        shares.append(energy[energy.argmax() + 320 :].sum() / energy.sum())
    return float(np.median(shares))


def test_metal_rings_longer_than_ceramic_than_wood_than_rubber() -> None:
    shares = [ringing(material) for material in ("metal", "ceramic", "wood", "rubber")]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.6
    assert shares[2] < 0.35


def test_a_large_body_sounds_lower() -> None:
    def pitch(size: float) -> float:
        spectrum = np.abs(np.fft.rfft(tabletop_sound.impact("bottle", "glass", size, np.random.default_rng(0)))) ** 2
        return float(spectrum @ np.fft.rfftfreq(8_000, 1 / 16_000) / spectrum.sum())

    assert pitch(0.4) < 0.8 * pitch(0.15)


@pytest.mark.parametrize("builder", tabletop_shapes.BUILDERS, ids=lambda builder: builder.__name__)
def test_shapes_are_sound_meshes_that_come_to_rest(builder) -> None:  # type: ignore[no-untyped-def]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mesh = builder(rng)
        assert mesh.triangles.max() < len(mesh.vertices)
        assert 0.5 < np.ptp(mesh.vertices, axis=0).max() < 1.3
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-4)
        rested, _ = tabletop_shapes.settle(mesh, rng, upright=0.0)
        assert abs(rested.vertices[:, 2].min()) < 1e-5


def test_settle_finds_the_rests_of_a_slab() -> None:
    """A slab rolled about one axis rests on either of four faces, so always at a multiple of 90 degrees."""
    slab = tabletop_shapes.block([-0.5, -0.4, -0.1], [0.5, 0.4, 0.1])
    angles = [tabletop_shapes.settle(slab, np.random.default_rng(seed), upright=0.0)[1] for seed in range(40)]
    assert {round(angle) for angle in angles} == {0, 90, 180, 270}


def test_missing_open3d_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"libGL\.so\.1.*open3d-cpu.*libgl1 libegl1 libx11-6"):
        import_open3d()
