"""Packing: the same bytes however it is run, and nothing that is refused goes unsaid."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import (
    CLASSES,
    FIELDS,
    content,
    depth_map,
    jpeg,
    make_source,
    plan_of,
    png,
    refusals,
    samples_in,
    with_column,
)

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.common.owner import owned
from pipeline.data import manifest as shards
from pipeline.packing import pack as packing
from pipeline.packing import target
from pipeline.packing.pack import Packing, pack
from pipeline.packing.recipes.plan import safe_key
from pipeline.packing.splits import DEFAULT


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound table; do not change it."""
    return make_source(tmp_path_factory.mktemp("source"))


# What comes out.


def test_webdataset_reads_what_was_put_in(source: Path, tmp_path: Path) -> None:
    dataset = pack(plan_of(source, fields=FIELDS | {"text": "caption"}), tmp_path)
    assert dataset == shards.load_dataset(tmp_path)
    shards.verify_files(tmp_path, [shard for found in dataset.splits.values() for shard in found])
    rows = {safe_key(row["id"]): row for row in csv.DictReader(source.open())}
    fields: Counter[str] = Counter()
    for split in dataset.splits:
        found = samples_in(tmp_path, split)
        assert len(found) == dataset.samples(split)
        for sample in found:
            row = rows.pop(sample["__key__"])
            members = {name: data for name, data in sample.items() if not name.startswith("__")}
            meta = json.loads(members["meta.json"])
            fields.update(members.keys())
            assert members["rgb.jpg"] == (source.parent / f"photos/{row['id']}.jpg").read_bytes()
            assert members["depth.png"] == (source.parent / f"maps/{row['id']}.png").read_bytes()
            assert members["text.txt"].decode() == row["caption"]
            assert dataset.classes["label"][int(members["label.txt"])] == row["class"]
            assert dataset.classes["room"][meta["labels"]["room"]] == row["room"]
            assert (meta["group"], meta["source"]) == (row["clip"], row["id"])
    assert not rows
    assert dict(fields) == dataset.fields
    assert dataset.units["depth.png"].startswith("millimetres")


def test_index_in_meta_numbers_the_samples(source: Path, tmp_path: Path) -> None:
    pack(plan_of(source), tmp_path)
    metas = [json.loads(sample["meta.json"]) for split in ("train", "test") for sample in samples_in(tmp_path, split)]
    assert sorted(meta["index"] for meta in metas) == list(range(30))


def test_samples_are_shuffled_and_shards_hold_equally_many(source: Path, tmp_path: Path) -> None:
    dataset = pack(plan_of(source), tmp_path, min_shards=5)
    for split, found in dataset.splits.items():
        counts = [shard.samples for shard in found]
        assert len(counts) == min(5, dataset.samples(split))
        assert max(counts) - min(counts) <= 1
        keys = [sample["__key__"] for sample in samples_in(tmp_path, split)]
        assert keys != sorted(keys)


