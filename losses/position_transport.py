"""WCoRD's local term between the positions of feature maps: transport within each sample instead of within the batch.

If both networks receive views of the same scene, the correspondence between positions of the two maps is known, except
for content between two cells and shifts between two sensors. The plan of each sample is therefore anchored at its
positions, as the plan of `LocalTransport` is at its samples: min_P <P, C> + epsilon KL(P || P0), P0 = (1 - a) I/n + a
11'/n^2.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from losses.anchor import anchored_log_prior
from losses.base import Batch, Dims, Features, Loss, LossOutput
from losses.gather import gather
from losses.maps import channels_of, grid_shape, pair_up, positions
from losses.sinkhorn import marginal_error, sinkhorn
from losses.standardise import Standardise
from losses.unit import unit


class PositionTransport(Loss):
    """Transport between the positions of a student's and a teacher's feature map.

    `loss = E_i[sum_xy P_ixy (1 - cos(s_ix, t_iy))]`, where s is a student's map after a 1x1 convolution, and t is a
    teacher's map with standardised channels. The plan is constant in the backward pass, which gives the gradient of the
    entropic optimum.

    Args:
        layer: Index of the pair of maps; negative values count from the deepest.
        side: Maximum height and width of the maps in positions; larger maps are average-pooled, both to the same size.
        epsilon: Entropic regularisation, in units of the cost.
        iterations: Number of Sinkhorn iterations.
        anchor: a in the prior P0 = (1 - a) I/n + a 11'/n^2, in [0, 1]. 0 is regression of the map; 1 carries no
            information about positions.

    Raises:
        ValueError: A network has no maps, or there is no such layer.
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
        self.compiled = False  # whether torch.compile fuses the iterations; set by the pipeline
        self.projection = nn.Linear(student_channels, teacher_channels)
        self.standardise = Standardise(teacher_channels)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
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
        diagonal, error = plan.diagonal(dim1=1, dim2=2).sum(1).mean(), marginal_error(plan).mean()
        return LossOutput(loss, partial(dict, plan_diagonal=diagonal, marginal_error=error))
