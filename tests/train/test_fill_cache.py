"""`teacher.cache: auto`: training fills the cache, with the results and guarantees of one that is made before it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_runs import LOSSES, losses
from launching import Started, launch
from safetensors.torch import load_file
from shapes_dataset import members

from losses import Features
from modalities import RGB
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.dataset import MANIFEST
from pipeline.data.feature_cache import Cache
from pipeline.data.feature_journal import Journal
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.models.network import Network
from pipeline.train import train
from pipeline.train.cache_teacher import cache
from pipeline.train.callbacks.base import Callback, Context

PLAIN = ("data.crop=[1,1]", "data.flip=false")


@pytest.fixture
def student(make_config: Any, data: Path, rgb_teacher: Path) -> Path:
    """A config that fills the cache of two views in its two epochs of six steps, and reads it in a third."""
    path: Path = make_config("student", f"teacher: {{run: {rgb_teacher}, cache: auto, views: 2}}", LOSSES, shards=data)
    return path


def run_of(path: Path, name: str, *overrides: str, resume: bool = False) -> Path:
    run = f"run={path.with_name(name)}"
    return train(configs.load(path, [run, "train.log_every=1", "train.steps=18", *overrides]), resume=resume)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


@pytest.mark.parametrize(
    ("varied", "dtype"),
    [((), "float32"), ((*PLAIN, "teacher.views=1"), "bfloat16")],
    ids=["two augmented views", "one whole view in half precision"],
)
def test_training_is_that_with_a_cache_made_before(student: Path, data: Path, varied: Any, dtype: str) -> None:
    settings = (*varied, f"teacher.cache_dtype={dtype}")
    filled = run_of(student, "filled", *settings)
    cache(configs.load(student, ["teacher.cache=first", *settings]))
    given = run_of(student, "given", "teacher.cache=first", *settings)
    assert losses(filled) == pytest.approx(losses(given), rel=1e-5)
    for key, value in weights(filled).items():
        torch.testing.assert_close(value, weights(given)[key], rtol=1e-3, atol=1e-4)
    assert len(list(data.glob("auto-*.cache.json"))) == 1
    assert not list(data.glob("*.journal"))


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of samples of each forward pass of the teacher, the only network that reads photos."""
    counts: list[int] = []
    forward = Network.forward

    def counted(self: Network, x: Any) -> Any:
        if isinstance(self.modality, RGB):
            counts.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Network, "forward", counted)
    return counts


def test_the_teacher_runs_once_per_view_and_not_in_later_runs(student: Path, taught: list[int]) -> None:
    run_of(student, "first")
    assert sum(taught) == 2 * 96
    taught.clear()
    run_of(student, "second", "train.learning_rate=0.001", "losses={cosine: {}}")
    assert taught == []


def test_an_epoch_that_leaves_samples_out_is_completed(student: Path, taught: list[int]) -> None:
    """96 samples are 3 batches of 28, and 12 more of which an epoch shows none."""
    run_of(student, "run", "data.batch_size=28", "train.steps=9", *PLAIN, "teacher.views=1")
    assert sum(taught) == 96


def test_a_run_of_one_epoch_is_completed_by_the_next(student: Path, data: Path, taught: list[int]) -> None:
    one = ("train.steps=6", *PLAIN, "teacher.views=1")
    run_of(student, "first", *one)
    assert not list(data.glob("*.cache.json"))
    run_of(student, "second", *one)
    assert sum(taught) == 96
    assert len(list(data.glob("auto-*.cache.json"))) == 1


def test_wcord_cache_fills_it_before_training(student: Path, taught: list[int]) -> None:
    assert cache(configs.load(student)).name.startswith("auto-")
    taught.clear()
    run_of(student, "run")
    assert taught == []


@pytest.mark.parametrize("step", [4, pytest.param(9, marks=pytest.mark.slow), 12])
def test_a_run_that_was_cut_off_resumes_to_the_bit_and_computes_nothing_twice(
    student: Path, data: Path, taught: list[int], step: int
) -> None:
    """Also where its last checkpoint is older than its last features."""
    whole = weights(run_of(student, "whole", f"data.shards={shutil.copytree(data, data.with_name('other'))}"))
    taught.clear()
    with pytest.raises(KeyboardInterrupt):
        train(configs.load(student, [f"run={student.with_name('cut')}", "train.steps=18"]), callbacks=[CutOff(step)])
    (journal,) = data.glob("*.journal")
    with journal.open("ab") as file:
        file.write(b"\0" * 7)  # a record that was not finished
    found = weights(run_of(student, "cut", resume=True))
    assert found.keys() == whole.keys()
    assert all(torch.equal(value, whole[key]) for key, value in found.items())
    assert sum(taught) == 2 * 96


