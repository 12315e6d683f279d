"""Render a synthetic scene as a photo: ray casting, textures, lighting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from modalities.open3d_loader import import_open3d
from pipeline.packing.synthetic import shapes
from pipeline.packing.synthetic.setting import FLAT, MATERIALS, Camera, Look, Setting, Thing
from pipeline.packing.synthetic.shapes import Mesh, Rng

OFFSETS = ((0.25, 0.3), (0.75, 0.7))  # positions of the rays within a pixel
RAYS = len(OFFSETS)


@dataclass(frozen=True)
class View:
    """What the rays of an image hit: RAYS per pixel, in row-major order, float32. Vectors are `[3, N]`.

    Attributes:
        depth: `[N]`, metres along the optical axis.
        thing: `[N]`, index of the thing.
        position: Hit point in metres.
        facing: Normal of the triangle.
        normal: Normal of the smooth surface.
        eye: Direction to the camera.
    """

    depth: np.ndarray
    thing: np.ndarray
    position: np.ndarray
    facing: np.ndarray
    normal: np.ndarray
    eye: np.ndarray


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
    through = np.ones((size, size, RAYS, 3), np.float32)  # z = 1 makes the distance along a ray its depth
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


# Vectors are [3, N], since numpy is several times faster along long rows.


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products `[N]` of vectors `[3, N]`."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(dot(vectors, vectors))


def _toward(vectors: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Flip vectors that point away from the goal."""
    return vectors * np.copysign(np.float32(1), dot(vectors, goal))


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
    """Linear radiance `[3, N]` of the rays of a view: ambient, diffuse with shadow, highlight, reflection."""
    albedo = np.empty_like(view.position)
    for number, thing in enumerate(setting.things):
        rays = np.flatnonzero(view.thing == number)
        albedo[:, rays] = texture(thing.look, view.position[:, rays])
    materials = [MATERIALS[thing.look.material] for thing in setting.things]
    table = np.array([(m.specular, m.gloss, m.mirror) for m in materials], np.float32)
    specular, gloss, mirror = table.T[:, view.thing]

    # The rays of a pixel use different points of the lamp, for soft shadows.
    lamp = _unit(setting.light[:, None] + rng.normal(0, 0.04, (3, RAYS))).astype(np.float32)
    lamp = np.tile(lamp, len(view.depth) // RAYS)
    lit = np.maximum(dot(view.normal, lamp), 0)
    lit[_shadowed(setting, view, lamp)] = 0

    half = np.maximum(dot(view.normal, _unit(lamp + view.eye)), 0)
    shine = (lit > 0) * specular * half**gloss
    cosine = np.maximum(dot(view.normal, view.eye), 0)
    upward = 2 * cosine * view.normal[2] - view.eye[2]  # of the reflected ray: bright above, dark below
    reflect = mirror + 0.5 * specular * (1 - cosine) ** 4
    mirrored = reflect * np.clip(0.45 + 0.75 * upward, 0.08, 1.1) + shine
    ambient = setting.ambient * (0.65 + 0.35 * view.normal[2])
    return albedo * ((1 - reflect) * (ambient + lit)) + np.where(mirror > 0.5, albedo + 0.1, 1) * mirrored


def _shadowed(setting: Setting, view: View, lamp: np.ndarray) -> np.ndarray:
    """Where the object, the clutter or the table hides the lamp: bool `[N]`."""
    casters = shapes.join([thing.mesh for thing in setting.things[: 1 - FLAT]])
    back = np.empty((len(view.depth), 6), np.float32)
    back[:, :3], back[:, 3:] = (view.position + np.float32(1e-3) * view.facing).T, lamp.T
    return _raycaster(casters).test_occlusions(_tensor(back), nthreads=1).numpy()


def photograph(setting: Setting, view: View, size: int, rng: Rng) -> np.ndarray:
    """Render the scene as a camera would record it: uint8 sRGB `[size, size, 3]`."""
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
