"""Paired synthetic scenes: an object on a table, as RGB, depth, mask, captions and the sound of a knock on it.

From top to bottom: what a scene holds, how one is invented, how it looks to a camera and to a depth sensor, how it
reads in words. The shapes and the sound have files of their own; the rest shares `Setting` and `View` and stays here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from modalities.open3d_loader import import_open3d
from pipeline import tabletop_shapes as shapes
from pipeline.tabletop_shapes import Mesh, Rng
from pipeline.tabletop_sound import impact, wav

CLASSES: tuple[str, ...] = tuple(builder.__name__ for builder in shapes.BUILDERS)
FIELD_UNITS: dict[str, str] = {
    "rgb.jpg": "uint8 sRGB",
    "depth.png": "uint16 millimetres along the optical axis, 0 = no reading",
    "mask.png": "uint8, 255 = the object, 0 = everything else",
    "classes.png": "uint8, 1 + class index on the object, 0 = everything else",
    "audio.wav": "16 kHz mono, 16 bit",
    "text.txt": "one caption a line, UTF-8",
    "label.txt": "class index",
    "meta.json": "intrinsics in pixels; the centre of the upper left pixel is (0, 0)",
}


@dataclass(frozen=True)
class Material:
    """How a substance looks: strength and exponent of its highlight, share of light that it mirrors and lets through.

    lost: share of depth readings that a sensor loses on it.
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
OFFSETS = ((0.25, 0.3), (0.75, 0.7))  # of the rays within a pixel
RAYS = len(OFFSETS)
FLAT = 3  # things at the end of every scene: table, floor and wall
FAR = 4.0  # metres; the depth sensor reads nothing beyond
BASELINE = 0.05  # metres between its lens and its projector
SYMMETRIC = ("ball", "box", "cylinder", "ring", "dumbbell")  # no telling which way up


@dataclass(frozen=True)
class Look:
    """The surface of a thing: a solid texture between two colours.

    first, second: linear RGB `[3, 1]` in [0, 1]. frame: `[3, 4]`, metres to the texture's own coordinates.
    """

    colour: str
    pattern: str
    material: str
    first: np.ndarray
    second: np.ndarray
    frame: np.ndarray


@dataclass(frozen=True)
class Thing:
    """A solid in the scene, in metres, and what it looks like."""

    mesh: Mesh
    look: Look


@dataclass(frozen=True)
class Camera:
    """position `[3]` in metres; axes `[3, 3]`, columns right, down, forward; focal length in image widths."""

    position: np.ndarray
    axes: np.ndarray
    focal: float


@dataclass(frozen=True)
class Setting:
    """A scene before it is seen, z up, in metres.

    size: the object's largest extent. angle: how far it is rolled over, in degrees. things: the object, its `clutter`
    small neighbours, then table, floor and wall. light: unit direction to the lamp. ambient: light from all around.
    """

    label: int
    size: float
    angle: float
    things: list[Thing]
    clutter: int
    camera: Camera
    light: np.ndarray
    ambient: float


@dataclass(frozen=True)
class View:
    """What the rays of an image met: RAYS a pixel, pixels row by row, float32; vectors are `[3, N]`.

    depth: `[N]`, metres along the optical axis. thing: `[N]`, which of the setting's things. position: in metres.
    facing, normal: of the triangle, and of the smooth surface that it stands for. eye: direction to the camera.
    """

    depth: np.ndarray
    thing: np.ndarray
    position: np.ndarray
    facing: np.ndarray
    normal: np.ndarray
    eye: np.ndarray


def scene(seed: int, index: int, size: int = 96) -> dict[str, bytes]:
    """Render sample `index` of the data set `seed`, `size` x `size` pixels: member name -> bytes, as in `FIELD_UNITS`.

    A pure function of its arguments. Classes are equally likely; colour, material and pose say nothing about them.
    Raises ImportError where Open3D does not load and ValueError for a negative seed or index.
    """
    layout, sensor, knock = map(np.random.default_rng, np.random.SeedSequence([seed, index]).spawn(3))
    setting = draw(layout)
    view = trace(setting.things, setting.camera, size)
    look = setting.things[0].look
    focal, centre = setting.camera.focal * size, (size - 1) / 2
    meta = {
        "group": f"tabletop-{seed}-{index}",
        "index": index,
        "source": "tabletop",
        "material": look.material,
        "intrinsics": {"fx": focal, "fy": focal, "cx": centre, "cy": centre, "width": size, "height": size},
    }
    mask = ((view.thing == 0).reshape(size, size, RAYS).mean(axis=2) >= 0.5).astype(np.uint8)
    return {
        "rgb.jpg": _encode(".jpg", photograph(setting, view, size, sensor)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]),
        "depth.png": _encode(".png", sense_depth(setting, view, size, sensor)),
        "mask.png": _encode(".png", mask * 255),
        "classes.png": _encode(".png", mask * (1 + setting.label)),
        "audio.wav": wav(impact(CLASSES[setting.label], look.material, setting.size, knock)),
        "text.txt": "\n".join(captions(setting)).encode(),
        "label.txt": str(setting.label).encode(),
        "meta.json": json.dumps(meta).encode(),
    }


