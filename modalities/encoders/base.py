"""The contract of an encoder: it declares its output sizes on construction and normalises its own input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from losses import Features


@dataclass(frozen=True)
class Preprocessing:
    """Input format of an encoder: `(x - mean) / std` per channel; uint8 is first scaled to [0, 1].

    Args:
        size: Side of the input `[C, size, size]` in pixels; for a time series `[C, size]`, the number of time steps;
            for text, the maximum number of tokens.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        crop: Side of the centre crop for evaluation, as a fraction of the image in (0, 1].
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0

    @staticmethod
    def of(
        channels: int,
        size: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop: float = 1.0,
    ) -> Preprocessing:
        """Build the preprocessing, by default with mean 0 and std 1.

        Args:
            channels: Number of channels C.
            size: Side of the input in pixels.
            mean: C values; None means 0.
            std: C positive values; None means 1.
            crop: See `Preprocessing`.

        Raises:
            ValueError: `mean` or `std` does not have C values, or a value of `std` is not positive.
        """
        mean = (0.0,) * channels if mean is None else tuple(mean)
        std = (1.0,) * channels if std is None else tuple(std)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ValueError(f"{name}: {len(values)} values for {channels} channels; set one value per channel")
        if min(std) <= 0:
            raise ValueError(f"std: {list(std)}: every value must be greater than 0")
        return Preprocessing(size, mean, std, crop)


class Encoder(nn.Module):
    """A network that maps a batch of one modality to `Features` without logits.

    Subclasses set `dim` (D of `pooled`) and `map_channels` (C of each map) in the constructor and implement `forward`,
    which starts with `x = self.normalise(x)`. Each encoder has its own preprocessing, so a teacher and a student of
    the same modality may use different ones. Encoders whose input is not an image `[B, C, H, W]` set `reads_pictures =
    False`.

    Args:
        preprocessing: The input format.
    """

    reads_pictures: ClassVar[bool] = True
    channels_last: bool = True
    """Whether weights and images may be in channels-last memory format, which is faster for convolutions."""
    dim: int
    map_channels: tuple[int, ...] = ()
    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.register_buffer("mean", _channels(preprocessing.mean), persistent=False)
        self.register_buffer("std", _channels(preprocessing.std), persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise with mean and std of each channel.

        Args:
            x: `[B, C, H, W]`, or `[B, C, L]` for a time series; uint8 in 0..255, or float in units of the modality.
        """
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        mean, std = (self.mean, self.std) if x.ndim == 4 else (self.mean[..., 0], self.std[..., 0])
        return (x - mean) / std

    def forward(self, x: Any) -> Features:
        """Encode a batch.

        Args:
            x: A result of the modality's `collate` for B samples.

        Returns:
            `pooled [B, dim]`, and for each entry C of `map_channels` a map: `[B, C, H, W]` of an image, `[B, C, 1, L]`
            of a time series, or tokens `[B, N, C]`.
        """
        raise NotImplementedError

    def map_sizes(self) -> tuple[tuple[int, ...] | None, ...]:
        """Measure the size of each map by running the encoder on a black image.

        Returns:
            For each entry of `map_channels`, `(H, W)`, or `(N,)` for tokens. None for all entries if the input is not
            an image, since other inputs vary in length.

        Raises:
            ValueError: The encoder does not run on an image.
        """
        if not self.reads_pictures:
            return (None,) * len(self.map_channels)
        size, training = self.preprocessing.size, self.training
        black = torch.zeros(1, self.mean.shape[1], size, size, device=self.mean.device)
        try:
            with torch.no_grad():
                maps = self.eval()(black).maps
        except Exception as error:  # third-party networks may raise any error
            name = type(self).__name__
            raise ValueError(
                f"{name} does not run on an image ({error}); set `reads_pictures = False` if its input is not an image"
            ) from error
        finally:
            self.train(training)
        return tuple(tuple(m.shape[2:] if m.ndim == 4 else m.shape[1:2]) for m in maps)

    def extract_features(self, x: Any) -> Any:
        """Run the preprocessing that is not tensor operations; `forward` accepts its result as well as `x`."""
        return x

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Return a spec that rebuilds this network without weights from files in `folder`, for an exported student.

        Args:
            spec: The spec that this encoder was built from.
            folder: Folder of the student. An encoder that reads files or uses a model hub copies what it needs into a
                subfolder and refers to it as `./subfolder` in the spec.
        """
        return dict(spec)


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
