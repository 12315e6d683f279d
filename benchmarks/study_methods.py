"""The methods of the study: losses in addition to the task loss, with their usual weights."""

from __future__ import annotations

from typing import Any

Losses = dict[str, dict[str, Any]]

RELATIONAL_KL = "benchmarks.relational_kl:RelationalKL"
GRADIENT_NORM = "benchmarks.gradient_norm:GradientNormWCoRD"
TASK: Losses = {"cross_entropy": {}}
LOGITS: dict[str, Losses] = {
    "kd": {"kd": {"weight": 3.0}},
}
FEATURES: dict[str, Losses] = {
    "crd": {"crd": {"weight": 0.8, "negatives": 1024}},
    "info_nce": {"info_nce": {"weight": 0.5}},
    "regression": {"cosine": {"weight": 3.0}},
    "fitnet": {"fitnet": {"weight": 100.0}},
    "relational_kl": {RELATIONAL_KL: {"weight": 3.0}},
}
JOINED = ("wcord", "wcord tuned", *FEATURES)
"""Methods that are also combined with KD at its usual weight.

With a hundredfold weight, which can be the best for KD alone, KD would dominate the other loss.
"""


def _wcord(global_weight: float, local_weight: float, relational: float, positions: float = 0.0) -> Losses:
    """WCoRD with the defaults at the time of the study: both terms on raw features of the student."""
    form: Losses = {
        "global_contrast": {"weight": global_weight},
        "local_transport": {"weight": local_weight, "relational": relational},
    }
    return form | ({"position_transport": {"weight": positions, "layer": -2}} if positions else {})


WCORD: dict[str, Losses] = {
    "plain": _wcord(0.5, 2, 0.0),
    "plain_heavy": _wcord(1.5, 6, 0.0),
    "relational": _wcord(0.5, 2, 1.5),
    "relational_light": _wcord(0.5, 2, 0.45),
    "heavy_relational_light": _wcord(1.5, 6, 0.15),
    "local_heavy": _wcord(0.5, 6, 0.0),
    "local_heavy_relational_light": _wcord(0.5, 6, 0.15),
    **{f"local_heavy_positions_{p:g}": _wcord(0.5, 6, 0.0, p) for p in (2.0, 6.0, 20.0)},
    **{f"local_heavy_relational_light_positions_{p:g}": _wcord(0.5, 6, 0.15, p) for p in (2.0, 6.0, 20.0)},
    "local_heavy_relational_positions_20": _wcord(0.5, 6, 0.45, 20),
    "local_heavier_relational_light_positions_20": _wcord(0.5, 18, 0.15, 20),
    "all_heavier_relational_light_positions_60": _wcord(1.5, 18, 0.15, 60),
}
"""The relational part has the weight `local_weight * relational`."""

DEFAULT, POOLED = "local_heavy_relational_light_positions_20", "local_heavy_relational_light"
"""The default `wcord` at the time of the study, with and without transport between positions.

It is the same in every setting: the variant with the best sum over the validation splits.
"""

PAPER: Losses = {
    "global_contrast": {"weight": 0.8, "link": "linear", "discount": False},
    "local_transport": {"weight": 0.05, "space": "shared", "anchor": 1.0, "iterations": 10, "epsilon": 0.05},
}
GLOBAL, LOCAL = {"weight": 0.5}, {"weight": 2.0}
FORMS: dict[str, Losses] = {
    "global": {"global_contrast": GLOBAL},
    "global linear": {"global_contrast": GLOBAL | {"link": "linear"}},
    "global linear sum": {"global_contrast": GLOBAL | {"link": "linear", "weighting": "sum"}},
    "global bounded": {"global_contrast": GLOBAL | {"link": "bounded"}},
    "global log_bounded": {"global_contrast": GLOBAL | {"link": "log_bounded"}},
    "global cosine critic": {"global_contrast": GLOBAL | {"critic": "cosine"}},
    "global no discount": {"global_contrast": GLOBAL | {"discount": False}},
    "global queue 0": {"global_contrast": GLOBAL | {"queue": 0}},
    "global queue 256": {"global_contrast": GLOBAL | {"queue": 256}},
    "global queue 4096": {"global_contrast": GLOBAL | {"queue": 4096}},
    "global bank 1024": {"global_contrast": GLOBAL | {"queue": 0, "bank": 1024}},
    "global fixed temperature": {"global_contrast": GLOBAL | {"learn_temperature": False}},
    "local": {"local_transport": LOCAL},
    "local anchor 0": {"local_transport": LOCAL | {"anchor": 0.0}},
    "local anchor 1": {"local_transport": LOCAL | {"anchor": 1.0}},
    "local shared": {"local_transport": LOCAL | {"space": "shared"}},
    "local raw": {"local_transport": LOCAL | {"space": "raw"}},
    "local euclidean": {"local_transport": LOCAL | {"cost": "euclidean"}},
    "local squared_euclidean": {"local_transport": LOCAL | {"cost": "squared_euclidean"}},
    "local penalty 0.5": {"local_transport": LOCAL | {"marginal_penalty": 0.5}},
    "local unrolled": {"local_transport": LOCAL | {"plan_gradient": "unrolled"}},
    "local implicit": {"local_transport": LOCAL | {"plan_gradient": "implicit"}},
    "local iterations 5": {"local_transport": LOCAL | {"iterations": 5}},
    "local iterations 100": {"local_transport": LOCAL | {"iterations": 100}},
    "local epsilon 0.02": {"local_transport": LOCAL | {"epsilon": 0.02}},
    "local epsilon 0.5": {"local_transport": LOCAL | {"epsilon": 0.5}},
    "local epsilon relative": {"local_transport": LOCAL | {"relative_epsilon": True}},
    "local epsilon from 1": {"local_transport": LOCAL | {"start_epsilon": 1.0, "anneal_steps": 250}},
    "local relational": {"local_transport": LOCAL | {"relational": 1.5}},
    "global + local": {"global_contrast": GLOBAL, "local_transport": LOCAL},
    "wcord without positions": WCORD[POOLED],
    "wcord by gradient norm": {GRADIENT_NORM: {}},
}
"""The terms separately, each with one change, with the weights of the form `plain`; and two variants of `wcord`."""