def _encode(kind: str, image: np.ndarray, options: list[int] | None = None) -> bytes:
    return cv2.imencode(kind, image, options or [])[1].tobytes()


# What stands where.


def draw(rng: Rng) -> Setting:
    """Invent a scene: an object of extent 0.12 to 0.45 m at the origin of a table, in a room."""
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
    """A camera that looks along `heading`, 12 to 60 degrees down, at about the middle of a mesh."""
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    reach, focal, down = np.linalg.norm(high - low) / 2, rng.uniform(0.9, 1.4), np.radians(rng.uniform(12, 60))
    forward = np.array([np.cos(down) * np.cos(heading), np.cos(down) * np.sin(heading), -np.sin(down)])
    right = np.array([np.sin(heading), -np.cos(heading), 0])
    axes = np.stack([right, np.cross(forward, right), forward], axis=1) @ shapes.rotation(2, rng.normal(0, 0.06))
    fill = rng.uniform(0.6, 0.95)
    target = (low + high) / 2 + axes[:, :2] @ rng.uniform(-0.2, 0.2, 2) * reach
    return Camera(target - forward * 2 * reach * focal / fill, axes, focal)


def _pebble(rng: Rng, size: float, radius: float) -> Thing:
    """A small thing beside the object, anywhere around it."""
    own = size * rng.uniform(0.12, 0.4)
    mesh, _ = shapes.settle(shapes.pebble(rng).scaled([own] * 3), rng, upright=0.8)
    away, bearing = radius + own / 2 + rng.uniform(0, 0.6) * size, rng.uniform(0, 2 * np.pi)
    mesh = mesh.rotated(shapes.rotation(2, rng.uniform(0, 2 * np.pi)))
    return Thing(mesh.shifted([away * np.cos(bearing), away * np.sin(bearing), 0]), _look(rng, own))


def _room(rng: Rng, size: float, radius: float, turn: np.ndarray) -> list[Thing]:
    """Table, floor and wall about the object; the wall lies ahead, along the first column of `turn`."""
    ahead, behind, left, right = radius + size * rng.uniform(0.6, 4.0, 4)
    wall = ahead + rng.uniform(0, 1.0)
    table = shapes.block([-behind, -left, -0.04], [ahead, right, 0])
    # So wide that no camera sees past them; a closed room would cost the ray caster a third more.
    floor = shapes.quads([[(-99, -99, -0.75), (wall, -99, -0.75), (wall, 99, -0.75), (-99, 99, -0.75)]])
    front = shapes.quads([[(wall, -99, -1), (wall, -99, 49), (wall, 99, 49), (wall, 99, -1)]])
    meshes = [mesh.rotated(turn) for mesh in (table, floor, front)]
    return [Thing(mesh, _look(rng, scale, still=True)) for mesh, scale in zip(meshes, (0.3, 0.6, 1.0), strict=True)]


def _look(rng: Rng, size: float, still: bool = False) -> Look:
    """Draw a surface. `still` ones, which surround the object, are matt and their two colours are close."""
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


# How it looks.


@cache
def _open3d() -> ModuleType:
    return import_open3d()


def _raycaster(mesh: Mesh) -> Any:
    caster = _open3d().t.geometry.RaycastingScene(nthreads=1)
    caster.add_triangles(_tensor(mesh.vertices), _tensor(mesh.triangles))
    return caster


def _tensor(array: np.ndarray) -> Any:
    return _open3d().core.Tensor.from_numpy(np.ascontiguousarray(array))


