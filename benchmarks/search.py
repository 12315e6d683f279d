"""Search in many embeddings: time per query and recall@10 of the index, compared with exact search.

    python -m benchmarks.search --vectors 1000000

The vectors have 128 dimensions and are structured like embeddings: 1,000 noisy clusters on a curved surface of 24
dimensions. `--structure none` draws them uniformly on the sphere, where no index can be much faster than exhaustive
search.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import faiss
import numpy as np

from pipeline.inference.faiss_index import NEIGHBOURS, Index, recall, unit

DIM, LATENT, CLUSTERS, QUERIES = 128, 24, 1000, 200


def draw(count: int, seed: int, structure: bool) -> np.ndarray:
    """Draw unit vectors `[count, 128]`; all seeds share the same surface."""
    rng, shape = np.random.default_rng(seed), np.random.default_rng(0)
    if not structure:
        return unit(rng.standard_normal((count, DIM), np.float32))
    centres = 1.5 * shape.standard_normal((CLUSTERS, LATENT), np.float32)
    first = shape.standard_normal((LATENT, 2 * DIM), np.float32) / LATENT**0.5
    second = shape.standard_normal((2 * DIM, DIM), np.float32) / (2 * DIM) ** 0.5
    parts = []
    for begin in range(0, count, 100_000):
        n = min(100_000, count - begin)
        latent = centres[rng.integers(0, CLUSTERS, n)] + rng.standard_normal((n, LATENT), np.float32)
        parts.append(np.maximum(latent @ first, 0) @ second + 0.05 * rng.standard_normal((n, DIM), np.float32))
    return unit(np.concatenate(parts))


def timed(vectors: Any, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds per query (run one at a time), and the rows found."""
    times, rows = [], []
    for query in queries:
        begun = time.perf_counter()
        rows.append(vectors.search(query[None], NEIGHBOURS)[1][0])
        times.append(1000 * (time.perf_counter() - begun))
    return np.array(times), np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--structure", choices=["clusters", "none"], default="clusters")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    structure = arguments.structure == "clusters"
    x, queries = draw(arguments.vectors, 1, structure), draw(QUERIES, 2, structure)
    begun = time.perf_counter()
    index = Index.build(x, list(map(str, range(len(x)))), {}).vectors
    built = time.perf_counter() - begun
    exact = faiss.IndexFlatIP(DIM)
    exact.add(x)
    ours, found = timed(index, queries)
    theirs, true = timed(exact, queries)
    print(f"{len(x):,} x {DIM}, {arguments.structure}: built in {built:.0f} s; {index.nprobe} of {index.nlist} cells")
    print(f"index  {np.median(ours):7.2f} ms a query (95 %: {np.percentile(ours, 95):.2f})")
    print(
        f"exact  {np.median(theirs):7.2f} ms a query; index is {np.median(theirs) / np.median(ours):.1f} times faster"
    )
    print(f"recall@{NEIGHBOURS} {recall(found, true):.4f}")


if __name__ == "__main__":
    main()
