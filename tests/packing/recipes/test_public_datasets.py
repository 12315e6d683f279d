"""Public datasets, from tiny files of exactly their format to shards."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.io import savemat
from sources import jpeg, samples_in, wav

from modalities import Depth
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.masks import read_mask
from pipeline.models.network import load_network
from pipeline.packing.pack import pack
from pipeline.packing.recipes import public_datasets as known
from pipeline.packing.recipes import rgbd
from pipeline.packing.recipes.plan import Plan
from pipeline.train import train

RNG = np.random.default_rng(0)


def packed(name: str, source: Path) -> tuple[Plan, dict[str, dict[str, Any]]]:
    """The plan, and each packed sample by its key with its split."""
    plan = known.plan(name, source)
    out = source.parent / "packed"
    dataset = pack(plan, out, workers=1, fractions={"train": 1.0}, max_refused=0.9)
    return plan, {s["__key__"]: s | {"split": split} for split in dataset.splits for s in samples_in(out, split)}


def image(sample: dict[str, Any]) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(sample["rgb.png"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_cifar10(tmp_path: Path) -> None:
    source = tmp_path / "cifar-10-batches-bin"
    source.mkdir()
    pixels = RNG.integers(0, 256, (6, 2, 3, 32, 32), np.uint8)
    for n, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (source / f"{name}.bin").write_bytes(b"".join(bytes([n + k]) + pixels[n, k].tobytes() for k in range(2)))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (source / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    plan, samples = packed("cifar10", source)
    assert plan.classes == {"label": names}
    assert len(samples) == 12
    one = samples["data_batch_3_00001"]
    assert (one["split"], one["label.txt"]) == ("train", b"3")
    np.testing.assert_array_equal(image(one), pixels[2, 1].transpose(1, 2, 0))
    assert samples["test_batch_00000"]["split"] == "test"


def test_cifar100(tmp_path: Path) -> None:
    source = tmp_path / "cifar-100-binary"
    source.mkdir()
    for name, labels in (("train", [(1, 4), (0, 2)]), ("test", [(1, 3)])):
        (source / f"{name}.bin").write_bytes(b"".join(bytes(pair) + bytes(3072) for pair in labels))
    (source / "fine_label_names.txt").write_text("apple\nbaby\nbear\nbed\nbee\n")
    (source / "coarse_label_names.txt").write_text("fruit\nthings\n")
    _, samples = packed("cifar100", source)
    assert samples["train_00000"]["label.txt"] == b"4"
    assert json.loads(samples["train_00000"]["meta.json"])["labels"] == {"coarse": 1}
    (source / "fine_label_names.txt").write_text("apple\n")
    with pytest.raises(UserError, match="the files contain class 4, but there are only 1 class names"):
        known.plan("cifar100", source)


def test_stl10(tmp_path: Path) -> None:
    source = tmp_path / "stl10_binary"
    source.mkdir()
    pixels = RNG.integers(0, 256, (2, 3, 96, 96), np.uint8)
    for name, count in (("train", 2), ("test", 1), ("unlabeled", 1)):
        (source / f"{name}_X.bin").write_bytes(pixels[:count].tobytes())
    (source / "train_y.bin").write_bytes(bytes([10, 1]))
    (source / "test_y.bin").write_bytes(bytes([2]))
    (source / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    _, samples = packed("stl10", source)
    assert [samples[f"train_00000{n}"]["label.txt"] for n in (0, 1)] == [b"9", b"0"]
    np.testing.assert_array_equal(image(samples["train_000001"]), pixels[1].transpose(2, 1, 0))  # columns first
    assert "label.txt" not in samples["unlabeled_000000"]
    assert samples["unlabeled_000000"]["split"] == "train"
    (source / "test_y.bin").write_bytes(bytes([2, 3]))
    with pytest.raises(UserError, match=r"2 labels for 1 images in test_X.bin"):
        known.plan("stl10", source)


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(3000))
    with pytest.raises(UserError, match="3000 bytes is not a multiple of the record size 3074"):
        known.plan("cifar100", tmp_path)
    with pytest.raises(UserError, match="Extract the binary version of the dataset here"):
        known.plan("cifar10", tmp_path)


def imagenet_tree(source: Path, *val: str) -> None:
    """Three synsets, of which two are called crane, with a photo each to train on."""
    photos = [
        "train/n01440764/n01440764_10026.JPEG",
        "train/n02012849/n02012849_1.JPEG",
        "train/n03126707/n03126707_1.JPEG",
    ]
    for number, name in enumerate([*photos, *val]):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(jpeg(number))


def devkit(source: Path) -> None:
    folder = source / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    rows = [(1, "n03126707", "crane"), (2, "n01440764", "tench, Tinca tinca"), (3, "n02012849", "crane")]
    dtype = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype)[:, None]})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n")


NAMES = {"label": ["tench", "crane n02012849", "crane n03126707"]}


def test_imagenet_with_val_in_folders(tmp_path: Path) -> None:
    source = tmp_path / "imagenet"
    imagenet_tree(source, "val/n02012849/ILSVRC2012_val_00000001.JPEG")
    plan, samples = packed("imagenet", source)
    assert plan.classes == {"label": ["n01440764", "n02012849", "n03126707"]}
    assert {key: (s["split"], s["label.txt"]) for key, s in samples.items()} == {
        "train-n01440764_10026": ("train", b"0"),
        "train-n02012849_1": ("train", b"1"),
        "train-n03126707_1": ("train", b"2"),
        "val-ILSVRC2012_val_00000001": ("test", b"1"),
    }
    devkit(source)
    assert known.plan("imagenet", source).classes == NAMES


def test_imagenet_of_links_to_its_folders(tmp_path: Path) -> None:
    """A subset is often made so."""
    imagenet_tree(tmp_path / "whole", "val/n02012849/ILSVRC2012_val_00000001.JPEG")
    for name in ("train/n02012849", "train/n03126707", "val/n02012849"):
        (tmp_path / "part" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "part" / name).symlink_to(tmp_path / "whole" / name)
    plan, samples = packed("imagenet", tmp_path / "part")
    assert plan.classes == {"label": ["n02012849", "n03126707"]}
    assert {key: s["label.txt"] for key, s in samples.items()} == {
        "train-n02012849_1": b"0",
        "train-n03126707_1": b"1",
        "val-ILSVRC2012_val_00000001": b"0",
    }


@pytest.mark.parametrize("kaggle", [True, False])
def test_imagenet_with_val_in_one_folder(tmp_path: Path, kaggle: bool) -> None:
    source = tmp_path / "imagenet"
    root = source / "ILSVRC" / "Data" / "CLS-LOC" if kaggle else source
    imagenet_tree(root, *(f"val/ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2, 3)))
    with pytest.raises(UserError, match=r"add LOC_val_solution\.csv or ILSVRC2012_devkit_t12"):
        known.plan("imagenet", source)
    if kaggle:
        rows = (
            "ILSVRC2012_val_00000002,n03126707 1 2 3 4 n03126707 1 2 3 4 \nILSVRC2012_val_00000001,n02012849 1 2 3 4 "
        )
        (source / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{rows}\n")
        (source / "LOC_synset_mapping.txt").write_text(
            "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"
        )
    else:
        devkit(source)
    plan, samples = packed("imagenet", source)
    assert plan.classes == NAMES
    test = {key: s["label.txt"] for key, s in samples.items() if s["split"] == "test"}
    assert test == {"val-ILSVRC2012_val_00000001": b"1", "val-ILSVRC2012_val_00000002": b"2"}
    assert [refused.file for refused in plan.refused] == ["val/ILSVRC2012_val_00000003.JPEG"]


def test_esc50(tmp_path: Path) -> None:
    source = tmp_path / "ESC-50-master"
    (source / "meta").mkdir(parents=True)
    (source / "audio").mkdir()
    rows = [("1-100032-A-0.wav", 1, 0, "dog", "True", 100032, "A"), ("5-9032-A-0.wav", 5, 0, "dog", "True", 9032, "A"),
            ("2-1-B-1.wav", 2, 1, "rain", "False", 1, "B"), ("3-7-A-1.wav", 3, 1, "rain", "False", 7, "A")]  # fmt: skip
    with (source / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "fold", "target", "category", "esc10", "src_file", "take"), *rows])
    for row in rows[:3]:
        (source / "audio" / row[0]).write_bytes(wav())
    plan, samples = packed("esc50", source)
    assert {key: (s["split"], s["label.txt"]) for key, s in samples.items()} == {
        "1-100032-A-0": ("train", b"0"),
        "5-9032-A-0": ("test", b"0"),
        "2-1-B-1": ("train", b"1"),
    }
    assert [fault.reason for fault in plan.refused] == ["no such file"]
    assert plan.licence == "CC BY-NC 3.0"
    assert {s.group for s in plan.samples} == {"100032", "9032", "1"}


def test_speech_commands(tmp_path: Path) -> None:
    source = tmp_path / "speech_commands_v0.02"
    for word in ("yes", "no", "_background_noise_"):
        (source / word).mkdir(parents=True)
    for name in ("yes/a_nohash_0", "yes/a_nohash_1", "no/a_nohash_0", "no/b_nohash_0", "yes/c_nohash_0"):
        (source / f"{name}.wav").write_bytes(wav())
    (source / "_background_noise_/pink.wav").write_bytes(wav())
    (source / "validation_list.txt").write_text("no/b_nohash_0.wav\n")
    (source / "testing_list.txt").write_text("yes/c_nohash_0.wav\n")
    plan, samples = packed("speech_commands", source)
    assert plan.classes == {"label": ["no", "yes"]}
    assert {key: s["split"] for key, s in samples.items()} == {
        "yes-a_nohash_0": "train",
        "yes-a_nohash_1": "train",
        "no-a_nohash_0": "train",
        "no-b_nohash_0": "val",
        "yes-c_nohash_0": "test",
    }
    assert [s.group for s in plan.samples].count("a") == 3


def test_flickr8k(tmp_path: Path) -> None:
    source = tmp_path / "flickr8k"
    (source / "Flicker8k_Dataset").mkdir(parents=True)
    for name in "abc":
        (source / f"Flicker8k_Dataset/{name}.jpg").write_bytes(jpeg(1))
    (source / "Flickr8k.token.txt").write_text(
        "a.jpg#0\tA dog .\na.jpg#1\tIt runs .\nb.jpg#0\tA cat .\nd.jpg#0\tGone .\n"
    )
    for name, photos in (("train", "a.jpg\nd.jpg\n"), ("dev", "b.jpg\n"), ("test", "c.jpg\n")):
        (source / f"Flickr_8k.{name}Images.txt").write_text(photos)
    plan, samples = packed("flickr8k", source)
    assert samples["a"]["text.txt"] == b"A dog .\nIt runs ."
    assert {key: s["split"] for key, s in samples.items()} == {"a": "train", "b": "val"}
    assert {fault.key: fault.reason for fault in plan.refused} == {
        "c": "the photo has no caption",
        "d": "no such file",
    }


def test_coco(tmp_path: Path) -> None:
    source = tmp_path / "coco"
    (source / "annotations").mkdir(parents=True)
    for part, number in (("train2017", 9), ("val2017", 139)):
        (source / part).mkdir()
        name = f"{number:012d}.jpg"
        (source / part / name).write_bytes(jpeg(number))
        content = {
            "images": [{"id": number, "file_name": name}],
            "annotations": [{"image_id": number, "id": k, "caption": c} for k, c in enumerate(["A  bowl\n", "Food."])],
        }
        (source / f"annotations/captions_{part}.json").write_text(json.dumps(content))
    _, samples = packed("coco", source)
    assert samples["000000000009"]["text.txt"] == b"A bowl\nFood."
    assert samples["000000000139"]["split"] == "test"
    (source / "annotations/captions_train2017.json").write_text("[]")
    with pytest.raises(UserError, match=r"captions_train2017.json: not a COCO caption file"):
        known.plan("coco", source)


def nyu(source: Path) -> None:
    """Three frames in the files of the set, with the coarse classes beside them."""
    h5py, scipy_io = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    source.mkdir()
    photo = np.zeros((3, 3, 640, 480), np.uint8)
    photo[:, 0, 100:200] = 250  # red, columns 100 to 199: MATLAB's arrays lie column by column
    metres = np.full((3, 640, 480), 2.0, np.float32)
    metres[1, 320, 240] = 5.5
    labels = np.zeros((3, 640, 480), np.uint16)
    labels[0, 10, 20] = 700
    with h5py.File(source / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"], file["depths"], file["labels"] = photo, metres, labels
        cells_of = {
            "sceneTypes": ["kitchen", "office", "kitchen"],
            "scenes": ["k_1", "o_1", "k_2"],
            "names": [f"thing {n}" for n in range(1, 895)],
        }
        for name, texts in cells_of.items():
            cells = file.create_dataset(name, (1, len(texts)), h5py.ref_dtype)
            for n, text in enumerate(texts):
                file[f"#{name}{n}"] = np.array([[ord(letter)] for letter in text], np.uint16)
                cells[0, n] = file[f"#{name}{n}"].ref
    scipy_io.savemat(source / "splits.mat", {"trainNdxs": [[1], [3]], "testNdxs": [[2]]})


def nyu_coarse(source: Path) -> None:
    """The mapping to forty classes."""
    names = np.empty((1, 40), object)
    names[0] = [np.array([f"class {n}"]) for n in range(1, 41)]
    mapping = {"mapClass": np.arange(894)[None] % 40 + 1, "className": names}
    savemat(source / "classMapping40.mat", mapping)


def test_nyu_depth_v2(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    source = tmp_path / "nyu"
    nyu(source)
    plan, samples = packed("nyu_depth_v2", source)
    assert plan.classes["label"] == ["kitchen", "office"]
    assert plan.classes["mask"][699] == "thing 700"
    assert plan.masks == {"mask": list(range(1, 895))}
    assert [(s["split"], s["label.txt"]) for s in samples.values()] == [
        ("train", b"0"),
        ("train", b"0"),
        ("test", b"1"),
    ]
    shown = cv2.imdecode(np.frombuffer(samples["nyu_0000"]["rgb.jpg"], np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (480, 640, 3)
    assert shown[240, 150, 2] > 200 > 50 > shown[240, 150, 0]
    assert shown[240, 300].max() < 50
    depth = Depth().decode(samples["nyu_0001"]["depth.png"], json.loads(samples["nyu_0001"]["meta.json"]))
    assert depth.metres[240, 320] == pytest.approx(5.5)
    assert depth.intrinsics[0] == pytest.approx(518.857901)
    mask = cv2.imdecode(np.frombuffer(samples["nyu_0000"]["mask.png"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert mask[20, 10] == 700
    nyu_coarse(source)
    plan = known.plan("nyu_depth_v2", source)
    coarse = read_mask(plan.samples[0].read(plan.make)["classes.png"], plan.masks["classes"])
    assert plan.classes["classes"][coarse[20, 10]] == f"class {699 % 40 + 1}"
    assert (coarse >= 0).sum() == 1  # 0, unlabelled, is no class
    for name in ("images", "depths", "labels", "scenes"):
        rgbd._open.cache_clear()
        with h5py.File(source / "nyu_depth_v2_labeled.mat", "a") as file:
            file.move(name, "away")
        with pytest.raises(UserError, match=f"nyu_depth_v2_labeled.mat: not the labelled dataset of NYU.*{name}"):
            known.plan("nyu_depth_v2", source)
        rgbd._open.cache_clear()
        with h5py.File(source / "nyu_depth_v2_labeled.mat", "a") as file:
            file.move("away", name)


@pytest.mark.slow
def test_the_nyu_config_trains_on_the_set(tmp_path: Path) -> None:
    nyu(tmp_path / "nyu")
    nyu_coarse(tmp_path / "nyu")
    plan = known.plan("nyu_depth_v2", tmp_path / "nyu")
    pack(plan, tmp_path / "packed")
    small = ["data.batch_size=2", "data.workers=0", "train.steps=1", "train.warmup=0"]
    small += [f"data.shards={tmp_path / 'packed'}", "student.encoder={name: cnn5, width: 4, size: 32}"]
    of_teacher = ["teacher=null", "losses={cross_entropy: {}}", "student.modality=rgb", f"run={tmp_path / 'teacher'}"]
    teacher = train(configs.load("nyu_segmentation", [*small, *of_teacher]))
    run = train(configs.load("nyu_segmentation", [*small, f"teacher.run={teacher}", f"run={tmp_path / 'run'}"]))
    assert load_network(run / "student").classes == plan.classes["classes"]


def test_sun_rgbd(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    source = tmp_path / "sun"
    millimetres = np.array([[1500, 0], [8000, 4321]], np.uint16)
    rotated = (millimetres << 3) | (millimetres >> 13)
    for name, kind in (("kv1/NYUdata/NYU0001", "office"), ("xtion/a/0001", "kitchen"), ("xtion/a/0002", "kitchen")):
        folder = source / "SUNRGBD" / name
        for part in ("image", "depth_bfx"):
            (folder / part).mkdir(parents=True)
        (folder / "image/0.jpg").write_bytes(jpeg(3))
        if name != "xtion/a/0002":
            cv2.imwrite(str(folder / "depth_bfx/0.png"), rotated)
        (folder / "intrinsics.txt").write_text("518.8 0 320\n0 519.5 240\n0 0 1\n")
        (folder / "scene.txt").write_text(kind)
    tools = source / "SUNRGBDtoolbox" / "traintestSUNRGBD"
    tools.mkdir(parents=True)
    paths = np.empty((1, 1), object)
    paths[0, 0] = "/n/fs/sun3d/data/SUNRGBD/kv1/NYUdata/NYU0001/"
    scipy_io.savemat(tools / "allsplit.mat", {"alltrain": paths})
    plan, samples = packed("sun_rgbd", source)
    assert {key: s["split"] for key, s in samples.items()} == {"kv1-NYUdata-NYU0001": "train", "xtion-a-0001": "test"}
    one = samples["xtion-a-0001"]
    depth = Depth().decode(one["depth.png"], json.loads(one["meta.json"]))
    np.testing.assert_allclose(depth.metres, millimetres / 1000, rtol=1e-6)
    assert depth.intrinsics[:2] == pytest.approx((518.8, 519.5))
    assert [fault.reason for fault in plan.refused] == [
        "1 photos in image/ and 0 maps in depth_bfx/, expected one of each"
    ]

    (source / "SUNRGBD/xtion/a/0001/intrinsics.txt").write_text("518.8 0 320")
    shutil.rmtree(tmp_path / "packed")
    changed, samples = packed("sun_rgbd", source)
    assert list(samples) == ["kv1-NYUdata-NYU0001"]
    before, after = ({s.key: s.stamp for s in p.samples} for p in (plan, changed))
    assert [key for key in before if before[key] != after[key]] == ["xtion-a-0001"]  # a pack that goes on notices
    refused = [json.loads(line) for line in (tmp_path / "packed" / "refused.jsonl").read_text().splitlines()]
    assert refused[0]["file"] == "xtion/a/0001"
    assert refused[0]["reason"].endswith("a/0001/intrinsics.txt: invalid camera: expected nine numbers")


def test_an_unknown_or_empty_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cifar11: unknown dataset; choose one of cifar10, cifar100"):
        known.plan("cifar11", tmp_path)
    with pytest.raises(UserError, match=r"no captions_train2017.json"):
        known.plan("coco", tmp_path)
