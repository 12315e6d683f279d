"""One network of a run, encoder and head, or several that see together, and the folder it is taken away in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

import modalities
from losses import Dims, Features
from modalities.base import Modality
from modalities.encoders import AUDIO_ENCODERS, TEXT_ENCODERS
from modalities.encoders.base import Encoder
from pipeline.decoder import Decoder, resized
from pipeline.errors import UserError
from pipeline.prepare import View
from pipeline.run_format import FORMAT, check_format
from pipeline.shards import write_atomic

DESCRIPTION = "network.json"
WEIGHTS = "model.safetensors"
PARTS = "modality", "encoder"
WHERE_WEIGHTS_LIE = "model", "weights"
"""Keywords of encoders that say no more than where their weights are from; `digest` tells those."""
NOT_PICTURES = (*TEXT_ENCODERS.values(), *AUDIO_ENCODERS.values())


class Network(nn.Module):
    """An encoder of one modality and, where there are classes, a head: linear on its pooled features, or a decoder.

    spec: what rebuilds it: `{"modality": {...}, "encoder": {...}, "classes": [...] | None, "dense": bool}`; dense: of
    each pixel, at the size of the encoder's input.
    """

    def __init__(self, modality: Modality, encoder: Encoder, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.modality, self.encoder, self.spec = modality, encoder, dict(spec)
        self.classes: list[str] | None = spec["classes"]
        self.dense: bool = spec["dense"]
        self.head = _head(encoder.dim, encoder.map_channels, self.classes, self.view.size if self.dense else None)
        # Convolutions are faster in this order, on CPUs (1.3 to 1.5 times) as on GPUs.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def dims(self) -> Dims:
        """The sizes of its `Features`."""
        return Dims(
            self.encoder.dim, self.encoder.map_channels, len(self.classes) if self.classes else None, self.dense
        )

    @property
    def view(self) -> View:
        """What it sees of a sample."""
        return View(self.modality, self.encoder.preprocessing.size)

    def forward(self, x: Any) -> Features:
        """x: what the modality's `collate` made of the samples."""
        if isinstance(x, Tensor) and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        features: Features = self.encoder(x)
        if self.head is not None:
            features.logits = self.head(features.maps if self.dense else features.pooled)
        return features


class Joint(nn.Module):
    """Networks that each see a sample in another way, as one: their pooled features `[B, sum of D]` side by side.

    classes: of a linear head on these features, which is trained with them; without it, and where the networks have
    heads of one and the same classes, the logits are the log of the mean of their probabilities. dense: the classes are
    of each pixel, from a decoder of all their maps.
    """

    def __init__(self, networks: Sequence[Network], classes: Sequence[str] | None, dense: bool = False) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        first = networks[0]
        alike = all((n.classes, n.dense) == (first.classes, first.dense) for n in networks)
        self.classes: list[str] | None = list(classes) if classes else first.classes if alike else None
        self.dense = dense if classes else alike and first.dense
        channels = tuple(c for n in networks for c in n.encoder.map_channels)
        size = first.view.size if self.dense else None
        self.head = _head(sum(n.encoder.dim for n in networks), channels, list(classes or ()), size)

    @property
    def dims(self) -> Dims:
        """The sizes of its `Features`: the parts' side by side."""
        parts = [network.dims for network in self._networks()]
        maps = tuple(channels for part in parts for channels in part.maps)
        return Dims(sum(part.pooled for part in parts), maps, len(self.classes) if self.classes else None, self.dense)

    @property
    def view(self) -> tuple[View, ...]:
        """What each part sees of a sample."""
        return tuple(network.view for network in self._networks())

    def forward(self, x: Sequence[Any]) -> Features:
        """x: what each network's modality made of the samples, in their order."""
        parts = [network(own) for network, own in zip(self.networks, x, strict=True)]
        pooled, maps = torch.cat([part.pooled for part in parts], 1), [m for part in parts for m in part.maps]
        logits = None
        if self.head is not None:
            logits = self.head(maps if self.dense else pooled)
        elif self.classes:
            own = [part.logits.float() for part in parts]
            each = torch.stack([F.log_softmax(resized(z, own[0].shape[2:]), 1) for z in own])
            logits = each.logsumexp(0) - math.log(len(parts))
        return Features(pooled, maps, logits)

    def _networks(self) -> list[Network]:
        return cast(list[Network], list(self.networks))


def _head(dim: int, channels: Sequence[int], classes: Sequence[str] | None, size: int | None) -> nn.Module | None:
    """Of pooled features of `dim`, or, where the pixels of a `size` have classes, of maps with so many channels."""
    if not classes:
        return None
    return nn.Linear(dim, len(classes)) if size is None else Decoder(channels, len(classes), size)


