"""Where the shipped configs are. `wcord config list` reads no more than this."""

from __future__ import annotations

from pathlib import Path

SHIPPED = next(
    (folder for parent in Path(__file__).parents[1:3] if (folder := parent / "configs").is_dir()),
    Path(__file__).parents[1] / "configs",
)
"""Folder of the shipped configs: inside an installed package, or next to the packages in a checkout."""
