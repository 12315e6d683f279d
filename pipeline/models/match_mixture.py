"""The probability that a pair matches, from its score and the scores of pairs that are mismatched for certain.

The scores are a mixture of two normal distributions. That of mismatched pairs is known; the other one and its share are
estimated by expectation-maximisation. The posterior is one minus the local false discovery rate (Efron 2004, "Large-
scale simultaneous hypothesis testing"), with mismatched pairs as the null hypothesis.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 50
LEAST_VARIANCE = 1e-2  # relative to that of mismatched pairs
LEAST_SHARE = 1e-3


class Normal(NamedTuple):
    """A normal distribution.

    Attributes:
        mean: Mean, a scalar tensor.
        variance: Variance, a scalar tensor above 0.
    """

    mean: Tensor
    variance: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """The log density at each x, up to a constant."""
        return -0.5 * ((x - self.mean).square() / self.variance + self.variance.log())


class Mixture(NamedTuple):
    """The distribution of the scores of all pairs.

    Attributes:
        share: Share of matching pairs, a scalar tensor in (0, 1).
        matched: Distribution of their scores, which are low.
        mismatched: Distribution of the scores of mismatched pairs, which are high.
    """

    share: Tensor
    matched: Normal
    mismatched: Normal

    def posterior(self, scores: Tensor) -> Tensor:
        """The probability that each pair matches, `[N]`, by Bayes' rule."""
        odds = self.share.log() + self.matched.log_density(scores)
        return torch.sigmoid(odds - (1 - self.share).log() - self.mismatched.log_density(scores))

    def probability(self, scores: Tensor) -> Tensor:
        """The same, but it never rises with the score: the wider distribution does not win at both ends.

        Args:
            scores: `[N]`.
        """
        return self.posterior(scores.clamp(self.matched.mean, self.mismatched.mean))

    def separation(self) -> Tensor:
        """The distance of the two means in units of the root mean variance."""
        variance = (self.matched.variance + self.mismatched.variance) / 2
        return (self.mismatched.mean - self.matched.mean) / variance.sqrt()


def fit(scores: Tensor, mismatched: Normal) -> Mixture:
    """Estimate the share and the distribution of matching pairs.

    Args:
        scores: Scores of all pairs, `[N]`, N at least 1.
        mismatched: Distribution of the scores of mismatched pairs.
    """
    below = scores[scores < mismatched.mean - mismatched.variance.sqrt()]
    start = below.mean() if len(below) else mismatched.mean
    found = Mixture(scores.new_tensor(0.5), Normal(start, mismatched.variance), mismatched)
    for _ in range(ROUNDS):
        weight = found.posterior(scores)
        total = weight.sum().clamp(min=1e-6)
        mean = torch.minimum((weight * scores).sum() / total, mismatched.mean)
        variance = (weight * (scores - mean).square()).sum() / total
        variance = variance.clamp(LEAST_VARIANCE * mismatched.variance, mismatched.variance)
        found = Mixture(weight.mean().clamp(LEAST_SHARE, 1 - LEAST_SHARE), Normal(mean, variance), mismatched)
    return found
