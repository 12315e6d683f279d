"""The solids of the tabletop scenes: one mesh builder per class, z-up, about one unit in size, random proportions.

More than 350 lines, since each of the 16 classes has its own builder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Rng = np.random.Generator
Point = tuple[float, float]


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: `[V, 3]`, float32.
        normals: Unit normals of the vertices, `[V, 3]`, float32.
        triangles: Vertex indices, `[T, 3]`, uint32.
    """

    vertices: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray

    def scaled(self, factors: Sequence[float] | np.ndarray) -> Mesh:
        """Scale along x, y and z."""
        factors = np.asarray(factors, np.float32)
        normals = self.normals / factors
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return Mesh(self.vertices * factors, normals, self.triangles)

    def rotated(self, rotation: np.ndarray) -> Mesh:
        """Rotate by a matrix `[3, 3]`."""
        turn = rotation.T.astype(np.float32)
        return Mesh(self.vertices @ turn, self.normals @ turn, self.triangles)

    def shifted(self, offset: Sequence[float] | np.ndarray) -> Mesh:
        """Translate by `[3]`."""
        return Mesh(self.vertices + np.asarray(offset, np.float32), self.normals, self.triangles)


def join(meshes: Sequence[Mesh]) -> Mesh:
    """Join meshes, with triangles in the same order."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.triangles + np.uint32(start) for mesh, start in zip(meshes, starts, strict=True)]),
    )


def rotation(axis: int, angle: float) -> np.ndarray:
    """The matrix `[3, 3]` that rotates column vectors about a coordinate axis.

    Args:
        axis: 0 for x, 1 for y, 2 for z.
        angle: In radians.
    """
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[j, i], matrix[i, j] = np.sin(angle), -np.sin(angle)
    return matrix


def cross_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross product of vectors `[N, 3]`; several times faster than `np.cross` for few vectors."""
    return a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]


# Basic surfaces. Normals may point in either direction: the renderer flips them towards the camera.


def quads(corners: Sequence[Sequence[Sequence[float]]] | np.ndarray) -> Mesh:
    """Flat faces from corners `[Q, 4, 3]` in order around each face; a triangle repeats its last corner."""
    faces = np.asarray(corners, np.float32)
    normals = cross_product(faces[:, 2] - faces[:, 0], faces[:, 3] - faces[:, 1])  # of the diagonals
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    triangles = 4 * np.arange(len(faces))[:, None, None] + np.array([[0, 1, 2], [0, 2, 3]])
    return Mesh(faces.reshape(-1, 3), np.repeat(normals, 4, axis=0), triangles.reshape(-1, 3).astype(np.uint32))


def grid(points: np.ndarray, normals: np.ndarray) -> Mesh:
    """A smooth surface from a grid of points and normals, both `[M, N, 3]`."""
    rows, columns = points.shape[:2]
    first = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1, 1)
    triangles = np.concatenate([first + np.array(corners) for corners in ((0, 1, columns), (1, columns + 1, columns))])
    return Mesh(
        points.reshape(-1, 3).astype(np.float32),
        normals.reshape(-1, 3).astype(np.float32),
        triangles.astype(np.uint32),
    )


def lathe(*profiles: Sequence[Point] | np.ndarray, segments: int = 32) -> Mesh:
    """Rotate profiles, each a smooth line of `(radius, z)`, about the z axis; two profiles meet in a sharp edge."""
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    around = np.stack([np.cos(angle), np.sin(angle), np.ones_like(angle)], axis=1)
    parts = []
    for profile in profiles:
        line = np.asarray(profile, float)
        tangent = np.gradient(line, axis=0)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        normal = np.stack([tangent[:, 1], tangent[:, 1], -tangent[:, 0]], axis=1)
        parts.append(grid(line[:, None, [0, 0, 1]] * around, normal[:, None] * around))
    return join(parts)


