"""Compares the cost model of docs/scaling.md with training runs on this machine: predicted and measured step time.

python -m benchmarks.predicted

It runs the `rgb_to_depth` experiment with one thread per process, which also reads its own data, so nothing overlaps
and a step is the sum of its parts. The cost per sample is measured separately at a batch size of 64, with as many
parallel processes as in the run, and so are the losses of a global batch and one gradient exchange.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from benchmarks.scaling import gloo_bytes_a_second
from benchmarks.throughput import cost_per_sample, measured, prepare, run_training
from pipeline import config as configs
from pipeline.models.build import build_model

BATCH = 64
RUNS = ((1, 64), (1, 256), (2, 128), (2, 512))
"""Number of processes, and global batch size."""


def cost(processes: int, batch: int, overrides: list[str]) -> dict[str, float]:
    """CPU seconds per sample of each part at a batch size, averaged over `processes` parallel processes."""
    with get_context("spawn").Pool(processes) as pool:
        found = pool.map(cost_per_sample, [[*overrides, f"data.batch_size={batch}"]] * processes, chunksize=1)
    return {part: sum(one[part] for one in found) / processes for part in found[0]}


def predict(processes: int, n: int, weights: int, overrides: list[str]) -> float:
    """Seconds of a step with a global batch of n."""
    parts = cost(processes, BATCH, overrides)
    whole = cost(processes, n, overrides)["losses"] * n  # every process computes them for the global batch
    samples = sum(parts[name] for name in ("reading, decoding, augmentation", "teacher", "student"))
    exchange = 4 * weights / gloo_bytes_a_second(weights) if processes > 1 else 0.0
    return n / processes * samples + whole + parts["optimiser"] * BATCH + exchange


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        overrides = [*prepare(folder, options.steps), "data.workers=0"]
        model = build_model(configs.load("rgb_to_depth", [*overrides, f"run={folder / 'cost'}"]))
        weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
        predict_here = partial(predict, weights=weights, overrides=[*overrides, f"run={folder / 'cost'}"])
        print("processes  global batch  predicted ms  measured ms  measured / predicted")
        for processes, n in RUNS:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            found = []
            for _ in range(options.rounds):
                run = run_training(folder, "many", launcher, [*overrides, f"data.batch_size={n}"])
                found.append((predict_here(processes, n), n / measured(run)[0]))
            predicted, taken = (1000 * median(seconds) for seconds in zip(*found, strict=True))
            ratio = median(real / model for model, real in found)
            print(f"{processes:9d}  {n:12d}  {predicted:12.0f}  {taken:11.0f}  {ratio:20.2f}", flush=True)


if __name__ == "__main__":
    main()
