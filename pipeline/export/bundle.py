"""Exports a student to a folder that does not need this program: weights, graphs, preprocessing and a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from shutil import copyfile
from typing import Any, cast

import torch

from modalities import RGB, Audio, Depth, Points, Text
from modalities.encoders import Encoder
from modalities.tokenizer import tokenizer
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.common.optional_deps import require_package
from pipeline.common.owner import owned
from pipeline.config.settings import Config
from pipeline.data.source import OpenDataset, Source
from pipeline.data.stream import EvalStream, loader
from pipeline.data.views import ViewSpec
from pipeline.evaluate.latency import latency
from pipeline.export import portable
from pipeline.export.model_card import Export, card
from pipeline.export.onnx import TOLERANCE, Graph, difference, feed, quantise, quiet, session, trace, write_onnx
from pipeline.export.own_script import script_fault
from pipeline.models.build import build_teacher
from pipeline.models.description import SPACE
from pipeline.models.network import Joint, Network, load_network, save_network

CALIBRATION, TESTED, BATCH = 256, 2000, 32
"""Number of training samples for int8 calibration, number of test samples for comparing accuracies, batch size."""

PREPROCESS = "preprocess.py"

SCRIPTS = ("predict.py", "load.py", "files.py")
"""Scripts of `portable` that read files and run a graph; they are copied under the same names."""

GRAPHS = ("model.pt2", "model.onnx", "model.int8.onnx", *SCRIPTS)
"""Files that are omitted if the network cannot be exported as a graph."""

READERS = {RGB: "rgb.py", Depth: "depth.py", Points: "points.py", Audio: "audio.py", Text: "text.py"}


def export(run: Path, out: Path) -> Export:
    """Write the student of a finished run to a new folder; docs/exporting.md lists the files.

    If a network cannot be exported as a graph, or ONNX differs from PyTorch by more than `TOLERANCE`, those files are
    omitted, and the model card states the reason.

    Args:
        run: The run folder.
        out: A new or empty folder.

    Returns:
        The files written and the measurements.

    Raises:
        UserError: The run is not finished or its dataset is missing, or `out` is not empty.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run folder (no config.yaml). Pass the run folder that `wcord train` created.")
    _check_free(out)
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require_package(module, "export")
    part = out.absolute().with_name(f".{out.absolute().name}.part")
    with owned(out):
        _check_free(out)  # another export may have finished meanwhile
        shutil.rmtree(part, ignore_errors=True)  # leftovers of a killed export
        try:
            done = _export(run, part)
            if out.exists():
                out.rmdir()
            part.replace(out)
        except OSError as error:
            raise UserError(f"{error.filename or out}: {error.strerror or error}. Nothing was exported.") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return replace(done, folder=out)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; choose a new folder, or remove it.")


def _export(run: Path, out: Path) -> Export:
    """Write the export to a temporary folder."""
    config = configs.load(run / "config.yaml")
    network = load_network(run / "student").eval()
    data, views = OpenDataset.from_config(config), {"student": network.view}
    train = list(_batches(data.split("train"), views, CALIBRATION))
    test = list(_batches(data.split(config.evaluation.split), views, TESTED))

    save_network(network, out)
    if (run / "student" / SPACE).is_file():
        copyfile(run / "student" / SPACE, out / SPACE)
    done = Export(out)
    _save_transformers(network, done)
    _write_preprocessing(network, done)
    _check_own_script(network, data.split(config.evaluation.split), done)
    try:
        _write_graphs(network, done, train, test)
    except UserError as error:
        done.notes.append(f"model.pt2 and the ONNX files are missing: {error}.")
        for name in GRAPHS:
            (out / name).unlink(missing_ok=True)
    done.latency = _latencies(config, data, network, done)
    write_atomic(out / "README.md", card(run, config, network, data.manifest, done).encode())
    return done


