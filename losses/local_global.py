"""Contrasts local features of one network with global features of the other; useful for small datasets.

Even with few samples, the positions of a feature map give many anchors: Deep InfoMax (Hjelm et al. 2019, arXiv
1808.06670), here between teacher and student, as in CRD's transfer to NYU-Depth (Tian et al. 2020, arXiv 1910.10699).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, full_precision, known
from losses.critic import CosineProjection
from losses.gather import gather, rank
from losses.maps import grid_shape, paired_channels, positions
from losses.temperature import bounded_temperature


class LocalGlobal(Loss):
    """Contrast each position of a student's map with the global features of the teacher, and vice versa.

    `loss = -E_ix[log softmax_j(<s_ix, t_j> / tau)]_i`, averaged with the same loss with the roles of the networks
    exchanged. s_ix is the student's deepest map at position x of sample i, and t_j is the teacher's pooled feature of
    sample j, both projected and L2-normalised. Negatives are the other samples of the global batch, except those of the
    same known group, since the frames of a clip show one scene.

    Args:
        dim: Size of the projections.
        side: Maximum height and width of the maps in positions; larger maps are average-pooled.
        temperature: Initial value of tau, which is learnt within [0.01, 1].

    Raises:
        ValueError: A network has no maps.
    """

    needs_maps: ClassVar[bool] = True
    never_decayed = ("log_temperature",)

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        dim: Annotated[int, Gt(0)] = 128,
        side: Annotated[int, Gt(0)] = 8,
        temperature: Annotated[float, Ge(0.01), Le(1)] = 0.07,
    ) -> None:
        super().__init__()
        student_channels, teacher_channels = paired_channels("LocalGlobal", student, teacher)[-1]
        self.side = side
        self.student_local = CosineProjection(student_channels, dim)
        self.student_global = CosineProjection(student.pooled, dim)
        self.teacher_local = CosineProjection(teacher_channels, dim)
        self.teacher_global = CosineProjection(teacher.pooled, dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s_local, t_local = (positions(f.maps[-1], grid_shape(self.side, f.maps[-1])) for f in (student, teacher))
        s = gather(self.student_global(full_precision(student.pooled)))
        t = gather(self.teacher_global(full_precision(teacher.pooled)))
        with torch.autocast(s.device.type, enabled=False):
            group = known(batch, "group", student.pooled)
            own = self._own(group)
            same = self._same_group(group, own)
            of_student = self._contrast(self.student_local(s_local.flatten(0, 1)), t, own, same)
            of_teacher = self._contrast(self.teacher_local(t_local.flatten(0, 1)), s, own, same)
            return (of_student + of_teacher) / 2

    def _contrast(self, local: Tensor, whole: Tensor, own: Tensor, same: Tensor) -> Tensor:
        """Mean loss of local anchors `[b n, dim]` of this rank against global features `[B, dim]` of all ranks."""
        logits = (local @ whole.T).unflatten(0, (len(own), -1)) / bounded_temperature(self.log_temperature)  # [b, n, B]
        logits = logits.masked_fill(same[:, None], -math.inf)
        return F.cross_entropy(logits.mT, own[:, None].expand(-1, logits.shape[1]))

    def _own(self, group: Tensor) -> Tensor:
        """Positions of the samples of this rank in the global batch, `[b]`."""
        here = torch.arange(len(group), device=group.device)
        return here + rank() * len(here)

    def _same_group(self, group: Tensor, own: Tensor) -> Tensor:
        """Which samples are not negatives of this rank's samples, bool `[b, B]`."""
        same = (group[:, None] == gather(group)) & (group >= 0)[:, None]
        return same.scatter(1, own[:, None], False)
