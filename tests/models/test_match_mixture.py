"""The mixture finds share and distribution that the scores were drawn from; its posterior is that of Bayes' rule."""

from __future__ import annotations

import pytest
import torch

from pipeline.models.match_mixture import Mixture, Normal, fit

KNOWN = Normal(torch.tensor(0.0), torch.tensor(1.0))


def draw(count: int, share: float, mean: float, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    matched = torch.rand(count, generator=generator) < share
    noise = torch.randn(count, generator=generator)
    return torch.where(matched, mean + std * noise, noise), matched


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("std", [0.4, 1.0])
def test_it_finds_what_the_scores_were_drawn_from(share: float, std: float) -> None:
    scores, _ = draw(20_000, share, -3.0, std)
    found = fit(scores, KNOWN)
    assert float(found.share) == pytest.approx(share, abs=0.02)
    assert float(found.matched.mean) == pytest.approx(-3, abs=0.1)
    assert float(found.matched.variance.sqrt()) == pytest.approx(std, abs=0.1)


def test_the_posterior_is_that_of_bayes() -> None:
    share, matched = torch.tensor(0.3, dtype=torch.float64), torch.distributions.Normal(-2.0, 1.5)
    mixture = Mixture(share, Normal(torch.tensor(-2.0), torch.tensor(2.25)), KNOWN)
    scores = torch.linspace(-6, 6, 50, dtype=torch.float64)
    p = share * matched.log_prob(scores).exp()
    q = (1 - share) * torch.distributions.Normal(0.0, 1.0).log_prob(scores).exp()
    torch.testing.assert_close(mixture.posterior(scores), p / (p + q), atol=1e-6, rtol=1e-5)


def test_a_better_score_is_never_less_probable() -> None:
    narrow = Mixture(torch.tensor(0.5), Normal(torch.tensor(-1.0), torch.tensor(0.1)), KNOWN)
    found = narrow.probability(torch.linspace(-50, 50, 1001))
    assert (found.diff() <= 0).all()
    assert found[0] > 0.5
    assert found[-1] < 0.5


@pytest.mark.parametrize("scores", [[-3.0], [0.0], [-2.0] * 50, [-3.0, -3.0, 0.0], [1e4, -1e4]])
def test_few_or_equal_scores_give_finite_values(scores: list[float]) -> None:
    found = fit(torch.tensor(scores), KNOWN)
    assert torch.stack([found.share, *found.matched, found.separation()]).isfinite().all()
    assert found.probability(torch.tensor(scores)).isfinite().all()


def test_scores_that_all_look_mismatched_are_not_separated() -> None:
    scores, _ = draw(5000, 0.0, 0.0, 1.0)
    assert fit(scores, KNOWN).separation() < 1
