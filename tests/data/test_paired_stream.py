"""The stream by itself: the page's program, and stages of a user's own."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from foreign_shards import img2dataset
from shapes_dataset import members, write_dataset

import wcord
from modalities import Depth
from pipeline.common.errors import UserError
from pipeline.data.source import Policy

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "mixing-and-streaming.md"


def even(samples):  # type: ignore[no-untyped-def] - as a user writes it
    return (sample for sample in samples if int(sample["__key__"][1:]) % 2 == 0)


def darkened(samples):  # type: ignore[no-untyped-def]
    return ({**sample, "rgb.jpg": members(0)["rgb.jpg"]} for sample in samples)


def failing(samples):  # type: ignore[no-untyped-def]
    return [1 / 0 for _ in samples]


def doubling(samples):  # type: ignore[no-untyped-def]
    return [sample for sample in samples for _ in range(2)]


def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(import torch\n.*?)```", PAGE.read_text(), re.S)
    assert len(code.splitlines()) <= 11
    img2dataset(tmp_path / "shards", [20, 20, 20, 20])
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 20


def test_views_are_paired_and_named(shapes: Path) -> None:
    views = {"a": "rgb", "b": Depth(near=0.5, far=2.0), "c": {"name": "depth", "near": 0.5}}
    batch = next(wcord.stream(str(shapes), views, batch_size=4, size=16))
    assert [batch[name].shape for name in "abc"] == [(4, 3, 16, 16), batch["b"].shape, batch["c"].shape]
    assert batch["label"].tolist() == [int(key[1:]) % 3 for key in batch["key"]]


def test_it_resumes_at_any_batch(shapes: Path) -> None:
    whole = list(islice(wcord.stream(str(shapes), {"a": "rgb"}, batch_size=8, size=8), 20))
    rest = list(islice(wcord.stream(str(shapes), {"a": "rgb"}, batch_size=8, size=8, start=13), 7))
    for one, other in zip(whole[13:], rest, strict=True):
        assert one["key"] == other["key"]
        assert torch.equal(one["a"], other["a"])


def test_a_stage_leaves_samples_out_and_they_are_told(shapes: Path) -> None:
    batches = islice(wcord.stream(str(shapes), {"a": "rgb"}, batch_size=8, size=8, stages=[f"{__name__}:even"]), 12)
    skipped = []
    for batch in batches:
        assert len(batch["key"]) == 8
        assert all(int(key[1:]) % 2 == 0 for key in batch["key"])
        skipped += batch["skipped"]
    assert {one.cause for one in skipped} == {f"dropped by {__name__}:even"}
    assert {int(one.key[1:]) % 2 for one in skipped} == {1}


def test_a_stage_changes_samples(shapes: Path) -> None:
    stages = [f"{__name__}:darkened"]
    batch = next(wcord.stream(str(shapes), {"a": {"name": "rgb", "jitter": 0}}, batch_size=8, size=8, stages=stages))
    assert torch.equal(batch["a"], batch["a"][:1].expand_as(batch["a"]))


def test_a_stage_sees_what_no_network_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    img2dataset(tmp_path / "shards", [12])
    (tmp_path / "seen.py").write_text(
        "names = set()\ndef note(samples):\n    for s in samples:\n        names.update(s)\n        yield s\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    next(wcord.stream(str(tmp_path / "shards"), {"a": "rgb"}, batch_size=4, size=8, stages=["seen:note"]))
    import seen  # type: ignore[import-not-found]

    assert {"json", "text.txt", "rgb.jpg"} <= seen.names


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("failing", r"failing failed on .*sample s\d+: ZeroDivisionError"),
        ("doubling", r"doubling must return at most one sample"),
        ("nothing", r"has no 'nothing'"),
        ("PAGE", r"is not a function"),
    ],
)
def test_a_stage_that_fails_is_named(shapes: Path, stage: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"data.stages: .*{message}"):
        next(wcord.stream(str(shapes), {"a": "rgb"}, batch_size=4, size=8, stages=[f"{__name__}:{stage}"]))


def test_what_stages_leave_out_is_no_fault(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [32], "test": [2]})
    stages, policy = [f"{__name__}:even"], Policy(max_faulty=0)
    assert (
        len(list(islice(wcord.stream(str(folder), {"a": "rgb"}, batch_size=8, stages=stages, policy=policy), 8))) == 8
    )


def test_an_unknown_modality_is_named(shapes: Path) -> None:
    with pytest.raises(UserError, match=r"views.a: .*'rbg', did you mean 'rgb'"):
        next(wcord.stream(str(shapes), {"a": "rbg"}))
