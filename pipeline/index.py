"""An index of embeddings on disk: `vectors.faiss`, `index.json`; and the samples nearest to a query."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.extras import need
from pipeline.shards import write_atomic

VECTORS, ABOUT = "vectors.faiss", "index.json"
EXACT = 20_000
"""Up to so many vectors all are compared; more are put into cells, of which a query visits the nearest."""
RECALL, NEIGHBOURS, TRIALS = 0.995, 10, 500
"""The share of the true neighbours that a search has to find, of so many, on so many trial queries of the build."""


@dataclass(frozen=True)
class Hit:
    """key: of the sample. similarity: cosine, -1 to 1."""

    key: str
    similarity: float


@dataclass(frozen=True)
class Index:
    """Unit vectors under their keys. about: whose embeddings they are, for `pipeline.search`."""

    vectors: Any
    keys: list[str]
    about: dict[str, Any]

    @staticmethod
    def build(x: np.ndarray, keys: list[str], about: dict[str, Any]) -> Index:
        """From embeddings fp32 `[N, D]`; UserError if there are none, or some are not finite."""
        if not len(x) or not np.isfinite(x).all():
            raise UserError(f"{len(x)} embeddings, {int((~np.isfinite(x).all(1)).sum())} not finite: nothing to index.")
        return Index(_vectors(unit(x)), keys, about)

    def search(self, queries: np.ndarray, count: int) -> list[list[Hit]]:
        """The nearest of each query `[M, D]`, the nearest first."""
        similarity, rows = self.vectors.search(unit(queries), min(count, len(self.keys)))
        return [
            [Hit(self.keys[row], float(value)) for value, row in zip(own, places, strict=True) if row >= 0]
            for own, places in zip(similarity, rows, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write it to a folder; UserError without faiss."""
        faiss = need("faiss", "search")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / VECTORS, faiss.serialize_index(self.vectors).tobytes())
        write_atomic(folder / ABOUT, json.dumps(self.about | {"keys": self.keys}).encode())


def open_index(folder: Path) -> Index:
    """Read what `Index.save` wrote; UserError for a folder without one."""
    faiss = need("faiss", "search")
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        keys = about.pop("keys")
        vectors = faiss.read_index(str(folder / VECTORS))
    except (OSError, RuntimeError):
        raise UserError(f"{folder}: no index there. Make one: `wcord embed RUN DATA --index {folder}`.") from None
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / ABOUT}: damaged ({error}); make the index again.") from None
    if vectors.ntotal != len(keys):
        raise UserError(f"{folder}: {vectors.ntotal} vectors, {len(keys)} keys; make the index again.")
    return Index(vectors, keys, about)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, fp32; so the inner product is the cosine."""
    x = np.ascontiguousarray(x, np.float32)
    scaled: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return scaled


def _vectors(x: np.ndarray) -> Any:
    """All compared with each; of many vectors, cells by k-means, and as many of them visited as `RECALL` takes."""
    faiss = need("faiss", "search")
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
    trials = unit(trials + rng.normal(0, 0.1, trials.shape) * trials.std(0))  # near the data, not of it
    vectors.nprobe = cells
    true = vectors.search(trials, NEIGHBOURS)[1]
    vectors.nprobe = 1
    while vectors.nprobe < cells and recall(vectors.search(trials, NEIGHBOURS)[1], true) < RECALL:
        vectors.nprobe = min(-(-vectors.nprobe * 5 // 4), cells)
    return vectors


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """The share of the rows `true [M, K]` that are among `found [M, K]`, 0 to 1."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)]))
