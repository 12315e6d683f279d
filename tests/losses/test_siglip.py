"""SigLIP against its definition written out."""

import math

import pytest
import torch
from torch.nn import functional as F

from losses import Dims, Features
from losses.siglip import SigLIP

Double = torch.float64


def pooled(n: int) -> tuple[Features, Features]:
    rng = torch.Generator().manual_seed(n)
    x = torch.randn(n, 13, generator=rng, dtype=Double)
    return Features(x[:, :5]), Features(x[:, 5:])


@pytest.mark.parametrize("n", [1, 6])
def test_is_the_definition_written_out(n: int) -> None:
    loss = SigLIP(Dims(5), Dims(8), dim=4, scale=3.0, bias=-1.0).double()
    student, teacher = pooled(n)
    s, t = (
        F.normalize(projection.linear(x.pooled), dim=1).tolist()
        for projection, x in ((loss.student_projection, student), (loss.teacher_projection, teacher))
    )
    expected = 0.0
    for i in range(n):
        for j in range(n):
            logit = 3 * sum(a * b for a, b in zip(s[i], t[j], strict=True)) - 1
            expected -= math.log(1 / (1 + math.exp(-logit if i == j else logit))) / n
    assert loss(student, teacher, {}).item() == pytest.approx(expected, rel=1e-6)  # the scale is stored in fp32


def test_starts_where_the_paper_does() -> None:
    loss = SigLIP(Dims(5), Dims(8))
    metrics = loss.with_metrics(*(Features(f.pooled.float()) for f in pooled(4)), {}).metrics()
    torch.testing.assert_close((metrics["scale"], metrics["bias"]), (torch.tensor(10.0), torch.tensor(-10.0)))
    assert {name for name, p in loss.named_parameters() if p.ndim == 0 and p.requires_grad} == {
        "log_temperature",
        "bias",
    }


def test_pairs_attract_and_others_repel() -> None:
    loss = SigLIP(Dims(4), Dims(4), dim=4).double()
    with torch.no_grad():
        for projection in (loss.student_projection, loss.teacher_projection):
            projection.linear.weight.copy_(torch.eye(4))
            projection.linear.bias.zero_()
    paired = Features(torch.eye(4, dtype=Double))
    shifted = Features(torch.eye(4, dtype=Double).roll(1, 0))
    assert loss(paired, paired, {}) + 9 < loss(shifted, paired, {})


def test_gradient_in_float64() -> None:
    loss = SigLIP(Dims(5), Dims(8), dim=4).double()
    student, teacher = pooled(5)
    assert torch.autograd.gradcheck(
        lambda x: loss(Features(x), teacher, {}),
        student.pooled.requires_grad_(),
    )


def test_trains_every_parameter() -> None:
    loss = SigLIP(Dims(5), Dims(8)).double()
    loss(*pooled(5), {}).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loss.parameters())
