"""The demo: pack, train, distil, evaluate and report in a few minutes."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from pipeline import config as configs
from pipeline.common.console import say
from pipeline.evaluate.evaluate_run import evaluate
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop
from pipeline.report.page import report
from pipeline.train.loop import train

log = logging.getLogger(__name__)

SCENES = 3000
"""Number of generated scenes."""


def demo(folder: Path, seed: int = 0) -> Path:
    """Train an RGB teacher, a depth student on few labels, and the same student with WCoRD.

    Args:
        folder: Output folder for data, runs and report.
        seed: Random seed for data generation and training.

    Returns:
        Path of the report.
    """
    begun = time.perf_counter()
    _say(f"1/5 packing {SCENES} tabletop scenes: photo, depth, mask, caption, sound")
    pack(tabletop.plan(SCENES, seed), folder / "data", seed=seed, workers=os.cpu_count() or 1, overwrite=True)
    runs = {name: folder / "runs" / name for name in ("rgb_teacher", "depth_labels", "rgb_to_depth")}
    titles = {
        "rgb_teacher": "2/5 training an RGB teacher on all labels",
        "depth_labels": "3/5 training a depth student on 5 % of the labels",
        "rgb_to_depth": "4/5 training the same depth student with the RGB teacher (WCoRD)",
    }
    for name, run in runs.items():
        _say(titles[name])
        overrides = [f"run={run}", f"seed={seed}", f"data.shards={folder / 'data'}"]
        if name == "rgb_to_depth":
            baselines = json.dumps([str(runs["depth_labels"])], ensure_ascii=False)
            overrides += [f"teacher.run={runs['rgb_teacher']}", f"evaluation.baselines={baselines}"]
        train(configs.load(name, overrides), overwrite=True)
    _say("5/5 evaluating all three and writing the report")
    results = {name: evaluate(run) for name, run in runs.items()}
    page = report([runs["rgb_to_depth"], runs["depth_labels"], runs["rgb_teacher"]], folder / "report.html")
    for name, measured in results.items():
        say(f"{name:14s} top-1 {measured['student/top1']:6.1%}   linear probe {measured['student/probe']:6.1%}")
    say(f"\n{(time.perf_counter() - begun) / 60:.1f} minutes. Open {page}")
    return page


def _say(what: str) -> None:
    log.info(f"\n== {what}")
