"""A finished network for use from Python: files in, labels and embeddings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device

from losses import Features
from pipeline.errors import UserError
from pipeline.inputs import Input, find_inputs
from pipeline.network import DESCRIPTION, Joint, Network, load_network
from pipeline.prepare import together
from pipeline.skipped import SampleError, Skipped

BATCH = 64

Places = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class Prediction:
    """key: of a file its path, of a shard the sample's. probabilities: class -> 0 to 1, the likeliest first."""

    key: str
    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The likeliest class."""
        return next(iter(self.probabilities))


class Student:
    """`predict` and `embed` of a finished network, on the GPU if there is one.

    Both take a path or several: files, folders, packed data sets, shards. `skipped` collects what cannot be read;
    without such a list the first one raises UserError.
    """

    def __init__(self, network: Network | Joint) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.eval().to(self.device)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes in the order of the logits; None without a head."""
        return self.network.classes

    def predict(self, places: Places, skipped: list[Skipped] | None = None) -> list[Prediction]:
        """Class probabilities of every input, in order; UserError for a network without classes."""
        return [prediction for keys, out in self.run(places, skipped) for prediction in self.name(keys, out)]

    def embed(self, places: Places, skipped: list[Skipped] | None = None) -> tuple[list[str], np.ndarray]:
        """Keys and the network's pooled features, fp32 `[N, D]`."""
        keys: list[str] = []
        rows: list[np.ndarray] = []
        for own, out in self.run(places, skipped):
            keys += own
            rows.append(out.pooled.float().cpu().numpy())
        return keys, np.concatenate(rows) if rows else np.empty((0, self.network.dims.pooled), np.float32)

    def run(self, places: Places, skipped: list[Skipped] | None = None) -> Iterator[tuple[list[str], Features]]:
        """Keys and features of the inputs, a batch of at most 64 at a time, on the student's device."""
        several = [places] if isinstance(places, str | Path) else places
        inputs = find_inputs(several, self.network.view)
        while some := list(islice(inputs, BATCH)):
            seen = [(one.key, value) for one in some if (value := _look(one, skipped)) is not None]
            if seen:
                yield [key for key, _ in seen], self.features([value for _, value in seen])

    @torch.no_grad()
    def features(self, seen: list[object]) -> Features:
        """The features, `pooled [B, D]`, of B samples as the modality's `augment` made them."""
        features: Features = self.network(send_to_device(together(self.network.view, seen), self.device))
        return features

    def name(self, keys: list[str], out: Features) -> list[Prediction]:
        """The classes behind the logits `[B, K]` of the samples `keys`; UserError for a network without classes."""
        if self.classes is None or out.logits is None:
            raise UserError("this network has no classes: it was trained without labels. Use `embed`.")
        probabilities = out.logits.float().softmax(1).cpu()
        found = []
        for key, row in zip(keys, probabilities, strict=True):
            order = row.argsort(descending=True).tolist()
            found.append(Prediction(key, {self.classes[i]: float(row[i]) for i in order}))
        return found


def load(run: str | Path) -> Student:
    """What `pipeline.load` calls."""
    return Student(load_network(network_folder(Path(run))))


def network_folder(run: Path) -> Path:
    """Where the network of a run, or of an exported folder, lies."""
    return run if (run / DESCRIPTION).is_file() else run / "student"


def _look(one: Input, skipped: list[Skipped] | None) -> object | None:
    try:
        value: object = one.look()
    except SampleError as error:
        if skipped is None:
            raise
        skipped.append(error.skipped)
        return None
    return value
