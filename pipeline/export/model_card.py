"""The model card of an exported student: description, origin, usage, measurements and limits."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from pipeline.common.console import printable
from pipeline.config.settings import Config
from pipeline.data.dataset import Dataset
from pipeline.models.network import Joint, Network
from pipeline.runs.reader import KEY_METRICS, read_run

FILES = {
    "model.safetensors": "all weights; `wcord.load` reads them together with `network.json`",
    "encoder": "the encoder alone, for `transformers.AutoModel.from_pretrained(FOLDER, subfolder='encoder')`",
    "tokenizer": "the tokenizer, for `transformers.AutoTokenizer`",
    "model.pt2": "the network for PyTorch: `torch.export.load('model.pt2').module()`; only load files that you trust",
    "model.onnx": "the network in ONNX (fp32), for any batch size",
    "model.int8.onnx": "the network in ONNX (int8)",
    "preprocessing.json": "preprocessing settings, and the classes",
    "preprocess.py": "the preprocessing in Python; requires numpy and the packages in its first lines",
    "predict.py": "`python predict.py FILE …` predicts labels with ONNX Runtime",
    "load.py": "`python load.py FILE …` computes features and labels in plain PyTorch",
    "files.py": "reads files for both scripts",
    "space.safetensors": "the shared embedding space of student and teacher, for `wcord search`",
}


@dataclass
class Export:
    """The results of an export.

    Attributes:
        folder: The exported folder.
        difference: Largest difference between ONNX and PyTorch outputs; None without ONNX.
        quantised: How the int8 file was made.
        top1: File -> top-1 accuracy in [0, 1].
        tested: Number of test samples of `top1`.
        latency: Name -> latency per sample in ms.
        notes: One sentence on everything that is missing, with the reason.
    """

    folder: Path
    difference: float | None = None
    quantised: str | None = None
    top1: dict[str, float] = field(default_factory=dict)
    tested: int = 0
    latency: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def card(run: Path, config: Config, network: Network | Joint, dataset: Dataset, done: Export) -> str:
    """Write the model card as Markdown, with the metadata that model hubs read.

    Args:
        run: The run folder.
        config: Config of the run.
        network: The student.
        dataset: The dataset it was trained on.
        done: The export.
    """
    parts = [
        _metadata(network, dataset),
        f"# {plain(run.resolve().name)}\n\n{_about(config, network, dataset)}",
        _use(done),
        _measured(run, done),
        _limits(config, dataset, done),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(network: Network | Joint, dataset: Dataset) -> str:
    own = [network] if isinstance(network, Network) else network._networks()
    tags = ["wcord", *(part.modality.name for part in own)]
    return f"---\nlicense: other\nlicense_name: {json.dumps(dataset.licence)}\ntags: {json.dumps(tags)}\n---"


def _about(config: Config, network: Network | Joint, dataset: Dataset) -> str:
    own = [network] if isinstance(network, Network) else network._networks()
    seen = plain(" and ".join(f"{part.modality.name} ({part.spec['encoder']['name']})" for part in own))
    size = sum(p.numel() for p in network.parameters()) / 1e6
    names = network.classes or []
    classes = f"{len(names)} classes: {plain(', '.join(names))}" if names else "no classes"
    lines = [
        f"Input: {seen}; {size:.2f} M parameters; {classes}. Features have {network.dims.pooled} dimensions.",
        "",
        f"- **Data**: {plain(dataset.name)}, {dataset.samples('train')} training samples, split "
        f"{plain(dataset.split_rule)}.",
        f"- **Licence of the data**: {plain(dataset.licence)}. It may also apply to models trained on this data.",
        f"- **Teacher**: {_teacher(config)}.",
        f"- **Losses**: {plain(', '.join(config.losses))}; {_length(config)} of {config.data.batch_size} samples.",
    ]
    return "\n".join(lines)


def plain(text: str) -> str:
    """Text from data or settings for Markdown: no HTML, link, code or line break of its own."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", _inert(text))


def _inert(text: str) -> str:
    """Markdown in one line without HTML."""
    return escape(printable(" ".join(text.split())), quote=False)


def _length(config: Config) -> str:
    train = config.train
    return f"{train.steps} steps" if train.steps is not None else f"{train.epochs} epochs"


def _teacher(config: Config) -> str:
    if config.teacher is None:
        return "none; trained on labels only"
    if config.teacher.run is not None:
        runs = [config.teacher.run] if isinstance(config.teacher.run, str) else config.teacher.run
        return " and ".join(f"the run `{printable(Path(run).name).replace('`', '_')}`" for run in runs)
    model: Any = config.teacher.encoder
    own = dict(model) if isinstance(model, dict) else {}
    return plain(f"{own.get('name', model)} {Path(str(own.get('model', ''))).name}".strip())


def _use(done: Export) -> str:
    there = [f"| `{name}` | {what} |" for name, what in FILES.items() if (done.folder / name).exists()]
    return "\n".join(["## Files", "", "| file | contents |", "|---|---|", *there])


def _measured(run: Path, done: Export) -> str:
    found = read_run(run)
    results, split = found.results, plain(found.split)
    lines = ["## Results", "", f"| split {split} | |", "|---|---:|"]
    lines += [f"| {words} | {_number(results[key])} |" for key, words in KEY_METRICS.items() if key in results]
    if not results:
        lines = ["## Results", "", "The run had not been evaluated before the export."]
    if done.difference is not None:
        lines += [
            "",
            f"The outputs of ONNX (fp32) and PyTorch differ by at most {done.difference:.1e}. Int8: {done.quantised}.",
        ]
    if done.top1:
        lines += [
            "",
            f"Top-1 accuracy of the files on {done.tested} {split} samples:",
            "",
            "| file | top-1 |",
            "|---|---:|",
        ]
        lines += [f"| {name} | {value:.1%} |" for name, value in done.top1.items()]
    lines += ["", "Latency for one sample on one CPU thread (median of interleaved measurements):", ""]
    lines += ["| | ms |", "|---|---:|", *(f"| {name} | {value:.2f} |" for name, value in done.latency.items())]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value > 1 else f"{value:.3f}"


def _limits(config: Config, dataset: Dataset, done: Export) -> str:
    lines = [
        f"The model was trained and tested only on {plain(dataset.name)}, not on other sensors, places or subjects. "
        "Probabilities are not calibrated. An input that belongs to none of the classes is still assigned to one of "
        "them.",
        *(f"- {_inert(note)}".replace("[", "\\[") for note in done.notes),
    ]
    if len(done.top1) == 2:
        full, small = done.top1.values()
        if full - small > 0.01:
            lines.append(f"- int8 lowers top-1 by {100 * (full - small):.1f} points; prefer model.onnx.")
    return "\n".join(["## Limits", "", *lines])
