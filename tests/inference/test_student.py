"""A finished student on files, folders and shards; embeddings into files and indices; search across modalities."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call
from shapes_dataset import members

import pipeline
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.source import open_split
from pipeline.evaluate.evaluate_run import embed as embed_split
from pipeline.models.network import load_network


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Six depth maps, two of them in a sub-folder, and the photos that belong to them."""
    for index in range(6):
        for member, name in (("depth.png", "maps"), ("rgb.jpg", "photos")):
            folder = tmp_path / name / ("more" if index > 3 else "")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}.{member.partition('.')[2]}").write_bytes(members(index)[member])
    return tmp_path


def test_folders_files_shards_and_data_sets_say_the_same(runs: Path, files: Path, shapes: Path) -> None:
    student = pipeline.load(runs / "student")
    keys, own = student.embed(files / "maps")
    assert keys == [
        str(files / "maps" / name) for name in ("0.png", "1.png", "2.png", "3.png", "more/4.png", "more/5.png")
    ]
    (files / "linked").mkdir()
    (files / "linked" / "elsewhere").symlink_to(files / "maps", target_is_directory=True)
    np.testing.assert_array_equal(student.embed(files / "linked")[1], own)
    np.testing.assert_array_equal(student.embed([files / "maps" / "2.png"])[1], student.embed(keys[2])[1])
    shard_keys, shard = student.embed(shapes / "train-000000.tar")
    assert shard_keys[:6] == [f"s{i:05d}" for i in range(6)]
    np.testing.assert_allclose(own, shard[:6], atol=1e-5)
    whole_keys, whole = student.embed(shapes)
    assert len(whole_keys) == 96 + 30
    np.testing.assert_allclose(whole[:6], own, atol=1e-5)
    (files / "alone").mkdir()
    shutil.copy(shapes / "train-000000.tar", files / "alone" / "x.tar")  # without dataset.json
    np.testing.assert_allclose(student.embed(files / "alone" / "x.tar")[1], shard, atol=1e-5)


def test_predictions_are_those_of_the_evaluation(runs: Path, shapes: Path) -> None:
    student = pipeline.load(runs / "student" / "student")
    found = student.predict(sorted(shapes.glob("test-*.tar")))
    assert all(abs(sum(p.probabilities.values()) - 1) < 1e-5 for p in found)
    assert all(p.label == max(p.probabilities, key=p.probabilities.__getitem__) for p in found)
    source = open_split(shapes, "test", "label")
    config = configs.load(runs / "student" / "config.yaml")
    wanted = embed_split({"student": load_network(runs / "student" / "student")}, source, config)
    assert [p.key for p in found] == wanted.keys
    assert [student.classes.index(p.label) for p in found] == wanted.prediction["student"].tolist()  # type: ignore[union-attr]


def test_bad_files_are_named_and_skipped(runs: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "maps" / "9.png").write_bytes(members(0)["rgb.jpg"])
    with pytest.raises(UserError, match=r"9.png: a JPEG with 3 channels"):
        pipeline.load(runs / "student").predict(files / "maps")
    assert call("predict", runs / "student", files / "maps", "--out", files / "labels.csv") == 1
    said = capsys.readouterr()
    assert "6 predictions in" in said.out
    assert said.err.startswith(f"skipped: {files / 'maps' / '9.png'}: a JPEG with 3 channels")
    rows = list(csv.DictReader((files / "labels.csv").open()))
    assert [Path(row["key"]).name for row in rows] == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"]
    assert all(row["label"] in ("disc", "square", "cross") for row in rows)
    assert all(float(row[row["label"]]) == float(row["probability"]) for row in rows)


