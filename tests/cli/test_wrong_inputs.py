"""Wrong inputs of every kind: each is answered by what is wrong and by what to do about it, without a traceback.

For each message that the docs list, the cure is carried out too, and must work.
"""

from __future__ import annotations

import errno
import gzip
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call
from foreign_shards import plain_tar
from shapes_dataset import members, write_dataset
from sources import wav

from pipeline.common.owner import owned
from pipeline.data.dataset import MANIFEST

PAGE = Path(__file__).parents[2] / "docs" / "faults-and-answers.md"

Prepare = Callable[[Path, pytest.MonkeyPatch], object]
"""Makes the world wrong: gets the working folder, which holds data, config.yaml, run (trained) and index."""


def write(name: str, content: str | bytes) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def cut(name: str) -> Prepare:
    """Half of a file, as a copy that was interrupted leaves it."""

    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return prepare


def remove(name: str) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return prepare


def repacked(folder: Path, patch: pytest.MonkeyPatch) -> None:
    write_dataset(folder / "data", {"train": [60], "test": [12]})


def numbered(number: int) -> Prepare:
    """A run of a version whose folders have another format."""

    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        path = folder / "run" / "config.yaml"
        path.write_text(path.read_text().replace("format: 1", f"format: {number}"))

    return prepare


def shard(name: str) -> Prepare:
    """A shard of somebody else, with what the student reads and its label."""

    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        plain_tar(folder / name, [(f"{number:03d}", members(number)) for number in range(32)])

    return prepare


def compressed(folder: Path, patch: pytest.MonkeyPatch) -> None:
    shard("more/0.tar")(folder, patch)
    (folder / "more/0.tar.gz").write_bytes(gzip.compress((folder / "more/0.tar").read_bytes()))
    (folder / "more/0.tar").unlink()


def decompressed(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "more/0.tar").write_bytes(gzip.decompress((folder / "more/0.tar.gz").read_bytes()))
    (folder / "more/0.tar.gz").unlink()


def sounds(folder: Path, patch: pytest.MonkeyPatch) -> None:
    plain_tar(folder / "sounds" / "0.tar", [(f"{number:02d}", {"wav": wav()}) for number in range(16)])


def without(*modules: str) -> Prepare:
    """As if these packages were not installed."""

    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        for module in modules:
            for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, module, None)

    return prepare


def launched(**variables: str) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        for name, value in variables.items():
            patch.setenv(name, value)

    return prepare


def full(number: int) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: object, **keywords: object) -> None:
            raise OSError(number, os.strerror(number), "run2/config.yaml")

        patch.setattr("pipeline.runs.folder.write_atomic", refuse)

    return prepare


