"""A matrix of tiny runs: every cell is trained once, and what does not fit is said before anything is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.bench import run_bench, summary
from pipeline.errors import UserError

BENCH = """
run: {run}
seeds: 2
baseline: labels
teachers:
  photo: {{config: base.yaml, set: {{student.modality: rgb}}}}
  range: {{config: base.yaml}}
pairs:
  photo to range: {{config: base.yaml, teacher: photo, set: {{data.labels: 0.5}}}}
  both to range: {{config: base.yaml, teacher: [photo, range]}}
methods:
  labels: {{cross_entropy: {{}}}}
  distilled: {{cross_entropy: {{}}, wcord: {{dim: 8, queue: 0}}}}
"""


@pytest.fixture
def bench(make_config: Any, tmp_path: Path) -> Path:
    make_config("base")
    path = tmp_path / "bench.yaml"
    path.write_text(BENCH.format(run=tmp_path / "matrix"))
    return path


def test_a_matrix_goes_on_where_it_stopped(bench: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tables = run_bench(bench, jobs=2)
    assert list(tables) == ["photo to range", "both to range"]
    assert all(group.cell("student/top1").n == 2 for table in tables.values() for group in table.groups)  # type: ignore[union-attr]
    rows = summary(tables).splitlines()
    assert len(rows) == 4
    assert "distilled minus labels" in rows[0]
    assert (tmp_path / "matrix" / "table.md").read_text().splitlines() == rows
    assert len(capfd.readouterr().out.splitlines()) == 2 + 8

    (tmp_path / "matrix" / "both to range" / "distilled_s1" / "results.json").unlink()
    assert summary(run_bench(bench)).splitlines() == rows
    assert capfd.readouterr().out.count("\n") == 1  # only the one that was lost
    with pytest.raises(UserError, match="was made with other settings than the bench now has"):
        run_bench(bench, ["pairs[photo to range].set[data.labels]=1.0"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: labels", "baseline: lables", "no method is called lables; there are labels, distilled"),
        ("teacher: photo", "teacher: foto", "no teacher is called foto; there are photo, range"),
        ("config: base.yaml, teacher", "config: bsae, teacher", "bsae: no such config"),
        ("wcord: {", "wcrod: {", "did you mean wcord"),
        ("student.modality: rgb", "student.modalty: rgb", "modalty"),
        ("seeds: 2", "sedes: 2", "sedes: unknown key; did you mean seeds?"),
        ("data.labels: 0.5", "data.shards: /nowhere", "/nowhere"),
    ],
)
def test_faults_are_named_before_anything_is_trained(bench: Path, old: str, new: str, message: str) -> None:
    bench.write_text(bench.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        run_bench(bench)
    assert not (bench.parent / "matrix").exists()


def test_a_run_that_fails_is_named_and_the_others_are_kept(bench: Path, tmp_path: Path) -> None:
    (tmp_path / "matrix" / "teachers" / "photo" / "checkpoints").mkdir(parents=True)
    (tmp_path / "matrix" / "teachers" / "photo" / "config.yaml").write_text("run: other")
    (tmp_path / "matrix" / "teachers" / "photo" / "checkpoints" / "step_00000001").write_text("")
    with pytest.raises(UserError, match=r"1 of 2 runs failed; the others are kept:\n.*teachers/photo: "):
        run_bench(bench)
    assert (tmp_path / "matrix" / "teachers" / "range" / "results.json").is_file()
