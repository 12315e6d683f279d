import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import of_maps

from losses import Dims
from losses.sp import SP

STUDENT, TEACHER = Dims(8, maps=(12,)), Dims(8, maps=(20,))
Double = torch.float64


def sp(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return SP(STUDENT, TEACHER)(of_maps(student), of_maps(teacher), {})


def test_agrees_with_published_values(golden: Any) -> None:
    student = torch.from_numpy(golden["map/student"]).requires_grad_()
    loss = sp(student, torch.from_numpy(golden["map/teacher"]))
    loss.backward()
    # The reference ran in fp32.
    np.testing.assert_allclose(loss.item(), golden["map/sp/same/loss"].item(), rtol=1e-5)
    np.testing.assert_allclose(student.grad, golden["map/sp/same/grad_student"], rtol=1e-4, atol=1e-8)


def test_is_the_definition_written_out() -> None:
    s, t = torch.randn(3, 12, 4, 5, dtype=Double), torch.randn(3, 20, 2, 2, dtype=Double)
    rows = [[[float((m[i] * m[j]).sum()) for j in range(3)] for i in range(3)] for m in (s, t)]
    g_s, g_t = (np.array(r) / np.linalg.norm(r, axis=1, keepdims=True) for r in rows)
    torch.testing.assert_close(sp(s, t).item(), float(((g_s - g_t) ** 2).sum() / 9))


def test_compares_the_last_maps() -> None:
    s, t = torch.randn(3, 12, 4, 4), torch.randn(3, 20, 4, 4)
    loss = SP(Dims(8, maps=(4, 12)), Dims(8, maps=(5, 6, 20)))
    first = [torch.randn(3, c, 8, 8) for c in (4, 5, 6)]
    torch.testing.assert_close(loss(of_maps(first[0], s), of_maps(*first[1:], t), {}), sp(s, t))


def test_ignores_scale_and_order_of_the_pairs() -> None:
    s, t = torch.randn(5, 12, 4, 4, dtype=Double), torch.randn(5, 20, 4, 4, dtype=Double)
    order = torch.randperm(5)
    torch.testing.assert_close(sp(3 * s[order], t[order]), sp(s, t))
    torch.testing.assert_close(sp(torch.cat([s, s], 1), s), torch.zeros((), dtype=Double))
    torch.testing.assert_close(sp(s.flatten(2).mT, t.flatten(2).mT), sp(s, t))
    assert sp(s, t.roll(1, 0)) != sp(s, t)


def test_gradient_in_float64() -> None:
    t = torch.randn(4, 20, 2, 2, dtype=Double)
    s = torch.randn(4, 12, 2, 2, dtype=Double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sp(x, t), s)


def test_a_dead_sample_has_a_moderate_gradient() -> None:
    alive, teacher = torch.randn(5, 12, 4, 4), torch.randn(6, 20, 4, 4)
    student = torch.cat([alive, torch.zeros(1, 12, 4, 4)]).requires_grad_()
    sp(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1


def test_one_sample_gives_zero() -> None:
    s = torch.randn(1, 12, 4, 4, requires_grad=True)
    loss = sp(s, torch.randn(1, 20, 4, 4))
    loss.backward()
    assert loss.abs() < 1e-6
    assert s.grad.abs().max() < 1e-6


def test_compiles_and_runs_in_half_precision() -> None:
    s, t = torch.randn(4, 12, 8, 8), torch.randn(4, 20, 4, 4)
    compiled = torch.compile(SP(STUDENT, TEACHER), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(of_maps(s), of_maps(t), {}), sp(s, t))
    with torch.autocast("cpu", torch.bfloat16):
        half = sp(s.bfloat16(), t.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, sp(s, t), rtol=0.05, atol=0)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return (
        torch.randn(6, 12, 3, 3, generator=rng, dtype=Double),
        torch.randn(6, 20, 3, 3, generator=rng, dtype=Double),
    )


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    s, t = (x.chunk(2)[rank] for x in pair())
    s = s.clone().requires_grad_()
    loss = sp(s, t)
    loss.backward()
    torch.save((loss.detach(), s.grad / 2), f"{folder}/{rank}.pt")  # DDP's average
    dist.destroy_process_group()


def test_two_ranks_see_the_global_batch() -> None:
    s, t = pair()
    s.requires_grad_()
    loss = sp(s, t)
    loss.backward()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(folder,), nprocs=2)
        parts = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for value, _ in parts:
        torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), s.grad)


def test_refuses_networks_without_maps() -> None:
    with pytest.raises(ValueError, match="the student has none"):
        SP(Dims(8), TEACHER)
    with pytest.raises(ValueError, match="the teacher has none"):
        SP(STUDENT, Dims(8))
