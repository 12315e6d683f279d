"""`make bench-losses`: cost of the losses, compared with published versions, other libraries and hardware limits.

All measurements are interleaved in one run, since the speed of a shared machine drifts. Results are medians and ratios
of medians.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from losses import Dims, Features, GlobalContrast, LocalTransport, WCoRD, sinkhorn
from losses.row_blocked import transport_cost
from modalities.encoders.resnet import ResNet
from pipeline.models.gradient_cache import in_parts

Work = Callable[[], object]


def medians(works: dict[str, Work], seconds: float) -> dict[str, float]:
    """Median seconds per call of each function, interleaved, with 3 to 200 calls and about `seconds` seconds each."""
    took: dict[str, list[float]] = {name: [] for name in works}
    left = dict.fromkeys(works, seconds)
    for work in works.values():
        work()
    while left:
        for name in list(left):
            begun = time.perf_counter()
            works[name]()
            took[name].append(time.perf_counter() - begun)
            left[name] -= took[name][-1]
            if (left[name] < 0 and len(took[name]) >= 3) or len(took[name]) >= 200:
                del left[name]
    return {name: median(times) for name, times in took.items()}


def peak_bytes(work: Work) -> int:
    """Peak memory in bytes of tensors that `work` allocates, as recorded by the allocator."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    held = peak = 0
    for event in record.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def published_global_term(batch: int, negatives: int, dim: int, rows: int) -> Work:
    """The published version: gathers `[B, M, d]` from each of two banks and multiplies it with every anchor."""
    banks = F.normalize(torch.randn(2, rows, dim), dim=2)
    weights = [torch.randn(256, dim, requires_grad=True) for _ in range(2)]
    h = torch.randn(2, batch, 256)

    def work() -> None:
        index = torch.randint(rows, (batch, negatives + 1), device=banks.device)
        total = torch.zeros((), device=banks.device)
        for bank, weight, x in zip(banks, weights, h, strict=True):
            chosen = bank.index_select(0, index.view(-1)).view(batch, negatives + 1, dim)
            p = (torch.bmm(chosen, F.normalize(x @ weight, dim=1)[:, :, None])[..., 0] / 0.07).exp()
            p = p / p.mean().detach() / negatives
            total = total - (p[:, 0] / (p[:, 0] + 1)).log().mean() - (1 / (p[:, 1:] + 1)).log().sum(1).mean()
        total.backward()

    return work


