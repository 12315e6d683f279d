"""The model card of an exported student: what it is, where it comes from, how to use it, what it cannot do."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.network import Joint, Network
from pipeline.runs import KEY_METRICS, read_run
from pipeline.shards import Dataset, load_dataset

FILES = {
    "model.safetensors": "all weights; with `network.json` it is what `pipeline.load` of the wcord package reads",
    "encoder": "the encoder alone, for `transformers.AutoModel.from_pretrained(FOLDER, subfolder='encoder')`",
    "tokenizer": "the tokenizer, for `transformers.AutoTokenizer`",
    "model.pt2": "for PyTorch alone: `torch.export.load('model.pt2').module()`; open it only from people you trust",
    "model.onnx": "the network for ONNX Runtime, any batch size",
    "model.int8.onnx": "the same in 8 bits",
    "preprocessing.json": "how files become the network's input, and the classes",
    "preprocess.py": "the same as code that needs numpy and what its first lines import",
    "predict.py": "`python predict.py FILE …`: labels by ONNX Runtime",
    "load.py": "`python load.py FILE …`: the same in plain PyTorch",
    "files.py": "what both of them read files by",
    "space.safetensors": "how features of student and teacher are compared, for `wcord search`",
}


@dataclass
class Export:
    """What was written and measured. notes: what was left out, and why; top1: of the files, 0 to 1."""

    folder: Path
    difference: float | None = None
    quantised: str | None = None
    top1: dict[str, float] = field(default_factory=dict)
    tested: int = 0
    latency: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def card(run: Path, config: Config, network: Network | Joint, done: Export) -> str:
    """Markdown with the metadata that hubs read."""
    dataset = load_dataset(config.data.shards)
    parts = [
        _metadata(network, dataset),
        f"# {run.resolve().name}\n\n{_about(config, network, dataset)}",
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
    seen = " and ".join(f"{part.modality.name} ({part.spec['encoder']['name']})" for part in own)
    size = sum(p.numel() for p in network.parameters()) / 1e6
    classes = f"{len(network.classes)} classes: {', '.join(network.classes)}" if network.classes else "no classes"
    lines = [
        f"Sees {seen}; {size:.2f} million parameters; {classes}. Features have {network.dims.pooled} dimensions.",
        "",
        f"- **Data**: {dataset.name}, {dataset.samples('train')} training samples, split {dataset.split_rule}.",
        f"- **Licence of the data**: {dataset.licence}. What was learnt from it may be bound by it.",
        f"- **Teacher**: {_teacher(config)}.",
        f"- **Losses**: {', '.join(config.losses)}; {_length(config)} of {config.data.batch_size} samples.",
    ]
    return "\n".join(lines)


def _length(config: Config) -> str:
    train = config.train
    return f"{train.steps} steps" if train.steps is not None else f"{train.epochs} epochs"


def _teacher(config: Config) -> str:
    if config.teacher is None:
        return "none; it was trained with labels"
    if config.teacher.run is not None:
        runs = [config.teacher.run] if isinstance(config.teacher.run, str) else config.teacher.run
        return " and ".join(f"the run `{Path(run).name}`" for run in runs)
    model: Any = config.teacher.encoder
    own = dict(model) if isinstance(model, dict) else {}
    return f"{own.get('name', model)} {Path(str(own.get('model', ''))).name}".strip()


def _use(done: Export) -> str:
    there = [f"| `{name}` | {what} |" for name, what in FILES.items() if (done.folder / name).exists()]
    return "\n".join(["## What is in this folder", "", "| file | what it is |", "|---|---|", *there])


def _measured(run: Path, done: Export) -> str:
    results = read_run(run).results
    lines = ["## Measured", "", "| | |", "|---|---:|"]
    lines += [f"| {words} | {_number(results[key])} |" for key, words in KEY_METRICS.items() if key in results]
    if not results:
        lines = ["## Measured", "", "The run was not evaluated when this was written."]
    if done.difference is not None:
        lines += ["", f"ONNX agrees with PyTorch to {done.difference:.1e}; 8 bits: {done.quantised}."]
    if done.top1:
        lines += ["", f"Top-1 of the files on {done.tested} test samples:", "", "| file | top-1 |", "|---|---:|"]
        lines += [f"| {name} | {value:.1%} |" for name, value in done.top1.items()]
    lines += ["", "One sample on one thread of a CPU, median, taken in turn:", ""]
    lines += ["| | ms |", "|---|---:|", *(f"| {name} | {value:.2f} |" for name, value in done.latency.items())]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value > 1 else f"{value:.3f}"


def _limits(config: Config, dataset: Dataset, done: Export) -> str:
    lines = [
        f"It knows what {dataset.name} shows, and no more: other sensors, places and subjects were not tested. "
        "Probabilities are not calibrated. An input that is none of the classes still gets one of them.",
        *(f"- {note}" for note in done.notes),
    ]
    if len(done.top1) == 2:
        full, small = done.top1.values()
        if full - small > 0.01:
            lines.append(f"- 8 bits cost {100 * (full - small):.1f} points of top-1; prefer model.onnx.")
    return "\n".join(["## Limits", "", *lines])
