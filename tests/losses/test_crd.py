"""CRD against published values and its definition written out; its bank, its draw, its memory, one rank and two."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launching import spawn
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from losses import Dims, Features, bank
from losses.bank import Bank, draw_negatives, last_occurrence, random_bits
from losses.crd import CRD
from pipeline.common.errors import UserError
from pipeline.config import load
from pipeline.models.build import build_model
from pipeline.train import train

STUDENT, TEACHER = Dims(12), Dims(20)
Double = torch.float64
Run = dict[str, Any]


def pairs(n: int, seed: int = 0, dtype: torch.dtype = Double) -> tuple[Features, Features]:
    rng = torch.Generator().manual_seed(seed)
    s, t = torch.randn(n, 12, generator=rng, dtype=dtype), torch.randn(n, 20, generator=rng, dtype=dtype)
    return Features(s), Features(t)


def batch(index: Tensor, label: Tensor | None = None, **more: Tensor) -> dict[str, Tensor]:
    return {"index": index, "label": torch.full_like(index, -1) if label is None else label, **more}


def crd(samples: int = 30, negatives: int = 9, **keywords: Any) -> CRD:
    torch.manual_seed(0)
    return CRD(STUDENT, TEACHER, dim=8, negatives=negatives, samples=samples, **keywords).double()


@pytest.fixture(params=["dense", "rows"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute similarities, in several chunks."""
    monkeypatch.setattr(bank, "DENSE", {"dense": 10**9, "rows": 0}[request.param])
    monkeypatch.setattr(bank, "CHUNK", 2000)
    name: str = request.param
    return name


@pytest.mark.parametrize("dtype", [torch.float32, Double])
def test_agrees_with_published_values(dtype: torch.dtype, path: str, golden: Any) -> None:

    def read(key: str, dtype: torch.dtype = dtype) -> Tensor:
        return torch.from_numpy(golden[f"crd/{key}"]).to(dtype)

    loss = CRD(Dims(48), Dims(80), dim=32, negatives=64, samples=500).to(dtype)
    sides = {"student": ("s", loss.student_projection, loss.student_bank)}
    sides |= {"teacher": ("t", loss.teacher_projection, loss.teacher_bank)}
    for side, (letter, projection, memory) in sides.items():
        projection.linear.weight.data = read(f"param/embed_{letter}.linear.weight")
        projection.linear.bias.data = read(f"param/embed_{letter}.linear.bias")
        memory.rows.copy_(read(f"bank_{side}0"))
    for step in range(2):
        student, teacher = (read(f"step{step}/{side}") for side in sides)
        index, contrast = (read(f"step{step}/{name}", torch.int64) for name in ("index", "contrast_index"))
        loss.zero_grad()
        value = loss(Features(student.requires_grad_()), Features(teacher), batch(index, contrast_index=contrast))
        value.backward()
        # The reference ran in fp32.
        np.testing.assert_allclose(value.item(), golden[f"crd/step{step}/loss"][0], rtol=2e-6)
        found = {"grad_student": student.grad}
        for side, (letter, projection, memory) in sides.items():
            found |= {f"grad_embed_{letter}": projection.linear.weight.grad, f"bank_{side}": memory.rows}
        for key, tensor in found.items():
            assert tensor is not None
            np.testing.assert_allclose(tensor, golden[f"crd/step{step}/{key}"], rtol=2e-4, atol=2e-6, err_msg=key)
        z = [golden[f"crd/step{step}/{name}"] for name in ("Z_student_anchor_v1", "Z_v2")]
        np.testing.assert_allclose(loss.log_z.exp(), z, rtol=2e-6)