class CutOff(Callback):
    """Ends a run as a kill does, without a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, context: Context) -> None:
        if context.step == self.step:
            raise KeyboardInterrupt


def test_other_batches_use_what_is_known_of_them(student: Path, taught: list[int]) -> None:
    """The second run's batches contain samples with features and without."""
    run_of(student, "first", "train.steps=3")
    assert sum(taught) == 48
    mixed = run_of(student, "mixed", "data.batch_size=32", "train.steps=8")
    assert sum(taught) == 2 * 96
    live = run_of(student, "live", "data.batch_size=32", "train.steps=8", "teacher.cache=null", "teacher.views=1")
    assert losses(mixed)[:6] == pytest.approx(losses(live)[:6], rel=1e-5)


@pytest.mark.parametrize("place", ["0", "zero"])
def test_damaged_features_are_computed_again(student: Path, data: Path, taught: list[int], place: str) -> None:
    run_of(student, "first", "train.steps=3")
    (journal,) = data.glob("*.journal")
    content = bytearray(journal.read_bytes())
    content[-1] ^= 1
    journal.unlink()
    name = journal.name.split(".")[0]
    (data / f"{name}.{place}.journal").write_bytes(content)  # read before or after that of the second run
    run_of(student, "second")
    assert sum(taught) == 2 * 96 + 1


def test_another_teacher_view_or_format_has_a_cache_of_its_own(student: Path, data: Path, taught: list[int]) -> None:
    run_of(student, "first", "train.steps=3")
    second = ["student.modality=rgb", "train.steps=2", f"run={student.with_name('second')}"]
    other = train(configs.load(student.with_name("teacher.yaml"), second))
    for override in (f"teacher.run={other}", "data.flip=false", "teacher.cache_dtype=bfloat16", "losses={fitnet: {}}"):
        taught.clear()
        run_of(student, "other", override, "train.steps=3")
        assert sum(taught) == 48, override
        shutil.rmtree(student.with_name("other"))
    assert len(list(data.glob("*.journal"))) == 5


@pytest.mark.parametrize("steps", [18, 3], ids=["complete", "begun"])
def test_of_changed_data_only_the_changed_shards_are_computed_again(
    student: Path, data: Path, taught: list[int], steps: int
) -> None:
    run_of(student, "first", f"train.steps={steps}")
    before = sum(taught)
    about = load_dataset(data)
    held = sum(place >= 80 for place in taught_places(data)) if steps == 3 else 32
    about.splits["train"][2] = write_shard(data / "train-000002.tar", [(f"s{i:05d}", members(i)) for i in range(16)])
    (data / MANIFEST).write_text(about.model_dump_json())
    run_of(student, "second")
    assert sum(taught) - before == 2 * 96 - before + held


def taught_places(data: Path) -> list[int]:
    """Indices of the samples of the first view whose features a journal contains."""
    (path,) = data.glob("*.journal")
    about = Cache.model_validate_json(path.read_bytes().split(b"\n", 1)[0])
    journal = Journal(data, about, load_dataset(data).splits["train"])
    return [index for index in range(96) if journal.load(0, index) is not None]


REFUSED = {
    "teacher.views=1": "auto stores what the teacher sees in the first epoch, but data.crop and data.flip change it in "
    "every epoch. Set teacher.views to the number of views",
    "data.sampling=with_replacement": "auto requires epochs that contain each sample once; set data.sampling to once",
}


@pytest.mark.parametrize("override", REFUSED)
def test_views_that_do_not_repeat_are_refused(student: Path, override: str) -> None:
    with pytest.raises(UserError, match=REFUSED[override]):
        configs.load(student, [override])


