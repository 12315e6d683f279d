"""The cost model of docs/scaling.md: measures its constants on this machine and predicts training on many GPUs.

python -m benchmarks.scaling

Measured: CPU time per sample of the loader; FLOPs per sample of teacher (forward) and student (forward and backward),
with torch's counter; trained parameters; FLOPs and bytes of the losses at a global batch; the speed of gloo on this
machine. Assumed, since there is no GPU here: the constants below.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.throughput import cpu_seconds
from losses import Dims, Features, WCoRD
from losses.rows import LARGEST_WHOLE
from modalities import RGB, Depth
from modalities.base import Geometry
from modalities.encoders.base import Encoder
from modalities.encoders.cnn5 import CNN5
from modalities.encoders.resnet import ResNet
from modalities.transformers_loader import import_transformers
from pipeline.common.host import keep_freed_memory
from pipeline.data.augmentation import Augmentation
from pipeline.data.feature_cache import decode, encode
from pipeline.data.source import open_split
from pipeline.data.stream import TrainStream
from pipeline.data.views import View
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop

# Published for one A100 SXM: 312 TFLOP/s in bf16, 2.0 TB/s of memory bandwidth, 600 GB/s of NVLink (bidirectional).
PEAK, MEMORY, LINK = 312e12, 2.0e12, 300e9
# Published for machines with eight GPUs: one 200 Gbit/s adapter per GPU.
NETWORK = 25e9
# Assumed: utilisation of compute and of links, and CPU cores per GPU.
UTILISATION, LINK_SHARE, CORES = 0.35, 0.7, 12
GPUS_A_MACHINE, BATCH, QUEUE, DIM, ITERATIONS = 8, 256, 1024, 128, 20
BILLION = 1e9


def flops(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def forward_and_backward(network: Encoder, x: torch.Tensor) -> None:
    network(x).pooled.sum().backward()


def networks() -> dict[str, float]:
    """FLOPs per sample of a ViT-B teacher (forward) and two students (forward and backward), and their parameters."""
    transformers = import_transformers()
    x = torch.rand(2, 3, 224, 224)
    teacher = transformers.ViTModel(transformers.ViTConfig())
    found = {"teacher": flops(lambda: teacher(x)) / 2}
    for name, student in (("cnn5", CNN5(3, size=96)), ("resnet20", ResNet(3, depth=20, stem_stride=4, size=224))):
        own = torch.rand(2, 3, student.preprocessing.size, student.preprocessing.size)
        found[name] = flops(partial(forward_and_backward, student, own)) / 2
        found[f"{name}/parameters"] = sum(p.numel() for p in student.parameters())
    return found


def loader_seconds() -> dict[str, float]:
    """CPU seconds per sample of reading, decoding and augmenting: depth at 96 px, alone or with a photo at 224 px."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        pack(tabletop.plan(100, 0, 256), folder, fractions={"train": 1.0}, workers=1)
        student = {"student": View(Depth(input="depth+normals"), 96)}
        source, found = open_split(folder, "train", "label"), {}
        for name, views in (("cached", student), ("pair", student | {"teacher": View(RGB(), 224)})):
            batches = iter(TrainStream(source, views, Augmentation(crop=(0.6, 1.0), flip=True), batch=32))
            found[name] = cpu_seconds(lambda: next(batches)) / 32  # noqa: B023 - called at once
        return found | {"cached": found["cached"] + features_seconds()}


def features_seconds() -> float:
    """CPU seconds to decode cached features of a sample: a vector of 768 dimensions and logits of 1,000 classes."""
    data = encode({"pooled": torch.randn(768), "logits": torch.randn(1000)}, Geometry(0.0, 0.0, 1.0, 1.0, False))
    return cpu_seconds(lambda: decode(data), 1.0)


def loss_seconds(n: int, ranks: int = 1) -> float:
    """CPU seconds (one thread) for a rank's part of WCoRD with a global batch of n, forward and backward.

    The teacher has 768 dimensions, the student 128.
    """
    torch.set_num_threads(1)
    loss = WCoRD(Dims(DIM), Dims(768), queue=QUEUE)
    own = n // ranks
    student, teacher = Features(torch.randn(own, DIM, requires_grad=True)), Features(torch.randn(own, 768))
    batch = {"label": torch.full((own,), -1), "group": torch.full((own,), -1)}
    # All ranks must call it equally often.
    return cpu_seconds(lambda: loss(student, teacher, batch).backward(), 2.0 if ranks == 1 else 0.0)


