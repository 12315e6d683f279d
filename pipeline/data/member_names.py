"""Maps extensions in foreign shards to members: `jpg` -> `rgb.jpg`, `txt` -> `text.txt`, `cls` -> `label.txt`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from pipeline.data.member_formats import SAME_FORMAT, SUFFIXES

USUAL: Mapping[str, Sequence[str]] = {
    "rgb": ("jpg", "jpeg", "png", "webp"),
    "text": ("txt",),
    "depth": ("depth.tif",),
    "audio": ("wav", "flac", "mp3", "ogg", "opus", "oga"),
    "points": ("ply", "pcd", "bin"),
    "label": ("cls",),
}
"""Field -> extensions written by img2dataset, the `datasets` library and the tools of webdataset."""

WHOLE = {"label": "label.txt", "meta": "meta.json"}
"""Fields with a fixed member."""


def member_names(extensions: Iterable[str], fields: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Map the extensions of a dataset to members.

    Args:
        extensions: Extensions of its samples in lower case, e.g. `jpg` or `depth.png`.
        fields: Field -> extensions, as in `data.fields`. For other fields, common extensions are detected.

    Returns:
        Extension -> member, e.g. `jpg` -> `rgb.jpg`, for the extensions that are not members already.
    """
    fields = {**USUAL, **fields}
    known = {extension.lower(): member_of(field, extension) for field, own in fields.items() for extension in own}
    return {found: known[found] for found in extensions if known.get(found, found) != found}


def member_of(field: str, extension: str) -> str:
    """The member for an extension of a field: `rgb`, `left.JPEG` -> `rgb.jpg`.

    Args:
        field: The field.
        extension: The extension in the shard.
    """
    if field in WHOLE:
        return WHOLE[field]
    suffix = extension.lower().rpartition(".")[2]
    suffix = SAME_FORMAT.get(suffix, suffix)
    allowed = SUFFIXES.get(field, (suffix,))
    return f"{field}.{suffix if suffix in allowed else allowed[0]}"


USUAL_NAMES: Mapping[str, str] = member_names(chain.from_iterable(USUAL.values()), {})
"""Extension -> member, for shards that are not indexed."""
