"""How good a student is: its head, what its frozen features hold, and how well it finds the teacher's view and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import torch

from pipeline import config as configs
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.model import build_teacher
from pipeline.network import Joint, Network, build_network, load_network
from pipeline.prepare import View, pictures
from pipeline.probes import Standard, accuracy, classify_frozen, retrieval, to_teacher_space
from pipeline.runs import read_run
from pipeline.shards import load_dataset, write_atomic
from pipeline.skipped import SKIPPED, Skipped, counts, read_skipped
from pipeline.source import Policy, Source, open_split
from pipeline.stream import EvalStream, loader

Results = dict[str, float]
PICTURES, THUMBNAIL, EMBEDDINGS = 300, 72, 5000
"""Test samples whose pictures are kept for the report, their height in pixels; samples whose embeddings are kept."""


@dataclass
class Embedded:
    """What the networks say of a split: role -> features `[N, D]` fp32, role -> class indices `[N]`."""

    keys: list[str]
    label: np.ndarray
    features: dict[str, np.ndarray]
    prediction: dict[str, np.ndarray]
    skipped: list[Skipped] = field(default_factory=list)


def evaluate(run: str | Path, probe: Sequence[str | Path] = ()) -> Results:
    """Measure a finished run on its test split and write `results.json` and `evaluation/`.

    Teacher, student and a student with random weights are measured alike: the head's accuracy on the test split, and
    probe and k-NN on frozen features, which learn from ALL training labels, however few of them the student saw.
    probe: folders of packed data sets, its own or others, on which the student's layers are probed. Accuracies and
    recalls are in [0, 1].
    Raises UserError if the run has not finished, or its teacher, its data set or a baseline is no longer there.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run folder (no config.yaml). Give the `run` of a config that was trained.")
    config = configs.load(run / "config.yaml")
    baselines = _baselines(config)
    policy = Policy(config.data.max_faulty, config.data.unpaired)
    train, test = (
        open_split(config.data.shards, split, config.data.label, policy=policy, join=config.data.join)
        for split in ("train", config.evaluation.split)
    )
    classes = load_dataset(config.data.shards).classes.get(config.data.label, [])
    networks = _networks(run, config)
    seen = embed(networks, train, config, most=config.evaluation.samples)
    unseen = embed(networks, test, config)

    results: Results = {"samples/train": len(seen.keys), "samples/test": len(unseen.keys)}
    results |= _named("skipped/train", counts(read_skipped(run / SKIPPED)))
    results |= _named("skipped/test", counts(unseen.skipped))
    for role, network in networks.items():
        results[f"parameters/{role}"] = sum(p.numel() for p in network.parameters())
        if role in unseen.prediction and network.classes == classes:
            results |= _named(role, accuracy(unseen.prediction[role], unseen.label))
        frozen = classify_frozen(
            seen.features[role], seen.label, unseen.features[role], unseen.label, config.evaluation.neighbours
        )
        results |= _named(role, frozen)
    embeddings: dict[str, np.ndarray] = {}
    if "teacher" in networks:
        teacher = Standard(seen.features["teacher"])(unseen.features["teacher"])
        for role, prefix in (("random", "random/retrieval"), ("student", "retrieval")):
            student = to_teacher_space(seen.features[role], seen.features["teacher"], unseen.features[role])
            results |= _named(f"{prefix}/student_to_teacher", retrieval(student, teacher))
            results |= _named(f"{prefix}/teacher_to_student", retrieval(teacher, student))
        embeddings = {"teacher": teacher, "student": student}
    else:
        embeddings = {"student": Standard(seen.features["student"])(unseen.features["student"])}
    results |= baselines | _costs(run, config)
    for dataset in probe:
        results |= probe_layers(networks["student"], dataset, config)
    _save_samples(run / "evaluation", networks, test, unseen, embeddings, classes)
    write_atomic(run / "results.json", json.dumps(results, indent=1).encode())
    return results


def probe_layers(network: Network | Joint, folder: str | Path, config: Config) -> Results:
    """What the layers of a frozen network hold of a data set's classes: probe and k-NN, learnt on its training split.

    Named `transfer/DATASET/LAYER/probe` and `/knn`; the layers are `pooled` and `map0`, `map1` …, the mean of each
    feature map over its positions, from the first on. Raises UserError for a data set without classes or splits.
    """
    dataset = load_dataset(folder)
    if not dataset.classes:
        raise UserError(f"{folder}: has no classes to probe; pack it with labels.")
    label = config.data.label if config.data.label in dataset.classes else next(iter(dataset.classes))
    policy = Policy(config.data.max_faulty, config.data.unpaired)
    train, test = (open_split(folder, split, label, policy=policy) for split in ("train", config.evaluation.split))
    seen = embed({"pooled": network}, train, config, layers=True, most=config.evaluation.samples)
    unseen = embed({"pooled": network}, test, config, layers=True)
    results: Results = {}
    for layer, features in seen.features.items():
        scores = classify_frozen(
            features, seen.label, unseen.features[layer], unseen.label, config.evaluation.neighbours
        )
        results |= _named(f"transfer/{dataset.name}/{layer}", scores)
    return results


