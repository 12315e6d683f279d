"""Thermal images: 16-bit PNG in hundredths of a kelvin, as radiometric cameras write them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import torch
from annotated_types import Ge

from modalities import Encoder, Geometry, Modality
from modalities.encoders import IMAGE_ENCODERS, build


@dataclass(frozen=True, kw_only=True)
class Thermal(Modality):
    """Temperature in degrees Celsius between `coldest` and `hottest`, scaled to [0, 1].

    drift: in training, the whole image gets warmer or colder by up to this many degrees.
    """

    name: ClassVar[str] = "thermal"
    fields: ClassVar[tuple[str, ...]] = ("thermal.png",)
    encoders: ClassVar[Mapping[str, type[Encoder]]] = IMAGE_ENCODERS

    coldest: float = 0.0
    hottest: float = 60.0
    drift: Annotated[float, Ge(0)] = 2.0

    def decode(self, data: bytes, meta: Mapping[str, Any]) -> np.ndarray:
        """float32 `[H, W]`, degrees Celsius."""
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
        if image is None or image.dtype != np.uint16 or image.ndim != 2:
            raise ValueError("not a single-channel 16-bit PNG in hundredths of a kelvin")
        return image.astype(np.float32) / 100 - np.float32(273.15)

    def augment(
        self, value: np.ndarray, geometry: Geometry, size: int, rng: np.random.Generator | None
    ) -> torch.Tensor:
        """float32 `[1, size, size]`."""
        celsius = geometry.resize(value, size)
        if rng is not None:
            celsius = celsius + np.float32(rng.uniform(-self.drift, self.drift))
        scaled = (celsius - self.coldest) / (self.hottest - self.coldest)
        return torch.from_numpy(scaled.clip(0, 1)[None])

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        return build(self.encoders, spec, 1)

    def picture(self, value: np.ndarray) -> np.ndarray:
        shade = ((value - self.coldest) / (self.hottest - self.coldest)).clip(0, 1) * 255
        return cv2.cvtColor(cv2.applyColorMap(shade.astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
