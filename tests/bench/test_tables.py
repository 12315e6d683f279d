"""The table of a bench in its three forms, from results that are made up."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from pipeline.bench.tables import Entry, as_csv, entries, latex, markdown, plot
from pipeline.runs.compare import Comparison, Group
from pipeline.runs.reader import Run

TOP1 = {"labels": (0.60, 0.62), "kd": (0.65, 0.67), "at_100%": (0.50, 0.70)}


def table(factor: float = 1.0) -> Comparison:
    groups = [
        Group(name, tuple(_run(name, seed, factor * value) for seed, value in enumerate(values)))
        for name, values in TOP1.items()
    ]
    return Comparison(tuple(groups), ("student/top1",), groups[0], ())


def _run(name: str, seed: int, top1: float) -> Run:
    cost = {"train/seconds_per_step": 0.04 + seed, "train/peak_memory_mib": 500.0}
    teacher = {} if name == "labels" else {"teacher/top1": 0.9}
    return Run(Path(name), {"seed": seed}, {}, {"student/top1": top1} | teacher | cost)


@pytest.fixture
def found() -> list[Entry]:
    published = {"big_to_small": {"teacher": 91.0, "kd": 70.126}}
    return entries({"big_to_small": table(), "other": table(0.5)}, "student/top1", published)


def test_markdown_marks_what_is_beyond_the_noise(found: list[Entry]) -> None:
    text = markdown(found)
    results = text.split("\n\n")[0].splitlines()
    assert results == [
        "| top-1 % | big_to_small | other |",
        "| --- | ---: | ---: |",
        "| teacher | 90.00 (91.00) | 90.00 |",
        "| labels | 61.00 ± 1.41 | 30.50 ± 0.71 |",
        "| kd | 66.00 ± 1.41 ▲ (70.13) | 33.00 ± 0.71 ▲ |",
        "| at_100% | 60.00 ± 14.14 | 30.00 ± 7.07 |",
    ]
    assert "| kd | +5.00 ± 0.00 [+5.00, +5.00]: better | +2.50 ± 0.00 [+2.50, +2.50]: better |" in text
    # The differences are -10 and +8: t(.975, 1) = 12.7062 times 9 is 114.36.
    assert "| at_100% | -1.00 ± 12.73 [-115.36, +113.36]: within noise |" in text
    assert "| kd | 540 | 500 | 540 | 500 |" in text  # the median over the seeds
    assert "published" not in markdown([e for e in found if e.pair == "other"])


def test_many_pairs_go_down_the_page() -> None:
    text = markdown(entries({f"pair {i}": table() for i in range(5)}, "student/top1"))
    assert text.splitlines()[0] == "| top-1 % | teacher | labels | kd | at_100% |"
    assert "| pair 4 | 90.00 | 61.00 ± 1.41 | 66.00 ± 1.41 ▲ | 60.00 ± 14.14 |" in text


def test_latex_is_escaped(found: list[Entry]) -> None:
    text = latex(found)
    assert r"top-1 \% & big\_to\_small & other \\" in text
    assert r"kd & 66.00 $\pm$ 1.41 $^{\uparrow}$ (70.13) & 33.00 $\pm$ 0.71 $^{\uparrow}$ \\" in text
    assert r"at\_100\% & 60.00" in text


def test_csv_has_all_numbers_in_full(found: list[Entry]) -> None:
    rows = {(row["pair"], row["method"]): row for row in csv.DictReader(io.StringIO(as_csv(found)))}
    assert len(rows) == 8
    kd = rows["big_to_small", "kd"]
    assert float(kd["mean"]) == pytest.approx(0.66)
    assert float(kd["difference"]) == pytest.approx(0.05)
    assert (kd["verdict"], kd["published"], kd["n"], kd["peak memory MiB"]) == ("better", "70.126", "2", "500.0")
    assert rows["other", "labels"]["difference"] == rows["other", "teacher"]["std"] == ""


def test_the_plot_is_a_picture(found: list[Entry]) -> None:
    assert plot(found).startswith(b"\x89PNG")
