"""Networks around plain modules, for `wcord.distill`: without a modality, with sizes measured on a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from losses import Features
from modalities.base import Modality
from modalities.encoders.base import Encoder, Preprocessing
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.common.run_format import FORMAT
from pipeline.config.settings import IN_PYTHON
from pipeline.models.description import DESCRIPTION
from pipeline.models.network import WEIGHTS, Network


class PlainEncoder(Encoder):
    """Wraps a module that returns `Features`, or a tensor `[B, D]` for `pooled`. Inputs are not normalised.

    Args:
        module: The module.
        example: A batch of inputs.
        role: `student` or `teacher`, for messages.

    Raises:
        UserError: The module does not run on the example, or returns something else.
    """

    reads_pictures = False

    def __init__(self, module: nn.Module, example: Any, role: str) -> None:
        super().__init__(Preprocessing.of(1, 1))
        self.module, self.role = module, role
        training = module.training
        try:
            with torch.no_grad():
                features = self.eval()(example)
        except UserError:
            raise
        except Exception as error:  # user code may raise any error
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{role}: {type(module).__name__} does not run on the first batch: {reason}") from error
        finally:
            self.train(training)
        self.dim, self.map_channels = features.pooled.shape[1], features.map_channels
        self.outputs = 0 if features.logits is None else features.logits.shape[1]

    def forward(self, x: Any) -> Features:
        """Run the module."""
        found = self.module(x)
        if isinstance(found, Features):
            return found
        if isinstance(found, Tensor) and found.ndim == 2:
            return Features(found)
        shape = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise UserError(
            f"{self.role}: {type(self.module).__name__} returned {shape}; return a tensor [B, D] or losses.Features."
        )


class PlainNetwork(Network):
    """Wraps a module as a network. If it returns only a tensor and a loss reads logits, the tensor is also the logits.

    Args:
        module: The module, or an encoder.
        example: A batch of inputs.
        role: `student` or `teacher`, for messages.
        logits: Whether a loss reads the module's logits.
    """

    def __init__(self, module: nn.Module, example: Any, role: str, logits: bool) -> None:
        encoder = module if isinstance(module, Encoder) else PlainEncoder(module, example, role)
        kind = f"{type(module).__module__}:{type(module).__qualname__}"
        spec = {"modality": {"name": IN_PYTHON}, "encoder": {"name": kind}, "classes": None, "dense": False}
        super().__init__(cast(Modality, None), encoder, spec)
        if logits:
            self.classes = [str(i) for i in range(getattr(encoder, "outputs", 0) or encoder.dim)]

    def forward(self, x: Any) -> Features:
        """Compute features.

        Args:
            x: The input of the module.
        """
        features: Features = self.encoder(x)
        if self.classes and features.logits is None:
            features.logits = features.pooled
        return features

    def save(self, folder: Path) -> None:
        """Write the weights under their names in the module, which can read them with `load_state_dict`."""
        module = self.encoder.module if isinstance(self.encoder, PlainEncoder) else self.encoder
        state: Mapping[str, Tensor] = module.state_dict()
        about = {"version": FORMAT, "python": self.spec["encoder"]["name"]}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS, save({k: v.contiguous() for k, v in state.items()}))
        write_atomic(folder / DESCRIPTION, json.dumps(about, indent=1).encode())
