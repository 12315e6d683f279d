"""The jobs of the suite, each in a separate process: data and teacher of a setting, and the students of one seed."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.suite import measure
from benchmarks.suite.settings import Losses, Setting
from benchmarks.together import train_together
from losses import LOSSES
from pipeline.models.build import build_model
from pipeline.train import train

MEASURES = {"top1": measure.top1, "probe": measure.probe, "R@10": measure.recall}
DONE = "results.json"


def fitting(setting: Setting, methods: dict[str, Losses]) -> dict[str, Losses]:
    """The methods that work with the teacher of a setting, and the control: labels only, or an untrained student."""
    able = {
        name: setting.task | losses
        for name, losses in methods.items()
        if setting.logits or not any(loss in LOSSES and LOSSES[loss].needs_teacher_logits for loss in losses)
    }
    return ({"labels": setting.task} if setting.task else {"untrained": {}}) | able


def teach(setting: Setting, data: Path, out: Path) -> None:
    """Pack all pairs and train the teacher, unless this is already done."""
    torch.set_num_threads(1)
    setting.pack_whole(data, out)
    config = setting.teacher_config(out)
    if config and not (Path(config.run) / "student" / "model.safetensors").exists():
        train(config, resume=True)


def run(setting: Setting, out: Path, methods: dict[str, Losses], seed: int) -> None:
    """Train and evaluate the unfinished students of one seed in parallel."""
    torch.set_num_threads(1)
    scores = MEASURES[setting.measure]
    configs = []
    for name, losses in methods.items():
        if losses:
            configs.append(setting.student_config(out, name, losses, seed))
        elif not (done := out / f"{name}_seed{seed}" / DONE).exists():
            config = setting.student_config(out, name, {"cosine": {}}, seed)
            done.parent.mkdir(parents=True, exist_ok=True)
            done.write_text(json.dumps(scores([build_model(config).student], config)[0]))
    if configs:
        train_together(configs, scores)
