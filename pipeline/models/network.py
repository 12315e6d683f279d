"""A network of a run (encoder and head, or several networks jointly), and the folder it is saved in.

A little over 350 lines, because saving and loading are easier to compare in one file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from modalities.encoders.base import Encoder
from modalities.encoders.lora import merged_state
from pipeline.common.disk_errors import machine_fault
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.common.run_format import FORMAT
from pipeline.config.components import FREEZE
from pipeline.config.messages import near
from pipeline.data.views import View
from pipeline.models.decoder import Decoder, resized
from pipeline.models.description import DESCRIPTION, Bounded, check_size, inside, part_of, read_description

WEIGHTS = "model.safetensors"
PARTS = "modality", "encoder"
WHERE_WEIGHTS_LIE = "model", "weights"
"""Encoder keywords that only locate the weights; `digest` covers the weights themselves."""


class Network(nn.Module):
    """An encoder of one modality with an optional head: linear on pooled features, or a decoder for segmentation.

    Args:
        modality: The modality.
        encoder: The encoder.
        spec: Description from which it can be rebuilt: `{"modality": {...}, "encoder": {...}, "classes": [...] | None,
            "dense": bool}`. With dense, classes are predicted per pixel, at the size of the encoder's input.
        freeze: Whether to freeze the encoder, the number of first steps to freeze it for, or dotted paths of its
            modules to freeze. Frozen modules have no gradients and stay in evaluation mode.

    Raises:
        ValueError: The encoder has no module at a path in `freeze`.
    """

    def __init__(
        self, modality: Modality, encoder: Encoder, spec: Mapping[str, Any], freeze: bool | int | Sequence[str] = False
    ) -> None:
        super().__init__()
        self.modality, self.encoder, self.spec = modality, encoder, dict(spec)
        self.classes: list[str] | None = spec["classes"]
        self.dense: bool = spec["dense"]
        self.head = _head(encoder.dim, encoder.map_channels, self.classes, self.view.size if self.dense else None)
        self.frozen = [part.requires_grad_(False) for part in _modules(encoder, freeze)]
        self.frozen_steps = freeze if isinstance(freeze, int) and not isinstance(freeze, bool) else 0
        self.waiting = self.frozen_steps > 0
        # Convolutions are faster in this memory format, on CPUs (1.3 to 1.5 times) and on GPUs.
        if encoder.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        for part in [self.encoder] if self.waiting else self.frozen:
            part.eval()
        return self

    def begin_step(self, step: int) -> None:
        """Freeze the encoder if this is one of its `frozen_steps`.

        Args:
            step: Step number, starting at 1.
        """
        waiting = step <= self.frozen_steps
        if waiting != self.waiting:
            self.waiting = waiting
            self.train(self.training)

    def drop_frozen_gradients(self) -> None:
        """Remove the gradients of an encoder that is frozen for now.

        They are computed nevertheless: DDP expects the same graph in every step, and FSDP cannot add parameters later.
        """
        if self.waiting:
            for parameter in self.encoder.parameters():
                parameter.grad = None

    @property
    def dims(self) -> Dims:
        """The sizes of the network's `Features`."""
        return Dims(
            self.encoder.dim, self.encoder.map_channels, len(self.classes) if self.classes else None, self.dense
        )

    def map_sizes(self) -> tuple[tuple[int, ...] | None, ...]:
        """Measure `Dims.sizes` of the network's maps.

        Raises:
            ValueError: The encoder cannot be measured.
        """
        return self.encoder.map_sizes()

    @property
    def view(self) -> View:
        """The input that the network reads from a sample."""
        preprocessing = self.encoder.preprocessing
        # Per-pixel classes must cover the whole image.
        return View(self.modality, preprocessing.size, 1.0 if self.dense else preprocessing.crop)

    def forward(self, x: Any) -> Features:
        """Compute features.

        Args:
            x: Output of the modality's `collate`.
        """
        if self.encoder.channels_last and isinstance(x, Tensor) and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        features: Features = self.encoder(x)
        if self.encoder.map_channels not in ((), features.map_channels):
            raise UserError(_wrong_maps(features, self.spec["encoder"]["name"], self.encoder.map_channels))
        if self.head is not None:
            features.logits = self.head(features.maps if self.dense else features.pooled)
        return features


