from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import charts
from pipeline.errors import UserError
from pipeline.kept import count_confusion, write_arrays
from pipeline.report import page, report
from pipeline.report_classes import difference_interval, gains, transport_plan
from pipeline.report_gallery import true_pair_rank
from pipeline.report_results import interval
from pipeline.report_samples import Confusion, Embeddings, read_embeddings, spread
from pipeline.report_words import warnings
from pipeline.runs import read_run

CLASSES = ["ball", "cone", "cube", "<script>alert(1)</script>", 'ring" onload="x']
CONFIG: dict[str, Any] = {
    "run": "runs/depth",
    "seed": 0,
    "data": {"shards": "data/tabletop", "labels": 0.1, "batch_size": 64},
    "teacher": {"run": "runs/rgb_teacher"},
    "student": {"modality": {"name": "depth"}, "encoder": {"name": "cnn5", "width": 32}},
    "losses": {"cross_entropy": {"weight": 1.0}, "wcord": {"weight": 0.8}},
    "train": {"steps": 600, "warmup": 100},
    "evaluation": {"split": "test"},
}
RESULTS = {
    "samples/test": 300,
    "parameters/student": 213450,
    "parameters/teacher": 563210,
    "student/top1": 0.7133333333333334,
    "student/balanced": 0.70123,
    "student/probe": 0.7366666666666667,
    "student/knn": 0.69,
    "teacher/top1": 0.8433333333333334,
    "teacher/probe": 0.85,
    "random/probe": 0.41,
    "random/knn": 0.37,
    "baseline/labels_only/student/top1": 0.54,
    "baseline/kd/student/top1": 0.69,
    "retrieval/student_to_teacher/R@1": 0.34,
    "retrieval/student_to_teacher/R@10": 0.81,
    "retrieval/student_to_teacher/median_rank": 3.0,
    "retrieval/teacher_to_student/R@1": 0.31,
    "random/retrieval/student_to_teacher/R@1": 0.0033,
}


