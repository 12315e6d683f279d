"""WCoRD's local term: optimal transport between the student's and the teacher's features inside the batch.

Chen et al. 2021, arXiv 2012.08674 (LCKT):  min_P sum_ij P_ij c(s_i, t_j)  under uniform marginals.

The plain plan does not know which student feature belongs to which teacher feature, although we do. So it is anchored:
min_P <P, C> + epsilon KL(P || P0)  with  P0 = (1 - a) I/B + a 11'/B^2.  a = 0 is feature regression, a = 1 the plain
term; between them near-duplicates in the batch share their mass. With marginals m of their own the samples have
P0 = (1 - a) diag(m) + a m m'.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from losses import rows
from losses.anchor import anchored_log_prior
from losses.base import Batch, Dims, Features, Loss, check_choice, full_precision
from losses.diagnostics import pair_metrics
from losses.gather import gather
from losses.implicit import implicit
from losses.relational import directions, divergence_of_directions, relational_divergence
from losses.row_blocked import transport_cost
from losses.sinkhorn import marginal_error, sinkhorn
from losses.standardise import Standardise
from losses.unit import unit


class LocalTransport(Loss):
    """`sum_ij P_ij c(s_i, t_j)` over the global batch.

    cost: `cosine`, `1 - cos(s, t)` in [0, 2], `euclidean` or `squared_euclidean`; the latter two of features that are
        not normalised, as a mean over dimensions.
    space: `teacher` compares in the teacher's standardised feature space, so that only the student is projected;
        `shared` projects both to `dim` (the paper's; both sides can then drift together); `raw` compares pooled
        features as they are, which then must have one size.
    epsilon, iterations: of `sinkhorn`; epsilon in units of the cost, or of its mean in the batch
        (`relative_epsilon`), which has no gradient of its own.
    start_epsilon: where epsilon begins, to fall geometrically to its value within `anneal_steps` training steps.
    anchor: `a` above, in [0, 1].
    marginal_penalty: let the marginals give way for so much a unit of KL, so that a sample without a partner need not
        be matched; None holds them.
    plan_gradient: `detached` is the gradient of the entropic optimum (P is that optimum's gradient with respect to the
        cost, by the envelope theorem; only its entropy is left out of the value); `unrolled` differentiates `sum P c`
        itself, through the iterations, `implicit` through the optimum that they tend to (`losses.implicit`).
    relational: weight of a Gromov term, which asks the student's similarities inside the batch to follow the teacher's
        under the same plan; 0 leaves it out.

    A batch["weight"] `[B]`, at least 0 and not all 0, sets the marginals: how much mass each sample sends and receives,
    and its share in the relations; with 0 it takes no part. Raises ValueError for raw features of two sizes, and for
    `implicit` with marginals that may give way.

    Global batches beyond `rows.LARGEST_WHOLE` never hold their plan, if the cost is `cosine`, the marginals hold and
    are uniform, and the other keywords but for `epsilon`, `iterations`, `anchor` (above 0) and `relational` are the
    defaults; compiled whole, this loss holds it.
    """

    steps: Tensor

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        cost: Literal["cosine", "euclidean", "squared_euclidean"] = "cosine",
        space: Literal["teacher", "shared", "raw"] = "teacher",
        dim: Annotated[int, Gt(0)] = 128,
        epsilon: Annotated[float, Gt(0)] = 0.1,
        relative_epsilon: bool = False,
        start_epsilon: Annotated[float, Gt(0)] | None = None,
        anneal_steps: Annotated[int, Gt(0)] = 1000,
        iterations: Annotated[int, Gt(0)] = 20,
        anchor: Annotated[float, Ge(0), Le(1)] = 0.2,
        marginal_penalty: Annotated[float, Gt(0)] | None = None,
        plan_gradient: Literal["detached", "unrolled", "implicit"] = "detached",
        relational: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__()
        check_choice("cost", cost, ("cosine", "euclidean", "squared_euclidean"))
        check_choice("space", space, ("teacher", "shared", "raw"))
        check_choice("plan_gradient", plan_gradient, ("detached", "unrolled", "implicit"))
        if not 0 <= anchor <= 1:
            raise ValueError(f"anchor: {anchor} is not within [0, 1]")
        if start_epsilon is not None and not start_epsilon > 0:
            raise ValueError(f"start_epsilon: {start_epsilon} is not above 0")
        self.cost, self.epsilon, self.relative_epsilon, self.iterations = cost, epsilon, relative_epsilon, iterations
        self.anchor, self.marginal_penalty, self.relational = anchor, marginal_penalty, relational
        self.plan_gradient, self.start_epsilon, self.anneal_steps = plan_gradient, start_epsilon, anneal_steps
        self.compiled = False  # the iterations, by torch.compile; the pipeline sets it
        if space == "raw" and student.pooled != teacher.pooled:
            raise ValueError(
                f"space: raw needs features of one size, but the student's have {student.pooled} dimensions and the "
                f"teacher's {teacher.pooled}; use teacher or shared"
            )
        if plan_gradient == "implicit" and marginal_penalty is not None:
            raise ValueError("plan_gradient: implicit needs marginals that hold; remove marginal_penalty, or unroll")
        self.standardise = Standardise(teacher.pooled) if space != "raw" else nn.Identity()
        sizes = {"teacher": teacher.pooled, "shared": dim}
        self.student_projection = nn.Linear(student.pooled, sizes[space]) if space != "raw" else nn.Identity()
        self.teacher_projection = nn.Linear(teacher.pooled, dim) if space == "shared" else nn.Identity()
        if start_epsilon is not None:
            self.register_buffer("steps", torch.zeros(()))
        # What needs the whole plan at once, or costs that are not inner products.
        self.blocked = (
            cost == "cosine"
            and anchor > 0
            and not (relative_epsilon or start_epsilon or plan_gradient != "detached" or marginal_penalty)
        )

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        h_student, h_teacher = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        weight = self._marginal(batch)
        if weight is not None:  # whatever they hold, nan included
            none = (weight == 0)[:, None]
            h_student, h_teacher = h_student.masked_fill(none, 0.0), h_teacher.masked_fill(none, 0.0)
        if self.training and isinstance(self.standardise, Standardise):
            self.standardise.update(h_teacher, weight)
        with torch.autocast(h_student.device.type, enabled=False):
            h_teacher = self.standardise(h_teacher)
            s, t = self.student_projection(h_student), self.teacher_projection(h_teacher)
            if self.cost == "cosine":
                s, t = unit(s), unit(t)  # [B, d]
            large = len(s) > rows.LARGEST_WHOLE and not torch.compiler.is_compiling()  # blocks look at their sums
            if self.blocked and weight is None and large:
                return self._by_blocks(s, t, h_student, h_teacher)
            cost = self._cost(s, t, weight)  # [B, B]
            plan = self._plan(cost, weight)
            loss = (plan * cost).sum()
            if self.relational:
                loss = loss + self.relational * relational_divergence(h_student, h_teacher, plan, weight=weight)
        plan = plan.detach()
        self._last = s.detach(), t.detach(), plan.diagonal().sum(), marginal_error(plan, weight)
        return loss

    def _by_blocks(self, s: Tensor, t: Tensor, h_student: Tensor, h_teacher: Tensor) -> Tensor:
        """The same where the plan is never held, of directions `[B, d]` and of features `[B, D_S]`, `[B, D_T]`."""
        n = len(s)
        odds = 1 + n * (1 - self.anchor) / self.anchor
        uniform = h_student.new_full((n,), 1 / n)
        carried = directions(h_teacher, uniform) if self.relational else None
        loss, diagonal, error, brought = transport_cost(s, t, self.epsilon, self.iterations, odds, carried)
        if brought is not None:
            relations = divergence_of_directions(directions(h_student, uniform), n * brought, uniform)
            loss = loss + self.relational * relations
        self._last = s.detach(), t.detach(), diagonal, error
        return loss

    def _marginal(self, batch: Batch) -> Tensor | None:
        if "weight" not in batch:
            return None
        weight = full_precision(gather(batch["weight"]))
        return weight / weight.sum()

    def _cost(self, s: Tensor, t: Tensor, weight: Tensor | None = None) -> Tensor:
        if self.cost == "cosine":
            return 1 - s @ t.T
        # No distance changes, but the terms below cancel less.
        centre = t.detach().mean(0) if weight is None else weight.to(t.dtype) @ t.detach()
        s, t = s - centre, t - centre
        norms = s.square().sum(1, keepdim=True) + t.square().sum(1)
        squared = (norms - 2 * s @ t.T).clamp(min=0) / s.shape[1]
        if self.cost == "squared_euclidean":
            return squared
        # The square root has no gradient at zero distance, and a wrong one where the distance is rounding.
        rounding = torch.finfo(s.dtype).eps * norms.detach() / s.shape[1]
        return (squared + rounding + 1e-12).sqrt()

    def _plan(self, cost: Tensor, weight: Tensor | None = None) -> Tensor:
        marginal = cost.new_full((len(cost),), 1 / len(cost)) if weight is None else weight.to(cost.dtype)
        if self.relative_epsilon:
            cost = cost / (marginal @ cost.detach() @ marginal).clamp(min=1e-12)
        seen = cost if self.plan_gradient == "unrolled" else cost.detach()
        epsilon = self._epsilon()
        held = None if weight is None else marginal.log()
        prior, penalty = anchored_log_prior(marginal, self.anchor), self.marginal_penalty
        plan = sinkhorn(seen, epsilon, self.iterations, prior, held, held, penalty, self.compiled)
        return implicit(plan, cost, epsilon) if self.plan_gradient == "implicit" else plan

    def _epsilon(self) -> float | Tensor:
        if self.start_epsilon is None:
            return self.epsilon
        left = (1 - self.steps / self.anneal_steps).clamp(min=0)
        if self.training:
            self.steps += 1
        return self.epsilon * (self.start_epsilon / self.epsilon) ** left

    def metrics(self) -> dict[str, Tensor]:
        if not self._last:
            return {}
        s, t, diagonal, error = self._last
        return {"plan_diagonal": diagonal, "marginal_error": error} | pair_metrics(s, t)