class Joint(nn.Module):
    """Several networks whose features are concatenated.

    Args:
        networks: The networks.
        classes: Classes of a linear head on the concatenated features, which is trained with the networks. None means
            no head; if all networks have heads with the same classes, the logits are then the log of their mean
            probabilities.
        dense: Whether classes are predicted per pixel, by a decoder on all maps.
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
        """The sizes of the joint `Features`, i.e. those of all networks, concatenated."""
        parts = [network.dims for network in self._networks()]
        maps = tuple(channels for part in parts for channels in part.maps)
        return Dims(sum(part.pooled for part in parts), maps, len(self.classes) if self.classes else None, self.dense)

    def begin_step(self, step: int) -> None:
        """See `Network.begin_step`."""
        for network in self._networks():
            network.begin_step(step)

    def drop_frozen_gradients(self) -> None:
        """See `Network.drop_frozen_gradients`."""
        for network in self._networks():
            network.drop_frozen_gradients()

    def map_sizes(self) -> tuple[tuple[int, ...] | None, ...]:
        """Measure `Dims.sizes` of the maps of all networks.

        Raises:
            ValueError: An encoder cannot be measured.
        """
        return tuple(size for network in self._networks() for size in network.map_sizes())

    @property
    def view(self) -> tuple[View, ...]:
        """The input that each network reads from a sample."""
        views = (network.view for network in self._networks())
        return tuple(replace(view, crop=1.0) if self.dense else view for view in views)

    def forward(self, x: Sequence[Any]) -> Features:
        """Compute features.

        Args:
            x: Output of the `collate` of each network's modality, in order.
        """
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


def _wrong_maps(features: Features, encoder: str, declared: Sequence[int]) -> str:
    """The message about maps with other channels than the encoder declares."""
    shapes = ", ".join(str(list(m.shape)) for m in features.maps) or "none"
    return (
        f"encoder {encoder}: its maps are {shapes}, with {list(features.map_channels)} channels, but its map_channels "
        f"are {list(declared)}. Return maps of images as [B, C, H, W], of series as [B, C, 1, L] (`x[:, :, None]`), "
        "and tokens as [B, N, C]."
    )


def _modules(encoder: Encoder, freeze: bool | int | Sequence[str]) -> list[nn.Module]:
    """The modules that stay frozen: the encoder if `freeze` is true, or its modules by dotted path."""
    if isinstance(freeze, int):
        return [encoder] if freeze is True else []
    known = dict(encoder.named_modules())
    for path in freeze:
        if not path or path not in known:
            match, parts = near(path, known), ", ".join(name for name, _ in encoder.named_children())
            hint = f", did you mean {match}?" if match else "."
            raise ValueError(f"encoder.freeze: the encoder has no module {path!r}{hint} It consists of {parts}.")
    return [known[path] for path in freeze]


def _head(dim: int, channels: Sequence[int], classes: Sequence[str] | None, size: int | None) -> nn.Module | None:
    """A linear head on pooled features of size `dim`, or, if `size` is given, a decoder of maps with these channels."""
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
    """Build a network, or a joint network from lists of modalities and encoders.

    Args:
        modality: Settings of the modality, or a list.
        encoder: Settings of the encoder, or a list of the same length.
        classes: Classes of the head; None means no head.
        where: Config path for messages, e.g. `student`.
        dense: Whether classes are predicted per pixel.

    Raises:
        UserError: The network cannot be built.
    """
    if isinstance(modality, Mapping):
        return _build_single(modality, encoder, classes, where, dense)
    parts = [_build_single(m, e, None, where, dense) for m, e in zip(modality, encoder, strict=True)]
    return Joint(parts, classes, dense)


def _build_single(modality: Any, encoder: Any, classes: Sequence[str] | None, where: str, dense: bool) -> Network:
    try:
        adapter = modalities.get(modality["name"])(**{k: v for k, v in modality.items() if k != "name"})
        own = {k: v for k, v in encoder.items() if k not in FREEZE}
        built = adapter.encoder(own)
    except (ValueError, ImportError) as error:
        raise UserError(f"{where}: {error}") from None
    if dense and not (built.map_channels and built.reads_pictures):
        raise UserError(
            f"{where}: segmentation masks require an encoder with image feature maps, which {encoder['name']} does not "
            "have; use cnn5, resnet or a vision model of transformers, or a data.label with one class per sample."
        )
    names = list(classes) if classes else None
    spec = {"modality": dict(modality), "encoder": own, "classes": names, "dense": dense}
    try:
        return Network(adapter, built, spec, encoder.get("freeze", False))
    except ValueError as error:
        raise UserError(f"{where}.{error}") from None


def save_network(network: Network | Joint, folder: Path) -> None:
    """Write weights, description and preprocessing: everything that `load_network` needs, without data or a model hub.

    The parts of a joint network are saved in subfolders, each as a complete network.

    Args:
        network: The network.
        folder: Output folder.
    """
    if (own := getattr(network, "save", None)) is not None:  # of a plain module
        own(folder)
        return
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
        state = merged_state(network)
    write_atomic(folder / WEIGHTS, save({k: v.contiguous() for k, v in state.items()}))
    write_atomic(folder / DESCRIPTION, json.dumps(description, indent=1).encode())


def load_network(folder: str | Path) -> Network | Joint:
    """Load a network that `save_network` wrote, on the CPU.

    Args:
        folder: The folder.

    Raises:
        UserError: The folder has no network, its format is not supported, or the weights do not match the description.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    try:
        spec = read_description(folder)
        if "python" in spec:
            raise UserError(
                f"{folder}: this student of wcord.distill is a module of class {spec['python']}, which only your "
                f"program can build. Build it there and load {WEIGHTS} into it."
            )
        with Bounded(folder / WEIGHTS):
            network = _build(spec, folder)
        check_size(network.view)
    except UserError:
        raise
    except Exception as error:  # networks raise anything for damaged settings
        reason = " ".join(str(error).split())[:200]
        damaged = UserError(f"{path}: damaged ({reason}). Train again, or restore the folder.")
        raise machine_fault(error, path) or damaged from None
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
            f"{folder / WEIGHTS}: does not match {DESCRIPTION} in the same folder: {reason}. Restore both, or train "
            "again."
        ) from None
    return network


