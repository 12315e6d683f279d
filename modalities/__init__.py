"""The supported modalities, one file per modality."""

from __future__ import annotations

from importlib.metadata import entry_points

from losses.registry import find, import_class
from modalities.audio import Audio
from modalities.base import Encoder, Features, Geometry, Modality
from modalities.depth import Depth
from modalities.lab import Chroma, Luminance
from modalities.points import Points
from modalities.rgb import RGB
from modalities.text import Text

__all__ = [
    "MODALITIES",
    "RGB",
    "Audio",
    "Chroma",
    "Depth",
    "Encoder",
    "Features",
    "Geometry",
    "Luminance",
    "Modality",
    "Points",
    "Text",
    "get",
]

MODALITIES: dict[str, type[Modality]] = {
    "rgb": RGB,
    "luminance": Luminance,
    "chroma": Chroma,
    "depth": Depth,
    "points": Points,
    "audio": Audio,
    "text": Text,
}


def get(name: str) -> type[Modality]:
    """Look up a modality class by name.

    Args:
        name: A built-in name such as `depth`, the name of an entry point in the group `wcord.modalities`, or
            `package.module:Class`.

    Returns:
        The subclass of `Modality`, not an instance.

    Raises:
        ValueError: The name is unknown. The message lists the known names and suggests the closest one.

    Example:
        ```python
        depth = wcord.modalities.get("depth")(near=0.2, far=5.0)
        ```
    """
    if name in MODALITIES:
        return MODALITIES[name]
    declared = {point.name: point for point in entry_points(group="wcord.modalities")}
    if name in declared:
        return import_class(declared[name].value, Modality)
    return find(name, MODALITIES | dict.fromkeys(declared, Modality), Modality, "modality")
