"""Sinkhorn against POT, its own optimality conditions and, where it lies beside the project, the published plans."""

import importlib
import math
import shutil
from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch.nn import functional as F

from losses import Dims, Features, LocalTransport, PositionTransport, sinkhorn
from losses.sinkhorn import marginal_error

solver = importlib.import_module("losses.sinkhorn")


def unit_cost(n: int, m: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(k, 16, generator=rng, dtype=torch.float64), dim=1) for k in (n, m))
    return 1 - x @ y.T


@pytest.mark.parametrize(("n", "m", "epsilon"), [(16, 16, 0.5), (64, 64, 0.05), (32, 48, 0.1), (24, 7, 0.02)])
def test_agrees_with_pot(n: int, m: int, epsilon: float) -> None:
    cost = unit_cost(n, m)
    ours = sinkhorn(cost, epsilon, iterations=5000)
    theirs = ot.sinkhorn(
        np.full(n, 1 / n),
        np.full(m, 1 / m),
        cost.numpy(),
        epsilon,
        method="sinkhorn_log",
        numItermax=5000,
        stopThr=1e-14,
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_agrees_with_published_plans(golden: Any) -> None:
    cases = sorted({key.split("/")[1] for key in golden.files if key.startswith("sinkhorn/")})
    assert len(cases) >= 5
    for case in cases:
        epsilon = float(case.split("eps")[1])
        cost = torch.from_numpy(golden[f"sinkhorn/{case}/cost"])
        plan = sinkhorn(cost, epsilon=epsilon, iterations=40_000)
        np.testing.assert_allclose(
            plan,
            golden[f"sinkhorn/{case}/plan"],
            rtol=1e-4,
            atol=1e-7 + 4 * golden[f"sinkhorn/{case}/marginal_error"],
            err_msg=case,
        )
        single = sinkhorn(cost.float(), epsilon=epsilon, iterations=2000)
        np.testing.assert_allclose((single * cost).sum(), golden[f"sinkhorn/{case}/transport_cost"], rtol=1e-4)


def test_plan_is_a_coupling_that_solves_the_problem() -> None:
    """log P = -cost / epsilon + f_i + g_j + log prior: every 2 x 2 minor of the log plan tells the cost's back."""
    cost, epsilon = unit_cost(12, 12), 0.1
    prior = (0.8 * torch.eye(12, dtype=torch.float64) / 12 + 0.2 / 144).log()
    plan = sinkhorn(cost, epsilon, 2000, prior)
    assert marginal_error(plan) < 1e-9
    torch.testing.assert_close(plan.sum(0), torch.full((12,), 1 / 12, dtype=torch.float64))
    reduced = plan.log() + cost / epsilon - prior
    minors = reduced[:, None, :, None] - reduced[:, None, None] - reduced[None, :, :, None] + reduced[None, :, None]
    assert minors.abs().max() < 1e-8


def test_plan_is_equivariant_and_batched() -> None:
    cost = torch.stack([unit_cost(9, 5, seed) for seed in range(3)])
    plans = sinkhorn(cost, 0.1, 200)
    rows, columns = torch.randperm(9), torch.randperm(5)
    torch.testing.assert_close(sinkhorn(cost[:, rows][:, :, columns], 0.1, 200), plans[:, rows][:, :, columns])
    for single, plan in zip(cost, plans, strict=True):
        torch.testing.assert_close(sinkhorn(single, 0.1, 200), plan)


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.01, 0.001])
def test_half_precision_gives_a_finite_fp32_plan_of_mass_one(epsilon: float) -> None:
    cost = unit_cost(40, 40).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        plan = sinkhorn(cost, epsilon, 50)
    assert plan.dtype == torch.float32
    assert torch.isfinite(plan).all()
    assert plan.sum().item() == pytest.approx(1, abs=1e-4)