def no_memory(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    patch.setattr("pipeline.train.loop.build_optimizer", refuse)


def alone(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def wait(*arguments: object, **keywords: object) -> None:
        raise torch.distributed.DistStoreError("Timed out after 601 seconds waiting for clients. 1/2 clients joined.")

    patch.setattr("pipeline.train.launch.PartialState", wait)


HELD = ExitStack()


def hold_run(folder: Path, _: Any) -> None:
    HELD.enter_context(owned(folder / "run2"))


Wrong = tuple[Any, ...]
TRAIN = "train config.yaml run=run2"
WRONG: dict[str, Wrong] = {
    # what is wrong: (command, cause, cure, what makes it so)
    "no such config": ("train no_such.yaml", "no_such.yaml: no such config", "or a shipped config: compress"),
    "a shipped config misspelt": ("train rgb_to_dept", "no such config", "Did you mean rgb_to_depth?"),
    "a config that is a folder": ("train data", "data: no such config", "Use a YAML file"),
    "a config that is not YAML": (
        "train bad.yaml",
        "is not readable YAML",
        "line 1, column 8",
        write("bad.yaml", "run: [a"),
    ),
    "a comment in an override": (
        f"{TRAIN} 'train.steps=5 # few'",
        "it contains a comment",
        "remove it (override train.steps=5 # few)",
    ),
    "a config that is binary": (
        "train bad.yaml",
        "is not UTF-8 text",
        "use a YAML file",
        write("bad.yaml", b"\xff\xfe\x00"),
    ),
    "an empty config": (
        "train bad.yaml",
        "data.shards: is required and missing",
        "requires either `steps` or `epochs`",
        write("bad.yaml", ""),
    ),
    "a config that is a list": (
        "train bad.yaml",
        'got ["a", "b"]',
        "must consist of lines `key: value`",
        write("bad.yaml", "- a\n- b"),
    ),
    "a key given twice": (
        "train bad.yaml",
        "run: is set twice, in lines 1 and 2",
        "keep one",
        write("bad.yaml", "run: a\nrun: b"),
    ),
    "a reference to nothing": (
        f"{TRAIN} 'train.warmup=${{train.stepz}}'",
        "train.warmup: refers to a missing key or to itself",
        'got "${train.stepz}" (override',
    ),
    "an unknown key": (f"{TRAIN} trian.steps=5", "trian: unknown key", "did you mean train?"),
    "a number out of range": (
        f"{TRAIN} train.steps=-5",
        "train.steps: must be above 0",
        "got -5 (override train.steps=-5)",
    ),
    "text for a number": (f"{TRAIN} train.steps=two", "train.steps: must be an integer", 'got "two" (override'),
    "a rate that is no number": (
        f"{TRAIN} train.learning_rate=.nan",
        "train.learning_rate: must be a finite number",
        "got NaN (override",
    ),
    "an override without a value": (
        f"{TRAIN} train.steps",
        'override "train.steps"',
        "must be key=value, e.g. train.steps=1000",
    ),
    "steps and epochs": (f"{TRAIN} train.epochs=3", "requires either `steps` or `epochs`", "set the other one to null"),
    "a crop the wrong way round": (
        f"{TRAIN} data.crop=[1.0,0.5]",
        "data.crop: must be [minimum, maximum]",
        "got [1.0, 0.5]",
    ),
    "no losses": (f"{TRAIN} 'losses={{}}'", "losses: must have 1 or more entries", "got {}"),
    "an unknown loss": (f"{TRAIN} 'losses={{wcordd: {{}}}}'", "losses.wcordd: unknown key", "did you mean wcord?"),
    "a loss that needs a teacher": (
        f"{TRAIN} teacher=null 'losses={{kd: {{}}}}'",
        "losses.kd: requires a teacher",
        "add `teacher:`, or remove this loss",
    ),
    "an unknown modality": (f"{TRAIN} student.modality=dept", "there is no 'dept'", "did you mean 'depth'?"),
    "an encoder of another modality": (
        f"{TRAIN} student.encoder=log_mel_cnn",
        "there is no 'log_mel_cnn'",
        "there are: MobileNetV2",
    ),
    "an encoder's keyword misspelt": (
        f"{TRAIN} student.encoder.widht=3",
        "student.encoder.widht: unknown key",
        "did you mean width?",
    ),
    "a class that cannot be imported": (
        f"{TRAIN} student.encoder=nowhere:Net",
        "cannot import nowhere",
        "add its folder to PYTHONPATH",
    ),
    "settings that exclude each other": (
        f"{TRAIN} train.compile=true train.gradient_checkpointing=true",
        "compile and gradient_checkpointing cannot be combined",
        "set one of them to false",
    ),
    "a teacher that is not there": (
        f"{TRAIN} teacher.run=nowhere",
        "nowhere/student/network.json: not found",
        "Use the run folder of a completed training",
    ),
    "a teacher that is not finished": (
        f"{TRAIN} teacher.run=half",
        "half/student/network.json: not found",
        "Use the run folder of a completed training",
        write("half/config.yaml", "run: half"),
    ),
    "a model that is not there": (
        f"{TRAIN} student.modality=rgb 'student.encoder={{name: transformers, model: ./nowhere}}'",
        "cannot read model './nowhere'",
        "check the name, or download the model",
    ),
    "a command for a shard": (
        f"{TRAIN} 'data.shards=pipe:cat x.tar'",
        "data.shards: pipe:cat x.tar: pipe: commands are never run",
        "Use the URL of the shards",
    ),
    "a compressed shard": (
        f"{TRAIN} 'data.shards=more/*'",
        "the tar is compressed, which does not allow random access",
        "Decompress it to a .tar",
        compressed,
    ),
    "a pattern of nothing": (
        f"{TRAIN} 'data.shards=more/*.tar'",
        "contains no dataset.json and no .tar",
        "or a folder, a glob or a brace pattern such as {000..099}.tar",
    ),
    "a shard of others that is cut short": (
        f"{TRAIN} data.shards=more",
        "end-of-archive marker is missing",
        "Repair the shard or remove it from data.shards",
        write("more/0.tar", bytes(100)),
    ),
    "data that are not there": (
        f"{TRAIN} data.shards=nowhere",
        "nowhere/dataset.json: not found",
        "run the same `wcord pack`",
    ),
    "data that are a file": (
        f"{TRAIN} data.shards=config.yaml",
        "config.yaml/dataset.json: is not a folder, or one of its parents is a file",
        "Choose another path",
    ),
    "a dataset.json that is cut short": (
        TRAIN,
        "dataset.json: the file: Invalid JSON",
        "Pack the data again",
        cut(f"data/{MANIFEST}"),
    ),
    "a dataset.json of something else": (
        TRAIN,
        "dataset.json: name: Field required",
        "Pack the data again",
        write(f"data/{MANIFEST}", "{}"),
    ),
    "a shard that is missing": (
        TRAIN,
        "train-000001.tar: shard is missing",
        "Restore it, or run the same `wcord pack` again",
        remove("data/train-000001.tar"),
    ),
    "a shard that is cut short": (
        TRAIN,
        "truncated or changed",
        "Delete it and run the same `wcord pack` again",
        cut("data/train-000001.tar"),
    ),
    "a label that is not there": (
        f"{TRAIN} data.label=colour",
        "no label `colour` in this dataset",
        "it has: label, parity",
    ),
    "a batch larger than the data": (
        f"{TRAIN} data.batch_size=5000",
        "fewer than the global batch of 5000",
        "lower data.batch_size",
    ),
    "a split that is not there": (
        f"{TRAIN} evaluation.every=2 evaluation.split=dev",
        "split `dev` has no samples",
        "splits of this dataset: train (96 samples)",
    ),
    "a run folder that holds a run": (
        "train config.yaml",
        "already contains a run",
        "Resume it with --resume, replace it with --overwrite",
    ),
    "a run folder below a file": (
        "train config.yaml run=config.yaml/run",
        "is not a folder, or one of its parents is a file",
        "Choose another path",
    ),
    "a run folder that nobody may write": ("train config.yaml run=/sys/run", "/sys/run: ", "hoose another path"),
    "a checkpoint of other settings": (
        "train config.yaml --resume student.encoder.width=8",
        "student changed since it was written",
        "Resume with the original config, or choose another `run`",
    ),
    "a checkpoint of other shards": (
        "train config.yaml --resume",
        "the training shards have changed",
        "Restore the dataset, start again with --overwrite",
        repacked,
    ),
    "a student without a checkpoint": (
        "train config.yaml --resume",
        "no checkpoint to resume from",
        "Replace it with --overwrite",
        remove("run/checkpoints"),
    ),
    "a run that is its own teacher": (
        "train config.yaml teacher.run=run --overwrite",
        "run: is the same folder as teacher.run (run)",
        "choose another `run`",
    ),
    "no features in the cache": (
        f"{TRAIN} teacher.cache=none",
        "none.cache.json: not found",
        "Run `wcord cache` with the same config first",
    ),
    "features of the first epoch that no other has": (
        f"{TRAIN} teacher.cache=auto data.flip=true",
        "teacher.cache: auto stores what the teacher sees in the first epoch, but",
        "Set teacher.views to the number of views",
    ),
    "half precision without a GPU": (
        f"{TRAIN} train.precision=fp16",
        "fp16 requires a GPU",
        "use fp32 (or bf16) on a CPU",
    ),
    "FSDP without a GPU": (
        TRAIN,
        "FSDP: Accelerate only shards models on GPUs",
        "launch without `use_fsdp` on a CPU",
        launched(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2"),
    ),
    "DeepSpeed": (
        TRAIN,
        "DeepSpeed is not supported",
        "accelerate launch --config_file configs/accelerate/fsdp.yaml",
        launched(ACCELERATE_USE_DEEPSPEED="true"),
    ),
    "a process that no other joins": (TRAIN, "the processes did not connect to", "see its error message", alone),
    "a GPU's memory that is full": (TRAIN, "out of GPU memory", "set train.micro_batch", no_memory),
    "a disk that is full": (
        TRAIN,
        "no space left",
        "free disk space and run the command again with `--resume`",
        full(errno.ENOSPC),
    ),
    "a quota that is used up": (
        TRAIN,
        "no space left",
        "free disk space and run the command again with `--resume`",
        full(errno.EDQUOT),
    ),
    "too many open files": (TRAIN, "too many open files", "Raise the limit (`ulimit -n 65536`)", full(errno.EMFILE)),
    "a disk that breaks": (TRAIN, "the disk failed", "Check it (`dmesg`) or its network", full(errno.EIO)),
    "an evaluation of no run": (
        "evaluate nowhere",
        "nowhere: not a run folder (no config.yaml)",
        "Pass the run folder that `wcord train` created",
    ),
    "an evaluation of an unfinished run": (
        "evaluate run",
        "network.json: not found",
        "Use the run folder of a completed training",
        remove("run/student"),
    ),
    "weights cut short": (
        "evaluate run",
        "model.safetensors: does not match network.json",
        "Restore both, or train again",
        cut("run/student/model.safetensors"),
    ),
    "a run of a newer version": (
        "evaluate run",
        "written in format 2 by a newer version of wcord",
        "Update: pip install --upgrade wcord",
        numbered(2),
    ),
    "a run of an older version": (
        "report run",
        "written in format 0 by an older version of wcord",
        "Export the student with that version",
        numbered(0),
    ),
    "a run's config that is damaged": (
        "evaluate run",
        "run/config.yaml: is not readable YAML",
        "line 1, column 7",
        write("run/config.yaml", "run: ["),
    ),
    "a report of no run": (
        "report nowhere",
        "nowhere: no such run folder",
        "Pass the run folder that `wcord train` created",
    ),
    "a report onto a folder": ("report run --out data", "data: is a folder", "Pass the path of a file"),
    "a comparison with an unknown method": (
        "compare run --baseline crd",
        "there is no method 'crd'",
        "choose one of run",
    ),
    "a bench that is not there": ("bench nowhere.yaml", "nowhere.yaml: no such benchmark", "a shipped one: cifar100"),
    "a check of no data": ("check nowhere", "nowhere/dataset.json: not found", "run the same `wcord pack`"),
    "a check of nothing": ("check", "SHARDS is missing", "`wcord check data/mine`"),
    "pairs that no run has estimated": (
        "check --pairs run",
        "run/pairs.jsonl: not found or empty",
        "train with this setting first",
    ),
    "pairs of no run": (
        "check --pairs nowhere",
        "nowhere: not a run folder (no config.yaml)",
        "Pass the run folder that `wcord train` created",
    ),
    "pairs and a config": (
        "check data --pairs run --config config.yaml",
        "--pairs: cannot be combined with --config or --listed",
        "Run one command for each",
    ),
    "a table that is not there": (
        "pack manifest nowhere.csv out --field rgb=x",
        "nowhere.csv: No such file",
        "Use a CSV or JSONL file",
    ),
    "a table without that column": (
        "pack manifest t.csv out --field rgb=photo",
        "`photo` is neither a column",
        "the columns are id, path",
        write("t.csv", "id,path\n1,a.jpg\n"),
    ),
    "a table of files that are not there": (
        "pack manifest t.csv out --field rgb=path",
        "a.jpg: no such file",
        "Correct the sources or the options",
        write("t.csv", "path\na.jpg\n"),
    ),
    "an empty table": (
        "pack manifest t.csv out --field rgb=path",
        "the table has no rows",
        "Use a CSV file with a header",
        write("t.csv", ""),
    ),
    "a field without a source": (
        "pack manifest t.csv out --field rgb",
        "--field rgb: expected a field and its source",
        "e.g. `--field rgb=photos`",
        write("t.csv", "path\na.jpg\n"),
    ),
    "a camera without its centre": (
        "pack manifest t.csv out --field rgb=path --intrinsics 500,500",
        "500,500: invalid camera",
        "`--intrinsics fx,fy,cx,cy`",
        write("t.csv", "path\na.jpg\n"),
    ),
    "folders that are not there": (
        "pack folders nowhere out --field rgb=photos",
        "nowhere/photos: the folder does not exist or is empty",
        "Set it with --field NAME=FOLDER",
    ),
    "shares that leave nothing": (
        "pack tabletop out --test 1.5",
        "--test 1.5 and --val 0.0",
        "each must be at least 0, and their sum below 1",
    ),
    **{
        f"shards of {size} MB": (f"pack tabletop out --shard-mb {size}", f"--shard-mb {float(size)}", "such as 64")
        for size in ("nan", "inf", "0")
    },
    **{
        f"a share {share} of refused": (
            f"pack manifest t.csv out --field text=said --max-refused {share}",
            f"max_refused {float(share)}",
            "expected a fraction from 0 to 1, such as 0.05",
            write("t.csv", "said\na cat\n"),
        )
        for share in ("nan", "inf", "-1")
    },
    "a packing onto another": (
        "pack tabletop data --scenes 8 --size 32 --workers 1",
        "the folder contains data packed from other sources or with other options or seed",
        "Choose another folder, or pass `overwrite`",
    ),
    "an unknown dataset": ("pack dataset cifar11 data out", "cifar11: unknown dataset", "choose one of cifar10"),
    "a dataset in the wrong folder": (
        "pack dataset cifar10 data out",
        "data_batch_1.bin: No such file",
        "Extract the binary version of the dataset here",
    ),
    "a file that is not there": (
        "predict run nowhere.png",
        "nowhere.png: no such file or folder",
        "Pass files, folders, packed datasets or shards",
    ),
    "a folder without such files": (
        "predict run run/student",
        "no depth files found",
        "(.npy, .npz, .png, .tif, .tiff)",
    ),
    "a file that is not what its name says": (
        "predict run text.png",
        "none of the 1 inputs can be read",
        "not a JPEG, PNG or WebP file",
        write("text.png", "not a picture"),
    ),
    "a table of an unknown kind": (
        "predict run data --out out.xlsx",
        "--out out.xlsx",
        "the name must end with .csv or .jsonl",
    ),
    "embeddings with nowhere to go": ("embed run data", "nothing to write", "pass --out FILE.npy"),
    "an index that is not there": (
        "search nowhere --depth x.png",
        "nowhere: no index found",
        "wcord embed RUN DATA --index nowhere",
    ),
    "a query of an unknown modality": (
        "search index --smell x.png",
        "--smell: no network of",
        "use --depth or --rgb",
    ),
    "a query that is not there": (
        "search index --depth x.png",
        "x.png: No such file or directory",
        "Pass a depth file",
    ),
    "no query": ("search index", "pass exactly one query", "e.g. --depth query.png"),
    "an export onto a folder": ("export run data", "data: already exists", "choose a new folder, or remove it"),
    "an export of no run": (
        "export nowhere out",
        "nowhere: not a run folder",
        "Pass the run folder that `wcord train` created",
    ),
    "a busy port": ("serve run --port BUSY", "port BUSY is busy", "choose another one: --port"),
    "a port that cannot be": ("serve run --port 99999", "cannot listen on 127.0.0.1:99999", "port must be 0-65535"),
    "an address of another machine": (
        "serve run --host 203.0.113.7",
        "cannot listen on 203.0.113.7:8000",
        "Use a free port and an address of this machine",
    ),
    "no onnx": ("export run out", "this requires onnx", "pip install 'wcord[export]'", without("onnx")),
    "no faiss": (
        "embed run data --index out",
        "this requires faiss",
        "pip install 'wcord[search]'",
        without("faiss"),
    ),
    "no pyarrow": (
        "embed run data --out out.parquet",
        "this requires pyarrow",
        "pip install 'wcord[search]'",
        without("pyarrow"),
    ),
    "no uvicorn": (
        "serve run --port 0",
        "this requires uvicorn",
        "pip install 'wcord[serve]'",
        without("uvicorn"),
    ),
    "no wandb": (
        f"{TRAIN} train.trackers=[wandb]",
        "this requires wandb",
        "pip install 'wcord[track]'",
        without("wandb"),
    ),
    "no s3fs": (
        f"{TRAIN} data.shards=s3://bucket/data",
        "Install s3fs to access S3",
        "pip install 'wcord[remote]'",
        without("s3fs"),
    ),
    "no torchaudio": (
        f"{TRAIN} data.shards=sounds teacher=null student.modality=audio student.encoder=log_mel_cnn",
        "audio requires torchaudio",
        "pip install torchaudio soundfile",
        without("torchaudio"),
        sounds,
    ),
    "a password in an address": (
        f"{TRAIN} data.shards=https://me:secret@host/data",
        "https://…@host: the URL of a dataset must not contain a user name or password",
        "configure the credentials as the client library of the object store expects them",
    ),
    "a test split that is not there": (
        f"{TRAIN} evaluation.split=tset",
        "evaluation.split: data: split `tset` has no samples",
        "splits of this dataset: train (96 samples), test (30 samples)",
    ),
    "a folder that another process writes": (
        f"{TRAIN} --overwrite",
        "is writing to it",
        "choose another folder",
        hold_run,
    ),
    "a loss on labels that are not there": (
        f"{TRAIN} data.shards=more",
        "requires class logits, but more has no classes for the label `label`",
        "Set data.label to where the class is",
        shard("more/0.tar"),
    ),
    "an unknown command": ("trian config.yaml", "No such command 'trian'", "Did you mean 'train'?"),
    "an unknown option": ("train config.yaml --resum", "No such option: --resum", "--resume"),
    "an option without its value": ("pack tabletop out --scenes", "'--scenes'", "requires an argument"),
    "a number that is none": ("pack tabletop out --scenes many", "Invalid value for '--scenes'", "valid integer"),
    "an unknown setting": ("config explain train.clipp", "train.clipp: unknown setting", "Did you mean train.clip?"),
}


def undone(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The world is as it should be again."""
    patch.undo()


def packed_again(folder: Path, patch: pytest.MonkeyPatch) -> None:
    write_dataset(folder / "data", {"train": [50, 30, 16], "test": [20, 10]})


def copied_config(folder: Path, patch: pytest.MonkeyPatch) -> None:
    shutil.copy(folder / "config.yaml", folder / "bad.yaml")


def served_at_once(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("uvicorn.Server.run", lambda *arguments, **keywords: None)


def released(folder: Path, patch: pytest.MonkeyPatch) -> None:
    HELD.close()


NET = """
from losses import Features
from modalities.encoders.cnn5 import CNN5


class Net(CNN5):
    pass
"""
SHORT = f"{TRAIN} train.steps=2 train.warmup=1"
CURES: dict[str, tuple[str | Prepare, ...]] = {
    # what is wrong: the steps of its cure; commands must succeed
    "no such config": (SHORT,),
    "a config that is not YAML": (copied_config, "train bad.yaml run=run2"),
    "a comment in an override": (f"{TRAIN} train.steps=5",),
    "an empty config": (copied_config, "train bad.yaml run=run2"),
    "an unknown key": (f"{TRAIN} train.steps=5",),
    "steps and epochs": (f"{TRAIN} train.steps=null train.epochs=1",),
    "a loss that needs a teacher": (
        f"{SHORT} 'losses={{kd: {{}}}}'",
        "train config.yaml run=run3 train.steps=2 teacher=null 'losses={kd: {}, cross_entropy: {}}' losses.kd=null",
    ),
    "a class that cannot be imported": (write("nowhere.py", NET), f"{SHORT} student.encoder=nowhere:Net"),
    "a compressed shard": (decompressed, f"{SHORT} 'data.shards=more/*' data.label=label.txt teacher=null"),
    "a loss on labels that are not there": (f"{SHORT} data.shards=more data.label=label.txt teacher=null",),
    "a pattern of nothing": (
        shard("more/0.tar"),
        f"{SHORT} 'data.shards=more/*.tar' data.label=label.txt teacher=null",
    ),
    "a shard of others that is cut short": (
        shard("more/1.tar"),
        f"{SHORT} data.shards=more/1.tar data.label=label.txt teacher=null",
    ),
    "data that are not there": (
        "pack tabletop nowhere --scenes 24 --size 32 --workers 1",
        f"{SHORT} data.shards=nowhere data.batch_size=4 teacher=null",
    ),
    "a shard that is missing": (packed_again, SHORT),
    "a label that is not there": (f"{SHORT} data.label=label",),
    "a batch larger than the data": (f"{SHORT} data.batch_size=8",),
    "a run folder that holds a run": (
        "train config.yaml --resume",
        SHORT,
        "train config.yaml --overwrite train.steps=2",
    ),
    "a checkpoint of other settings": ("train config.yaml --resume",),
    "a checkpoint of other shards": (packed_again, "train config.yaml --resume"),
    "a student without a checkpoint": ("train config.yaml --overwrite",),
    "no features in the cache": ("cache config.yaml teacher.cache=none", f"{SHORT} teacher.cache=none"),
    "features of the first epoch that no other has": (f"{SHORT} teacher.cache=auto data.flip=true teacher.views=4",),
    "half precision without a GPU": (f"{SHORT} train.precision=auto",),
    "FSDP without a GPU": (undone, SHORT),
    "a process that no other joins": (undone, SHORT),
    "a GPU's memory that is full": (
        undone,
        f"{SHORT} train.micro_batch=4 --resume",
        f"{SHORT} --overwrite data.batch_size=8",
        f"{SHORT} --overwrite train.gradient_checkpointing=true",
    ),
    "a disk that is full": (undone, f"{SHORT} --resume"),
    "too many open files": (undone, f"{SHORT} --resume data.workers=0"),
    "a disk that breaks": (undone, f"{SHORT} --resume"),
    "an evaluation of no run": ("evaluate run",),
    "a busy port": (served_at_once, "serve run --port 0"),
    "no onnx": (undone, "export run out"),
    "a folder that another process writes": (released, f"{SHORT} --overwrite"),
}
ELSEWHERE = {
    # message: the test that carries out its cure
    "temporary files: ": "tests/cli/test_app.py",
    "only rank 0 evaluates": "tests/train/test_two_runs.py",
    # Another version would have to be installed; the folder is left as it was.
    "written in format 2 by a newer version of wcord": "tests/cli/test_wrong_inputs.py",
    "written in format 0 by an older version of wcord": "tests/cli/test_wrong_inputs.py",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, runs: Path, shapes: Path) -> Path:
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(shapes, folder / "data")
    shutil.copytree(runs / "student", folder / "run")
    config = (runs / "student.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace(str(runs / "student"), "run").replace(str(shapes), "data"))
    call("embed", runs / "student", shapes, "--index", folder / "index")
    return folder


@pytest.fixture(scope="module")
def busy() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("wrong", WRONG)
def test_cause_and_cure(
    wrong: str, world: Path, tmp_path: Path, busy: int, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    line, cause, cure, *prepare = WRONG[wrong]
    folder = shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(folder)
    for change in prepare:
        change(folder, monkeypatch)
    capfd.readouterr()
    assert call(*shlex.split(line.replace("BUSY", str(busy)))) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert cause.replace("BUSY", str(busy)) in error
    assert cure in error
    assert not (folder / "run2" / "student").exists()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", CURES)
def test_the_cure_works(wrong: str, world: Path, tmp_path: Path, busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    line, _, _, *prepare = WRONG[wrong]
    folder = shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        for change in prepare:
            change(folder, patch)
        assert call(*shlex.split(line.replace("BUSY", str(busy)))) == 2
        for step in CURES[wrong]:
            if isinstance(step, str):
                assert call(*shlex.split(step)) == 0, step
            else:
                step(folder, patch)


def test_the_page_quotes_what_the_program_says_and_each_cure_is_tested() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    quoted = [row[0].removeprefix("| ").strip("`").strip("… ") for row in rows]
    causes = [*(WRONG[wrong][1] for wrong in CURES), *ELSEWHERE]
    assert [text for text in quoted if not any(text in cause for cause in causes)] == []
    assert len(quoted) > 15
