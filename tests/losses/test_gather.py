"""N ranks with batch B / N give the loss and the gradient of one rank with batch B."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import NAMES, VARIANTS, ToyNetwork, batch, build, dims, sides
from launching import spawn

from losses import rows

BATCH, STEPS = 12, 3
STUDENT, TEACHER = dims(6, 3), dims(10, 5)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def run(name: str, rank: int, ranks: int, dtype: torch.dtype) -> dict[str, Any]:
    """Three steps of one loss on this rank's share of the batch, DDP's averaging written out."""
    pair = sides(name, STUDENT, TEACHER)
    loss = build(name, *pair).to(dtype)
    student, teacher = ToyNetwork(pair[0]).to(dtype), ToyNetwork(pair[1]).to(dtype).requires_grad_(False)
    values: list[float] = []
    own: list[float] = []
    for step in range(STEPS):
        x = torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)
        mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
        for module in (student, loss):
            module.zero_grad()
        known = {key: column[mine] for key, column in batch(BATCH, step).items()}  # labels lie unevenly on the ranks
        value = loss(student(x[mine]), teacher(x[mine]), known)
        value.backward()
        total = value.detach().clone()
        own.append(float(total))
        gradients = [p.grad for m in (student, loss) for p in m.parameters() if p.grad is not None]
        if ranks > 1:
            for tensor in [total, *gradients]:
                dist.all_reduce(tensor)
                tensor /= ranks
        values.append(float(total))
    return {
        "values": values,
        "own": own,
        "gradients": [g.clone() for g in gradients],
        "buffers": dict(loss.named_buffers()),
    }


def worker(rank: int, ranks: int, largest: int, folder: str) -> None:
    rows.LARGEST_WHOLE, rows.BLOCK_ELEMENTS = largest, 3 * BATCH  # of its share a rank takes several blocks
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    found = {f"{name} {dtype}": run(name, rank, ranks, dtype) for name in NAMES for dtype in TOLERANCE}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(
    scope="module",
    params=[
        (2, 2 * BATCH),
        *(pytest.param(case, marks=pytest.mark.slow) for case in ((2, BATCH - 1), (4, 1))),
    ],
    ids=lambda param: f"{param[0]} ranks, whole to {param[1]}",
)
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Of so many ranks, which share the rows of matrices of larger batches than that."""
    count, largest = request.param
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, (count, largest, folder), count)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NAMES)
def test_several_ranks_equal_one(ranks: list[dict[str, Any]], name: str, dtype: torch.dtype) -> None:
    one, relative = run(name, 0, 1, dtype), TOLERANCE[dtype]
    for found in (part[f"{name} {dtype}"] for part in ranks):
        assert found["values"] == pytest.approx(one["values"], rel=relative)
        if VARIANTS.get(name, (name, {}))[0] in ("wcord", "global_contrast", "local_transport"):  # of the whole batch
            assert found["own"] == pytest.approx(one["values"], rel=relative)
        # What is zero but for rounding (a bias that the loss does not see) has the rounding of the largest gradient.
        rounding = torch.finfo(dtype).eps * max(float(b.abs().max()) for b in one["gradients"])
        for a, b in zip(found["gradients"], one["gradients"], strict=True):
            assert (a - b).abs().max() <= relative * b.abs().max() + rounding
        for key, buffer in one["buffers"].items():
            scale = float(buffer.abs().max()) if buffer.is_floating_point() and buffer.numel() else 0.0
            torch.testing.assert_close(found["buffers"][key], buffer, rtol=relative, atol=relative * scale)
