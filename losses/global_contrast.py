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
from losses.diagnostics import effective_rank, relative_std
from losses.gather import gather
from losses.queue import Queue
from losses.standardise import Standardise


class GlobalContrast(Loss):
    """`-E_i[log softmax_j(g(t_j, s_i) / tau + log w_ij)]_i`, and the same with the roles exchanged, averaged.

    Negatives are the global batch and a queue of past samples. Their weights `w_ij` in [0, 1] deal with false ones.

    dim: size of the projections. critic: `lipschitz` (spectrally normalised, clipped to the unit ball) or `cosine`
    (L2-normalised projections, not Lipschitz; what InfoNCE and CRD use). temperature: start value of tau, which is
    learnt within [0.01, 1] unless `learn_temperature` is false; the linear link has none. queue: slots, 0 for in-batch
    negatives only. exclude: samples that share a known label or group are no negatives of each other. discount: weigh
    negatives by `clamp((0.5 - cos(t_i, t_j)) / 0.5, 1e-4, 1)`, t the standardised teacher features.
    """

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        dim: Annotated[int, Gt(0)] = 128,
        critic: Literal["lipschitz", "cosine"] = "lipschitz",
        link: Literal["log_softmax", "linear"] = "log_softmax",
        temperature: Annotated[float, Ge(0.01), Le(1)] = 0.07,
        learn_temperature: bool = True,
        queue: Annotated[int, Ge(0)] = 1024,
        exclude: tuple[Literal["label", "group"], ...] = ("label", "group"),
        discount: bool = True,
    ) -> None:
        super().__init__()
        projection = LipschitzProjection if critic == "lipschitz" else CosineProjection
        self.student_projection = projection(student.pooled, dim)
        self.teacher_projection = projection(teacher.pooled, dim)
        self.standardise = Standardise(teacher.pooled)
        self.link, self.exclude, self.discount = link, exclude, discount
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature)), requires_grad=learn_temperature and link == "log_softmax"
        )
        # The frozen teacher's raw features never age: the queue keeps them and projects them anew each step.
        self.queue = Queue(
            queue,
            teacher=(teacher.pooled, torch.float32),
            student=(dim, torch.float32),
            label=(0, torch.int64),
            group=(0, torch.int64),
        )

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        h_student, h_teacher = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        label, group = gather(batch["label"]), gather(batch["group"])
        if self.training:
            self.standardise.update(h_teacher)
            self.student_projection.update(h_student)
            self.teacher_projection.update(self.standardise(h_teacher))

        n = h_student.shape[0]  # N rows of the global batch, then Q of the queue
        h_all = self.standardise(torch.cat([h_teacher, self.queue.read("teacher").to(h_teacher.dtype)]))
        label_all = torch.cat([label, self.queue.read("label")])
        group_all = torch.cat([group, self.queue.read("group")])
        s, t_all = self.student_projection(h_student), self.teacher_projection(h_all)
        s_all = torch.cat([s, self.queue.read("student").to(s.dtype)])
        log_weight = self._log_weight(h_all, label_all, group_all, n)

        g_student, g_teacher = s @ t_all.T, t_all[:n] @ s_all.T  # [N, N + Q], the pairs on the diagonal
        link = self._log_softmax if self.link == "log_softmax" else self._linear
        loss = (link(g_student, log_weight) + link(g_teacher, log_weight)) / 2

        self._last = s.detach(), t_all[:n].detach()
        if self.training and self.queue.length:
            self.queue.push(teacher=h_teacher, student=s, label=label, group=group)
        return loss

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.exp().clamp(0.01, 1)

    @torch.no_grad()
    def _log_weight(self, h_all: Tensor, label: Tensor, group: Tensor, n: int) -> Tensor:
        """`log w_ij [N, N + Q]`: 0 for the pair itself, -inf for what is no negative."""
        weight = torch.ones(n, len(h_all), device=h_all.device, dtype=h_all.dtype)
        if self.discount:
            unit = F.normalize(h_all, dim=1)
            weight = ((0.5 - unit[:n] @ unit.T) / 0.5).clamp(1e-4, 1)
        for name, value in (("label", label), ("group", group)):
            if name in self.exclude:
                same = (value[:n, None] == value[None]) & (value[:n, None] >= 0)
                weight = weight.masked_fill(same, 0)
        in_use = torch.cat([torch.ones(n, dtype=torch.bool, device=weight.device), self.queue.filled])
        weight = weight * in_use
        weight.fill_diagonal_(1)
        return weight.log()

    def _log_softmax(self, g: Tensor, log_weight: Tensor) -> Tensor:
        n = g.shape[0]
        target = torch.arange(n, device=g.device)
        return F.cross_entropy(g / self.temperature + log_weight, target)

    def _linear(self, g: Tensor, log_weight: Tensor) -> Tensor:
        weight = log_weight.exp().fill_diagonal_(0)
        return (g * weight).sum() / weight.sum().clamp(min=1e-6) - g.diagonal().mean()

    def metrics(self) -> dict[str, Tensor]:
        s, t = self._last
        similarity = F.normalize(s, dim=1) @ F.normalize(t, dim=1).T
        n = len(s)
        positive = similarity.diagonal().mean()
        negative = (similarity.sum() - similarity.diagonal().sum()) / max(n * (n - 1), 1)
        return {
            "similarity_gap": positive - negative,
            "projected_std": relative_std(s),
            "effective_rank": effective_rank(s),
            "temperature": self.temperature.detach(),
        }
