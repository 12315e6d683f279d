"""The colour map for quantities, from blue via green to red."""

from __future__ import annotations

import cv2
import numpy as np


def turbo(shade: np.ndarray) -> np.ndarray:
    """uint8 `[H, W]` to RGB `[H, W, 3]`, from blue to red."""
    return cv2.cvtColor(cv2.applyColorMap(shade, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)


def turbo_css() -> tuple[str, ...]:
    """Six CSS colours of `turbo`, from low to high."""
    return tuple("#{:02x}{:02x}{:02x}".format(*c) for c in turbo(np.linspace(0, 255, 6).astype(np.uint8)[None])[0])
