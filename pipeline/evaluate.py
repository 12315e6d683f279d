"""How good a student is: its head, what its frozen features hold, and how well it finds the teacher's view and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline import config as configs
from pipeline.config import Config
from pipeline.cost import inference_cost, training_cost, unpaired
from pipeline.errors import UserError
from pipeline.gallery import track_gallery
from pipeline.kept import keep, keep_confusion, keep_masks
from pipeline.masks import Tally
from pipeline.model import build_teacher
from pipeline.network import Joint, Network, build_network, load_network
from pipeline.probes import Standard, accuracy, classify_frozen, retrieval
from pipeline.shards import load_dataset, write_atomic
from pipeline.skipped import SKIPPED, Skipped, counts, in_words, read_skipped
from pipeline.source import Policy, Source, open_split
from pipeline.space import SPACE, Space
from pipeline.stream import EvalStream, loader

Results = dict[str, float]


@dataclass
class Embedded:
    """What the networks say of a split: role -> features `[N, D]` fp32, role -> class indices `[N]`."""

    keys: list[str]
    label: np.ndarray
    features: dict[str, np.ndarray]
    prediction: dict[str, np.ndarray]
    skipped: list[Skipped] = field(default_factory=list)


def evaluate(run: str | Path, probe: Sequence[str | Path] = ()) -> Results:
    """Measure a finished run on its test split; write `results.json` and `evaluation/`, and show trackers the gallery.

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
    tally = Tally(classes, test.samples) if test.mask else None
    seen = embed(networks, train, config, most=config.evaluation.samples)
    unseen = embed(networks, test, config, tally)
    if unseen.skipped:
        found = in_words(counts(unseen.skipped))
        print(f"{run}: {len(unseen.skipped)} of {test.samples} test samples are left out ({found})", flush=True)

    results: Results = {"samples/train": len(seen.keys), "samples/test": len(unseen.keys)}
    results |= _named("skipped/train", counts(read_skipped(run / SKIPPED)))
    results |= _named("skipped/test", counts(unseen.skipped)) | unpaired(run)
    for role, network in networks.items():
        if role in unseen.prediction and network.classes == classes:
            results |= _named(role, accuracy(unseen.prediction[role], unseen.label))
        results |= _named(role, tally.scores(role) if tally else {})
        frozen = classify_frozen(
            seen.features[role], seen.label, unseen.features[role], unseen.label, config.evaluation.neighbours
        )
        results |= _named(role, frozen)
    embeddings: dict[str, np.ndarray] = {}
    if "teacher" in networks:
        for role, prefix in (("random", "random/retrieval"), ("student", "retrieval")):
            space = Space.fit(seen.features[role], seen.features["teacher"])
            student, teacher = space.of_student(unseen.features[role]), space.of_teacher(unseen.features["teacher"])
            results |= _named(f"{prefix}/student_to_teacher", retrieval(student, teacher))
            results |= _named(f"{prefix}/teacher_to_student", retrieval(teacher, student))
        space.save(run / "student" / SPACE)  # the last one, the student's
        embeddings = {"teacher": teacher, "student": student}
    else:
        embeddings = {"student": Standard.of(seen.features["student"])(unseen.features["student"])}
    shown = {role: network for role, network in networks.items() if role != "random"}
    results |= baselines | training_cost(run, config.data.batch_size) | inference_cost(shown, test)
    for dataset in probe:
        results |= probe_layers(networks["student"], dataset, config)
    _keep(run / "evaluation", shown, test, unseen, embeddings, [] if tally else classes, config)
    if tally:
        keep_masks(run / "evaluation", {role: network.view for role, network in shown.items()}, test, tally)
    write_atomic(run / "results.json", json.dumps(results, indent=1).encode())
    track_gallery(run, config)
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
    tally: Tally | None = None,
    *,
    layers: bool = False,
    most: int | None = None,
) -> Embedded:
    """Run the networks over a split, on the GPU if there is one.

    tally: takes the masks that they predict. layers: also keep the mean over positions of each feature map, as `map0`
    …, of the one network there is. most: of the first so many samples only.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for network in networks.values():
        network.eval().to(device)
    views = {role: network.view for role, network in networks.items()}
    found = Embedded([], np.empty(0), {}, {})
    label: list[np.ndarray] = []
    features: dict[str, list[np.ndarray]] = {}
    prediction: dict[str, list[np.ndarray]] = {role: [] for role in networks}
    stream = EvalStream(source, views, batch=64 if source.mask else 256, most=most)
    for batch in loader(stream, config.data.workers, device, found.skipped):
        masks: dict[str, torch.Tensor] = {}
        found.keys += batch["key"]
        found.skipped += batch["skipped"]
        label.append(batch["label"].cpu().numpy())
        for role, network in networks.items():
            out = network(batch[role])
            maps = {f"map{i}": _mean_over_positions(m) for i, m in enumerate(out.maps)} if layers else {}
            for name, x in {role: out.pooled, **maps}.items():
                features.setdefault(name, []).append(x.float().cpu().numpy())
            if out.logits is not None and network.dense:
                masks[role] = out.logits
            elif out.logits is not None:
                prediction[role].append(out.logits.argmax(1).cpu().numpy())
        if tally:
            known = {role: own for role, own in masks.items() if networks[role].classes == tally.names}
            tally.add(batch["key"], batch["mask"], known)
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


def _keep(
    folder: Path,
    networks: Mapping[str, Network | Joint],
    source: Source,
    found: Embedded,
    embeddings: Mapping[str, np.ndarray],
    classes: list[str],
    config: Config,
) -> None:
    own = networks["student"].classes or []
    shown = classes or own  # a student of a teacher that names classes has some where the data set has none
    unknown = np.full(len(found.keys), -1)
    samples = {
        "keys": np.array(found.keys),
        "label": found.label,
        "classes": np.array(shown),
        "prediction": found.prediction.get("student", unknown) if own == shown else unknown,
    }
    keep(folder, {role: network.view for role, network in networks.items()}, source, samples, embeddings)
    named = {role: p for role, p in found.prediction.items() if role in networks and networks[role].classes == classes}
    keep_confusion(folder, found.label, named, classes, list(map(Path, config.evaluation.baselines)))


def _named(prefix: str, scores: Mapping[str, float]) -> Results:
    return {f"{prefix}/{name}": value for name, value in scores.items()}
