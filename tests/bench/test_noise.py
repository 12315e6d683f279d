"""Mismatched pairs: which samples are chosen, what the copy has instead, and that the bench trains on it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from shapes_dataset import write_dataset

from modalities import RGB, Depth
from pipeline import config as configs
from pipeline.bench.matrix import run_bench
from pipeline.bench.noise import BROKEN, BrokenCopy, is_chosen, plan_copy, write_copy
from pipeline.bench.settings import load
from pipeline.common.errors import UserError
from pipeline.data.manifest import load_dataset
from pipeline.data.source import open_split
from pipeline.packing.check import check
from pipeline.runs.reader import read_run

BENCH = """
run: {run}
seeds: 1
baseline: wcord
teachers: {{photo: {{config: base.yaml, set: {{student.modality: rgb}}}}}}
pairs: {{photo to range: {{config: base.yaml, teacher: photo}}}}
methods: {{wcord: {{cross_entropy: {{}}, wcord: {{dim: 8, queue: 0}}}}}}
noise: {{pairs: [0, 0.4]}}
"""
MEMBERS = frozenset({"rgb.jpg", "depth.png", "label.txt", "meta.json"})


@pytest.fixture
def bench(make_config: Any, tmp_path: Path) -> Path:
    make_config("base")
    path = tmp_path / "bench.yaml"
    path.write_text(BENCH.format(run=tmp_path / "matrix"))
    return path


def samples(folder: Path, split: str = "train") -> dict[str, dict[str, Any]]:
    return {raw["__key__"]: raw for raw in open_split(folder, split, "label").read(MEMBERS)}


def test_a_larger_share_has_the_same_samples_and_others() -> None:
    keys = [f"s{number:05d}" for number in range(50_000)]
    small, large = ({key for key in keys if is_chosen(key, share)} for share in (0.2, 0.4))
    assert small < large
    assert len(small) / len(keys) == pytest.approx(0.2, abs=0.01)
    assert len(large) / len(keys) == pytest.approx(0.4, abs=0.01)
    assert all(is_chosen(key, 1) and not is_chosen(key, 0) for key in keys)


@pytest.mark.parametrize("share", [0.01, 0.4, 1.0])
def test_only_the_input_of_the_teacher_goes_to_another_sample(shapes: Path, tmp_path: Path, share: float) -> None:
    copy = BrokenCopy(shapes, tmp_path / "copy", frozenset({"rgb.jpg"}), share)
    write_copy(copy)
    before, after = samples(shapes), samples(copy.folder)
    broken = json.loads((copy.folder / BROKEN).read_text())
    assert list(before) == list(after)
    assert broken == [key for key in before if before[key]["rgb.jpg"] != after[key]["rgb.jpg"]]
    chosen = Counter(before[key]["__shard__"] for key in before if is_chosen(key, share))
    assert len(broken) == sum(count for count in chosen.values() if count > 1)
    for shard in chosen:  # nothing is lost: within a shard, they are exchanged
        own = [key for key in before if before[key]["__shard__"] == shard]
        assert Counter(before[k]["rgb.jpg"] for k in own) == Counter(after[k]["rgb.jpg"] for k in own)
    for key, raw in before.items():
        assert {m: raw[m] for m in MEMBERS - copy.members} == {m: after[key][m] for m in MEMBERS - copy.members}
    assert samples(shapes, "test").keys() == samples(copy.folder, "test").keys()
    for shard in load_dataset(shapes).splits["test"]:
        assert (copy.folder / shard.file).read_bytes() == (shapes / shard.file).read_bytes()
    assert not check(copy.folder).faults


def test_the_copy_is_the_same_each_time_and_is_written_once(shapes: Path, tmp_path: Path) -> None:
    once, again = (BrokenCopy(shapes, tmp_path / name, frozenset({"rgb.jpg"}), 0.4) for name in ("once", "again"))
    write_copy(once)
    (again.folder / "train-000000.tar").parent.mkdir()
    (again.folder / "train-000000.tar").write_bytes(b"interrupted")
    (again.folder / "test-000000.tar").write_bytes(b"interrupted")
    write_copy(again)
    files = sorted(path.name for path in once.folder.iterdir())
    assert files == sorted(path.name for path in again.folder.iterdir())
    assert all((once.folder / name).read_bytes() == (again.folder / name).read_bytes() for name in files)
    written = (once.folder / "dataset.json").stat().st_mtime_ns
    write_copy(once)
    assert (once.folder / "dataset.json").stat().st_mtime_ns == written


def test_samples_without_the_input_of_the_teacher_stay_as_they_are(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "few", {"train": [6]})
    copy = BrokenCopy(folder, tmp_path / "copy", frozenset({"audio.flac"}), 1.0)
    write_copy(copy)
    assert json.loads((copy.folder / BROKEN).read_text()) == []
    assert (copy.folder / "train-000000.tar").read_bytes() == (folder / "train-000000.tar").read_bytes()


def test_copies_of_other_data_members_or_shares_have_other_names(make_config: Any, tmp_path: Path) -> None:
    own = configs.load(make_config())
    other = configs.load(make_config("other", shards=write_dataset(tmp_path / "shapes", {"train": [8], "test": [4]})))
    plans = [
        plan_copy(own, [Depth()], [RGB()], 0.4, tmp_path),
        plan_copy(own, [Depth()], [RGB(), Depth()], 0.4, tmp_path),
        plan_copy(own, [Depth()], [RGB()], 0.2, tmp_path),
        plan_copy(own, [RGB()], [RGB(), Depth()], 0.4, tmp_path),
        plan_copy(other, [Depth()], [RGB()], 0.4, tmp_path),
    ]
    assert [plan.members for plan in plans] == [frozenset({m}) for m in ("rgb.jpg",) * 3 + ("depth.png", "rgb.jpg")]
    assert plans[0] == plans[1]
    assert len({plan.folder for plan in plans}) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("config: base.yaml, set: {student.modality: rgb}", "config: base.yaml", "reads no member of .*shapes.* that"),
        ("teacher: photo}", "teacher: photo, set: {data.shards: s3://bucket/data}}", "one local packed dataset"),
        ("teacher: photo}", "teacher: photo, set: {data.join: [other]}}", "without data.join"),
        ("[0, 0.4]", "[0, 1.4]", r"noise.pairs\[1\]: must be at most 1, got 1.4"),
        ("[0, 0.4]", "[0.4, 0.4]", "noise.pairs.*must be distinct"),
        ("[0, 0.4]", "[]", "noise.pairs"),
        ("noise: {pairs", "noise: {pair", "noise.pair: unknown key; did you mean pairs"),
    ],
)
def test_faults_of_the_noise_are_named_before_anything_is_trained(
    bench: Path, old: str, new: str, message: str
) -> None:
    text = bench.read_text()
    assert old in text
    bench.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        run_bench(bench)
    assert not (bench.parent / "matrix").exists()


def test_an_index_of_shards_elsewhere_is_refused(bench: Path, shapes: Path, tmp_path: Path) -> None:
    dataset = load_dataset(shapes)
    index = {
        split: [shard.model_copy(update={"url": str(shapes / shard.file)}) for shard in shards]
        for split, shards in dataset.splits.items()
    }
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "dataset.json").write_text(dataset.model_copy(update={"splits": index}).model_dump_json())
    bench.write_text(bench.read_text().replace("photo}", f"photo, set: {{data.shards: {tmp_path / 'index'}}}}}"))
    with pytest.raises(UserError, match=r"index of shards that are stored elsewhere\. Pack the data"):
        run_bench(bench)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_pair_is_repeated_at_each_level(bench: Path, tmp_path: Path) -> None:
    found = run_bench(bench, jobs=2)
    columns = ["photo to range", "photo to range (40 % broken)"]
    assert [entry.pair for entry in found if entry.method == "wcord"] == columns
    clean, broken = (read_run(tmp_path / "matrix" / column / "wcord_s0") for column in columns)
    teacher = read_run(tmp_path / "matrix" / "teachers" / "photo")
    assert teacher.config["data"]["shards"] == clean.config["data"]["shards"]
    assert Path(broken.config["data"]["shards"]).parent == tmp_path / "matrix" / "broken"
    assert clean.results["teacher/top1"] == broken.results["teacher/top1"]  # the same test samples
    assert clean.last("loss/wcord") != broken.last("loss/wcord")
    assert run_bench(bench, jobs=2) == found
    assert len(load(bench).pairs) == 1
