"""The local term of WCoRD: optimal transport between the features of student and teacher within a batch.

Chen et al. 2021, arXiv 2012.08674 (LCKT):  min_P sum_ij P_ij c(s_i, t_j)  under uniform marginals.

The plain plan ignores the known correspondence between student and teacher features. It is therefore anchored:
min_P <P, C> + epsilon KL(P || P0)  with  P0 = (1 - a) I/B + a 11'/B^2. a = 0 is feature regression, a = 1 the plain
term; in between, near-duplicates in the batch share their mass. For non-uniform marginals m, P0 = (1 - a) diag(m) +
a m m'.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from losses import rows
from losses.anchor import anchored_log_prior
from losses.base import Batch, Dims, Features, Loss, LossOutput, check_choice, full_precision
from losses.diagnostics import pair_metrics
from losses.gather import gather
from losses.implicit import implicit
from losses.ipot import ipot
from losses.relational import directions, divergence_of_directions, relational_divergence
from losses.row_blocked import transport_cost
from losses.sinkhorn import marginal_error, sinkhorn
from losses.standardise import Standardise
from losses.unit import unit


class LocalTransport(Loss):
    """WCoRD's local term: the cost of transport from student to teacher features, `sum_ij P_ij c(s_i, t_j)`.

    The sum is over the global batch. `batch["weight"]`, `[B]`, at least 0 and not all 0, sets the marginals (how much
    mass each sample sends and receives) and the weight of each sample in the relational term. Samples with weight 0 are
    ignored.

    For global batches of more than 4,096 samples, the plan is never materialised, provided that the cost is
    `cosine`, the marginals are uniform and fixed, and all keywords except `space`, `standardise`, `epsilon`,
    `iterations`, `anchor` (above 0) and `relational` have their defaults. This does not apply if the loss itself is
    compiled.

    Args:
        student: Dims of the student.
        teacher: Dims of the teacher.
        cost: `cosine`, i.e. `1 - cos(s, t)` in [0, 2], `euclidean` or `squared_euclidean`. The latter two use
            unnormalised features and average over dimensions.
        space: `teacher`: compare in the feature space of the teacher; only the student is projected. `shared`: project
            both to `dim` dimensions, as in the paper; both can then drift together. `raw`: compare pooled features
            directly; they must have the same size.
        standardise: Standardise the teacher's features by running statistics (in `teacher` and `shared` space).
        dim: Size of the shared space.
        solver: `sinkhorn`: entropic regularisation. `ipot`: no regularisation; the proximal point iteration in the
            public code of WCoRD's first author (`losses.ipot`). `ipot` does not support an anchor and requires `anchor:
            1`.
        epsilon: Entropic regularisation of `sinkhorn`, in units of the cost or, with `relative_epsilon`, of its mean in
            the batch.
        relative_epsilon: Multiply epsilon by the mean cost of the batch, without gradient.
        start_epsilon: Initial epsilon, which decreases geometrically to `epsilon`. None keeps it constant.
        anneal_steps: Number of training steps over which epsilon decreases.
        iterations: Number of iterations of `sinkhorn`.
        beta: Weight of the proximal term of `ipot`, above 0, in units of the cost.
        proximal_steps: Number of proximal steps of `ipot`; usually 20 to 50.
        anchor: Strength of the anchor: the plan's prior is P0 = (1 - a) I/B + a 11'/B^2 with a in [0, 1]. 0 fixes each
            sample to its own pair, 1 is plain transport.
        marginal_penalty: Relax the marginals (unbalanced transport) with this weight of their KL divergence, so samples
            without a counterpart need not be matched. None keeps the marginals fixed.
        plan_gradient: `detached`: treat the plan as constant. By the envelope theorem, this is the gradient of the
            entropic optimum; the loss value itself does not include the entropy term. `unrolled`: differentiate `sum P
            c` through the iterations. `implicit`: differentiate `sum P c` at the optimum to which the iterations
            converge, by implicit differentiation.
        relational: Weight of the relational term, which matches the student's similarities within the batch to those
            of the teacher under the same plan. 0 disables it.

    Raises:
        ValueError: A value is invalid; raw features differ in size; `implicit` is combined with relaxed marginals; or
            `ipot` is combined with an anchor or another feature of `sinkhorn`.
    """

    steps: Tensor

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        cost: Literal["cosine", "euclidean", "squared_euclidean"] = "cosine",
        space: Literal["teacher", "shared", "raw"] = "teacher",
        standardise: bool = True,
        dim: Annotated[int, Gt(0)] = 128,
        solver: Literal["sinkhorn", "ipot"] = "sinkhorn",
        epsilon: Annotated[float, Gt(0)] = 0.1,
        relative_epsilon: bool = False,
        start_epsilon: Annotated[float, Gt(0)] | None = None,
        anneal_steps: Annotated[int, Gt(0)] = 1000,
        iterations: Annotated[int, Gt(0)] = 20,
        beta: Annotated[float, Gt(0)] = 0.5,
        proximal_steps: Annotated[int, Gt(0)] = 50,
        anchor: Annotated[float, Ge(0), Le(1)] = 0.2,
        marginal_penalty: Annotated[float, Gt(0)] | None = None,
        plan_gradient: Literal["detached", "unrolled", "implicit"] = "detached",
        relational: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__()
        check_choice("cost", cost, ("cosine", "euclidean", "squared_euclidean"))
        check_choice("space", space, ("teacher", "shared", "raw"))
        check_choice("solver", solver, ("sinkhorn", "ipot"))
        check_choice("plan_gradient", plan_gradient, ("detached", "unrolled", "implicit"))
        if not 0 <= anchor <= 1:
            raise ValueError(f"anchor: {anchor} is not within [0, 1]")
        if start_epsilon is not None and not start_epsilon > 0:
            raise ValueError(f"start_epsilon: {start_epsilon} is not above 0")
        self.cost, self.epsilon, self.relative_epsilon, self.iterations = cost, epsilon, relative_epsilon, iterations
        self.anchor, self.marginal_penalty, self.relational = anchor, marginal_penalty, relational
        self.plan_gradient, self.start_epsilon, self.anneal_steps = plan_gradient, start_epsilon, anneal_steps
        self.compiled = False  # whether torch.compile fuses the iterations; set by the pipeline
        if space == "raw" and student.pooled != teacher.pooled:
            raise ValueError(
                f"space: raw requires features of one size, but the student's have {student.pooled} dimensions and the "
                f"teacher's {teacher.pooled}; use teacher or shared"
            )
        if plan_gradient == "implicit" and marginal_penalty is not None:
            raise ValueError(
                "plan_gradient: implicit requires fixed marginals; remove marginal_penalty, or use unrolled"
            )
        if solver == "ipot":
            _check_ipot(anchor, plan_gradient, marginal_penalty, relative_epsilon, start_epsilon)
        self.solver, self.beta, self.proximal_steps = solver, beta, proximal_steps
        self.standardise = Standardise(teacher.pooled) if standardise and space != "raw" else nn.Identity()
        sizes = {"teacher": teacher.pooled, "shared": dim}
        self.student_projection = nn.Linear(student.pooled, sizes[space]) if space != "raw" else nn.Identity()
        self.teacher_projection = nn.Linear(teacher.pooled, dim) if space == "shared" else nn.Identity()
        if start_epsilon is not None:
            self.register_buffer("steps", torch.zeros(()))
        # Other settings need the whole plan at once, or costs that are not inner products.
        self.blocked = (
            cost == "cosine"
            and solver == "sinkhorn"
            and anchor > 0
            and not (relative_epsilon or start_epsilon or plan_gradient != "detached" or marginal_penalty)
        )

    @classmethod
    def suspects(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        relational, anchor = settings.get("relational", 0), settings.get("anchor", 0)
        found = {"relational": "0, which disables the relations between samples"} if relational else {}
        return found | ({"anchor": "0.2 or less, which anchors the plan to the true pairs"} if anchor > 0.5 else {})

    def forward(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
        """Compute the loss. Its parts are `transport` and, if above 0, `relational`."""
        h_student, h_teacher = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        weight = self._marginal(batch)
        if weight is not None:  # regardless of their features, which may be nan
            none = (weight == 0)[:, None]
            h_student, h_teacher = h_student.masked_fill(none, 0.0), h_teacher.masked_fill(none, 0.0)
        if self.training and isinstance(self.standardise, Standardise):
            self.standardise.update(h_teacher, weight)
        with torch.autocast(h_student.device.type, enabled=False):
            h_teacher = self.standardise(h_teacher)
            s, t = self.student_projection(h_student), self.teacher_projection(h_teacher)
            if self.cost == "cosine":
                s, t = unit(s), unit(t)  # [B, d]
            large = (
                len(s) > rows.LARGEST_WHOLE and not torch.compiler.is_compiling()
            )  # the blocked version reads sums on the host
            if self.blocked and weight is None and large:
                return self._by_blocks(s, t, h_student, h_teacher)
            cost = self._cost(s, t, weight)  # [B, B]
            plan = self._plan(cost, weight)
            parts = {"transport": (plan * cost).sum()}
            if self.relational:
                relations = relational_divergence(h_student, h_teacher, plan, weight=weight)
                parts["relational"] = self.relational * relations
        plan = plan.detach()
        metrics = partial(_metrics, s.detach(), t.detach(), plan.diagonal().sum(), marginal_error(plan, weight))
        return LossOutput.sum_of(parts, metrics)

    def _by_blocks(self, s: Tensor, t: Tensor, h_student: Tensor, h_teacher: Tensor) -> LossOutput:
        """The loss without materialising the plan, from unit vectors `[B, d]` and features `[B, D_S]`, `[B, D_T]`."""
        n = len(s)
        odds = 1 + n * (1 - self.anchor) / self.anchor
        uniform = h_student.new_full((n,), 1 / n)
        carried = directions(h_teacher, uniform) if self.relational else None
        cost, diagonal, error, brought = transport_cost(s, t, self.epsilon, self.iterations, odds, carried)
        parts = {"transport": cost}
        if brought is not None:
            relations = divergence_of_directions(directions(h_student, uniform), n * brought, uniform)
            parts["relational"] = self.relational * relations
        return LossOutput.sum_of(parts, partial(_metrics, s.detach(), t.detach(), diagonal, error))

    def _marginal(self, batch: Batch) -> Tensor | None:
        if "weight" not in batch:
            return None
        weight = full_precision(gather(batch["weight"]))
        return weight / weight.sum()

    def _cost(self, s: Tensor, t: Tensor, weight: Tensor | None = None) -> Tensor:
        if self.cost == "cosine":
            return 1 - s @ t.T
        # Centring leaves distances unchanged, but reduces cancellation.
        centre = t.detach().mean(0) if weight is None else weight.to(t.dtype) @ t.detach()
        s, t = s - centre, t - centre
        norms = s.square().sum(1, keepdim=True) + t.square().sum(1)
        squared = (norms - 2 * s @ t.T).clamp(min=0) / s.shape[1]
        if self.cost == "squared_euclidean":
            return squared
        # The square root has no gradient at distance 0, and a wrong one if the distance is only a rounding error.
        rounding = torch.finfo(s.dtype).eps * norms.detach() / s.shape[1]
        return (squared + rounding + 1e-12).sqrt()

    def _plan(self, cost: Tensor, weight: Tensor | None = None) -> Tensor:
        marginal = cost.new_full((len(cost),), 1 / len(cost)) if weight is None else weight.to(cost.dtype)
        held = None if weight is None else marginal.log()
        if self.solver == "ipot":
            return ipot(cost, self.beta, self.proximal_steps, held, held)
        if self.relative_epsilon:
            cost = cost / (marginal @ cost.detach() @ marginal).clamp(min=1e-12)
        seen = cost if self.plan_gradient == "unrolled" else cost.detach()
        epsilon = self._epsilon()
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


def _metrics(s: Tensor, t: Tensor, diagonal: Tensor, error: Tensor) -> dict[str, Tensor]:
    return {"plan_diagonal": diagonal, "marginal_error": error} | pair_metrics(s, t)


def _check_ipot(
    anchor: float,
    plan_gradient: str,
    marginal_penalty: float | None,
    relative_epsilon: bool,
    start_epsilon: float | None,
) -> None:
    """Raise ValueError for features that IPOT does not support; the message states the setting to change."""
    asked = {
        "anchor: 1": anchor < 1,
        "plan_gradient: detached": plan_gradient != "detached",
        "marginal_penalty: null": marginal_penalty is not None,
        "relative_epsilon: false": relative_epsilon,
        "start_epsilon: null": start_epsilon is not None,
    }
    if cure := ", ".join(setting for setting, needed in asked.items() if needed):
        raise ValueError(f"solver: ipot only solves the unregularised problem: set {cure}, or solver: sinkhorn")
