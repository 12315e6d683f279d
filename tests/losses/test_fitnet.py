import pytest
import torch
from cases import of_maps
from torch.nn import functional as F

from losses import Dims
from losses.fitnet import FitNet

STUDENT, TEACHER = Dims(8, maps=(4, 6, 12)), Dims(8, maps=(5, 7, 20))
Double = torch.float64


def maps(channels: tuple[int, ...], sizes: tuple[int, ...] = (8, 4, 2)) -> list[torch.Tensor]:
    return [torch.randn(3, c, n, n, dtype=Double) for c, n in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize(("layer", "index"), [(None, 1), (0, 0), (2, 2), (-1, 2)])
def test_is_the_definition_written_out(layer: int | None, index: int) -> None:
    loss = FitNet(STUDENT, TEACHER, layer=layer).double()
    s, t = maps(STUDENT.maps), maps(TEACHER.maps)
    weight, bias = loss.regressor.weight.detach()[:, :, 0, 0], loss.regressor.bias.detach()
    total = 0.0
    for b in range(3):
        for i in range(s[index].shape[2]):
            for j in range(s[index].shape[3]):
                regressed = weight @ s[index][b, :, i, j] + bias
                total += float((regressed - t[index][b, :, i, j]).square().sum())
    torch.testing.assert_close(loss(of_maps(*s), of_maps(*t), {}).item(), total / t[index].numel())


def test_pairs_the_last_maps_when_numbers_differ() -> None:
    student, teacher = Dims(8, maps=(6, 12)), TEACHER
    s, t = maps(student.maps, (4, 2)), maps(teacher.maps)
    loss = FitNet(student, teacher, layer=0).double()
    expected = F.mse_loss(loss.regressor(s[0]), t[1])
    torch.testing.assert_close(loss(of_maps(*s), of_maps(*t), {}), expected)


@pytest.mark.parametrize(("large", "small"), [(8, 4), (7, 3)])
def test_pools_the_larger_map(large: int, small: int) -> None:
    one, other = Dims(8, maps=(6,)), Dims(8, maps=(9,))
    loss = FitNet(one, other).double()
    s, t = torch.randn(2, 6, large, large, dtype=Double), torch.randn(2, 9, small, small, dtype=Double)
    expected = F.mse_loss(F.adaptive_avg_pool2d(loss.regressor(s), small), t)
    torch.testing.assert_close(loss(of_maps(s), of_maps(t), {}), expected)
    loss = FitNet(other, one).double()
    expected = F.mse_loss(loss.regressor(t), F.adaptive_avg_pool2d(s, small))
    torch.testing.assert_close(loss(of_maps(t), of_maps(s), {}), expected)


def test_tokens_are_positions() -> None:
    loss = FitNet(STUDENT, TEACHER).double()
    s, t = maps(STUDENT.maps), maps(TEACHER.maps)
    tokens = [[x.flatten(2).mT for x in side] for side in (s, t)]
    expected = loss(of_maps(*s), of_maps(*t), {})
    torch.testing.assert_close(loss(of_maps(*tokens[0]), of_maps(*tokens[1]), {}), expected)


def test_gradients_in_float64_also_of_the_regressor() -> None:
    loss = FitNet(Dims(8, maps=(3,)), Dims(8, maps=(4,))).double()
    s = torch.randn(2, 3, 3, 3, dtype=Double, requires_grad=True)
    t = torch.randn(2, 4, 2, 2, dtype=Double)
    assert torch.autograd.gradcheck(lambda x, *_: loss(of_maps(x), of_maps(t), {}), (s, *loss.parameters()))


def test_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="the student has none"):
        FitNet(Dims(8), TEACHER)
    with pytest.raises(ValueError, match="the teacher has none"):
        FitNet(STUDENT, Dims(8))
    for layer in (3, -4):
        with pytest.raises(ValueError, match="does not exist: 3 maps"):
            FitNet(STUDENT, TEACHER, layer=layer)
