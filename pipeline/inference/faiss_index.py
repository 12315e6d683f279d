"""A nearest-neighbour index of embeddings on disk: `vectors.faiss` and `index.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.common.optional_deps import require_package

VECTORS, ABOUT = "vectors.faiss", "index.json"
EXACT = 20_000
"""Up to this many vectors, search is exhaustive. Larger indexes are divided into cells; a query visits the nearest."""
RECALL, NEIGHBOURS, TRIALS = 0.995, 10, 500
"""Minimum recall of approximate search, number of neighbours, and number of trial queries to measure it with."""


@dataclass(frozen=True)
class Hit:
    """A search result: the key of the sample, and its cosine similarity in [-1, 1]."""

    key: str
    similarity: float


@dataclass(frozen=True)
class Index:
    """Unit vectors with keys.

    Attributes:
        vectors: The faiss index.
        keys: Key of each vector.
        about: Run, role and modality of the embeddings, for `pipeline.inference.search`.
    """

    vectors: Any
    keys: list[str]
    about: dict[str, Any]

    @staticmethod
    def build(x: np.ndarray, keys: list[str], about: dict[str, Any]) -> Index:
        """Build an index.

        Args:
            x: Embeddings, fp32 `[N, D]`.
            keys: N keys.
            about: See `Index`.

        Raises:
            UserError: There are no embeddings, or some are not finite.
        """
        if not len(x) or not np.isfinite(x).all():
            raise UserError(
                f"cannot index {len(x)} embeddings, {int((~np.isfinite(x).all(1)).sum())} of which are not finite. "
                "Check the network and its inputs."
            )
        return Index(_vectors(unit(x)), keys, about)

    def search(self, queries: np.ndarray, count: int) -> list[list[Hit]]:
        """Find the `count` nearest samples of each query `[M, D]`, nearest first."""
        similarity, rows = self.vectors.search(unit(queries), min(count, len(self.keys)))
        return [
            [Hit(self.keys[row], float(value)) for value, row in zip(own, places, strict=True) if row >= 0]
            for own, places in zip(similarity, rows, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write the index to a folder.

        Raises:
            UserError: faiss is not installed.
        """
        faiss = require_package("faiss", "search")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / VECTORS, faiss.serialize_index(self.vectors).tobytes())
        write_atomic(folder / ABOUT, json.dumps(self.about | {"keys": self.keys}).encode())


def open_index(folder: Path) -> Index:
    """Read an index that `Index.save` wrote.

    Raises:
        UserError: There is no index, or it is damaged.
    """
    faiss = require_package("faiss", "search")
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        keys = about.pop("keys")
        Path(about["run"]).is_dir()  # raises ValueError for text that cannot be a path
        vectors = faiss.read_index(str(folder / VECTORS))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder / ABOUT}: damaged ({error}); rebuild the index.") from None
    except (OSError, RuntimeError, MemoryError):
        raise UserError(f"{folder}: no index found. Create one: `wcord embed RUN DATA --index {folder}`.") from None
    if not isinstance(keys, list):
        raise UserError(f"{folder / ABOUT}: damaged (its keys are not a list); rebuild the index.")
    if vectors.ntotal != len(keys):
        raise UserError(f"{folder}: has {vectors.ntotal} vectors but {len(keys)} keys; rebuild the index.")
    return Index(vectors, keys, about)


def unit(x: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, fp32, so that the inner product is the cosine similarity."""
    x = np.ascontiguousarray(x, np.float32)
    scaled: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return scaled


def _vectors(x: np.ndarray) -> Any:
    """An exact index or, for many vectors, k-means cells, of which each query visits as many as `RECALL` requires."""
    faiss = require_package("faiss", "search")
    if len(x) <= EXACT:
        exact = faiss.IndexFlatIP(x.shape[1])
        exact.add(x)
        return exact
    cells = 1 << round(np.log2(np.sqrt(len(x))))
    vectors = faiss.index_factory(x.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    vectors.cp.seed, vectors.cp.spherical = 0, True
    vectors.train(x[rng.choice(len(x), min(len(x), 64 * cells), replace=False)])
    vectors.add(x)
    trials = x[rng.choice(len(x), TRIALS, replace=False)]
    trials = unit(trials + rng.normal(0, 0.1, trials.shape) * trials.std(0))  # close to the data, but not part of it
    vectors.nprobe = cells
    true = vectors.search(trials, NEIGHBOURS)[1]
    vectors.nprobe = 1
    while vectors.nprobe < cells and recall(vectors.search(trials, NEIGHBOURS)[1], true) < RECALL:
        vectors.nprobe = min(-(-vectors.nprobe * 5 // 4), cells)
    return vectors


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Fraction of the true neighbours `[M, K]` that are among `found [M, K]`, in [0, 1]."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)]))
