"""WKD-L: the Wasserstein distance between class probabilities (Lv, Yang and Li 2024, arXiv 2412.08139)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, full_precision, known
from losses.finite import keep_finite
from losses.gather import gather
from losses.logits import paired_classes, paired_logits


class WKDLogit(Loss):
    """`mean_i (-p_T(y) log p_S(y) + transport * <P, C>)`, P the entropic plan between the classes other than y.

    P moves the student's probabilities at `temperature` to the teacher's, both renormalised without y; C is
    `ClassCost`. The gradient flows through P's iterations, since C holds nothing of the student. Being entropic and cut
    short, `<P, C>` is not 0 where both sides agree, and where the costs are many times epsilon, 10 iterations leave
    much of the mass unmoved and the value too small (metric `marginal_error`, in [0, 2]).
    y is the label, or the teacher's most probable class where there is none.

    transport: weight beside the target's term, published as 600, and 200 when joined with `WKDFeature`. epsilon: in
    units of C, which lies in [0, 1]; from 0.03 on, exp(-1 / epsilon) and its square stay within fp32. iterations: how
    often both marginals are met. Raises ValueError for a smaller epsilon, and unless both sides have logits of the same
    classes, two or more.
    """

    needs_teacher_logits = True
    needs_student_logits = True

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        temperature: Annotated[float, Gt(0)] = 8.0,
        transport: Annotated[float, Ge(0)] = 600.0,
        epsilon: Annotated[float, Ge(0.03)] = 0.05,
        iterations: Annotated[int, Gt(0)] = 10,
    ) -> None:
        super().__init__()
        if not epsilon >= 0.03:
            raise ValueError(f"epsilon: {epsilon} is below 0.03, where fp32 loses the kernel")
        classes = paired_classes("WKDLogit", student, teacher, least=2)
        self.temperature, self.transport = temperature, transport
        self.epsilon, self.iterations = epsilon, iterations
        self.cost = ClassCost(classes, teacher.pooled)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        z_student, z_teacher = paired_logits(student, teacher)
        label = known(batch, "label", z_student)
        target = torch.where(label >= 0, label, z_teacher.argmax(1))
        if self.training:
            self.cost.update(gather(full_precision(teacher.pooled)), gather(target))
        y = target[:, None]
        confidence = F.softmax(z_teacher, 1).gather(1, y) * F.log_softmax(z_student, 1).gather(1, y)
        distance = self._transport(self._others(z_student, y), self._others(z_teacher, y), y)
        return self.transport * distance.mean() - confidence.mean()

    def _others(self, logits: Tensor, y: Tensor) -> Tensor:
        """`[B, K]`: the softened probabilities of the classes other than y, exactly 0 at y."""
        return F.softmax((logits / self.temperature).scatter(1, y, -torch.inf), 1)

    def _transport(self, student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
        """`<P, C>` of every sample, `[B]`: Sinkhorn's iterations, the student's marginal met last.

        All samples share one cost, bounded by 1, so that the kernel neither underflows nor needs `[B, K, K]`: an
        iteration is two products of matrices. A class of probability 0 takes no part.
        """
        with torch.autocast(student.device.type, enabled=False):
            cost = self.cost().to(student)
            kernel = torch.exp(-cost / self.epsilon)  # symmetric
            u = torch.ones_like(student).scatter(1, y, 0)
            for _ in range(self.iterations):
                v = teacher / (u @ kernel)
                u = student / (v @ kernel)
            moved = v * (u @ kernel)
            self._last = ((moved - teacher).detach().abs().sum(1).mean(),)
            return (v * (u @ (kernel * cost))).sum(1)

    def metrics(self) -> dict[str, Tensor]:
        if not self._last:
            return {}
        (error,) = self._last
        return {"marginal_error": error, "classes_seen": (self.cost.count > 0).sum()}


class ClassCost(torch.nn.Module):
    """`C_ij = 1 - CKA_ij`, in [0, 1], CKA the centred kernel alignment of two classes in the teacher's feature space.

    The paper computes it once from all the training set's features. Here running means of the classes stand for them:
    with the linear kernel `m m'` between feature dimensions, m a class's mean, CKA is the squared correlation of two
    means over the dimensions. Spread inside the classes is left out, and no pass over the data is needed. Classes not
    seen yet are taken as unlike all others: cost 1, the distance is then total variation.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes, dim))
        self.register_buffer("count", torch.zeros(classes))

    @torch.no_grad()
    def update(self, features: Tensor, target: Tensor) -> None:
        """Average plainly over all samples so far: the teacher is frozen. Takes the gathered batch, and leaves out one
        that is not finite."""
        with torch.autocast(features.device.type, enabled=False):
            # A product instead of index_add, which is not deterministic on CUDA.
            member = F.one_hot(target, len(self.count)).to(self.mean)
            number = member.sum(0)
            count = self.count + number
            surplus = member.T @ features.to(self.mean) - number[:, None] * self.mean
            keep_finite((self.count, count), (self.mean, self.mean + surplus / count.clamp(min=1)[:, None]))

    @torch.no_grad()
    def forward(self) -> Tensor:
        centred = F.normalize(self.mean - self.mean.mean(1, keepdim=True), dim=1)  # 0 for classes not seen
        alignment = (centred @ centred.T).square().clamp(max=1)
        return (1 - alignment).fill_diagonal_(0)