def make_run(folder: Path, samples: int = 60, top1: float = 0.7133333333333334, seed: int = 0, side: int = 32) -> Path:
    """A run folder as `train` and `evaluate` leave it, with a cut-short last log line and hostile names."""
    rng = np.random.default_rng(seed)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "student").mkdir()
    (folder / "config.yaml").write_text("# wcord 0.1.0\n" + yaml.safe_dump({**CONFIG, "seed": seed}, sort_keys=False))
    lines = [json.dumps(_log_row(step, rng)) for step in range(20, 601, 20)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 620, "loss": 0.']))
    (folder / "results.json").write_text(json.dumps({**RESULTS, "student/top1": top1}))

    label = np.arange(samples) % len(CLASSES)
    centres = rng.normal(size=(len(CLASSES), 16))
    own = centres[label] + 0.35 * rng.normal(size=(samples, 16))
    teacher, student = (own + noise * rng.normal(size=own.shape) for noise in (0.1, 0.35))
    wrong = rng.random(samples) > top1
    np.savez_compressed(
        folder / "evaluation" / "embeddings.npz",
        keys=np.array([f"clip{i:03d}<b>" for i in range(samples)]),
        label=label,
        classes=np.array(CLASSES),
        prediction=np.where(wrong, rng.integers(0, len(CLASSES), samples), label),
        student=_unit(student),
        teacher=_unit(teacher),
    )
    predicted = np.where(wrong, (label + 1) % len(CLASSES), label)
    write_arrays(
        folder / "evaluation" / "confusion.npz",
        {
            "classes": np.array(CLASSES),
            "student": count_confusion(label, predicted, len(CLASSES)),
            "teacher": count_confusion(label, label, len(CLASSES)),
            "baseline/kd": count_confusion(label, (label + 1) % len(CLASSES), len(CLASSES)),
        },
    )
    rows = np.arange(0, samples, 2)
    pictures = np.stack([_shape(int(label[row]), side, rng) for row in rows])
    np.savez_compressed(
        folder / "evaluation" / "thumbnails.npz",
        rows=rows,
        student=np.repeat(pictures.mean(3, keepdims=True).astype(np.uint8), 3, axis=3),
        teacher=pictures,
        student_modality=np.array("depth"),
        teacher_modality=np.array("rgb"),
    )
    depth = {"text": "0.50 to 1.25 m", "colours": ["#30123b", "#7a0403"], "sound": ""}
    sound = {"text": "1.0 s <b>", "colours": [], "sound": base64.b64encode(b"ID3 tune").decode()}
    captions = {"student": [[depth]] * len(rows), "teacher": [[sound]] * len(rows)}
    (folder / "evaluation" / "captions.json").write_text(json.dumps(captions))
    return folder


def _log_row(step: int, rng: np.random.Generator) -> dict[str, float]:
    fall = math.exp(-step / 200)
    row = {
        "epoch": step / 100,
        "loss": 0.4 + 2.2 * fall + 0.05 * rng.normal(),
        "loss/cross_entropy": 0.2 + 1.4 * fall + 0.04 * rng.normal(),
        "loss/wcord": 0.2 + 0.8 * fall + 0.03 * rng.normal(),
        "lr": 1e-3 * min(1, step / 100) * (1 + math.cos(math.pi * step / 600)) / 2,
        "grad_norm": 2 + 30 * fall**8 + 0.2 * rng.normal(),
        "samples_per_second": 850 + 30 * rng.normal(),
        "data_wait": abs(0.02 + 0.01 * rng.normal()),
        "wcord/global/similarity_gap": 0.6 * (1 - fall),
        "wcord/global/effective_rank": 4 + 20 * (1 - fall),
        "student/std": 0.8,
    }
    return {"step": step, **row, **({"held_out/top1": 0.72 * (1 - fall)} if step % 100 == 0 else {})}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def _shape(kind: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """A picture of one of five shapes on a grey table."""
    y, x = np.mgrid[:side, :side] / side - 0.5 - rng.uniform(-0.12, 0.12, (2, 1, 1))
    r = np.hypot(x, y)
    inside = [r < 0.3, (y > -0.3) & (np.abs(x) < 0.25 * (y + 0.3)) & (y < 0.3), np.maximum(abs(x), abs(y)) < 0.25]
    inside += [np.abs(x) + np.abs(y) < 0.32, (r < 0.32) & (r > 0.18)]
    colour = rng.integers(60, 255, 3) * (0.75 + 0.5 * (0.5 - y))[..., None]
    noise = rng.normal(0, 4, (side, side, 3))
    return np.clip(np.where(inside[kind][..., None], colour, 120 + 60 * y[..., None]) + noise, 0, 255).astype(np.uint8)


class Page(HTMLParser):
    """Checks that tags close in order; gathers what would load, the scripts, and the text."""

    VOID = frozenset(("meta", "img", "br", "wbr", "link", "input", "hr"))

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.numbers: dict[str, float] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "depth_<i>wcord")


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    path = report([run])
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def test_page_is_balanced_and_loads_nothing(text: str) -> None:
    found = Page(text)
    for tag, name, value in found.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert value.startswith(("data:image/", "data:audio/mpeg;base64,", "#")), (tag, name, value[:80])
        assert not name.startswith("on"), (tag, name)
    assert not re.search(r"https?://|url\(|@import|<link", text)
    ids = {value for tag, name, value in found.attributes if name == "id" and tag == "section"}
    assert {value[1:] for _, name, value in found.attributes if name == "href"} == ids
    assert len(text) < 5e6


def test_hostile_names_are_text(text: str) -> None:
    found = Page(text)
    assert len(found.scripts) == 1
    assert "alert(1)" not in found.scripts[0]
    for name in (*CLASSES, "clip000<b>", "depth_<i>wcord"):
        assert name in found.text
    assert not {"b>", "i>"} & {value for _, _, value in found.attributes}


def test_every_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    bad = "\"'><img src=x onerror=alert(2)>`<b>`"
    folder = make_run(tmp_path / "run", samples=12)
    config = {
        "data": {"shards": bad},
        "teacher": {"run": bad},
        "student": {"modality": bad, "encoder": {"name": bad}},
        "losses": {bad: {"weight": bad}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with (folder / "metrics.jsonl").open("w") as log:
        log.write(json.dumps({"step": 20, bad: 1.0, f"loss/{bad}": math.inf, f"{bad}/effective_rank": 1.0}) + "\n")
    results = {"student/top1": 0.5, f"baseline/{bad}/student/top1": 0.4, bad: 1.0, f"x{bad}": None}
    (folder / "results.json").write_text(json.dumps(results))
    path = folder / "evaluation" / "thumbnails.npz"
    np.savez(path, **{**dict(np.load(path)), "student_modality": np.array(bad), "teacher_modality": np.array(bad)})
    found = Page(report([folder]).read_text(encoding="utf-8"))
    sources = [value for _, name, value in found.attributes if name == "src"]
    assert all(value.startswith(("data:image/", "data:audio/mpeg;base64,")) for value in sources)
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    assert found.text.count("alert(2)") > 15


def test_only_the_pages_own_script_may_run(text: str) -> None:
    script = Page(text).scripts[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(v for tag, name, v in Page(text).attributes if tag == "meta" and v.startswith("default-src"))
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_numbers_equal_the_results(text: str, run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    cells = re.findall(r'<td><code>([^<]*)</code></td><td class="number"><data value="([^"]*)">([^<]*)</data>', text)
    assert {html.unescape(key): float(value) for key, value, _ in cells} == results
    assert all(float(shown) == pytest.approx(float(value), rel=1e-5) for _, value, shown in cells)


def test_summary_says_what_was_trained_and_how_good_it_is(text: str) -> None:
    words = " ".join(Page(text).text.split())
    assert "A depth network (cnn5, 0.21 M parameters) learnt from a frozen teacher, the rgb network of" in words
    assert "cross_entropy × 1.0 and wcord × 0.8" in words
    assert "labels seen for 10 % of the samples" in words
    assert "right class for 71.3 % of 300 test samples (± 5.1 points" in words
    assert "its teacher 84.3 %, kd 69.0 %, labels_only 54.0 % and always naming the commonest class 20.0 %" in words
    # (71.33 - 69) / (84.33 - 69)
    assert "closes 15 % of the gap between the best baseline and the teacher" in words
    assert "Shown the depth side of a sample, it finds the rgb side first in 34.0 % of cases" in words
    assert "and among the first ten in 81.0 % (untrained: first in 0.3 %)" in words
    assert "600 steps (6 epochs)" in words
    assert "the last line (31) is cut short" in words


def test_every_logged_value_has_a_curve(text: str, run: Path) -> None:
    for key in {key for row in read_run(run).log.values() for key in row} - {"step", "epoch"}:
        assert f"<code>{key}</code>" in text.replace("<wbr>", "")
        assert re.search(f'aria-label="{re.escape(key)}( \\(log scale\\))?"', text)


def test_gallery_marks_classes_and_pairs(text: str, run: Path) -> None:
    e = read_embeddings(run)
    assert e is not None
    assert e.teacher is not None
    rows = np.arange(0, 60, 2)
    strips = re.findall(r'<div class="query-row">(.*?)</p></div>', text, re.S)
    assert len(strips) == 12
    for strip in strips:
        row = int(re.search(r"clip(\d+)&lt;b&gt;</code>", strip)[1])  # type: ignore[index]
        similarity = e.teacher @ e.student[row]
        nearest = rows[np.argsort(-similarity[rows])][:5]
        kinds = re.findall(r'<figure class="((?:right|wrong)(?: pair)?)" title="clip(\d+)', strip)
        expected = [
            (("right" if e.label[i] == e.label[row] else "wrong") + (" pair" if i == row else ""), f"{i:03d}")
            for i in nearest
        ]
        assert kinds == expected
        rank = int((similarity > similarity[row]).sum()) + 1
        assert f"rank {rank} of 60, {'among' if row in nearest else 'not among'} these" in strip


def test_collapse_does_not_look_like_a_perfect_rank() -> None:
    assert true_pair_rank(np.array([0.1, 0.9, 0.5]), 2) == 2
    assert true_pair_rank(np.ones(101), 7) == 51


def test_collapse_is_warned_of(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert warnings(read_run(folder), read_embeddings(folder)) == []
    path = folder / "evaluation" / "embeddings.npz"
    data = dict(np.load(path))
    data["student"] = _unit(np.ones((60, 16)) + 0.01 * np.random.default_rng(0).normal(size=(60, 16)))
    np.savez(path, **data)
    e = read_embeddings(folder)
    assert e is not None
    assert spread(e.student) < 0.01
    row = {"step": 640, "wcord/global/similarity_gap": 0.001, "loss": math.nan}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    results = RESULTS | {"student/top1": 0.2, "student/probe": 0.4, "retrieval/student_to_teacher/R@1": 0.003}
    (folder / "results.json").write_text(json.dumps(results))
    found = " ".join(warnings(read_run(folder), e))
    assert "it has collapsed" in found
    assert "commonest class would be as good (20.0\N{NO-BREAK SPACE}%)" in found
    assert "student/probe is no better" in found
    assert "retrieval/student_to_teacher/R@1 is no better" in found
    assert "student/knn is no better" not in found
    assert "similarity gap 0.001" in found
    assert "loss is not finite at 1" in found
    Page(page([read_run(folder)]))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.yaml", "The run cannot be repeated"),
        ("metrics.jsonl", "No curves"),
        ("results.json", "nothing has been measured. Next: wcord evaluate"),
        ("evaluation/embeddings.npz", "No map: evaluation/embeddings.npz is missing"),
        ("evaluation/confusion.npz", "No confusion matrix: evaluation/confusion.npz is missing"),
        ("evaluation/thumbnails.npz", "No gallery: evaluation/thumbnails.npz is missing"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, missing: str, words: str) -> None:
    folder = make_run(tmp_path / "run", samples=12)
    (folder / missing).unlink()
    assert words in Page(report([folder]).read_text(encoding="utf-8")).text


def unfinished(folder: Path, **files: str) -> str:
    """The words of the report of a folder that holds only these files, named by what they are."""
    folder.mkdir()
    names = {"config": "config.yaml", "log": "metrics.jsonl", "nonfinite": "nonfinite_rank0.json"}
    for what, text in files.items():
        (folder / names[what]).write_text(text)
    return " ".join(Page(report([folder]).read_text(encoding="utf-8")).text.split())


LOG = "".join(json.dumps({"step": step, "loss": 2.0 - step / 600}) + "\n" for step in range(20, 301, 20))


def test_an_interrupted_run_says_how_far_it_came_and_how_to_go_on(tmp_path: Path) -> None:
    words = unfinished(tmp_path / "run", config=yaml.safe_dump(CONFIG), log=LOG)
    assert "the last logged step is 300 of 600 (50%)" in words
    assert f"It left no checkpoint. Next: wcord train {tmp_path}/run/config.yaml --overwrite" in words
    (tmp_path / "run" / "checkpoints" / "step_00000250").mkdir(parents=True)
    words = " ".join(Page(report([tmp_path / "run"]).read_text(encoding="utf-8")).text.split())
    assert f"newest checkpoint is of step 250. Next: wcord train {tmp_path}/run/config.yaml --resume" in words
    assert "last 1.5" in words  # the curve of the loss
    (tmp_path / "run" / "student").mkdir()
    words = " ".join(Page(report([tmp_path / "run"]).read_text(encoding="utf-8")).text.split())
    assert f"has finished, but nothing has been measured. Next: wcord evaluate {tmp_path}/run" in words


def test_a_run_that_was_not_finite_says_where_and_what_to_do(tmp_path: Path) -> None:
    told = json.dumps({"step": 310, "grad_norm": "nan", "losses": {"wcord": "inf"}, "keys": ["a<b>"]})
    words = unfinished(tmp_path / "a", config=yaml.safe_dump(CONFIG), log=LOG, nonfinite=told)
    assert "the last of them step 310 (losses: wcord inf; gradient norm nan)" in words
    assert "Lower train.learning_rate or the weight of that loss" in words
    words = unfinished(tmp_path / "b", log=LOG, nonfinite='{"step": 3')
    assert "nonfinite_rank0.json, which says when, is damaged" in words
    words = unfinished(tmp_path / "c", log=LOG + '{"step": 320, "loss": NaN, "lr": 0.1}\n')
    assert "At its last step these were not finite: loss." in words


def test_an_empty_folder_and_a_damaged_log_have_a_report(tmp_path: Path) -> None:
    words = unfinished(tmp_path / "empty")
    assert "No step was logged: the training has not begun" in words
    assert "Next: wcord train CONFIG." in words
    words = unfinished(
        tmp_path / "damaged", config="seed: 0", log=LOG.replace('{"step": 40', "\x00\x01#", 1) + '{"step"'
    )
    assert "the last line (16) is cut short" in words
    assert "1 line(s), the first is 2, are not JSON objects" in words
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="not a run folder"):
        report([tmp_path / "photos"])


def test_faults_are_counted_and_listed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", samples=12)
    listed = {
        "shard": "train-0.tar",
        "place": 3,
        "key": "k<3>",
        "cause": "depth.png",
        "message": "no <PNG>",
        "unpaired": False,
    }
    (folder / "skipped.jsonl").write_text(json.dumps(listed) + "\n")
    results = RESULTS | {"skipped/train/depth.png": 7, "skipped/test/label": 2}
    (folder / "results.json").write_text(json.dumps(results))
    text = report([folder]).read_text(encoding="utf-8")
    for row in (("depth.png", 7.0, 0.0), ("label", 0.0, 2.0)):
        cells = "".join(f'<td class="number"><data value="{n}">{n:.0f}</data></td>' for n in row[1:])
        assert f"<tr><td>{row[0]}</td>{cells}</tr>" in text
    assert "<td>train-0.tar</td><td>k&lt;3&gt;</td><td>depth.png</td><td>no &lt;PNG&gt;</td>" in text
    (folder / "skipped.jsonl").write_text("nonsense\n")
    assert "not a list of skipped samples" in report([folder]).read_text(encoding="utf-8")


def test_cost_is_told_of_every_run_and_network(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", samples=12)
    more = {"train/seconds": 3725.0, "train/peak_memory_mib": 512.4, "multiply_adds/student": 12.5e6}
    more["latency_ms/student/cpu"] = 1.234
    (folder / "results.json").write_text(json.dumps(RESULTS | more))
    words = Page(report([folder]).read_text(encoding="utf-8")).text
    assert "1 h 2 min512 MiBnot told" in words
    assert "student0.21 M12.50 M1.23 ms (cpu)" in words
    assert "teacher0.56 M--" in words


def test_class_by_class_against_the_best_baseline(tmp_path: Path) -> None:
    confusion = {"student": np.array([[9, 1], [6, 4]]), "baseline/kd": np.array([[1, 9], [5, 5]])}
    found = gains(Confusion(["cat", "dog"], confusion | {"baseline/worse": np.array([[0, 10], [10, 0]])}))
    rows = re.findall(r"<tr><td>(cat|dog)</td>(.*?)</tr>", found)
    values = {name: [float(v) for v in re.findall(r'value="([^"]*)"', row)] for name, row in rows}
    # samples, student, baseline, gain, low, high
    assert values["cat"][:4] == pytest.approx([10, 90, 10, 80])
    assert "better" in rows[0][1]
    assert "within noise" in rows[1][1]
    # Newcombe 1998, table II, example (a): 56/70 - 48/80.
    assert difference_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_the_plan_of_true_pairs_is_a_diagonal() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 32))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    e = Embeddings(np.array([f"k{i}" for i in range(200)]), np.arange(200) % 4, list("abcd"), None, x, x)
    mass = [
        float(re.search(r"<b>([\d.]+) %", transport_plan(one, {"wcord": {"epsilon": 0.05}}))[1])  # type: ignore[index]
        for one in (e, replace(e, teacher=x[::-1].copy()))
    ]
    assert mass[0] > 95
    assert mass[1] < 10


def test_captions_stand_as_scale_sound_and_text(text: str, tmp_path: Path) -> None:
    assert text.count('linear-gradient(90deg,#30123b,#7a0403)"></i><small>0.50 to 1.25 m</small>') == 12
    assert text.count('<audio preload="none" src="data:audio/mpeg;base64,SUQzIHR1bmU="></audio>') == 60
    folder = make_run(tmp_path / "run", samples=12)
    path = folder / "evaluation" / "thumbnails.npz"
    np.savez(path, **{**dict(np.load(path)), "teacher_modality": np.array("text")})
    assert "1.0 s &lt;b&gt;</blockquote>" in report([folder]).read_text(encoding="utf-8")
    captions = folder / "evaluation" / "captions.json"
    captions.write_text(captions.read_text().replace("#30123b", "red;x:url(y)"))
    with pytest.raises(UserError, match="not captions"):
        report([folder])


def test_a_supervised_run_has_no_teacher(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "teacher", samples=12)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "teacher": None}))
    (folder / "results.json").write_text(json.dumps({"student/top1": 0.5, "samples/test": 12}))
    path = folder / "evaluation" / "embeddings.npz"
    data = dict(np.load(path))
    del data["teacher"]
    np.savez(path, **data)
    words = Page(report([folder]).read_text(encoding="utf-8")).text
    assert "was trained without a teacher" in words
    assert "No gallery: without a teacher" in words
    assert "its teacher" not in words


def test_a_run_without_classes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", samples=12)
    path = folder / "evaluation" / "embeddings.npz"
    unknown = np.full(12, -1)
    np.savez(path, **{**dict(np.load(path)), "label": unknown, "prediction": unknown, "classes": np.array([])})
    write_arrays(folder / "evaluation" / "confusion.npz", {"classes": np.array([])})
    words = Page(report([folder]).read_text(encoding="utf-8")).text
    assert "No confusion matrix: no sample has both" in words
    assert "commonest class" not in words
    assert "✓ " not in words.replace("✓ and ✗", "")


def test_other_runs_stand_beside_the_first(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a" / "kd", samples=12), make_run(tmp_path / "b" / "kd", samples=12, top1=0.25)
    path = report([first, second], tmp_path / "out" / "both.html")
    text = path.read_text(encoding="utf-8")
    Page(text)
    assert text.count('<g class="bar main">') == text.count('<g class="bar other">') == 7  # top-1 twice
    assert '<th class="number">a/kd</th><th class="number">b/kd</th>' in text
    assert '<data value="0.25">' in text
    assert text.count('class="s1"') > 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": np.full(12, 9)}, "label 9 has no name"),
        ({"student": np.zeros((3, 4), np.float16)}, r"'student' is float16 \[3, 4\]"),
        ({"keys": np.array(["a", None], dtype=object)}, "not a readable npz"),
    ],
)
def test_files_of_another_format_are_refused(tmp_path: Path, change: dict[str, np.ndarray], words: str) -> None:
    folder = make_run(tmp_path / "run", samples=12)
    path = folder / "evaluation" / "embeddings.npz"
    np.savez(path, **{**dict(np.load(path)), **change})
    with pytest.raises(UserError, match=words):
        report([folder])
    with pytest.raises(UserError, match="no such run folder"):
        report([tmp_path / "nowhere"])


def test_lines_leave_gaps_and_show_the_range_of_many_values() -> None:
    gap = charts.lines([([0, 1, 2, 3], [1.0, math.nan, 2.0, 3.0])], "loss")
    assert re.search(r'class="line" d="M[^M]*M[^M]*"', gap)
    assert charts.lines([([0, 1], [math.nan, math.inf])], "loss") == ""
    values = [1.0] * 1000
    values[500] = 9.0
    many = charts.lines([(range(1000), values)], "loss")
    # The one high value reaches the top of the band, though the mean hides it.
    band = re.search(r'class="band" d="M([^"]*)Z"', many)
    line = re.search(r'class="line" d="M([^"]*)"', many)
    assert band
    assert line
    highest = [min(float(p.split()[1]) for p in re.split("[ML]", path[1])) for path in (band, line)]
    assert highest[0] < highest[1]
    assert "log scale" in charts.lines([([0, 1, 2, 3], [1e5, 1.0, 1.0, 1.0])], "loss")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.12, 0.17), (-3, 12000), (1e-9, 3e-9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert 3 <= len(found) <= 7
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)
    step = found[1] - found[0]
    assert float(f"{step:.1e}"[0]) in (1, 2, 5)