def trace(things: list[Thing], camera: Camera, size: int) -> View:
    """Cast the rays of a square image of `size` x `size` pixels, `[size, size, RAYS]`, flattened."""
    mesh = shapes.join([thing.mesh for thing in things])
    owner = np.repeat(np.arange(len(things)), [len(thing.mesh.triangles) for thing in things])
    row, column = np.indices((size, size))
    through = np.ones((size, size, RAYS, 3), np.float32)  # z = 1, so that the distance along a ray is its depth
    for ray, (x, y) in enumerate(OFFSETS):
        through[:, :, ray, 0] = ((column + x) / size - 0.5) / camera.focal
        through[:, :, ray, 1] = ((row + y) / size - 0.5) / camera.focal
    rays = np.empty((size * size * RAYS, 6), np.float32)
    rays[:, :3] = camera.position
    np.matmul(through.reshape(-1, 3), camera.axes.T.astype(np.float32), out=rays[:, 3:])
    met = {key: value.numpy() for key, value in _raycaster(mesh).cast_rays(_tensor(rays), nthreads=1).items()}

    along, depth, triangle = np.ascontiguousarray(rays[:, 3:].T), met["t_hit"], met["primitive_ids"]
    eye = -_unit(along)
    facing = _toward(np.ascontiguousarray(met["primitive_normals"].T), eye)
    normal = facing.copy()
    curved = np.flatnonzero(triangle < owner.searchsorted(len(things) - FLAT))
    u, v = met["primitive_uvs"][curved].T
    a, b, c = (mesh.normals[corner].T for corner in mesh.triangles[triangle[curved]].T)
    normal[:, curved] = _toward(_unit(a + u * (b - a) + v * (c - a)), facing[:, curved])
    position = camera.position.astype(np.float32)[:, None] + depth * along
    return View(depth, owner[triangle], position, facing, normal, eye)


# Vectors are [3, N]: numpy is several times faster over long rows.


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(_dot(vectors, vectors))


