"""`make bench`: samples per second of a real training run, compared with the limit of this machine.

The limit is the number of cores divided by the CPU time of one sample in all parts of training (reading, decoding and
augmentation; teacher; student; losses; optimiser). Each part is measured separately on one thread while the same part
runs on every core, since cores that share caches or clock limits slow each other down. A ratio of 1 means that no time
is lost to waiting, copying and scheduling. The training run is the shipped `rgb_to_depth` experiment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from losses import Features
from pipeline import config as configs
from pipeline.common.host import keep_freed_memory
from pipeline.data.augmentation import Augmentation
from pipeline.data.source import OpenDataset
from pipeline.data.stream import TrainStream
from pipeline.models.build import build_model
from pipeline.models.distillation import Distillation
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop
from pipeline.train import train
from pipeline.train.optimizer import build_optimizer

ENVIRONMENT: dict[str, dict[str, str]] = {"one": {}, "many": {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_seconds(work: Callable[[], object], seconds: float = 5.0) -> float:
    """Mean CPU seconds per call of `work`, over as many calls as fit in `seconds`, after a warm-up.

    The mean is used because some calls do work for others: the first call of an epoch fills the shuffle buffer.
    """
    work()
    calls, begun, until = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < until or calls < 3:
        work()
        calls += 1
    return (time.process_time() - begun) / calls


def cost_per_sample(overrides: list[str]) -> dict[str, float]:
    """CPU seconds per sample of each part, measured separately on one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    config = configs.load("rgb_to_depth", overrides)
    model = build_model(config)
    size = config.data.batch_size
    source = OpenDataset.from_config(config).split("train", config.data.label_fraction, config.seed)
    stream = TrainStream(source, model.views, Augmentation.from_config(config), batch=size)
    batches = iter(stream)
    batch = next(batches)
    assert isinstance(batch, dict)
    optimizer = build_optimizer(model, config)

    def learn() -> None:
        model(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    assert model.teacher is not None
    learn()  # allocates gradients and the state of the optimiser
    cost = {
        "reading, decoding, augmentation": cpu_seconds(lambda: next(batches)),
        "teacher": cpu_seconds(lambda: model.teach(batch)),
        "student": cpu_seconds(lambda: student_alone(model, batch)),
        "losses": cpu_seconds(losses_alone(model, batch)),
        "optimiser": cpu_seconds(lambda: optimise_alone(model, optimizer)),
    }
    return {name: seconds / size for name, seconds in cost.items()}


def student_alone(model: Distillation, batch: dict[str, torch.Tensor]) -> None:
    features = model.student(batch["student"])
    (features.pooled.sum() + features.logits.sum()).backward()


def losses_alone(model: Distillation, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Forward and backward pass of the losses on given features."""
    with torch.no_grad():
        student, teacher = model.student(batch["student"]), model.teacher(batch["teacher"])  # type: ignore[misc]
    pooled, logits = student.pooled.requires_grad_(), student.logits.requires_grad_()

    def work() -> None:
        given = Features(pooled, [], logits)
        torch.stack([loss(given, teacher, batch) for loss in model.losses.values()]).sum().backward()

    return work


def optimise_alone(model: Distillation, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def measured(run: Path) -> tuple[float, float]:
    """Samples per second and fraction of time spent waiting for data, without the first log line (start-up)."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "samples_per_second" in row][1:]
    seconds = sum(1 / row["samples_per_second"] for row in rows)
    return len(rows) / seconds, sum(row["data_wait"] for row in rows) / len(rows)


def prepare(folder: Path, steps: int) -> list[str]:
    """Pack data and train a teacher; return overrides for a run that uses both and only takes training steps."""
    pack(tabletop.plan(2000), folder / "data", workers=CORES)
    data = f"data.shards={folder / 'data'}"
    teacher = train(configs.load("rgb_teacher", [data, f"run={folder / 'teacher'}", "train.steps=5"]))
    overrides = [data, f"teacher.run={teacher}", f"train.steps={steps}", "train.log_every=20"]
    return [*overrides, "train.checkpoint_every=100000", "evaluation.baselines=[]"]


def run_training(folder: Path, name: str, launcher: list[str], overrides: list[str]) -> Path:
    """Train in one or more new processes, and return the run folder."""
    run = folder / name
    command = [sys.executable, *launcher, "-m", "pipeline", "train", "rgb_to_depth", *overrides, f"run={run}"]
    subprocess.run([*command, "--overwrite"], env=os.environ | ENVIRONMENT[name], stdout=subprocess.DEVNULL, check=True)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of rounds; each measures the parts, then the runs"
    )
    arguments = parser.parse_args()
    costs: list[dict[str, float]] = []
    speeds: dict[str, list[tuple[float, float]]] = {"one": [], "many": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        overrides = prepare(folder, arguments.steps)
        # The batch size per process equals that of the single process and of the parts. Each process reads its own
        # data, since there is already one process per core.
        several = [*overrides, f"data.batch_size={64 * CORES}", "data.workers=0"]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(CORES)]
        for _ in range(arguments.rounds):
            with get_context("spawn").Pool(CORES) as pool:
                found = pool.map(cost_per_sample, [[*overrides, f"run={folder / 'cost'}"]] * CORES, chunksize=1)
            costs.append({part: sum(cost[part] for cost in found) / CORES for part in found[0]})
            speeds["one"].append(measured(run_training(folder, "one", [], overrides)))
            speeds["many"].append(measured(run_training(folder, "many", launcher, several)))
    report(costs, speeds)


def report(costs: list[dict[str, float]], speeds: dict[str, list[tuple[float, float]]]) -> None:
    """Print medians over the rounds. Ratios are computed per round, since the speed of a shared machine drifts."""
    parts = {part: median(cost[part] for cost in costs) for part in costs[0]}
    total = sum(parts.values())
    print(f"\n{'part, alone on one thread':34s} CPU ms a sample")
    for name, seconds in parts.items():
        print(f"{name:34s} {1000 * seconds:8.3f}   {seconds / total:5.1%}")
    limits = [CORES / sum(cost.values()) for cost in costs]
    print(f"{'sum':34s} {1000 * total:8.3f}   limit of {CORES} cores: {median(limits):.0f} samples/s\n")
    for name, title in (("one", f"one process, {CORES} threads"), ("many", f"{CORES} processes of one thread")):
        ratios = [speed / limit for (speed, _), limit in zip(speeds[name], limits, strict=True)]
        speed, waiting = (median(figures) for figures in zip(*speeds[name], strict=True))
        print(
            f"{title:34s} {speed:6.0f} samples/s = {median(ratios):.2f} of the limit "
            f"({min(ratios):.2f} to {max(ratios):.2f}); data wait {100 * waiting:.1f} %"
        )


if __name__ == "__main__":
    main()