def written_out(loss: CRD, student: Tensor, teacher: Tensor, contrast: Tensor) -> Tensor:
    """The paper's formula, gathered rows and all, with Z fixed on this batch."""
    s, t = loss.student_projection(student), loss.teacher_projection(teacher)
    total = torch.zeros((), dtype=Double)
    samples, negatives = len(loss.labels), contrast.shape[1] - 1
    for anchor, memory in ((s, loss.teacher_bank.rows.clone()), (t, loss.student_bank.rows.clone())):
        e = torch.exp((memory[contrast] * anchor[:, None]).sum(2) / loss.temperature)
        p = e / (e.detach().mean() * samples)
        positive = p[:, 0] / (p[:, 0] + negatives / samples + 1e-7)
        negative = (negatives / samples) / (p[:, 1:] + negatives / samples + 1e-7)
        total = total - (positive.log().sum() + negative.log().sum()) / len(s)
    return total


def test_is_the_definition_written_out(path: str) -> None:
    loss, (student, teacher) = crd(), pairs(5)
    x, y = (f.pooled.requires_grad_() for f in (student, teacher))
    contrast = torch.randint(30, (5, 10))
    inputs = [x, y, *loss.parameters()]
    expected = written_out(loss, x, y, contrast)
    wanted = torch.autograd.grad(expected, inputs)
    found = loss(student, teacher, batch(contrast[:, 0], contrast_index=contrast))
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found, inputs), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_in_float64(path: str) -> None:
    loss, (student, teacher), index = crd(), pairs(4), torch.tensor([3, 1, 2, 20])
    loss(student, teacher, batch(index))  # fixes Z, which else depends on the input
    loss.eval()
    inputs = [student.pooled.requires_grad_(), teacher.pooled.requires_grad_()]
    assert torch.autograd.gradcheck(lambda s, t: 3 * loss(Features(s), Features(t), batch(index)), inputs)


def test_banks_move_by_the_momentum_and_only_at_the_batch() -> None:
    loss, (student, teacher), index = crd(momentum=0.75), pairs(4), torch.tensor([3, 1, 2, 20])
    before = loss.teacher_bank.rows.clone()
    t = loss.teacher_projection(teacher.pooled).detach()
    loss(student, teacher, batch(index))
    expected = before.clone()
    expected[index] = F.normalize(0.75 * before[index] + 0.25 * t, dim=1)
    torch.testing.assert_close(loss.teacher_bank.rows, expected)


def test_z_is_that_of_the_first_batch_and_evaluation_changes_nothing() -> None:
    loss = crd()
    loss.eval()
    state = {k: v.clone() for k, v in loss.state_dict().items()}
    assert loss(*pairs(4, 1), batch(torch.arange(4), torch.arange(4))).isfinite()
    assert all(torch.equal(v, state[k]) for k, v in loss.state_dict().items())
    loss.train()
    loss(*pairs(4, 2), batch(torch.arange(4)))
    z = loss.log_z.clone()
    assert z.isfinite().all()
    loss(*pairs(4, 3), batch(torch.arange(4)))
    assert torch.equal(loss.log_z, z)


def test_of_an_index_given_twice_the_last_counts() -> None:
    one, two = Bank(6, 4, 0.5), Bank(6, 4, 0.5)
    two.load_state_dict(one.state_dict())
    x = torch.randn(5, 4)
    index = torch.tensor([2, 0, 2, 5, 2])
    assert last_occurrence(index, int(index.max()) + 1).tolist() == [4, 1, 4, 3, 4]  # a GPU writes in any order
    one.update(x, index)
    two.update(x[[1, 3, 4]], torch.tensor([0, 5, 2]))
    torch.testing.assert_close(one.rows, two.rows)


def test_the_bank_starts_with_rows_of_about_unit_length() -> None:
    rows = Bank(2000, 64, 0.5).rows
    assert rows.abs().max() <= (3 / 64) ** 0.5
    assert rows.square().sum(1).mean() == pytest.approx(1, abs=0.02)


