"""WKD-L: Wasserstein distance between class probabilities (Lv, Yang and Li 2024, arXiv 2412.08139)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, LossOutput, full_precision, known
from losses.finite import keep_finite
from losses.gather import gather
from losses.logits import paired_classes, paired_logits


class WKDLogit(Loss):
    """WKD-L: transport of class probabilities under a cost that reflects the similarity of classes.

    `loss = mean_i (-p_T(y) log p_S(y) + transport * <P, C>)`, where P is the entropic plan between the classes other
    than y. P transports the student's probabilities at `temperature` to the teacher's, both renormalised without y,
    under the class cost `C = 1 - exp(-sharpen * C_0)`. Since C does not depend on the student, gradients flow through
    the iterations of P. y is the label, or the teacher's most probable class if there is no label.

    `<P, C>` is entropic and not fully converged: it is not 0 even if both networks agree. If costs are many times
    epsilon, 10 iterations leave much of the mass in place, and the value is too small; the metric `marginal_error`, in
    [0, 2], shows this. Published with a cosine decay of the transport weight from epoch 150 of 240.

    Args:
        temperature: Temperature of both networks in the transport term. The target-class term uses none.
        transport: Weight of the transport term relative to the target-class term. The paper uses 600, or 200 when
            combined with `WKDFeature`.
        epsilon: Entropic regularisation in units of C, which is in [0, 1]. It must be at least 0.03: then exp(-1 /
            epsilon) and its square are in the range of fp32.
        iterations: Number of Sinkhorn iterations.
        sharpen: Factor in the class cost C: 1 as in the paper; 0 means `C = C_0`.
        cost_file: C_0 as a NumPy file (`.npy`) of shape `[K, K]`, with the K classes in the student's order; symmetric,
            in [0, 1], with zeros on the diagonal. The paper uses `1 - CKA` between the features of two classes over the
            training set. None estimates C_0 during training (`ClassCost`).

    Raises:
        ValueError: `epsilon` is too small; `cost_file` cannot be read or does not contain such a matrix; or the
            networks do not both have logits for the same classes (at least two).
    """

    needs_teacher_logits = True
    needs_student_logits = True

    fixed: Tensor

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        temperature: Annotated[float, Gt(0)] = 8.0,
        transport: Annotated[float, Ge(0)] = 600.0,
        epsilon: Annotated[float, Ge(0.03)] = 0.05,
        iterations: Annotated[int, Gt(0)] = 10,
        sharpen: Annotated[float, Ge(0)] = 1.0,
        cost_file: str | None = None,
    ) -> None:
        super().__init__()
        if not epsilon >= 0.03:
            raise ValueError(f"epsilon: {epsilon} is below 0.03, where the kernel underflows in fp32")
        classes = paired_classes("WKDLogit", student, teacher, least=2)
        self.temperature, self.transport = temperature, transport
        self.epsilon, self.iterations, self.sharpen = epsilon, iterations, sharpen
        self.running = ClassCost(classes, teacher.pooled) if cost_file is None else None
        self.register_buffer("fixed", None if cost_file is None else _read_cost(cost_file, classes))

    def forward(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
        z_student, z_teacher = paired_logits(student, teacher)
        label = known(batch, "label", z_student)
        target = torch.where(label >= 0, label, z_teacher.argmax(1))
        if self.training and self.running is not None:
            self.running.update(gather(full_precision(teacher.pooled)), gather(target))
        y = target[:, None]
        confidence = F.softmax(z_teacher, 1).gather(1, y) * F.log_softmax(z_student, 1).gather(1, y)
        distance, error = self._transport(self._others(z_student, y), self._others(z_teacher, y), y)
        return LossOutput(self.transport * distance.mean() - confidence.mean(), partial(self._metrics, error))

    def class_cost(self) -> Tensor:
        """C, `[K, K]`: read from the file, or the current estimate, and sharpened."""
        cost = self.fixed if self.running is None else self.running()
        return -torch.expm1(-self.sharpen * cost) if self.sharpen else cost

    def _others(self, logits: Tensor, y: Tensor) -> Tensor:
        """Softened probabilities of the classes other than y, `[B, K]`, exactly 0 at y."""
        return F.softmax((logits / self.temperature).scatter(1, y, -torch.inf), 1)

    def _transport(self, student: Tensor, teacher: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`<P, C>` of each sample, `[B]`, by Sinkhorn iterations, and the error of the teacher's marginal, a scalar.

        The student's marginal is exact, since it is updated last. All samples share one cost, which is at most 1.
        Therefore, the kernel does not underflow, no `[B, K, K]` tensor is needed, and an iteration consists of two
        matrix products. Classes with probability 0 are ignored.
        """
        with torch.autocast(student.device.type, enabled=False):
            cost = self.class_cost().to(student)
            kernel = torch.exp(-cost / self.epsilon)  # symmetric
            u = torch.ones_like(student).scatter(1, y, 0)
            for _ in range(self.iterations):
                v = teacher / (u @ kernel)
                u = student / (v @ kernel)
            moved = v * (u @ kernel)
            error = (moved - teacher).detach().abs().sum(1).mean()
            return (v * (u @ (kernel * cost))).sum(1), error

    def _metrics(self, error: Tensor) -> dict[str, Tensor]:
        seen = {} if self.running is None else {"classes_seen": (self.running.count > 0).sum()}
        return {"marginal_error": error} | seen


