"""A student and a teacher made of modules: two processes train what one trains, with gradient caching and export."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from pipeline.models.network import load_network


class Net(nn.Module):
    """Somebody's network, with a classifier that nobody needs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.fc(self.pool(self.stem(x)).flatten(1)),)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], ["train.micro_batch=4"]], ids=["whole", "micro_batch"])
def test_two_processes_train_it(make_config: Any, tmp_path: Path, settings: list[str]) -> None:
    encoder = f"{{name: module, factory: '{__name__}:Net', layers: [stem], pooled: pool, size: 16"
    teacher = f"teacher: {{modality: rgb, encoder: {encoder}, keywords: {{channels: 3}}, weights: random}}}}"
    path = make_config("run", teacher, "  cross_entropy: {}\n  wcord: {dim: 4}")
    student = f"student.encoder={encoder}, keywords: {{channels: 2}}}}"
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "pipeline", "train"]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command, str(path), "train.steps=4", student, *settings],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    network: Any = load_network(tmp_path / "run" / "student")
    assert network.encoder.map_channels == (6,)
