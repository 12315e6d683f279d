"""What the program knows about kinds of data, a file each."""

from __future__ import annotations

from importlib.metadata import entry_points

from modalities.audio import Audio
from modalities.base import Encoder, Features, Geometry, Modality
from modalities.depth import Depth
from modalities.encoders import find, import_class
from modalities.lab import Chroma, Luminance
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
    "Text",
    "get",
]

MODALITIES: dict[str, type[Modality]] = {
    "rgb": RGB,
    "luminance": Luminance,
    "chroma": Chroma,
    "depth": Depth,
    "audio": Audio,
    "text": Text,
}


def get(name: str) -> type[Modality]:
    """The modality of that name: built in, a package's entry point `wcord.modalities`, or `package.module:Class`.

    Raises ValueError for a name that is none of these, naming the known ones and a near miss.
    """
    if name in MODALITIES:
        return MODALITIES[name]
    declared = {point.name: point for point in entry_points(group="wcord.modalities")}
    if name in declared:
        return import_class(declared[name].value, Modality)
    return find(name, MODALITIES | dict.fromkeys(declared, Modality), Modality, "modality")
