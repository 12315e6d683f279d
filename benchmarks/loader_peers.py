"""CPU time per batch of the stream and of other loaders with equal work: see `python -m benchmarks.loader`.

The plain loader is the usual one of CIFAR repositories: photos in memory, transforms of torchvision, a DataLoader. It
decodes no JPEGs; all the others do. The step is KD from ResNet-20 to ResNet-8 at 32 px. The peer's step has the same
networks, losses and optimiser in a loop as in PyTorch's tutorials, with the plain loader.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.loader_profile import BATCH, CPU, PAD, SHIFTED, SIDE, cpu_per_batch, photo_batches
from modalities import RGB
from pipeline import config as configs
from pipeline.common.host import keep_freed_memory
from pipeline.data.augmentation import Augmentation
from pipeline.data.in_memory import InMemory
from pipeline.data.source import open_split
from pipeline.data.stream import EvalStream, loader
from pipeline.data.views import View
from pipeline.models.build import build_model
from pipeline.train import train
from pipeline.train.optimizer import build_optimizer

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CROP = (0.6, 1.0)
CONFIG = Path(__file__).parent / "configs" / "small_photos.yaml"
Start = Callable[[Path, int], Iterator[Any]]


class Photos(torch.utils.data.Dataset[Any]):
    """Photos in memory, uint8 `[N, 32, 32, 3]`, and their labels."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        stream = EvalStream(open_split(folder, "train", "label"), {"student": View(RGB(), SIDE)}, batch=BATCH)
        batches = list(loader(stream, 0, CPU))
        self.images = torch.cat([batch["student"] for batch in batches]).permute(0, 2, 3, 1).numpy().copy()
        self.labels = torch.cat([batch["label"] for batch in batches]).tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index], index


def plain(folder: Path, workers: int) -> Iterator[Any]:
    """The plain loader: shifted, mirrored, scaled and normalised by torchvision."""
    transforms = _library("torchvision.transforms")
    steps = [transforms.RandomCrop(SIDE, padding=PAD[0]), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    photos = Photos(folder, transforms.Compose(steps))
    return _endless(DataLoader(photos, BATCH, True, num_workers=workers, persistent_workers=workers > 0))


def bare(folder: Path, workers: int) -> Iterator[Any]:
    """webdataset without fixed order, resuming or checks; decoding and shifts are ours."""
    rgb, draw = RGB(jitter=0.0), Augmentation(flip=True, pad=PAD)

    def prepare(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        geometry = draw.geometry(0, int(np.random.default_rng().integers(2**63)))
        return rgb.augment(rgb.decode(sample["rgb.jpg"], {}), geometry, SIDE, None), int(sample["label.txt"])

    files = sorted(map(str, folder.glob("train-*.tar")))
    dataset = wds.WebDataset(files, shardshuffle=100, resampled=False, empty_check=False, nodesplitter=None)
    dataset = dataset.repeat().shuffle(2000).map(prepare).batched(BATCH, collation_fn=_stack)
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))


def _stack(samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*samples, strict=True)
    return RGB().collate(images), torch.tensor(labels)


def timm(folder: Path, workers: int) -> Iterator[Any]:
    """timm's loader of a folder of JPEGs: cropped, scaled, mirrored, normalised per batch."""
    data, files = _library("timm.data"), folder / "files"
    for photo in wds.WebDataset(sorted(map(str, folder.glob("train-*.tar"))), shardshuffle=False, empty_check=False):
        path = files / photo["label.txt"].decode() / f"{photo['__key__']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo["rgb.jpg"])
    own = {"scale": CROP, "ratio": (0.86, 1.16), "color_jitter": 0.0, "mean": MEAN, "std": STD, "device": CPU}
    dataset, apart = data.ImageDataset(files), {"num_workers": workers, "persistent_workers": workers > 0}
    return _endless(data.create_loader(dataset, (3, SIDE, SIDE), BATCH, is_training=True, **own, **apart))


def _endless(batches: Any) -> Iterator[Any]:
    while True:
        yield from batches


