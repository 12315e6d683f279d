"""The cases that are known to collapse a student, on generated scenes: what the guard saves, and what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import together
from benchmarks.study_methods import RELATIONAL_KL
from losses import Features
from pipeline import config as configs
from pipeline.data.manifest import load_dataset
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop
from pipeline.runs.collapse import collapse_warnings
from pipeline.runs.reader import read_log
from pipeline.train import train

SCENES, STEPS, BROKEN = 800, 500, 0.8
WIDTH = "student.encoder.width=16"


TERMS: dict[str, Any] = {
    "global_contrast": {"weight": 0.5},
    "local_transport": {"weight": 6.0, "relational": 0.15, "anchor": 0.8},
}
"""The default of `wcord` once, with a higher anchor."""


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "relational": ({RELATIONAL_KL: {"weight": 3.0}}, f"losses[{RELATIONAL_KL}].weight"),
    "terms": (TERMS, "losses.local_transport.relational"),
}
"""Name -> losses beside the task's, and the setting that is at fault."""
HARMLESS: dict[str, dict[str, Any]] = {
    "wcord": {"wcord": {}},
    "wcord, anchor 0.8": {"wcord": {"anchor": 0.8}},
}


class Broken(together.Known):
    """A teacher whose view of most samples is of another sample."""

    def forward(self, features: Features) -> Features:
        rows = torch.arange(len(features.pooled))
        broken = torch.randperm(len(rows))[: int(BROKEN * len(rows))]
        rows[broken] = rows[broken.roll(1)]
        return Features(features.pooled[rows], [x[rows] for x in features.maps], None)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a student of whole pairs' teacher, on scenes of which a fifth is labelled."""
    folder = tmp_path_factory.mktemp("collapse")
    pack(tabletop.plan(SCENES, size=48), folder / "data")
    own = [f"data.shards={folder / 'data'}", "data.workers=0", "student.encoder.size=32"]
    teacher = train(configs.load("rgb_teacher", [*own, WIDTH, "train.steps=250", f"run={folder / 'teacher'}"]))
    return [*own, f"teacher.run={teacher}", f"train.steps={STEPS}", "data.label_fraction=0.2", WIDTH]


@pytest.fixture
def trained(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """Top-1 of students trained side by side, by name, and of labels alone."""

    def all_of(cases: dict[str, dict[str, Any]], *more: str) -> dict[str, float]:
        monkeypatch.setattr(together, "Known", Broken)
        losses = {name: {"cross_entropy": {}, **own} for name, own in cases.items()}
        students = {
            name: configs.load(
                "rgb_to_depth",
                [*settings, *more, f"losses={json.dumps(own)}", f"run={tmp_path / name}"]
                + (["teacher=null"] if name == "labels" else []),
            )
            for name, own in losses.items()
        }
        threads = torch.get_num_threads()
        together.train_together(list(students.values()))
        torch.set_num_threads(threads)
        return {name: json.loads((tmp_path / name / "results.json").read_bytes())["student/top1"] for name in students}

    return all_of


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_with_the_guard_no_case_ends_below_labels_alone(
    trained: Callable[..., dict[str, float]], settings: list[str]
) -> None:
    """Minus noise: two standard errors of the difference of two shares of the test scenes."""
    found = trained({"labels": {}} | {name: own for name, (own, _) in CASES.items()} | HARMLESS)
    labels = found.pop("labels")
    scenes = load_dataset(settings[0].removeprefix("data.shards=")).samples("test")
    least = labels - 2 * math.sqrt(2 * labels * (1 - labels) / scenes)
    assert all(top1 > least for top1 in found.values()), (labels, found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_without_the_guard_each_case_is_named(
    trained: Callable[..., dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    enough = 350  # steps
    trained({name: own for name, (own, _) in CASES.items()}, "train.guard=false", f"train.steps={enough}")
    said = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "warning: student: nearly all predictions are one class" in line
    ]
    for name in CASES:
        (warning,) = [line for line in said if f"/{name}: " in line]
        assert f"comes from `{CASES[name][1]}`" in warning
        assert "it is multiplied by" not in warning


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["rgb_to_depth", "compress"])
def test_the_shipped_students_do_not_collapse(name: str, settings: list[str], tmp_path: Path) -> None:
    """At the end of short runs; `paper` is shipped as what may."""
    data, workers, size, teacher, *_ = settings
    run = train(configs.load(name, [data, workers, size, teacher, "train.steps=120", f"run={tmp_path / name}"]))
    log = read_log(run / "metrics.jsonl", [])
    assert not collapse_warnings(log[max(log)])
