"""Estimates during training which pairs match, so that mismatched ones can be left out (`data.pairs: noisy`).

A linear probe predicts the teacher's features from the student's. It is the ridge regression on decayed moments of the
batches, so it has no learning rate and never lags behind the student. There are two probes: each is fitted to one half
of the samples and judges the other half, because a probe that was fitted to a wrong pair would find it plausible.

The score of a pair is the cost `1 - cos` between prediction and teacher, standardised by the costs of the same
prediction and a fixed set of other samples. Each sample is also scored with a wrong partner, always the same one of
this set. These pairs are mismatched for certain, so the distribution of the scores of mismatched pairs is known
(`pipeline.models.match_mixture`).
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

RIDGE = 0.1  # relative to the mean of the diagonal of the moments
HORIZON = 20_000  # samples after which moments have decayed, if the training set is larger
MOMENTUM = 0.9  # of a sample's score over its views
FIRST = 30  # step from which pairs are left out
FIT_EVERY = 10  # steps between fits of the probes and of the mixture
OTHERS = 256  # size of the fixed set of other samples
LARGEST_FIT = 20_000  # scores
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
    moments: Tensor
    cross: Tensor
    probes: Tensor
    matched: Tensor
    mismatched: Tensor

    def __init__(self, student: int, teacher: int, samples: int) -> None:
        super().__init__()
        self.horizon = min(samples, HORIZON)
        self.student_scale, self.teacher_scale = Standardise(student), Standardise(teacher)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scores", torch.zeros(2, samples))  # of the pair, and of the sample with a wrong teacher
        self.register_buffer("looks", torch.zeros(samples, dtype=torch.int32))
        self.register_buffer("others", torch.zeros(min(OTHERS, -(-samples // 2)), teacher))
        self.register_buffer("others_index", torch.full((len(self.others),), -1))  # -1: not seen yet
        # Of each half of the samples. The student's features get a constant 1, for the bias of the probes.
        self.register_buffer("moments", torch.zeros(2, student + 1, student + 1))
        self.register_buffer("cross", torch.zeros(2, student + 1, teacher))
        self.register_buffer("probes", torch.zeros(2, student + 1, teacher))
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
            s, t = self.student_scale(s), unit(self.teacher_scale(t))
            s = torch.cat([s, s.new_ones(len(s), 1)], 1)  # [B, D_S + 1]
            step = int(self.steps)
            if step > 0 and self.others_index[-1] >= 0:
                self._judge(s, t, index, step)
            self._learn(s, t, index)
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
        if step == 1 or step % FIT_EVERY == 0 or not self.probes.any():
            self._fit_probes()
        first, second = (unit(s @ probe) for probe in self.probes)
        predicted = torch.where((index % 2 == 0)[:, None], second, first)
        costs = 1 - predicted @ unit(self.teacher_scale(self.others)).T  # [B, O]
        itself = index[:, None] == self.others_index
        count = (~itself).sum(1)
        mean = costs.masked_fill(itself, 0).sum(1) / count
        variance = (costs - mean[:, None]).square().masked_fill(itself, 0).sum(1) / count
        partner = index // 2 % len(self.others)  # not itself, nor correlated with the halves
        partner = (partner + (self.others_index[partner] == index)) % len(self.others)
        cost = torch.stack([1 - (predicted * t).sum(1), costs.gather(1, partner[:, None])[:, 0]])
        self._remember((cost - mean) / variance.sqrt().clamp(min=1e-6), index)
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
        self.mismatched.copy_(torch.stack([wrong.mean(), wrong.var(correction=0).clamp(min=1e-6)]))
        mixture = fit(own, Normal(*self.mismatched))
        self.matched.copy_(torch.stack([mixture.share, *mixture.matched]))

    def _learn(self, s: Tensor, t: Tensor, index: Tensor) -> None:
        """Update the moments of both halves."""
        keep = math.exp(-len(s) / self.horizon)
        for half in range(2):
            rows = s * (index % 2 == half)[:, None]
            self.moments[half].mul_(keep).addmm_(rows.T, s)
            self.cross[half].mul_(keep).addmm_(rows.T, t)

    def _fit_probes(self) -> None:
        for half in range(2):
            moments = self.moments[half]
            ridge = RIDGE * moments.diagonal().mean().clamp(min=1e-12)
            identity = torch.eye(len(moments), device=moments.device)
            self.probes[half] = torch.linalg.solve(moments + ridge * identity, self.cross[half])
