"""The demo: pack, train, distil, evaluate and report. On a slow machine, it has fewer scenes and training steps."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from statistics import median
from typing import cast

import torch

from pipeline import config as configs
from pipeline.common.console import say
from pipeline.config.settings import Config
from pipeline.evaluate.evaluate_run import evaluate
from pipeline.models.network import Network, build_network
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop
from pipeline.report.page import report
from pipeline.train.loop import train

log = logging.getLogger(__name__)

SCENES = 3000
"""Number of generated scenes in the full demo."""

MINUTES = 2.0
"""Target duration."""

FULL_DURATION = 1500.0
"""Duration of the full demo, in training steps of the teacher (measured on two cores)."""

SMALLEST = 0.35
"""The smallest fraction of the full demo, in which the student still gains clearly from the teacher."""


def demo(folder: Path, seed: int = 0) -> Path:
    """Train an RGB teacher, a depth student on few labels, and the same student with WCoRD.

    Args:
        folder: Output folder for data, runs and report.
        seed: Random seed for data generation and training.

    Returns:
        Path of the report.
    """
    begun = time.perf_counter()
    fraction = affordable_fraction(step_seconds(configs.load("rgb_teacher")))
    scenes = round(fraction * SCENES)
    labelled = label_fraction(fraction)
    if fraction < 1:
        _say(f"slow machine: the demo is reduced to {fraction:.0%} of its scenes and training steps")
    _say(f"1/5 packing {scenes} tabletop scenes: photo, depth, mask, caption, sound")
    pack(tabletop.plan(scenes, seed), folder / "data", seed=seed, workers=os.cpu_count() or 1, overwrite=True)
    runs = {name: folder / "runs" / name for name in ("rgb_teacher", "depth_labels", "rgb_to_depth")}
    titles = {
        "rgb_teacher": "2/5 training an RGB teacher on all labels",
        "depth_labels": f"3/5 training a depth student on {100 * labelled:.0f} % of the labels",
        "rgb_to_depth": "4/5 training the same depth student with the RGB teacher (WCoRD)",
    }
    for name, run in runs.items():
        _say(titles[name])
        overrides = [f"run={run}", f"seed={seed}", f"data.shards={folder / 'data'}"]
        if name != "rgb_teacher":
            overrides += [f"data.label_fraction={labelled}"]
        if name == "rgb_to_depth":
            baselines = json.dumps([str(runs["depth_labels"])], ensure_ascii=False)
            overrides += [f"teacher.run={runs['rgb_teacher']}", f"evaluation.baselines={baselines}"]
        full = configs.load(name).train
        overrides += [f"train.{key}={round(fraction * getattr(full, key))}" for key in ("steps", "warmup")]
        train(configs.load(name, overrides), overwrite=True)
    _say("5/5 evaluating all three and writing the report")
    results = {name: evaluate(run) for name, run in runs.items()}
    page = report([runs["rgb_to_depth"], runs["depth_labels"], runs["rgb_teacher"]], folder / "report.html")
    for name, measured in results.items():
        say(f"{name:14s} top-1 {measured['student/top1']:6.1%}   linear probe {measured['student/probe']:6.1%}")
    say(f"\n{(time.perf_counter() - begun) / 60:.1f} minutes. Open {page}")
    return page


def affordable_fraction(seconds: float) -> float:
    """Compute the fraction of the full demo that takes `MINUTES` on this machine, at least `SMALLEST`.

    Args:
        seconds: Duration of a training step of the teacher.
    """
    return min(1.0, max(SMALLEST, 60 * MINUTES / (FULL_DURATION * seconds)))


def label_fraction(fraction: float) -> float:
    """Compute the fraction of the labels that the students use: in a smaller demo, as many labels as in the full one.

    With fewer labels, a student hardly learns the classes, and its gain from the teacher does not show.

    Args:
        fraction: Size of the demo, as a fraction of the full one.
    """
    share = configs.load("rgb_to_depth").data.label_fraction / fraction
    return min(1.0, round(share, 3))


def step_seconds(config: Config) -> float:
    """Measure the forward and backward pass of a config's student on random images; the median of five, in seconds.

    Args:
        config: The config.
    """
    network = cast(Network, build_network(config.student.modality, config.student.encoder, None, "student"))
    size = network.encoder.preprocessing.size
    images, durations = torch.rand(config.data.batch_size, 3, size, size), []
    for _ in range(6):
        begun = time.perf_counter()
        network(images).pooled.sum().backward()
        durations.append(time.perf_counter() - begun)
    return median(durations[1:])  # the first pass also allocates memory


def _say(what: str) -> None:
    log.info(f"\n== {what}")
