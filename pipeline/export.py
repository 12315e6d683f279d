"""A finished student as a folder for people who do not have this program: weights, graphs, preprocessing, a card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from shutil import copyfile
from typing import Any, cast

import torch

from modalities import RGB, Audio, Depth, Text
from modalities.encoders import Encoder
from modalities.tokenizer import tokenizer
from pipeline import config as configs
from pipeline import portable
from pipeline.card import Export, card
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.extras import need
from pipeline.graph import TOLERANCE, Graph, difference, feed, quantise, quiet, session, trace, write_onnx
from pipeline.latency import latency
from pipeline.model import build_teacher
from pipeline.network import Joint, Network, load_network, save_network
from pipeline.prepare import Sight
from pipeline.shards import write_atomic
from pipeline.source import Policy, open_split
from pipeline.space import SPACE
from pipeline.stream import EvalStream, loader

CALIBRATION, TESTED, BATCH = 256, 2000, 32
"""Training samples that ranges of 8 bits are taken from, test samples that accuracies are compared on."""

SCRIPTS = ("predict.py", "load.py", "files.py")
"""What reads files and runs a graph; lies in `portable` under the same names."""

GRAPHS = ("model.pt2", "model.onnx", "model.int8.onnx", *SCRIPTS)
"""What is not there for a network that cannot be written as a graph."""

READERS = {RGB: "rgb.py", Depth: "depth.py", Audio: "audio.py", Text: "text.py"}


def export(run: Path, out: Path) -> Export:
    """Write the student of a finished run to a new folder; see docs/taking-a-student-away.md for what is in it.

    A network that cannot be written as a graph, or whose ONNX does not agree with PyTorch to `TOLERANCE`, goes without
    those files, and the card says so. Raises UserError for a run that has not finished or lacks its data, and for a
    folder with something in it.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run folder (no config.yaml). Give the `run` of a config that was trained.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; give a new folder, or remove it.")
    for module in ("onnx", "onnxscript", "onnxruntime"):
        need(module, "export")
    config = configs.load(run / "config.yaml")
    network = load_network(run / "student").eval()
    train = list(_batches(config, "train", {"student": network.view}, CALIBRATION))
    test = list(_batches(config, config.evaluation.split, {"student": network.view}, TESTED))

    save_network(network, out)
    if (run / "student" / SPACE).is_file():
        copyfile(run / "student" / SPACE, out / SPACE)
    done = Export(out)
    _save_transformers(network, done)
    _write_preprocessing(network, done)
    try:
        _write_graphs(network, done, train, test)
    except UserError as error:
        done.notes.append(f"No model.pt2 and no ONNX: {error}.")
        for name in GRAPHS:
            (out / name).unlink(missing_ok=True)
    done.latency = _latencies(config, network, done)
    write_atomic(out / "README.md", card(run, config, network, done).encode())
    return done


