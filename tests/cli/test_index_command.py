"""`wcord index` and the commands after it, as people call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import call
from foreign_shards import captioned, img2dataset, shard_writer

from pipeline.data.manifest import load_dataset


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_writer(tmp_path / "shards", map(captioned, range(40)), maxcount=16)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("shards")
def test_it_says_what_there_is(capsys: Any) -> None:
    options = ("--split", "test=0.2", "--label", "json:category", "--group", "json:clip", "--hash", "--name", "mine")
    assert call("index", "shards/{00000..00002}.tar", "--out", "data/mine", *options) == 0
    out = capsys.readouterr().out
    dataset = load_dataset("data/mine")
    train, test = dataset.samples("train"), dataset.samples("test")
    assert (dataset.name, train + test) == ("mine", 40)
    assert f"train: {train} samples in 3 shards" in out
    assert f"test: {test} samples in" in out
    assert "members: json 40, label.txt 40, rgb.jpg 40, text.txt 40" in out
    assert "json:category: 3 classes" in out
    assert "The index is in data/mine. To train on it, set data.shards=data/mine." in out
    assert call("check", "data/mine") == 0
    out = capsys.readouterr().out
    assert "no faults" in out
    assert "split: test 0.2, by hash of json:clip\n" in out
    assert "  rgb.jpg (stored as jpg): in 40 of 40 samples" in out
    assert "  label.txt (stored as cls): in 40 of 40 samples" in out
    assert "  json: in 40 of 40 samples" in out


def test_the_help_of_check_names_all_that_it_takes_and_prints(capsys: Any) -> None:
    assert call("check", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("packed or indexed dataset", "WebDataset shards", "summary", "exit code is 1 if there are faults"):
        assert words in text


@pytest.mark.usefixtures("shards")
def test_fields_are_named(tmp_path: Path, capsys: Any) -> None:
    img2dataset(tmp_path / "more", [3])
    assert call("index", "shards", "more", "--out", "index", "--field", "caption=txt", "--field", "rgb=jpg,png") == 0
    assert "members: caption.txt 43, json 43, label.txt 40, rgb.jpg 43" in capsys.readouterr().out


@pytest.mark.usefixtures("shards")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shards", "--out", "index", "--split", "test"), "--split test: must be NAME=VALUE, such as"),
        (("shards", "--out", "index", "--field", "rgb="), "--field rgb=: must be NAME=VALUE"),
        (("nowhere", "--out", "index"), "nowhere: not found"),
        (("pipe:cat x", "--out", "index"), "commands are never run"),
        (("shards", "shards/00000.tar", "--out", "index"), "00000.tar occurs twice"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[str, ...], message: str, capsys: Any) -> None:
    assert call("index", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("shards")
def test_check_takes_a_pattern(capsys: Any) -> None:
    assert call("check", "shards/*.tar") == 0
    assert "40 samples in 3 shards" in capsys.readouterr().out
