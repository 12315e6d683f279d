"""The numbers that show a collapse, by hand."""

from __future__ import annotations

import pytest
import torch

from losses.diagnostics import effective_rank, relative_std


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