def _read_cost(file: str, classes: int) -> Tensor:
    """Read a class cost from a file, `[K, K]`, fp32."""
    try:
        with Path(file).open("rb") as opened:
            cost = torch.from_numpy(np.lib.format.read_array(opened, allow_pickle=False).astype(np.float32))
    except (OSError, ValueError) as error:
        raise ValueError(f"cost_file: {file}: cannot be read as a numeric NumPy file (.npy): {error}") from error
    if cost.shape != (classes, classes):
        raise ValueError(f"cost_file: {file}: has shape {list(cost.shape)}; expected {[classes, classes]}")
    if not (torch.allclose(cost, cost.T, atol=1e-5) and cost.min() >= -1e-5 and cost.max() <= 1 + 1e-5):
        raise ValueError(
            f"cost_file: {file}: not symmetric, or not in [0, 1]; it must be 1 - CKA of all pairs of classes"
        )
    if not cost.diagonal().abs().max() <= 1e-5:
        raise ValueError(f"cost_file: {file}: the diagonal, i.e. the cost between a class and itself, must be 0")
    return ((cost + cost.T) / 2).clamp(0, 1).fill_diagonal_(0)


class ClassCost(torch.nn.Module):
    """Running estimate of the class cost `C_ij = 1 - CKA_ij`, in [0, 1].

    CKA is the centred kernel alignment of two classes in the feature space of the teacher. The paper computes it once
    from the features of the training set. Here, running class means replace these features: for the linear kernel
    `m m'` between feature dimensions, where m is a class mean, CKA is the squared correlation of two means over
    dimensions. Variation within classes is ignored, but no extra pass over the data is needed. Classes that have not
    occurred yet are dissimilar to all others: the cost is 1, and the distance reduces to total variation.

    Args:
        classes: K.
        dim: Size of the teacher's features.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes, dim))
        self.register_buffer("count", torch.zeros(classes))

    @torch.no_grad()
    def update(self, features: Tensor, target: Tensor) -> None:
        """Update the plain average over all samples so far (the teacher is frozen). Skips batches that are not finite.

        Args:
            features: Features of the gathered batch, `[N, D]`.
            target: Classes, int64 `[N]`.
        """
        with torch.autocast(features.device.type, enabled=False):
            # A matrix product, since index_add is not deterministic on CUDA.
            member = F.one_hot(target, len(self.count)).to(self.mean)
            number = member.sum(0)
            count = self.count + number
            surplus = member.T @ features.to(self.mean) - number[:, None] * self.mean
            keep_finite((self.count, count), (self.mean, self.mean + surplus / count.clamp(min=1)[:, None]))

    @torch.no_grad()
    def forward(self) -> Tensor:
        centred = F.normalize(self.mean - self.mean.mean(1, keepdim=True), dim=1)  # 0 for unseen classes
        alignment = (centred @ centred.T).square().clamp(max=1)
        return (1 - alignment).fill_diagonal_(0)
