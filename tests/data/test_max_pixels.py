"""Images with too many pixels are refused by their header, before they are decoded."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from shapes_dataset import members, write_dataset

from modalities import RGB
from modalities.image_header import stated_size
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.config.settings import Data
from pipeline.data.dataset import MANIFEST
from pipeline.data.decoding import MAX_PIXELS, check_pixels, meta_of
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.data.skipped import SampleError, Skipped
from pipeline.data.source import OpenDataset, Policy, open_split
from pipeline.data.stream import EvalStream, loader
from pipeline.data.views import View
from pipeline.inference.inputs import find_inputs, look_at
from pipeline.packing.check import check

CPU = torch.device("cpu")
VIEWS = {"student": View(RGB(), 16)}


def encoded(suffix: str, width: int, height: int) -> bytes:
    return bytes(cv2.imencode(suffix, np.zeros((height, width, 3), np.uint8))[1])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_size_is_read_from_the_header(suffix: str) -> None:
    data = encoded(suffix, 37, 21)
    assert stated_size(data) == (37, 21)
    for end in range(len(data)):
        stated_size(data[:end])  # raises nothing
    assert stated_size(b"text") == stated_size(b"") == (0, 0)
    check_pixels(data, 777)
    with pytest.raises(ValueError, match=r"37 x 21 pixels, more than data\.max_pixels: 776 allows\. Raise it"):
        check_pixels(data, 776)


def with_a_large_photo(folder: Path, photo: bytes) -> Path:
    write_dataset(folder, {"train": [8], "test": [4]})
    about = load_dataset(folder)
    samples = [(f"s{i}", members(i) | ({"rgb.jpg": photo} if i == 3 else {})) for i in range(8)]
    about.splits["train"][0] = write_shard(folder / "train-000000.tar", samples)
    (folder / MANIFEST).write_text(about.model_dump_json())
    return folder


def test_a_large_image_is_faulty_and_the_limit_is_a_setting(tmp_path: Path) -> None:
    folder, rest = with_a_large_photo(tmp_path, encoded(".jpg", 100, 100)), list[Skipped]()
    limit = Policy(max_faulty=0.5, max_pixels=9999)
    seen = list(loader(EvalStream(open_split(folder, "train", "label", policy=limit), VIEWS, batch=8), 0, CPU, rest))
    assert [s.key for batch in seen for s in batch["skipped"]] == ["s3"]
    strict = open_split(folder, "train", "label", policy=Policy(max_pixels=9999))
    with pytest.raises(UserError, match=r"sample s3: rgb\.jpg: 100 x 100 pixels, more than data\.max_pixels: 9999"):
        list(loader(EvalStream(strict, VIEWS, batch=8), 0, CPU))
    text = f"run: x\ndata: {{shards: {folder}, max_pixels: 9999}}\nstudent: {{modality: rgb, encoder: cnn5}}\n"
    (tmp_path / "a.yaml").write_text(f"{text}losses: {{cross_entropy: {{}}}}\ntrain: {{steps: 1}}\n")
    assert OpenDataset.from_config(configs.load(tmp_path / "a.yaml")).policy.max_pixels == 9999
    assert configs.load(tmp_path / "a.yaml", ["data.max_pixels=10000"]).data.max_pixels == 10_000


def test_the_default_refuses_at_once_what_takes_gigabytes() -> None:
    assert Data.model_fields["max_pixels"].default == MAX_PIXELS
    data = bytearray(encoded(".png", 16, 16))
    data[16:24] = (9000).to_bytes(4, "big") * 2
    begun = time.monotonic()
    with pytest.raises(ValueError, match="9000 x 9000 pixels"):
        look_at(VIEWS["student"], bytes(data))
    assert time.monotonic() - begun < 1


def test_check_and_predict_refuse_what_training_refuses(tmp_path: Path) -> None:
    data = bytearray(encoded(".png", 16, 16))
    data[16:24] = (9000).to_bytes(4, "big") * 2
    folder = with_a_large_photo(tmp_path, bytes(data))
    begun = time.monotonic()
    (fault,) = [fault for fault in check(folder, processes=1).faults if "pixels" in fault]
    assert "s3.rgb.jpg" in fault
    assert "9000 x 9000 pixels, more than data.max_pixels" in fault
    inputs = {sample.key: sample for sample in find_inputs([folder / "train-000000.tar"], VIEWS["student"])}
    with pytest.raises(SampleError, match=r"s3: rgb\.jpg: 9000 x 9000 pixels"):
        inputs["s3"].look()
    assert inputs["s2"].look().shape == (3, 16, 16)
    assert time.monotonic() - begun < 5


def test_a_large_meta_is_not_parsed() -> None:
    meta = json.dumps({"a": "x" * (1 << 20)}).encode()
    with pytest.raises(SampleError, match=r"meta\.json: has 1048585 bytes; at most 1048576"):
        meta_of({"__url__": "a.tar", "__key__": "s", "__place__": 0, "meta.json": meta})
