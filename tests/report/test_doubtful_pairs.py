"""`wcord check --pairs` and the report's section: the most doubtful pairs of a run, and their pictures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from command_line import call
from foreign_shards import plain_tar
from reports import Page
from shapes_dataset import members

from modalities import RGB, Depth
from pipeline.common.errors import UserError
from pipeline.data.source import Source
from pipeline.evaluate.write_artifacts import thumbnail
from pipeline.report.doubtful_pairs import LISTED, check_pairs
from pipeline.report.page import report
from pipeline.report.pairs_section import SHOWN
from pipeline.runs.pairs_file import PAIRS, SHEET, Pair, read_pairs, write_pairs

TEACHER = "teacher: {modality: rgb, encoder: {name: cnn5, width: 4, size: 16, weights: random}}"
SHARDS = [50, 30, 16]
DEPTH = Depth(near=0.5, far=2.0)


def pairs_of(source: int = 0) -> list[Pair]:
    """The pairs of the data set `shapes`; probability n / 100 in a random order."""
    order = iter(np.random.default_rng(source).permutation(sum(SHARDS)) / 100)
    numbers = ((shard, place) for shard, count in enumerate(SHARDS) for place in range(count))
    return [
        Pair(f"s{sum(SHARDS[:shard]) + place:05d}", f"train-{shard:06d}.tar", place, float(next(order)), source)
        for shard, place in numbers
    ]


@pytest.fixture
def run(make_config: Any, tmp_path: Path) -> Path:
    """A run on noisy pairs, as far as the list of its pairs is about it."""
    return listed(make_config(teacher=TEACHER), tmp_path / "listed", pairs_of())


def listed(config: Path, folder: Path, pairs: list[Pair]) -> Path:
    folder.mkdir()
    shutil.copy(config, folder / "config.yaml")
    write_pairs(folder, pairs)
    return folder


def pictures(key: str) -> np.ndarray:
    """What the sheet shows of a sample of the data set `shapes`: depth beside photo."""
    raw = members(int(key[1:]))
    sides = (DEPTH.picture(DEPTH.decode(raw["depth.png"], {})), RGB().picture(RGB().decode(raw["rgb.jpg"], {})))
    return np.hstack([thumbnail(side, 160) for side in sides])


def notes(lines: list[str]) -> str:
    return "\n".join(line for line in lines if line.startswith("note: "))


def test_the_most_doubtful_pairs_are_listed_and_drawn_in_order(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    read = Source.read_shard
    monkeypatch.setattr(
        Source, "read_shard", lambda self, shard, *rest: opened.append(shard.file) or read(self, shard, *rest)
    )
    lines = check_pairs(run)
    assert lines[0] == f"{run}: 51 of 96 training pairs (53.1 %) are probably mismatched"
    doubtful = sorted(pairs_of(), key=lambda pair: pair.matches)[:LISTED]
    shown = [f"  {pair.key} in {pair.shard}: {number}.0 %" for number, pair in enumerate(doubtful)]
    assert lines[2:] == [*shown, f"pictures: {run / SHEET}"]
    assert len(opened) == len(set(opened))
    sheet = cv2.imread(str(run / SHEET))
    assert sheet is not None
    assert (sheet[:, :320, ::-1] == np.vstack([pictures(pair.key) for pair in doubtful])).all()
    beside = sheet[:, 320:].reshape(LISTED, 160, -1)
    assert (beside < 128).any((1, 2)).all()  # each row has its text


def test_what_cannot_be_read_is_named_and_the_rest_is_drawn(run: Path, shapes: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes, tmp_path / "data")
    (data / "train-000001.tar").unlink()
    wrong = {
        "another": Pair("another", "train-000000.tar", 4, 0.0),
        "beyond": Pair("beyond", "train-000000.tar", 50, 0.0),
        "elsewhere": Pair("elsewhere", "train-000009.tar", 0, 0.0),
        "s00055": Pair("s00055", "train-000001.tar", 5, 0.0),
        "mixed": Pair("mixed", "train-000000.tar", 0, 0.0, 3),
    }
    write_pairs(run, [*wrong.values(), Pair("s00003", "train-000000.tar", 3, 0.1)])
    lines = check_pairs(run, str(data), tmp_path / "new" / "sheet.png")
    said = notes(lines)
    for key, reason in {
        "another": "contains s00004 in its place",
        "beyond": "train-000000.tar does not contain it",
        "elsewhere": "train-000009.tar does not contain it",
        "s00055": "No such file",
        "mixed": "has no dataset 3",
    }.items():
        assert re.search(rf"^note: no picture of .*\b{key}\b.*: .*{reason}", said, re.MULTILINE), (key, said)
    assert lines[-len(said.splitlines()) - 1] == f"pictures: {tmp_path / 'new' / 'sheet.png'}"
    sheet = cv2.imread(str(tmp_path / "new" / "sheet.png"))
    assert (sheet[:, :320, ::-1] == pictures("s00003")).all()


def test_one_side_that_cannot_be_decoded_leaves_the_other(make_config: Any, tmp_path: Path) -> None:
    plain_tar(tmp_path / "data" / "0.tar", [("s00003", members(3) | {"depth.png": b"none"})])
    config = make_config(teacher=TEACHER, shards=tmp_path / "data")
    run = listed(config, tmp_path / "listed", [Pair("s00003", "0.tar", 0, 0.2)])
    assert re.search(r"no picture of s00003: .*depth\.png", notes(check_pairs(run)))
    sheet = cv2.imread(str(run / SHEET))
    assert (sheet[:, :160] == 0).all()
    assert (sheet[:, 160:320, ::-1] == pictures("s00003")[:, 160:]).all()


def test_a_data_set_that_has_moved_is_found_where_it_is_now(make_config: Any, shapes: Path, tmp_path: Path) -> None:
    run = listed(make_config(teacher=TEACHER, shards=tmp_path / "old"), tmp_path / "listed", pairs_of())
    lines = check_pairs(run)
    assert len([line for line in lines if line.startswith("  s0")]) == LISTED
    assert "old/dataset.json: not found" in notes(lines)
    assert lines[-1] == f"note: if the dataset has moved: wcord check SHARDS --pairs {run}"
    assert not (run / SHEET).exists()
    found = Page(report([run]).read_text(encoding="utf-8"))
    assert "51 of 96 training pairs (53.1 %) are probably mismatched." in found.text
    assert sum(pair.key in found.text for pair in read_pairs(run)[:SHOWN]) == SHOWN
    assert call("check", shapes, "--pairs", run) == 0
    assert (run / SHEET).exists()


def test_a_wrong_place_of_the_data_set_is_an_error(make_config: Any, shapes: Path, tmp_path: Path) -> None:
    run = listed(make_config(teacher=TEACHER), tmp_path / "listed", pairs_of())
    plain_tar(tmp_path / "other" / "train-000000.tar", [("other", members(90))])
    for wrong, reason in {"nowhere": "not found", "other": "contain"}.items():
        with pytest.raises(UserError, match=reason):
            check_pairs(run, str(tmp_path / wrong))
    assert not (run / SHEET).exists()


def test_each_pair_of_a_mixture_is_read_from_its_data_set(make_config: Any, shapes: Path, tmp_path: Path) -> None:
    plain_tar(tmp_path / "other" / "train-000000.tar", [("other", members(90))])
    config = make_config(teacher=TEACHER)
    both = f"[{{path: {shapes}, weight: 1}}, {{path: {tmp_path / 'other'}, weight: 2}}]"
    config.write_text(config.read_text().replace(f"shards: {shapes}", f"shards: {both}"))
    pairs = [Pair("other", "train-000000.tar", 0, 0.1, 1), Pair("s00000", "train-000000.tar", 0, 0.2)]
    run = listed(config, tmp_path / "listed", pairs)
    lines = check_pairs(run)
    assert lines[2:4] == [
        "  other in dataset 1, train-000000.tar: 10.0 %",
        "  s00000 in dataset 0, train-000000.tar: 20.0 %",
    ]
    sheet = cv2.imread(str(run / SHEET))
    assert (sheet[:, :320, ::-1] == np.vstack([pictures("s00090"), pictures("s00000")])).all()
    with pytest.raises(UserError, match="trained on a mixture of 2 datasets"):
        check_pairs(run, str(shapes))


def test_without_doubt_nothing_is_drawn(run: Path) -> None:
    write_pairs(run, [replace(pair, matches=1.0) for pair in pairs_of()])
    lines = check_pairs(run)
    assert lines[0].endswith("0 of 96 training pairs (0.0 %) are probably mismatched")
    assert [line[:29] for line in lines[1:]] == ["note: No pair is doubtful: ei"]
    assert not (run / SHEET).exists()
    assert "No pair is doubtful" in Page(report([run]).read_text(encoding="utf-8")).text


HOSTILE = ["\x1b]0;title\x07\x1b[2J", "two\nnote: lines", "no\udcff text", "<script>alert(3)</script>", "\u202eright"]


def test_hostile_keys_are_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(run, [Pair(key, "train-000000.tar", 0, 0.1) for key in HOSTILE])
    assert [pair.key for pair in read_pairs(run)] == HOSTILE
    assert call("check", "--pairs", run) == 0
    output = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in output)
    assert "\n  two\\nnote: lines in train-000000.tar: 10.0 %\n" in output
    assert len([line for line in output.splitlines() if line.endswith("in train-000000.tar: 10.0 %")]) == len(HOSTILE)
    found = Page(report([run]).read_text(encoding="utf-8"))
    assert len(found.scripts) == 1
    assert "<script>alert(3)</script> in train-000000.tar" in found.text


def test_the_report_shows_both_sides(run: Path) -> None:
    text = report([run]).read_text(encoding="utf-8")
    section = text[text.index('<section id="doubtful-pairs">') :]
    cards = re.findall(r'<div class="query-row">(.*?)</p></div>', section[: section.index("</section>")])
    assert [re.findall(r"<b>([^<]*)</b> <code>([^<]*)</code>", card)[0] for card in cards] == [
        (f"{number}.0 %", pair.key) for number, pair in enumerate(read_pairs(run)[:SHOWN])
    ]
    for card in cards:
        assert re.findall(r"<figcaption>(\w+)<small>(\w+)", card) == [("depth", "student"), ("rgb", "teacher")]
    Page(text)


@pytest.mark.parametrize("damage", ["not json", '{"key": "a"}', "[" * 100_000])
def test_a_damaged_list_is_said(run: Path, damage: str) -> None:
    (run / PAIRS).write_text(damage)
    for command in (check_pairs, lambda folder: report([folder])):
        with pytest.raises(UserError, match=r"pairs\.jsonl: not a list of pairs"):
            command(run)


def test_a_report_does_not_download(make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*arguments: object, **keywords: object) -> None:
        raise AssertionError("a request")

    config = make_config(teacher=TEACHER, shards="https://localhost:9/data")
    run = listed(config, tmp_path / "listed", pairs_of())
    monkeypatch.setattr("pipeline.report.doubtful_pairs.OpenDataset.of_source", fetch)
    words = Page(report([run]).read_text(encoding="utf-8")).text
    assert f"No pictures, since the data is remote. wcord check --pairs {run} downloads it." in words


def test_what_training_writes_is_what_check_reads(
    make_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["data.pairs=noisy", "train.steps=4", "train.warmup=1"]
    assert call("train", make_config("run", TEACHER), *own) == 0
    capsys.readouterr()
    assert call("check", "--pairs", tmp_path / "run") == 0
    assert "of 96 training pairs (" in capsys.readouterr().out
