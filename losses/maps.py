"""Converts feature maps to a common form, pairs them and resizes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor
from torch.nn import functional as F

from losses.base import Dims, Features, full_precision

T = TypeVar("T")
Size = tuple[int, int]
"""Height and width of a map, or of the grid of tokens."""


def as_map(x: Tensor) -> Tensor:
    """Convert tokens `[B, N, C]` to `[B, C, N, 1]`; maps `[B, C, H, W]` are unchanged. At least fp32."""
    return full_precision(x if x.ndim == 4 else x.mT[..., None])


def as_grid(x: Tensor) -> Tensor:
    """Convert tokens `[B, N, C]` to a square map; maps `[B, C, H, W]` are unchanged.

    Returns:
        `[B, C, n, n]` of the last n^2 tokens. Earlier tokens, e.g. a class token, have no position in the image.
    """
    if x.ndim == 4:
        return x
    side, _ = _grid((x.shape[1],))
    return x[:, x.shape[1] - side**2 :].mT.unflatten(2, (side, side))


def _grid(size: tuple[int, ...]) -> Size:
    """Height and width of `as_grid` of a map `(H, W)` or of tokens `(N,)`."""
    return (size[0], size[1]) if len(size) == 2 else (math.isqrt(size[0]), math.isqrt(size[0]))


def grid_shape(side: int, *maps: Tensor) -> tuple[int, int]:
    """Largest height and width (each at most `side`) that all maps reach."""
    shapes = [as_grid(x).shape[2:] for x in maps]
    return min(side, *(shape[0] for shape in shapes)), min(side, *(shape[1] for shape in shapes))


def positions(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Pool a map (or tokens) and flatten its positions.

    Args:
        x: `[B, C, H, W]` or `[B, N, C]`.
        shape: Height and width after pooling.

    Returns:
        `[B, H W, C]` in row-major order, at least fp32.
    """
    return _pool(full_precision(as_grid(x)), shape).flatten(2).mT


def paired_channels(name: str, student: Dims, teacher: Dims, first: int = 0) -> list[tuple[int, int]]:
    """Get the channels of the paired maps, from shallow to deep.

    Args:
        name: Name of the loss, for the message.
        student: Dims of the student.
        teacher: Dims of the teacher.
        first: Index of the first pair.

    Raises:
        ValueError: A network has no maps, or `first` leaves none.
    """
    if not student.maps or not teacher.maps:
        side = "student" if not student.maps else "teacher"
        raise ValueError(
            f"{name} compares feature maps, but the {side} has none. Use an encoder that returns maps, or a loss on "
            "the pooled features (wcord, info_nce)."
        )
    pairs = min(len(student.maps), len(teacher.maps))
    if first >= pairs:
        raise ValueError(f"{name}: first: {first} leaves no pairs of maps; it must be below {pairs}.")
    return pair_up(student.maps, teacher.maps, first)


def paired_sizes(name: str, student: Dims, teacher: Dims) -> list[tuple[Size | None, Size | None]]:
    """Get height and width of `as_grid` of the paired maps, from shallow to deep. None if the size varies.

    Raises:
        ValueError: A network has no maps, or does not declare all sizes.
    """
    paired_channels(name, student, teacher)
    for side, dims in (("student", student), ("teacher", teacher)):
        if len(dims.sizes) != len(dims.maps):
            raise ValueError(
                f"{name} requires the sizes of the maps; the {side} declares {len(dims.sizes)} for {len(dims.maps)} "
                "maps. Set Dims.sizes (Encoder.map_sizes() measures them)."
            )
    pairs = pair_up(student.sizes, teacher.sizes)
    return [(None if s is None else _grid(s), None if t is None else _grid(t)) for s, t in pairs]


def channels_of(name: str, student: Dims, teacher: Dims, layer: int) -> tuple[int, int]:
    """Get the channels of student and teacher of one pair of maps.

    Raises:
        ValueError: There is no such pair.
    """
    channels = paired_channels(name, student, teacher)
    if not -len(channels) <= layer < len(channels):
        raise ValueError(
            f"{name}'s layer {layer} does not exist: {len(channels)} maps can be paired, so layer must be from "
            f"{-len(channels)} to {len(channels) - 1}."
        )
    return channels[layer]


def paired_maps(student: Features, teacher: Features, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Pair the maps of both networks, from shallow to deep. If one has more maps, its first ones are skipped."""
    return [(as_map(s), as_map(t)) for s, t in pair_up(student.maps, teacher.maps, first)]


def pair_up(student: Sequence[T], teacher: Sequence[T], first: int = 0) -> list[tuple[T, T]]:
    """Pair the last entries of both sequences, starting from pair `first`."""
    pairs = min(len(student), len(teacher))
    return list(zip(student[-pairs:], teacher[-pairs:], strict=True))[first:]


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce both maps to the smaller height and the smaller width by adaptive average pooling."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pool(student, size), _pool(teacher, size)


def _pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)
