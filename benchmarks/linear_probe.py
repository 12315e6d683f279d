"""Measures how well frozen features of an encoder separate the classes of CIFAR-10, with a linear probe.

python -m benchmarks.linear_probe FILE.zip

FILE.zip contains the JPEGs as train/CLASS/NAME.jpg and test/CLASS/NAME.jpg.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
import yaml

from modalities import Geometry
from pipeline.evaluate.probes import classify_frozen
from pipeline.models.network import Network, build_network

ENCODER = Path(__file__).parent / "configs" / "imagenet_encoder.yaml"
BATCH = 50


def main() -> None:
    """Print the accuracy of a linear probe and of k-NN."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="zip file of train/CLASS/NAME.jpg and test/CLASS/NAME.jpg")
    parser.add_argument("--encoder", type=Path, default=ENCODER, help="YAML with `modality` and `encoder`")
    parser.add_argument("--train", type=int, default=200, help="training samples per class")
    parser.add_argument("--test", type=int, default=100, help="test samples per class")
    arguments = parser.parse_args()
    spec = yaml.safe_load(arguments.encoder.read_text())
    network = build_network({"name": spec["modality"]}, spec["encoder"], None, str(arguments.encoder))
    assert isinstance(network, Network)
    network.eval()
    train = features(network, arguments.data, "train", arguments.train)
    test = features(network, arguments.data, "test", arguments.test)
    scores = classify_frozen(*train, *test, neighbours=10)
    print(f"{len(train[0])} training and {len(test[0])} test samples, features of size {network.dims.pooled}")
    print(f"linear probe: {100 * scores['probe']:.1f} %, k-NN: {100 * scores['knn']:.1f} %")


@torch.no_grad()
def features(network: Network, path: Path, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The features `[N, D]` and class indices `[N]` of the first `count` samples of each class of a split."""
    with ZipFile(path) as file:
        names = sorted(name for name in file.namelist() if name.startswith(f"{split}/") and name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        chosen = [(n, c) for c, kind in enumerate(classes) for n in _of(names, split, kind)[:count]]
        modality, size = network.view.modality, network.view.size
        found = []
        for start in range(0, len(chosen), BATCH):
            values = [modality.decode(file.read(name), {}) for name, _ in chosen[start : start + BATCH]]
            views = [modality.augment(value, Geometry(), size, None) for value in values]
            found.append(network(modality.collate(views)).pooled)
    return torch.cat(found).numpy(), np.array([c for _, c in chosen])


def _of(names: list[str], split: str, kind: str) -> list[str]:
    return [name for name in names if name.startswith(f"{split}/{kind}/")]


if __name__ == "__main__":
    main()