def test_negatives_are_of_other_classes_distinct_and_evenly_drawn() -> None:
    labels = torch.tensor([0, 1, 2, -1, 1, 0, 0, -1, 2, 1, 1, 0])
    index = torch.tensor([4, 7, 0])
    keys = torch.randint(2**62, (3 * 4000,), generator=torch.Generator().manual_seed(0))
    drawn = draw_negatives(index.repeat(4000), labels, 4, keys).reshape(4000, 3, 4)
    assert all(len(set(row.tolist())) == 4 for row in drawn.flatten(0, 1))
    for row, own in enumerate(index.tolist()):
        left_out = (labels == labels[own]) & (labels >= 0)
        left_out[own] = True
        share = torch.bincount(drawn[:, row].flatten(), minlength=12) / 4000
        expected = torch.where(left_out, 0.0, 4 / int((~left_out).sum()))
        torch.testing.assert_close(share, expected, atol=0.04, rtol=0)  # 5 standard deviations
        assert not share[left_out].any()
    assert (
        len({frozenset(row) for row in drawn[:, 1].tolist()}) > 11
    )  # more than a random start alone makes of 11 others


def test_more_negatives_than_others_repeat_evenly() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1])
    drawn = draw_negatives(torch.tensor([0]), labels, 8, torch.tensor([5]))
    assert sorted(torch.bincount(drawn[0], minlength=5).tolist()) == [0, 0, 2, 3, 3]
    alone = draw_negatives(torch.tensor([1]), torch.zeros(3, dtype=torch.int64), 4, torch.tensor([5]))
    assert torch.bincount(alone[0], minlength=3).tolist() == [2, 0, 2]


def test_random_bits_are_even_and_independent() -> None:
    bits = random_bits(torch.arange(256), 256)
    assert bits.min() >= 0
    assert bits.max() < 2**31
    unit = bits.double() / 2**31
    counts = torch.histc(unit, 64, 0, 1)
    assert ((counts - 1024).square() / 1024).sum() < 120  # chi squared of 63 degrees of freedom: 1e-5
    for a, b in ((unit[1:], unit[:-1]), (unit[:, 1:], unit[:, :-1])):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs() < 0.02


def test_the_draw_changes_with_step_and_seed_but_is_repeatable() -> None:
    index, labels = torch.arange(4), torch.full((1000,), -1)
    one, two = crd(1000), crd(1000)
    assert torch.equal(one._draw(index, labels), two._draw(index, labels))
    two.steps += 1
    assert not torch.equal(one._draw(index, labels), two._draw(index, labels))
    torch.manual_seed(1)
    other = CRD(STUDENT, TEACHER, samples=1000, negatives=9)
    assert not torch.equal(one._draw(index, labels), other._draw(index, labels))


def test_labels_are_remembered() -> None:
    loss = crd()
    loss(*pairs(3), batch(torch.tensor([4, 5, 6]), torch.tensor([2, -1, 1])))
    assert loss.labels[4:7].tolist() == [2, -1, 1]
    assert (loss.labels >= 0).sum() == 2


def test_learns_to_tell_the_pairs_apart() -> None:
    torch.manual_seed(0)
    loss = CRD(Dims(16), Dims(16), dim=8, negatives=32, samples=64)
    x = torch.randn(64, 16)
    optimizer = torch.optim.Adam(loss.parameters(), 0.01)
    values = []
    for step in range(150):
        index = torch.arange(64)[step % 4 :: 4]
        value, metrics, _ = loss.with_metrics(Features(x[index]), Features(2 * x[index] + 1), batch(index))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert np.mean(values[-8:]) < 0.5 * np.mean(values[:4])
    assert metrics()["similarity_gap"] > 0.5


@pytest.mark.parametrize("dims", [8, 4096])
def test_one_sample_and_any_size(dims: int) -> None:
    loss = CRD(Dims(dims), Dims(dims), dim=8, negatives=5, samples=2, temperature=0.01)
    x = torch.randn(1, dims, requires_grad=True)
    value = loss(Features(x), Features(torch.randn(1, dims)), batch(torch.tensor([1])))
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_compiles_whole_and_survives_autocast() -> None:
    plain, compiled = crd(), crd()
    graph = torch.compile(compiled, backend="eager", fullgraph=True)
    for step in range(2):
        student, teacher = pairs(4, step)
        with torch.autocast("cpu", torch.bfloat16):
            results = [f(student, teacher, batch(torch.arange(4) + step, torch.arange(4))) for f in (plain, graph)]
        torch.testing.assert_close(*results)
        for value in results:
            value.backward()
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    half = CRD(STUDENT, TEACHER, samples=30)
    features = [Features(f.pooled.bfloat16()) for f in pairs(4)]
    with torch.autocast("cpu", torch.bfloat16):
        assert half(*features, batch(torch.arange(4))).dtype == torch.float32