def test_shards_keep_to_the_target_size(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source)
    dataset = pack(plan, tmp_path / "small", shard_bytes=sum(sample.size for sample in plan.samples) // 10)
    assert 8 <= len(dataset.splits["train"]) <= 9
    dataset = pack(plan, tmp_path / "tiny", shard_bytes=1)
    assert [shard.samples for shard in dataset.splits["train"]] == [1] * dataset.samples("train")
    with pytest.raises(UserError, match="must be at least 1"):
        pack(plan, tmp_path / "none", shard_bytes=0)


@pytest.mark.usefixtures("forked_pools")
def test_more_processes_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source)
    pack(plan, tmp_path / "one", workers=1)
    pack(plan, tmp_path / "three", workers=3)
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_another_seed_gives_another_split_and_order(source: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        pack(plan_of(source), tmp_path / str(seed), seed=seed)
    first, second = ([s["__key__"] for s in samples_in(tmp_path / str(seed), "test")] for seed in (0, 1))
    assert sorted(first) != sorted(second)


# Killed, resumed, shared.

DYING = """
import os, signal, sys
from pathlib import Path
from pipeline.packing import pack as packing, target
from pipeline.packing.recipes import manifest

begun = []
write_shard = target.write_shard

def dying(path, samples):
    def until_the_third():
        for number, sample in enumerate(samples):
            if len(begun) == 3 and number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield sample
    begun.append(path)
    return write_shard(path, until_the_third())

target.write_shard = dying
plan = manifest.plan(sys.argv[1], {fields}, ["class", "room"], "clip")
packing.pack(plan, sys.argv[2])
"""


def run_python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    root = Path(packing.__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=root, stderr=subprocess.DEVNULL)


def test_a_killed_packing_goes_on_and_ends_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pack(plan_of(source), whole)
    assert run_python(DYING.replace("{fields}", repr(FIELDS)), source, killed).wait() == -signal.SIGKILL

    done = {path: path.stat().st_mtime_ns for path in killed.glob("*.tar")}
    assert len(done) == 2
    assert len(list(killed.glob("*.part-*"))) == 1
    with pytest.raises(UserError, match="packing was interrupted"):
        shards.load_dataset(killed)

    pack(plan_of(source), killed)
    assert content(killed) == content(whole)  # the dead writer's part is gone, too
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())


