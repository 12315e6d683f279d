"""The numbers that show a collapse, by hand."""

from __future__ import annotations

import pytest
import torch

from losses.diagnostics import effective_rank, relative_std, similarity_gap


def test_rank_counts_the_directions_that_are_used() -> None:
    x = torch.cat([torch.eye(4), -torch.eye(4)]) + 3
    assert effective_rank(torch.nn.functional.pad(x, (0, 5))) == pytest.approx(4)
    assert effective_rank(torch.ones(6, 3)) == pytest.approx(1)


def test_what_is_not_finite_is_a_number_still() -> None:
    """A log line may fall on a step that is not finite."""
    x = torch.randn(6, 4)
    x[2] = torch.inf
    assert effective_rank(x).isnan()
    assert relative_std(x).isnan()
    assert similarity_gap(x, x).isnan()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_gap_by_hand(n: int) -> None:
    s, t = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(n)).unbind()
    cosine = [[float(torch.cosine_similarity(a, b, dim=0)) for b in t] for a in s]
    pairs = sum(cosine[i][i] for i in range(n)) / n
    others = sum(cosine[i][j] for i in range(n) for j in range(n) if i != j) / max(n * (n - 1), 1)
    assert float(similarity_gap(s, t)) == pytest.approx(pairs - others, abs=1e-6)
