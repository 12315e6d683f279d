"""Data sets on the hub, through huggingface_hub and a stand-in of the hub, are packed like files in a folder."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from command_line import call
from hub import COMMIT, CONVERTED, DatasetHub, hub, use_endpoint
from huggingface_hub import constants
from sources import samples_in
from store import Store
from test_huggingface import row, table

from pipeline.common.errors import UserError
from pipeline.data import hub as hub_module
from pipeline.data.manifest import load_dataset
from pipeline.packing.pack import pack
from pipeline.packing.recipes import huggingface

NAME = "hub:me/set"
FIELDS = {"rgb": "image", "audio": "sound"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub_module.reach_hub.cache_clear()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    """An empty data set `me/set`."""
    with hub(tmp_path / "set", monkeypatch, DatasetHub) as store:
        yield store


def write(folder: Path, *numbers: int, name: str = "train-00000-of-00001.parquet") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table([row(number) for number in numbers]), folder / name, row_group_size=2)


def members(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}


def labels_of(source: str) -> list[int]:
    """The numbers of the rows of the only split that a plan reads, modulo 3."""
    return [sample.labels["fine"] for sample in huggingface.plan(source, FIELDS).samples]


def test_it_is_packed_like_the_same_files_in_a_folder(running: type[Store], tmp_path: Path) -> None:
    for name, numbers in (("train-00000-of-00002", (0, 1, 2)), ("train-00001-of-00002", (3,)), ("validation-0", (4,))):
        write(running.folder / "data", *numbers, name=f"{name}.parquet")
    (running.folder / "set.py").write_text("raise SystemExit('code of the data set runs')")
    (running.folder / "README.md").write_text("A data set.")
    out = tmp_path / "packed"
    fields = [f"--field={field}={column}" for field, column in FIELDS.items()]
    assert call("pack", "huggingface", NAME, out, "--workers", 1, *fields) == 0
    pack(huggingface.plan(running.folder, FIELDS), tmp_path / "local", workers=1)
    assert list(load_dataset(out).splits) == ["train", "val"]
    for split in ("train", "val"):
        ours, local = (samples_in(folder, split) for folder in (out, tmp_path / "local"))
        assert list(map(members, ours)) == list(map(members, local))
    dataset = load_dataset(out)
    assert (dataset.name, dataset.source) == ("set", f"{NAME}@{COMMIT}")
    assert dataset.split_rule == "given by the hub"
    assert not running.served["set.py"] + running.served["README.md"]


def test_packing_resumes_without_another_download(running: type[Store], tmp_path: Path) -> None:
    write(running.folder, *range(6))
    out, file = tmp_path / "packed", "train-00000-of-00001.parquet"
    whole = pack(huggingface.plan(NAME, FIELDS), out)
    asked = running.served[file]
    (out / "dataset.json").unlink()
    shard = out / whole.splits["train"][0].file
    before = shard.read_bytes()
    shard.unlink()
    others = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert pack(huggingface.plan(f"{NAME}@{COMMIT}", FIELDS), out) == whole
    assert shard.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert running.served[file] == asked


def test_parts_on_machines_of_their_own_fit_together(running: type[Store], tmp_path: Path, monkeypatch: Any) -> None:
    """Their downloads have other times."""
    write(running.folder, *range(6))
    options = ("--workers", 1, "--field=rgb=image")
    assert call("pack", "huggingface", NAME, tmp_path / "packed", "--part", "1/2", *options) == 0
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    assert call("pack", "huggingface", NAME, tmp_path / "packed", "--part", "2/2", *options) == 0
    assert sum(load_dataset(tmp_path / "packed").samples(split) for split in ("train", "test")) == 6


def test_licence_of_the_hub(running: type[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    write(running.folder, 0, 1)
    assert huggingface.plan(NAME, FIELDS).licence == "not stated"
    monkeypatch.setattr(DatasetHub, "metadata", {"license": "cc-by-4.0"})
    assert huggingface.plan(NAME, FIELDS).licence == "cc-by-4.0"
    assert huggingface.plan(NAME, FIELDS, licence="mine").licence == "mine"
    monkeypatch.setattr(DatasetHub, "metadata", {"license": ["mit", "other"]})
    assert huggingface.plan(NAME, FIELDS).licence == "mit, other"


def test_configurations(running: type[Store]) -> None:
    write(running.folder / "first", 0)
    write(running.folder / "second" / "train", 1, 2)
    with pytest.raises(
        UserError, match=r"hub:me/set: has several configurations: first, second\. Choose one, such as "
    ):
        huggingface.plan(NAME)
    assert labels_of(f"{NAME}/first") == [0]
    assert labels_of(f"{NAME}/second") == [1, 2]  # the other one lies in the same folder of the cache
    assert huggingface.plan(f"{NAME}/second", FIELDS).source == f"{NAME}@{COMMIT}/second"
    assert labels_of(f"{NAME}@{COMMIT}/second") == [1, 2]
    with pytest.raises(UserError, match=r"no configuration `third`; there are: first, second"):
        huggingface.plan(f"{NAME}/third")


def test_the_conversion_of_the_hub(running: type[Store]) -> None:
    (running.folder / "photos.csv").write_text("a,b")
    write(running.folder.with_name("converted") / "default" / "train", 0, 1, name="0000.parquet")
    plan = huggingface.plan(NAME, FIELDS)
    assert plan.source == f"{NAME}@{CONVERTED}/default"
    assert labels_of(NAME) == labels_of(plan.source) == [0, 1]
    with pytest.raises(UserError, match="has no Parquet files"):
        huggingface.plan(f"{NAME}@main")


def test_configurations_that_are_no_folders_are_those_of_the_conversion(
    running: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(running.folder, 0, name="en-train.parquet")
    write(running.folder, 1, name="fr-train.parquet")
    monkeypatch.setattr(DatasetHub, "metadata", {"configs": [{"config_name": "en"}, {"config_name": "fr"}]})
    for number, name in enumerate(("en", "fr")):
        write(running.folder.with_name("converted") / name / "train", number, name="0000.parquet")
    with pytest.raises(UserError, match="several configurations: en, fr"):
        huggingface.plan(NAME)
    assert labels_of(f"{NAME}/fr") == [1]


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("file", "cure"),
    [
        ("data/00000.tar", r"data\.shards=hf://datasets/me/set/data/\*\.tar"),
        ("00000.tar", r"data\.shards=hf://datasets/me/set/\*\.tar"),
        ("cat/0.jpg", "hf download me/set --repo-type dataset --local-dir FOLDER.*wcord pack folders"),
    ],
)
def test_other_layouts(running: type[Store], file: str, cure: str, partial: bool) -> None:
    (running.folder / file).parent.mkdir(exist_ok=True)
    (running.folder / file).write_bytes(b"")
    if partial:
        write(running.folder.with_name("converted") / "default" / "partial-train", 0)
    problem = "converted only the first part" if partial else "has no Parquet files"
    with pytest.raises(UserError, match=f"{NAME}: .*{problem}.*{cure}"):
        huggingface.plan(NAME)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:set", "expected hub:OWNER/NAME"),
        ("hub:me/set/../x", "there is no configuration|expected hub:OWNER/NAME"),
        ("hub:me/none", "hub:me/none: the Hub has no dataset me/none that you may read"),
        ("hub:me/set@old", "me/set on the Hub has no revision old"),
    ],
)
def test_names(running: type[Store], name: str, message: str) -> None:
    write(running.folder, 0)
    with pytest.raises(UserError, match=message):
        huggingface.plan(name)


def test_pyarrow_is_asked_for_before_the_download(running: type[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.ipc", None)
    with pytest.raises(UserError, match=re.escape("pip install 'wcord[pack]'")):
        huggingface.plan(NAME)
    assert not running.served


def test_offline_is_said(running: type[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hub:me/set: HF_HUB_OFFLINE is set"):
        huggingface.plan(NAME)


@pytest.mark.parametrize("answers", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_hub_that_cannot_be_reached_is_one_line_within_5_s(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It accepts connections and never answers, or it refuses them."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen()
        use_endpoint(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        start = time.monotonic()
        assert call("pack", "huggingface", NAME, tmp_path / "packed") == 2
        assert time.monotonic() - start < 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: hub:me/set: the Hugging Face Hub at http://127.0.0.1:")


def test_a_damaged_file_is_named(running: type[Store]) -> None:
    write(running.folder, 0, 1)
    path = running.folder / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: cannot be read"):
        huggingface.plan(NAME)
