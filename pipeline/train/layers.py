"""The layers of an encoder in order, for layer-wise learning rates (Clark et al. 2020, arXiv 2003.10555)."""

from __future__ import annotations

from torch import nn

from modalities.encoders.base import Encoder


def layer_numbers(encoder: Encoder) -> tuple[dict[nn.Parameter, int], int]:
    """Number the layers of an encoder.

    Layers are the blocks of a transformer, the stages of a convolutional network, or else the parts of the network in
    order.

    Args:
        encoder: The encoder.

    Returns:
        The layer number of each parameter, and the number of layers N. Parameters before the first layer, e.g. an
        embedding or a stem, have number 0; those after the last one, e.g. the final norm, have number N + 1.
    """
    layers = _layers(encoder)
    number = {parameter: i for i, layer in enumerate(layers, 1) for parameter in layer.parameters()}
    found: dict[nn.Parameter, int] = {}
    passed = False
    for parameter in encoder.parameters():
        passed = passed or parameter in number
        found[parameter] = number.get(parameter, len(layers) + 1 if passed else 0)
    return found, len(layers)


def _layers(network: nn.Module) -> list[nn.Module]:
    """The entries of the list that contains the layers, or else the parts of the network."""
    lists = _outermost_lists(network)
    if named := [one for one in lists if isinstance(one, nn.ModuleList)]:
        return _parts(max(named, key=_size))
    largest = max((one for one in lists if _alone(one, lists)), key=_size, default=None)
    if largest is not None and 2 * _size(largest) > _size(network):
        return _parts(largest)
    while len(parts := _parts(network)) == 1 and _parts(parts[0]):  # a wrapper
        network = parts[0]
    return parts


def _outermost_lists(module: nn.Module) -> list[nn.Module]:
    """Module lists and sequences with several parts that are not inside another one."""
    if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(_parts(module)) > 1:
        return [module]
    return [found for child in module.children() for found in _outermost_lists(child)]


def _alone(sequence: nn.Module, lists: list[nn.Module]) -> bool:
    """Whether no other list has entries of the same class: the blocks of a ResNet are in one sequence per stage."""
    kinds = {type(part) for part in sequence.children()}
    return not any(kinds & {type(part) for part in other.children()} for other in lists if other is not sequence)


def _parts(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if _size(child)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
