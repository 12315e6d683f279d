"""Students trained side by side are the students that `wcord train` makes one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.together import train_together
from pipeline import config as configs
from pipeline.evaluate import evaluate
from pipeline.train import train

METHODS = ("cross_entropy: {}, wcord: {dim: 8, queue: 32}", "cross_entropy: {}, crd: {negatives: 8}, kd: {}")


def test_each_student_ends_as_if_alone(make_config: Any, tmp_path: Path) -> None:
    path = make_config("teacher")
    teacher = train(configs.load(path, ["student.modality=rgb", "train.steps=4"]))
    given = [("labels", "cross_entropy: {}", "null")]
    given += [(f"m{i}", losses, f"{{run: {teacher}}}") for i, losses in enumerate(METHODS)]
    make = [
        (name, [f"losses={{{losses}}}", f"teacher={by}", "data.label_fraction=0.5", "train.steps=6"])
        for name, losses, by in given
    ]
    together = [configs.load(path, [*overrides, f"run={tmp_path / name}"]) for name, overrides in make]
    threads = torch.get_num_threads()
    train_together(together)
    torch.set_num_threads(threads)
    for (name, overrides), config in zip(make, together, strict=True):
        alone = train(configs.load(path, [*overrides, f"run={tmp_path / name}_alone"]))
        ours, expected = (load_file(Path(run) / "student/model.safetensors") for run in (config.run, alone))
        for key in expected:
            torch.testing.assert_close(ours[key], expected[key], rtol=1e-5, atol=1e-6)
        results, scores = json.loads((tmp_path / name / "results.json").read_bytes()), evaluate(alone)
        for metric in ("top1", "balanced", "probe", "knn"):
            assert abs(results[f"student/{metric}"] - scores[f"student/{metric}"]) < 1e-9
    before = (tmp_path / "m0" / "results.json").stat().st_mtime_ns
    train_together(together)  # what is done is kept
    assert (tmp_path / "m0" / "results.json").stat().st_mtime_ns == before