def _share(rank: int, folder: str, n: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    Path(folder, f"{rank}").write_text(str(loss_seconds(n, 2)))
    dist.destroy_process_group()


def shared_loss_seconds(n: int) -> float:
    """Mean CPU seconds per process for WCoRD with a global batch of n on two processes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_share, (folder, n), nprocs=2)
        return sum(float(Path(folder, f"{rank}").read_text()) for rank in range(2)) / 2


def _reduce(rank: int, folder: str, size: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    value = torch.ones(size)
    dist.all_reduce(value)
    begun = time.perf_counter()
    for _ in range(20):
        dist.all_reduce(value)
    if rank == 0:
        Path(folder, "speed").write_text(str(20 * 4 * size / (time.perf_counter() - begun)))
    dist.destroy_process_group()


def gloo_bytes_a_second(size: int = 4 << 20) -> float:
    """Bytes per second in an all-reduce between two processes on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_reduce, (folder, size), nprocs=2)
        return float(Path(folder, "speed").read_text())


def predicted(gpus: int, constants: dict[str, float], student: str, cached: bool) -> dict[str, float]:
    """Milliseconds of the parts of a step on each GPU, and samples per second in total."""
    n = gpus * BATCH
    bandwidth = LINK_SHARE * (LINK if gpus <= GPUS_A_MACHINE else NETWORK)
    seen = 0.0 if cached else constants["teacher"]
    # Matrices [n, n + queue] are read and written. Up to LARGEST_WHOLE, every rank computes the losses of the whole
    # global batch. Beyond that, each rank computes the rows of its samples, and again in the backward pass.
    shared = n > LARGEST_WHOLE
    entries = n * (n + QUEUE) / (gpus if shared else 1)
    matrices = 4.0 * entries
    products = 2 * (4 if shared else 3) * entries * (768 + 2 * DIM)
    passes = 2 * ITERATIONS + 30
    gradients = 4 * constants[f"{student}/parameters"]
    features = 3 * 4 * n * (DIM + 768)  # all-gather, and the reduction of the student's gradient
    step = {
        "teacher": seen * BATCH / (PEAK * UTILISATION),
        "student": constants[student] * BATCH / (PEAK * UTILISATION),
        "losses": products / (PEAK / 16 * UTILISATION)
        + passes * matrices / MEMORY,  # in fp32, a sixteenth of the bf16 rate
        "communication": (gpus > 1) * (2 * gradients + features) / bandwidth,
        "loader": constants["cached" if cached else "pair"] * BATCH / CORES,
    }
    device = step["teacher"] + step["student"] + step["losses"] + step["communication"]
    return {k: 1000 * v for k, v in step.items()} | {"samples": n / max(device, step["loader"])}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    constants: dict[str, Any] = networks() | loader_seconds()
    print(
        f"loader: {1000 * constants['pair']:.2f} CPU ms a pair, {1000 * constants['cached']:.2f} with a cached teacher"
    )
    print(f"teacher (ViT-B, 224 px): {constants['teacher'] / 1e9:.1f} GFLOP a sample")
    for name in ("cnn5", "resnet20"):
        size = constants[f"{name}/parameters"]
        print(
            f"student {name}: {constants[name] / 1e9:.3f} GFLOP a sample with backward, {size / 1e6:.2f} M parameters"
        )
    for n in (64, 256, 1024):
        print(f"WCoRD of {n} samples: {1e6 * loss_seconds(n) / n:.0f} CPU us a sample on one thread")
    large = LARGEST_WHOLE + 512
    one, two = loss_seconds(large), shared_loss_seconds(large)
    print(f"WCoRD of {large} samples: {one:.1f} CPU s in one process, {two:.1f} in each of two")
    print(f"gloo, two processes here: {gloo_bytes_a_second() / 1e9:.2f} GB/s summed")
    print(f"\n{'GPUs':>5} {'cache':>6}  ms a step of {BATCH} a GPU{'':24}{'samples/s':>12} {'1e9 pairs':>10}")
    for gpus in (1, 8, 64):
        for cached in (False, True):
            found = predicted(gpus, constants, "resnet20", cached)
            parts = "  ".join(
                f"{k} {found[k]:.1f}" for k in ("loader", "teacher", "student", "losses", "communication")
            )
            hours = BILLION / found["samples"] / 3600
            print(f"{gpus:>5} {'yes' if cached else 'no':>6}  {parts}  {found['samples']:>9,.0f} {hours:>8.1f} h")


if __name__ == "__main__":
    main()
