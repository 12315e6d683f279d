"""Build the optimiser: parameter groups with their learning rates and weight decay."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from losses.base import Loss
from pipeline.common.files import write_atomic
from pipeline.config.settings import Config, Train
from pipeline.models.distillation import Distillation
from pipeline.models.network import Joint
from pipeline.train.activation_checkpointing import encoders
from pipeline.train.layers import layer_numbers

log = logging.getLogger(__name__)

LEARNING_RATES = "learning_rates.json"
"""The file with the peak learning rate and number of parameters of each part."""


def build_optimizer(model: Distillation, config: Config) -> torch.optim.Optimizer:
    """Build AdamW, or SGD with momentum 0.9.

    Vectors and scalars (biases, norms) have no weight decay unless `train.decay_vectors` is set. Parameters in
    `never_decayed` of a loss never have weight decay. Each group has a `factor` for the learning rate.

    Args:
        model: The model.
        config: The config.
    """
    groups, decay = [], config.train.weight_decay
    losses = [loss for loss in model.losses.modules() if isinstance(loss, Loss)]
    never = (
        {getattr(loss, name) for loss in losses for name in loss.never_decayed} if config.train.decay_vectors else {}
    )
    factors = {p: factor for _, parameters, factor in _parts(model, config.train) for p in parameters}
    for part in (model.student, model.losses):  # separate, since FSDP only shards the student
        trained = [p for p in part.parameters() if p.requires_grad]
        vectors = [p for p in trained if p.ndim <= 1]
        for alike, own_decay in (
            ([p for p in trained if p.ndim > 1], decay),
            ([p for p in vectors if p not in never], decay * config.train.decay_vectors),
            ([p for p in vectors if p in never], 0.0),
        ):
            groups += _by_factor(alike, own_decay, factors)
    if config.train.optimizer == "sgd":
        return _eager(torch.optim.SGD)(groups, lr=config.train.learning_rate, momentum=0.9)
    return _eager(torch.optim.AdamW)(groups, lr=config.train.learning_rate, fused=True)


def _eager(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """An optimiser without the wrappers that keep it from being compiled: they import torch._dynamo (a second).

    `train.compile` compiles the networks only.
    """
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def _by_factor(
    parameters: Iterable[nn.Parameter], decay: float, factors: dict[nn.Parameter, float]
) -> list[dict[str, Any]]:
    """The groups with the same weight decay: one for each learning rate factor, in the order of the parameters."""
    found: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        found.setdefault(factors[parameter], []).append(parameter)
    return [{"params": alike, "weight_decay": decay, "factor": factor} for factor, alike in found.items()]


def _parts(model: Distillation, train: Train) -> list[tuple[str, list[nn.Parameter], float]]:
    """Name, parameters and learning rate factor of each part that is trained."""
    factors, parts = train.learning_rate_factors, []
    inside = encoders(model.student)
    for place, encoder in enumerate(inside):
        name = "encoder" if len(inside) == 1 else f"encoder {place}"
        if train.layer_decay == 1:
            parts.append((name, list(encoder.parameters()), factors.encoder))
            continue
        numbers, last = layer_numbers(encoder)
        for number in range(last + 2):
            own = [parameter for parameter, its in numbers.items() if its == number]
            title = f"{name}, " + (
                "before the layers" if not number else "after the layers" if number > last else f"layer {number}"
            )
            parts.append((title, own, factors.encoder * train.layer_decay ** (last + 1 - number)))
    encoded = {parameter for encoder in inside for parameter in encoder.parameters()}
    parts.append(("head", [p for p in model.student.parameters() if p not in encoded], factors.head))
    parts.append(("losses", list(model.losses.parameters()), factors.losses))
    trained = [(name, [p for p in own if p.requires_grad], factor) for name, own, factor in parts]
    return [part for part in trained if part[1]]


def record_learning_rates(model: Distillation, config: Config, run: Path) -> None:
    """Log the peak learning rate and number of trainable parameters of each part, and write them to the run folder.

    Args:
        model: The model.
        config: The config.
        run: The run folder.
    """
    parts = [
        {"part": name, "learning_rate": config.train.learning_rate * factor, "parameters": sum(p.numel() for p in own)}
        for name, own, factor in _parts(model, config.train)
    ]
    write_atomic(run / LEARNING_RATES, json.dumps(parts, indent=1).encode())
    told = [f"{part['part']} {part['learning_rate']:.3g} ({part['parameters']:,} parameters)" for part in parts]
    if frozen := sum(p.numel() for p in model.student.parameters() if not p.requires_grad):
        told.append(f"{frozen:,} parameters are frozen")
    networks = model.student._networks() if isinstance(model.student, Joint) else [model.student]
    told += [f"an encoder is frozen for the first {n} steps" for part in networks if (n := part.frozen_steps)]
    log.info(f"learning rates: {'; '.join(told)}")
