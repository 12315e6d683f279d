"""A short training with a teacher of timm and a depth student of torchvision; see library_path.py."""

from __future__ import annotations

from pathlib import Path

from pipeline import config as configs
from pipeline.models.network import load_network
from pipeline.train import train

CONFIG = """
run: {run}
data: {{shards: {shards}, batch_size: 16, workers: 0, flip: true}}
teacher:
  modality: rgb
  encoder: {{name: timm, model: test_resnet, weights: random, size: 32}}
student:
  modality: {{name: depth, near: 0.5, far: 2.0}}
  encoder: {{name: torchvision, model: resnet18, weights: random, size: 32}}
losses:
  cross_entropy: {{}}
  crd: {{}}
  fitnet: {{}}
train: {{steps: 3, warmup: 1, log_every: 1, learning_rate: 1.0e-3}}
"""


def test_a_timm_teacher_trains_a_torchvision_student(shapes: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(run=tmp_path / "run", shards=shapes))
    train(configs.load(path))
    student = load_network(tmp_path / "run" / "student")
    assert student.view.size == 32
    assert student.view.crop == 0.875
    assert student.classes
