"""Checking: silent on sound data, one line for each planted fault, and no crash or hang whatever is in a tar."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from shapes_dataset import members, write_dataset
from sources import content, sound_file, wav

from pipeline.common.errors import UserError
from pipeline.data.dataset import MANIFEST
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.packing.check import check
from pipeline.packing.scan import MOST_FAULTS

FIRST = "train-000000.tar"
Contents = list[tuple[str, dict[str, bytes]]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 samples in 3 + 2 shards; do not change it."""
    return write_dataset(tmp_path_factory.mktemp("sound"), {"train": [8, 6, 6], "test": [6, 4]})


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(sound, tmp_path / "data"))


def read(path: Path) -> Contents:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            key, _, member = info.name.partition(".")
            found.setdefault(key, {})[member] = tar.extractfile(info).read()  # type: ignore[union-attr]
    return list(found.items())


def rewrite(folder: Path, change: Callable[[Contents], Any], file: str = FIRST) -> None:
    """Change the content of a shard and seal it again: `dataset.json` agrees with what is there."""
    contents = read(folder / file)
    change(contents)
    shard = write_shard(folder / file, contents)
    dataset = load_dataset(folder)
    fields: Counter[str] = Counter()
    for found in dataset.splits.values():
        found[:] = [shard if old.file == file else old for old in found]
        for each in found:
            with tarfile.open(folder / each.file) as tar:
                fields.update(name.partition(".")[2] for name in tar.getnames())
    (folder / MANIFEST).write_text(dataset.model_copy(update={"fields": dict(fields)}).model_dump_json())


def put(member: str, data: bytes, sample: int = 2) -> Callable[[Contents], None]:
    return lambda contents: contents[sample][1].__setitem__(member, data)


def put_meta(**changes: Any) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        held = contents[2][1]
        held["meta.json"] = json.dumps(json.loads(held["meta.json"]) | changes).encode()

    return change


