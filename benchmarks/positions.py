"""Gain from transport between feature-map positions, by layer and anchor, on the validation splits of the study.

    python -m benchmarks.positions compression --cifar PATH_TO_CIFAR10

One seed, with the settings, data and teachers of the study (trained if missing). The result of this selection is
evaluated on other data: `wcord bench cifar10_small`.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks import study
from benchmarks.study import Setting
from benchmarks.study_data import CORES, pack_cifar, pack_gestures
from benchmarks.study_methods import TASK, Losses
from pipeline.config import Config

LAYERS, WEIGHTS = (-2, -1), (2.0, 6.0, 20.0)
POOLED: Losses = {"global_contrast": {"weight": 0.5}, "local_transport": {"weight": 6.0}}
ANOTHER = "losses.position_transport:PositionTransport"
"""The same loss under a second name, for a second layer."""


def positions(weight: float, layer: int, anchor: float = 0.2, epsilon: float = 0.1) -> Losses:
    return {"position_transport": {"weight": weight, "layer": layer, "anchor": anchor, "epsilon": epsilon}}


FORMS: dict[str, Losses] = {
    "labels": {},
    "kd": {"kd": {}},
    "fitnet": {"fitnet": {"weight": 100.0}},
    "wcord": {"wcord": {}},
    "wcord, no relations": POOLED,
    **{f"positions -2, {weight:g}": positions(weight, -2) for weight in WEIGHTS},
    **{
        f"wcord, no relations + positions {layer}, {weight:g}": POOLED | positions(weight, layer)
        for layer in LAYERS
        for weight in WEIGHTS
    },
    "wcord, no relations + positions -2, 6, anchor 0": POOLED | positions(6.0, -2, 0.0),
    "wcord, no relations + positions -2, 6, anchor 1": POOLED | positions(6.0, -2, 1.0),
    "wcord + positions -2, 6": {"wcord": {}} | positions(6.0, -2),
    "wcord + positions -2, 20": {"wcord": {}} | positions(20.0, -2),
    "wcord, no relations + positions -2, 60": POOLED | positions(60.0, -2),
    "wcord, no relations + positions -2, 20, epsilon 0.05": POOLED | positions(20.0, -2, epsilon=0.05),
    **{
        f"wcord, no relations + positions -2, 20 and {layer}, {weight:g}": POOLED
        | positions(20.0, -2)
        | {ANOTHER: positions(weight, layer)["position_transport"]}
        for layer, weight in ((-1, 20.0), (-3, 6.0), (-3, 20.0))
    },
    "wcord, no relations + fitnet": POOLED | {"fitnet": {"weight": 30.0}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", choices=["gestures", "other_task", "compression"])
    parser.add_argument("--gestures", type=Path, help="folder with index.csv, hand_rgb/ and hand_depth/")
    parser.add_argument("--cifar", type=Path, help="folder with {train,test}/<class>/*.jpg")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    options = parser.parse_args()
    out: Path = options.out.resolve()
    if options.gestures:
        pack_gestures(options.gestures.resolve(), out / "gestures_data")
    if options.cifar:
        pack_cifar(options.cifar.resolve(), out / "cifar_data")
    settings = [s for s in study.all_settings(out) if s.name in options.settings]
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        study.wait([pool.submit(study.teach, out / s.teacher[0], s.teacher[1], s.teacher[2:]) for s in settings])
        study.wait([job for s in settings for job in study.submit(pool, trials(s, out))])
    print(f"| top-1 % on the validation split | {' | '.join(s.name for s in settings)} |")
    print(f"| --- |{' ---: |' * len(settings)}")
    for form in FORMS:
        print(f"| {form} | {' | '.join(score(s, out, form) for s in settings)} |")


def trials(setting: Setting, out: Path) -> list[Config]:
    return [
        setting.config(out, folder(setting, out, form), TASK | losses, 0, "val")
        for form, losses in FORMS.items()
        if setting.logits or "kd" not in losses
    ]


def folder(setting: Setting, out: Path, form: str) -> Path:
    return out / setting.name / "positions" / form.replace(" ", "_").replace(",", "")


def score(setting: Setting, out: Path, form: str) -> str:
    path = folder(setting, out, form) / "results.json"
    return f"{100 * json.loads(path.read_bytes())['student/top1']:.1f}" if path.exists() else "-"


if __name__ == "__main__":
    main()
