"""Views: the input of a network from a sample, and its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from losses import base
from modalities.base import Modality
from modalities.geometry import Geometry

Batch = base.Batch
"""B samples. Contains the inputs of losses (`label`, `group`, `index`, `mask`); role -> result of the modality's
`collate`; `key`, a list of B strings; and `skipped`, the samples that were skipped."""


@dataclass(frozen=True)
class View:
    """One input of a network: a modality at the input size of its encoder.

    Attributes:
        modality: The modality.
        size: Side of images in pixels.
        crop: Side of the centre crop that the encoder receives, as a fraction of the image or of the random crop.
    """

    modality: Modality
    size: int
    crop: float = 1.0

    def whole(self, value: Any) -> Tensor:
        """The evaluation input from a decoded value: the centre `crop`, without augmentation."""
        return self.modality.augment(value, Geometry().centre(self.crop), self.size, None)


ViewSpec = View | tuple[View, ...]
"""The input of a network: one view, or several that it combines."""


def required_members(sight: ViewSpec) -> frozenset[str]:
    """The members that a network may read, including label and metadata."""
    own = (member for view in several(sight) for member in view.modality.members)
    return frozenset((*own, "meta.json", "label.txt"))


def collate_view(sight: ViewSpec, seen: Sequence[Any]) -> Any:
    """Build the batch of a network.

    Args:
        sight: The views of the network.
        seen: The input from each sample: a tensor, or a tuple with one tensor per view.

    Returns:
        The batch of the modality, or a tuple with one per view.
    """
    if isinstance(sight, View):
        return sight.modality.collate(seen)
    return tuple(v.modality.collate(x) for v, x in zip(sight, zip(*seen, strict=True), strict=True))


def several(sight: ViewSpec) -> tuple[View, ...]:
    """The views of a network as a tuple."""
    return (sight,) if isinstance(sight, View) else sight


def same_modality(a: Modality, b: Modality) -> bool:
    """Whether two modalities have the same class and settings, and therefore decode identically."""
    return type(a) is type(b) and vars(a) == vars(b)
