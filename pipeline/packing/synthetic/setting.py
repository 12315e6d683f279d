"""The content of a synthetic scene, and its random generation: things on a table, a camera, a lamp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.packing.synthetic import shapes
from pipeline.packing.synthetic.shapes import Mesh, Rng

CLASSES: tuple[str, ...] = tuple(builder.__name__ for builder in shapes.BUILDERS)
FLAT = 3  # the last things of every scene: table, floor and wall


@dataclass(frozen=True)
class Material:
    """Appearance of a material.

    Attributes:
        specular: Strength of the highlight.
        gloss: Exponent of the highlight.
        mirror: Fraction of light that it reflects.
        clear: Fraction of light that it transmits.
        lost: Fraction of depth values that a sensor fails to measure on it.
    """

    specular: float
    gloss: float
    mirror: float
    clear: float = 0.0
    lost: float = 0.0


MATERIALS: dict[str, Material] = {
    "metal": Material(specular=0.9, gloss=50, mirror=0.65, lost=0.08),
    "wood": Material(specular=0.06, gloss=8, mirror=0.0),
    "plastic": Material(specular=0.35, gloss=30, mirror=0.04),
    "glass": Material(specular=0.9, gloss=120, mirror=0.15, clear=0.45, lost=0.25),
    "ceramic": Material(specular=0.55, gloss=80, mirror=0.08),
    "rubber": Material(specular=0.04, gloss=5, mirror=0.0),
}

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.75, 0.12, 0.1), "orange": (0.9, 0.45, 0.1), "yellow": (0.9, 0.78, 0.15), "green": (0.2, 0.55, 0.2),
    "turquoise": (0.15, 0.65, 0.65), "blue": (0.15, 0.28, 0.7), "purple": (0.45, 0.2, 0.6), "pink": (0.9, 0.5, 0.65),
    "brown": (0.45, 0.28, 0.15), "white": (0.9, 0.9, 0.88), "grey": (0.5, 0.5, 0.5), "black": (0.12, 0.12, 0.12),
}  # fmt: skip
PATTERNS = ("plain", "striped", "checked", "speckled", "grained")


@dataclass(frozen=True)
class Look:
    """The surface of a thing: a solid texture that blends two colours.

    Attributes:
        colour: Name of the colour.
        pattern: Name of the pattern.
        material: Name of the material.
        first: Linear RGB `[3, 1]` in [0, 1].
        second: Linear RGB `[3, 1]` in [0, 1].
        frame: `[3, 4]`, maps metres to texture coordinates.
    """

    colour: str
    pattern: str
    material: str
    first: np.ndarray
    second: np.ndarray
    frame: np.ndarray


@dataclass(frozen=True)
class Thing:
    """A solid in the scene, in metres, with its surface."""

    mesh: Mesh
    look: Look


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: `[3]` in metres.
        axes: `[3, 3]`; the columns are right, down and forward.
        focal: Focal length in image widths.
    """

    position: np.ndarray
    axes: np.ndarray
    focal: float


@dataclass(frozen=True)
class Setting:
    """The description of a scene; z is up, units are metres.

    Attributes:
        label: Class index.
        size: Largest extent of the object.
        angle: Roll of the object in degrees.
        things: The object, `clutter` small things around it, then table, floor and wall.
        clutter: Number of small things.
        camera: The camera.
        light: Unit vector towards the lamp.
        ambient: Ambient light.
    """

    label: int
    size: float
    angle: float
    things: list[Thing]
    clutter: int
    camera: Camera
    light: np.ndarray
    ambient: float


def draw(rng: Rng) -> Setting:
    """Draw a random scene: an object of 0.12 to 0.45 m in the middle of a table, in a room."""
    label = int(rng.integers(len(CLASSES)))
    size = float(rng.uniform(0.12, 0.45))
    built = shapes.BUILDERS[label](rng).scaled(rng.uniform(0.85, 1.15, 3))
    resting, angle = shapes.settle(built, rng, upright=0.7)
    extent = float(np.ptp(built.vertices, axis=0).max())
    mesh = resting.scaled([size / extent] * 3).rotated(shapes.rotation(2, rng.uniform(0, 2 * np.pi)))
    radius = float(np.linalg.norm(mesh.vertices[:, :2], axis=1).max())

    clutter = int(rng.integers(4))
    things = [Thing(mesh, _look(rng, size))] + [_pebble(rng, size, radius) for _ in range(clutter)]
    heading = rng.uniform(0, 2 * np.pi)
    things += _room(rng, size, radius, shapes.rotation(2, heading + rng.uniform(-0.6, 0.6)))

    bearing, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1.3)
    light = np.array([np.cos(height) * np.cos(bearing), np.cos(height) * np.sin(bearing), np.sin(height)])
    camera = _camera(rng, mesh, heading)
    return Setting(label, size, angle, things, clutter, camera, light, float(rng.uniform(0.25, 0.5)))


