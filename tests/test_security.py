"""What comes from elsewhere is data: nothing of it is run, leads out of its folder or unpacks without bound."""

from __future__ import annotations

import ast
import gzip
import io
import json
import pickle
import resource
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from shapes_dataset import members, write_dataset

from modalities import RGB, Audio, Depth, Points, Text
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.common.files import sha256
from pipeline.data.dataset import MANIFEST
from pipeline.data.manifest import load_dataset
from pipeline.data.member_formats import inspect, read_meta
from pipeline.data.remote import ORIGIN, origin
from pipeline.data.source import open_split
from pipeline.packing.check import check
from pipeline.runs.checkpoint import list_checkpoints, sealed
from pipeline.train import train

ROOT = Path(__file__).parents[1]
SOURCES = [path for package in ("losses", "modalities", "pipeline") for path in (ROOT / package).rglob("*.py")]
OWN_BYTES = ROOT / "modalities" / "testing.py"  # an author's check of an adapter that is there already
FORBIDDEN = ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load")
WANTED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
}
SWITCHES = {"trust_remote_code": False, "use_safetensors": True, "shell": False, "weights_only": True}


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert name not in FORBIDDEN or path == OWN_BYTES, f"{path}:{node.lineno}: {name}"
        assert not name.endswith((".extract", ".extractall")), f"{path}:{node.lineno}: {name}"
        if name in WANTED:
            keyword, value = WANTED[name]
            assert keywords.get(keyword) == str(value), f"{path}:{node.lineno}: {name} without {keyword}={value}"
        for keyword, value in SWITCHES.items():
            assert keywords.get(keyword, str(value)) == str(value), f"{path}:{node.lineno}: {keyword}"
        if name.endswith(".from_pretrained") and name.startswith(("transformers.Auto", "AutoModel")):
            assert keywords.get("trust_remote_code") == "False", f"{path}:{node.lineno}: {name}"


def test_a_pickle_in_a_checkpoint_is_never_opened(make_config: Any, tmp_path: Path) -> None:
    run = train(configs.load(make_config()))
    proof = tmp_path / "proof"
    for checkpoint in list_checkpoints(run / "checkpoints"):
        torch.save({"optimizer": Evil(proof)}, checkpoint / "optimizer.pt")
        about = json.loads((checkpoint / "checkpoint.json").read_text())
        about["sha256"]["optimizer.pt"] = sha256(checkpoint / "optimizer.pt")  # as whoever made it would
        (checkpoint / "checkpoint.json").write_text(json.dumps(sealed(about)))
    with pytest.raises(UserError, match=r"damaged \(Weights only load failed"):
        train(configs.load(make_config(), ["train.steps=20"]), resume=True)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Evil(proof)))  # noqa: S301 - it would have
    assert proof.exists()


def test_pickles_in_arrays_and_members_are_never_opened(tmp_path: Path) -> None:
    proof, buffer = tmp_path / "proof", io.BytesIO()
    np.save(buffer, np.array([[Evil(proof)]], dtype=object), allow_pickle=True)
    reads = [lambda data, reader=reader: reader.decode(data, {}) for reader in (Depth(), Points())]
    reads += [lambda data, member=member: inspect(member, data) for member in ("depth.npy", "points.npy")]
    for read in reads:
        with pytest.raises(ValueError, match="not a"):
            read(buffer.getvalue())
    with pytest.raises(ValueError, match=r"."):
        RGB().decode(pickle.dumps(Evil(proof)), {})
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe:touch {proof}", "commands are never run"),
        ("pipe:curl http://localhost/x.tar", "commands are never run"),
        ("x.tar::pipe:touch {proof}", "not found|commands are never run"),
        ("{{pipe:touch {proof},pipe:touch {proof} #}}.tar", "not found|commands are never run"),
        ("pipe:touch {proof} #.tar", "commands are never run"),
        ("pipe:touch {proof} {{0..1}}", "commands are never run"),
        ("file:///etc", "not found"),
        ("data::x", "not found"),
    ],
)
def test_pipes_are_not_run(tmp_path: Path, name: str, message: str) -> None:
    proof = tmp_path / "proof"
    with pytest.raises(UserError, match=message):
        open_split(name.format(proof=proof), "train", "label")
    assert not proof.exists()


def test_an_index_that_was_fetched_names_no_file_of_this_machine(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = json.loads((shapes / MANIFEST).read_text())
    about["splits"]["train"][0]["url"] = str(shapes / "train-000000.tar")
    fsspec.filesystem("memory").pipe("/set/dataset.json", json.dumps(about).encode())
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"this remote index refers to a local file"):
        load_dataset("memory://set")