def test_two_packers_in_one_folder_agree(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.packing.pack import pack; from pipeline.packing.recipes import manifest\n"
        f"pack(manifest.plan(sys.argv[1], {FIELDS}, ['class', 'room'], 'clip'), sys.argv[2], min_shards=12)"
    )
    both = [run_python(code, source, tmp_path / "shared") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    pack(plan_of(source), tmp_path / "alone", min_shards=12)
    assert content(tmp_path / "shared") == content(tmp_path / "alone")


def test_nothing_is_written_twice_and_what_is_lost_is_rebuilt(source: Path, tmp_path: Path) -> None:
    pack(plan_of(source), tmp_path)
    before = content(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    lost, short = tmp_path / "train-000001.tar", tmp_path / "test-000000.tar"
    lost.unlink()
    short.write_bytes(short.read_bytes()[:-512])
    pack(plan_of(source), tmp_path)
    assert content(tmp_path) == before
    rewritten = {path.name for path in tmp_path.glob("*.tar") if path.stat().st_mtime_ns != times[path.name]}
    assert rewritten == {lost.name, short.name}


def test_parts_of_the_living_stay_and_those_of_the_dead_go(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine, host = files.part_path(tmp_path / "train-000000.tar"), files.host()
    gone = mine.with_name(f"train-000000.tar.part-{host}-{ended.pid}")
    elsewhere, old = (mine.with_name(f"train-00000{n}.tar.part-another-host-{ended.pid}") for n in (1, 2))
    foreign = tmp_path / "notes.part-two"
    for path in (mine, gone, elsewhere, old, foreign):
        path.touch()
    os.utime(old, (time.time() - 100_000,) * 2)
    files.remove_stale_parts(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, elsewhere, foreign}


def test_another_packing_is_not_overwritten_unless_asked(source: Path, tmp_path: Path) -> None:
    pack(plan_of(source), tmp_path, min_shards=6)
    (tmp_path / "notes.txt").write_text("mine")
    before = content(tmp_path)
    others = [(plan_of(source, group="room"), {}), (plan_of(source), {"seed": 1}), (plan_of(source), {"min_shards": 3})]
    for plan, options in others:
        with pytest.raises(UserError, match="packed from other sources"):
            pack(plan, tmp_path, **options)
    assert content(tmp_path) == before
    pack(plan_of(source), tmp_path, min_shards=3, overwrite=True)
    pack(plan_of(source), tmp_path / "fresh", min_shards=3)
    assert content(tmp_path) == content(tmp_path / "fresh") | {"notes.txt": b"mine"}


def test_shards_of_unknown_origin_are_not_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="packed from other sources"):
        pack(plan_of(source), tmp_path)
    assert content(tmp_path) == {"train-000000.tar": b"precious"}


def test_a_changed_source_makes_it_another_packing(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    pack(plan_of(table), tmp_path / "out")
    (tmp_path / "source/photos/a/003.jpg").write_bytes(jpeg(99) + b"\0")
    with pytest.raises(UserError, match="packed from other sources"):
        pack(plan_of(table), tmp_path / "out")


def test_a_corrected_source_goes_on_where_refusal_stopped(tmp_path: Path) -> None:
    table, out = make_source(tmp_path / "source"), tmp_path / "out"
    photo = tmp_path / "source/photos/a/003.jpg"
    good = photo.read_bytes()
    photo.write_bytes(good[:-100])
    with pytest.raises(UserError, match=r"003\.jpg: the image is truncated"):
        pack(plan_of(table), out, max_refused=0)
    assert not (out / "dataset.json").exists()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    photo.write_bytes(good)
    pack(plan_of(table), out, max_refused=0)
    assert sum(path.stat().st_mtime_ns != times[path.name] for path in out.glob("*.tar")) == 1
    pack(plan_of(table), tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


def test_a_full_disk_is_a_user_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, found: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(target, "write_shard", full)
    with pytest.raises(UserError, match=r"\.tar: No space left on device\. Run the same command again"):
        pack(plan_of(source), tmp_path)


# What is refused, and how it is said.


def truncated(folder: Path) -> None:
    path = folder / "photos/a/004.jpg"
    path.write_bytes(path.read_bytes()[:-60])


def thumbnail(folder: Path) -> None:
    """A photo cut short whose embedded thumbnail has an end marker of its own."""
    path = folder / "photos/a/004.jpg"
    whole, small = path.read_bytes(), jpeg(1)
    segment = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    path.write_bytes((whole[:2] + segment + whole[2:])[:-60])


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def add_row(row: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "index.csv").open("a").write(row + "\n") and None


BAD: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "8-bit depth": (write("maps/a/004.png", png(np.full((4, 4), 9, np.uint8))), "004.png", "1-channel 8-bit.*16-bit"),
    "colour depth": (write("maps/a/004.png", png(np.full((4, 4, 3), 9, np.uint8))), "004.png", "3-channel 8-bit"),
    "no reading": (write("maps/a/004.png", png(np.zeros((4, 4), np.uint16))), "004.png", "without any depth values"),
    "truncated PNG": (write("maps/a/004.png", depth_map(4)[:-20]), "004.png", "truncated"),
    "damaged PNG": (
        write("maps/a/004.png", depth_map(4)[:150] + b"\0\1\2\3" + depth_map(4)[154:]),
        "004.png",
        "cannot be decoded",
    ),
    "truncated JPEG": (truncated, "004.jpg", "its end is missing"),
    "truncated JPEG with a thumbnail": (thumbnail, "004.jpg", "its end is missing"),
    "no image": (write("photos/a/004.jpg", b"<html>not found</html>"), "004.jpg", "not a JPEG"),
    "empty file": (write("photos/a/004.jpg", b""), "004.jpg", "empty"),
    "missing partner": (lambda folder: (folder / "maps/a/004.png").unlink(), "004.png", "no such file"),
    "negative label": (add_row("a/004,-2,room0,clip0,text"), "line 32", "out of range"),
    "unknown label": (add_row("a/004,fork,room0,clip0,text"), "line 32", "`fork` is unknown; the classes are"),
    "label out of range": (add_row("a/004,3,room0,clip0,text"), "line 32", "`3` is unknown; the classes are"),
    "path out of the folder": (
        add_row("../../x,cup,room0,clip0,text"),
        "line 32",
        "is outside the folder of the table",
    ),
    "short row": (add_row("a/004,cup"), "line 32", "2 values, but the first line has 5"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_refused_is_listed_with_its_reason(kind: str, tmp_path: Path) -> None:
    spoil, file, reason = BAD[kind]
    table = make_source(tmp_path / "source")
    spoil(table.parent)
    dataset = pack(
        plan_of(table, fields={"rgb": "photos/{id}.jpg", "depth": "maps/{id}.png"}, classes=CLASSES), tmp_path
    )
    found = refusals(tmp_path)
    assert list(found) == [file]
    assert re.search(reason, found[file]), found
    assert dataset.refused == 1
    assert dataset.fields["rgb.jpg"] == dataset.fields["depth.png"] == 30 - (not file.startswith("line"))


def test_too_much_refused_stops_all_and_takes_no_effect(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    for n in (3, 4):
        (table.parent / f"photos/a/{n:03d}.jpg").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"2 of 30 .* more than 5%:(.|\n)*003\.jpg: not a JPEG.*\n.*004\.jpg(.|\n)*raise --max-refused"
    ):
        pack(plan_of(table), tmp_path / "out")
    assert not (tmp_path / "out/dataset.json").exists()
    assert set(refusals(tmp_path / "out")) == {"003.jpg", "004.jpg"}
    assert pack(plan_of(table), tmp_path / "out", max_refused=0.07).refused == 2


def test_class_names_that_are_no_text_are_told_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source)
    plan.classes["label"] = ["caf\udce9", *plan.classes["label"][1:]]
    with pytest.raises(UserError, match=r"'caf\\udce9': names of classes and datasets must be valid UTF-8"):
        pack(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mistyped_path_is_told_before_anything_is_read(source: Path, tmp_path: Path) -> None:
    file = re.escape(str(source.parent / "fotos/a/000.jpg"))
    with pytest.raises(
        UserError, match=rf"all 30 samples were rejected for the same reason, e\.g\. {file}: no such file\."
    ):
        pack(plan_of(source, fields={"rgb": "fotos/{id}.jpg"}), tmp_path / "out", max_refused=1.0)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_told_with_the_folder_it_was_looked_for_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to the folder of the table, not to the working folder."""
    make_source(tmp_path / "source")
    (tmp_path / "source/photos/a/003.jpg").unlink()
    monkeypatch.chdir(tmp_path)
    (refused,) = plan_of(Path("source/index.csv")).refused
    assert (refused.file, refused.reason) == (f"{tmp_path}/source/photos/a/003.jpg", "no such file")


def test_a_shard_whose_samples_are_all_refused_is_not_there(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    (table.parent / "photos/a/004.jpg").write_bytes(b"x")
    for _ in range(2):  # the second finds it done
        dataset = pack(plan_of(table), tmp_path, shard_bytes=1)
        assert sum(map(dataset.samples, dataset.splits)) == 29
        listed = {shard.file for found in dataset.splits.values() for shard in found}
        assert listed == {path.name for path in tmp_path.glob("*.tar")}
        assert len(listed) == 29


def test_a_file_that_goes_while_it_is_packed_is_refused(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    plan = plan_of(table)
    (table.parent / "photos/a/004.jpg").unlink()
    pack(plan, tmp_path)
    assert refusals(tmp_path) == {"004.jpg": "cannot be read: No such file or directory"}


def test_a_meta_that_is_no_object_is_refused_by_its_own_name(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    with_column(table, "about", lambda row: "about.json" if row["id"] == "a/004" else "")
    (table.parent / "about.json").write_text("[1]")
    pack(plan_of(table, fields=FIELDS | {"meta": "about"}), tmp_path)
    assert refusals(tmp_path) == {"about.json": "meta is not a JSON object"}


def test_another_packing_waits_for_the_end_of_a_live_one(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    with owned(out, "another"), pytest.raises(UserError, match=f"process {os.getpid()} on host"):
        pack(plan_of(source), out, overwrite=True)
    assert not out.exists()
    pack(plan_of(source), out)
    assert {path.name for path in tmp_path.iterdir()} >= {"set"}
    assert not list(tmp_path.glob(".set.*"))


def test_a_packing_that_was_replaced_under_it_does_not_finish(source: Path, tmp_path: Path) -> None:
    first = Packing(plan_of(source), str(tmp_path / "set"), fractions=DEFAULT, seed=0)
    with first.claimed():
        first.write(1)
    pack(plan_of(source), tmp_path / "set", seed=1, overwrite=True)
    before = content(tmp_path / "set")
    with pytest.raises(UserError, match="another process is packing a different dataset"):
        first.finish()
    assert content(tmp_path / "set") == before
