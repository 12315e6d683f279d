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
from pipeline.common.errors import UserError
from pipeline.data.skipped import SampleError, Skipped
from pipeline.data.views import collate_view
from pipeline.inference.inputs import Input, find_inputs
from pipeline.models.hub_student import student_folder
from pipeline.models.network import Joint, Network, load_network

BATCH = 64

Places = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of one input.

    Attributes:
        key: Path of the file, or key of the sample in a shard.
        probabilities: Class -> probability in [0, 1], the most likely first.
    """

    key: str
    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The most likely class."""
        return next(iter(self.probabilities))


class Student:
    """A finished network with `predict` and `embed`, on the GPU if there is one.

    Both take one path or several: files, folders, packed datasets or shards. Inputs that cannot be read are appended
    to `skipped`; without such a list, the first one raises UserError.

    Args:
        network: The network.

    Example:
        ```python
        student = wcord.load("runs/rgb_to_depth")
        for prediction in student.predict("recordings/depth"):
            print(prediction.key, prediction.label)
        keys, features = student.embed(["a.png", "b.png"])  # features [2, D]
        ```
    """

    def __init__(self, network: Network | Joint) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.eval().to(self.device)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes in the order of the logits; None without a class head."""
        return self.network.classes

    def predict(self, places: Places, skipped: list[Skipped] | None = None) -> list[Prediction]:
        """Predict class probabilities of every input, in order.

        Args:
            places: Paths.
            skipped: Inputs that cannot be read are appended to it.

        Raises:
            UserError: The network has no classes, or an input cannot be read and `skipped` is None.
        """
        return [prediction for keys, out in self.run(places, skipped) for prediction in self.name(keys, out)]

    def embed(self, places: Places, skipped: list[Skipped] | None = None) -> tuple[list[str], np.ndarray]:
        """Compute the pooled features of every input.

        Args:
            places: Paths.
            skipped: Inputs that cannot be read are appended to it.

        Returns:
            Keys, and features fp32 `[N, D]`.

        Raises:
            UserError: An input cannot be read and `skipped` is None.
        """
        keys: list[str] = []
        rows: list[np.ndarray] = []
        for own, out in self.run(places, skipped):
            keys += own
            rows.append(out.pooled.float().cpu().numpy())
        return keys, np.concatenate(rows) if rows else np.empty((0, self.network.dims.pooled), np.float32)

    def run(self, places: Places, skipped: list[Skipped] | None = None) -> Iterator[tuple[list[str], Features]]:
        """Yield keys and features of the inputs in batches of at most 64, on the device of the student."""
        several = [places] if isinstance(places, str | Path) else places
        inputs = find_inputs(several, self.network.view)
        while some := list(islice(inputs, BATCH)):
            seen = [(one.key, value) for one in some if (value := _look(one, skipped)) is not None]
            if seen:
                yield [key for key, _ in seen], self.features([value for _, value in seen])

    @torch.no_grad()
    def features(self, seen: list[object]) -> Features:
        """Run the network on samples.

        Args:
            seen: B samples as returned by `augment` of the modality.

        Returns:
            `pooled [B, D]`, maps and logits.
        """
        features: Features = self.network(send_to_device(collate_view(self.network.view, seen), self.device))
        return features

    def name(self, keys: list[str], out: Features) -> list[Prediction]:
        """Convert logits to predictions.

        Args:
            keys: Keys of the B samples.
            out: Features with logits `[B, K]`.

        Raises:
            UserError: The network has no classes.
        """
        if self.classes is None or out.logits is None:
            raise UserError("this network has no classes: it was trained without labels. Use `embed`.")
        probabilities = out.logits.float().softmax(1).cpu()
        found = []
        for key, row in zip(keys, probabilities, strict=True):
            order = row.argsort(descending=True).tolist()
            found.append(Prediction(key, {self.classes[i]: float(row[i]) for i in order}))
        return found


def load(run: str | Path) -> Student:
    """Load the student of a run, or an exported student.

    Args:
        run: The folder, or the name of an exported student on the Hugging Face Hub, such as `you/name`.

    Raises:
        UserError: The folder has no student, or the Hub has no such student or cannot be reached.

    Example:
        ```python
        print(wcord.load("runs/rgb_to_depth").predict("recordings/depth")[0].label)
        ```
    """
    return Student(load_network(student_folder(run)))


def _look(one: Input, skipped: list[Skipped] | None) -> object | None:
    try:
        value: object = one.look()
    except SampleError as error:
        if skipped is None:
            raise
        skipped.append(error.skipped)
        return None
    return value