def test_a_shard_s_name_may_not_be_a_pipe(shapes: Path, tmp_path: Path) -> None:
    about = json.loads((shapes / MANIFEST).read_text())
    for name in ("pipe:touch x.tar", "../x.tar", "/x.tar", "http://localhost/x.tar", "x.tar\n"):
        about["splits"]["train"][0]["file"] = name
        (tmp_path / MANIFEST).write_text(json.dumps(about))
        with pytest.raises(UserError, match=r"splits\.train\.0\.file"):
            load_dataset(tmp_path)


def test_a_data_set_cannot_say_where_its_shards_are_fetched(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes((shapes / MANIFEST).read_bytes())
    (tmp_path / ORIGIN).write_text("http://localhost:9/elsewhere")
    assert origin(tmp_path) is None
    with pytest.raises(UserError, match="shard is missing"):
        open_split(tmp_path, "train", "label")


@pytest.mark.parametrize("name", ["../outside.rgb.jpg", "/tmp/outside.rgb.jpg", "a/../../outside.rgb.jpg"])
def test_members_that_lead_outside_are_faults_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [4], "test": [2]})
    about = load_dataset(folder)
    path = folder / about.splits["train"][0].file
    with tarfile.open(path, "w") as tar:
        for key, data in ((name, members(0)["rgb.jpg"]), ("s.rgb.jpg", members(0)["rgb.jpg"])):
            info = tarfile.TarInfo(key)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    assert any("not named KEY.MEMBER" in fault for fault in check(folder, processes=1).faults)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zipped_shard_is_not_unpacked(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [4], "test": [2]})
    path = folder / load_dataset(folder).splits["train"][0].file
    path.write_bytes(gzip.compress(bytes(1 << 20)))
    assert any("the tar is damaged after 0 samples" in fault for fault in check(folder, processes=1).faults)


def npy(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    """The header of an array, and a few bytes of it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(64)


def png(width: int, height: int) -> bytes:
    """A picture of zeros, which packs a thousand to one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def wav(rate: int, seconds: float) -> bytes:
    sound = bytes(range(1, 201)) * max(1, int(rate * seconds) // 100)
    body = b"WAVEfmt " + (16).to_bytes(4, "little") + b"\1\0\1\0" + rate.to_bytes(4, "little")
    body += (2 * rate % 2**32).to_bytes(4, "little") + b"\2\0\x10\0data" + len(sound).to_bytes(4, "little") + sound
    return b"RIFF" + len(body).to_bytes(4, "little") + body


BOMBS: dict[str, tuple[Any, bytes]] = {
    "a PNG of 10 gigapixels": (RGB(), png(100_000, 100_000)),
    "a depth map of 10 gigapixels": (Depth(), png(100_000, 100_000)),
    "an array of a terabyte": (Depth(), npy((1 << 19, 1 << 19))),
    "an array of 2^80 bytes": (Depth(), npy((1 << 40, 1 << 40))),
    "an array of a negative size": (Depth(), npy((-1, 4))),
    "a header of a megabyte": (Depth(), b"\x93NUMPY\2\0" + (1 << 20).to_bytes(4, "little") + b"(" * (1 << 20)),
    "captions of 2 megabytes": (Text(), b"word " * 400_000),
    "one sample a second for a day": (Audio(), wav(1, 86_400)),
    "a rate without a common factor": (Audio(), wav(2**31 - 1, 1e-7)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_without_unpacking(name: str) -> None:
    modality, data = BOMBS[name]
    if isinstance(modality, Audio):
        pytest.importorskip("soundfile")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"."):
        modality.decode(data, {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("data", [b"[" * 1_000_000, b'{"a":' * 100_000, b"9" * 1_000_000, b'"' + b"a" * 100])
def test_json_of_any_depth_and_size_is_an_error_of_its_own(data: bytes) -> None:
    with pytest.raises(ValueError, match="meta is not"):
        read_meta(data)


def test_a_network_s_folder_may_not_point_outside(make_config: Any, tmp_path: Path) -> None:
    run = train(configs.load(make_config(), ["train.steps=1"]))
    path = run / "student" / "network.json"
    about = json.loads(path.read_text())
    about["encoder"]["name"] = "./../../secret"
    path.write_text(json.dumps(about))
    command = [sys.executable, "-m", "pipeline", "evaluate", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is outside the folder" in done.stderr
