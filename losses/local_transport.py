"""WCoRD's local term: optimal transport between the student's and the teacher's features inside the batch.

Chen et al. 2021, arXiv 2012.08674 (LCKT):  min_P sum_ij P_ij c(s_i, t_j)  under uniform marginals.

The plain plan does not know which student feature belongs to which teacher feature, although we do. So it is anchored:
min_P <P, C> + epsilon KL(P || P0)  with  P0 = (1 - a) I/B + a 11'/B^2.  a = 0 is feature regression, a = 1 the plain
term; between them near-duplicates in the batch share their mass.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.diagnostics import effective_rank, relative_std
from losses.gather import gather
from losses.relational import relational_divergence
from losses.row_blocked import transport_cost
from losses.sinkhorn import marginal_error, sinkhorn
from losses.standardise import Standardise

LARGEST_PLAN = 4096
"""Global batches beyond it never hold their plan: `row_blocked.transport_cost` takes over where it can."""


class LocalTransport(Loss):
    """`sum_ij P_ij c(s_i, t_j)` over the global batch.

    cost: `cosine`, `1 - cos(s, t)` in [0, 2], `euclidean` or `squared_euclidean`; the latter two of features that are
    not normalised, as a mean over dimensions. space: `teacher` compares in the teacher's standardised feature space,
    so that only the student is projected; `shared` projects both to `dim` (the paper's; both sides can then drift
    together). epsilon, iterations: of `sinkhorn`; epsilon in units of the cost, or of its mean in the batch with
    `relative_epsilon`. anchor: `a` above, in [0, 1]. marginal_penalty: let the marginals give way for so much a unit
    of KL, so that a sample without a partner need not be matched; None holds them. plan_gradient: `detached` is the
    gradient of the entropic optimum (P is that optimum's gradient with respect to the cost, by the envelope theorem;
    only its entropy is left out of the value); `unrolled` differentiates `sum P c` itself, through the iterations.
    relational: weight of a Gromov term, which asks the student's similarities inside the batch to follow the
    teacher's under the same plan; 0 leaves it out.
    """

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        cost: Literal["cosine", "euclidean", "squared_euclidean"] = "cosine",
        space: Literal["teacher", "shared"] = "teacher",
        dim: Annotated[int, Gt(0)] = 128,
        epsilon: Annotated[float, Gt(0)] = 0.1,
        relative_epsilon: bool = False,
        iterations: Annotated[int, Gt(0)] = 20,
        anchor: Annotated[float, Ge(0), Le(1)] = 0.2,
        marginal_penalty: Annotated[float, Gt(0)] | None = None,
        plan_gradient: Literal["detached", "unrolled"] = "detached",
        relational: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__()
        self.cost, self.epsilon, self.relative_epsilon, self.iterations = cost, epsilon, relative_epsilon, iterations
        self.anchor, self.marginal_penalty, self.relational = anchor, marginal_penalty, relational
        self.unrolled = plan_gradient == "unrolled"
        self.standardise = Standardise(teacher.pooled)
        shared = space == "shared"
        self.student_projection = nn.Linear(student.pooled, dim if shared else teacher.pooled)
        self.teacher_projection = nn.Linear(teacher.pooled, dim) if shared else nn.Identity()
        # What needs the whole plan at once, or costs that are not inner products.
        self.blocked = (
            cost == "cosine"
            and anchor > 0
            and not (relational or relative_epsilon or self.unrolled or marginal_penalty)
        )

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        h_student, h_teacher = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        if self.training:
            self.standardise.update(h_teacher)
        with torch.autocast(h_student.device.type, enabled=False):
            h_teacher = self.standardise(h_teacher)
            s, t = self.student_projection(h_student), self.teacher_projection(h_teacher)
            if self.cost == "cosine":
                s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)  # [B, d]
            if self.blocked and len(s) > LARGEST_PLAN:
                odds = 1 + len(s) * (1 - self.anchor) / self.anchor
                loss, diagonal, error = transport_cost(s, t, self.epsilon, self.iterations, odds)
                self._last = s.detach(), diagonal, error
                return loss
            cost = self._cost(s, t)  # [B, B]
            plan = self._plan(cost)
            loss = (plan * cost).sum()
            if self.relational:
                loss = loss + self.relational * relational_divergence(h_student, h_teacher, plan)
        plan = plan.detach()
        self._last = s.detach(), plan.diagonal().sum(), marginal_error(plan)
        return loss

    def _cost(self, s: Tensor, t: Tensor) -> Tensor:
        if self.cost == "cosine":
            return 1 - s @ t.T
        if self.cost == "squared_euclidean":
            return (s[:, None] - t).square().mean(2)
        # The square root has no gradient at zero distance.
        return ((s[:, None] - t).square().mean(2) + 1e-12).sqrt()

    def _plan(self, cost: Tensor) -> Tensor:
        seen = cost if self.unrolled else cost.detach()
        if self.relative_epsilon:
            seen = seen / seen.detach().mean().clamp(min=1e-12)
        return sinkhorn(
            seen, self.epsilon, self.iterations, self._log_prior(cost), marginal_penalty=self.marginal_penalty
        )

    def _log_prior(self, cost: Tensor) -> Tensor:
        n = cost.shape[0]
        identity = torch.eye(n, device=cost.device, dtype=cost.dtype)
        return ((1 - self.anchor) * identity / n + self.anchor / n**2).log()

    def metrics(self) -> dict[str, Tensor]:
        s, diagonal, error = self._last
        return {
            "plan_diagonal": diagonal,
            "marginal_error": error,
            "projected_std": relative_std(s),
            "effective_rank": effective_rank(s),
        }
