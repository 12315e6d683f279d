"""The index: exact for few vectors, nearly so for many, and refused where it is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.inference import faiss_index as module
from pipeline.inference.faiss_index import RECALL, Index, open_index, recall, unit

pytest.importorskip("faiss")
RNG = np.random.default_rng(0)


def keys(count: int) -> list[str]:
    return [f"k{i}" for i in range(count)]


def test_the_nearest_by_cosine_come_first_and_are_found_again(tmp_path: Path) -> None:
    x, queries = RNG.normal(size=(60, 8)), RNG.normal(size=(3, 8))
    Index.build(x, keys(60), {"run": "runs/x"}).save(tmp_path / "index")
    again = open_index(tmp_path / "index")
    assert again.about == {"run": "runs/x"}
    cosine = unit(queries) @ unit(x).T
    for row, hits in zip(cosine, again.search(queries, 5), strict=True):
        assert [hit.key for hit in hits] == [f"k{i}" for i in np.argsort(-row)[:5]]
        np.testing.assert_allclose([hit.similarity for hit in hits], np.sort(row)[::-1][:5], atol=1e-5)
    assert len(again.search(queries, 99)[0]) == 60


def test_many_vectors_are_found_by_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of clustered vectors a part of the cells is enough; of others, as many are visited as it takes."""
    monkeypatch.setattr(module, "EXACT", 100)
    centres = RNG.normal(size=(40, 16)) * 2
    for spread, visits_less in ((0.3, True), (30.0, False)):
        x = centres[RNG.integers(0, 40, 4000)] + spread * RNG.normal(size=(4000, 16))
        index = Index.build(x, keys(4000), {})
        assert index.vectors.nlist == 64
        assert (index.vectors.nprobe < 16) == visits_less
        queries = unit(centres[RNG.integers(0, 40, 200)] + spread * RNG.normal(size=(200, 16)))
        true = np.argsort(-(queries @ unit(x).T), 1)[:, :10]
        assert recall(index.vectors.search(queries, 10)[1], true) > RECALL - 0.02


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no index found. Create one: `wcord embed RUN DATA --index"):
        open_index(tmp_path)
    Index.build(np.eye(4), keys(4), {}).save(tmp_path)
    (tmp_path / "index.json").write_text('{"keys": ["a"], "run": "runs/a"}')
    with pytest.raises(UserError, match="has 4 vectors but 1 keys"):
        open_index(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_index(tmp_path)
    with pytest.raises(UserError, match="2 embeddings, 1 of which are not finite"):
        Index.build(np.array([[1.0, 2], [np.nan, 0]]), keys(2), {})
