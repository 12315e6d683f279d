"""WCoRD's local term between the positions of feature maps: transport inside each sample instead of inside the batch.

Which part of the student's map belongs to which part of the teacher's is known where both see one picture, but for
what lies between two cells or moved between two sensors. So the plan of each sample is anchored at its own positions,
as that of `LocalTransport` is at its samples:  min_P <P, C> + epsilon KL(P || P0),  P0 = (1 - a) I/n + a 11'/n^2.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from losses.anchor import anchored_log_prior
from losses.base import Batch, Dims, Features, Loss
from losses.gather import gather
from losses.maps import channels_of, grid_shape, pair_up, positions
from losses.sinkhorn import marginal_error, sinkhorn
from losses.standardise import Standardise
from losses.unit import unit


class PositionTransport(Loss):
    """`E_i[sum_xy P_ixy (1 - cos(s_ix, t_iy))]`: s a map of the student's by a 1x1 projection, t the teacher's.

    Channels of the teacher are standardised. The gradient is that of the fixed plan, as of the entropic optimum.

    layer: index into the paired maps, negative from the deepest. side: positions a side; larger maps are
    average-pooled, both to the same. epsilon, iterations: of `sinkhorn`. anchor: a above, in [0, 1]; 0 is regression of
    the map, 1 does not know which position is which.
    Raises ValueError if a side has no maps, or not that many.
    """

    needs_maps: ClassVar[bool] = True
    plan_gradient: ClassVar[Literal["detached"]] = "detached"

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        layer: int = -1,
        side: Annotated[int, Gt(0)] = 8,
        epsilon: Annotated[float, Gt(0)] = 0.1,
        iterations: Annotated[int, Gt(0)] = 20,
        anchor: Annotated[float, Ge(0), Le(1)] = 0.2,
    ) -> None:
        super().__init__()
        student_channels, teacher_channels = channels_of("PositionTransport", student, teacher, layer)
        self.layer, self.side, self.epsilon, self.iterations, self.anchor = layer, side, epsilon, iterations, anchor
        self.compiled = False  # the iterations, by torch.compile; the pipeline sets it
        self.projection = nn.Linear(student_channels, teacher_channels)
        self.standardise = Standardise(teacher_channels)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s_map, t_map = pair_up(student.maps, teacher.maps)[self.layer]
        shape = grid_shape(self.side, s_map, t_map)
        s, t = positions(s_map, shape), positions(t_map, shape)  # [B, n, C]
        if self.training:
            self.standardise.update(gather(t).flatten(0, 1))
        with torch.autocast(s.device.type, enabled=False):
            s, t = unit(self.projection(s)), unit(self.standardise(t))
            cost = 1 - s @ t.mT  # [B, n, n]
            prior = anchored_log_prior(cost.new_full(cost.shape[-1:], 1 / cost.shape[-1]), self.anchor)
            plan = sinkhorn(cost.detach(), self.epsilon, self.iterations, prior, compiled=self.compiled)
            loss = (plan * cost).sum((1, 2)).mean()
        self._last = plan.diagonal(dim1=1, dim2=2).sum(1).mean(), marginal_error(plan).mean()
        return loss

    def metrics(self) -> dict[str, Tensor]:
        if not self._last:
            return {}
        diagonal, error = self._last
        return {"plan_diagonal": diagonal, "marginal_error": error}
