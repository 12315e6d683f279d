import pytest
import torch
from torch import nn

from losses.batch_norm import BatchNorm


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (4, 5, 3, 2), (1, 2, 8, 8)])
def test_is_torch_s_in_training(shape: tuple[int, ...]) -> None:
    ours, theirs = BatchNorm(shape[1]).double(), nn.BatchNorm2d(shape[1]).double()
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        nn.init.normal_(parameter)
        other.data.copy_(parameter)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(shape, dtype=torch.float64)
    found, expected = (torch.autograd.grad(norm(x), (x, *norm.parameters()), gradient) for norm in (ours, theirs))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_one_value_per_channel_becomes_the_bias() -> None:
    norm = BatchNorm(3)
    nn.init.normal_(norm.bias)
    torch.testing.assert_close(norm(torch.randn(1, 3, 1, 1))[0, :, 0, 0], norm.bias)


def test_keeps_nothing() -> None:
    assert not list(BatchNorm(3).buffers())