def _batches(source: Source, views: Mapping[str, ViewSpec], most: int) -> Iterable[dict[str, Any]]:
    return islice(loader(EvalStream(source, views, batch=BATCH), 0, torch.device("cpu")), -(-most // BATCH))


def _save_transformers(network: Network | Joint, done: Export) -> None:
    """Save the weights of a transformers encoder next to its config, so that `AutoModel` can load the folder."""
    parts = [(done.folder, network)]
    if isinstance(network, Joint):
        parts = [(done.folder / str(number), part) for number, part in enumerate(network._networks())]
    for folder, part in parts:
        own = cast(Any, part).encoder
        if not (folder / "encoder" / "config.json").is_file():
            continue
        if getattr(own.config, "is_encoder_decoder", False):  # AutoModel would initialise the decoder at random
            done.notes.append("encoder/ has no weights: AutoModel cannot load the encoder of an encoder-decoder model.")
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
                "crop": 1.0 if network.dense else part.view.crop,
                "settings": settings,
                "normalised inside the network by": {"mean": preprocessing.mean, "std": preprocessing.std},
                "classes": network.classes,
            }
        )
    seen = " and ".join(part.modality.name for part in parts)
    try:
        text = json.dumps(about[0] if len(about) == 1 else about, indent=1)
    except TypeError as error:
        raise UserError(
            f"modality {seen}: {error}, so its settings cannot be written to preprocessing.json. In the modality "
            "object, store only numbers, strings, lists and dictionaries as attributes; create other objects on use."
        ) from None
    write_atomic(done.folder / "preprocessing.json", text.encode())
    if reader := _reader(parts):
        folder = Path(portable.__file__).parent
        for source, name in ((reader, PREPROCESS), *((name, name) for name in SCRIPTS)):
            copyfile(folder / source, done.folder / name)
    elif len(parts) == 1 and type(parts[0].encoder).extract_features is not Encoder.extract_features:
        done.notes.append(
            "preprocess.py is missing: use `transformers.AutoFeatureExtractor.from_pretrained(FOLDER, "
            "subfolder='encoder')` for audio; its outputs are the inputs of model.onnx and model.pt2."
        )
    else:
        done.notes.append(f"preprocess.py is missing: the preprocessing of {seen} requires the wcord package.")


def _check_own_script(network: Network | Joint, source: Source, done: Export) -> None:
    """Remove the scripts if that of an outside modality does not do what the modality does."""
    script = done.folder / PREPROCESS
    if isinstance(network, Joint) or network.modality.preprocess_script is None or not script.is_file():
        return
    if (fault := script_fault(script, network.view, source)) is not None:
        name = Path(network.modality.preprocess_script).name
        done.notes.append(
            f"preprocess.py is missing: the script {name} of the modality {network.modality.name} {fault}."
        )
        for file in (PREPROCESS, *SCRIPTS):
            (done.folder / file).unlink()


def _reader(parts: Sequence[Network]) -> str | Path | None:
    """The script of `portable`, or of an outside modality, that does the preprocessing of a network; None if none."""
    part = parts[0]
    surfaces = isinstance(part.modality, Depth) and part.modality.input in ("normals", "depth+normals", "hha")
    foreign = isinstance(part.modality, Text) and part.modality.tokenizer.startswith("open_clip:")
    if len(parts) > 1 or surfaces or foreign or type(part.encoder).extract_features is not Encoder.extract_features:
        return None
    return READERS.get(type(part.modality)) or part.modality.preprocess_script


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


def _latencies(config: Config, data: OpenDataset, network: Network | Joint, done: Export) -> dict[str, float]:
    """Latency per sample in ms of teacher and student in PyTorch, and of the student's ONNX files."""
    networks: dict[str, Network | Joint] = {"student": network}
    try:
        if (teacher := build_teacher(config, data)) is not None:
            networks = {"teacher": teacher.eval(), **networks}
    except UserError as error:
        done.notes.append(f"The latency of the teacher was not measured: {error}")
    views = {role: one.view for role, one in networks.items()}
    batch = next(iter(_batches(data.split(config.evaluation.split), views, 1)))
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
    """The first sample of a batch, as a batch of one."""
    if isinstance(batch, tuple):
        return tuple(map(_row, batch))
    return {name: value[:1] for name, value in batch.items()} if isinstance(batch, dict) else batch[:1]


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to a repository of the Hugging Face Hub. New repositories are private.

    Args:
        folder: The exported folder.
        repository: `owner/name`.

    Returns:
        The address of the upload.

    Raises:
        UserError: The upload fails, e.g. because of a missing login, permission or network connection.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--push {repository}: {reason} Log in with `hf auth login`. The export itself is complete: {folder}."
        ) from None
