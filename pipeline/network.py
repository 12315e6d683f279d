"""One network of a run, encoder and head, and the folder it is taken away in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import modalities
from losses import Dims, Features
from modalities.base import Modality
from modalities.encoders.base import Encoder
from pipeline.errors import UserError
from pipeline.shards import write_atomic
from pipeline.stream import View

DESCRIPTION = "network.json"
WEIGHTS = "model.safetensors"


class Network(nn.Module):
    """An encoder of one modality and, where there are classes, a linear head on its pooled features.

    spec: what rebuilds it: `{"modality": {...}, "encoder": {...}, "classes": [...] | None}`.
    """

    def __init__(self, modality: Modality, encoder: Encoder, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.modality, self.encoder, self.spec = modality, encoder, dict(spec)
        self.classes: list[str] | None = spec["classes"]
        self.head = nn.Linear(encoder.dim, len(self.classes)) if self.classes else None
        # Convolutions are faster in this order, on CPUs (1.3 to 1.5 times) as on GPUs.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def dims(self) -> Dims:
        return Dims(self.encoder.dim, self.encoder.map_channels, len(self.classes) if self.classes else None)

    @property
    def view(self) -> View:
        return View(self.modality, self.encoder.preprocessing.size)

    def forward(self, x: Any) -> Features:
        """x: what the modality's `collate` made of the samples."""
        if isinstance(x, Tensor) and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        features: Features = self.encoder(x)
        if self.head is not None:
            features.logits = self.head(features.pooled)
        return features


def build_network(
    modality: Mapping[str, Any], encoder: Mapping[str, Any], classes: Sequence[str] | None, where: str
) -> Network:
    """Build a network from the config's words for it; UserError, with the config path `where`, for what cannot be."""
    try:
        adapter = modalities.get(modality["name"])(**{k: v for k, v in modality.items() if k != "name"})
        built = adapter.encoder(encoder)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    spec = {"modality": dict(modality), "encoder": dict(encoder), "classes": list(classes) if classes else None}
    return Network(adapter, built, spec)


def save_network(network: Network, folder: Path) -> None:
    """Write weights, description and preprocessing: all that `load_network` needs, without the data or a hub."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = network.encoder.preprocessing
    description = {
        "version": 1,
        **network.spec,
        "encoder": network.encoder.portable(network.spec["encoder"], folder),
        "preprocessing": {"size": preprocessing.size, "mean": preprocessing.mean, "std": preprocessing.std},
    }
    weights = save({k: v.contiguous() for k, v in network.state_dict().items()})
    write_atomic(folder / WEIGHTS, weights)
    write_atomic(folder / DESCRIPTION, json.dumps(description, indent=1).encode())


def load_network(folder: str | Path) -> Network:
    """Load what `save_network` wrote, on the CPU.

    Raises UserError for a folder without a network, or weights that do not belong to its description.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    try:
        spec = json.loads(path.read_bytes())
        encoder = {k: _inside(folder, v) for k, v in spec["encoder"].items()}
        network = build_network(spec["modality"], encoder, spec["classes"], str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: not found. Give a run folder whose training has finished (`wcord train`).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}). Train again, or restore the folder.") from None
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder / WEIGHTS}: does not fit {DESCRIPTION} beside it: {reason}") from None
    return network


def _inside(folder: Path, value: Any) -> Any:
    """`./name` in a description means a folder beside it."""
    if not (isinstance(value, str) and value.startswith("./")):
        return value
    path = (folder / value).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{value} leads out of the folder")
    return str(path)
