"""Faulty and partial samples: skipped by policy, each counted once, never joined to another sample's view."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from launching import launch
from shapes_dataset import members, write_dataset

from modalities import RGB, Depth
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.common.files import sha256
from pipeline.data.augmentation import Augmentation
from pipeline.data.dataset import MANIFEST, Shard
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.data.skipped import SKIPPED, Ledger, Skipped, read_skipped
from pipeline.data.source import Policy, open_split
from pipeline.data.stream import EvalStream, TrainStream, loader
from pipeline.data.views import View
from pipeline.evaluate import evaluate
from pipeline.evaluate.cost import unpaired
from pipeline.packing.recheck import recheck
from pipeline.runs.folder import write_config
from pipeline.train import train

VIEWS = {"teacher": View(RGB(jitter=0.0), 24), "student": View(Depth(jitter=0.0, dropout=0.0), 16)}
CPU = torch.device("cpu")
Change = Callable[[int, dict[str, bytes]], dict[str, bytes]]


def dataset(folder: Path, change: Change, shards: tuple[int, ...] = (16, 16, 16)) -> Path:
    """A packed dataset whose training samples went through `change(number, members)` before packing."""
    write_dataset(folder, {"train": list(shards), "test": [12]})
    about = load_dataset(folder)
    number = 0
    for place, count in enumerate(shards):
        samples = [(f"s{i:05d}", change(i, members(i))) for i in range(number, number + count)]
        about.splits["train"][place] = write_shard(folder / f"train-{place:06d}.tar", samples)
        number += count
    (folder / MANIFEST).write_text(about.model_dump_json())
    return folder


def broken_photo(*numbers: int) -> Change:
    return lambda i, sample: sample | ({"rgb.jpg": b"\xff\xd8 not a photo"} if i in numbers else {})


def without(member: str, *numbers: int) -> Change:
    return lambda i, sample: {k: v for k, v in sample.items() if k != member or i not in numbers}


def take(folder: Path, policy: Policy, steps: int, workers: int = 0, **settings: Any) -> list[dict[str, Any]]:
    source = open_split(folder, "train", "label", policy=policy)
    settings = {"batch": 8, "shuffle": 10} | settings
    batches = loader(TrainStream(source, VIEWS, Augmentation(crop=(0.5, 1.0), flip=True), **settings), workers, CPU)
    return [next(batches) for _ in range(steps)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_faulty_sample_is_skipped_and_every_other_one_is_seen(tmp_path: Path, workers: int) -> None:
    folder = dataset(tmp_path, broken_photo(3, 20, 21))
    batches = take(folder, Policy(max_faulty=0.1), 6, workers)
    keys = [key for batch in batches for key in batch["key"]]
    assert len(keys) == 48
    assert set(keys) == {f"s{i:05d}" for i in range(48) if i not in (3, 20, 21)}
    skipped = {(s.shard, s.place, s.key, s.cause) for batch in batches for s in batch["skipped"]}
    assert skipped == {
        ("train-000000.tar", 3, "s00003", "rgb.jpg"),
        ("train-000001.tar", 4, "s00020", "rgb.jpg"),
        ("train-000001.tar", 5, "s00021", "rgb.jpg"),
    }


@pytest.mark.parametrize("start", [1, 4, 8])
def test_a_stream_with_faults_can_start_at_any_batch(tmp_path: Path, start: int) -> None:
    folder = dataset(tmp_path, broken_photo(*range(0, 48, 5)))
    whole, resumed = (take(folder, Policy(0.5), 12 - first, 2, start=first) for first in (0, start))
    for one, other in zip(whole[start:], resumed, strict=True):
        assert one["key"] == other["key"]
        assert torch.equal(one["student"], other["student"])


def test_a_replacement_comes_from_another_batch(tmp_path: Path) -> None:
    folder = dataset(tmp_path, broken_photo(3, 20, 21, 40))
    for batch in take(folder, Policy(0.1), 12):
        assert len(set(batch["key"])) == 8


def test_a_missing_shard_is_skipped_and_its_samples_are_counted(tmp_path: Path) -> None:
    folder = dataset(tmp_path, broken_photo())
    (folder / "train-000001.tar").unlink()
    batches = take(folder, Policy(max_faulty=0.5), 6)
    assert {key for batch in batches for key in batch["key"]} == {f"s{i:05d}" for i in (*range(16), *range(32, 48))}
    lost = {(s.shard, s.place) for batch in batches for s in batch["skipped"]}
    assert lost == {("train-000001.tar", place) for place in range(16)}


def test_when_nothing_can_be_used_it_says_so(tmp_path: Path) -> None:
    folder = dataset(tmp_path, broken_photo(*range(48)))
    with pytest.raises(
        UserError, match=r"none of 16 consecutive samples can be used \(rgb.jpg: 16\)\. The first: .*rgb.jpg"
    ):
        take(folder, Policy(max_faulty=0.9), 1)
    folder = dataset(tmp_path / "unpaired", without("depth.png", *range(48)))
    with pytest.raises(UserError, match=r"none of 16 consecutive samples can be used \(no depth: 16\)"):
        take(folder, Policy(unpaired="skip"), 1)


def test_unpaired_samples_are_skipped_or_kept_as_the_policy_says(tmp_path: Path) -> None:
    folder = dataset(tmp_path, without("rgb.jpg", *range(0, 48, 3)))
    with pytest.raises(UserError, match=r"has no rgb.jpg or rgb.png"):
        take(folder, Policy(max_faulty=0.9), 6)  # faulty is another thing
    skipping = take(folder, Policy(unpaired="skip"), 6)
    assert {s.cause for batch in skipping for s in batch["skipped"]} == {"no rgb"}
    assert {key for batch in skipping for key in batch["key"]} == {f"s{i:05d}" for i in range(48) if i % 3}
    keeping = take(folder, Policy(unpaired="keep"), 6)
    pairs = {k: p for batch in keeping for k, p in zip(batch["key"], batch["paired"].tolist(), strict=True)}
    assert pairs == {f"s{i:05d}": i % 3 > 0 for i in range(48)}
    assert not any(batch["skipped"] for batch in keeping)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pair", [0, 47])
def test_batches_without_any_pair_are_kept_wherever_the_pairs_are(tmp_path: Path, workers: int, pair: int) -> None:
    folder = dataset(tmp_path, without("rgb.jpg", *(set(range(48)) - {pair})))
    batches = take(folder, Policy(unpaired="keep"), 6, workers, shuffle=0)
    assert {key for batch in batches for key in batch["key"]} == {f"s{i:05d}" for i in range(48)}
    assert [k for b in batches for k, p in zip(b["key"], b["paired"].tolist(), strict=True) if p] == [f"s{pair:05d}"]
    assert all(batch["teacher"].shape == (8, 3, 24, 24) for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_that_no_sample_has_what_the_teacher_sees_is_said(tmp_path: Path, workers: int) -> None:
    folder = dataset(tmp_path, without("rgb.jpg", *range(48)))
    with pytest.raises(UserError, match=r"no sample of the split has the input of the teacher\. .*data\.join"):
        take(folder, Policy(unpaired="keep"), 1, workers)


def test_what_the_student_lacks_is_skipped_also_where_unpaired_samples_are_kept(tmp_path: Path) -> None:
    folder = dataset(tmp_path, without("depth.png", 5, 6))
    batches = take(folder, Policy(unpaired="keep"), 6)
    assert {s.key for batch in batches for s in batch["skipped"]} == {"s00005", "s00006"}


def test_evaluation_leaves_out_what_it_cannot_use(tmp_path: Path) -> None:
    folder = dataset(tmp_path, broken_photo(3, 20))
    source = open_split(folder, "train", "label", policy=Policy(max_faulty=0.1))
    batches = list(loader(EvalStream(source, VIEWS, batch=7), 2, CPU))
    assert sorted(k for b in batches for k in b["key"]) == [f"s{i:05d}" for i in range(48) if i not in (3, 20)]
    assert {s.key for b in batches for s in b["skipped"]} == {"s00003", "s00020"}


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_passed_over_after_the_last_batch_is_counted(tmp_path: Path, workers: int) -> None:
    folder = dataset(tmp_path, broken_photo(8, 9, *range(40, 48)))
    source = open_split(folder, "train", "label", policy=Policy(max_faulty=0.5))
    rest: list[Skipped] = []
    batches = list(loader(EvalStream(source, VIEWS, batch=4), workers, CPU, rest))
    told = [s.key for b in batches for s in b["skipped"]]
    assert sum(len(b["key"]) for b in batches) == 38
    assert sorted(told + [s.key for s in rest]) == ["s00008", "s00009", *(f"s{i:05d}" for i in range(40, 48))]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_lost_test_shard_is_skipped_by_the_whole_evaluation(make_config: Any, tmp_path: Path, damage: str) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [16], "test": [12, 12]})
    run = train(configs.load(make_config(shards=folder), ["data.max_faulty=0.5"]))
    shard = folder / "test-000001.tar"
    shard.unlink() if damage == "missing" else shard.write_bytes(shard.read_bytes()[:-4096])
    results = evaluate(run)
    assert (results["samples/test"], results["skipped/test/shard"]) == (12, 12)


def test_what_was_listed_is_looked_at_again(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", broken_photo(3, 20))
    ledger = Ledger(tmp_path / SKIPPED, 48, 0.5)
    for batch in take(folder, Policy(max_faulty=0.5), 6):
        ledger.add(batch["skipped"])
    ledger.share(Accelerator())
    assert [
        fault.rpartition(": ")[0].partition(": the")[0] for fault in recheck(folder, tmp_path / SKIPPED).faults
    ] == [
        "train-000000.tar: s00003: rgb.jpg",
        "train-000001.tar: s00020: rgb.jpg",
    ]
    mended = recheck(dataset(tmp_path / "data", broken_photo(3)), tmp_path / SKIPPED)
    assert len(mended.faults) == 1
    (note,) = mended.notes
    assert re.match(r"train-000001\.tar: s00020: readable now; before: .*rgb\.jpg: ", note)
    (gone,) = recheck(dataset(tmp_path / "data", broken_photo(3), (8, 4)), tmp_path / SKIPPED).faults[1:]
    assert gone.startswith("train-000001.tar: s00020: its shard no longer has a sample 4")
    with pytest.raises(UserError, match="another dataset"):
        recheck(dataset(tmp_path / "other", broken_photo(), (48,)), tmp_path / SKIPPED)


@pytest.mark.parametrize(("label", "member"), [("label", "label.txt"), ("parity", "meta.json")])
def test_a_label_that_is_out_of_range_is_found_again(tmp_path: Path, label: str, member: str) -> None:
    bad = {"label.txt": b"7", "meta.json": b'{"labels": {"parity": 7}}'}[member]
    folder = dataset(tmp_path / "data", lambda i, sample: sample | ({member: bad} if i == 3 else {}), (8,))
    source, rest = open_split(folder, "train", label, policy=Policy(max_faulty=0.5)), list[Skipped]()
    for batch in loader(EvalStream(source, VIEWS, batch=8), 0, CPU, rest):
        rest += batch["skipped"]
    ledger = Ledger(tmp_path / SKIPPED, 8, 0.5)
    ledger.add(rest)
    ledger.share(Accelerator())
    (fault,) = recheck(folder, tmp_path / SKIPPED).faults
    assert fault.startswith(f"train-000000.tar: s00003: {member}: {label} 7 is out of range")


def test_a_list_goes_on_after_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / SKIPPED
    for place, left in enumerate((None, -20, None)):
        ledger = Ledger(path, 48, 0.5)
        ledger.add([Skipped("train-000000.tar", place, f"s{place}", "rgb.jpg", "broken", False)])
        ledger.share(Accelerator())
        path.write_bytes(path.read_bytes()[:left])
    assert [one.place for one in read_skipped(path)] == [0, 2]


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b'{"samples": 3}', b'{"shard": "a.tar", "place": "b"}', b"{"])
def test_what_is_no_list_of_skipped_samples_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / SKIPPED).write_bytes(line + b"\n")
    with pytest.raises(UserError, match=r"skipped\.jsonl: not a list of skipped samples"):
        recheck(dataset(tmp_path / "data", broken_photo(), (8,)), tmp_path / SKIPPED)


LOSSES = "  cross_entropy: {}\n  wcord: {}"


def student(make_config: Any, folder: Path, *overrides: str, run: str = "run") -> configs.Config:
    teacher = train(configs.load(make_config("teacher"), ["student.modality=rgb", "train.steps=4"]), overwrite=True)
    path = make_config(run, f"teacher: {{run: {teacher}}}", LOSSES, shards=folder)
    return configs.load(path, ["data.batch_size=8", *overrides])


def test_a_run_counts_lists_and_reports_what_it_skipped(make_config: Any, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", broken_photo(3, 20))
    run = train(student(make_config, folder, "data.max_faulty=0.1"))
    assert {s.key for s in read_skipped(run / SKIPPED)} == {"s00003", "s00020"}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped/rgb.jpg"] == 2
    results = evaluate(run)
    assert results["skipped/train/rgb.jpg"] == 2
    assert results["samples/train"] == 46


@pytest.mark.parametrize("size", [0, 1, -1, -20])
def test_a_list_that_was_cut_short_is_gone_on_with(tmp_path: Path, size: int) -> None:
    path, accelerator = tmp_path / SKIPPED, Accelerator(cpu=True)
    faults = [Skipped("train-000000.tar", place, f"s{place}", "rgb.jpg", "no photo", False) for place in range(3)]

    def go_on(found: list[Skipped]) -> None:
        ledger = Ledger(path, 100, 0.5)
        ledger.add(found)
        ledger.share(accelerator)

    go_on(faults[:2])
    path.write_bytes(path.read_bytes()[:size])
    go_on(faults)
    assert sorted(read_skipped(path), key=lambda fault: fault.place) == faults
    go_on(faults)
    assert len(path.read_text().splitlines()) == 3


def test_a_run_ends_when_more_is_faulty_than_allowed(make_config: Any, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", broken_photo(3, 20))
    with pytest.raises(UserError, match=r"2 of 48 training samples are faulty, .*max_faulty: 0.03 .*\(rgb.jpg: 2\)"):
        train(student(make_config, folder, "data.max_faulty=0.03"))


def test_unpaired_samples_train_the_losses_that_need_no_teacher(
    make_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dataset(tmp_path / "data", without("rgb.jpg", *range(0, 48, 2)))
    run = train(student(make_config, folder, "data.unpaired=keep"))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss/wcord"] > 0
    assert not (run / SKIPPED).exists()
    assert last["unpaired"] == pytest.approx(0.5, abs=0.15)
    assert "% without teacher input" in capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) > 1
    shares = [row["unpaired"] for row in rows]
    assert min(shares) <= evaluate(run)["unpaired/train"] <= max(shares)


@pytest.mark.slow
def test_two_processes_keep_unpaired_samples(make_config: Any, tmp_path: Path) -> None:
    """Some steps find pairs on one of them alone; they say at each checkpoint whether they hold equal weights."""
    folder = dataset(tmp_path / "data", without("rgb.jpg", *(i for i in range(48) if i % 4)))
    config = student(make_config, folder, "data.unpaired=keep")
    write_config(config, tmp_path, "data")
    options = ["data.batch_size=8", "data.workers=1", "train.steps=24", "train.log_every=1", "train.checkpoint_every=6"]
    done = launch(["train", str(tmp_path / "config.yaml"), *options])
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]
    assert {row["loss/wcord"] > 0 for row in rows} == {True, False}
    assert all(row["loss/cross_entropy"] > 0 for row in rows)
    assert sum(row["unpaired"] for row in rows) / 24 == pytest.approx(0.75, abs=0.05)


def test_the_share_of_unpaired_samples_is_that_of_all_steps(tmp_path: Path) -> None:
    rows = [{"step": 20, "unpaired": 0.5}, {"step": 40, "unpaired": 0.25}, {"step": 50, "unpaired": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert unpaired(tmp_path) == {"unpaired/train": pytest.approx((20 * 0.5 + 20 * 0.25 + 10) / 50)}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 20, "loss": 1.0}) + "\n")
    assert unpaired(tmp_path) == {}


def telling(index: int) -> dict[str, bytes]:
    """A sample whose members each tell its number: the photo by its grey, the depth map by its metres."""
    photo, depth = np.full((4, 4, 3), 5 * index, np.uint8), np.full((4, 4), 100 * index + 100, np.uint16)
    return {
        "rgb.png": cv2.imencode(".png", photo)[1].tobytes(),
        "depth.png": cv2.imencode(".png", depth)[1].tobytes(),
        "label.txt": str(index % 3).encode(),
    }


def mutate(path: Path, rng: random.Random) -> None:
    """Damage a shard as disks, networks and people do, whatever it says in its headers."""
    data = bytearray(path.read_bytes())
    a, b = sorted(rng.sample(range(len(data) // 512), 2))
    kind = rng.choice(["flip", "cut", "zero", "swap", "rename", "double", "drop", "append", "remove"])
    match kind:
        case "flip":
            for _ in range(rng.randrange(1, 9)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "cut":
            del data[rng.randrange(len(data)) :]
        case "zero":
            data[a * 512 : b * 512] = bytes((b - a) * 512)
        case "swap":
            one, other = data[a * 512 : a * 512 + 512], data[b * 512 : b * 512 + 512]
            data[a * 512 : a * 512 + 512], data[b * 512 : b * 512 + 512] = other, one
        case "rename":
            data = data.replace(b"s0000%d" % rng.randrange(10), b"s0000%d" % rng.randrange(10))
        case "double":
            data[b * 512 : b * 512] = data[a * 512 : b * 512]
        case "drop":
            del data[a * 512 : b * 512]
        case "append":
            data += rng.randbytes(rng.randrange(1, 2000))
        case "remove":
            path.unlink()
            return
    path.write_bytes(data)


def repack(path: Path, rng: random.Random) -> Shard:
    """Write the shard anew, as a faulty packer might: members lost, doubled, renamed, in disorder, of another type."""
    with tarfile.open(path) as tar:
        files = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    a, b = rng.sample(range(len(files)), 2)
    match rng.choice(["swap names", "move", "lose", "double", "rename", "type", "cut", "empty"]):
        case "swap names":
            if files[a][0].partition(".")[2] != files[b][0].partition(".")[2]:  # else it is a forgery, not a fault
                files[a], files[b] = (files[b][0], files[a][1]), (files[a][0], files[b][1])
        case "move":
            files.insert(a, files.pop(b))
        case "lose":
            files.pop(a)
        case "double":
            files.insert(b, files[a])
        case "rename":
            files[a] = (f"s{rng.randrange(99):05d}.{files[a][0].partition('.')[2]}", files[a][1])
        case "type":
            files[a] = (files[a][0], rng.randbytes(200))
        case "cut":
            files[a] = (files[a][0], files[a][1][: rng.randrange(len(files[a][1]))])
        case "empty":
            files[a] = (files[a][0], b"")
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Shard(file=path.name, samples=6, bytes=path.stat().st_size, sha256=sha256(path))


@pytest.mark.parametrize("count", [100, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sealed", [True, False])
def test_no_damage_crashes_it_joins_strangers_or_goes_uncounted(tmp_path: Path, count: int, sealed: bool) -> None:
    """sealed: dataset.json has the hash of the whole shard, as after any damage; else of the mended, disordered one."""
    whole = dataset(tmp_path / "whole", lambda i, _: telling(i), (6, 6, 6))
    views = {"teacher": View(RGB(jitter=0.0), 4), "student": View(Depth(jitter=0.0, dropout=0.0, far=2.0), 4)}
    outcomes: Counter[str] = Counter()
    for seed in range(count):
        rng = random.Random(seed)
        folder = tmp_path / "damaged"
        shutil.copytree(whole, folder)
        path = folder / f"train-{rng.randrange(3):06d}.tar"
        about = load_dataset(folder)
        if sealed:
            mutate(path, rng)
        else:
            place = int(path.stem[-6:])
            about.splits["train"][place] = repack(path, rng)
            (folder / MANIFEST).write_text(about.model_dump_json())
        source = open_split(folder, "train", "label", policy=Policy(max_faulty=0.9, unpaired="skip"))
        batches = list(islice(loader(TrainStream(source, views, Augmentation(seed), batch=6), 0, CPU), 3))
        seen = {key for batch in batches for key in batch["key"]}
        skipped = {(s.shard, s.place) for batch in batches for s in batch["skipped"]}
        assert len(seen) + len(skipped) >= 18  # a renamed sample may be both
        outcomes["all there" if not skipped else "some skipped"] += 1
        for batch in batches:
            by_photo = (batch["teacher"][:, 0, 2, 2].float() / 5).round()
            valid = batch["student"][:, 1, 2, 2] > 0
            by_depth = ((batch["student"][:, 0, 2, 2] + 1) * 10 - 1).round()
            assert torch.equal(by_photo[valid], by_depth[valid])
        shutil.rmtree(folder)
    assert outcomes["some skipped"] > count / 2


def test_a_key_that_is_no_utf8_is_read_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / SKIPPED, 10, 1.0)
    ledger.add([Skipped("a.tar", 0, "caf\udce9", "depth.png", "it is damaged", False)])
    ledger.share(Accelerator())
    assert [one.key for one in read_skipped(tmp_path / SKIPPED)] == ["caf\udce9"]
