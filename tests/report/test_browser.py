"""The report in a real browser: no complaint, no request, hover and sort work, at any width, also of many samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from reports import CLASSES, make_run

from pipeline.evaluate.write_artifacts import count_confusion, write_arrays
from pipeline.report.page import report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    folders = [make_run(runs / "wcord_s0", side=72), make_run(runs / "kd_s1", top1=0.5, seed=1)]
    return report(folders)


@pytest.fixture(autouse=True)
def no_complaint(browser: Browser) -> Iterator[None]:
    browser.errors.clear()
    yield
    assert browser.errors == []


def test_it_asks_for_nothing_but_itself(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.requests() == [page.resolve().as_uri()]


@pytest.mark.parametrize("width", [390, 768, 1200])
def test_no_width_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, 844)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.documentElement.scrollHeight") > 3000


def test_pointing_at_a_mark_shows_its_sample(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert not browser.run("document.querySelector('#sample figure').checkVisibility()")
    kept = np.load(page.parent / "evaluation" / "embeddings.npz")
    rows = np.load(page.parent / "evaluation" / "thumbnails.npz")["rows"]
    for number in (3, 27):
        browser.point_at(f"svg.map circle[data-sample='{number}']")
        words = browser.run("[...document.querySelectorAll('#sample output span')].map(part => part.textContent)")
        row = rows[number]
        assert words[:3] == [str(kept["keys"][row]), CLASSES[kept["label"][row]], "student"]
        assert words[-1] == "0.50 to 1.25 m"
        places = browser.run("[...document.querySelectorAll('#sample img')].map(i => i.style.objectPosition)")
        assert places == [f"{-72 * (number % 20)}px {-72 * (number // 20)}px"] * 2
        sizes = browser.run("[...document.querySelectorAll('#sample img')].map(i => [i.naturalWidth, i.clientWidth])")
        assert sizes == [[20 * 72, 72]] * 2
        assert browser.run("document.querySelector('svg.map .pair').getAttribute('d')").count("L") == 1


def test_a_class_can_be_looked_at_alone(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.point_at("button[data-group='2']", click=True)
    assert browser.run("[...document.querySelectorAll('svg.map g:not(.dim)')].map(g => g.dataset.group)") == ["2"]
    browser.point_at("button[data-group='2']", click=True)
    assert browser.run("document.querySelectorAll('svg.map g.dim').length") == 0


def test_a_click_on_a_head_sorts_numbers_as_numbers(browser: Browser, page: Path) -> None:
    browser.open(page)
    column = "[...document.querySelectorAll('#all-numbers tbody tr')].map(r => r.cells[1].querySelector('data')?.value)"
    results = json.loads((page.parent / "results.json").read_text())
    browser.point_at("#all-numbers th:nth-child(2) button", click=True)
    numbers = [float(value) for value in browser.run(column) if value is not None]
    assert numbers == sorted(map(float, results.values()))
    browser.point_at("#all-numbers th:nth-child(2) button", click=True)
    assert [float(value) for value in browser.run(column) if value is not None] == numbers[::-1]
    browser.point_at("#all-numbers th:nth-child(1) button", click=True)
    names = browser.run("[...document.querySelectorAll('#all-numbers tbody tr')].map(r => r.cells[0].textContent)")
    assert names[0].startswith("baseline/")
    assert set(names) == set(results)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_the_button(browser: Browser, page: Path, scheme: str) -> None:
    browser.open(page, scheme=scheme)

    def brightness() -> int:
        colour = browser.run("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    assert (brightness() > 600) == (scheme == "light")
    browser.point_at("#theme", click=True)
    assert brightness() > 600
    browser.point_at("#theme", click=True)
    assert brightness() < 150


def test_a_sound_plays(browser: Browser, tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    from modalities import Audio
    from pipeline.evaluate.write_artifacts import _plain

    folder = make_run(tmp_path / "run", samples=12)
    path = folder / "evaluation" / "captions.json"
    tune = np.sin(np.arange(8000) * 0.2).astype(np.float32)
    captions: dict[str, Any] = json.loads(path.read_text())
    captions["student"] = [[_plain(Audio().caption(tune))]] * len(captions["student"])
    path.write_text(json.dumps(captions))
    browser.open(report([folder]))
    browser.point_at(".query .play", click=True)
    wait = "new Promise(done => setInterval(() => !document.querySelector('audio').paused && done(1), 20))"
    assert browser.run(f"Promise.race([{wait}, new Promise(done => setTimeout(() => done(0), 5000))])") == 1
    assert browser.run("document.querySelector('audio').duration") == pytest.approx(0.5, abs=0.1)


def test_a_run_that_crashed_has_a_page(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 20, "loss": 1.0}\n{"step": 40, "lo')
    browser.open(report([tmp_path]), 390)
    assert "the last logged step is 20" in browser.run("document.querySelector('.notes').textContent")
    assert browser.run("document.documentElement.scrollWidth") <= 390


def test_a_hundred_thousand_samples_open_at_once(browser: Browser, tmp_path: Path) -> None:
    small = report([make_run(tmp_path / "small")], tmp_path / "small.html")
    folder, n, classes = make_run(tmp_path / "run", side=72), 100_000, 1000
    rng = np.random.default_rng(0)
    label = np.arange(n) % classes
    prediction = np.where(rng.random(n) < 0.3, rng.integers(0, classes, n), label)
    sides = {}
    for side in ("student", "teacher"):
        x = rng.normal(size=(classes, 128)).astype(np.float32)[label] + rng.normal(size=(n, 128)).astype(np.float32)
        sides[side] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    names = np.array([f"class {i}" for i in range(classes)])
    samples = {"keys": np.array([f"sample-{i:06d}" for i in range(n)]), "label": label, "prediction": prediction}
    write_arrays(folder / "evaluation" / "embeddings.npz", {**samples, "classes": names, **sides})
    counts = count_confusion(label, prediction, classes)
    write_arrays(
        folder / "evaluation" / "confusion.npz", {"classes": names, "student": counts, "baseline/kd": counts.T.copy()}
    )
    pictures = rng.integers(0, 255, (300, 72, 72, 3), dtype=np.uint8)  # noise: nothing compresses worse
    rows = np.linspace(0, n - 1, 300).astype(int)
    arrays = {"rows": rows, "student": pictures, "teacher": pictures, "student_modality": np.array("depth")}
    write_arrays(folder / "evaluation" / "thumbnails.npz", {**arrays, "teacher_modality": np.array("rgb")})
    (folder / "evaluation" / "captions.json").unlink()
    with (folder / "metrics.jsonl").open("w") as log:
        for step in range(20_000):
            values = {f"loss/{i}": float(v) for i, v in enumerate(rng.random(10))}
            log.write(json.dumps({"step": step, **values}) + "\n")
    written = report([folder])
    assert written.stat().st_size < 15e6
    seconds, base = (min(browser.open(page) for _ in range(3)) for page in (written, small))
    print(f"{written.stat().st_size / 1e6:.1f} MB, open in {seconds:.2f} s; a small report in {base:.2f} s")
    assert seconds < max(2.0, 4 * base)  # a slow or busy machine opens no page faster