def _camera(rng: Rng, mesh: Mesh, heading: float) -> Camera:
    """A camera that looks along `heading`, 12 to 60 degrees downwards, approximately at the centre of a mesh."""
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    reach, focal, down = np.linalg.norm(high - low) / 2, rng.uniform(0.9, 1.4), np.radians(rng.uniform(12, 60))
    forward = np.array([np.cos(down) * np.cos(heading), np.cos(down) * np.sin(heading), -np.sin(down)])
    right = np.array([np.sin(heading), -np.cos(heading), 0])
    axes = np.stack([right, np.cross(forward, right), forward], axis=1) @ shapes.rotation(2, rng.normal(0, 0.06))
    fill = rng.uniform(0.6, 0.95)
    target = (low + high) / 2 + axes[:, :2] @ rng.uniform(-0.2, 0.2, 2) * reach
    return Camera(target - forward * 2 * reach * focal / fill, axes, focal)


def _pebble(rng: Rng, size: float, radius: float) -> Thing:
    """A small thing at a random position around the object."""
    own = size * rng.uniform(0.12, 0.4)
    mesh, _ = shapes.settle(shapes.pebble(rng).scaled([own] * 3), rng, upright=0.8)
    away, bearing = radius + own / 2 + rng.uniform(0, 0.6) * size, rng.uniform(0, 2 * np.pi)
    mesh = mesh.rotated(shapes.rotation(2, rng.uniform(0, 2 * np.pi)))
    return Thing(mesh.shifted([away * np.cos(bearing), away * np.sin(bearing), 0]), _look(rng, own))


def _room(rng: Rng, size: float, radius: float, turn: np.ndarray) -> list[Thing]:
    """Table, floor and wall around the object. The wall is in the direction of the first column of `turn`."""
    ahead, behind, left, right = radius + size * rng.uniform(0.6, 4.0, 4)
    wall = ahead + rng.uniform(0, 1.0)
    table = shapes.block([-behind, -left, -0.04], [ahead, right, 0])
    # Wide enough for every camera. A closed room would make ray casting a third slower.
    floor = shapes.quads([[(-99, -99, -0.75), (wall, -99, -0.75), (wall, 99, -0.75), (-99, 99, -0.75)]])
    front = shapes.quads([[(wall, -99, -1), (wall, -99, 49), (wall, 99, 49), (wall, 99, -1)]])
    meshes = [mesh.rotated(turn) for mesh in (table, floor, front)]
    return [Thing(mesh, _look(rng, scale, still=True)) for mesh, scale in zip(meshes, (0.3, 0.6, 1.0), strict=True)]


def _look(rng: Rng, size: float, still: bool = False) -> Look:
    """Draw a surface. Those with `still`, which surround the object, are matt with two similar colours."""
    material = _pick(rng, ("wood", "plastic", "ceramic") if still else tuple(MATERIALS))
    colour, other = _pick(rng, tuple(COLOURS)), _pick(rng, tuple(COLOURS))
    if still and rng.random() < 0.6:
        colour = _pick(rng, ("white", "grey", "brown"))
    pattern = "grained" if material == "wood" else "plain" if rng.random() < 0.55 else _pick(rng, PATTERNS[:4])
    first, second = np.clip(np.array([COLOURS[colour], COLOURS[other]]) + rng.normal(0, 0.04, (2, 3)), 0.02, 1) ** 2.2
    if still or pattern == "grained":
        second = first * rng.uniform(0.65, 0.9)
    turn = shapes.rotation(0, rng.uniform(0, 6.3)) @ shapes.rotation(2, rng.uniform(0, 6.3))
    frame = np.column_stack([turn * rng.uniform(2, 6) / size, rng.uniform(0, 9, 3)])
    parts = (first[:, None], second[:, None], frame)
    return Look(colour, pattern, material, *(part.astype(np.float32) for part in parts))


def _pick(rng: Rng, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]
