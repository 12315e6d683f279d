"""Evaluates a student: its class head, probes on its frozen features, and retrieval to and from the teacher."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.config.settings import Config
from pipeline.data.skipped import SKIPPED, Skipped, counts, in_words, read_skipped
from pipeline.data.source import OpenDataset, Policy, Source, open_dataset
from pipeline.data.stream import EvalStream, loader
from pipeline.evaluate.cost import inference_cost, training_cost, unpaired
from pipeline.evaluate.gallery import track_gallery
from pipeline.evaluate.probes import Standard, accuracy, classify_frozen, never_predicted
from pipeline.evaluate.retrieval import chance, intervals, ranks, summary
from pipeline.evaluate.segmentation import SegmentationEvaluator
from pipeline.evaluate.shared_space import Space
from pipeline.evaluate.user_metrics import load_metrics, user_scores
from pipeline.evaluate.write_artifacts import count_confusion, write_confusion, write_examples, write_masks
from pipeline.models.build import build_teacher
from pipeline.models.description import SPACE
from pipeline.models.network import Joint, Network, build_network, load_network
from pipeline.runs.reader import read_results

log = logging.getLogger(__name__)

Results = dict[str, float]


@dataclass
class Embedded:
    """The outputs of networks on a split.

    Attributes:
        keys: Keys of the N samples.
        label: Class index `[N]`; -1 if unknown.
        features: Role -> features `[N, D]`, fp32.
        prediction: Role -> predicted class index `[N]`.
        skipped: Samples that could not be read.
    """

    keys: list[str]
    label: np.ndarray
    features: dict[str, np.ndarray]
    prediction: dict[str, np.ndarray]
    skipped: list[Skipped] = field(default_factory=list)


def evaluate(run: str | Path, probe: Sequence[str | Path] = (), split: str | None = None) -> Results:
    """Evaluate a finished run on its test split.

    Writes `results.json` and `evaluation/`, and sends the retrieval gallery to the trackers. Teacher, student and an
    untrained student (`random/`: the same architecture with random, never pretrained weights) are measured in the same
    way: accuracy of the head on the test split, and linear probe and k-NN on frozen features. The latter two are fitted
    on ALL training labels, even if the student was trained on fewer. Without labels, there are no accuracies, and
    retrieval is reported first.

    Args:
        run: The run folder.
        probe: Packed datasets (the same or others) on which to probe the layers of the student.
        split: The split to measure; None means `evaluation.split` of the run. The results of another split are only
            written to `results_SPLIT.json`.

    Returns:
        Name -> value, as in `results.json`. Accuracies and recalls are in [0, 1].

    Raises:
        UserError: The run is not finished; or its teacher, its dataset, the split or a baseline is missing.

    Example:
        ```python
        results = wcord.evaluate("runs/rgb_to_depth")
        print(results["student/top1"], results["retrieval/student_to_teacher/R@1"])
        ```
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run folder (no config.yaml). Pass the run folder that `wcord train` created.")
    config = configs.load(run / "config.yaml")
    if split in (None, config.evaluation.split):
        results = _measure(run, config, probe, artifacts=True)
        write_atomic(run / "results.json", json.dumps(results, indent=1).encode())
        track_gallery(run, config)
    else:
        results = _measure(run, configs.load(run / "config.yaml", [f"evaluation.split={split}"]), probe)
        write_atomic(run / f"results_{split}.json", json.dumps(results, indent=1).encode())
    return results


def _measure(run: Path, config: Config, probe: Sequence[str | Path], artifacts: bool = False) -> Results:
    """Measure all networks of a run, and write the artifacts of the report if requested."""
    baselines, metrics = _baselines(config), load_metrics(config.evaluation.metrics)
    data = OpenDataset.from_config(config)
    train, test, classes = data.split("train"), data.split(config.evaluation.split), data.classes
    networks = _networks(run, config, data)
    tally = SegmentationEvaluator(classes, test.samples) if test.task.mask else None
    seen = embed(networks, train, config, most=config.evaluation.samples)
    unseen = embed(networks, test, config, tally)
    results = _sample_counts(run, seen, unseen, test.samples)
    for role, network in networks.items():
        if role in unseen.prediction and network.classes == classes:
            results |= _named(role, accuracy(unseen.prediction[role], unseen.label))
            results |= _named(role, user_scores(metrics, unseen.label, unseen.prediction[role]))
        results |= _named(role, tally.scores(role) if tally else {})
        results |= _named(role, _frozen(role, seen, unseen, config))
    retrieval, embeddings = _retrieval(run, seen, unseen)
    results |= retrieval
    if networks["student"].classes == classes:
        _warn_of_unpredicted(run, unseen, classes)
    shown = {role: network for role, network in networks.items() if role != "random"}
    results |= baselines | training_cost(run, config.data.batch_size) | inference_cost(shown, test)
    for dataset in probe:
        results |= probe_layers(networks["student"], dataset, config)
    if artifacts:
        _write_examples(run / "evaluation", shown, test, unseen, embeddings, [] if tally else classes, config)
    if artifacts and tally:
        write_masks(run / "evaluation", {role: network.view for role, network in shown.items()}, test, tally)
    return _in_order(results)


