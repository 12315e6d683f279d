"""CC against published values and its definition written out."""

from typing import Any

import numpy as np
import pytest
import torch
from cases import vectors

from losses import Dims, Features
from losses.cc import CC

Double = torch.float64


def test_agrees_with_published_values(golden: Any) -> None:
    student = torch.from_numpy(golden["vector/student"]).requires_grad_()
    loss = CC(Dims(40), Dims(40), dim=None)
    value = loss(Features(student), Features(torch.from_numpy(golden["vector/teacher"])), {})
    value.backward()
    # The reference ran in fp32.
    np.testing.assert_allclose(value.item(), golden["vector/cc/loss"], rtol=1e-6)
    np.testing.assert_allclose(student.grad, golden["vector/cc/grad_student"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("n", [2, 6])
def test_is_the_definition_written_out(n: int) -> None:
    loss = CC(Dims(5), Dims(8), dim=4).double()
    student, teacher = vectors(n)
    s = student @ loss.student_embedding.weight.T + loss.student_embedding.bias
    t = teacher @ loss.teacher_embedding.weight.T + loss.teacher_embedding.bias
    expected = sum(abs(s[i, d] - t[i, d]) * abs(s[i + 1, d] - t[i + 1, d]) for i in range(n - 1) for d in range(4))
    torch.testing.assert_close(loss(Features(student), Features(teacher), {}), expected / (n - 1))


def test_embeds_both_sides_in_128_dimensions() -> None:
    shapes = {name: tuple(p.shape) for name, p in CC(Dims(5), Dims(8)).named_parameters() if p.ndim == 2}
    assert shapes == {"student_embedding.weight": (128, 5), "teacher_embedding.weight": (128, 8)}
    assert not list(CC(Dims(5), Dims(5), dim=None).parameters())


def test_gradient_in_float64() -> None:
    loss = CC(Dims(5), Dims(8), dim=4).double()
    student, teacher = vectors(5)
    assert torch.autograd.gradcheck(
        lambda x: loss(Features(x), Features(teacher), {}),
        student.requires_grad_(),
    )


def test_trains_both_embeddings() -> None:
    loss = CC(Dims(5), Dims(8)).double()
    student, teacher = vectors(5)
    loss(Features(student), Features(teacher), {}).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loss.parameters())


def test_one_sample_has_no_neighbour() -> None:
    student, teacher = vectors(1)
    value = CC(Dims(5), Dims(8)).double()(Features(student.requires_grad_()), Features(teacher), {})
    value.backward()
    assert value == 0
    assert student.grad is not None
    assert (student.grad == 0).all()


def test_refuses_other_sizes_without_an_embedding() -> None:
    with pytest.raises(ValueError, match="Set dim"):
        CC(Dims(5), Dims(8), dim=None)
