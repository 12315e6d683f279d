"""A matrix of tiny runs: every cell is trained once, and what does not fit is said before anything is."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from shapes_dataset import write_dataset

from pipeline.bench.matrix import _cells, _columns, run_bench
from pipeline.bench.matrix import _config as config_of
from pipeline.bench.settings import Bench, load
from pipeline.bench.tables import Entry, markdown
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.config.shipped import SHIPPED
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop
from pipeline.runs.folder import write_config
from pipeline.runs.reader import read_run

BENCH = """
run: {run}
seeds: 2
baseline: labels
teachers:
  photo: {{config: base.yaml, set: {{student.modality: rgb}}}}
  range: {{config: base.yaml}}
pairs:
  photo to range: {{config: base.yaml, teacher: photo, set: {{data.label_fraction: 0.5}}}}
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


def cells(known: Bench, near: Path) -> dict[tuple[str, str, int], Config]:
    """Pair, method and seed -> config, without mismatched pairs."""
    return dict(_cells(known, near, _columns(known, near, {})))


def results(found: list[Entry]) -> list[str]:
    """The table without what depends on the clock."""
    return markdown(found).split("| cost")[0].splitlines()


def written(folder: Path) -> dict[str, int]:
    """When each finished cell was written. `rglob` would fail where a folder goes while it looks, as checkpoints do."""
    found = [Path(inside) / "results.json" for inside, _, files in os.walk(folder) if "results.json" in files]
    return {str(path): path.stat().st_mtime_ns for path in found}


