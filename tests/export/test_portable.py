"""The preprocessing that is taken away does what the modality does in evaluation."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import soundfile
from point_clouds import KINDS, cloud, pcd, ply, written

from pipeline.data.views import collate_view
from pipeline.export.bundle import Export, _write_preprocessing
from pipeline.models.network import build_network

RNG = np.random.default_rng(0)
CNN = {"name": "cnn5", "width": 4, "size": 20}


def image(array: np.ndarray, kind: str = ".png") -> bytes:
    return cv2.imencode(kind, array)[1].tobytes()


def sound(samples: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, RNG.uniform(-0.5, 0.5, (samples, 2)), 16000, format="WAV")
    return file.getvalue()


def metres(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array.astype(np.float32))
    return file.getvalue()


COLOUR = RNG.integers(0, 256, (50, 70, 4), np.uint8)
PHOTOS = [
    image(COLOUR),
    image(COLOUR[..., :3], ".jpg"),
    image(COLOUR[..., 0]),
    image(COLOUR[:9, :9, :3].astype(np.uint16) * 257),
]
MAP = RNG.integers(400, 3000, (50, 70)) * (RNG.random((50, 70)) > 0.2)
SPARSE = np.where(RNG.random(MAP.shape) < 0.05, MAP, 0)  # as LiDAR
MAPS = [image(MAP.astype(np.uint16)), metres(MAP / 1000), image(SPARSE.astype(np.uint16))]
DEPTH = {"name": "depth", "near": 0.5, "far": 4.0}
CAMERA = {"fx": 61, "fy": 62, "cx": 34, "cy": 25}

CASES: list[tuple[dict[str, Any], dict[str, Any], list[bytes]]] = [
    ({"name": "rgb"}, CNN, PHOTOS),
    *((DEPTH | {"input": kind}, CNN, MAPS) for kind in ("depth", "inverse", "vertex", "image")),
    (DEPTH | {"centre": True, "baseline": 0.1}, CNN, MAPS),
    (DEPTH | {"input": "points", "points": 64}, {"name": "pointnet", "width": 4, "size": 20}, MAPS),
    (
        {"name": "points", "count": 50},
        {"name": "pointnet", "width": 4},
        [*(written(cloud(1), kind) for kind in KINDS), ply(cloud(1), "ascii"), pcd(cloud(2, 20), "ascii")],
    ),
    (
        {"name": "points", "count": 90, "extra": 1, "radius": 3.0},
        {"name": "pointnet", "width": 4},
        [*(written(cloud(1), kind) for kind in KINDS), ply(cloud(1), "binary_big_endian"), pcd(cloud(1), "ascii")],
    ),
    ({"name": "audio", "seconds": 0.2}, {"name": "log_mel_cnn", "width": 4}, [sound(9000), sound(1500)]),
    (
        {"name": "text", "length": 12},
        {"name": "text_transformer", "width": 8, "heads": 2},
        [b"a red ball on a table", "\n grüße\nother".encode()],
    ),
    (  # of an outside package: 384, 100 and 256 time steps
        {"name": "wcord_eeg:EEG", "channels": 3},
        {"name": "wcord_eeg:SeriesCNN", "width": 4},
        [metres(RNG.normal(2, 20, (3, length))) for length in (384, 100, 256)],
    ),
]


def reader(words: Any, encoder: Any, folder: Path, crop: float = 1.0) -> tuple[Any, Any]:
    network = build_network(words, encoder, ["a", "b"], "student")
    network.encoder.preprocessing = replace(network.encoder.preprocessing, crop=crop)
    done = Export(folder)
    _write_preprocessing(network, done)
    if not (folder / "preprocess.py").exists():
        return network, done.notes
    spec = importlib.util.spec_from_file_location("preprocess", folder / "preprocess.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return network, module


@pytest.mark.parametrize("crop", [1.0, 0.83])
@pytest.mark.parametrize(("words", "encoder", "files"), CASES)
def test_it_reads_files_as_the_modality_does(
    words: Any, encoder: Any, files: list[bytes], crop: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "eeg")
    network, module = reader(words, encoder, tmp_path, crop)
    view = network.view
    meta, camera = ({"intrinsics": CAMERA}, [tuple(CAMERA.values())]) if words.get("baseline") else ({}, [])
    own = [view.whole(view.modality.decode(f, meta)) for f in files]
    wanted = collate_view(view, own)
    wanted = wanted if isinstance(wanted, dict) else {view.modality.name: wanted}
    found = module.batch([module.read(data, *camera) for data in files])
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.numpy().dtype
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-6)


def test_it_imports_nothing_of_the_program() -> None:
    folder = Path(__file__).parents[2] / "pipeline" / "export" / "portable"
    for path in folder.glob("*.py"):
        assert not any(f"import {package}" in path.read_text() for package in ("pipeline", "modalities", "losses"))
        assert not any(f"from {package}" in path.read_text() for package in ("pipeline", "modalities", "losses"))


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    _, notes = reader(DEPTH | {"input": "normals"}, CNN, tmp_path)
    assert "preprocess.py is missing" in notes[0]
    _, module = reader(DEPTH | {"baseline": 0.1}, CNN, tmp_path)
    with pytest.raises(ValueError, match="pass the camera intrinsics"):
        module.read(MAPS[0])
    _, module = reader({"name": "points", "extra": 1}, {"name": "pointnet", "width": 4}, tmp_path)
    with pytest.raises(ValueError, match="no points with 4 columns"):
        module.read(written(cloud(1)[:, :3], "ply"))
    for data in (ply(cloud(1))[:100], pcd(cloud(1))[:100], written(cloud(1), "npz")[:100], b"abc"):
        with pytest.raises(ValueError, match="not a readable point cloud"):
            module.read(data)
    with pytest.raises(ValueError, match="save it as `binary`"):
        module.read(pcd(cloud(1), "binary_compressed"))
    _, module = reader({"name": "audio"}, {"name": "log_mel_cnn", "width": 4}, tmp_path)
    file = io.BytesIO()
    soundfile.write(file, np.zeros(4000), 8000, format="WAV")
    with pytest.raises(ValueError, match="8000 Hz, expected 16000 Hz; convert it: ffmpeg"):
        module.read(file.getvalue())
