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
from losses.sinkhorn import marginal_error, sinkhorn
from losses.standardise import Standardise


class LocalTransport(Loss):
    """`sum_ij P_ij (1 - cos(s_i, t_j))`, in [0, 2], with P detached.

    P itself is the gradient of the entropic optimum with respect to the cost (envelope theorem), so nothing is missing
    from the gradient of that optimum; only its entropy is left out of the value.

    space: `teacher` compares in the teacher's standardised feature space, so that only the student is projected;
    `shared` projects both to `dim` (the paper's; both sides can then drift together). epsilon, iterations: of
    `sinkhorn`, epsilon in units of the cost. anchor: `a` above, in [0, 1]. relational: weight of a Gromov term, which
    asks the student's similarities inside the batch to follow the teacher's under the same plan; 0 leaves it out.
    """

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        space: Literal["teacher", "shared"] = "teacher",
        dim: Annotated[int, Gt(0)] = 128,
        epsilon: Annotated[float, Gt(0)] = 0.1,
        iterations: Annotated[int, Gt(0)] = 20,
        anchor: Annotated[float, Ge(0), Le(1)] = 0.2,
        relational: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__()
        self.epsilon, self.iterations, self.anchor, self.relational = epsilon, iterations, anchor, relational
        self.standardise = Standardise(teacher.pooled)
        shared = space == "shared"
        self.student_projection = nn.Linear(student.pooled, dim if shared else teacher.pooled)
        self.teacher_projection = nn.Linear(teacher.pooled, dim) if shared else nn.Identity()

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        h_student, h_teacher = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        if self.training:
            self.standardise.update(h_teacher)
        with torch.autocast(h_student.device.type, enabled=False):
            h_teacher = self.standardise(h_teacher)
            s = F.normalize(self.student_projection(h_student), dim=1)  # [B, d]
            t = F.normalize(self.teacher_projection(h_teacher), dim=1)  # [B, d]
            cost = 1 - s @ t.T  # [B, B]
            plan = sinkhorn(cost.detach(), self.epsilon, self.iterations, self._log_prior(cost))
            loss = (plan * cost).sum()
            if self.relational:
                loss = loss + self.relational * relational_divergence(h_student, h_teacher, plan)
        self._last = s.detach(), plan
        return loss

    def _log_prior(self, cost: Tensor) -> Tensor:
        n = cost.shape[0]
        identity = torch.eye(n, device=cost.device, dtype=cost.dtype)
        return ((1 - self.anchor) * identity / n + self.anchor / n**2).log()

    def metrics(self) -> dict[str, Tensor]:
        s, plan = self._last
        return {
            "plan_diagonal": plan.diagonal().sum(),
            "marginal_error": marginal_error(plan),
            "projected_std": relative_std(s),
            "effective_rank": effective_rank(s),
        }
