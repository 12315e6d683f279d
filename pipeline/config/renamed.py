"""Renamed settings: old names are accepted, with a warning."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.common.console import rank

if TYPE_CHECKING:
    from pipeline.config.document import Key

log = logging.getLogger(__name__)

RENAMED = {"data.labels": "data.label_fraction", "train.keep": "train.keep_checkpoints"}
"""Old key -> new key in the same section. Version 0.4 must reject the old names; the error must state the new ones."""

_said: set[str] = set()


def renamed(key: Key) -> Key:
    """Get the current name of a setting.

    Args:
        key: Key in a config, or in the `set` of a benchmark config, where the last part is a whole key: `data.labels`.

    Returns:
        The key itself if it was not renamed.
    """
    last = str(key[-1])
    if last in RENAMED:
        return (*key[:-1], RENAMED[last])
    new = RENAMED.get(".".join(map(str, key)))
    return (*key[:-1], new.rpartition(".")[2]) if new else key


def with_current_names(settings: Mapping[str, Any], at: Key = ()) -> dict[str, Any]:
    """Convert settings that an earlier version wrote to the current names.

    Args:
        settings: Settings of a run folder, or the identity of a checkpoint.
        at: Key of the section; empty for the whole config.
    """
    return {
        str(renamed((*at, name))[-1]): with_current_names(value, (*at, name)) if isinstance(value, Mapping) else value
        for name, value in settings.items()
    }


def report_renamed(key: Key, place: str) -> None:
    """Log the new name of a setting, once per process and only on rank 0."""
    last, whole = str(key[-1]), ".".join(map(str, key))
    old = last if last in RENAMED else whole
    if old not in _said and rank() == 0:
        _said.add(old)
        log.warning(f"{old} is now called {RENAMED[old]} ({place}). The old name works until version 0.4.")