def probe_layers(network: Network | Joint, folder: str | Path, config: Config) -> Results:
    """Fit a linear probe and k-NN on each layer of a frozen network, on another dataset.

    Args:
        network: The network.
        folder: The packed dataset. Its training split is used for fitting.
        config: Config of the run, for workers, split and neighbours.

    Returns:
        `transfer/DATASET/LAYER/probe` and `/knn` in [0, 1]. The layers are `pooled` and `map0`, `map1` …, the spatial
        mean of each feature map, in order.

    Raises:
        UserError: The dataset has no classes or lacks a split.
    """
    data = open_dataset(folder, policy=Policy(config.data.max_faulty, config.data.unpaired, config.data.max_pixels))
    classes = data.manifest.classes
    if not classes:
        raise UserError(f"{folder}: the dataset has no classes, which probes require; pack it with labels.")
    data = replace(data, label=config.data.label if config.data.label in classes else next(iter(classes)))
    train, test = data.split("train"), data.split(config.evaluation.split)
    seen = embed({"pooled": network}, train, config, layers=True, most=config.evaluation.samples)
    unseen = embed({"pooled": network}, test, config, layers=True)
    results: Results = {}
    for layer in seen.features:
        results |= _named(f"transfer/{data.manifest.name}/{layer}", _frozen(layer, seen, unseen, config))
    return results


