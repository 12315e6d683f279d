"""Old names of settings: read wherever settings are written, reported once, and written by nobody."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configs
from pipeline.bench import matrix
from pipeline.common.errors import UserError
from pipeline.config.json_schema import schema
from pipeline.config.reference import explain_key, page
from pipeline.config.renamed import RENAMED, renamed, with_current_names
from pipeline.runs.checkpoint import list_checkpoints, sealed
from pipeline.runs.compare import group_by_method
from pipeline.runs.reader import read_run
from pipeline.train import train

OLD = """
run: runs/old
data: {shards: data, labels: 0.25}
student: {modality: rgb, encoder: cnn5}
losses: {cross_entropy: {weight: "${data.labels}"}}
train: {steps: 4, keep: 3, log_every: "${.keep}"}
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    return path


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "is now called" in message]


def test_a_setting_keeps_its_section_and_its_new_name_exists() -> None:
    for old_key, new_key in RENAMED.items():
        assert old_key.rpartition(".")[0] == new_key.rpartition(".")[0]
        assert explain_key(old_key) == explain_key(new_key)


def test_a_file_with_old_names_is_the_same_config(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = configs.load(old)
    assert (config.data.label_fraction, config.train.keep_checkpoints) == (0.25, 3)
    assert (config.losses["cross_entropy"]["weight"], config.train.log_every) == (0.25, 3)
    text = OLD.replace("labels", "label_fraction").replace("keep", "keep_checkpoints")
    old.with_name("new.yaml").write_text(text)
    assert configs.load(old.with_name("new.yaml")) == config
    assert notices(caplog) == [
        f"data.labels is now called data.label_fraction ({old} line 3). The old name works until version 0.4.",
        f"train.keep is now called train.keep_checkpoints ({old} line 6). The old name works until version 0.4.",
    ]


@pytest.mark.parametrize("override", ["data.labels=0.5", "data[labels]=0.5", "data={shards: data, labels: 0.5}"])
@pytest.mark.parametrize("name", ["labels", "label_fraction"])
def test_an_override_replaces_what_the_file_says(
    name: str, override: str, old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old.write_text(OLD.replace("labels", name))
    assert configs.load(old, [override]).data.label_fraction == 0.5
    assert configs.load(old, [override.replace("labels", "label_fraction")]).data.label_fraction == 0.5
    assert len([notice for notice in notices(caplog) if "data.labels" in notice]) == 1


def test_only_the_first_process_reports_it(
    old: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    configs.load(old)
    assert not notices(caplog)


def test_both_names_at_once_are_refused(old: Path) -> None:
    old.write_text(OLD.replace("keep: 3", "keep: 3, keep_checkpoints: 3"))
    with pytest.raises(UserError) as refused:
        configs.load(old)
    assert str(refused.value) == (
        "train.keep_checkpoints: is set twice, as train.keep in line 6 and as train.keep_checkpoints in line 6; keep "
        f"one ({old} line 6)"
    )
    old.write_text(OLD)
    for settings in (["data.labels=1", "data.label_fraction=1"], ["data.label_fraction=1", "data.labels=1"]):
        with pytest.raises(UserError) as refused:
            configs.load(old, settings)
        assert all(setting.removesuffix("=1") in str(refused.value) for setting in settings)


def test_a_fault_is_reported_under_the_new_name(old: Path) -> None:
    with pytest.raises(UserError, match=r"data\.label_fraction: must be at most 1, got 2 \(override data\.labels=2\)"):
        configs.load(old, ["data.labels=2"])


def test_a_class_of_the_same_name_is_none_of_these() -> None:
    assert renamed(("losses", "own.train.keep:Loss", "keep")) == ("losses", "own.train.keep:Loss", "keep")
    assert renamed(("pairs", "a", "set", "train.keep")) == ("pairs", "a", "set", "train.keep_checkpoints")
    assert with_current_names({"keep": 1, "data": {"keep": 2}}) == {"keep": 1, "data": {"keep": 2}}


def test_schema_and_reference_have_new_names_only() -> None:
    sections = schema()["$defs"]
    assert "label_fraction" in sections["Data"]["properties"]
    assert "labels" not in sections["Data"]["properties"]
    assert "keep" not in sections["Train"]["properties"]
    assert "`labels`" not in page()
    assert "`keep`" not in page()


BENCH = """
run: runs/matrix
seeds: 1
baseline: labels
teachers: {photo: {config: base.yaml, set: {train.keep: 1}}}
pairs: {a: {config: base.yaml, teacher: photo, set: {data.labels: 0.5}}}
methods: {labels: {cross_entropy: {}}, kd: {kd: {}}}
"""


def test_rows_of_a_bench_may_have_old_names(make_config: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = make_config("base").with_name("bench.yaml")
    path.write_text(BENCH)
    for overrides, fraction in ([], 0.5), (["pairs.a.set[data.labels]=0.1"], 0.1):
        bench = matrix.load(path, overrides)
        columns = matrix._columns(bench, path.parent, {})
        assert {cell.data.label_fraction for _, cell in matrix._cells(bench, path.parent, columns)} == {fraction}
    assert bench.teachers["photo"].set == {"train.keep_checkpoints": 1}
    assert len(notices(caplog)) == 2
    path.write_text(BENCH.replace("data.labels: 0.5", "data.labels: 0.5, data.label_fraction: 0.5"))
    with pytest.raises(UserError, match=r"set twice, as pairs\.a\.set\[data\.labels\] .*set\[data\.label_fraction\]"):
        matrix.load(path)


def to_old_names(run: Path) -> None:
    """As an earlier version would have written the run folder."""
    config = run / "config.yaml"
    text = config.read_text().replace(" label_fraction:", " labels:").replace(" keep_checkpoints:", " keep:")
    config.write_text(text)
    for checkpoint in list_checkpoints(run / "checkpoints"):
        about = json.loads((checkpoint / "checkpoint.json").read_text())
        data = about["identity"]["data"]
        data["labels"] = data.pop("label_fraction")
        (checkpoint / "checkpoint.json").write_text(json.dumps(sealed(about)))


def test_a_run_of_an_earlier_version_resumes_and_compares_as_the_same(make_config: Any) -> None:
    path = make_config()
    settings = ["data.label_fraction=0.5"]
    run = train(configs.load(path, settings))
    before = configs.load(run / "config.yaml")
    other = Path(shutil.copytree(run, run.with_name("run_s1"))) / "config.yaml"
    other.write_text(other.read_text().replace("seed: 0", "seed: 1"))
    to_old_names(run)
    assert " labels: 0.5" in (run / "config.yaml").read_text()
    assert configs.load(run / "config.yaml") == before
    (group,) = group_by_method([read_run(run), read_run(other.parent)])
    assert len(group.runs) == 2

    train(configs.load(path, [*settings, "train.steps=14"]), resume=True)
    assert max(read_run(run).log) == 14
    assert " label_fraction: 0.5" in (run / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"data changed since it was written"):
        train(configs.load(path, ["train.steps=16"]), resume=True)