@pytest.mark.slow
def test_a_matrix_goes_on_where_it_stopped(bench: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pipeline")
    matrix = tmp_path / "matrix"
    found = run_bench(bench, jobs=2)
    assert [(e.pair, e.method) for e in found if e.method != "teacher"] == [
        (pair, method) for pair in ("photo to range", "both to range") for method in ("labels", "distilled")
    ]
    assert all(e.value is not None and e.value.n == 2 for e in found if e.method != "teacher")
    assert all(e.seconds is not None and e.memory is not None and e.memory > 50 for e in found if e.method != "teacher")
    assert all((matrix / f"table.{kind}").is_file() for kind in ("md", "csv", "tex"))
    rows = results(found)
    assert (matrix / "table.md").read_text().splitlines()[: len(rows)] == rows
    assert [message.split("]")[0] for message in caplog.messages] == [
        *(f"[{done}/2" for done in (1, 2)),
        *(f"[{done}/8" for done in range(1, 9)),
    ]
    assert "step 12/12" in (matrix / "teachers" / "photo.log").read_text()
    caplog.clear()
    assert not list(matrix.rglob("checkpoints"))

    (matrix / "both to range" / "distilled_s1" / "results.json").unlink()
    before = written(matrix)
    assert results(run_bench(bench)) == rows
    assert len(caplog.messages) == 1  # only the one that was lost
    assert before.items() <= written(matrix).items()
    with pytest.raises(UserError, match="its settings differ from those of the benchmark"):
        run_bench(bench, ["pairs[photo to range].set[data.label_fraction]=1.0"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_matrix_that_is_killed_ends_with_the_same_table(bench: Path, tmp_path: Path) -> None:
    matrix, small = tmp_path / "matrix", [line for line in bench.read_text().splitlines() if "range]" not in line]
    small = [line.replace("seeds: 2", "seeds: 1") for line in small if not line.startswith("  range: ")]
    bench.write_text("\n".join(small))
    with subprocess.Popen([sys.executable, "-m", "pipeline", "bench", str(bench), "--jobs", "2"]) as killed:
        deadline = time.monotonic() + 600
        while not written(matrix):  # the teacher; two students are next
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        killed.kill()
    before = written(matrix)
    assert len(before) < 3
    found = run_bench(bench, jobs=2)
    assert before.items() <= written(matrix).items()
    assert results(found) == results(run_bench(bench, [f"run={tmp_path / 'never killed'}"], jobs=2))


NEW_METHOD = '''
import os
from pathlib import Path
from losses import Loss

class Spread(Loss):
    """A loss of somebody else."""

    def __init__(self, student, teacher):
        super().__init__()
        Path(__file__).with_suffix(".gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])

    def forward(self, student, teacher, batch):
        return (student.pooled.std() - teacher.pooled.std()) ** 2
'''


@pytest.mark.slow
def test_a_new_method_enters_by_one_line_and_teachers_are_cached(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_losses.py").write_text(NEW_METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    text = bench.read_text().replace("distilled: {cross_entropy: {}, wcord: {dim: 8, queue: 0}}", "distilled: {at: {}}")
    bench.write_text(text + "  theirs: {cross_entropy: {}, their_losses:Spread: {weight: 0.1}}\n")
    pair = ["seeds=1", "views=1", "pairs={photo to range: {config: base.yaml, teacher: photo}}"]
    # Another dataset than the one that the tests share: caches lie beside the shards.
    write_dataset(tmp_path / "shapes", {"train": [48], "test": [12]})
    base = tmp_path / "base.yaml"
    base.write_text(re.sub(r"shards: [^,]+", f"shards: {tmp_path / 'shapes'}", base.read_text()))
    monkeypatch.setattr("pipeline.bench.matrix.places", lambda jobs: ["5", "5"])  # as if there were such a GPU
    found = run_bench(bench, pair)
    assert (tmp_path / "their_losses.gpu").read_text() == "5"
    assert [entry.method for entry in found] == ["teacher", "labels", "distilled", "theirs"]
    caches = {
        path.name: read_run(path).config["teacher"] for path in (tmp_path / "matrix" / "photo to range").glob("*_s0")
    }
    assert caches["labels_s0"] is None
    assert caches["distilled_s0"]["cache"] is None  # it reads maps
    assert (tmp_path / "shapes" / f"{caches['theirs_s0']['cache']}.cache.json").is_file()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: labels", "baseline: lables", "there is no method 'lables'; choose one of labels, distilled"),
        ("teacher: photo", "teacher: foto", "there is no teacher 'foto'; choose one of photo, range"),
        ("config: base.yaml, teacher", "config: bsae, teacher", "bsae: no such config"),
        ("wcord: {", "wcrod: {", "did you mean wcord"),
        ("student.modality: rgb", "student.modalty: rgb", "modalty"),
        ("seeds: 2", "sedes: 2", "sedes: unknown key; did you mean seeds?"),
        ("data.label_fraction: 0.5", "data.shards: /nowhere", "/nowhere"),
        ("data.label_fraction: 0.5", "evaluation.split: val", "evaluation.split: .*: split `val` has no samples"),
        (
            "methods:",
            "published: {photo to range: {kd: 70}}\nmethods:",
            "published.photo to range: there is no method 'kd'",
        ),
        ("  labels: {cross", "  teacher: {cross", "there is no method 'labels'"),
        ("  distilled: {", "  teacher: {", "methods: teacher is reserved for the results of the teachers"),
        ("teacher: photo,", "teacher: photo, methods: {kd: {kd: {}}},", "methods: there is no method 'kd'"),
    ],
)
def test_faults_are_named_before_anything_is_trained(bench: Path, old: str, new: str, message: str) -> None:
    bench.write_text(bench.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        run_bench(bench)
    assert not (bench.parent / "matrix").exists()


def test_methods_are_kept_apart_by_their_names(bench: Path, tmp_path: Path) -> None:
    """Also where two of them have the same losses, as where a pair has nothing in the place of KD."""
    bench.write_text(
        bench.read_text().replace("labels: {", "x/labels: {").replace("line: labels", "line: x/labels")
        + "  same: {cross_entropy: {}}\n"
    )
    known = load(bench)
    teachers = [config_of(tmp_path, one, f"{known.run}/teachers/{name}", 0) for name, one in known.teachers.items()]
    for number, config in enumerate([*cells(known, tmp_path).values(), *teachers]):
        Path(config.run).mkdir(parents=True)
        write_config(config, Path(config.run), "data")
        (Path(config.run) / "results.json").write_text(json.dumps({"student/top1": number / 100}))
    found = run_bench(bench)
    assert [entry.method for entry in found[:4]] == ["teacher", "x/labels", "distilled", "same"]
    assert [entry.value.mean for entry in found[1:4] if entry.value] == pytest.approx([0.005, 0.025, 0.045])


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_kept(bench: Path, tmp_path: Path) -> None:
    (tmp_path / "matrix" / "teachers" / "photo" / "checkpoints").mkdir(parents=True)
    (tmp_path / "matrix" / "teachers" / "photo" / "config.yaml").write_text("run: other")
    (tmp_path / "matrix" / "teachers" / "photo" / "checkpoints" / "step_00000001").write_text("")
    with pytest.raises(UserError, match=r"1 of 2 runs failed; the others are finished:\n.*teachers/photo: "):
        run_bench(bench)
    assert (tmp_path / "matrix" / "teachers" / "range" / "results.json").is_file()


def test_teachers_that_see_other_shifts_have_caches_of_their_own(bench: Path) -> None:
    few = "[2, 16], data.label_fraction: 0.5"
    shifts = {"little": "[2, 16], data.label_fraction: 1", "again": few, "more": "[4, 16]"}
    usual = "config: base.yaml, teacher: photo, set: {data.crop: [1, 1], data.pad: "
    pairs = ", ".join(f"{name}: {{{usual}{pad}}}}}" for name, pad in shifts.items())
    found = load(bench, ["views=1", "seeds=1", f"pairs={{{pairs}}}"])
    caches = {
        pair: config.teacher.cache
        for (pair, _, _), config in cells(found, bench.parent).items()
        if config.teacher is not None
    }
    assert caches["little"] == caches["again"] != caches["more"]


@pytest.mark.parametrize("name", ["matrix", "bench/matrix"])
def test_a_shipped_bench_is_found_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"not found.*is not a packed dataset"):  # its configs were found beside it
        run_bench(name)
    with pytest.raises(UserError, match=r"matrx: no such benchmark\. .*a shipped one: .*cifar100, .*matrix"):
        run_bench("matrx")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem == "cifar100" else ())
        for path in sorted((SHIPPED / "bench").glob("*.yaml"))
    ],
)
def test_shipped_benches_describe_cells_that_hold(path: Path) -> None:
    found = load(path, ["seeds=1"])  # the others differ in nothing else
    assert len(cells(found, path.parent)) == len(found.pairs) * len(found.methods) * found.seeds
    for name, teacher in found.teachers.items():
        config = config_of(path.parent, teacher, name, 0)
        assert config.teacher is None
        assert config.evaluation.split == "test"  # the one that every recipe packs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_privileged_information_at_a_tiny_size(tmp_path: Path) -> None:
    pack(tabletop.plan(100, 0, 48), tmp_path / "data", workers=1)
    shutil.copytree(SHIPPED / "bench", tmp_path / "bench")
    for path in (tmp_path / "bench").rglob("*.yaml"):
        tiny = path.read_text().replace("data/tabletop", str(tmp_path / "data")).replace("steps: 300", "steps: 3")
        path.write_text(tiny.replace("labels: 0.1", "labels: 0.5"))
    kept = "{labels: {cross_entropy: {}}, kd + wcord: {cross_entropy: {}, kd: {}, wcord: {}}}"
    settings = ["seeds=1", f"methods={kept}", f"run={tmp_path / 'runs'}"]
    found = run_bench(tmp_path / "bench" / "privileged.yaml", settings)
    assert [entry.pair for entry in found if entry.method == "kd + wcord" and entry.value] == [
        "high to low resolution",
        "rgb and depth to rgb",
        "clean to noisy sound",
    ]
