"""VID against a Gaussian likelihood under convolutions, and the features that it chooses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losses import Dims, Features
from losses.vid import VID

STUDENT, TEACHER = Dims(5, maps=(3, 4)), Dims(8, maps=(6, 7))
Double = torch.float64


def features(dims: Dims, sizes: tuple[tuple[int, int], ...] = ((8, 8), (4, 4))) -> Features:
    rng = torch.Generator().manual_seed(dims.pooled)
    maps = [
        torch.randn(3, c, *size, generator=rng, dtype=Double)
        for c, size in zip(dims.maps, sizes[: len(dims.maps)], strict=True)
    ]
    return Features(torch.randn(3, dims.pooled, generator=rng, dtype=Double), maps)


def tokens(count: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, count, channels, generator=torch.Generator().manual_seed(seed), dtype=Double)


def minus_log_likelihood(term: nn.Module, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Of maps, the regressor as convolutions and the density from `torch.distributions`, without its constant."""
    mean = student
    for layer in term.regressor:
        mean = F.conv2d(mean, layer.weight[:, :, None, None]) if isinstance(layer, nn.Linear) else layer(mean)
    deviation = (term.softplus_variance.exp().log1p() + 1e-5).sqrt()[:, None, None]
    density = torch.distributions.Normal(mean, deviation).log_prob(teacher)
    return -density.mean() - torch.log(torch.tensor(2 * torch.pi, dtype=Double)) / 2


def test_is_the_definition_written_out() -> None:
    loss = VID(STUDENT, TEACHER).double()
    for term in loss.likelihoods:
        nn.init.normal_(term.softplus_variance)  # a variance for each channel
    student, teacher = features(STUDENT), features(TEACHER)
    expected = sum(
        minus_log_likelihood(term, s, t)
        for term, s, t in zip(loss.likelihoods, student.maps, teacher.maps, strict=True)
    )
    torch.testing.assert_close(loss(student, teacher, {}), expected)


def test_starts_with_the_first_map_that_is_asked_for() -> None:
    loss = VID(STUDENT, TEACHER, first=1).double()
    student, teacher = features(STUDENT), features(TEACHER)
    expected = minus_log_likelihood(loss.likelihoods[0], student.maps[1], teacher.maps[1])
    torch.testing.assert_close(loss(student, teacher, {}), expected)
    assert len(loss.likelihoods) == 1


def test_pools_the_larger_map_of_a_pair() -> None:
    loss = VID(STUDENT, TEACHER).double()
    student, teacher = features(STUDENT, ((8, 8), (2, 4))), features(TEACHER, ((4, 4), (4, 4)))
    pooled_s = Features(student.pooled, [F.avg_pool2d(student.maps[0], 2), student.maps[1]])
    pooled_t = Features(teacher.pooled, [teacher.maps[0], F.avg_pool2d(teacher.maps[1], (2, 1))])
    torch.testing.assert_close(loss(student, teacher, {}), loss(pooled_s, pooled_t, {}))


def test_variance_starts_at_the_published_five() -> None:
    for term in VID(STUDENT, TEACHER).likelihoods:
        torch.testing.assert_close(F.softplus(term.softplus_variance), torch.full_like(term.softplus_variance, 5.0))


@pytest.mark.parametrize(("maps", "first"), [((7,), 0), ((9, 6, 7), 1)])
def test_pairs_the_last_maps_where_the_sides_differ_in_their_number(maps: tuple[int, ...], first: int) -> None:
    teacher_dims = Dims(8, maps=maps)
    loss = VID(STUDENT, teacher_dims, first=first).double()
    student, teacher = features(STUDENT), features(teacher_dims, ((8, 8),) * (len(maps) - 1) + ((4, 4),))
    expected = minus_log_likelihood(loss.likelihoods[0], student.maps[-1], teacher.maps[-1])
    torch.testing.assert_close(loss(student, teacher, {}), expected)
    assert len(loss.likelihoods) == 1


@pytest.mark.parametrize(("maps", "first"), [((), 1), ((7,), 1), ((6, 7), 2)])
def test_more_maps_asked_for_than_can_be_paired(maps: tuple[int, ...], first: int) -> None:
    with pytest.raises(ValueError, match="VID"):
        VID(STUDENT, Dims(8, maps=maps), first=first)


def test_without_maps_it_is_of_pooled_features() -> None:
    loss = VID(STUDENT, Dims(8)).double()
    student, teacher = features(STUDENT), features(Dims(8))
    assert len(loss.likelihoods) == 1
    s, t = student.pooled[:, :, None, None], teacher.pooled[:, :, None, None]
    torch.testing.assert_close(loss(student, teacher, {}), minus_log_likelihood(loss.likelihoods[0], s, t))


def test_tokens_are_positions_and_are_averaged_where_their_number_differs() -> None:
    loss = VID(Dims(5, maps=(3,)), Dims(8, maps=(6,))).double()
    student, teacher = Features(torch.empty(3, 5), [tokens(16, 3)]), Features(torch.empty(3, 8), [tokens(16, 6, 1)])
    as_map = Features(student.pooled, [student.maps[0].transpose(1, 2).reshape(3, 3, 4, 4)])
    torch.testing.assert_close(loss(student, teacher, {}), loss(as_map, teacher, {}))
    with_class_token = Features(teacher.pooled, [tokens(17, 6, 2)])
    means = [Features(f.pooled, [f.maps[0].mean(1, keepdim=True)]) for f in (student, with_class_token)]
    torch.testing.assert_close(loss(as_map, with_class_token, {}), loss(*means, {}))


def test_gradient_in_float64() -> None:
    loss = VID(STUDENT, TEACHER).double()
    student, teacher = features(STUDENT, ((2, 2), (2, 2))), features(TEACHER, ((4, 4), (1, 1)))

    def of_maps(*maps: torch.Tensor) -> torch.Tensor:
        return loss(Features(student.pooled, list(maps)), teacher, {})

    assert torch.autograd.gradcheck(of_maps, [m.requires_grad_() for m in student.maps])


def test_learns_the_variance_of_what_it_cannot_predict() -> None:
    """A student that says nothing: the likelihood is best at the teacher's own mean square, channel by channel."""
    torch.manual_seed(0)
    loss = VID(Dims(2), Dims(3)).double()
    teacher = torch.randn(4000, 3, dtype=Double) * torch.tensor([0.5, 1.0, 2.0], dtype=Double)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        loss(Features(torch.zeros(4000, 2, dtype=Double)), Features(teacher), {}).backward()
        optimiser.step()
    variance = F.softplus(loss.likelihoods[0].softplus_variance)
    torch.testing.assert_close(variance, teacher.square().mean(0), rtol=0.02, atol=0)


def test_one_sample_is_enough() -> None:
    loss = VID(STUDENT, TEACHER).double()
    student, teacher = (Features(f.pooled[:1], [m[:1] for m in f.maps]) for f in map(features, (STUDENT, TEACHER)))
    value = loss(student, teacher, {})
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
