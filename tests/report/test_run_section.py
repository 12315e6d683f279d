"""What the report says of runs that went wrong, of faults in the data and of costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from reports import CONFIG, RESULTS, Page, make_run

from pipeline.common.errors import UserError
from pipeline.report.page import report
from pipeline.runs.compare import compare


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
    assert f"There is no checkpoint. Next: start again with wcord train {tmp_path}/run/config.yaml --overwrite" in words
    (tmp_path / "run" / "checkpoints" / "step_00000250").mkdir(parents=True)
    words = " ".join(Page(report([tmp_path / "run"]).read_text(encoding="utf-8")).text.split())
    assert (
        f"newest checkpoint is from step 250. Next: resume with wcord train {tmp_path}/run/config.yaml --resume"
        in words
    )
    assert "last 1.5" in words  # the curve of the loss
    (tmp_path / "run" / "student").mkdir()
    words = " ".join(Page(report([tmp_path / "run"]).read_text(encoding="utf-8")).text.split())
    assert f"has finished, but the run has not been evaluated. Next: wcord evaluate {tmp_path}/run" in words


def test_a_run_of_distill_is_resumed_in_its_program(tmp_path: Path) -> None:
    made = yaml.safe_dump(CONFIG | {"student": {"modality": {"name": "python"}}})
    words = unfinished(tmp_path / "run", config=made, log=LOG)
    assert "start again with overwrite=True in the program that called wcord.distill" in words
    (tmp_path / "run" / "checkpoints" / "step_00000250").mkdir(parents=True)
    words = " ".join(Page(report([tmp_path / "run"]).read_text(encoding="utf-8")).text.split())
    assert "resume with resume=True in the program that called wcord.distill" in words
    assert "wcord train" not in words.partition("Settings")[0]
    with pytest.raises(UserError, match=r"has results\. Pass `validation` and `metrics` to wcord\.distill"):
        compare([tmp_path / "run"])


def test_a_run_that_was_not_finite_says_where_and_what_to_do(tmp_path: Path) -> None:
    told = json.dumps({"step": 310, "grad_norm": "nan", "losses": {"wcord": "inf"}, "keys": ["a<b>"]})
    words = unfinished(tmp_path / "a", config=yaml.safe_dump(CONFIG), log=LOG, nonfinite=told)
    assert "the last one step 310 (losses: wcord inf; gradient norm nan)" in words
    assert "Lower train.learning_rate or the weight of that loss" in words
    words = unfinished(tmp_path / "b", log=LOG, nonfinite='{"step": 3')
    assert "nonfinite_rank0.json, which contains the details, is damaged" in words
    words = unfinished(tmp_path / "c", log=LOG + '{"step": 320, "loss": NaN, "lr": 0.1}\n')
    assert "Not finite at the last step: loss." in words


def test_an_empty_folder_and_a_damaged_log_have_a_report(tmp_path: Path) -> None:
    words = unfinished(tmp_path / "empty")
    assert "No step was logged: training has not started" in words
    assert "Next: wcord train CONFIG." in words
    words = unfinished(
        tmp_path / "damaged", config="seed: 0", log=LOG.replace('{"step": 40', "\x00\x01#", 1) + '{"step"'
    )
    assert "the last line (16) is truncated" in words
    assert "skipped 1 line(s) that are not JSON objects with a step; the first is 2" in words
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
    results = RESULTS | {
        "skipped/train/depth.png": 7,
        "skipped/test/label": 2,
        "train/nonfinite_steps": 3,
        "unpaired/train": 0.125,
    }
    (folder / "results.json").write_text(json.dumps(results))
    text = report([folder]).read_text(encoding="utf-8")
    for row in (("depth.png", 7.0, 0.0), ("label", 0.0, 2.0)):
        cells = "".join(f'<td class="number"><data value="{n}">{n:.0f}</data></td>' for n in row[1:])
        assert f"<tr><td>{row[0]}</td>{cells}</tr>" in text
    assert "<td>train-0.tar</td><td>k&lt;3&gt;</td><td>depth.png</td><td>no &lt;PNG&gt;</td>" in text
    assert "3 training steps were skipped because their gradient was not finite." in text
    assert (
        "12.5% of the training samples had no teacher view and were used only for losses that need no teacher." in text
    )
    (folder / "skipped.jsonl").write_text("nonsense\n")
    assert "not a list of skipped samples" in report([folder]).read_text(encoding="utf-8")


def test_a_mixture_says_what_was_drawn_of_each_data_set(tmp_path: Path) -> None:
    log = json.dumps({"step": 20, "loss": 1.0, "drawn/mine": 300.0, "drawn/laion": 980.0}) + "\n"
    data = CONFIG["data"] | {"shards": [{"path": "data/mine", "weight": 0.3}, {"path": "laion/{0..9}.tar"}]}
    words = unfinished(tmp_path / "run", config=yaml.safe_dump(CONFIG | {"data": data}), log=log)
    assert "on data/mine and laion/{0..9}.tar" in words
    assert "datasetsamplessharemine30023.4%laion98076.6%" in words


def test_cost_is_told_of_every_run_and_network(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", samples=12)
    more = {"train/seconds": 3725.0, "train/peak_memory_mib": 512.4, "multiply_adds/student": 12.5e6}
    more["latency_ms/student/cpu"] = 1.234
    (folder / "results.json").write_text(json.dumps(RESULTS | more))
    words = Page(report([folder]).read_text(encoding="utf-8")).text
    assert "1 h 2 min512 MiBnot available" in words
    assert "41.2 (4.2 %)" in words
    assert "student0.21 M12.50 M1.23 ms (cpu)" in words
    assert "teacher0.56 M--" in words
