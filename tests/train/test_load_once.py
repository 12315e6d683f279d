"""Several processes of one training: one of them counts remote shards, all of them have the result."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from accelerate import Accelerator
from foreign_shards import plain_tar, tiny
from hub import COMMIT, ModelHub, use_endpoint
from launching import place, spawn
from store import serving
from torch.distributed import TCPStore

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.stated_counts import refute, refuted_folders
from pipeline.models.hub_student import student_folder
from pipeline.models.network import build_network, save_network
from pipeline.train import load_once

RANKS = 2


def work(rank: int, port: int, folder: Path, spec: str) -> None:
    """Load data sets as a rank on a machine of its own, with its own cache, and write down what was found."""
    os.environ.update(place(rank, RANKS, port) | {"WCORD_CACHE": str(folder / f"cache{rank}")})
    accelerator = Accelerator(cpu=True)
    own, load_once.PAUSE = load_once.load_dataset, 0.05

    def slow(*arguments: object) -> object:
        time.sleep(0.2)
        return own(*arguments)  # type: ignore[arg-type]

    load_once.load_dataset = slow  # type: ignore[assignment]
    if rank == 1:
        refute(["noted-by-another-machine"])
    load = load_once.loaded_once(accelerator)
    dataset = load(spec, "label", False)
    with pytest.raises(UserError, match=r"none\.tar.*does not exist"):
        load(spec.replace("{0..2}", "none"), "label", False)
    (folder / f"found{rank}").write_text(f"{refuted_folders()} {dataset.model_dump_json()}")
    accelerator.end_training()


def test_one_process_asks_the_store_and_all_have_the_manifest(tmp_path: Path) -> None:
    with serving(tmp_path / "store") as running:
        for number in range(3):
            plain_tar(running.folder / f"{number}.tar", [tiny(10 * number + n) for n in range(number + 1)])
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        spawn(work, (store.port, tmp_path, f"{running.url}/{{0..2}}.tar"), RANKS)
        found = [(tmp_path / f"found{rank}").read_text() for rank in range(RANKS)]
        assert found[0] == found[1]
        assert found[0].startswith("['noted-by-another-machine'] ")
        assert '"total":3' in found[0]
        assert (tmp_path / "cache0" / "indexes").is_dir()
        assert not (tmp_path / "cache1" / "indexes").exists()


def fetch(rank: int, port: int, folder: Path, url: str) -> None:
    """Look for a teacher on the Hub as a rank, and write down which one was found."""
    os.environ.update(place(rank, RANKS, port))
    accelerator = Accelerator(cpu=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
        # Rank 1 could not ask the Hub.
        use_endpoint(url if rank == 0 else "http://127.0.0.1:1", patch)
        overrides = [f"data.shards={folder}", f"run={folder / 'run'}", "teacher.run=me/student"]
        config = load_once.pin_teacher(configs.load("rgb_to_depth", overrides), accelerator)
        assert config.teacher is not None
        (folder / f"found{rank}").write_text(f"{config.teacher.run} {student_folder(str(config.teacher.run))}")
        unknown = config.model_copy(update={"teacher": config.teacher.model_copy(update={"run": "me/nothing"})})
        with pytest.raises(UserError, match="the Hub has no repository me/nothing"):
            load_once.pin_teacher(unknown, accelerator)
    accelerator.end_training()


def test_one_process_downloads_a_teacher_and_all_have_its_commit(tmp_path: Path) -> None:
    encoder = {"name": "cnn5", "width": 4, "size": 16}
    save_network(build_network({"name": "rgb"}, encoder, None, "teacher"), tmp_path / "repository")
    with serving(tmp_path / "repository", ModelHub) as running:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        spawn(fetch, (store.port, tmp_path, running.url), RANKS)
    found = [(tmp_path / f"found{rank}").read_text() for rank in range(RANKS)]
    assert found[0] == found[1]
    assert found[0].startswith(f"me/student@{COMMIT} {tmp_path / 'cache'}")
