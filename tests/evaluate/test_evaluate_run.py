"""Evaluation of real, tiny runs: all that is promised is measured and kept; what is missing is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from shapes_dataset import members, write_dataset

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.evaluate import evaluate, evaluate_run
from pipeline.report import report
from pipeline.runs.compare import compare
from pipeline.train import train


@pytest.fixture(scope="module")
def trained(config_writer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_config = config_writer(tmp_path_factory.mktemp("trained"))
    teacher = train(
        configs.load(make_config("teacher"), ["student.modality=rgb", "train.steps=60", "train.learning_rate=0.02"])
    )
    losses = "  cross_entropy: {}\n  kd: {}\n  wcord: {weight: 0.05, dim: 8, queue: 32}"
    path = make_config("student", f"teacher: {{run: {teacher}}}", losses)
    return train(configs.load(path, ["train.steps=90", "train.learning_rate=0.02"]))


@pytest.fixture
def student(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run for one test to work in."""
    return Path(shutil.copytree(trained, tmp_path / "student"))


def test_everything_promised_is_measured_and_kept(student: Path) -> None:
    results = evaluate(student)
    assert json.loads((student / "results.json").read_text()) == results
    for role in ("student", "teacher"):
        assert results[f"{role}/top1"] > 0.5  # chance is 1/3
        assert results[f"{role}/probe"] > 0.5
    for key in (
        "random/probe",
        "random/knn",
        "student/balanced",
        "parameters/student",
        "parameters/teacher",
        "train/seconds",
    ):
        assert key in results
    for direction in ("student_to_teacher", "teacher_to_student"):
        ours, chance = results[f"retrieval/{direction}/median_rank"], (results["samples/test"] + 1) / 2
        assert ours < chance
        assert f"random/retrieval/{direction}/R@10" in results

    kept = np.load(student / "evaluation" / "embeddings.npz", allow_pickle=False)
    assert len(kept["keys"]) == len(kept["label"]) == len(kept["prediction"]) == 30
    assert (kept["prediction"] == kept["label"]).mean() == pytest.approx(results["student/top1"])
    for role in ("student", "teacher"):
        np.testing.assert_allclose(np.linalg.norm(kept[role].astype(np.float32), axis=1), 1, atol=2e-3)
    thumbnails = np.load(student / "evaluation" / "thumbnails.npz", allow_pickle=False)
    assert thumbnails["student"].shape == thumbnails["teacher"].shape == (30, 72, 72, 3)
    assert str(thumbnails["teacher_modality"]) == "rgb"
    assert (thumbnails["rows"] == np.arange(30)).all()
    captions = json.loads((student / "evaluation" / "captions.json").read_text())
    assert len(captions["student"]) == len(captions["teacher"]) == 30
    assert captions["student"][0][0]["text"].startswith("0.")
    confusion = np.load(student / "evaluation" / "confusion.npz", allow_pickle=False)
    for role in ("student", "teacher"):
        assert np.trace(confusion[role]) / confusion[role].sum() == pytest.approx(results[f"{role}/top1"])
    assert results["multiply_adds/teacher"] > results["parameters/teacher"]
    assert 0 < results["latency_ms/student/cpu"] < 1000


def test_another_split_is_measured_beside_the_results(student: Path) -> None:
    measured = evaluate(student)
    (student / "evaluation" / "embeddings.npz").unlink()
    other = evaluate(student, split="train")
    assert other["samples/test"] == 96
    assert json.loads((student / "results_train.json").read_text()) == other
    assert json.loads((student / "results.json").read_text()) == measured
    assert not (student / "evaluation" / "embeddings.npz").exists()
    with pytest.raises(UserError, match=r"split `val` has no samples; splits of this dataset: train \(96 samples\)"):
        evaluate(student, split="val")