def _batches(config: Config, split: str, views: dict[str, Sight], most: int) -> Iterable[dict[str, Any]]:
    policy = Policy(config.data.max_faulty, config.data.unpaired)
    source = open_split(config.data.shards, split, config.data.label, policy=policy, join=config.data.join)
    return islice(loader(EvalStream(source, views, batch=BATCH), 0, torch.device("cpu")), -(-most // BATCH))


def _save_transformers(network: Network | Joint, done: Export) -> None:
    """Beside the config that `save_network` wrote, the weights, so that `AutoModel` reads the encoder's folder."""
    parts = [(done.folder, network)]
    if isinstance(network, Joint):
        parts = [(done.folder / str(number), part) for number, part in enumerate(network._networks())]
    for folder, part in parts:
        own = cast(Any, part).encoder
        if not (folder / "encoder" / "config.json").is_file():
            continue
        if getattr(own.config, "is_encoder_decoder", False):  # AutoModel would build the other half at random
            done.notes.append("encoder/ has no weights: transformers has no AutoModel for half a model.")
            continue
        own.network.save_pretrained(folder / "encoder")


def _write_preprocessing(network: Network | Joint, done: Export) -> None:
    parts = [network] if isinstance(network, Network) else network._networks()
    about: list[dict[str, Any]] = []
    for part in parts:
        preprocessing, settings = part.encoder.preprocessing, dict(vars(part.modality))
        if isinstance(part.modality, Text):
            settings["padding"] = tokenizer(part.modality.tokenizer).padding
        about.append(
            {
                "modality": part.modality.name,
                "size": preprocessing.size,
                "settings": settings,
                "normalised inside the network by": {"mean": preprocessing.mean, "std": preprocessing.std},
                "classes": network.classes,
            }
        )
    text = json.dumps(about[0] if len(about) == 1 else about, indent=1)
    write_atomic(done.folder / "preprocessing.json", text.encode())
    if reader := _reader(parts):
        folder = Path(portable.__file__).parent
        for source, name in ((reader, "preprocess.py"), *((name, name) for name in SCRIPTS)):
            copyfile(folder / source, done.folder / name)
    elif len(parts) == 1 and type(parts[0].encoder).extract_features is not Encoder.extract_features:
        done.notes.append(
            "No preprocess.py: sound goes through `transformers.AutoFeatureExtractor.from_pretrained(FOLDER, "
            "subfolder='encoder')`, whose outputs are the inputs of model.onnx and model.pt2."
        )
    else:
        seen = " and ".join(part.modality.name for part in parts)
        done.notes.append(f"No preprocess.py: what this network sees of {seen} takes the wcord package to compute.")


def _reader(parts: Sequence[Network]) -> str | None:
    """The file of `portable` that reads for a network; None where there is none."""
    part = parts[0]
    surfaces = isinstance(part.modality, Depth) and part.modality.input in ("normals", "depth+normals", "hha")
    if len(parts) > 1 or surfaces or type(part.encoder).extract_features is not Encoder.extract_features:
        return None
    return READERS.get(type(part.modality))


def _write_graphs(network: Network | Joint, done: Export, train: list[Any], test: list[Any]) -> None:
    example = train[0]["student"]
    graph = Graph(network, example)
    program = trace(graph, example)
    with quiet():
        torch.export.save(program, done.folder / "model.pt2")
    path, small = done.folder / "model.onnx", done.folder / "model.int8.onnx"
    write_onnx(program, graph, path)
    done.difference = difference(graph, path, [batch["student"] for batch in test[:4]])
    if not done.difference <= TOLERANCE:
        raise UserError(f"ONNX differs from PyTorch by {done.difference:.1e}, more than {TOLERANCE:.0e}")
    done.quantised = quantise(path, small, graph, [batch["student"] for batch in train])
    if network.classes:
        for file in (path, small):
            done.top1[file.name], done.tested = _top1(file, graph, test)


def _top1(path: Path, graph: Graph, batches: list[Any]) -> tuple[float, int]:
    runtime, right, total = session(path), 0, 0
    for batch in batches:
        prediction = runtime.run(["logits"], feed(graph, batch["student"]))[0].argmax(1)
        label = batch["label"].numpy()
        right, total = right + int((prediction == label).sum()), total + int((label >= 0).sum())
    return right / max(total, 1), total


def _latencies(config: Config, network: Network | Joint, done: Export) -> dict[str, float]:
    """Milliseconds a sample of teacher and student in PyTorch, and of the student's ONNX files."""
    networks: dict[str, Network | Joint] = {"student": network}
    try:
        if (teacher := build_teacher(config)) is not None:
            networks = {"teacher": teacher.eval(), **networks}
    except UserError as error:
        done.notes.append(f"The teacher was not measured: {error}")
    views = {role: one.view for role, one in networks.items()}
    batch = next(iter(_batches(config, config.evaluation.split, views, 1)))
    one = {role: _row(batch[role]) for role in networks}
    calls: dict[str, Callable[[], object]] = {
        f"{role}, PyTorch": partial(networks[role], one[role]) for role in networks
    }
    graph = Graph(network, one["student"])
    for file in ("model.onnx", "model.int8.onnx"):
        if (done.folder / file).is_file():
            calls[f"student, {file}"] = partial(session(done.folder / file).run, None, feed(graph, one["student"]))
    return latency(calls)


def _row(batch: Any) -> Any:
    """The first sample of a batch, as a batch."""
    if isinstance(batch, tuple):
        return tuple(map(_row, batch))
    return {name: value[:1] for name, value in batch.items()} if isinstance(batch, dict) else batch[:1]


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to a repository of the hub, private if it is new, and return its address.

    Raises UserError for what the hub refuses: no login, no right, no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--push {repository}: {reason} Log in by `hf auth login`; {folder} is written.") from None