def test_saves_no_rows_for_the_backward() -> None:
    saved: list[int] = []
    loss, (student, teacher) = crd(samples=400, negatives=300), pairs(6)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        loss(student, teacher, batch(torch.arange(6)))
    assert 0 < max(saved) < 6 * 300


def test_refusals() -> None:
    with pytest.raises(ValueError, match="samples must be the size of the set"):
        CRD(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r'batch\["index"\]'):
        crd()(*pairs(2), {"label": torch.zeros(2, dtype=torch.int64)})


def test_a_run_fills_in_the_samples_and_resumes_to_the_same_bits(make_config: Any) -> None:
    teacher = train(load(make_config("teacher"), ["student.modality=rgb", "train.steps=2"]))
    terms = '  cross_entropy: {}\n  "losses.crd:CRD": {dim: 8, negatives: 20, weight: 0.8}'
    settings = ["train.keep_checkpoints=9", "train.steps=8"]
    whole = load(make_config("whole", f"teacher: {{run: {teacher}}}", terms), settings)
    loss = next(loss for loss in build_model(whole).losses.values() if isinstance(loss, CRD))
    assert loss.student_bank.rows.shape == (96, 8)
    run = train(whole)
    cut = Path(shutil.copytree(run, run.with_name("cut")))
    shutil.rmtree(cut / "checkpoints" / "step_00000008")
    shutil.rmtree(cut / "student")
    train(load(make_config("cut", f"teacher: {{run: {teacher}}}", terms), settings), resume=True)
    one, two = (load_file(folder / "checkpoints" / "step_00000008" / "model.safetensors") for folder in (run, cut))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert int(next(value for key, value in one.items() if key.endswith("steps"))) == 8
    labels = next(value for key, value in one.items() if key.endswith(".labels"))
    assert torch.equal(labels[labels >= 0], torch.arange(96)[labels >= 0] % 3)  # as write_dataset labels them
    assert (labels >= 0).sum() > 90
    with pytest.raises(UserError, match=r"samples: 50, but the training split has 96"):
        build_model(load(make_config("few", f"teacher: {{run: {teacher}}}", terms.replace("dim: 8", "samples: 50"))))


def steps(rank: int, ranks: int) -> Run:
    """Three steps on this rank's share of a global batch of 8, DDP's averaging written out."""
    loss = crd(samples=40, negatives=11)
    values, gradients = [], []
    for step in range(3):
        (student, teacher), rng = pairs(8, step), torch.Generator().manual_seed(step)
        index = torch.randint(40, (8,), generator=rng)
        if step == 2:
            index[7] = index[0]  # twice in the global batch
        label = index % 4 - 1
        mine = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
        loss.zero_grad()
        value = loss(Features(student.pooled[mine]), Features(teacher.pooled[mine]), batch(index[mine], label[mine]))
        value.backward()
        for tensor in (found := [value.detach(), *(p.grad for p in loss.parameters())]):
            if ranks > 1:
                dist.all_reduce(tensor)
                tensor /= ranks
        values.append(float(found[0]))
        gradients += [g.clone() for g in found[1:]]
    return {"values": values, "gradients": gradients, "buffers": dict(loss.named_buffers())}


def worker(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    torch.save(steps(rank, ranks), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_equal_one(ranks: int) -> None:
    one = steps(0, 1)
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, (ranks, folder), ranks)
        several = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for found in several:
        assert found["values"] == pytest.approx(one["values"], rel=1e-9)
        torch.testing.assert_close(found["gradients"], one["gradients"], rtol=1e-7, atol=1e-9)
        for key, buffer in one["buffers"].items():
            torch.testing.assert_close(found["buffers"][key], buffer)
