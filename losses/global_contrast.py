"""WCoRD's global term: the dual form of a Wasserstein dependency measure between teacher and student.

Chen et al. 2021, arXiv 2012.08674 (GCKT); the log link after Ozair et al. 2019, arXiv 1903.11780.

With a 1-Lipschitz critic `g(t, s) = <p(t), q(s)>` the paper maximises  E_joint[g] - E_product[g]  over critic and
student. Taken literally (`link: linear`) that only rewards a cross-covariance, and embeddings lose their rank. Inside
a log-softmax the same critic has to tell every pair from its negatives (`link: log_softmax`, the default).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.critic import CosineProjection, LipschitzProjection
from losses.diagnostics import pair_metrics
from losses.gather import gather
from losses.queue import Queue
from losses.standardise import Standardise
from losses.temperature import bounded_temperature


class GlobalContrast(Loss):
    """`-E_i[log softmax_j(g(t_j, s_i) / tau + log w_ij)]_i`, and the same with the roles exchanged, averaged.

    Negatives are the global batch and a queue of past samples. Their weights `w_ij` in [0, 1] deal with false ones.

    link: `log_softmax` is the formula above; `linear` is the literal dual, `E_neg[g] - E_pos[g]`; `bounded` is the same
    dual of CRD's probability h in place of g, and `log_bounded` CRD's own `-E_pos[log h] - E_neg[log(1 - h)]`.
    weighting: whether E_neg of the last three is a mean over the negatives or their sum (M times as much, as in CRD;
    degenerate with `linear`).

    dim: size of the projections. critic: `lipschitz` (spectrally normalised, clipped to the unit ball) or `cosine`
    (L2-normalised projections, not Lipschitz; what InfoNCE and CRD use). temperature: start value of tau, which is
    learnt within [0.01, 1] unless `learn_temperature` is false; the linear link has none. queue: slots, 0 for in-batch
    negatives only. exclude: samples that share a known label or group are no negatives of each other; where
    batch["index"] tells a sample's place in the training set, its own past is none either. discount: weigh negatives by
    `clamp((0.5 - cos(t_i, t_j)) / 0.5, 1e-4, 1)`, t the standardised teacher features.
    """

    log_normaliser: Tensor

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        dim: Annotated[int, Gt(0)] = 128,
        critic: Literal["lipschitz", "cosine"] = "lipschitz",
        link: Literal["log_softmax", "linear", "bounded", "log_bounded"] = "log_softmax",
        weighting: Literal["mean", "sum"] = "mean",
        temperature: Annotated[float, Ge(0.01), Le(1)] = 0.07,
        learn_temperature: bool = True,
        queue: Annotated[int, Ge(0)] = 1024,
        exclude: tuple[Literal["label", "group"], ...] = ("label", "group"),
        discount: bool = True,
    ) -> None:
        super().__init__()
        projection = LipschitzProjection if critic == "lipschitz" else CosineProjection
        self.student_projection = projection(student.pooled, dim)
        self.teacher_projection = projection(teacher.pooled, dim, centred=True)
        self.standardise = Standardise(teacher.pooled)
        self.link, self.weighting, self.exclude, self.discount = link, weighting, exclude, discount
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature)), requires_grad=learn_temperature and link != "linear"
        )
        self.register_buffer("log_normaliser", torch.tensor(-math.inf))  # not fixed yet
        # A frozen teacher's features do not age, but for the statistics that they are standardised by, which settle
        # early: the queue keeps them, and compares them under the projection of now.
        self.queue = Queue(
            queue,
            teacher=(teacher.pooled, torch.float32),
            norm=(0, torch.float32),
            student=(dim, torch.float32),
            label=(0, torch.int64),
            group=(0, torch.int64),
            index=(0, torch.int64),
        )

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        h_student, h_teacher = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        known = torch.stack(
            [batch["label"], batch["group"], batch.get("index", torch.full_like(batch["label"], -1))], 1
        )
        label, group, index = gather(known).unbind(1)
        if self.training:
            self.standardise.update(h_teacher)
            self.student_projection.update(h_student)
            self.teacher_projection.update(self.standardise(h_teacher))

        with torch.autocast(h_student.device.type, enabled=False):
            s = self.student_projection(h_student)
            h = self.standardise(h_teacher)
            w = self.teacher_projection.weight
            t = self.teacher_projection(h, w)
            norm = h.norm(dim=1)
            # The global batch with the pairs on the diagonal, then the queue; a copy, since later pushes change it.
            everything = torch.cat([h, self.queue.column("teacher").to(h.dtype)])  # [N + Q, D_T]
            norms = torch.cat([norm, self.queue.column("norm").to(h.dtype)])
            log_weight = self._log_weight(everything, norms, label=label, group=group, index=index)
            # The temperature divides the anchors, not the products: its gradient would take several passes over them.
            tau = 1 if self.link == "linear" else self.temperature
            g_student = self.teacher_projection.products(s / tau, everything, norms, w)
            # The student's side of the queue has aged, and has no gradient.
            g_teacher = torch.cat([t / tau @ s.T, t / tau @ self.queue.read("student").to(t.dtype).T], 1)
            link = {"log_softmax": self._log_softmax, "linear": self._linear}.get(self.link, self._bounded)
            loss = (link(g_student, log_weight) + link(g_teacher, log_weight)) / 2

        self._last = s.detach(), t.detach()
        if self.training and self.queue.length:
            self.queue.push(teacher=h, norm=norm, student=s, label=label, group=group, index=index)
        return loss

    @property
    def temperature(self) -> Tensor:
        """tau, a scalar within [0.01, 1]."""
        return bounded_temperature(self.log_temperature)

    @torch.no_grad()
    def _log_weight(self, everything: Tensor, norms: Tensor, **same: Tensor) -> Tensor:
        """`log w_ij [N, N + Q]`: 0 for the pair itself, -inf for what is no negative.

        everything: standardised teacher features of batch and queue `[N + Q, D_T]`, of norm `[N + Q]`. same: label,
        group and index of the batch's samples `[N]`, -1 where unknown.
        """
        n = len(same["index"])
        none = torch.cat([self.queue.filled.new_zeros(n), ~self.queue.filled]).expand(n, -1)
        for name, value in same.items():
            if name == "index" or name in self.exclude:
                known = value.masked_fill(value < 0, -2)  # -1 is unknown, and equals nothing
                none = none | (known[:, None] == torch.cat([value, self.queue.column(name)]))
        log_weight = everything.new_zeros(n, len(everything))
        if self.discount:
            norms = norms.clamp(min=1e-12)
            similarity = (everything[:n] / norms[:n, None] @ everything.T).div_(norms)
            log_weight = similarity.sub_(0.5).mul_(-2).clamp_(1e-4, 1).log_()
        log_weight.masked_fill_(none, -math.inf)
        log_weight.diagonal().zero_()
        return log_weight

    def _log_softmax(self, g: Tensor, log_weight: Tensor) -> Tensor:
        n = g.shape[0]
        target = torch.arange(n, device=g.device)
        return F.cross_entropy(g + log_weight, target)

    def _linear(self, g: Tensor, log_weight: Tensor) -> Tensor:
        return self._negatives(g, log_weight) - g.diagonal().mean()

    def _bounded(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """CRD's probability `h = e^(g / tau) / (e^(g / tau) + M Z)` that a pair is true, Z the mean of e^(g / tau)
        over the negatives of the first batch that has any."""
        negatives = log_weight.exp().fill_diagonal_(0)
        count = negatives.sum(1).mean().clamp(min=1)  # M
        log_normaliser = self._log_normaliser(x.detach(), log_weight)
        if self.training:
            self.log_normaliser.copy_(log_normaliser)
        x = x - log_normaliser.to(x.dtype).nan_to_num(neginf=0) - count.log()
        if self.link == "bounded":
            return self._negatives(x.sigmoid(), log_weight) - x.sigmoid().diagonal().mean()
        return -self._negatives(F.logsigmoid(-x), log_weight) - F.logsigmoid(x).diagonal().mean()

    def _log_normaliser(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """log Z: what it was fixed to, or what this batch fixes it to; -inf while there were no negatives."""
        log_weight = log_weight.clone().fill_diagonal_(-math.inf)
        first = (x + log_weight).flatten().logsumexp(0) - log_weight.flatten().logsumexp(0)
        first = first.masked_fill(~first.isfinite(), -math.inf)
        return torch.where(self.log_normaliser.isinf(), first.to(self.log_normaliser.dtype), self.log_normaliser)

    def _negatives(self, value: Tensor, log_weight: Tensor) -> Tensor:
        """The weighted mean over the negatives, or its M-fold."""
        weight = log_weight.exp().fill_diagonal_(0)
        if self.weighting == "sum":
            return (value * weight).sum() / len(value)
        return (value * weight).sum() / weight.sum().clamp(min=1e-6)

    def metrics(self) -> dict[str, Tensor]:
        return pair_metrics(*self._last) | {"temperature": self.temperature.detach()}