def tube(path: np.ndarray, radius: float, segments: int = 10) -> Mesh:
    """A round tube along `path [P, 3]`, which lies in a plane of constant y."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    aside = np.cross(tangent, [0.0, 1.0, 0.0])[:, None]
    angle = np.linspace(0, 2 * np.pi, segments + 1)[:, None]
    normals = np.cos(angle) * aside + np.sin(angle) * np.array([0.0, 1.0, 0.0])
    return grid(path[:, None] + radius * normals, normals)


def block(low: Sequence[float], high: Sequence[float], lean: Point = (0, 0)) -> Mesh:
    """A box between two opposite corners; `lean` shifts its lower face along x and y."""
    corners = np.array([[(low, high)[k >> axis & 1][axis] for axis in range(3)] for k in range(8)], float)
    corners[:4, :2] += lean
    return quads(corners[[[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]]])


def arc(radius: float, start: float, stop: float, points: int = 14, z: float = 0.0, r: float = 0.0) -> np.ndarray:
    """A circular profile about the centre `(r, z)`; angles in radians from the outward direction towards +z."""
    angle = np.linspace(start, stop, points)
    return np.stack([r + radius * np.cos(angle), z + radius * np.sin(angle)], axis=1)


# The classes.


def ball(rng: Rng) -> Mesh:
    """A sphere."""
    return lathe(arc(0.5, -np.pi / 2, np.pi / 2, 20))


def box(rng: Rng) -> Mesh:
    """A block with three different side lengths."""
    half = rng.uniform(0.28, 0.5, 3)
    return block(list(-half), list(half))


def cylinder(rng: Rng) -> Mesh:
    """An upright cylinder."""
    r, h = rng.uniform(0.2, 0.4), rng.uniform(0.5, 1.0)
    return lathe([(0, 0), (r, 0)], [(r, 0), (r, h)], [(r, h), (0, h)])


def cone(rng: Rng) -> Mesh:
    """An upright cone."""
    r, h = rng.uniform(0.28, 0.48), rng.uniform(0.7, 1.1)
    return lathe([(0, 0), (r, 0)], [(r, 0), (r / 2, h / 2), (0, h)])


def ring(rng: Rng) -> Mesh:
    """An upright torus."""
    thick = rng.uniform(0.07, 0.16)
    return lathe(arc(thick, 0, 2 * np.pi, 17, r=0.5 - thick)).rotated(rotation(0, np.pi / 2))


def pyramid(rng: Rng) -> Mesh:
    """A square pyramid."""
    a, h = rng.uniform(0.35, 0.5), rng.uniform(0.5, 1.0)
    base, top = [(-a, -a, 0), (a, -a, 0), (a, a, 0), (-a, a, 0)], (0, 0, h)
    return quads([base] + [[base[k - 1], base[k], top, top] for k in range(4)])


def mug(rng: Rng) -> Mesh:
    """A mug with a handle."""
    r, h, wall = rng.uniform(0.28, 0.38), rng.uniform(0.6, 0.95), 0.05
    foot = r * rng.uniform(0.75, 1.0)
    cup = lathe(
        [(0, 0), (foot, 0)],
        [(foot, 0), (r, h)],
        [(r, h), (r - wall, h)],
        [(r - wall, h), (foot - wall, wall)],
        [(foot - wall, wall), (0, wall)],
    )
    reach, grip = rng.uniform(0.18, 0.3), h * rng.uniform(0.22, 0.34)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 12)
    path = np.stack([r * 0.92 + reach * np.cos(angle), 0 * angle, h * 0.52 + grip * np.sin(angle)], axis=1)
    return join([cup, tube(path, rng.uniform(0.035, 0.055))])


def bottle(rng: Rng) -> Mesh:
    """A bottle with shoulders, neck and lip."""
    r, neck = rng.uniform(0.17, 0.26), rng.uniform(0.055, 0.09)
    shoulder, throat = rng.uniform(0.5, 0.65), rng.uniform(0.72, 0.82)
    s = np.linspace(0, 1, 10)
    slope = np.stack([r + (neck - r) * (3 * s**2 - 2 * s**3), shoulder + (throat - shoulder) * s], axis=1)
    lip = neck * 1.25
    return lathe(
        [(0, 0), (r, 0)],
        [(r, 0), *slope, (neck, 0.95)],
        [(neck, 0.95), (lip, 0.95)],
        [(lip, 0.95), (lip, 1.03)],
        [(lip, 1.03), (0, 1.03)],
    )


def bowl(rng: Rng) -> Mesh:
    """An open bowl."""
    r, h, wall = 0.5, rng.uniform(0.25, 0.42), 0.035
    foot, bend = r * rng.uniform(0.3, 0.5), rng.uniform(0.45, 0.7)
    s = np.linspace(0, 1, 12)
    outside = np.stack([foot + (r - foot) * s**bend, h * s], axis=1)
    inside = np.stack([(outside[:, 0] - wall), wall + (h - wall) * s], axis=1)
    return lathe([(0, 0), (foot, 0)], outside, [outside[-1], inside[-1]], inside[::-1], [inside[0], (0, wall)])


def mushroom(rng: Rng) -> Mesh:
    """A stem with a dome."""
    stem, cap = rng.uniform(0.08, 0.16), rng.uniform(0.36, 0.5)
    low, dome = rng.uniform(0.4, 0.6), rng.uniform(0.25, 0.42)
    return lathe(
        [(0, 0), (stem * 1.3, 0)],
        [(stem * 1.3, 0), (stem, low / 2), (stem, low)],
        [(stem, low), (cap, low)],
        arc(1, 0, np.pi / 2) * [cap, dome] + [0, low],
    )


def legs(half: np.ndarray, height: float, thick: float, spread: float = 1.0) -> list[Mesh]:
    """Four legs of a seat.

    Args:
        half: Half widths of the seat, `[2]`.
        height: Height of the legs.
        thick: Half thickness of a leg.
        spread: How far the legs slant outwards; 1 is vertical.
    """
    parts = []
    for side in [(-1, -1), (-1, 1), (1, -1), (1, 1)]:
        x, y = (half - thick) * side
        lean = (x * (spread - 1), y * (spread - 1))
        parts.append(block([x - thick, y - thick, 0], [x + thick, y + thick, height], lean))
    return parts


def stool(rng: Rng) -> Mesh:
    """A round or square seat on legs."""
    half, h, seat = rng.uniform(0.24, 0.36), rng.uniform(0.5, 0.85), rng.uniform(0.05, 0.1)
    inner = half * 0.72
    top = lathe([(0, h), (half, h)], [(half, h), (half, h + seat)], [(half, h + seat), (0, h + seat)])
    if rng.random() < 0.4:
        inner, top = half, block([-half, -half, h], [half, half, h + seat])
    return join([top, *legs(np.array([inner, inner]), h, rng.uniform(0.025, 0.045), rng.uniform(1.0, 1.35))])


def chair(rng: Rng) -> Mesh:
    """A seat with a back on four legs."""
    half, h, seat = rng.uniform(0.22, 0.3, 2), rng.uniform(0.35, 0.5), rng.uniform(0.04, 0.08)
    x, y, back = half[0], half[1], rng.uniform(0.4, 0.55)
    parts = [
        block([-x, -y, h], [x, y, h + seat]),
        *legs(half, h, rng.uniform(0.025, 0.045), rng.uniform(1.0, 1.15)),
    ]
    rest = [block([-x, -y, h + seat], [x, -y + 0.06, h + back])]
    if rng.random() < 0.4:
        rest = [block([side, -y, h], [side + 0.07, -y + 0.06, h + back]) for side in (-x, x - 0.07)]
        rest.append(block([-x, -y, h + back * 0.6], [x, -y + 0.05, h + back]))
    return join(parts + rest)


def arch(rng: Rng) -> Mesh:
    """Half a ring on two pillars."""
    outer, deep = 0.48, rng.uniform(0.1, 0.22)
    inner, pillar = outer * rng.uniform(0.5, 0.72), rng.uniform(0.05, 0.5)
    angle = np.linspace(0, np.pi, 17)
    line = np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def edge(radius: float, y: float) -> np.ndarray:
        bow = radius * line + [0, pillar]
        bow = np.concatenate([[[radius, 0]], bow, [[-radius, 0]]])
        return np.stack([bow[:, 0], np.full(len(bow), y), bow[:, 1]], axis=1)

    rails = [edge(outer, -deep), edge(outer, deep), edge(inner, deep), edge(inner, -deep)]
    faces = [
        np.stack([a[:-1], a[1:], b[1:], b[:-1]], axis=1) for a, b in zip(rails, rails[1:] + rails[:1], strict=True)
    ]
    feet = np.stack([[rail[end] for rail in rails] for end in (0, -1)])
    return quads(np.concatenate([*faces, feet]))


def dumbbell(rng: Rng) -> Mesh:
    """Two ends on a bar."""
    bar, head = rng.uniform(0.05, 0.09), rng.uniform(0.16, 0.26)
    if rng.random() < 0.5:
        profiles = [arc(head, -np.pi / 2, np.pi / 2, z=side * (0.5 - head)) for side in (-1, 1)]
    else:
        near = 0.5 - rng.uniform(0.12, 0.22)
        profiles = [
            np.array(part) * [1, side]
            for side in (-1, 1)
            for part in ([(0, near), (head, near)], [(head, near), (head, 0.5)], [(head, 0.5), (0, 0.5)])
        ]
    return lathe([(bar, -0.4), (bar, 0.4)], *profiles).rotated(rotation(1, np.pi / 2))


def staircase(rng: Rng) -> Mesh:
    """Ascending blocks."""
    steps, wide, high = int(rng.integers(3, 6)), rng.uniform(0.2, 0.45), rng.uniform(0.55, 0.9)
    edges = np.linspace(-0.5, 0.5, steps + 1)
    return join([block([edges[k], -wide, 0], [edges[k + 1], wide, high * (k + 1) / steps]) for k in range(steps)])


def cross(rng: Rng) -> Mesh:
    """Two crossing bars."""
    thick, deep = rng.uniform(0.08, 0.15), rng.uniform(0.07, 0.15)
    arm, level = rng.uniform(0.3, 0.48), rng.uniform(0.5, 0.75)
    beam = block([-arm, -deep, level - thick], [arm, deep, level + thick])
    return join([block([-thick, -deep, 0], [thick, deep, 1]), beam])


BUILDERS: tuple[Callable[[Rng], Mesh], ...] = (
    ball, box, cylinder, cone, ring, pyramid, mug, bottle,
    bowl, mushroom, stool, chair, arch, dumbbell, staircase, cross,
)  # fmt: skip


def pebble(rng: Rng) -> Mesh:
    """A small thing without a class, as clutter: a flat stone, a slab or a rod."""
    kind = rng.integers(3)
    if kind == 0:
        return lathe(arc(0.5, -np.pi / 2, np.pi / 2, 9), segments=16).scaled(rng.uniform(0.4, 1.0, 3))
    if kind == 1:
        half = rng.uniform([0.3, 0.2, 0.08], [0.5, 0.4, 0.25])
        return block(list(-half), list(half))
    r = rng.uniform(0.06, 0.12)
    rod = lathe([(0, -0.5), (r, -0.5)], [(r, -0.5), (r, 0.5)], [(r, 0.5), (0, 0.5)], segments=12)
    return rod.rotated(rotation(1, np.pi / 2))


# Poses.


def settle(mesh: Mesh, rng: Rng, upright: float) -> tuple[Mesh, float]:
    """Place a mesh on the plane z = 0 in a stable pose, with its centroid on the z axis.

    Args:
        mesh: The mesh.
        rng: Source of randomness.
        upright: Probability that it stands as built. Otherwise it is rolled about its x or y axis to an angle at which
            its centroid is lowest.

    Returns:
        The mesh and the angle in degrees, in [0, 360).
    """
    corners = mesh.vertices[mesh.triangles]
    areas = np.linalg.norm(cross_product(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    mesh = mesh.shifted(-(areas @ corners.mean(axis=1)) / areas.sum())
    angle, axis = 0.0, int(rng.integers(2))
    if rng.random() >= upright:
        coarse = np.arange(0, 360, 5.0)
        height = _height(mesh, axis, coarse)
        rests = coarse[(height <= np.roll(height, 1)) & (height <= np.roll(height, -1))]
        fine = rng.choice(rests) + np.arange(-5, 5.1, 0.5)
        angle = float(fine[_height(mesh, axis, fine).argmin()]) % 360
        mesh = mesh.rotated(rotation(axis, np.radians(angle)))
    return mesh.shifted([0, 0, -mesh.vertices[:, 2].min()]), angle


def _height(mesh: Mesh, axis: int, degrees: np.ndarray) -> np.ndarray:
    """Height of the origin above the lowest vertex after a roll about x (0) or y (1) by each of the angles."""
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    aside = mesh.vertices[:, 1] if axis == 0 else -mesh.vertices[:, 0]
    return -(np.outer(sine, aside) + np.outer(cosine, mesh.vertices[:, 2])).min(axis=1)