@torch.no_grad()
def embed(
    networks: Mapping[str, Network | Joint],
    source: Source,
    config: Config,
    layers: bool = False,
    most: int | None = None,
) -> Embedded:
    """Run the networks over a split, on the GPU if there is one.

    layers: also keep the mean over positions of each feature map, as `map0` …, of the one network there is. most: of
    the first so many samples only.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for network in networks.values():
        network.eval().to(device)
    views = {role: network.view for role, network in networks.items()}
    found = Embedded([], np.empty(0), {}, {})
    label: list[np.ndarray] = []
    features: dict[str, list[np.ndarray]] = {}
    prediction: dict[str, list[np.ndarray]] = {role: [] for role in networks}
    for batch in loader(EvalStream(source, views, batch=256, most=most), config.data.workers, device):
        found.keys += batch["key"]
        found.skipped += batch["skipped"]
        label.append(batch["label"].cpu().numpy())
        for role, network in networks.items():
            out = network(batch[role])
            maps = {f"map{i}": _mean_over_positions(m) for i, m in enumerate(out.maps)} if layers else {}
            for name, x in {role: out.pooled, **maps}.items():
                features.setdefault(name, []).append(x.float().cpu().numpy())
            if out.logits is not None:
                prediction[role].append(out.logits.argmax(1).cpu().numpy())
    if not found.keys:
        raise UserError(f"{source.folder}: no sample can be used; run `wcord check` on the data set.")
    found.label = np.concatenate(label)
    found.features = {role: np.concatenate(parts) for role, parts in features.items()}
    found.prediction = {role: np.concatenate(parts) for role, parts in prediction.items() if parts}
    return found


def _mean_over_positions(x: torch.Tensor) -> torch.Tensor:
    """Of a map `[B, C, H, W]` or of tokens `[B, N, C]`."""
    return x.mean((2, 3)) if x.ndim == 4 else x.mean(1)


def _networks(run: Path, config: Config) -> dict[str, Network | Joint]:
    student = load_network(run / "student")
    torch.manual_seed(config.seed + 1)
    random = build_network(config.student.modality, config.student.encoder, None, "student")
    teacher = build_teacher(config)
    return {"random": random, "student": student} | ({"teacher": teacher} if teacher is not None else {})


def _baselines(config: Config) -> Results:
    found: Results = {}
    for folder in map(Path, config.evaluation.baselines):
        path = folder / "results.json"
        if not path.is_file():
            raise UserError(f"evaluation.baselines: {path} not found; run `wcord evaluate {folder}` first.")
        try:
            results = json.loads(path.read_bytes())
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); run `wcord evaluate {folder}` again.") from None
        own = {k: v for k, v in results.items() if k.startswith(("student/", "retrieval/"))}
        found |= _named(f"baseline/{folder.name}", own)
    return found


def _costs(run: Path, config: Config) -> Results:
    """What training took, of its log: the median over the lines, and the largest memory of GPU or process."""
    log = read_run(run)
    rates, memory = log.series("samples_per_second")[1], log.series("peak_memory_mb")[1]
    if not rates or not memory:
        return {}
    return {
        "cost/seconds_per_step": config.data.batch_size / float(np.median(rates)),
        "cost/peak_memory_mb": max(memory),
    }


def _save_samples(
    folder: Path,
    networks: Mapping[str, Network | Joint],
    source: Source,
    found: Embedded,
    embeddings: Mapping[str, np.ndarray],
    classes: list[str],
) -> None:
    """Keep what the report shows of single samples, so that it needs neither data nor networks."""
    folder.mkdir(exist_ok=True)
    rows = np.linspace(0, len(found.keys) - 1, min(EMBEDDINGS, len(found.keys))).astype(int)
    unit = {k: v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for k, v in embeddings.items()}
    prediction = found.prediction.get("student", np.full(len(found.keys), -1))
    samples = {
        "keys": np.array(found.keys)[rows],
        "label": found.label[rows],
        "classes": np.array(classes),
        "prediction": prediction[rows],
    }
    _write_arrays(folder / "embeddings.npz", samples | {role: x[rows].astype(np.float16) for role, x in unit.items()})
    shown = rows[np.linspace(0, len(rows) - 1, min(PICTURES, len(rows))).astype(int)]
    views = {role: network.view for role, network in networks.items() if role != "random"}
    keys = [found.keys[row] for row in shown]
    seen = dict(pictures(source, views, set(keys)))
    thumbnails = {"rows": np.searchsorted(rows, shown)}
    for role, view in views.items():
        thumbnails[role] = np.stack([_thumbnail(seen[key][role]) for key in keys])
        seen_by = (view,) if isinstance(view, View) else view
        thumbnails[f"{role}_modality"] = np.array(" + ".join(v.modality.name for v in seen_by))
    _write_arrays(folder / "thumbnails.npz", thumbnails)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getvalue())


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    """The picture in a square of THUMBNAIL pixels, whole, on grey."""
    height, width = picture.shape[:2]
    scale = THUMBNAIL / max(height, width)
    small = cv2.resize(
        picture, (max(round(width * scale), 1), max(round(height * scale), 1)), interpolation=cv2.INTER_AREA
    )
    square = np.full((THUMBNAIL, THUMBNAIL, 3), 128, np.uint8)
    top, left = (THUMBNAIL - small.shape[0]) // 2, (THUMBNAIL - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square


def _named(prefix: str, scores: Mapping[str, float]) -> Results:
    return {f"{prefix}/{name}": value for name, value in scores.items()}
