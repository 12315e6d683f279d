"""N ranks with batch B / N give the loss and the gradient of one rank with batch B."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from losses import LOSSES, Dims, Features

BATCH, STEPS = 12, 3
DIMS = {"student": Dims(6, classes=4), "teacher": Dims(10, classes=4)}


def run(name: str, rank: int, ranks: int) -> dict[str, Any]:
    """Three steps of one loss on this rank's share of the batch, DDP's averaging written out."""
    torch.manual_seed(0)
    loss = LOSSES[name](DIMS["student"], DIMS["teacher"]).double()
    encoder = torch.nn.Linear(5, 6, dtype=torch.float64)
    head = torch.nn.Linear(6, 4, dtype=torch.float64)
    values: list[float] = []
    for step in range(STEPS):
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH, 5, generator=rng, dtype=torch.float64)
        t = torch.randn(BATCH, 10, generator=rng, dtype=torch.float64)
        label = torch.randint(-1, 4, (BATCH,), generator=rng)  # unlabelled samples lie unevenly on the ranks
        mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
        for module in (encoder, head, loss):
            module.zero_grad()
        h = encoder(x[mine])
        value = loss(
            Features(h, logits=head(h)),
            Features(t[mine], logits=t[mine, :4]),
            {"label": label[mine], "group": label[mine]},
        )
        value.backward()
        total = value.detach().clone()
        gradients = [p.grad for m in (encoder, head, loss) for p in m.parameters() if p.grad is not None]
        if ranks > 1:
            for tensor in [total, *gradients]:
                dist.all_reduce(tensor)
                tensor /= ranks
        values.append(float(total))
    return {"values": values, "gradients": [g.clone() for g in gradients], "buffers": dict(loss.named_buffers())}


def worker(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    torch.save({name: run(name, rank, ranks) for name in LOSSES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(3, folder), nprocs=3)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.mark.parametrize("name", LOSSES)
def test_three_ranks_equal_one(ranks: list[dict[str, Any]], name: str) -> None:
    one = run(name, 0, 1)
    for found in (part[name] for part in ranks):
        assert found["values"] == pytest.approx(one["values"], rel=1e-9)
        for a, b in zip(found["gradients"], one["gradients"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
        for key, buffer in one["buffers"].items():
            torch.testing.assert_close(found["buffers"][key], buffer)
