"""The probe finds the correlations that there are, and judges no pair by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.models.match_probe import FOLDS, MatchProbe

SAMPLES, D = 4000, 6
CORRELATION = torch.tensor([0.9, 0.6, 0.3, 0.0, 0.0, 0.0])


def features(seed: int = 0, samples: int = SAMPLES) -> tuple[Tensor, Tensor, Tensor]:
    """Features with known canonical correlations, turned and shifted, and the index of each sample."""
    generator = torch.Generator().manual_seed(seed)
    u, noise = torch.randn(2, samples, D, generator=generator)
    v = CORRELATION * u + (1 - CORRELATION.square()).sqrt() * noise
    turns = [torch.linalg.qr(torch.randn(D, D, generator=generator))[0] * scale for scale in (3.0, 0.2)]
    return u @ turns[0] + 1, v @ turns[1] - 2, torch.arange(samples)


def fitted(s: Tensor, t: Tensor, index: Tensor) -> MatchProbe:
    probe = MatchProbe(s.shape[1], t.shape[1], horizon=10**9)  # nothing decays
    for rows in index.split(500):
        probe.learn(s[rows], t[rows], index[rows])
    probe.fit()
    return probe


def test_it_finds_the_canonical_correlations() -> None:
    """Each is lowered by what samples of this number correlate by chance."""
    chance = (FOLDS / SAMPLES) ** 0.5
    expected = (CORRELATION - chance).clamp(min=0).expand(FOLDS, D)
    torch.testing.assert_close(fitted(*features()).correlation, expected, rtol=0, atol=0.1)


def test_the_cost_is_the_log_likelihood_ratio_of_gaussians() -> None:
    s, t, index = (x.double() for x in features())
    probe = fitted(s.float(), t.float(), index.long())
    found, others = probe.costs(s[:200].float(), t[:200].float(), torch.arange(200), t[200:300].float())
    joint = torch.cat([s, t], 1)

    def log_density(x: Tensor, of: Tensor) -> Tensor:
        normal = torch.distributions.MultivariateNormal(of.mean(0), torch.cov(of.T))
        return normal.log_prob(x)

    exact = log_density(s, s) + log_density(t, t) - log_density(joint, joint)
    both = torch.stack([found.double(), exact[:200]])
    assert float(torch.corrcoef(both)[0, 1]) > 0.95
    again, _ = probe.costs(s[:1].float().expand(100, -1), t[200:300].float(), torch.zeros(100).long(), t[:1].float())
    torch.testing.assert_close(others[0], again)


def test_matched_pairs_cost_less_than_exchanged_ones() -> None:
    s, t, index = features()
    probe, (new_s, new_t, _) = fitted(s, t, index), features(0, SAMPLES)
    own, others = probe.costs(new_s[:300], new_t[:300], index[:300], new_t[300:400])
    assert float((own[:, None] < others).float().mean()) > 0.8


@pytest.mark.parametrize("fold", range(FOLDS))
def test_no_pair_decides_how_it_is_judged(fold: int) -> None:
    """With the partners within a fold exchanged, the fold is judged by the same directions and correlations."""
    s, t, index = features(samples=400)
    own = index % FOLDS == fold
    exchanged = t.clone()
    exchanged[own] = t[own].roll(1, 0)
    one, other = fitted(s, t, index), fitted(s, exchanged, index)
    for name in ("student_map", "teacher_map", "correlation"):
        torch.testing.assert_close(other.get_buffer(name)[fold], one.get_buffer(name)[fold], rtol=1e-4, atol=1e-4)
    for name, judged in (("student_map", (fold + 1) % FOLDS), ("correlation", fold - 1)):  # which this fold informs
        assert float((other.get_buffer(name)[judged] - one.get_buffer(name)[judged]).abs().max()) > 0.01


def test_without_samples_all_costs_are_equal() -> None:
    probe = MatchProbe(D, D, 100)
    probe.fit()
    own, others = probe.costs(torch.randn(5, D), torch.randn(5, D), torch.arange(5), torch.randn(3, D))
    assert (own == 0).all()
    assert (others == 0).all()
