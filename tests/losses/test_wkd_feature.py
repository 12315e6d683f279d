import numpy as np
import pytest
import scipy.linalg
import torch
from cases import assert_agree, batch_norm, of_maps

from losses import Dims, Features
from losses.wkd_feature import WKDFeature

STUDENT, TEACHER = Dims(8, maps=(3, 6)), Dims(8, maps=(9,))
Double = torch.float64


def maps(size: int = 4) -> tuple[Features, Features]:
    s = [torch.randn(3, 3, 8, 8, dtype=Double), torch.randn(3, 6, size, size, dtype=Double)]
    return of_maps(*s), of_maps(torch.randn(3, 9, 4, 4, dtype=Double))


@pytest.mark.parametrize(
    ("samples", "student", "teacher"), [(4, (3, 4, 4), (5, 4, 4)), (3, (6, 2, 5), (4, 3, 3)), (5, (2, 7, 7), (2, 1, 2))]
)
def test_is_the_published_form_written_out(
    samples: int, student: tuple[int, int, int], teacher: tuple[int, int, int]
) -> None:
    loss = WKDFeature(Dims(8, maps=student[:1]), Dims(8, maps=teacher[:1])).double()
    parameters = weight, scale, shift = list(loss.parameters())
    for parameter in parameters:
        torch.nn.init.normal_(parameter)
    s = torch.randn(samples, *student, dtype=Double, requires_grad=True)
    t = torch.randn(samples, *teacher, dtype=Double)
    convolved = torch.einsum("nchw,oc->nohw", s, weight[:, :, 0, 0])
    projected = batch_norm(convolved, scale, shift).clamp(min=0)
    total = torch.zeros((), dtype=Double)
    for i in range(samples):
        for c in range(teacher[0]):
            gaussians = []
            for x in (projected[i, c].flatten(), t[i, c].flatten()):
                mean = x.sum() / len(x)
                gaussians.append((mean, torch.sqrt(((x - mean) ** 2).sum() / (len(x) - 1) + 1e-5)))
            (mean_s, std_s), (mean_t, std_t) = gaussians
            total = total + 4 * (mean_s - mean_t) ** 2 + (std_s - std_t) ** 2
    assert_agree(loss(of_maps(s), of_maps(t), {}), total / samples, [s, *parameters])


@pytest.mark.parametrize("size", [4, 7])  # the sides may differ in size
def test_ratio_one_is_the_distance_between_the_gaussians(size: int) -> None:
    """W2^2 by its general formula: |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_2^1/2 S_1 S_2^1/2)^1/2)."""
    loss = WKDFeature(STUDENT, TEACHER, ratio=1.0).double()
    student, teacher = maps(size)
    total = 0.0
    for s, t in zip(loss.projector(student.maps[-1]).detach().numpy(), teacher.maps[-1].numpy(), strict=True):
        (m_1, S_1), (m_2, S_2) = ((x.mean((1, 2)), np.diag(x.var((1, 2), ddof=1) + 1e-5)) for x in (s, t))
        root = scipy.linalg.sqrtm(S_2)
        total += ((m_1 - m_2) ** 2).sum() + np.trace(S_1 + S_2 - 2 * scipy.linalg.sqrtm(root @ S_1 @ root))
    torch.testing.assert_close(loss(student, teacher, {}).item(), float(total.real) / 3)


def test_ratio_weighs_the_means() -> None:
    loss = WKDFeature(STUDENT, TEACHER).double()
    student, teacher = maps()
    values = []
    for ratio in (0.0, 1.0, 4.0):
        loss.ratio = ratio
        values.append(loss(student, teacher, {}))
    torch.testing.assert_close(values[2] - values[0], 4 * (values[1] - values[0]))
    assert WKDFeature(STUDENT, TEACHER).ratio == 4


def test_does_not_look_at_the_order_of_positions() -> None:
    loss = WKDFeature(STUDENT, TEACHER).double()
    student, teacher = maps()
    shuffled = student.maps[-1].flatten(2)[:, :, torch.randperm(16)]
    expected = loss(student, teacher, {})
    torch.testing.assert_close(loss(of_maps(shuffled.mT), teacher, {}), expected)  # tokens
    torch.testing.assert_close(loss(of_maps(shuffled.view(3, 6, 2, 8)), teacher, {}), expected)
    assert loss(student, of_maps(teacher.maps[-1].roll(1, 0)), {}) != expected


def test_gradients_in_float64_also_of_the_projector() -> None:
    loss = WKDFeature(Dims(8, maps=(3,)), Dims(8, maps=(4,))).double()
    s = torch.randn(2, 3, 3, 3, dtype=Double, requires_grad=True)
    t = torch.randn(2, 4, 2, 2, dtype=Double)
    assert torch.autograd.gradcheck(lambda x, *_: loss(of_maps(x), of_maps(t), {}), (s, *loss.parameters()))


def test_one_position_and_flat_maps_are_finite() -> None:
    loss = WKDFeature(STUDENT, TEACHER)
    s = torch.ones(1, 6, 1, 1, requires_grad=True)
    value = loss(of_maps(s), of_maps(torch.zeros(1, 9, 4, 4)), {})
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(s.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in loss.parameters())


def test_refuses_networks_without_maps() -> None:
    with pytest.raises(ValueError, match="the student has none"):
        WKDFeature(Dims(8), TEACHER)
    with pytest.raises(ValueError, match="the teacher has none"):
        WKDFeature(STUDENT, Dims(8))