def encode(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.mark.parametrize("quick", [False, True])
def test_a_sound_data_set_has_no_faults_and_no_notes(sound: Path, quick: bool) -> None:
    before = content(sound)
    report = check(sound, ranks=1, workers=2, quick=quick)
    assert report.faults == report.notes == []
    assert str(report).endswith("no faults")
    assert content(sound) == before


def test_the_facts_are_those_of_the_data(sound: Path) -> None:
    facts = "\n".join(check(sound).facts)
    assert "shapes: 30 samples in 5 shards" in facts
    assert "rgb.jpg: in 30 of 30 samples, 32 x 32" in facts
    assert "depth.png: in 30 of 30 samples, 32 x 32, median 1.50 m, nine of ten maps 1.50 to 1.50 m" in facts
    assert "train: 20 samples: disc 7, square 7, cross 6" in facts
    assert "test: 10 samples: disc 3, square 3, cross 4" in facts
    assert "train, parity: even 10, odd 10" in facts


def test_other_labels_are_counted_as_the_task_s(data: Path) -> None:
    for name in ("train-000000.tar", "train-000001.tar", "train-000002.tar"):
        rewrite(data, lambda contents: [meta_of(held, {"parity": 0}) for _, held in contents], name)
    rewrite(data, lambda contents: meta_of(contents[0][1], {}), "test-000000.tar")
    report = check(data)
    assert "  train, parity: even 20, odd 0" in report.facts
    assert "  test, parity, 1 unlabelled: even 4, odd 5" in report.facts
    assert report.notes == ["test has classes of parity without samples in train: odd"]


def meta_of(held: dict[str, bytes], labels: dict[str, int]) -> None:
    held["meta.json"] = json.dumps(json.loads(held["meta.json"]) | {"labels": labels}).encode()


def test_masks_are_held_against_their_classes(data: Path) -> None:
    def masked(contents: Contents) -> None:
        mask = np.zeros((32, 32), np.uint8)
        mask[:8], mask[8], mask[9, 0] = 255, 7, 3
        for _, held in contents:
            held["mask.png"] = encode(".png", mask)

    rewrite(data, masked)
    about = load_dataset(data)
    about.classes["mask"], about.masks["mask"] = ["background", "hand", "foot"], [0, 255, 9]
    (data / MANIFEST).write_text(about.model_dump_json())
    report = check(data)
    assert report.faults == []
    assert "  train, mask: background 71.8 %, hand 25 %, foot 0 % of the pixels" in report.facts
    assert not any("test, mask" in fact for fact in report.facts)
    assert report.notes[-1] == (
        "3.22 % of the pixels of mask have no class and are ignored: they have the values 3, 7; the classes "
        "have 0, 255, 9"
    )
    assert not any("mask:" in fact for fact in check(data, quick=True).facts)


@pytest.mark.usefixtures("forked_pools")
def test_more_processes_report_the_same(data: Path) -> None:
    rewrite(data, put("rgb.jpg", b"x"))
    rewrite(data, put("depth.png", b"x"), "test-000000.tar")
    assert str(check(data, processes=2)) == str(check(data, processes=1))


PLANTED: dict[str, tuple[Callable[[Contents], Any], str]] = {
    "no image": (put("rgb.jpg", b"x"), r"s00002\.rgb\.jpg: not a JPEG"),
    "half an image": (lambda c: put("rgb.jpg", c[2][1]["rgb.jpg"][:-30])(c), r"s00002\.rgb\.jpg: .*truncated"),
    "8-bit depth": (put("depth.png", encode(".png", np.ones((32, 32), np.uint8))), r"s00002\.depth\.png: .*8-bit"),
    "label out of range": (put("label.txt", b"3"), r"s00002\.label\.txt: label 3 is out of range: .* 3 classes"),
    "label that is none": (put("label.txt", b"disc"), r"s00002\.label\.txt: .* is not a class index"),
    "second label out of range": (put_meta(labels={"parity": 2}), r"s00002\.meta\.json: parity 2 is out of range"),
    "second label without classes": (put_meta(labels={"room": 0}), r"s00002\.meta\.json: label `room` has no classes"),
    "second label that is none": (put_meta(labels={"parity": "odd"}), r"label `parity` 'odd' is not a class index"),
    "labels that are none": (put_meta(labels=[1]), r"s00002\.meta\.json: `labels` is not an object"),
    "broken meta": (put("meta.json", b"{"), r"s00002\.meta\.json: meta is not JSON"),
    "key twice": (lambda c: c.append(c[0]), rf"key s00000 occurs twice in {FIRST}"),
    "group in two splits": (put_meta(group="g11"), rf"group g11 is in test-000000\.tar and {FIRST}: test and train"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_each_planted_fault_is_one_line(kind: str, data: Path) -> None:
    plant, line = PLANTED[kind]
    rewrite(data, plant)
    report = check(data)
    assert len(report.faults) == 1, report.faults
    assert FIRST in report.faults[0]
    assert re.search(line, report.faults[0]), report.faults
    assert str(report).endswith("1 fault")


def test_a_key_in_two_splits_is_a_fault(data: Path) -> None:
    _, taken = read(data / "test-000001.tar")[0]
    rewrite(data, lambda contents: contents.append(("s00027", taken)))
    faults = check(data).faults
    assert f"key s00027 is in test-000001.tar and {FIRST}; keys must be unique; pack the data again" in faults
    assert any(fault.startswith("group g13 is in test-000001.tar") for fault in faults)


def test_a_member_that_was_lost_is_named(data: Path) -> None:
    """Not sealed: `dataset.json` still counts it."""
    before = load_dataset(data).fields
    rewrite(data, lambda contents: contents[2][1].pop("depth.png"))
    dataset = load_dataset(data).model_copy(update={"fields": before})
    (data / MANIFEST).write_text(dataset.model_dump_json())
    counted, named = check(data).faults
    assert counted.startswith("dataset.json: depth.png: in 29 samples, recorded: 30")
    assert named.startswith(f"{FIRST}: s00002.depth.png: missing")


def test_a_partner_that_never_was_is_a_note(data: Path) -> None:
    rewrite(data, lambda contents: contents[2][1].pop("depth.png"))
    report = check(data)
    assert report.faults == []
    assert report.notes == [f"1 of 30 samples have no depth.png, the first one is {FIRST}: s00002"]


def test_samples_of_a_missing_shard_are_not_called_unlabelled(data: Path) -> None:
    (data / "test-000001.tar").unlink()
    facts = check(data).facts
    assert any(re.fullmatch(r"  test: 6 samples: disc \d, square \d, cross \d", line) for line in facts)


def test_sounds_of_several_kinds_are_one_field(data: Path) -> None:
    rng = np.random.default_rng(0)

    def of_kinds(contents: Contents) -> None:
        for n, (_, held) in enumerate(contents):
            kind = ("wav", "mp3", "flac")[n % 3]
            held[f"audio.{kind}"] = sound_file(rng.normal(0, 0.1, 4000), kind)

    for path in sorted(data.glob("*.tar")):
        rewrite(data, of_kinds, path.name)
    report = check(data)
    assert report.faults == report.notes == []
    rewrite(data, lambda contents: contents[2][1].pop("audio.flac"))
    assert check(data).notes == [
        f"1 of 30 samples have no audio.flac or audio.mp3 or audio.wav, the first one is {FIRST}: s00002"
    ]


def test_unlabelled_samples_are_counted_and_no_fault(data: Path) -> None:
    rewrite(data, lambda contents: contents[2][1].pop("label.txt"))
    report = check(data)
    assert report.faults == report.notes == []
    assert any("train: 20 samples, 1 unlabelled: disc 7" in line for line in report.facts)


@pytest.mark.parametrize("kind", ["png", "npy"])
@pytest.mark.parametrize("factor", [0.001, 0.1, 1.0, 10.0, 1000.0])
def test_a_unit_that_is_10_or_1000_times_off_is_noted(data: Path, factor: float, kind: str) -> None:
    def change(contents: Contents) -> None:
        for _, held in contents:
            depth = cv2.imdecode(np.frombuffer(held.pop("depth.png"), np.uint8), cv2.IMREAD_UNCHANGED)
            if kind == "png":
                held["depth.png"] = encode(".png", np.clip(depth * factor, 1, 65000).astype(np.uint16))
            else:
                buffer = BytesIO()
                np.save(buffer, (depth / 1000 * factor).astype(np.float32))
                held["depth.npy"] = buffer.getvalue()

    for path in sorted(data.glob("*.tar")):
        rewrite(data, change, path.name)
    report = check(data)
    assert report.faults == []
    noted = [note for note in report.notes if "It must be millimetres (.png) or metres (.npy)." in note]
    coarse = [note for note in report.notes if "all values are multiples of 10 mm" in note]
    assert noted + coarse == report.notes
    assert bool(noted) is (factor != 1.0)
    assert bool(coarse) is (factor == 10.0 and kind == "png")


@pytest.mark.parametrize(("metres", "fault"), [(np.float16(80), None), (np.float64(1e300), "overflow float32")])
def test_a_far_reading_is_no_damage_of_the_tar(data: Path, metres: Any, fault: str | None) -> None:
    buffer = BytesIO()
    np.save(buffer, np.full((32, 32), metres))
    rewrite(data, put("depth.npy", buffer.getvalue()))
    faults = check(data).faults
    assert len(faults) == (fault is not None)
    assert all(f"{FIRST}: s00002.depth.npy: " in line and fault in line for line in faults)


def test_what_a_member_raises_is_no_damage_of_the_tar(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(depth: np.ndarray) -> tuple[float, float, bool]:
        raise OverflowError("too deep")

    monkeypatch.setattr("pipeline.packing.scan.summarise", overflow)
    faults = check(data, processes=1).faults
    assert len(faults) == 30
    assert faults[0] == f"{FIRST}: s00000.depth.png: too deep"


def test_shards_in_another_unit_are_a_fault(data: Path) -> None:
    def tenfold(contents: Contents) -> None:
        for _, held in contents:
            depth = cv2.imdecode(np.frombuffer(held["depth.png"], np.uint8), cv2.IMREAD_UNCHANGED)
            held["depth.png"] = encode(".png", 10 * depth)

    rewrite(data, tenfold)
    rewrite(data, tenfold, "test-000001.tar")
    head, first, second = check(data).faults
    assert head.startswith(
        "depth: the values of 12 maps are about 10 times as large as those of the other 18: two units in one dataset"
    )
    assert re.fullmatch(r"train-000000\.tar: s0000\d: the median depth is 15 m", first)
    assert re.fullmatch(r"test-000001\.tar: s000\d\d: the median depth is 15 m", second)


def test_sound_that_is_not_decoded_is_noted(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(data, lambda contents: [put("audio.wav", wav(), n)(contents) for n in range(8)])
    assert not any("sound" in note for note in check(data).notes)
    monkeypatch.setattr("pipeline.packing.check.can_hear", lambda: False)
    assert (
        "audio is not decoded, so some damage goes undetected; to decode it: pip install soundfile" in check(data).notes
    )


def test_the_highest_number_as_no_reading_is_noted(data: Path) -> None:
    depth = np.full((32, 32), 900, np.uint16)
    depth[:4] = 65535
    rewrite(data, put("depth.png", encode(".png", depth)))
    (note,) = check(data).notes
    assert note.startswith("in 1 depth maps, over 1 % of the values are 65535")


def test_images_of_different_aspect_ratio_are_noted(data: Path) -> None:
    rewrite(data, put("rgb.jpg", encode(".jpg", np.zeros((32, 48, 3), np.uint8))))
    report = check(data)
    assert report.faults == []
    assert report.notes[0].startswith("in 1 samples the images have different aspect ratios")
    assert any("rgb.jpg: in 30 of 30 samples, 32 x 32 to 48 x 32" in line for line in report.facts)


def test_too_few_shards_strays_and_untrained_classes_are_noted(data: Path) -> None:
    for name in ("train-000000.tar", "train-000001.tar", "train-000002.tar"):
        rewrite(data, lambda contents: [put("label.txt", b"1", n)(contents) for n in range(len(contents))], name)
    shutil.copy(data / FIRST, data / "train-000099.tar")
    shutil.copy(data / FIRST, data / "train-000000.teacher.tar")  # a side-car
    report = check(data, ranks=2, workers=2)
    assert report.faults == []
    assert [note.split(":")[0] for note in report.notes] == [
        "test has classes without samples in train",
        "train has 3 shards for 4 readers (2 ranks x 2 workers)",
        "test has 2 shards for 4 readers (2 ranks x 2 workers)",
        "1 tars are not listed in dataset.json and will not be read; the first one is train-000099.tar",
    ]


# Damaged tars.


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 4, 60))):
        found[rng.randrange(len(found))] ^= rng.randrange(1, 256)
    return bytes(found)


def replace(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(1, 3000)) + data[at + rng.randrange(3000) :]


def forge(data: bytes, rng: random.Random) -> bytes:
    """A header whose name, size or type is another, with a checksum that fits."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        at = rng.choice(tar.getmembers()).offset
    header = bytearray(data[at : at + 512])
    kind = rng.choice(("name", "size", "type"))
    if kind == "type":
        header[156] = rng.choice(b"123456xgLKSVDM")
    else:
        start, length = {"name": (0, 100), "size": (124, 12)}[kind]
        for _ in range(3):
            header[start + rng.randrange(length)] = rng.choice((0, 32, 46, 47, 55, 128, 255))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


@pytest.mark.parametrize("spoil", [cut, flip, replace, forge])
def test_whatever_is_in_a_tar_is_a_fault_and_no_crash(spoil: Callable[..., bytes], data: Path) -> None:
    whole = (data / FIRST).read_bytes()
    rng = random.Random(7)
    for _ in range(40):
        spoilt = spoil(whole, rng)
        (data / FIRST).write_bytes(spoilt)
        report = check(data)
        assert bool(report.faults) is (spoilt != whole)
        assert all(len(fault.splitlines()) == 1 for fault in report.faults)


@pytest.mark.parametrize(
    ("size", "how"),
    [(0, "empty file"), (100, "truncated header"), (1000, "is truncated"), (None, "end-of-archive marker is missing")],
)
def test_the_cut_is_told(size: int | None, how: str, data: Path) -> None:
    """None: between two members, where a reader sees nothing amiss."""
    path = data / FIRST
    if size is None:
        with tarfile.open(path) as tar:
            size = tar.getmembers()[12].offset
    path.write_bytes(path.read_bytes()[:size])
    faults = check(data, quick=True).faults
    assert faults[0].startswith(f"{FIRST}: has {size} bytes instead of")
    assert faults[0].endswith("delete the shard and run the same `wcord pack` again")
    assert re.search(f"the tar is damaged after . samples .*{how}", faults[1])


def test_a_header_that_is_garbage_is_not_taken_for_the_end(data: Path) -> None:
    """Python's tarfile stops there without a word."""
    with tarfile.open(data / FIRST) as tar:
        at = tar.getmembers()[12].offset
    found = bytearray((data / FIRST).read_bytes())
    found[at : at + 512] = b"\xff" * 512
    (data / FIRST).write_bytes(found)
    faults = check(data, quick=True).faults
    assert f"the tar is damaged after 2 samples (missing header at byte {at})" in faults[0]
    assert "has 2 samples instead of 8 as in dataset.json" in faults[1]


def add(folder: Path, info: tarfile.TarInfo, data: bytes = b"") -> None:
    info.size = len(data)
    with tarfile.open(folder / FIRST, "a") as tar:
        tar.addfile(info, io.BytesIO(data))


def test_only_plain_members_of_plain_names_pass(data: Path) -> None:
    link = tarfile.TarInfo("zz.rgb.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    add(data, link)
    for name in ("README", ".hidden", "../zz.rgb.jpg", "zz."):
        add(data, tarfile.TarInfo(name), b"x")
    add(data, tarfile.TarInfo("zz.text.txt"), b"once")
    add(data, tarfile.TarInfo("zz.text.txt"), b"twice")
    faults = check(data, quick=True).faults
    assert f"{FIRST}: zz.rgb.jpg: not a plain file; pack the data again" in faults
    assert sum("not named KEY.MEMBER" in fault for fault in faults) == 4
    assert f"{FIRST}: zz.text.txt: twice in one sample; pack the data again" in faults


def test_names_from_a_tar_cannot_write_to_the_terminal(data: Path) -> None:
    add(data, tarfile.TarInfo("a\nno faults\x1b[2J\udcff"), b"x")
    report = check(data, quick=True)
    assert f"{FIRST}: a\\nno faults\\x1b[2J\\udcff: not named KEY.MEMBER" in report.faults[-1]
    str(report).encode()


def test_a_ruined_shard_does_not_bury_the_others(data: Path) -> None:
    contents = [(f"t{n:03d}", members(n) | {"label.txt": b"x"}) for n in range(50)]
    rewrite(data, lambda held: held.__setitem__(slice(None), contents))
    rewrite(data, put("label.txt", b"x"), "train-000001.tar")
    faults = [fault for fault in check(data).faults if fault.startswith("train")]
    assert len(faults) == MOST_FAULTS + 2
    assert faults[-2] == f"{FIRST}: and {50 - MOST_FAULTS} more problems in this shard"
    assert faults[-1].startswith("train-000001.tar: s00010.label.txt")


def test_missing_and_changed_shards_are_told_apart(data: Path) -> None:
    (data / "test-000000.tar").unlink()
    path = data / "train-000001.tar"
    found = bytearray(path.read_bytes())
    found[-1] = 1  # behind the end-of-archive marker
    path.write_bytes(found)
    faults = check(data).faults
    assert any(fault.startswith("test-000000.tar: the shard is missing; restore it") for fault in faults)
    assert any(fault.startswith("train-000001.tar: its SHA-256 differs") for fault in faults)


def test_a_folder_that_is_no_data_set_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        check(tmp_path)


@pytest.mark.parametrize("file", ["../train-000000.tar", "/etc/passwd", "a/b.tar", "..", "x.tar/../../y.tar"])
def test_shards_of_names_that_lead_out_of_the_folder_are_refused(data: Path, file: str) -> None:
    text = (data / MANIFEST).read_text()
    (data / MANIFEST).write_text(text.replace(f'"{FIRST}"', json.dumps(file)))
    with pytest.raises(UserError, match=r"dataset\.json: splits\.train\.0\.file"):
        check(data)