def test_identity_prior_keeps_the_pairs() -> None:
    plan = sinkhorn(unit_cost(8, 8), 0.1, 20, torch.eye(8).log())
    torch.testing.assert_close(plan, torch.eye(8, dtype=torch.float64) / 8)


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 1e-2, 1e-3])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 33), (300, 200), pytest.param(900, 1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("prior", [False, True])
def test_products_and_logarithms_are_the_same_iteration(n: int, m: int, epsilon: float, prior: bool) -> None:
    """A cost that asks for a gradient takes the logarithms; the same iterations have to end in the same plan."""
    cost = unit_cost(n, m)
    log_prior = (torch.eye(n, m, dtype=torch.float64) + 0.01).log() if prior else None
    for iterations in (1, 2, 15):
        by_logarithms = sinkhorn(cost.clone().requires_grad_(), epsilon, iterations, log_prior).detach()
        torch.testing.assert_close(sinkhorn(cost, epsilon, iterations, log_prior), by_logarithms, rtol=1e-7, atol=1e-12)
        single = sinkhorn(cost.float(), epsilon, iterations, None if log_prior is None else log_prior.float())
        # fp32 rounds a log kernel of size 2 / epsilon to 2e-7 of that.
        torch.testing.assert_close(single, by_logarithms.float(), rtol=2e-6 / epsilon + 1e-4, atol=1e-7)


def test_threads_share_a_large_kernel() -> None:
    cost, threads = unit_cost(1100, 700), torch.get_num_threads()
    try:
        plans = []
        for number in (1, 3):
            torch.set_num_threads(number)
            plans.append(sinkhorn(cost, 0.02, 25))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*plans, rtol=1e-10, atol=0)
    torch.testing.assert_close(plans[0], sinkhorn(cost.requires_grad_(), 0.02, 25).detach(), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("epsilon", [1.0, 1e-3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_hard_costs_give_a_plan(scale: float, epsilon: float, dtype: torch.dtype) -> None:
    """Duplicated rows, a zero vector, one sample, costs of any unit: finite, columns exact, duplicates alike."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(30, 16, generator=rng)
    x[7] = x[3]
    x[11] = 0
    y = torch.randn(30, 16, generator=rng)
    cost = (scale * (1 - F.normalize(x, dim=1) @ F.normalize(y, dim=1).T)).to(dtype)
    plan = sinkhorn(cost, epsilon * scale, 100)
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.sum(0), torch.full((30,), 1 / 30), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(plan[7], plan[3])
    exact = sinkhorn((cost.double() / scale).requires_grad_(), epsilon, 100).detach()
    assert (plan - exact).abs().sum() < 1e-4 / epsilon
    assert torch.equal(sinkhorn(cost[:1, :1], epsilon, 3), torch.ones(1, 1))
    alone = sinkhorn(scale * torch.ones(1, 1), scale * 1e-3, 3)
    torch.testing.assert_close(alone, torch.ones(1, 1))


def test_marginals_to_1e_5_and_the_linear_program_in_the_limit() -> None:
    cost = unit_cost(40, 40)
    assert marginal_error(sinkhorn(cost.float(), 0.05, 3000)) < 1e-5
    exact = ot.emd2([], [], cost.numpy())
    epsilons = (0.1, 0.03, 0.01, 0.003)
    gaps = [(sinkhorn(cost, epsilon, 20_000) * cost).sum().item() - exact for epsilon in epsilons]
    assert gaps == sorted(gaps, reverse=True)
    for epsilon, gap in zip(epsilons, gaps, strict=True):
        # The entropies of two couplings of uniform marginals differ by log n at most.
        assert -1e-6 < gap < epsilon * math.log(40)
    assert gaps[-1] < gaps[0] / 50


def test_given_marginals_and_masked_rows_against_pot() -> None:
    cost, rng = unit_cost(12, 9), np.random.default_rng(0)
    row, column = rng.random(12), rng.random(9)
    row[4] = column[2] = 0
    row, column = row / row.sum(), column / column.sum()
    log_row, log_column = torch.from_numpy(row).log(), torch.from_numpy(column).log()
    plan = sinkhorn(cost, 0.1, 3000, log_row=log_row, log_column=log_column)
    assert (plan[4] == 0).all()
    assert (plan[:, 2] == 0).all()
    # POT's takes no empty rows.
    keep_row, keep_column = row > 0, column > 0
    theirs = ot.sinkhorn(
        row[keep_row], column[keep_column], cost.numpy()[keep_row][:, keep_column], 0.1, numItermax=3000, stopThr=1e-14
    )
    np.testing.assert_allclose(plan.numpy()[keep_row][:, keep_column], theirs, atol=1e-10)
    plans = sinkhorn(cost.expand(3, 12, 9), 0.1, 3000, log_row=log_row.expand(3, 12), log_column=log_column)
    torch.testing.assert_close(plans[1], plan)


@pytest.mark.parametrize(
    ("penalty", "iterations"), [(0.1, 2000), (1.0, 2000), pytest.param(100.0, 20_000, marks=pytest.mark.slow)]
)
def test_marginals_at_a_price_against_pot(penalty: float, iterations: int) -> None:
    cost = unit_cost(12, 9)
    uniform = (np.full(12, 1 / 12), np.full(9, 1 / 9))
    prior = torch.full((12, 9), 1 / 108, dtype=torch.float64).log()
    theirs = ot.unbalanced.sinkhorn_knopp_unbalanced(
        *uniform, cost.numpy(), 0.1, penalty, reg_type="kl", c=np.full((12, 9), 1 / 108), numItermax=3 * iterations,
        stopThr=1e-14,
    )  # fmt: skip
    np.testing.assert_allclose(sinkhorn(cost, 0.1, iterations, prior, marginal_penalty=penalty), theirs, atol=1e-8)
    np.testing.assert_allclose(sinkhorn(cost, 0.1, iterations, marginal_penalty=penalty), theirs, atol=1e-8)


def test_gradient_of_the_transport_cost_against_finite_differences() -> None:
    cost = unit_cost(5, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: (sinkhorn(c, 0.1, 20) * c).sum(), cost)


def test_compiled_whole_it_is_the_same() -> None:
    cost = unit_cost(16, 16)
    compiled = torch.compile(sinkhorn, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(cost, 0.05, 10), sinkhorn(cost, 0.05, 10))


@pytest.mark.parametrize("kind", [LocalTransport, PositionTransport])
def test_a_compiled_transport_takes_the_fused_iterations(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(solver, "_fused", lambda: taken.append(kind) or solver._by_logarithms)
    loss = kind(Dims(8, (4,)), Dims(6, (5,)))
    student, teacher = (Features(torch.randn(9, d), [torch.randn(9, c, 3, 3)]) for d, c in ((8, 4), (6, 5)))
    plain = loss.eval()(student, teacher, {})
    assert not taken
    loss.compiled = True
    torch.testing.assert_close(loss(student, teacher, {}), plain)
    assert taken == [kind]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("shape", [(24, 24), (3, 16, 9)])
def test_fused_iterations_are_the_same(shape: tuple[int, ...]) -> None:
    """As on a GPU, of batches of one and another size, with the gradient through them. Each iteration is compiled."""
    torch.compiler.reset()
    torch.manual_seed(0)
    for size in (shape[-2], 2 * shape[-2]):
        cost = torch.rand(*shape[:-2], size, shape[-1], requires_grad=True)
        prior = torch.eye(size, shape[-1]).mul(9).add(1).log()
        found = [sinkhorn(cost, 0.05, 2, prior, compiled=compiled) for compiled in (True, False)]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)
        gradients = [torch.autograd.grad((plan * cost).sum(), cost)[0] for plan in found]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"epsilon": 0}, "epsilon must be above 0"),
        ({"epsilon": -1.0}, "epsilon must be above 0"),
        ({"epsilon": math.nan}, "epsilon must be above 0"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"marginal_penalty": 0.0}, "marginal_penalty must be above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sinkhorn(torch.rand(3, 3), **keywords)


def test_a_penalty_without_end_is_a_marginal_that_holds() -> None:
    cost = unit_cost(6, 5)
    torch.testing.assert_close(sinkhorn(cost, marginal_penalty=math.inf), sinkhorn(cost))


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("epsilon", [1e-3, 0.05])
def test_columns_are_exact_by_either_way_however_large_the_cost(scale: float, epsilon: float) -> None:
    """fp32 potentials of a million leave nothing of a marginal's logarithm."""
    cost = scale * unit_cost(40, 30).float()
    row = torch.full((40,), -math.log(40))
    plans = [sinkhorn(cost, epsilon, 100, log_row=log_row) for log_row in (None, row)]
    for plan in (*plans, sinkhorn(cost.clone().requires_grad_(), epsilon, 100).detach()):
        torch.testing.assert_close(plan.sum(0), torch.full((30,), 1 / 30), rtol=1e-6, atol=0)
        assert marginal_error(plan) < marginal_error(plans[0]) + 1e-5


def test_unrolled_gradient_of_a_large_cost() -> None:
    cost = 1e4 * unit_cost(12, 9)
    exact, found = (
        torch.autograd.grad((sinkhorn(c, 0.1, 5) * c).sum(), c)[0]
        for c in (cost.clone().requires_grad_(), cost.float().requires_grad_())
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-4)


def test_a_kernel_that_leaves_its_range_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    sinkhorn(unit_cost(1500, 1100).float(), 1e-3, 5)
    assert not recwarn.list


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 3, 3), (3,)])
def test_a_cost_without_entries_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[\.\.\., n, m\]"):
        sinkhorn(torch.rand(shape))
