"""IPOT against the exact optimum, the algorithm written out in float64, and what a plan must be."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog
from torch.nn import functional as F

from losses import Dims, Features, LocalTransport, sinkhorn
from losses.ipot import ipot
from losses.sinkhorn import marginal_error

Double = torch.float64


def cosine_cost(n: int, m: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(k, 16, generator=rng, dtype=Double), dim=1) for k in (n, m))
    return 1 - x @ y.T


def written_out(cost: np.ndarray, beta: float, iterations: int, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Algorithm 1 of the paper with L = 1, entry by entry."""
    n, m = cost.shape
    plan, b = np.ones((n, m)), np.full(m, 1 / m)
    for _ in range(iterations):
        q = np.array([[math.exp(-cost[i, j] / beta) * plan[i, j] for j in range(m)] for i in range(n)])
        a = np.array([row[i] / sum(q[i, j] * b[j] for j in range(m)) for i in range(n)])
        b = np.array([column[j] / sum(q[i, j] * a[i] for i in range(n)) for j in range(m)])
        plan = np.array([[a[i] * q[i, j] * b[j] for j in range(m)] for i in range(n)])
    return plan


@pytest.mark.parametrize(("n", "m", "beta", "iterations"), [(7, 7, 0.5, 1), (7, 7, 0.5, 30), (5, 9, 0.2, 20)])
def test_is_the_algorithm_written_out(n: int, m: int, beta: float, iterations: int) -> None:
    cost = cosine_cost(n, m)
    expected = written_out(cost.numpy(), beta, iterations, np.full(n, 1 / n), np.full(m, 1 / m))
    found = ipot(cost, beta, iterations)
    assert found.dtype == Double
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14)


def test_given_marginals_written_out() -> None:
    cost, row, column = cosine_cost(4, 3), np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.5, 0.25, 0.25])
    found = ipot(cost, 0.5, 25, torch.from_numpy(row).log(), torch.from_numpy(column).log())
    np.testing.assert_allclose(found, written_out(cost.numpy(), 0.5, 25, row, column), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, Double])
@pytest.mark.parametrize("n", [2, 16, 64])
def test_tends_to_the_exact_assignment(n: int, dtype: torch.dtype) -> None:
    cost = cosine_cost(n, n, seed=n)
    best = cost.numpy()[linear_sum_assignment(cost.numpy())].mean()
    plan = ipot(cost.to(dtype), iterations=5000)
    assert plan.dtype == dtype
    assert float((plan * cost).sum()) == pytest.approx(best, rel=1e-4)
    assert marginal_error(plan) < 1e-5
    after_50, entropic = (float((p * cost).sum()) for p in (ipot(cost), sinkhorn(cost, 0.05, 2000)))
    assert after_50 - best < (entropic - best) / 3 or n == 2  # the answer of an entropy of 0.05 stays away from it


def test_tends_to_the_linear_programme_under_unequal_marginals() -> None:
    cost, row, column = cosine_cost(5, 4), torch.tensor([3.0, 1, 2, 2, 2]) / 10, torch.tensor([1.0, 4, 3, 2]) / 10
    held = torch.cat([torch.kron(torch.eye(5), torch.ones(1, 4)), torch.kron(torch.ones(1, 5), torch.eye(4))])
    exact = linprog(cost.flatten().numpy(), A_eq=held.numpy(), b_eq=torch.cat([row, column]).numpy())
    plan = ipot(cost, 0.5, 5000, row.double().log(), column.double().log())
    assert float((plan * cost).sum()) == pytest.approx(exact.fun, rel=1e-6)


@pytest.mark.parametrize("beta", [0.05, 2.0])
def test_beta_sets_the_pace_and_not_the_answer(beta: float) -> None:
    cost = cosine_cost(12, 12)
    best = cost.numpy()[linear_sum_assignment(cost.numpy())].mean()
    gaps = [float((ipot(cost, beta, iterations) * cost).sum()) - best for iterations in (20, 200, 20_000)]
    assert gaps[0] > gaps[1] or beta < 0.5
    assert abs(gaps[2]) < 1e-4


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_fp32_is_the_float64_plan_whatever_the_scale(scale: float) -> None:
    cost = scale * cosine_cost(40, 40)
    plan = ipot(cost.float(), 0.5, 50)
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(0), torch.full((40,), 1 / 40), rtol=1e-3, atol=0)
    torch.testing.assert_close(plan.double(), ipot(cost, 0.5, 50), rtol=0, atol=2e-3 / 40)


def test_half_precision_and_stacks_of_costs() -> None:
    costs = torch.stack([cosine_cost(6, 8, seed) for seed in range(3)])
    torch.testing.assert_close(ipot(costs)[1], ipot(costs[1]))
    assert ipot(costs.bfloat16()).dtype == torch.float32


def test_large_batches_are_couplings() -> None:
    x, y = (F.normalize(torch.randn(1024, 32), dim=1) for _ in range(2))
    plan = ipot(1 - x @ y.T, iterations=20)
    torch.testing.assert_close(plan.sum(0), torch.full((1024,), 1 / 1024), rtol=1e-4, atol=0)
    assert marginal_error(plan) < 0.01


@pytest.mark.parametrize("iterations", [1, 50])
def test_rows_without_mass_take_no_part(iterations: int) -> None:
    cost, row = cosine_cost(6, 6), torch.tensor([1.0, 1, 0, 1, 1, 0]) / 4
    plan = ipot(cost, 0.5, iterations, row.log(), row.log())
    some = row > 0
    torch.testing.assert_close(plan[some][:, some], ipot(cost[some][:, some], 0.5, iterations))
    assert plan[~some].sum() + plan[:, ~some].sum() == 0


def test_as_a_solver_the_plan_is_detached_and_the_marginals_are_weights() -> None:
    torch.manual_seed(0)
    loss = LocalTransport(Dims(8), Dims(8), space="raw", anchor=1.0, solver="ipot", beta=0.3, proximal_steps=30)
    x, y = torch.randn(10, 8, requires_grad=True, dtype=Double), torch.randn(10, 8, dtype=Double)
    cost = 1 - F.cosine_similarity(x[:, None], y[None], dim=2)
    weight = torch.arange(10, dtype=Double)
    for batch, marginal in (({}, torch.full((10,), 0.1, dtype=Double)), ({"weight": weight}, weight / 45)):
        plan = ipot(cost, 0.3, 30, marginal.log(), marginal.log())
        assert not plan.requires_grad
        value, expected = loss(Features(x), Features(y), batch), (plan * cost).sum()
        torch.testing.assert_close(value, expected)
        ours, theirs = (torch.autograd.grad(total, x, retain_graph=True)[0] for total in (value, expected))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [({"beta": 0.0}, "beta must be above 0"), ({"iterations": 0}, "iterations must be at least 1")],
)
def test_what_it_cannot_solve_is_refused(keywords: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ipot(cosine_cost(3, 3), **keywords)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n and m at least 1"):
        ipot(torch.empty(0, 3))