@torch.no_grad()
def embed(
    networks: Mapping[str, Network | Joint],
    source: Source,
    config: Config,
    tally: SegmentationEvaluator | None = None,
    *,
    layers: bool = False,
    most: int | None = None,
) -> Embedded:
    """Run networks over a split, on the GPU if there is one.

    Args:
        networks: Role -> network.
        source: The split.
        config: Config of the run, for the number of workers.
        tally: Collects the predicted masks; None if the task is not segmentation.
        layers: Also return the spatial mean of each feature map as `map0` …; only with a single network.
        most: Maximum number of samples, from the start of the split; None for all.

    Raises:
        UserError: No sample can be read.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for network in networks.values():
        network.eval().to(device)
    views = {role: network.view for role, network in networks.items()}
    found = Embedded([], np.empty(0), {}, {})
    label: list[np.ndarray] = []
    features: dict[str, list[np.ndarray]] = {}
    prediction: dict[str, list[np.ndarray]] = {role: [] for role in networks}
    stream = EvalStream(source, views, batch=64 if source.task.mask else 256, most=most)
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
        raise UserError(f"{source.folder}: no sample can be read; run `wcord check` on the dataset.")
    found.label = np.concatenate(label)
    found.features = {role: np.concatenate(parts) for role, parts in features.items()}
    found.prediction = {role: np.concatenate(parts) for role, parts in prediction.items() if parts}
    return found


def _mean_over_positions(x: torch.Tensor) -> torch.Tensor:
    """Mean over the positions of a map `[B, C, H, W]` or of tokens `[B, N, C]`."""
    return x.mean((2, 3)) if x.ndim == 4 else x.mean(1)


def _networks(run: Path, config: Config, data: OpenDataset) -> dict[str, Network | Joint]:
    student = load_network(run / "student")
    random = _untrained(student, config.seed + 1)
    teacher = build_teacher(config, data)
    return {"random": random, "student": student} | ({"teacher": teacher} if teacher is not None else {})


def _untrained(student: Network | Joint, seed: int) -> Network | Joint:
    """The student with random weights. The description of a saved network never refers to pretrained weights."""
    torch.manual_seed(seed)
    parts = [cast(Network, part).spec for part in student.networks] if isinstance(student, Joint) else [student.spec]
    modality, encoder = ([part[name] for part in parts] for name in ("modality", "encoder"))
    if not isinstance(student, Joint):
        return build_network(modality[0], encoder[0], None, "student")
    return build_network(modality, encoder, None, "student")


def _baselines(config: Config) -> Results:
    found: Results = {}
    for folder in map(Path, config.evaluation.baselines):
        path = folder / "results.json"
        if not path.is_file():
            raise UserError(f"evaluation.baselines: {path} not found; run `wcord evaluate {folder}` first.")
        own = {k: v for k, v in read_results(path, []).items() if k.startswith(("student/", "retrieval/"))}
        found |= _named(f"baseline/{folder.name}", own)
    return found


def _sample_counts(run: Path, seen: Embedded, unseen: Embedded, total: int) -> Results:
    """Numbers of used, skipped and unpaired samples. Warns if any of the `total` test samples were skipped."""
    if unseen.skipped:
        found = in_words(counts(unseen.skipped))
        log.warning(f"{run}: skipped {len(unseen.skipped)} of {total} test samples ({found})")
    results: Results = {"samples/train": len(seen.keys), "samples/test": len(unseen.keys)}
    results |= _named("skipped/train", counts(read_skipped(run / SKIPPED)))
    return results | _named("skipped/test", counts(unseen.skipped)) | unpaired(run)


def _frozen(name: str, seen: Embedded, unseen: Embedded, config: Config) -> Results:
    """Linear probe and k-NN on the features of a role or layer, fitted on the seen samples."""
    train, test = seen.features[name], unseen.features[name]
    return classify_frozen(train, seen.label, test, unseen.label, config.evaluation.neighbours)


def _retrieval(run: Path, seen: Embedded, unseen: Embedded) -> tuple[Results, dict[str, np.ndarray]]:
    """Retrieval between student and teacher, if there is one, and role -> embeddings. Saves the student's space."""
    if "teacher" not in seen.features:
        return {}, {"student": Standard.of(seen.features["student"])(unseen.features["student"])}
    results: Results = {}
    for role, prefix in (("random", "random/retrieval"), ("student", "retrieval")):
        space = Space.fit(seen.features[role], seen.features["teacher"])
        student, teacher = space.of_student(unseen.features[role]), space.of_teacher(unseen.features["teacher"])
        for way, pair in (("student_to_teacher", (student, teacher)), ("teacher_to_student", (teacher, student))):
            rank = ranks(*pair)
            results |= _named(f"{prefix}/{way}", summary(rank) | intervals(rank))
    space.save(run / "student" / SPACE)  # the last one, the student's
    return results | _named("chance/retrieval", chance(len(unseen.keys))), {"teacher": teacher, "student": student}


def _warn_of_unpredicted(run: Path, unseen: Embedded, classes: Sequence[str]) -> None:
    """Warn of classes that the student's head never predicts, if it has one."""
    if (predicted := unseen.prediction.get("student")) is None:
        return
    if words := never_predicted(count_confusion(unseen.label, predicted, len(classes)), classes):
        log.warning(f"{run}: {words}")


def _write_examples(
    folder: Path,
    networks: Mapping[str, Network | Joint],
    source: Source,
    found: Embedded,
    embeddings: Mapping[str, np.ndarray],
    classes: list[str],
    config: Config,
) -> None:
    own = networks["student"].classes or []
    shown = classes or own  # zero-shot classes, if the dataset has none
    unknown = np.full(len(found.keys), -1)
    samples = {
        "keys": np.array(found.keys),
        "label": found.label,
        "classes": np.array(shown),
        "prediction": found.prediction.get("student", unknown) if own == shown else unknown,
    }
    write_examples(folder, {role: network.view for role, network in networks.items()}, source, samples, embeddings)
    named = {role: p for role, p in found.prediction.items() if role in networks and networks[role].classes == classes}
    write_confusion(folder, found.label, named, classes, list(map(Path, config.evaluation.baselines)))


def _in_order(results: Results) -> Results:
    """Put retrieval and its references first if there are no labels, since they are then the main results."""
    if any(name.startswith("student/") for name in results):
        return results
    first = ("samples/", "retrieval/", "random/retrieval/", "chance/")
    place = {name: next((i for i, head in enumerate(first) if name.startswith(head)), len(first)) for name in results}
    return {name: results[name] for name in sorted(results, key=lambda name: place[name])}


def _named(prefix: str, scores: Mapping[str, float]) -> Results:
    return {f"{prefix}/{name}": value for name, value in scores.items()}
