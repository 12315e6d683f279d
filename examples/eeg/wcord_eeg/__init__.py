"""EEG as a modality of wcord: `.npy` files `[channels, time]` in microvolts, and an encoder for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt, Le

from modalities import Encoder, Features, Geometry, Modality
from modalities.encoders import Preprocessing, build
from wcord_eeg import preprocess


class SeriesCNN(Encoder):
    """Four 1-D convolutions; their outputs are the maps, the mean of the last over time is `pooled`.

    width: channels of the first layer. size: time steps of the input. std: standard deviation of the readings.
    """

    reads_pictures: ClassVar[bool] = False

    def __init__(
        self,
        channels: int,
        *,
        width: Annotated[int, Gt(0)] = 32,
        size: Annotated[int, Ge(16)] = 256,
        std: Annotated[float, Gt(0)] = 10.0,
    ) -> None:
        super().__init__(Preprocessing.of(channels, size, std=[std] * channels))
        widths = [width, width, 2 * width, 4 * width]
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Conv1d(fan_in, fan_out, 9, stride, padding=4, bias=False),
                torch.nn.BatchNorm1d(fan_out),
                torch.nn.ReLU(),
            )
            for fan_in, fan_out, stride in zip([channels, *widths], widths, (2, 2, 2, 1), strict=False)
        )
        self.dim, self.map_channels = widths[-1], tuple(widths)

    def forward(self, x: torch.Tensor) -> Features:
        x, maps = self.normalise(x), []
        for layer in self.layers:
            x = layer(x)
            maps.append(x[:, :, None])  # [B, C, L] to [B, C, 1, L]
        return Features(x.mean(2), maps)


@dataclass(frozen=True, kw_only=True)
class EEG(Modality):
    """Recordings of `channels` electrodes.

    Training takes a random window and multiplies it by a random factor in [1 - gain, 1 + gain].
    """

    name: ClassVar[str] = "eeg"
    fields: ClassVar[tuple[str, ...]] = ("eeg.npy",)
    encoders: ClassVar[Mapping[str, type[Encoder]]] = {"series_cnn": SeriesCNN}

    channels: Annotated[int, Gt(0)] = 8
    gain: Annotated[float, Ge(0), Le(1)] = 0.2

    def decode(self, data: bytes, meta: Mapping[str, Any]) -> np.ndarray:
        return preprocess.decode(data, self.channels)

    def augment(
        self, value: np.ndarray, geometry: Geometry, size: int, rng: np.random.Generator | None
    ) -> torch.Tensor:
        if rng is None:
            return torch.from_numpy(preprocess.window(value, size))
        series = preprocess.window(value, size, rng.uniform())
        return torch.from_numpy(series * np.float32(rng.uniform(1 - self.gain, 1 + self.gain)))

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        return build(self.encoders, spec, self.channels)

    @property
    def preprocess_script(self) -> Path:
        return Path(preprocess.__file__)

    def picture(self, value: np.ndarray) -> np.ndarray:
        """One line per channel."""
        image = np.full((16 * len(value), 256, 3), 255, np.uint8)
        columns = np.linspace(0, 255, value.shape[1])
        for channel, row in enumerate(value):
            height = 16 * channel + 8 - 8 * row / max(float(np.abs(value).max()), 1e-6)
            cv2.polylines(image, [np.stack([columns, height], 1).round().astype(np.int32)], False, (30, 60, 120))
        return image
