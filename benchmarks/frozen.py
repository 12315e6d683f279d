"""Speed of a frozen teacher on this CPU, by network: memory format, bf16 and torch.compile, in CPU time per sample.

python -m benchmarks.frozen [--rounds 3] [--compile]

The error is that of the pooled features of rendered scenes, relative to their norm. The weights are random.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import cast

import torch
from torch import Tensor
from transformers import ViTConfig

from modalities import RGB
from modalities.base import Geometry
from pipeline.models.network import Network, build_network
from pipeline.packing.synthetic import scenes

BATCH = 16
NETWORKS: dict[str, tuple[dict[str, str], int]] = {
    "resnet32x4 at 32 px": ({"name": "resnet32x4"}, 32),
    "resnet18 at 224 px": ({"name": "resnet18"}, 224),
    "ViT-B/16 at 224 px": ({"name": "transformers", "weights": "random"}, 224),
}
"""Name -> settings of the encoder, and its input size."""


def build(name: str, folder: Path) -> Network:
    """One of NETWORKS, frozen, with random weights."""
    settings, size = NETWORKS[name]
    spec = {**settings, "size": size}
    if settings["name"] == "transformers":
        ViTConfig().save_pretrained(folder)
        spec["model"] = str(folder)
    torch.manual_seed(0)
    return cast(Network, build_network({"name": "rgb"}, spec, None, "teacher")).requires_grad_(False).eval()


def inputs(size: int) -> Tensor:
    """Photos of scenes, uint8 `[BATCH, 3, size, size]`."""
    view, modality = Geometry(), RGB(jitter=0.0)
    photos = [modality.decode(scenes.scene(0, number, size)["rgb.jpg"], {}) for number in range(BATCH)]
    return torch.stack([modality.augment(scene, view, size, None) for scene in photos])


@contextmanager
def channels_first(network: Network) -> Iterator[None]:
    """The memory format that is not the default of a convolutional network."""
    before = network.encoder.channels_last
    network.encoder.channels_last = False
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    yield
    network.encoder.channels_last = before
    if before:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def milliseconds(network: Network, x: Tensor, half: bool) -> tuple[float, Tensor]:
    """CPU time of a forward pass per sample, after one to warm up, and its pooled features."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        network(x)
        begun = time.process_time()
        found = network(x).pooled
    return 1000 * (time.process_time() - begun) / len(x), found.float()


def round_of(network: Network, x: Tensor, compiled: bool) -> dict[str, tuple[float, Tensor]]:
    """Variant -> CPU milliseconds per sample, and features. All variants run one after the other."""
    found = {"fp32": milliseconds(network, x, False), "bf16": milliseconds(network, x, True)}
    if network.encoder.channels_last:
        with channels_first(network):
            found["fp32, channels first"] = milliseconds(network, x, False)
            found["bf16, channels first"] = milliseconds(network, x, True)
    if compiled:
        network.compile()
        found["fp32, compiled"] = milliseconds(network, x, False)
        found["bf16, compiled"] = milliseconds(network, x, True)
        network._compiled_call_impl = None
    return found


def measure(name: str, rounds: int, compiled: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        network = build(name, Path(folder))
        x = inputs(NETWORKS[name][1])
    found = [round_of(network, x, compiled) for _ in range(rounds)]
    print(f"\n{name:24s} {'ms a sample':>12s} {'speed-up':>9s}  {'range':>12s} {'error':>9s}", flush=True)
    exact = found[0]["fp32"][1]
    for variant in found[0]:
        ratios = [one["fp32"][0] / one[variant][0] for one in found]
        error = float((found[0][variant][1] - exact).norm() / exact.norm())
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        took = median(one[variant][0] for one in found)
        print(f"  {variant:22s} {took:12.2f} {median(ratios):9.2f}  {spread:>12s} {error:9.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), help="; ".join(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # CPU time is then that of the network, also on a machine that runs other programs
    for name in options.networks:
        measure(name, options.rounds, options.compile)


if __name__ == "__main__":
    main()
