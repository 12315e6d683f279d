"""Simulates a structured-light depth sensor: noise, missing depth values, projector shadows."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.packing.synthetic.rendering import RAYS, View, dot
from pipeline.packing.synthetic.setting import MATERIALS, Setting
from pipeline.packing.synthetic.shapes import Rng

FAR = 4.0  # metres; maximum range of the sensor
BASELINE = 0.05  # metres between its camera and its projector


def sense_depth(setting: Setting, view: View, size: int, rng: Rng) -> np.ndarray:
    """Render the depth as a sensor would measure it: uint16 millimetres `[size, size]`, 0 = no depth."""
    pick = np.arange(size * size) * RAYS + rng.integers(RAYS, size=size * size)
    depth = view.depth[pick].reshape(size, size)
    cosine = dot(view.facing[:, pick], view.eye[:, pick]).reshape(size, size)
    fickle = np.array([MATERIALS[thing.look.material].lost for thing in setting.things])
    fickle = fickle[view.thing[pick]].reshape(size, size)

    step = np.maximum(*(np.abs(cv2.Sobel(depth, cv2.CV_32F, *way)) for way in ((1, 0), (0, 1)))) / depth
    blobs = cv2.resize(rng.random((9, 9)), (size, size), interpolation=cv2.INTER_CUBIC)
    lost = (depth > FAR) | (blobs > 0.97 - fickle)
    lost |= rng.random(depth.shape) < 0.01 + fickle + 0.7 * (cosine < 0.15) + 0.5 * (step > 0.35)
    # The projector is to the left of the camera: near objects shadow a strip of the background.
    disparity = BASELINE * setting.camera.focal * size / depth
    for shift in range(1, 1 + int(np.ptp(disparity))):
        lost[:, shift:] |= disparity[:, :-shift] - disparity[:, shift:] > shift

    noisy = depth + (0.001 + 0.003 * depth**2) * rng.standard_normal(depth.shape)
    return np.where(lost, 0, np.rint(1000 * noisy)).astype(np.uint16)
