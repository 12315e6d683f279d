"""Oracle: `sinkhorn`, which holds the whole plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launching import spawn
from torch.nn import functional as F

from losses import row_blocked, rows, sinkhorn
from losses.row_blocked import transport_cost
from losses.sinkhorn import marginal_error


def unit(n: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(n, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


@pytest.mark.parametrize("elements", [1, 100, 1 << 20])
@pytest.mark.parametrize(("n", "m"), [(20, 20), (13, 30), (30, 13), (1, 1)])
@pytest.mark.parametrize("epsilon", [0.5, 0.05, 1e-3])
def test_is_the_plan_without_the_plan(
    n: int, m: int, epsilon: float, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BLOCK_ELEMENTS", elements)
    x, y = unit(n, 0).requires_grad_(), unit(m, 1).requires_grad_()
    goods = torch.randn(m, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cost, diagonal, error, brought = transport_cost(x, y, epsilon, 15, carried=goods)
    found = torch.autograd.grad(3 * cost, (x, y))
    plan = sinkhorn((1 - x @ y.T).detach(), epsilon, 15)
    expected = (plan * (1 - x @ y.T)).sum()
    torch.testing.assert_close(cost, expected)
    torch.testing.assert_close(found, torch.autograd.grad(3 * expected, (x, y)))
    torch.testing.assert_close(diagonal, plan.diagonal().sum())
    torch.testing.assert_close(error, marginal_error(plan))
    torch.testing.assert_close(brought, plan @ goods)


def test_columns_that_no_row_wants_are_filled_as_by_logarithms() -> None:
    x = unit(8, 0, torch.float32)
    y = torch.cat([x[:4], -x[:4]])
    plan = sinkhorn((1 - x @ y.T).double(), 2e-3, 30)
    torch.testing.assert_close(
        transport_cost(x, y, 2e-3, 30)[0], (plan * (1 - x @ y.T)).sum().float(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("epsilon", "underflows"), [(0.1, False), (2e-3, True)])
def test_looks_at_the_data_once(epsilon: float, underflows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes a number or a choice of Python waits for the device."""
    looks: list[str] = []
    for name in ("__bool__", "__float__", "__int__", "item", "tolist"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, name=name, plain=plain: (looks.append(name), plain(x))[1])
    x = unit(8, 0, torch.float32)
    passes, blocks = [], row_blocked._Problem.blocks
    monkeypatch.setattr(row_blocked._Problem, "blocks", lambda *arguments: passes.append(0) or blocks(*arguments))
    transport_cost(x, torch.cat([x[:4], -x[:4]]), epsilon, 30)
    assert looks == ["__bool__"]
    assert len(passes) == (91 if underflows else 31)


def test_an_anchored_prior_is_an_odds() -> None:
    x, y, a = unit(12, 0), unit(12, 1), 0.3
    prior = (1 - a) * torch.eye(12, dtype=torch.float64) / 12 + a / 144
    plan = sinkhorn(1 - x @ y.T, 0.1, 20, prior.log())
    found = transport_cost(x, y, 0.1, 20, 1 + 12 * (1 - a) / a)
    torch.testing.assert_close(found[0], (plan * (1 - x @ y.T)).sum())
    torch.testing.assert_close(found[1], plan.diagonal().sum())


def _columns_that_no_row_wants(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    x = unit(8, 0, torch.float32)
    found = transport_cost(x, torch.cat([x[:4], -x[:4]]), 2e-3, 30, carried=x)
    torch.save([part.clone() for part in found if part is not None], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_that_share_the_rows_fill_such_columns_too(tmp_path: Path) -> None:
    x = unit(8, 0, torch.float32)
    one = transport_cost(x, torch.cat([x[:4], -x[:4]]), 2e-3, 30, carried=x)
    spawn(_columns_that_no_row_wants, (2, str(tmp_path)), 2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, list(one), rtol=1e-5, atol=1e-6)
