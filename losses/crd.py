"""Contrastive representation distillation (Tian, Krishnan and Isola 2020, arXiv 1910.10699)."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.nn import functional as F

from losses.bank import Bank, draw_negatives, last_occurrence, mix
from losses.base import Batch, Dims, Features, Loss, LossOutput, full_precision, known
from losses.critic import CosineProjection
from losses.diagnostics import pair_metrics
from losses.finite import keep_finite
from losses.gather import gather, rank

EPS = 1e-7


class CRD(Loss):
    """Contrastive representation distillation with a memory bank.

    `loss = -E_i[log h_ii + sum_j log(1 - h_ij)]` with `h = p / (p + M / N)` and `p = exp(<s_i, t_j> / tau) / Z`, plus
    the same with the roles of the networks exchanged. Each student embedding is contrasted with M negatives from a bank
    of the N teacher embeddings, and each teacher embedding with M negatives from the student's bank. Negatives never
    include the sample itself and, if labels are known, have other labels. Z is set on the first batch to N times the
    mean of the exponential.

    Reads `batch["index"]`, `[B]`, the index of each sample in the training set. If the batch contains
    `batch["contrast_index"]`, `[B, 1 + M]`, it replaces the random draw; its first column is the sample itself.

    Args:
        dim: Size of the L2-normalised embeddings.
        negatives: M, the number of negatives per sample.
        temperature: tau.
        momentum: Weight of the old row when a sample updates its row in a bank.
        samples: N, the size of the training set. Set by the pipeline.

    Raises:
        ValueError: `samples` or `batch["index"]` is missing.
    """

    needs_index = True
    labels: Tensor
    log_z: Tensor
    seed: Tensor
    steps: Tensor

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        dim: Annotated[int, Gt(0)] = 128,
        negatives: Annotated[int, Gt(0)] = 16384,
        temperature: Annotated[float, Ge(0.01), Le(1)] = 0.07,
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.5,
        samples: Annotated[int, Ge(2)] | None = None,
    ) -> None:
        super().__init__()
        if samples is None or samples < 2:
            raise ValueError(
                f"CRD keeps a bank of the training set: samples must be the size of the set (at least 2), not "
                f"{samples}."
            )
        self.negatives, self.temperature = negatives, temperature
        self.student_projection = CosineProjection(student.pooled, dim)
        self.teacher_projection = CosineProjection(teacher.pooled, dim)
        self.student_bank = Bank(samples, dim, momentum)
        self.teacher_bank = Bank(samples, dim, momentum)
        self.register_buffer("labels", torch.full((samples,), -1))
        self.register_buffer("log_z", torch.full((2,), -math.inf))  # of student and teacher anchors; -inf: not set yet
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
        if "index" not in batch:
            raise ValueError('CRD requires batch["index"], the index of each sample in the training set.')
        s = self.student_projection(full_precision(student.pooled))
        t = self.teacher_projection(full_precision(teacher.pooled))
        own = torch.stack([batch["index"], known(batch, "label", s)], 1)
        index, label = gather(own).unbind(1)  # of the global batch
        labels = self.labels.index_put((index,), label[last_occurrence(index, len(self.labels))])
        contrast = batch.get("contrast_index")
        if contrast is None:
            contrast = self._draw(batch["index"], labels)

        # The loss of a sample needs only the banks: each rank computes its local samples, and DDP averages gradients.
        with torch.autocast(s.device.type, enabled=False):
            x_student = self.teacher_bank.similarity(s.detach(), contrast) / self.temperature  # [B, 1 + M]
            x_teacher = self.student_bank.similarity(t.detach(), contrast) / self.temperature
            log_mean = torch.stack([x.logsumexp(1) - math.log(x.shape[1]) for x in (x_student, x_teacher)], 1)
            s_all, t_all, log_mean_all = gather(torch.cat([s, t, log_mean], 1).detach()).split(
                [s.shape[1]] * 2 + [2], 1
            )
            first = log_mean_all.logsumexp(0) + math.log(len(self.labels) / len(log_mean_all))
            log_z = torch.where(self.log_z.isinf(), first, self.log_z.to(first.dtype))
            loss = self._anchored(s, x_student - log_z[0], self.teacher_bank, contrast)
            loss = loss + self._anchored(t, x_teacher - log_z[1], self.student_bank, contrast)

        if self.training:
            self.student_bank.update(s_all, index)
            self.teacher_bank.update(t_all, index)
            self.labels.copy_(labels)
            keep_finite((self.log_z, log_z))
            self.steps += 1
        return LossOutput(loss, partial(pair_metrics, s_all, t_all))

    def _draw(self, index: Tensor, labels: Tensor) -> Tensor:
        """Each sample and its negatives, `[B, 1 + M]`: a function of seed, step and position in the global batch."""
        start = rank() * len(index)
        place = torch.arange(start, start + len(index), device=index.device)
        key = mix(mix(self.seed + self.steps) + place)
        return torch.cat([index[:, None], draw_negatives(index, labels, self.negatives, key)], 1)

    def _anchored(self, anchor: Tensor, log_p: Tensor, bank: Bank, contrast: Tensor) -> Tensor:
        """The loss of anchors `[B, dim]` with `log_p [B, 1 + M]`, the positive first.

        Since `log h = -softplus(-u)` and `log(1 - h) = -softplus(u) - log(1 + EPS N / M)`, where u is the logit of h,
        the gradient is sigmoid(u) (minus 1 for the positive) times the rows of the bank. It is computed here, so
        autograd neither stores rows nor requires the bank to stay unchanged until the backward pass. `inner` carries
        the gradient and adds nothing to the value. (An autograd.Function does not work: when compiled, it runs in the
        backward pass, after the bank has been updated.)
        """
        count, negatives = len(log_p), log_p.shape[1] - 1
        ratio = negatives / len(self.labels)
        u = log_p - math.log(ratio + EPS)
        loss = (F.softplus(-u[:, 0]).sum() + F.softplus(u[:, 1:]).sum()) / count + negatives * math.log1p(EPS / ratio)
        weight = u.sigmoid()
        weight[:, 0] -= 1
        gradient = bank.combine(weight, contrast) / (count * self.temperature)
        inner = (anchor * gradient).sum()
        return loss + (inner - inner.detach())
