"""FLOPs are those of the formulas by hand, in eager, fused and compiled networks, and counting changes no result."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.common import flops
from pipeline.common.flops import FlopCounter


class Wrapped(nn.Module):
    """The inner code of torch's own containers is not compiled."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).square().sum()


def count(network: nn.Module, x: torch.Tensor) -> int:
    with FlopCounter() as counter:
        network(x).sum().backward()
    assert not counter.unknown
    return counter.flops


def test_a_perceptron() -> None:
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8))
    forward = 2 * 32 * (64 * 128 + 128 * 8)
    # Backward: the gradients of both weights, and of the input of the second layer only.
    assert count(network, torch.randn(32, 64)) == forward + forward + 2 * 32 * 128 * 8


def test_convolutions() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 4, 3, stride=2, bias=False))
    first, second = 2 * 5 * 8 * 14**2 * 3 * 9, 2 * 5 * 4 * 6**2 * 8 * 9
    assert count(network, torch.randn(5, 3, 16, 16)) == 2 * first + 3 * second


def test_parts_of_a_step_add_up_and_other_parts_do_not_count() -> None:
    network, x = nn.Linear(4, 3), torch.randn(2, 4)
    counter = FlopCounter()
    with counter:
        out = network(x)
    network(x)
    with counter:
        out.sum().backward()
    assert counter.flops == 2 * (2 * 2 * 4 * 3)


def test_attention_in_a_fused_kernel_with_its_gradient() -> None:
    shape = 2, 4, 32, 16  # samples, heads, tokens, width of a head
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    with FlopCounter() as counter:
        out = nn.functional.scaled_dot_product_attention(q, k, v)
    product = 2 * 2 * 4 * 32 * 32 * 16
    assert counter.flops == 2 * product
    with FlopCounter() as counter:
        out.sum().backward()
    assert counter.flops == 5 * product  # the scores again, and two products for each of the two in the forward pass


@pytest.mark.parametrize("masked", [False, True])
def test_a_transformer_layer_in_one_kernel(masked: bool) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    mask = torch.arange(10)[None] >= torch.tensor([[10], [7]]) if masked else None
    x = torch.randn(2, 10, 32)
    with torch.no_grad(), FlopCounter() as counter:
        layer(x, src_key_padding_mask=mask)
    assert torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as expected:
            layer(x, src_key_padding_mask=mask)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert counter.flops == expected.get_total_flops() > 0


def test_padding_of_nested_tensors_does_not_count() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    lengths = [10, 7]
    mask = torch.arange(10)[None] >= torch.tensor(lengths)[:, None]
    with torch.no_grad(), FlopCounter() as counter:
        encoder(torch.randn(2, 10, 32), src_key_padding_mask=mask)
    assert not counter.unknown
    assert counter.flops == 2 * sum(8 * n * 32**2 + 4 * n**2 * 32 + 4 * n * 32 * 64 for n in lengths)


def test_what_cannot_be_counted_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> int:
        raise RuntimeError

    monkeypatch.setitem(flops._FUSED, torch.ops.aten.mm, wrong)
    with FlopCounter() as counter:
        out = torch.ones(2, 3) @ torch.ones(3, 2)
    assert out.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert counter.unknown == {"aten.mm"}


def test_a_counter_is_compiled_neither_with_its_network_nor_alone() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def doubled(x: torch.Tensor) -> torch.Tensor:
        x = x @ x
        torch._dynamo.graph_break()
        return x * float(x.sum())  # runs eagerly, so the counter is called while functions are compiled

    with FlopCounter() as counter:
        torch.compile(doubled, backend="eager")(torch.eye(4))
    assert counter.flops == 2 * 4**3
    assert not torch._dynamo.utils.counters["recompiles"]
    assert torch._dynamo.utils.counters["frames"]["total"] == 3


def trained(counted: bool, compiled: bool) -> tuple[list[torch.Tensor], int]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = Wrapped(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, 9)
        )
    )
    if compiled:
        network.compile()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    counter = FlopCounter()
    for step in range(3):
        x = torch.randn(4, 3, 8, 8)
        if counted and step == 0:
            with counter:
                network(x).backward()
        else:
            network(x).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*network.state_dict().values(), torch.get_rng_state()], counter.flops


@pytest.mark.parametrize(
    "compiled",
    [
        False,
        pytest.param(
            True,
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"),
            ],
        ),
    ],
)
def test_weights_and_random_state_are_the_same_without_it(compiled: bool) -> None:
    (one, counted), (two, _) = trained(True, compiled), trained(False, compiled)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert counted == 2 * (2 * 4 * 8 * 36 * 27) + 3 * (2 * 4 * 288 * 9)
    if compiled:
        stats = torch._dynamo.utils.counters["stats"]
        assert stats["unique_graphs"] > 0
        assert not torch._dynamo.utils.counters["recompiles"]
