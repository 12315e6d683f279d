"""What the networks read against what the samples have, before a network is built."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from foreign_shards import captioned, plain_tar, shard_writer

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.source import OpenDataset
from pipeline.models.check_inputs import check_inputs

TEXT = ("student.modality=text", "student.encoder={name: text_transformer, width: 16, depth: 1, heads: 2}")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    shard_writer(tmp_path / "shards", map(captioned, range(8)), maxcount=4)
    return tmp_path / "shards"


def checked(path: Path, *overrides: str) -> None:
    config = configs.load(path, overrides)
    check_inputs(config, OpenDataset.from_config(config))


def test_what_there_is_passes(make_config: Any, shards: Path, shapes: Path) -> None:
    checked(make_config(shards=shards), *TEXT)
    checked(make_config(shards=shards), "student.modality=rgb")
    checked(make_config())
    checked(make_config(shards=shards), f"data.join=[{shapes}]")  # which has the depth maps


def test_a_message_lists_what_the_samples_have(make_config: Any, shards: Path) -> None:
    with pytest.raises(UserError) as raised:
        checked(make_config(shards=shards))
    message = str(raised.value)
    assert (
        "student: the modality `depth` reads depth.png or depth.npy or depth.npz or depth.tiff, but no sample of"
        in message
    )
    assert "json (8); cls, named label.txt here (8); jpg, named rgb.jpg here (8); txt, named text.txt here" in message
    assert "data.fields={depth: EXTENSION}" in message


def test_data_fields_mend_it(make_config: Any, tmp_path: Path) -> None:
    samples = [(f"{n}", {"left.jpeg": captioned(n)[1]["jpg"], "cls": b"0"}) for n in range(4)]
    plain_tar(tmp_path / "shards" / "0.tar", samples)
    path = make_config(shards=tmp_path / "shards")
    with pytest.raises(UserError, match=r"`rgb` reads rgb\.jpg or .*left\.jpeg \(4\)"):
        checked(path, "student.modality=rgb")
    checked(path, "student.modality=rgb", "data.fields={rgb: left.jpeg}")


def test_of_a_packed_data_set_the_cure_is_another(make_config: Any) -> None:
    with pytest.raises(
        UserError, match=r"student: the modality `text` reads text\.txt.*pack the data with the field `text`"
    ):
        checked(make_config(), *TEXT)


def test_the_teacher_is_looked_at_too_but_not_one_that_is_cached(
    make_config: Any, runs: Path, shards: Path, tmp_path: Path
) -> None:
    depth_teacher = shutil.copytree(runs / "student", tmp_path / "teacher")
    path = make_config("student", f"teacher: {{run: {depth_teacher}}}", "  cosine: {}", shards)
    with pytest.raises(UserError, match=r"teacher \(.*/teacher\): the modality `depth` reads"):
        checked(path, *TEXT)
    checked(path, *TEXT, "teacher.cache=first")