def test_embeddings_are_written_with_their_keys(runs: Path, files: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    keys, wanted = pipeline.load(runs / "student").embed(files / "maps")
    for name in ("x.npy", "x.parquet"):
        assert call("embed", runs / "student", files / "maps", "--out", files / "made" / name) == 0
    np.testing.assert_array_equal(np.load(files / "made" / "x.npy", allow_pickle=False), wanted)
    assert json.loads((files / "made" / "x.keys.json").read_text()) == keys
    table = parquet.read_table(files / "made" / "x.parquet").to_pydict()
    assert table["key"] == keys
    np.testing.assert_array_equal(np.array(table["embedding"], np.float32), wanted)
    assert call("predict", runs / "student", files / "maps", "--out", files / "x.jsonl") == 0
    assert [json.loads(line)["key"] for line in (files / "x.jsonl").read_text().splitlines()] == keys


@pytest.mark.parametrize("by", ["teacher", "student"])
def test_search_crosses_the_modalities(
    by: str, runs: Path, files: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the evaluation ranks them: a saved run gives the same neighbours as its measured retrieval."""
    pytest.importorskip("faiss")
    shard = shapes / "test-000000.tar"
    assert call("embed", runs / "student", shard, "--by", by, "--index", files / "index") == 0
    kept = np.load(runs / "student" / "evaluation" / "embeddings.npz", allow_pickle=False)
    own = [i for i, key in enumerate(kept["keys"]) if int(key[1:]) < 96 + 20]
    row = own[3]
    member, name, role = ("depth.png", "depth", "student") if by == "teacher" else ("rgb.jpg", "rgb", "teacher")
    query = files / f"query.{member.partition('.')[2]}"
    query.write_bytes(members(int(kept["keys"][row][1:]))[member])
    capsys.readouterr()
    assert call("search", files / "index", f"--{name}={query}", "--count", 5) == 0
    joined = capsys.readouterr().out
    assert call("search", files / "index", f"--{name}", query, "--count", 5) == 0
    listed = capsys.readouterr().out
    assert joined == listed
    hits = [line.split() for line in listed.splitlines()]
    cosine = kept[role][row].astype(np.float32) @ kept[by][own].astype(np.float32).T
    order = np.argsort(-cosine)[:5]
    np.testing.assert_allclose([float(hit[0]) for hit in hits], cosine[order], atol=2e-3)
    assert hits[0][1] in {kept["keys"][own[i]] for i in order[:2]}  # float16 may swap the first two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "STUDENT", "nowhere.png"], "nowhere.png: no such file or folder"),
        (["predict", "STUDENT", "FILES/photos"], "no depth files found (.npy, .npz, .png, .tif, .tiff)"),
        (["predict", "STUDENT", "FILES/maps", "--out", "x.txt"], "must end with .csv or .jsonl"),
        (["predict", "nowhere", "FILES/maps"], "not found. Use the run folder of a completed training"),
        (["embed", "STUDENT", "FILES/maps"], "nothing to write: pass --out"),
        (["embed", "STUDENT", "FILES/maps", "--out", "x.csv"], "must end with .npy or .parquet"),
        (
            ["embed", "TEACHER", "FILES/photos", "--by", "teacher", "--out", "x.npy"],
            "has no teacher to embed with",
        ),
        (["search", "nowhere", "--depth", "x.png"], "no index found"),
        (["search", "FILES"], "pass exactly one query: --MODALITY FILE"),
        (["search", "FILES/index", "--sound", "x.wav"], "no network of"),
        (["search", "FILES/index", "--depth", "FILES/photos/0.jpg"], "0.jpg:"),
    ],
)
def test_wrong_input_is_one_message(
    arguments: list[str], message: str, runs: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "FILES/index" in arguments:
        assert call("embed", runs / "student", files / "maps", "--index", files / "index") == 0
    names: dict[str, Any] = {"STUDENT": runs / "student", "TEACHER": runs / "teacher"}
    assert call(*[names.get(a, a.replace("FILES", str(files))) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_run_that_nobody_evaluated_says_so(runs: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "student", files / "run")
    (files / "run" / "student" / "space.safetensors").unlink()
    assert call("embed", files / "run", files / "maps", "--index", files / "index") == 2
    assert "space of student and teacher is missing; run `wcord evaluate" in capsys.readouterr().err