def _toward(vectors: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Turn vectors round where they point away from their goal."""
    return vectors * np.copysign(np.float32(1), _dot(vectors, goal))


def texture(look: Look, position: np.ndarray) -> np.ndarray:
    """The linear colour `[3, N]` of a surface at positions `[3, N]`."""
    x, y, z = look.frame[:, :3] @ position + look.frame[:, 3:]
    mottle = np.sin(1.7 * x + 2 * np.sin(y)) * np.sin(1.3 * z + 2 * np.sin(x))
    match look.pattern:
        case "striped":
            share = np.sin(6 * x) > 0.2
        case "checked":
            share = (np.sin(4 * x) > 0) ^ (np.sin(4 * y) > 0) ^ (np.sin(4 * z) > 0)
        case "speckled":
            share = np.sin(9 * x + mottle) * np.sin(9 * y - mottle) * np.sin(9 * z) > 0.25
        case "grained":
            share = 0.5 + 0.5 * np.sin(14 * np.hypot(x, y) + 3 * mottle + np.sin(2 * z))
        case _:
            share = 0.15 + 0.15 * mottle
    return look.first + (look.second - look.first) * share.astype(np.float32)


def shade(setting: Setting, view: View, rng: Rng) -> np.ndarray:
    """The linear light `[3, N]` that a view's rays bring: ambient, diffuse with shadow, highlight, reflection."""
    albedo = np.empty_like(view.position)
    for number, thing in enumerate(setting.things):
        rays = np.flatnonzero(view.thing == number)
        albedo[:, rays] = texture(thing.look, view.position[:, rays])
    materials = [MATERIALS[thing.look.material] for thing in setting.things]
    table = np.array([(m.specular, m.gloss, m.mirror) for m in materials], np.float32)
    specular, gloss, mirror = table.T[:, view.thing]

    # Each ray of a pixel sees another point of the lamp, which softens the shadow.
    lamp = _unit(setting.light[:, None] + rng.normal(0, 0.04, (3, RAYS))).astype(np.float32)
    lamp = np.tile(lamp, len(view.depth) // RAYS)
    lit = np.maximum(_dot(view.normal, lamp), 0)
    lit[_shadowed(setting, view, lamp)] = 0

    half = np.maximum(_dot(view.normal, _unit(lamp + view.eye)), 0)
    shine = (lit > 0) * specular * half**gloss
    cosine = np.maximum(_dot(view.normal, view.eye), 0)
    upward = 2 * cosine * view.normal[2] - view.eye[2]  # of the mirrored ray: bright above, dark below
    reflect = mirror + 0.5 * specular * (1 - cosine) ** 4
    mirrored = reflect * np.clip(0.45 + 0.75 * upward, 0.08, 1.1) + shine
    ambient = setting.ambient * (0.65 + 0.35 * view.normal[2])
    return albedo * ((1 - reflect) * (ambient + lit)) + np.where(mirror > 0.5, albedo + 0.1, 1) * mirrored


def _shadowed(setting: Setting, view: View, lamp: np.ndarray) -> np.ndarray:
    """Where the object, its clutter or the table hides the lamp: bool `[N]`."""
    casters = shapes.join([thing.mesh for thing in setting.things[: 1 - FLAT]])
    back = np.empty((len(view.depth), 6), np.float32)
    back[:, :3], back[:, 3:] = (view.position + np.float32(1e-3) * view.facing).T, lamp.T
    return _raycaster(casters).test_occlusions(_tensor(back), nthreads=1).numpy()


def photograph(setting: Setting, view: View, size: int, rng: Rng) -> np.ndarray:
    """The scene as a camera would record it: uint8 sRGB `[size, size, 3]`."""
    look = setting.things[0].look
    light = shade(setting, view, rng)
    clear = MATERIALS[look.material].clear
    if clear:
        rest = replace(setting, things=setting.things[1:])
        beyond = shade(rest, trace(rest.things, setting.camera, size), rng)
        through = light + clear * (beyond * (0.3 + 0.7 * look.first) - light)
        light = np.where(view.thing == 0, through, light)
    image = light.reshape(3, size, size, RAYS).mean(axis=3).transpose(1, 2, 0)
    image = image * rng.normal(1, 0.04, 3) * rng.uniform(0.75, 1.1)  # white balance and exposure
    image = np.clip(image, 0, 1) ** (1 / 2.2) + rng.normal(0, rng.uniform(0.005, 0.02), image.shape)
    return np.clip(255 * image, 0, 255).astype(np.uint8)


def sense_depth(setting: Setting, view: View, size: int, rng: Rng) -> np.ndarray:
    """The depth as a sensor would measure it: uint16 millimetres `[size, size]`, 0 where it reads nothing."""
    pick = np.arange(size * size) * RAYS + rng.integers(RAYS, size=size * size)
    depth = view.depth[pick].reshape(size, size)
    cosine = _dot(view.facing[:, pick], view.eye[:, pick]).reshape(size, size)
    fickle = np.array([MATERIALS[thing.look.material].lost for thing in setting.things])
    fickle = fickle[view.thing[pick]].reshape(size, size)

    step = np.maximum(*(np.abs(cv2.Sobel(depth, cv2.CV_32F, *way)) for way in ((1, 0), (0, 1)))) / depth
    blobs = cv2.resize(rng.random((9, 9)), (size, size), interpolation=cv2.INTER_CUBIC)
    lost = (depth > FAR) | (blobs > 0.97 - fickle)
    lost |= rng.random(depth.shape) < 0.01 + fickle + 0.7 * (cosine < 0.15) + 0.5 * (step > 0.35)
    # The projector stands to the left of the lens: what is near hides from it a strip of what is far.
    disparity = BASELINE * setting.camera.focal * size / depth
    for shift in range(1, 1 + int(np.ptp(disparity))):
        lost[:, shift:] |= disparity[:, :-shift] - disparity[:, shift:] > shift

    noisy = depth + (0.001 + 0.003 * depth**2) * rng.standard_normal(depth.shape)
    return np.where(lost, 0, np.rint(1000 * noisy)).astype(np.uint16)


# How it reads.


def captions(setting: Setting) -> list[str]:
    """Three lines that tell a scene in words."""
    look, name = setting.things[0].look, CLASSES[setting.label]
    table = setting.things[-FLAT].look
    tilt = min(setting.angle, 360 - setting.angle)
    upright = tilt < 20 or (tilt > 160 and name in SYMMETRIC)
    pose = "resting" if name == "ball" else "standing" if upright else "upside down" if tilt > 160 else "lying"
    size = "small" if setting.size < 0.22 else "large" if setting.size > 0.35 else "medium-sized"
    side = "left" if setting.light @ setting.camera.axes[:, 0] < 0 else "right"
    count = ("nothing", "one small thing", "two small things", "three small things")
    return [
        f"{_article(look.colour)} {look.material} {name} {pose} on {_article(table.colour)} table",
        f"{_article(size)} {look.pattern} {name} made of {look.material}",
        f"{_article(look.colour)} {name} lit from the {side}, with {count[setting.clutter]} beside it",
    ]


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
