"""Estimates during training which pairs match, so that mismatched ones can be left out (`data.pairs: noisy`).

A linear probe learns how the student's features correlate with the teacher's (`pipeline.models.match_probe`). The score
of a pair is its cost, standardised by the costs of the same sample with a fixed set of other teacher features. Each
sample is also scored with a wrong partner, always the same one of this set. These pairs are mismatched for certain, so
the distribution of the scores of mismatched pairs is known (`pipeline.models.match_mixture`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from losses.base import Batch, Features, full_precision
from losses.finite import all_finite
from losses.gather import gather
from losses.standardise import Standardise
from losses.unit import unit
from pipeline.models.match_mixture import Mixture, Normal, fit
from pipeline.models.match_probe import FOLDS, MatchProbe

HORIZON = 20_000  # samples after which moments have decayed, if the training set is larger
MOMENTUM = 0.9  # of a sample's score over its views
FIRST = 30  # step from which pairs are left out
FIT_EVERY = 10  # steps between fits of the probe and of the mixture
OTHERS = 256  # size of the fixed set of other samples
LARGEST_FIT = 20_000  # scores
REDUCED = 256  # size to which larger features are projected, by fixed random directions
LEAST_VARIANCE = 0.01
"""Minimum variance of the scores of mismatched pairs. They are standardised; if they hardly vary, the teacher's
features are constant, and the differences are remains of the first steps."""
LEAST_SEPARATION = 1.0
"""Minimum separation of matching and mismatched pairs. Below it, the student does not predict the teacher's features
well enough to tell them apart, and no pair is left out."""


class PairFilter(nn.Module):
    """Keeps a score per training sample, and finds the pairs of a batch that match. Its state is equal on all ranks.

    Args:
        student: D_S, size of the student's pooled features.
        teacher: D_T, size of the teacher's pooled features.
        samples: N, size of the training set. `batch["index"]` is below it.
    """

    steps: Tensor
    scores: Tensor
    looks: Tensor
    others: Tensor
    others_index: Tensor
    student_directions: Tensor | None
    teacher_directions: Tensor | None
    matched: Tensor
    mismatched: Tensor

    def __init__(self, student: int, teacher: int, samples: int) -> None:
        super().__init__()
        self.student_scale, self.teacher_scale = Standardise(student), Standardise(teacher)
        self.register_buffer("student_directions", _directions(student), persistent=False)
        self.register_buffer("teacher_directions", _directions(teacher), persistent=False)
        self.probe = MatchProbe(min(student, REDUCED), min(teacher, REDUCED), min(samples, HORIZON))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scores", torch.zeros(2, samples))  # of the pair, and of the sample with a wrong teacher
        self.register_buffer("looks", torch.zeros(samples, dtype=torch.int32))
        self.register_buffer("others", torch.zeros(min(OTHERS, -(-samples // 2)), teacher))
        self.register_buffer("others_index", torch.full((len(self.others),), -1))  # -1: not seen yet
        # Until the first fit, both distributions are equal, and therefore not separated.
        self.register_buffer("matched", torch.tensor([1.0, 0.0, 1.0]))  # share, mean, variance
        self.register_buffer("mismatched", torch.tensor([0.0, 1.0]))  # mean, variance

    @torch.no_grad()
    def forward(self, student: Features, teacher: Features, batch: Batch, paired: Tensor | None = None) -> Tensor:
        """Find the pairs that match, and learn from the batch.

        Args:
            student: Features of the samples of this rank.
            teacher: Features of the samples of this rank.
            batch: The batch, with `index`.
            paired: Whether each sample of this rank has both sides, bool `[B]`; None means all.

        Returns:
            Whether each pair of this rank matches, bool `[B]`.
        """
        s, t = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        own = batch["index"].to(s.device)
        index = gather(own)
        if paired is not None:
            kept = gather(paired)
            s, t, index = s[kept], t[kept], index[kept]
        if self.training and len(s) > 1 and all_finite(s, t):
            self.student_scale.update(s)
            self.teacher_scale.update(t)
            if self.others_index[-1] < 0:
                self._collect(t, index)
            s, t = _reduced(self.student_scale(s), self.student_directions), self._teacher(t)
            step = int(self.steps)
            if step > 0 and self.others_index[-1] >= 0:
                self._judge(s, t, index, step)
            self.probe.learn(s, t, index)
            self.steps += 1
        return self.used(own)

    def separates(self) -> bool:
        """Whether matching and mismatched pairs can be told apart. If not, all pairs are used."""
        return bool(self._mixture().separation() >= LEAST_SEPARATION)

    def used(self, index: Tensor | None = None) -> Tensor:
        """Whether pairs are used: if they match with a probability above 0.5 or, where few match, above the average.

        Args:
            index: The samples, `[B]`; None for all.
        """
        return self.probability(index) > self.matched[0].clamp(max=0.5)

    def probability(self, index: Tensor | None = None) -> Tensor:
        """The probability that pairs match, in [0, 1]; 1 for samples that were not seen yet.

        Args:
            index: The samples, `[B]`; None for all.
        """
        score, looks = self.scores[0], self.looks
        if index is not None:
            score, looks = score[index], looks[index]
        if not self.separates():
            return torch.ones_like(score)
        return torch.where(looks > 0, self._mixture().probability(score), 1.0)

    def metrics(self) -> dict[str, Tensor]:
        """`mismatched`: the fraction of the samples seen so far that are left out. `separation`: see `Mixture`."""
        out = ~self.used()
        seen = (self.looks > 0).sum().clamp(min=1)
        return {"mismatched": out.sum() / seen, "separation": self._mixture().separation()}

    def _mixture(self) -> Mixture:
        share, mean, variance = self.matched
        return Mixture(share, Normal(mean, variance), Normal(*self.mismatched))

    def _collect(self, t: Tensor, index: Tensor) -> None:
        """Fill the set of other samples with the first ones."""
        empty = (self.others_index < 0).nonzero().flatten()
        held = set(self.others_index.tolist())
        places = {sample: place for place, sample in enumerate(index.tolist()) if sample not in held}
        chosen = list(places.values())[: len(empty)]
        self.others_index[empty[: len(chosen)]], self.others[empty[: len(chosen)]] = index[chosen], t[chosen]

    def _judge(self, s: Tensor, t: Tensor, index: Tensor, step: int) -> None:
        """Update the scores of the samples of the batch."""
        if step % FIT_EVERY == 0 or not self.probe.student_map.any():
            self.probe.fit()
        cost, costs = self.probe.costs(s, t, index, self._teacher(self.others))  # [B], [B, O]
        itself = index[:, None] == self.others_index
        count = (~itself).sum(1)
        mean = costs.masked_fill(itself, 0).sum(1) / count
        variance = (costs - mean[:, None]).square().masked_fill(itself, 0).sum(1) / count
        partner = index // FOLDS % len(self.others)  # not itself, nor correlated with the folds of the probe
        partner = (partner + (self.others_index[partner] == index)) % len(self.others)
        both = torch.stack([cost, costs.gather(1, partner[:, None])[:, 0]])
        self._remember((both - mean) / variance.sqrt().clamp(min=1e-6), index)
        if step >= FIRST and step % FIT_EVERY == 0:
            self._fit_mixture()

    def _remember(self, scores: Tensor, index: Tensor) -> None:
        """Average the scores of each sample over its views: a mean at first, then an exponential average."""
        index, place = index.unique(return_inverse=True)
        # A sample that is twice in a batch counts once, with the same result in any order.
        new = scores.new_zeros(2, len(index)).scatter_reduce(1, place.expand(2, -1), scores, "amax", include_self=False)
        self.looks[index] += 1
        share = (1 / self.looks[index]).clamp(min=1 - MOMENTUM)
        self.scores[:, index] += share * (new - self.scores[:, index])

    def _fit_mixture(self) -> None:
        scores = self.scores[:, self.looks > 0]
        own, wrong = scores[:, :: math.ceil(scores.shape[1] / LARGEST_FIT)]
        self.mismatched.copy_(torch.stack([wrong.mean(), wrong.var(correction=0).clamp(min=LEAST_VARIANCE)]))
        mixture = fit(own, Normal(*self.mismatched))
        self.matched.copy_(torch.stack([mixture.share, *mixture.matched]))

    def _teacher(self, t: Tensor) -> Tensor:
        return unit(_reduced(self.teacher_scale(t), self.teacher_directions))


def _directions(size: int) -> Tensor | None:
    """Orthonormal random directions `[size, REDUCED]`; None if features are small enough."""
    if size <= REDUCED:
        return None
    return torch.linalg.qr(torch.randn(size, REDUCED, generator=torch.Generator().manual_seed(0)))[0]


def _reduced(x: Tensor, directions: Tensor | None) -> Tensor:
    return x if directions is None else x @ directions
