"""The teacher's cache: the same training as with the teacher itself, and refused wherever it would not be."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from cached_runs import LOSSES, losses
from launching import launch
from safetensors.torch import load_file
from shapes_dataset import members, write_dataset

from modalities import RGB, Depth
from modalities.base import Geometry
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.augmentation import Augmentation
from pipeline.data.dataset import MANIFEST, Shard
from pipeline.data.feature_cache import Cache, decode, encode, manifest_path
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.data.skipped import read_skipped
from pipeline.data.source import open_dataset, open_split
from pipeline.data.stream import TrainStream, loader
from pipeline.data.views import View
from pipeline.models.build import build_model, build_teacher, fingerprint
from pipeline.runs.checkpoint import SHARDS
from pipeline.train import cache_teacher as caches
from pipeline.train import train
from pipeline.train.cache_shard import Job
from pipeline.train.cache_teacher import cache
from pipeline.train.resume import identity_of

CPU = torch.device("cpu")


@pytest.fixture
def student(make_config: Any, data: Path, rgb_teacher: Path) -> Path:
    """A config with a cached teacher; two epochs of six steps."""
    lines = f"teacher: {{run: {rgb_teacher}, cache: first, views: 2}}"
    path: Path = make_config("student", lines, LOSSES, shards=data)
    return path


def run_of(path: Path, name: str, *overrides: str) -> Path:
    config = configs.load(path)
    folder = Path(config.run).with_name(name)
    return train(configs.load(path, [f"run={folder}", "train.log_every=1", *overrides]))


@pytest.mark.parametrize(
    ("workers", "varied"), [(0, ()), (2, ()), (0, ("data.crop=[1,1]", "data.pad=[3,16]"))], ids=["0", "2", "shifted"]
)
def test_training_on_the_cache_is_training_with_the_teacher(student: Path, workers: int, varied: Any) -> None:
    """Augmented: with a view for each epoch it is the same run."""
    cache(configs.load(student, varied))
    cached = run_of(student, "cached", f"data.workers={workers}", *varied)
    live = run_of(student, "live", "teacher.cache=null", f"data.workers={workers}", *varied)
    assert losses(cached) == pytest.approx(losses(live), rel=1e-5)
    one, other = (load_file(run / "student" / "model.safetensors") for run in (cached, live))
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-4)


def test_keys_with_folders_and_dots_are_found_in_the_cache(student: Path, data: Path) -> None:
    about = load_dataset(data)
    shards = about.splits["train"]
    ends = list(accumulate(shard.samples for shard in shards))
    for place, (shard, end) in enumerate(zip(list(shards), ends, strict=True)):
        named = [(f"v1.{place}/s{i}", members(i)) for i in range(end - shard.samples, end)]
        shards[place] = write_shard(data / shard.file, named)
    (data / MANIFEST).write_text(about.model_dump_json())
    cache(configs.load(student))
    cached, live = run_of(student, "cached"), run_of(student, "live", "teacher.cache=null")
    assert losses(cached) == pytest.approx(losses(live), rel=1e-5)


def test_caches_and_checkpoints_of_before_still_fit(student: Path, data: Path) -> None:
    """The text and the hash are those that earlier versions wrote."""
    config, other = configs.load(student), shutil.copytree(data, data.with_name("other"))
    opened = open_dataset(data, join=[str(other)])
    hashes = {shard.file: shard.sha256 for shard in load_dataset(data).splits["train"]}
    joined = load_dataset(other).digest()
    found = fingerprint(config, build_teacher(config), opened)
    assert (found.draw, found.shards, found.joined) == ("seed 0, crop 0.7 to 1.0, flip True", hashes, [joined])
    assert str(Augmentation(3, pad=(4, 32))) == "seed 3, pad 4 of 32, flip False"
    cache(config)
    identity = identity_of(config, build_model(config), opened)
    assert identity[SHARDS] == sha256(" ".join([*hashes.values(), joined]).encode()).hexdigest()[:16]
    assert identity["teacher"] == build_model(config).teacher_identity()


def test_the_student_sees_the_view_that_was_stored(student: Path, data: Path) -> None:
    """Pixel for pixel, also in an epoch that an uncached run would augment anew."""
    config = configs.load(student)
    about = Cache.model_validate_json(cache(config).read_bytes())
    source = open_split(data, "train", "label")
    views = {"student": View(RGB(jitter=0.0), 24)}
    settings = {"augmentation": Augmentation(crop=(0.7, 1.0), flip=True), "batch": 16}
    replayed = {}
    cached = TrainStream(
        type(source)(**{**vars(source), "cache": about}),
        views,
        start=12,
        **settings,  # the third epoch
    )
    batches = loader(cached, 0, CPU)
    for batch in (next(batches) for _ in range(6)):
        replayed |= dict(zip(batch["key"], batch["student"], strict=True))
    first: dict[str, torch.Tensor] = {}
    batches = loader(TrainStream(source, views, **settings), 0, CPU)
    for batch in (next(batches) for _ in range(6)):
        first |= dict(zip(batch["key"], batch["student"], strict=True))
    assert replayed.keys() == first.keys()
    assert all(torch.equal(replayed[key], first[key]) for key in first)


def test_a_geometry_is_written_and_replayed_bit_for_bit_by_all_modalities() -> None:
    """A board of squares: photo, depth map and mask show the same squares after any crop, shift and flip."""
    rows, columns = np.mgrid[:120, :160]
    board = (rows // 20 + columns // 20) % 2
    photo = np.repeat((board * 255).astype(np.uint8)[..., None], 3, 2)
    millimetres = cv2.imencode(".png", (board * 1000 + 1000).astype(np.uint16))[1].tobytes()
    for seed in range(20):
        x, y = seed % 9 - 4, seed % 5 - 2
        shift = Geometry(x / 32, y / 32, 1 + x / 32, 1 + y / 32, seed % 2 == 0)
        geometry = shift if seed > 9 else Geometry.draw(np.random.default_rng(seed), (0.2, 1.0), True)
        features, replayed = decode(encode({"pooled": torch.ones(3)}, geometry))
        assert replayed == geometry
        assert torch.equal(features["pooled"], torch.ones(3))
        seen = [
            (
                RGB(jitter=0.0).augment(photo, one, 64, None)[0],
                Depth(near=1.0, far=2.0).augment(Depth().decode(millimetres, {}), one, 64, None)[0],
                torch.from_numpy(one.resize(board.astype(np.uint8), 64, nearest=True)),
            )
            for one in (geometry, replayed)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
        photo_seen, depth_seen, mask = seen[0]
        sure = (photo_seen < 5) | (photo_seen > 250)  # between two squares a photo is blended
        assert torch.equal((photo_seen > 127)[sure], mask[sure] > 0)
        assert torch.equal((depth_seen > 0)[sure], mask[sure] > 0)


def test_a_cache_goes_on_where_it_stopped(student: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, written, write = configs.load(student), [], caches.write_features

    def stopped(job: Job, shard: Shard) -> Shard:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.file)
        return write(job, shard)

    monkeypatch.setattr(caches, "write_features", stopped)
    with pytest.raises(KeyboardInterrupt):
        cache(config)
    assert not manifest_path(data, "first").exists()
    monkeypatch.setattr(caches, "write_features", lambda job, shard: written.append(shard.file) or write(job, shard))
    cache(config)
    assert sorted(written) == [shard.file for shard in load_dataset(data).splits["train"]]
    (data / "train-000001.first.tar").unlink()
    cache(config)
    assert written[3:] == ["train-000001.tar"]
    cache(config)  # and now nothing is computed
    assert len(written) == 4


def test_a_side_car_that_nobody_writes_is_not_awaited_for_ever(student: Path, data: Path) -> None:
    about = Cache.model_validate_json(cache(configs.load(student)).read_bytes())
    source = open_split(data, "train", "label")
    assert caches._await(source, source.shards[1], about, 0.0)[0].file == "train-000001.first.tar"
    (data / "train-000001.first.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001.first.tar: the process that writes this file has .* for 0.1 s"):
        caches._await(source, source.shards[1], about, 0.1)


def test_processes_that_do_not_share_the_shards_are_told_at_once(tmp_path: Path) -> None:
    class Other:
        """The second of two processes, on another machine."""

        num_processes, is_main_process, device = 2, False, CPU

        def wait_for_everyone(self) -> None:
            pass

        def gather(self, own: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.ones(1), own])

    with pytest.raises(UserError, match=r"files that the first process writes there are visible to 1 of 2 processes"):
        caches.check_shared(tmp_path, "first", Other())  # type: ignore[arg-type]


def test_a_missing_side_car_is_named_before_the_first_step(student: Path, data: Path) -> None:
    config = configs.load(student)
    cache(config)
    (data / "train-000002.first.tar").unlink()
    with pytest.raises(UserError, match=r"train-000002.first.tar: shard is missing. .* same `wcord cache` again"):
        train(config)
    assert not Path(config.run).exists()


def test_a_run_says_that_the_features_were_computed_in_another_precision(
    student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configs.load(student)
    path = cache(config)
    about = json.loads(path.read_text())
    assert about["precision"] == "fp32"
    path.write_text(json.dumps(about | {"precision": "bf16"}))
    train(config)
    assert "first: the cached teacher features were computed in bf16, while this run" in capsys.readouterr().err


def test_jobs_of_an_array_take_the_shards_in_other_orders(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dataset(tmp_path / "many", {"train": [8] * 8})
    taken: list[str] = []
    write = caches.write_features
    monkeypatch.setattr(caches, "write_features", lambda job, shard: taken.append(shard.file) or write(job, shard))
    for name in "one", "other":
        cache(configs.load(student, [f"data.shards={folder}", f"teacher.cache={name}", "teacher.views=1"]))
    assert sorted(taken[:8]) == sorted(taken[8:])
    assert taken[:8] != taken[8:]


STALE = {
    "seed=5": "augmentation: seed 0, .* in the cache, seed 5",
    "data.flip=false": "flip True in the cache, .* flip False in this run",
    "teacher.views=3": "teacher.views: is 3, but the cache has 2",
    "teacher.cache_dtype=bfloat16": "teacher.cache_dtype: is bfloat16, but the cache has float32",
    "teacher.cache=second": r"second.cache.json: not found. Run `wcord cache`",
}


@pytest.mark.parametrize("override", STALE)
def test_a_cache_of_something_else_is_refused(student: Path, override: str) -> None:
    cache(configs.load(student))
    with pytest.raises(UserError, match=STALE[override]):
        train(configs.load(student, [override]))


def test_a_cache_of_another_teacher_or_of_changed_data_is_refused(student: Path, data: Path) -> None:
    config = configs.load(student)
    path = cache(config)
    about = json.loads(path.read_text())
    about["fingerprint"]["weights"] = "0" * 16
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match="the teacher's weights: 0000000000000000 in the cache"):
        train(config)
    cache(config)
    sidecar = data / "train-000000.first.tar"
    content = bytearray(sidecar.read_bytes())
    content[len(content) // 2] ^= 1
    sidecar.write_bytes(content)
    with pytest.raises(
        UserError, match=r"train-000000.tar: its cached features, train-000000.first.tar: its SHA-256 differs"
    ):
        train(config)


def test_a_teacher_that_sees_otherwise_is_refused_with_and_without_a_cache(student: Path, data: Path) -> None:
    """Its weights are the same."""
    config = configs.load(student)
    cache(config)
    live = configs.load(student, ["teacher.cache=null", f"run={student.parent / 'live'}"])
    train(live)
    described = Path(str(config.teacher and config.teacher.run)) / "student" / "network.json"
    about = json.loads(described.read_text())
    about["encoder"]["std"] = [0.5, 0.5, 0.5]
    described.write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"the teacher's input: .*0\.229.* in the cache, .*\[0\.5.* in this run"):
        train(config)
    with pytest.raises(UserError, match="teacher changed since it was written"):
        train(configs.load(student, ["teacher.cache=null", f"run={live.run}", "train.steps=20"]), resume=True)


def test_a_cache_of_photos_joined_from_elsewhere_is_refused(student: Path, tmp_path: Path) -> None:
    sets = [write_dataset(tmp_path / name, {"train": [count]}) for name, count in (("more", 20), ("other", 10))]
    path = cache(configs.load(student, [f"data.join=[{sets[0]}]"]))
    fingerprint = json.loads(path.read_text())["fingerprint"]
    with pytest.raises(UserError, match=rf"data.join: \['{fingerprint['joined'][0]}'\] in the cache, \['"):
        train(configs.load(student, [f"data.join=[{sets[1]}]"]))
    with pytest.raises(UserError, match=r"data.join: .* in the cache, \[\] in this run"):
        train(configs.load(student))


@pytest.mark.slow
@pytest.mark.parametrize("unpaired", ["skip", "keep"])
def test_what_the_teacher_does_not_see_has_no_features(student: Path, data: Path, unpaired: str) -> None:
    """And is skipped or kept in training, as it is with the teacher itself."""
    about = load_dataset(data)
    samples = [(f"s{i:05d}", {k: v for k, v in members(i).items() if k != "rgb.jpg" or i > 90}) for i in range(80, 96)]
    about.splits["train"][2] = write_shard(data / "train-000002.tar", samples)
    (data / MANIFEST).write_text(about.model_dump_json())
    policy = f"data.unpaired={unpaired}"
    path = cache(configs.load(student, [policy]))
    file = Cache.model_validate_json(path.read_bytes())
    assert sum(sidecar.samples for sidecar in file.sidecars.values()) == 85
    cached, live = run_of(student, "cached", policy), run_of(student, "live", policy, "teacher.cache=null")
    assert losses(cached) == pytest.approx(losses(live), rel=1e-5)
    if unpaired == "skip":
        assert {s.cause for s in read_skipped(cached / "skipped.jsonl")} == {"not cached"}
    with pytest.raises(UserError, match="the cache has no features of this sample, since `wcord cache` skipped it"):
        run_of(student, "strict")


@pytest.mark.slow
def test_what_could_not_be_read_counts_as_faulty_also_where_unpaired_samples_are_skipped(
    student: Path, data: Path
) -> None:
    about = load_dataset(data)
    samples = [(f"s{i:05d}", members(i) | ({"rgb.jpg": b"no photo"} if i > 90 else {})) for i in range(80, 96)]
    about.splits["train"][2] = write_shard(data / "train-000002.tar", samples)
    (data / MANIFEST).write_text(about.model_dump_json())
    few, many = ["data.unpaired=skip", "data.max_faulty=0.04"], ["data.unpaired=skip", "data.max_faulty=0.06"]
    with pytest.raises(UserError, match=r"first: 5 of 96 samples could not be read .* data.max_faulty: 0.04 allows"):
        cache(configs.load(student, few))
    assert [(s.shard, s.key) for s in read_skipped(data / "first.skipped.jsonl")] == [
        ("train-000002.tar", f"s{i:05d}") for i in range(91, 96)
    ]
    assert sum(Cache.model_validate_json(cache(configs.load(student, many)).read_bytes()).faulty.values()) == 5
    with pytest.raises(UserError, match=r"first: 5 of 96 samples could not be read"):
        run_of(student, "strict", *few)
    assert (run_of(student, "tolerant", *many) / "student").exists()


@pytest.mark.slow
def test_a_first_batch_without_any_cached_features_is_kept(student: Path, data: Path) -> None:
    about = load_dataset(data)
    whole = about.splits["train"]
    for number, shard in enumerate(whole):
        start = sum(s.samples for s in whole[:number])
        samples = [
            (f"s{i:05d}", {k: v for k, v in members(i).items() if k != "rgb.jpg" or i in (94, 95)})
            for i in range(start, start + shard.samples)
        ]
        about.splits["train"][number] = write_shard(data / shard.file, samples)
    (data / MANIFEST).write_text(about.model_dump_json())
    cache(configs.load(student, ["data.unpaired=keep"]))
    run = run_of(student, "kept", "data.unpaired=keep")
    shares = [json.loads(line)["unpaired"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert shares[0] == 1
    assert min(shares) < 1


@pytest.mark.slow
def test_several_teachers_each_with_a_cache_and_one_cache_of_them_all(student: Path, data: Path) -> None:
    """Three caches lie beside one set of shards, and each run reads its own."""
    alone = configs.load(student).teacher
    other = train(configs.load(student, ["teacher=null", "losses={cross_entropy: {}}", f"run={data.parent / 'range'}"]))
    both = (f"teacher.run=[{alone and alone.run},{other}]", "teacher.cache=both")
    cases = {"first": (), "second": (f"teacher.run={other}", "teacher.cache=second"), "both": both}
    for overrides in cases.values():
        cache(configs.load(student, overrides))
    assert len(list(data.glob("train-*.*.tar"))) == 3 * len(list(data.glob("train-??????.tar")))
    for name, overrides in cases.items():
        cached = losses(run_of(student, f"cached_{name}", *overrides))
        live = losses(run_of(student, f"live_{name}", *overrides, "teacher.cache=null"))
        assert cached == pytest.approx(live, rel=1e-5)
    with pytest.raises(UserError, match="the teacher's weights"):
        train(configs.load(student, [both[0]]))


@pytest.mark.parametrize("monitor", ["loss", "R@1"])
def test_held_out_samples_are_those_of_the_teacher_itself(student: Path, monitor: str) -> None:
    cache(configs.load(student))
    settings = ("train.steps=2", "evaluation.every=2", f"evaluation.monitor={monitor}")
    runs = run_of(student, "cached", *settings), run_of(student, "live", "teacher.cache=null", *settings)
    cached, live = (json.loads((run / "best" / "best.json").read_text())[monitor] for run in runs)
    assert cached == pytest.approx(live, rel=1e-4)


def test_a_cache_in_half_precision_with_maps(student: Path, data: Path) -> None:
    config = configs.load(student, ["teacher.cache_dtype=bfloat16", "losses={fitnet: {}}"])
    about = Cache.model_validate_json(cache(config).read_bytes())
    assert about.dtype == "bfloat16"
    assert about.maps
    assert len(losses(train(config))) > 0
    assert manifest_path(data, "first").is_file()


@pytest.mark.slow
def test_two_processes_share_the_work(student: Path, data: Path) -> None:
    done = launch(["cache", str(student)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "96 samples x 2 views" in done.stdout
    here = Cache.model_validate_json((data / "first.cache.json").read_bytes())
    assert here == Cache.model_validate_json(cache(configs.load(student)).read_bytes())
    run_of(student, "cached")