def _library(name: str) -> Any:
    """A module of the libraries that `make setup` installs beside a CPU build of torch."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "modalities"))
    importlib.import_module("library_path")
    return importlib.import_module(name)


CROPPED = Augmentation(crop=CROP, flip=True)
PEERS: dict[str, tuple[Start, Start]] = {
    "plain loader, photos in memory": (plain, photo_batches),
    "webdataset, our decoding": (bare, photo_batches),
    "timm's loader": (timm, partial(photo_batches, augmentation=CROPPED)),
}


def compare(folder: Path, steps: int, rounds: int) -> None:
    """Print CPU time per batch of each peer and of our stream, and the median of the ratios of the rounds."""
    print(f"{'loader':32s} workers   CPU ms a batch: peer   ours   peer / ours")
    for workers in (0, 2):
        for name, starts in PEERS.items():
            pairs = [[1000 * cpu_per_batch(start(folder, workers), steps) for start in starts] for _ in range(rounds)]
            peer, own = (median(column) for column in zip(*pairs, strict=True))
            ratios = [first / second for first, second in pairs]
            between = f"({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{name:32s} {workers:7d} {peer:22.2f} {own:6.2f}   {median(ratios):.2f} {between}", flush=True)


def kd_step(folder: Path) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    """A step of ours and the peer's, each a function of a batch of its loader."""
    data = f"data.shards={folder}"
    options = [data, "losses={cross_entropy: {}}", "student.encoder.name=resnet20", "train.steps=2"]
    teacher = train(configs.load(CONFIG, [*options, f"run={folder / 'teacher'}"]), overwrite=True)
    config = configs.load(CONFIG, [data, f"teacher.run={teacher}", f"run={folder / 'student'}"])
    model, other = build_model(config), build_model(config)
    optimizer, plain_optimizer = (build_optimizer(one, config) for one in (model, other))
    networks = other.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for network in (networks.teacher, networks.student):
        network.encoder.channels_last, network.encoder.normalise = False, _same  # the loader has normalised

    def ours(batch: Any) -> None:
        model(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def peer(batch: Any) -> None:
        images, labels, _ = batch
        with torch.no_grad():
            taught = networks.teacher(images).logits / 4
        logits = networks.student(images).logits
        soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(taught, 1), reduction="batchmean") * 16
        (F.cross_entropy(logits, labels) + soft).backward()
        plain_optimizer.step()
        plain_optimizer.zero_grad()

    return ours, peer


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _trained(step: Callable[[Any], None], batches: Iterator[Any]) -> Iterator[None]:
    for batch in batches:
        step(batch)
        yield


def held(folder: Path) -> Iterator[Any]:
    """The same batches from memory, in another order."""
    view = View(RGB(jitter=0.0), SIDE)
    views = {"student": view, "teacher": view}
    return iter(InMemory(open_split(folder, "train", "label"), views, SHIFTED, batch=BATCH, device=CPU))


def compare_steps(folder: Path, steps: int, rounds: int) -> None:
    """Print CPU time per KD step with data, the share of the data, and the speed compared with the peer's."""
    keep_freed_memory()
    ours, peer = kd_step(folder)
    for workers in (0, 2):
        rows = [
            [
                1000 * cpu_per_batch(batches, steps)
                for batches in (
                    photo_batches(folder, workers),
                    _trained(ours, photo_batches(folder, workers)),
                    plain(folder, workers),
                    _trained(peer, plain(folder, workers)),
                    held(folder),
                    _trained(ours, held(folder)),
                )
            ]
            for _ in range(rounds)
        ]
        for name, first in (("wcord", 0), ("plain loop", 2), ("wcord in memory", 4)):
            data, whole = (median(row[place] for row in rows) for place in (first, first + 1))
            share = median(row[first] / row[first + 1] for row in rows)
            print(f"{name}, {workers} workers: {whole:.1f} CPU ms a step, {data:.1f} of them ({share:.1%}) for data")
        for name, place in (("wcord", 1), ("wcord in memory", 5)):
            ratios = [row[3] / row[place] for row in rows]
            print(f"plain loop / {name}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
