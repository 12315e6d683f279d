"""A student's features by the statistics of the batch: the formula, its invariances, and what it sees of a collapse."""

from __future__ import annotations

import pytest
import torch

from losses.standardise import standardised

X = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6) + 3


def test_written_out() -> None:
    for column, found in zip(X.T, standardised(X).T, strict=True):
        variance = ((column - column.mean()) ** 2).mean() + 0.01 * (X**2).mean()
        torch.testing.assert_close(found, (column - column.mean()) / variance**0.5, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_does_not_matter(scale: float) -> None:
    torch.testing.assert_close(standardised(scale * X), standardised(X), rtol=1e-9, atol=1e-9)


def test_gradient() -> None:
    assert torch.autograd.gradcheck(standardised, (X.clone().requires_grad_(),))


def test_a_common_mean_that_grows_is_seen() -> None:
    sizes = [float(standardised(X + shift).norm()) for shift in (0, 30, 300, 3000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.1 * sizes[0]
    mean = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
    standardised(X + mean).square().sum().backward()
    assert mean.grad is not None
    assert mean.grad < 0  # a smaller mean would make more of the differences


@pytest.mark.parametrize("x", [torch.zeros(4, 3), torch.full((4, 3), 7.0), torch.randn(1, 3)])
def test_nothing_to_tell_apart_is_zero_with_a_bounded_gradient(x: torch.Tensor) -> None:
    x = x.requires_grad_()
    out = standardised(x)
    assert not out.any()
    (out * torch.randn_like(out)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 20
