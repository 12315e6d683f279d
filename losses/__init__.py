"""Losses for knowledge distillation: tensors in, scalars out. `LOSSES` maps the names in configs to classes."""

from losses.at import AT
from losses.base import Batch, Dims, Features, Loss, LossOutput
from losses.cc import CC
from losses.cosine import Cosine
from losses.crd import CRD
from losses.cross_entropy import CrossEntropy
from losses.dist import DIST
from losses.dkd import DKD
from losses.fitnet import FitNet
from losses.global_contrast import GlobalContrast
from losses.info_nce import InfoNCE
from losses.kd import KD
from losses.local_global import LocalGlobal
from losses.local_transport import LocalTransport
from losses.logit_standardisation import LogitStandardisedKD
from losses.nst import NST
from losses.pkt import PKT
from losses.position_transport import PositionTransport
from losses.registry import find
from losses.rkd import RKD
from losses.siglip import SigLIP
from losses.sinkhorn import sinkhorn
from losses.sp import SP
from losses.vid import VID
from losses.wcord import WCoRD
from losses.wkd_feature import WKDFeature
from losses.wkd_logit import WKDLogit

LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "kd": KD,
    "wcord": WCoRD,
    "global_contrast": GlobalContrast,
    "local_transport": LocalTransport,
    "local_global": LocalGlobal,
    "position_transport": PositionTransport,
    "crd": CRD,
    "info_nce": InfoNCE,
    "siglip": SigLIP,
    "cosine": Cosine,
    "dkd": DKD,
    "dist": DIST,
    "logit_standardisation": LogitStandardisedKD,
    "fitnet": FitNet,
    "at": AT,
    "sp": SP,
    "cc": CC,
    "vid": VID,
    "rkd": RKD,
    "pkt": PKT,
    "nst": NST,
    "wkd_logit": WKDLogit,
    "wkd_feature": WKDFeature,
}

__all__ = [
    "AT",
    "CC",
    "CRD",
    "DIST",
    "DKD",
    "KD",
    "LOSSES",
    "NST",
    "PKT",
    "RKD",
    "SP",
    "VID",
    "Batch",
    "Cosine",
    "CrossEntropy",
    "Dims",
    "Features",
    "FitNet",
    "GlobalContrast",
    "InfoNCE",
    "LocalGlobal",
    "LocalTransport",
    "LogitStandardisedKD",
    "Loss",
    "LossOutput",
    "PositionTransport",
    "SigLIP",
    "WCoRD",
    "WKDFeature",
    "WKDLogit",
    "get",
    "sinkhorn",
]


def get(name: str) -> type[Loss]:
    """Find a loss class.

    Args:
        name: A name in `LOSSES`, or `package.module:Class`.

    Returns:
        The class, a subclass of `Loss`.

    Raises:
        ValueError: The name is unknown or cannot be imported. The message lists the known names and suggests the
            closest.
    """
    return find(name, LOSSES, Loss, "loss")
