"""A small audio encoder: a log-mel spectrogram, computed on the device, and five convolutions."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing
from modalities.torchaudio_loader import import_torchaudio

FLOOR = 1e-6
"""Added to the mel power before the logarithm, which keeps silence finite."""


class LogMelCNN(Encoder):
    """Log-mel spectrogram and five 3x3 convolutions with BatchNorm and ReLU; `pooled` is the mean over valid frames.

    Args:
        rate: Sample rate of the waveform in Hz.
        width: Channels of the first layer; the five layers have width x (1, 2, 2, 4, 4) channels.
        bands: Number of mel bands (HTK scale, up to half the sample rate).
        window: Spectrogram window length in seconds.
        hop: Spectrogram hop length in seconds.
        masking: Maximum fractions of bands and of frames that SpecAugment (Park et al. 2019, arXiv 1904.08779) masks in
            training.
        mean: Mean of the natural logarithm of the mel power.
        std: Standard deviation of the natural logarithm of the mel power.
    """

    reads_pictures: ClassVar[bool] = False

    def __init__(
        self,
        rate: int,
        *,
        width: Annotated[int, Gt(0)] = 32,
        bands: Annotated[int, Ge(16)] = 64,
        window: Annotated[float, Gt(0)] = 0.025,
        hop: Annotated[float, Gt(0)] = 0.010,
        masking: Annotated[float, Ge(0), Le(1)] = 0.15,
        mean: float = -6.0,
        std: Annotated[float, Gt(0)] = 4.0,
    ) -> None:
        super().__init__(Preprocessing.of(1, bands, (mean,), (std,)))
        transforms = import_torchaudio().transforms
        samples = max(round(window * rate), 2)
        self.hop = max(round(hop * rate), 1)
        self.spectrogram = transforms.MelSpectrogram(
            rate,
            n_fft=max(1 << (samples - 1).bit_length(), 512),  # enough bins for the narrow low-frequency bands
            win_length=samples,
            hop_length=self.hop,
            n_mels=bands,
            pad_mode="constant",  # makes the result independent of the padding in a batch
        )
        self.masking = masking
        widths = [width, 2 * width, 2 * width, 4 * width, 4 * width]
        self.strides = (2, 2, 2, 1, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()
            )
            for fan_in, fan_out, stride in zip([1, *widths], widths, self.strides, strict=False)
        )
        self.dim, self.map_channels = widths[-1], tuple(widths)

    def forward(self, x: dict[str, Tensor]) -> Features:
        """Encode `waveform [B, T]` with `length [B]` in samples; the maps are `[B, C, bands, frames]`."""
        out = self.normalise(self.log_mel(x["waveform"])[:, None])
        frames = x["length"] // self.hop + 1
        if self.training and self.masking:
            out = self._hide(out)
        out, maps = _masked(out, frames), []
        for layer, stride in zip(self.layers, self.strides, strict=True):
            frames = (frames + stride - 1) // stride
            out = _masked(layer(out), frames)
            maps.append(out)
        pooled = out.sum((2, 3)) / (frames * out.shape[2])[:, None]
        return Features(pooled, maps)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Natural logarithm of the mel power, fp32 `[B, bands, T // hop + 1]`."""
        with torch.autocast(waveform.device.type, enabled=False):
            power: Tensor = self.spectrogram(waveform.float())
            return (power + FLOOR).log()

    def _hide(self, x: Tensor) -> Tensor:
        """Set one block of bands and one block of frames of each sample to 0, the mean."""
        for dim in (2, 3):
            size = x.shape[dim]
            width = torch.rand(len(x), 1, device=x.device) * self.masking * size
            start = torch.rand(len(x), 1, device=x.device) * (size - width)
            place = torch.arange(size, device=x.device)
            hidden = (place >= start) & (place < start + width)
            x = x.masked_fill(hidden[:, None, :, None] if dim == 2 else hidden[:, None, None, :], 0.0)
        return x


def _masked(x: Tensor, frames: Tensor) -> Tensor:
    """Zero the frames beyond the length of each sample, so they look like the padding of a convolution."""
    valid = torch.arange(x.shape[3], device=x.device) < frames[:, None]
    return x * valid[:, None, None, :]