def test_pictures_stand_beside_their_own_keys(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where several workers hand in batches in turn, out of the shards' order."""
    from modalities import RGB
    from pipeline.data.stream import EvalStream
    from pipeline.evaluate import evaluate_run as module
    from pipeline.evaluate.write_artifacts import thumbnail

    monkeypatch.setattr(
        module, "EvalStream", lambda source, views, batch, most=None: EvalStream(source, views, batch=4)
    )
    config = student / "config.yaml"
    config.write_text(config.read_text().replace("workers: 0", "workers: 2"))
    evaluate(student)
    kept = np.load(student / "evaluation" / "embeddings.npz", allow_pickle=False)
    thumbnails = np.load(student / "evaluation" / "thumbnails.npz", allow_pickle=False)
    keys = kept["keys"][thumbnails["rows"]]
    assert list(keys) != sorted(keys)
    for key, picture, label in zip(keys, thumbnails["teacher"], kept["label"], strict=True):
        index = int(key[1:])
        assert label == index % 3
        own = thumbnail(RGB().picture(RGB().decode(members(index)["rgb.jpg"], {})))
        np.testing.assert_array_equal(picture, own)


def test_unlabelled_pairs_can_be_distilled_and_measured(make_config: Any, tmp_path: Path) -> None:
    teacher = train(configs.load(make_config("teacher"), ["student.modality=rgb"]))
    folder = write_dataset(tmp_path / "unlabelled", {"train": [40], "test": [12]})
    dataset = json.loads((folder / "dataset.json").read_text()) | {"classes": {}}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    path = make_config("student", f"teacher: {{run: {teacher}}}", "  wcord: {dim: 8}", shards=folder)
    results = evaluate(train(configs.load(path)))
    assert not any(name.startswith(("student/", "teacher/")) for name in results)
    assert list(results)[2] == "retrieval/student_to_teacher/R@1"  # after the numbers of samples
    for way in ("student_to_teacher", "teacher_to_student"):
        for name in ("R@1", "R@5", "R@10", "median_rank"):
            for prefix in ("", "random/"):
                low, value, high = (results[f"{prefix}retrieval/{way}/{name}{end}"] for end in ("_low", "", "_high"))
                assert low <= value <= high
    assert results["chance/retrieval/R@5"] == 5 / 12
    run = path.parent / "student"
    html = report([run]).read_text()
    for absent in (
        "unknown",
        "Confusion matrix",
        "top-1",
        "No confusion",
        "Class by class",
        "colours are classes",
        "by class",
    ):
        assert absent not in html, absent
    for present in ("median rank student to teacher", "chance: 8.3", "untrained", "<details><summary>Optimisation"):
        assert present in html, present
    assert html.index('id="gallery"') < html.index('id="curves"')
    table = compare([run]).markdown()
    assert "median rank teacher to student" in table
    assert "| untrained student |" in table
    assert "| chance | 8.3 (1) |" in table


def test_the_untrained_network_never_has_pretrained_weights(tmp_path: Path) -> None:
    asked: list[object] = []

    class Asked:
        spec: ClassVar = {"modality": {"name": "rgb"}, "encoder": {"name": "transformers", "weights": "random"}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_run, "build_network", lambda *about: asked.append(about))
        evaluate_run._untrained(Asked(), 0)  # type: ignore[arg-type]
    assert asked == [({"name": "rgb"}, {"name": "transformers", "weights": "random"}, None, "student")]


def test_evaluation_is_repeatable_and_names_its_baselines(student: Path, make_config: Any) -> None:
    first, again = evaluate(student), evaluate(student)
    assert {k: v for k, v in first.items() if "latency" not in k} == {k: again[k] for k in first if "latency" not in k}
    path = make_config("second")
    run = train(configs.load(path, [f"evaluation.baselines=[{student}]"]))
    assert evaluate(run)["baseline/student/student/top1"] == first["student/top1"]
    theirs = np.load(student / "evaluation" / "confusion.npz")["student"]
    assert (np.load(run / "evaluation" / "confusion.npz")["baseline/student"] == theirs).all()


def test_a_run_without_teacher_has_no_retrieval(make_config: Any) -> None:
    results = evaluate(train(configs.load(make_config())))
    assert "student/top1" in results
    assert not any("retrieval" in key or "teacher" in key for key in results)


def test_what_is_missing_is_named(make_config: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder"):
        evaluate(tmp_path)
    run = train(configs.load(make_config(), ["evaluation.baselines=[runs/none]"]))
    with pytest.raises(UserError, match=r"runs/none/results.json not found; run `wcord evaluate runs/none` first"):
        evaluate(run)
    for file in (run / "student").iterdir():
        file.unlink()
    run_without = train(configs.load(make_config("other")))
    (run_without / "student" / "network.json").unlink()
    with pytest.raises(UserError, match=r"network.json: not found. Use the run folder of a completed training"):
        evaluate(run_without)


def test_layers_are_probed_on_other_data_sets_and_on_its_own(student: Path, shapes: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", {"train": [60], "test": [30]})
    dataset = json.loads((other / "dataset.json").read_text())
    classes = {"parity": dataset["classes"]["parity"]}  # another task than the student's
    (other / "dataset.json").write_text(json.dumps(dataset | {"name": "others", "classes": classes}))
    results = evaluate(student, probe=[shapes, other])
    assert json.loads((student / "results.json").read_text()) == results
    for layer in ("pooled", "map0", "map1", "map2", "map3", "map4"):
        assert 0 <= results[f"transfer/others/{layer}/probe"] <= 1
    # The last map's mean is what the network calls pooled, and its own data are those it was measured on.
    for score in ("probe", "knn"):
        own = results[f"student/{score}"]
        assert results[f"transfer/shapes/pooled/{score}"] == results[f"transfer/shapes/map4/{score}"] == own
    assert results["transfer/shapes/pooled/probe"] > results["transfer/others/pooled/probe"]  # parity is noise
    assert not any(key.startswith("transfer") for key in evaluate(student))

    (other / "dataset.json").write_text(json.dumps(dataset | {"classes": {}}))
    with pytest.raises(UserError, match="other: the dataset has no classes, which probes require"):
        evaluate(student, probe=[other])


def test_probes_can_learn_from_the_first_samples_alone(student: Path) -> None:
    config = student / "config.yaml"
    config.write_text(config.read_text().replace("samples: null", "samples: 40"))
    results = evaluate(student)
    assert results["samples/train"] == 40
    assert results["samples/test"] == 30
