"""Paired synthetic scenes: an object on a table as RGB, depth, mask, captions and an impact sound."""

from __future__ import annotations

import json

import cv2
import numpy as np

from pipeline.packing.synthetic.captions import captions
from pipeline.packing.synthetic.depth_sensor import sense_depth
from pipeline.packing.synthetic.rendering import RAYS, photograph, trace
from pipeline.packing.synthetic.setting import CLASSES as CLASSES
from pipeline.packing.synthetic.setting import draw
from pipeline.packing.synthetic.sound import impact, wav

FIELD_UNITS: dict[str, str] = {
    "rgb.jpg": "uint8 sRGB",
    "depth.png": "uint16 millimetres along the optical axis, 0 = no reading",
    "mask.png": "uint8, 255 = the object, 0 = everything else",
    "classes.png": "uint8, 1 + class index on the object, 0 = everything else",
    "audio.wav": "16 kHz mono, 16 bit",
    "text.txt": "one caption a line, UTF-8",
    "label.txt": "class index",
    "meta.json": "intrinsics in pixels; the centre of the upper left pixel is (0, 0)",
}


def scene(seed: int, index: int, size: int = 96) -> dict[str, bytes]:
    """Render a sample of the dataset as a pure function of the arguments.

    Classes are equally likely. Colour, material and pose are independent of the class.

    Args:
        seed: Random seed of the dataset.
        index: Index of the sample.
        size: Width and height in pixels.

    Returns:
        Member name -> bytes, with the units in `FIELD_UNITS`.

    Raises:
        ImportError: Open3D cannot be imported.
        ValueError: `seed` or `index` is negative.
    """
    layout, sensor, knock = map(np.random.default_rng, np.random.SeedSequence([seed, index]).spawn(3))
    setting = draw(layout)
    view = trace(setting.things, setting.camera, size)
    look = setting.things[0].look
    focal, centre = setting.camera.focal * size, (size - 1) / 2
    meta = {
        "group": f"tabletop-{seed}-{index}",
        "index": index,
        "source": "tabletop",
        "material": look.material,
        "intrinsics": {"fx": focal, "fy": focal, "cx": centre, "cy": centre, "width": size, "height": size},
    }
    mask = ((view.thing == 0).reshape(size, size, RAYS).mean(axis=2) >= 0.5).astype(np.uint8)
    return {
        "rgb.jpg": _encode(".jpg", photograph(setting, view, size, sensor)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]),
        "depth.png": _encode(".png", sense_depth(setting, view, size, sensor)),
        "mask.png": _encode(".png", mask * 255),
        "classes.png": _encode(".png", mask * (1 + setting.label)),
        "audio.wav": wav(impact(CLASSES[setting.label], look.material, setting.size, knock)),
        "text.txt": "\n".join(captions(setting)).encode(),
        "label.txt": str(setting.label).encode(),
        "meta.json": json.dumps(meta).encode(),
    }


def _encode(kind: str, image: np.ndarray, options: list[int] | None = None) -> bytes:
    return cv2.imencode(kind, image, options or [])[1].tobytes()