def test_features_that_are_not_finite_are_not_stored(
    student: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, passes = Network.forward, []

    def overflowing(self: Network, x: Any) -> Features:
        found = forward(self, x)
        if isinstance(self.modality, RGB):
            passes.append(len(x))
            found.pooled[3, 0] = float("nan") if len(passes) == 2 else found.pooled[3, 0]
        return found

    monkeypatch.setattr(Network, "forward", overflowing)
    with pytest.raises(
        UserError, match=r"samples s\d+ to s\d+: the features of the teacher \(rgb\) are not finite .* in 1 of"
    ):
        run_of(student, "run")
    assert len(taught_places(data)) == 16


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_with_a_cure(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Journal._open

    def full(self: Journal) -> int:
        number = opened(self)
        self.files[number] = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
        return number

    monkeypatch.setattr(Journal, "_open", full)
    with pytest.raises(UserError, match=r"/dev/full: no space left. .* free disk space and run the command again"):
        run_of(student, "run")


def test_the_teacher_may_run_ahead(student: Path, taught: list[int]) -> None:
    """As it does on a CPU with several threads; its thread ends where the cache is complete."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ahead = run_of(student, "ahead", "data.workers=1")
    finally:
        torch.set_num_threads(before)
    assert sum(taught) == 2 * 96
    live = run_of(student, "live", "data.workers=1", "teacher.cache=null", "teacher.views=1")
    assert losses(ahead)[:12] == pytest.approx(losses(live)[:12], rel=1e-5)


def test_the_logged_flops_are_without_the_teacher_once_it_is_not_run(student: Path) -> None:
    rows = [json.loads(line) for line in (run_of(student, "run") / "metrics.jsonl").read_text().splitlines()]
    flops = [round(1e12 * row["tflops"] * 16 / row["samples_per_second"]) for row in rows]
    assert len(set(flops[:12])) == len(set(flops[12:])) == 1
    assert flops[0] > flops[12]


@pytest.mark.parametrize("unpaired", ["skip", "keep"])
def test_samples_without_the_teacher_s_input_have_no_features(student: Path, data: Path, unpaired: str) -> None:
    about = load_dataset(data)
    samples = [(f"s{i:05d}", {k: v for k, v in members(i).items() if k != "rgb.jpg" or i > 90}) for i in range(80, 96)]
    about.splits["train"][2] = write_shard(data / "train-000002.tar", samples)
    (data / MANIFEST).write_text(about.model_dump_json())
    policy = f"data.unpaired={unpaired}"
    filled = run_of(student, "filled", policy)
    file = Cache.model_validate_json(next(data.glob("auto-*.cache.json")).read_bytes())
    assert sum(sidecar.samples for sidecar in file.sidecars.values()) == 85
    live = run_of(student, "live", policy, "teacher.cache=null", "teacher.views=1")
    assert losses(filled)[:12] == pytest.approx(losses(live)[:12], rel=1e-5)


@pytest.mark.slow
def test_a_process_that_is_killed_loses_nothing(student: Path, data: Path, taught: list[int]) -> None:
    """Killed at any moment, also while it completes the cache."""
    settings = ["train.steps=18", "train.log_every=1", "train.checkpoint_every=2"]
    whole = run_of(student, "whole", *settings, f"data.shards={shutil.copytree(data, data.with_name('other'))}")
    command = ["--quiet", "train", str(student), *settings, f"run={student.with_name('cut')}", "--resume"]
    log = student.with_name("cut") / "metrics.jsonl"
    for step in (3, 8, 12):
        running = Started(command)
        while not log.exists() or len(log.read_text().splitlines()) < step:
            assert running.poll() is None, running.output()
            time.sleep(0.002)
        running.kill()
    taught.clear()
    found = weights(run_of(student, "cut", *settings, resume=True))
    assert all(torch.equal(value, weights(whole)[key]) for key, value in found.items())
    assert sum(taught) <= 16


@pytest.mark.slow
def test_two_processes_fill_it_together(student: Path, data: Path, taught: list[int]) -> None:
    settings = ["train.steps=18", "train.log_every=1"]
    done = launch(["train", str(student), f"run={student.with_name('both')}", *settings])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(data.glob("auto-*.cache.json"))) == 1
    assert not list(data.glob("*.journal"))
    given = launch(["cache", str(student), "teacher.cache=first"])
    assert given.returncode == 0, given.stdout + given.stderr
    again = launch(["train", str(student), f"run={student.with_name('given')}", "teacher.cache=first", *settings])
    assert again.returncode == 0, again.stdout + again.stderr
    assert losses(student.with_name("both")) == pytest.approx(losses(student.with_name("given")), rel=1e-5)
    taught.clear()
    run_of(student, "alone")
    assert taught == []


@pytest.mark.slow
def test_two_trainings_fill_it_at_the_same_time(student: Path, data: Path) -> None:
    commands = [["train", str(student), f"run={student.with_name(name)}", "train.steps=18"] for name in ("one", "two")]
    started = [Started(command) for command in commands]
    assert [one.wait() for one in started] == [0, 0], [one.output() for one in started]
    assert not list(data.glob("*.journal"))
    found, other = (weights(student.with_name(name)) for name in ("one", "two"))
    for key, value in found.items():
        torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-4)
