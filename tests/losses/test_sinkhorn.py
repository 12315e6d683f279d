"""Sinkhorn against POT, its own optimality conditions and, where it lies beside the project, the published plans."""

from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from torch.nn import functional as F

from losses import sinkhorn
from losses.sinkhorn import marginal_error

GOLDEN = Path(__file__).parents[2].parent / "shared" / "reference" / "golden.npz"


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


@pytest.mark.skipif(not GOLDEN.exists(), reason="the published reference values do not lie beside this checkout")
def test_agrees_with_published_plans() -> None:
    golden = np.load(GOLDEN)
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