def build_network(
    modality: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    encoder: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None,
    where: str,
    dense: bool = False,
) -> Network | Joint:
    """Build a network from the config's words for it, a joint one from a list of modalities and one of encoders.

    dense: the classes are of each pixel.

    Raises UserError, with the config path `where`, for what cannot be.
    """
    if isinstance(modality, Mapping):
        return _build_single(modality, encoder, classes, where, dense)
    parts = [_build_single(m, e, None, where, dense) for m, e in zip(modality, encoder, strict=True)]
    return Joint(parts, classes, dense)


def _build_single(modality: Any, encoder: Any, classes: Sequence[str] | None, where: str, dense: bool) -> Network:
    try:
        adapter = modalities.get(modality["name"])(**{k: v for k, v in modality.items() if k != "name"})
        built = adapter.encoder(encoder)
    except (ValueError, ImportError) as error:
        raise UserError(f"{where}: {error}") from None
    if dense and (not built.map_channels or isinstance(built, NOT_PICTURES)):
        raise UserError(
            f"{where}: a mask needs feature maps over a picture, which {encoder['name']} has not; take cnn5, resnet or "
            "a vision model of transformers, or a data.label of one class a sample."
        )
    names = list(classes) if classes else None
    spec = {"modality": dict(modality), "encoder": dict(encoder), "classes": names, "dense": dense}
    return Network(adapter, built, spec)


def save_network(network: Network | Joint, folder: Path) -> None:
    """Write weights, description and preprocessing: all that `load_network` needs, without the data or a hub.

    The parts of a joint network lie in folders of their own, each a whole network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, Joint):
        description: dict[str, Any] = {
            "version": FORMAT,
            "networks": [],
            "classes": network.classes if network.head else None,
            "dense": network.dense,
        }
        for number, part in enumerate(network._networks()):
            save_network(part, folder / str(number))
            description["networks"].append(f"./{number}")
        state = network.head.state_dict(prefix="head.") if network.head is not None else {}
    else:
        preprocessing = network.encoder.preprocessing
        description = {
            "version": FORMAT,
            **network.spec,
            "modality": network.modality.portable(network.spec["modality"], folder),
            "encoder": network.encoder.portable(network.spec["encoder"], folder),
            "preprocessing": {"size": preprocessing.size, "mean": preprocessing.mean, "std": preprocessing.std},
        }
        state = network.state_dict()
    write_atomic(folder / WEIGHTS, save({k: v.contiguous() for k, v in state.items()}))
    write_atomic(folder / DESCRIPTION, json.dumps(description, indent=1).encode())


def load_network(folder: str | Path) -> Network | Joint:
    """Load what `save_network` wrote, on the CPU.

    Raises UserError for a folder without a network, of another format, or with weights that are not of its description.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    network: Network | Joint
    try:
        spec = json.loads(path.read_bytes())
        check_format(spec.get("version"), path)
        if "networks" in spec:
            parts = [load_single(_inside(folder, part)) for part in spec["networks"]]
            network = Joint(parts, spec["classes"], spec.get("dense", False))
        else:
            modality, encoder = ({k: _inside(folder, v) for k, v in spec[part].items()} for part in PARTS)
            network = build_network(modality, encoder, spec["classes"], str(path), spec.get("dense", False))
    except FileNotFoundError:
        raise UserError(f"{path}: not found. Give a run folder whose training has finished (`wcord train`).") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}). Train again, or restore the folder.") from None
    own = network.head if isinstance(network, Joint) else network
    try:
        state = load_file(folder / WEIGHTS)
        if isinstance(network, Joint):
            state = {name.removeprefix("head."): value for name, value in state.items()}
        if own is not None:
            own.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder / WEIGHTS}: does not fit {DESCRIPTION} beside it: {reason}. Restore both, or train again."
        ) from None
    return network


def digest(network: nn.Module) -> str:
    """A short hash of a network's weights."""
    return hashlib.sha256(save({k: v.contiguous() for k, v in network.state_dict().items()})).hexdigest()[:16]


def sight(network: Network | Joint) -> str:
    """What a network sees and makes of it, weights aside, as JSON: of each part modality, encoder and preprocessing."""
    parts = network._networks() if isinstance(network, Joint) else [network]
    return json.dumps([_settings(part) for part in parts], sort_keys=True)


def _settings(network: Network) -> dict[str, Any]:
    preprocessing = vars(network.encoder.preprocessing)
    told = (*WHERE_WEIGHTS_LIE, *preprocessing)
    encoder = {key: value for key, value in network.spec["encoder"].items() if key not in told}
    return {"modality": network.spec["modality"], "encoder": encoder, **preprocessing}


def load_single(folder: str | Path) -> Network:
    """`load_network` of one that is not joint itself; UserError if it is."""
    network = load_network(folder)
    if isinstance(network, Joint):
        raise UserError(f"{folder}: is joint itself, and cannot be part of another joint network; name its parts.")
    return network


def _inside(folder: Path, value: Any) -> Any:
    """`./name` in a description means a folder beside it."""
    if not (isinstance(value, str) and value.startswith("./")):
        return value
    path = (folder / value).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{value} leads out of the folder")
    return str(path)