def _build(spec: Mapping[str, Any], folder: Path) -> Network | Joint:
    """Build the network of a description, without its weights."""
    if "networks" in spec:
        parts = [load_single(part_of(folder, part)) for part in spec["networks"]]
        return Joint(parts, spec["classes"], spec.get("dense", False))
    modality, encoder = ({k: inside(folder, v) for k, v in spec[part].items()} for part in PARTS)
    return build_network(modality, encoder, spec["classes"], str(folder / DESCRIPTION), spec.get("dense", False))


def digest(network: nn.Module) -> str:
    """A short hash of the weights of a network."""
    return hashlib.sha256(save({k: v.contiguous() for k, v in network.state_dict().items()})).hexdigest()[:16]


def sight(network: Network | Joint) -> str:
    """Modality, encoder and preprocessing of each part of a network as JSON, without the source of the weights."""
    parts = network._networks() if isinstance(network, Joint) else [network]
    return json.dumps([_settings(part) for part in parts], sort_keys=True)


def _settings(network: Network) -> dict[str, Any]:
    preprocessing = vars(network.encoder.preprocessing)
    told = (*WHERE_WEIGHTS_LIE, *preprocessing)
    encoder = {key: value for key, value in network.spec["encoder"].items() if key not in told}
    seen = {key: value for key, value in preprocessing.items() if (key, value) != ("crop", 1.0)}  # as in older caches
    modality = dict(network.spec["modality"])
    if (revision := network.modality.revision) > 1:  # caches of the first revision do not contain the number
        modality["revision"] = revision
    return {"modality": modality, "encoder": encoder, **seen}


def load_single(folder: str | Path) -> Network:
    """Load a network that is not joint.

    Args:
        folder: The folder.

    Raises:
        UserError: As `load_network`, or the network is joint.
    """
    network = load_network(folder)
    if isinstance(network, Joint):
        raise UserError(
            f"{folder}: is a joint network, which cannot be part of another joint network; list its parts instead."
        )
    return network
