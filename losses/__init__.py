"""The mathematics of distillation: tensors in, scalars out. `LOSSES` holds the names that configs use."""

from losses.base import Batch, Dims, Features, Loss
from losses.cross_entropy import CrossEntropy
from losses.global_contrast import GlobalContrast
from losses.info_nce import InfoNCE
from losses.kd import KD
from losses.local_transport import LocalTransport
from losses.sinkhorn import sinkhorn
from losses.wcord import WCoRD

LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "kd": KD,
    "info_nce": InfoNCE,
    "global_contrast": GlobalContrast,
    "local_transport": LocalTransport,
    "wcord": WCoRD,
}

__all__ = [
    "KD",
    "LOSSES",
    "Batch",
    "CrossEntropy",
    "Dims",
    "Features",
    "GlobalContrast",
    "InfoNCE",
    "LocalTransport",
    "Loss",
    "WCoRD",
    "sinkhorn",
]
