"""The development suite: every shipped setting is sound, and one of a user's own runs, resumes and is tabled."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml
from launching import FORKED

from benchmarks.suite import regret
from benchmarks.suite.__main__ import main
from benchmarks.suite.jobs import fitting, run, teach
from benchmarks.suite.settings import FOLDER, Broken, Setting, load_settings

METHODS = yaml.safe_load((Path(regret.__file__).parent / "methods.yaml").read_text())
SETTINGS = load_settings()
PRETRAINED = load_settings(folder=FOLDER.parent / "pretrained")


@pytest.mark.parametrize("name", SETTINGS | PRETRAINED)
def test_every_method_fits_a_shipped_setting(name: str, tmp_path: Path) -> None:
    setting = (SETTINGS | PRETRAINED)[name]
    methods = fitting(setting, METHODS["rivals"] | METHODS["ours"] | METHODS["forms"])
    assert ("kd" in methods) == setting.logits
    assert ("labels" in methods) == (setting.label is not None and setting.measure != "probe")
    for method, losses in methods.items():
        if losses:
            assert setting.student_config(tmp_path, method, losses, 1).seed == 1


def test_the_settings_are_unlike() -> None:
    assert len(SETTINGS) >= 10
    assert {setting.measure for setting in SETTINGS.values()} == {"top1", "R@10"}
    assert any(setting.broken for setting in SETTINGS.values())
    assert {setting.pairs for setting in SETTINGS.values()} >= {50, 200, None}


@pytest.mark.slow
def test_a_setting_of_ones_own_runs_and_resumes(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.suite.__main__.get_context", lambda _: FORKED)  # imports nothing anew
    (tmp_path / "settings").mkdir()
    written = setting.model_dump(exclude_none=True)
    for name, change in (("whole", {}), ("recall", {"measure": "R@10"}), ("probe", {"measure": "probe"})):
        (tmp_path / "settings" / f"{name}.yaml").write_text(yaml.safe_dump(written | change))
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--folder", str(tmp_path / "settings")]
    arguments += ["--methods", "kd", "wcord", "--seeds", "1", "--processes", "1"]
    main(arguments)
    table = capsys.readouterr().out
    assert "| wcord |" in table
    assert "| labels |" in table
    results = sorted((tmp_path / "out").glob("*/*_seed*/results.json"))
    assert len(results) == 3 * 3
    before = [file.stat().st_mtime_ns for file in results]
    main(arguments)
    assert [file.stat().st_mtime_ns for file in results] == before


def packed(setting: Setting, folder: Path) -> list[list[dict[str, str]]]:
    """The tables of the teacher's pairs and of the students'."""
    out = folder / "out" / "setting"
    setting.pack_whole(folder, out)
    setting.pack(folder, out)
    files = (out / "data.csv", setting.whole(out) / "data.csv")
    return [list(csv.DictReader(file.open())) for file in reversed(files)]


def test_broken_pairs_keep_their_labels(setting: Setting, tmp_path: Path) -> None:
    broken = setting.model_copy(update={"broken": Broken(share=0.5, field="rgb")})
    whole, exchanged = packed(broken, tmp_path)
    train = [(a, b) for a, b in zip(whole, exchanged, strict=True) if a["split"] == "train"]
    assert len(train) == 24
    assert sum(a["rgb"] != b["rgb"] for a, b in train) == 12
    assert all(a[name] == b[name] for a, b in train for name in ("id", "class", "depth"))
    assert all(a == b for a, b in zip(whole, exchanged, strict=True) if a["split"] != "train")


def test_few_pairs_leave_the_teacher_all(setting: Setting, tmp_path: Path) -> None:
    few = setting.model_copy(update={"pairs": 5})
    assert [len(rows) for rows in packed(few, tmp_path)] == [40, 21]


def test_regret_is_to_the_best_rival() -> None:
    scores = {"kd": {0: 50.0, 1: 60.0}, "crd": {0: 58.0, 1: 58.0}, "wcord": {0: 51.0, 1: 55.0}}
    assert regret.regret(scores, "wcord", ["kd", "crd"]) == 5
    assert regret.regret(scores, "crd", ["kd", "crd"]) == -3
    assert regret.regret(scores, "dist", ["kd"]) is None
    assert regret.regrets("wcord", {"a": scores, "b": {}}, ["kd", "crd"]) == ["5.0", "-", "5.0"]
    labels = {"labels": {0: 49.0, 1: 53.0}, "wcord": {0: 51.0, 1: 55.0}}
    assert regret.against_nothing(labels, "wcord") == "+2.0 [+2.0, +2.0]"


def test_untrained_students_are_measured(setting: Setting, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    unlabelled = setting.model_copy(
        update={
            "label": None,
            "measure": "R@10",
            "teacher": {"modality": "rgb", "encoder": {"name": "cnn5", "weights": "random"}},
        }
    )
    out = tmp_path / "out" / "setting"
    teach(unlabelled, tmp_path, out)
    unlabelled.pack(tmp_path, out)
    run(unlabelled, out, {"untrained": {}}, 0)
    torch.set_num_threads(threads)
    assert set(regret.scores(out, 1, "test")) == {"untrained"}
