"""Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, known
from losses.logits import paired_classes, paired_logits


class DKD(Loss):
    """Decoupled knowledge distillation: separate terms for the target class and the other classes.

    `loss = T^2 * (alpha * KL(b_T || b_S) + beta * KL(q_T || q_S))`, averaged over the batch. b is the binary
    distribution (target class, all others); q is the distribution over the other classes, renormalised. KD is the
    special case in which alpha is 1 and beta is the teacher's probability of all others. If a sample has no label (-1),
    the teacher's argmax is the target class. The paper increases the weight linearly over the first 20 epochs: in a
    config, `schedule: {warmup: 20}`.

    Args:
        alpha: Weight of the binary term (target class against all others).
        beta: Weight of the term for the other classes. The paper uses 2 to 8 on CIFAR-100, depending on the teacher's
            confidence.
        temperature: T, for student and teacher.

    Raises:
        ValueError: Teacher and student do not both have logits for the same classes (at least two).
    """

    needs_teacher_logits = True
    needs_student_logits = True
    per_sample = True

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        alpha: Annotated[float, Ge(0)] = 1.0,
        beta: Annotated[float, Ge(0)] = 8.0,
        temperature: Annotated[float, Gt(0)] = 4.0,
    ) -> None:
        super().__init__()
        paired_classes("DKD", student, teacher, least=2)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s, t = (x / self.temperature for x in paired_logits(student, teacher))
        label = known(batch, "label", s)
        target = torch.where(label >= 0, label, t.argmax(1))[:, None]  # [B, 1]
        class_ = torch.arange(s.shape[1] - 1, device=s.device)
        others = class_ + (class_ >= target)  # [B, K - 1], all classes except the target
        s_others, t_others = s.gather(1, others), t.gather(1, others)
        target_term = _divergence(_binary(s.gather(1, target), s_others), _binary(t.gather(1, target), t_others))
        return (self.alpha * target_term + self.beta * _divergence(s_others, t_others)) * self.temperature**2


def _binary(target: Tensor, others: Tensor) -> Tensor:
    """Logits `[B, 2]` of the target and of all others, i.e. the logsumexp of the other classes."""
    return torch.cat([target, others.logsumexp(1, keepdim=True)], dim=1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """`KL(softmax(teacher) || softmax(student))`, averaged over rows."""
    return F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), log_target=True, reduction="batchmean")