def our_global_term(batch: int, negatives: int, dim: int) -> Work:
    loss = GlobalContrast(Dims(256), Dims(256), dim=dim, queue=negatives)
    unknown = {"label": torch.full((batch,), -1), "group": torch.full((batch,), -1)}
    for _ in range(negatives // batch):
        loss(Features(torch.randn(batch, 256)), Features(torch.randn(batch, 256)), unknown)
    student, teacher = Features(torch.randn(batch, 256, requires_grad=True)), Features(torch.randn(batch, 256))
    return lambda: loss(student, teacher, unknown).backward()


def bench_global_term(seconds: float) -> None:
    batch, negatives, dim = 64, 16_384, 128
    works = {
        "published": published_global_term(batch, negatives, dim, 50_000),
        "ours": our_global_term(batch, negatives, dim),
    }
    took = medians(works, seconds)
    peaks = {name: peak_bytes(work) for name, work in works.items()}
    print(f"Global term, B {batch}, M {negatives:,}, d {dim}, forward and backward")
    for name in works:
        print(f"  {name:10s} {1000 * took[name]:8.1f} ms {peaks[name] / 2**20:8.1f} MiB peak")
    faster, smaller = (x["published"] / x["ours"] for x in (took, peaks))
    print(f"  {faster:.1f} times faster, 1/{smaller:.0f} of the memory\n")


def geomloss_plan(cost: torch.Tensor, epsilon: float, iterations: int) -> object:
    import geomloss.ot

    return geomloss.ot.solve(cost, reg=epsilon, max_iter=iterations).plan


def bench_sinkhorn(seconds: float) -> None:
    import ot

    epsilon, iterations = 0.05, 50
    print(f"Sinkhorn, epsilon {epsilon}, {iterations} iterations: ms")
    print("       n     ours      POT log  geomloss   POT/ours  geomloss/ours  ours/bandwidth limit")
    for n in (64, 256, 1024, 4096):
        x, y = (F.normalize(torch.randn(n, 64), dim=1) for _ in range(2))
        cost = 1 - x @ y.T
        uniform, array = np.full(n, 1 / n, np.float32), cost.numpy()
        source, target = torch.rand(2, n * n)  # initialised: untouched memory is read from a single zero page

        took = medians(
            {
                "ours": partial(sinkhorn, cost, epsilon, iterations),
                "pot": partial(
                    ot.bregman.sinkhorn_log,
                    uniform,
                    uniform,
                    array,
                    epsilon,
                    numItermax=iterations,
                    stopThr=0,
                    warn=False,
                ),
                "geomloss": partial(geomloss_plan, cost, epsilon, iterations),
                "copy": partial(target.copy_, source),
            },
            seconds,
        )
        limit = took["copy"] * iterations
        print(
            f"  {n:6d} {1000 * took['ours']:8.2f} {1000 * took['pot']:12.2f} {1000 * took['geomloss']:9.2f}"
            f" {took['pot'] / took['ours']:10.1f} {took['geomloss'] / took['ours']:14.1f} {took['ours'] / limit:12.2f}"
        )
    print()


def bench_row_blocks(n: int) -> None:
    x, y = (F.normalize(torch.randn(n, 64), dim=1).requires_grad_() for _ in range(2))

    def transport() -> None:
        transport_cost(x, y, 0.1, 2)[0].backward()

    few = n // 4
    loss = WCoRD(Dims(64), Dims(64))
    student, teacher = Features(torch.randn(few, 64).requires_grad_()), Features(torch.randn(few, 64))
    rows = {"label": torch.randint(100, (few,)), "group": torch.full((few,), -1)}
    print("Row blocks, forward and backward")
    for name, size, work in (
        ("transport", n, transport),
        ("the whole WCoRD loss", few, lambda: loss(student, teacher, rows).backward()),
    ):
        peak, whole = peak_bytes(work) / 2**20, 4 * size * size / 2**20
        print(f"  {name}, n {size:,}: {peak:.0f} MiB peak; one matrix of all pairs has {whole:.0f} MiB")
    print()


def bench_training_step(seconds: float) -> None:
    """A step of resnet32x4 to resnet8x4, batch 64: teacher forward, student forward and backward, and WCoRD."""
    batch = 64
    teacher, student = (ResNet(3, depth=depth, width=64, size=32) for depth in (32, 8))
    images = torch.randn(batch, 3, 32, 32)
    loss = WCoRD(*(Dims(net.dim, net.map_channels) for net in (student, teacher)))
    rows = {"label": torch.randint(100, (batch,)), "group": torch.full((batch,), -1)}
    with torch.no_grad():
        known = teacher(images)

    def networks() -> None:
        with torch.no_grad():
            teacher(images)
        student(images).pooled.sum().backward()

    dims = Dims(student.dim), Dims(teacher.dim)
    dual, primal = GlobalContrast(*dims), LocalTransport(*dims, relational=0.15)

    def before() -> None:
        (0.5 * dual(given, known, rows) + 6 * primal(given, known, rows)).backward()

    given = Features(torch.randn(batch, student.dim, requires_grad=True))
    works: dict[str, Work] = {"networks": networks, "loss": lambda: loss(given, known, rows).backward()}
    took = medians(works | {"before": before}, seconds)
    share = took["loss"] / (took["loss"] + took["networks"])
    print(
        f"WCoRD in a step of resnet32x4 -> resnet8x4, batch {batch}: {1000 * took['loss']:.1f} ms of "
        f"{1000 * (took['loss'] + took['networks']):.0f} ms, {share:.1%}; "
        f"{took['loss'] / took['before']:.2f} times the default before the suite"
    )


def bench_gradient_caching(seconds: float) -> None:
    batch, part = 1024, 64
    student = ResNet(3, depth=8, width=16, size=32)
    images, known = torch.randn(batch, 3, 32, 32), Features(torch.randn(batch, 256))
    loss = WCoRD(Dims(student.dim, student.map_channels), Dims(256))
    rows = {"label": torch.randint(100, (batch,)), "group": torch.full((batch,), -1)}
    works = {
        "whole": lambda: loss(student(images), known, rows).backward(),
        "parts": lambda: loss(in_parts(student, images, part, maps=False), known, rows).backward(),
    }
    took = medians(works, seconds)
    peaks = {name: peak_bytes(work) / 2**20 for name, work in works.items()}
    print(
        f"Gradient caching, resnet8, batch {batch:,} in parts of {part}: {peaks['parts']:.0f} MiB peak against "
        f"{peaks['whole']:.0f} MiB, {took['parts'] / took['whole']:.2f} times the time\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per measurement")
    parser.add_argument("--rows", type=int, default=32_768, help="batch size of the row-blocked path")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"{len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    bench_global_term(arguments.seconds)
    bench_sinkhorn(arguments.seconds)
    bench_training_step(arguments.seconds)
    print()
    bench_gradient_caching(arguments.seconds)
    bench_row_blocks(arguments.rows)


if __name__ == "__main__":
    main()
