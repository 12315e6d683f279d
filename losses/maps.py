"""Feature maps in one form: how the losses that compare maps read, pair and resize them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor
from torch.nn import functional as F

from losses.base import Dims, Features, full_precision

T = TypeVar("T")


def as_map(x: Tensor) -> Tensor:
    """`[B, C, H, W]` as it is, tokens `[B, N, C]` as `[B, C, N, 1]`; at least fp32."""
    return full_precision(x if x.ndim == 4 else x.mT[..., None])


def as_grid(x: Tensor) -> Tensor:
    """`[B, C, H, W]` as it is; tokens `[B, N, C]` as the square `[B, C, n, n]` of the last n^2 of them: what stands
    before the patches' tokens, such as a class token, has no place in the picture."""
    if x.ndim == 4:
        return x
    side = math.isqrt(x.shape[1])
    return x[:, x.shape[1] - side**2 :].mT.unflatten(2, (side, side))


def grid_shape(side: int, *maps: Tensor) -> tuple[int, int]:
    """Height and width that all of the maps have, each no more than `side`."""
    shapes = [as_grid(x).shape[2:] for x in maps]
    return min(side, *(shape[0] for shape in shapes)), min(side, *(shape[1] for shape in shapes))


def positions(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """A map (or tokens) pooled to that height and width, as `[B, H W, C]`, row by row; at least fp32."""
    return _pool(full_precision(as_grid(x)), shape).flatten(2).mT


def paired_channels(name: str, student: Dims, teacher: Dims, first: int = 0) -> list[tuple[int, int]]:
    """The channels of the paired maps, shallow to deep, from `first` on; ValueError if a side has none, or too few."""
    if not student.maps or not teacher.maps:
        side = "student" if not student.maps else "teacher"
        raise ValueError(
            f"{name} compares feature maps, and the {side} has none. Take an encoder that returns maps, or a loss that "
            "reads the pooled features (wcord, info_nce)."
        )
    pairs = min(len(student.maps), len(teacher.maps))
    if first >= pairs:
        raise ValueError(f"{name}: first: {first} leaves nothing to compare, {pairs} maps can be paired.")
    return pair_up(student.maps, teacher.maps, first)


def channels_of(name: str, student: Dims, teacher: Dims, layer: int) -> tuple[int, int]:
    """Student's and teacher's channels of one pair; ValueError if there is none of that number."""
    channels = paired_channels(name, student, teacher)
    if not -len(channels) <= layer < len(channels):
        raise ValueError(
            f"{name}'s layer {layer} does not exist: {len(channels)} maps can be paired, layer goes from "
            f"{-len(channels)} to {len(channels) - 1}."
        )
    return channels[layer]


def paired_maps(student: Features, teacher: Features, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    """The maps of both sides, shallow to deep, from `first` on. If one side has more, its first ones are left out."""
    return [(as_map(s), as_map(t)) for s, t in pair_up(student.maps, teacher.maps, first)]


def pair_up(student: Sequence[T], teacher: Sequence[T], first: int = 0) -> list[tuple[T, T]]:
    """The last ones of both sides, as many as both have, from `first` on."""
    pairs = min(len(student), len(teacher))
    return list(zip(student[-pairs:], teacher[-pairs:], strict=True))[first:]


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller height and the smaller width of the two, by adaptive average pooling."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pool(student, size), _pool(teacher, size)


def _pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)
