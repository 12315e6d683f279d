from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from reports import CLASSES, CONFIG, RESULTS, Page, make_run, unit

from pipeline.common.errors import UserError
from pipeline.evaluate.write_artifacts import write_arrays
from pipeline.report import svg as charts
from pipeline.report.gallery import true_pair_rank
from pipeline.report.page import page, report
from pipeline.report.sentences import _past_its_best, warnings
from pipeline.runs.artifacts import read_embeddings, spread
from pipeline.runs.reader import Run, read_run


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


def test_the_evaluated_split_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "config.yaml").open("a") as config:
        config.write("evaluation: {split: 'val<b>'}\n")
    words = " ".join(Page(report([run]).read_text(encoding="utf-8")).text.split())
    assert "71.3 % of 300 val<b> samples correctly" in words
    assert "Split val<b>." in words


def test_summary_says_what_was_trained_and_how_good_it_is(text: str) -> None:
    words = " ".join(Page(text).text.split())
    assert "A depth network (cnn5, 0.21 M parameters) was trained from a frozen teacher, the rgb network of" in words
    assert "cross_entropy × 1.0 and wcord × 0.8" in words
    assert "labels for 10 % of the samples" in words
    assert "It classifies 71.3 % of 300 test samples correctly (± 5.1 points" in words
    assert "teacher 84.3 %, kd 69.0 %, labels_only 54.0 % and always predicting the most frequent class 20.0 %" in words
    # (71.33 - 69) / (84.33 - 69)
    assert "closes 15 % of the gap between the best baseline and the teacher" in words
    assert "For a depth query, the matching rgb sample is ranked first in 34.0 % of cases" in words
    assert "and in the top ten in 81.0 % (untrained network: first in 0.3 %)" in words
    assert "600 steps (6 epochs)" in words
    assert "the last line (31) is truncated" in words


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
    data["student"] = unit(np.ones((60, 16)) + 0.01 * np.random.default_rng(0).normal(size=(60, 16)))
    np.savez(path, **data)
    e = read_embeddings(folder)
    assert e is not None
    assert spread(e.student) < 0.01
    row = {"step": 640, "wcord/global/similarity_gap": 0.001, "loss": math.nan}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    results = RESULTS | {"student/top1": 0.2, "student/probe": 0.4, "retrieval/student_to_teacher/R@1": 0.003}
    (folder / "results.json").write_text(json.dumps(results))
    found = " ".join(warnings(read_run(folder), e))
    assert "the student has collapsed" in found
    assert "most frequent class would be at least as good (20.0\N{NO-BREAK SPACE}%)" in found
    assert "student/probe is not better" in found
    assert "retrieval/student_to_teacher/R@1 is not better" in found
    assert "student/knn is not better" not in found
    assert "similarity gap 0.001" in found
    assert "loss is not finite at 1" in found
    Page(page([read_run(folder)]))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.yaml", "The run cannot be reproduced"),
        ("metrics.jsonl", "No curves"),
        ("results.json", "the run has not been evaluated. Next: wcord evaluate"),
        ("evaluation/embeddings.npz", "No map: evaluation/embeddings.npz is missing"),
        ("evaluation/confusion.npz", "No confusion matrix: evaluation/confusion.npz is missing"),
        ("evaluation/thumbnails.npz", "No gallery: evaluation/thumbnails.npz is missing"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, missing: str, words: str) -> None:
    folder = make_run(tmp_path / "run", samples=12)
    (folder / missing).unlink()
    assert words in Page(report([folder]).read_text(encoding="utf-8")).text


def test_captions_stand_as_scale_sound_and_text(text: str, tmp_path: Path) -> None:
    assert text.count('linear-gradient(90deg,#30123b,#7a0403)"></i><small>0.50 to 1.25 m</small>') == 12
    assert text.count('<audio preload="none" src="data:audio/mpeg;base64,SUQzIHR1bmU="></audio>') == 60
    folder = make_run(tmp_path / "run", samples=12)
    path = folder / "evaluation" / "thumbnails.npz"
    np.savez(path, **{**dict(np.load(path)), "teacher_modality": np.array("text")})
    assert "1.0 s &lt;b&gt;</blockquote>" in report([folder]).read_text(encoding="utf-8")
    captions = folder / "evaluation" / "captions.json"
    captions.write_text(captions.read_text().replace("#30123b", "red;x:url(y)"))
    with pytest.raises(UserError, match="does not contain captions"):
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
    assert "No gallery: retrieval requires a teacher" in words
    assert "; teacher " not in words


def test_a_run_without_classes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", samples=12)
    path = folder / "evaluation" / "embeddings.npz"
    unknown = np.full(12, -1)
    np.savez(path, **{**dict(np.load(path)), "label": unknown, "prediction": unknown, "classes": np.array([])})
    write_arrays(folder / "evaluation" / "confusion.npz", {"classes": np.array([])})
    words = Page(report([folder]).read_text(encoding="utf-8")).text
    assert "onfusion matrix" not in words
    assert "unknown" not in words
    assert "most frequent class" not in words
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
        ({"student": np.zeros((3, 4), np.float16)}, r"'student' has the wrong type or shape: float16 \[3, 4\]"),
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


@pytest.mark.parametrize(
    ("metric", "values", "said"),
    [
        ("top1", [0.5, 0.8, 0.7], "Top-1 on held-out samples was best at step 2 (80.0 %) and ended at 70.0 %"),
        ("R@10", [0.5, 0.8, 0.79], ""),
        ("loss", [3.0, 1.0, 2.0], "The loss on held-out samples was best at step 2 (1) and ended at 2"),
        ("loss", [3.0, 2.0, float("nan")], ""),
    ],
)
def test_a_monitored_metric_that_got_worse_is_a_warning(metric: str, values: list[float], said: str) -> None:
    log = {step: {f"held_out/{metric}": value} for step, value in enumerate(values, 1)}
    found = [" ".join(text.split()) for text in _past_its_best(Run(Path("run"), log=log))]
    assert found == ([f"{said}: it may be overfitting."] if said else [])
