import pytest
import torch
from cases import assert_agree, batch_norm, of_maps
from torch import Tensor, nn

from losses import Dims
from losses.fitnet import FitNet

Double = torch.float64
CHANNELS = (4, 6, 12), (5, 7, 20)
SIZES = ((8, 8), (4, 4), (2, 2))
STUDENT, TEACHER = (Dims(8, maps=channels, sizes=SIZES) for channels in CHANNELS)


def maps(dims: Dims, samples: int = 3) -> list[Tensor]:
    shapes = zip(dims.maps, dims.sizes, strict=True)
    return [torch.randn(samples, c, *size, dtype=Double) for c, size in shapes if size]


def one(channels: int, size: tuple[int, ...]) -> Dims:
    return Dims(8, maps=(channels,), sizes=(size,))


def plain(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """A convolution, as the sum over the places of its kernel."""
    x = nn.functional.pad(x, [padding] * 4)
    height, width = ((n - k) // stride + 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    total = torch.zeros(len(x), len(weight), height, width, dtype=x.dtype)
    for a in range(weight.shape[2]):
        for b in range(weight.shape[3]):
            seen = x[:, :, a : a + stride * (height - 1) + 1 : stride, b : b + stride * (width - 1) + 1 : stride]
            total = total + torch.einsum("nchw,oc->nohw", seen, weight[:, :, a, b])
    return total


def transposed(x: Tensor, weight: Tensor) -> Tensor:
    """A 4x4 transposed convolution of stride 2: input (i, j) is spread over outputs (2i - 1 ..., 2j - 1 ...)."""
    _, _, height, width = x.shape
    spread = torch.zeros(len(x), weight.shape[1], 2 * height + 2, 2 * width + 2, dtype=x.dtype)
    for a in range(4):
        for b in range(4):
            part = torch.zeros_like(spread)
            part[:, :, a : a + 2 * height : 2, b : b + 2 * width : 2] = torch.einsum(
                "nchw,co->nohw", x, weight[:, :, a, b]
            )
            spread = spread + part
    return spread[:, :, 1:-1, 1:-1]


def written(s: Tensor, t: Tensor, parameters: list[Tensor]) -> Tensor:
    weight, scale, shift = parameters
    (h_s, w_s), (h_t, w_t) = s.shape[2:], t.shape[2:]
    if (h_s, w_s) == (2 * h_t, 2 * w_t):
        assert weight.shape == (t.shape[1], s.shape[1], 3, 3)
        convolved = plain(s, weight, stride=2, padding=1)
    elif (2 * h_s, 2 * w_s) == (h_t, w_t):
        assert weight.shape == (s.shape[1], t.shape[1], 4, 4)
        convolved = transposed(s, weight)
    else:
        assert weight.shape == (t.shape[1], s.shape[1], 1 + h_s - h_t, 1 + w_s - w_t)
        convolved = plain(s, weight, stride=1, padding=0)
    return ((batch_norm(convolved, scale, shift).clamp(min=0) - t) ** 2).sum() / t.numel()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        *(((8, 8), (4, 4)), ((4, 6), (2, 3)), ((2, 2), (1, 1))),  # twice as large
        *(((4, 4), (8, 8)), ((3, 2), (6, 4)), ((1, 1), (2, 2))),  # half as large
        *(((4, 4), (4, 4)), ((6, 5), (4, 5)), ((8, 8), (2, 3))),  # at least as large
    ],
)
def test_is_the_published_regressor_written_out(student: tuple[int, int], teacher: tuple[int, int]) -> None:
    loss = FitNet(one(3, student), one(4, teacher)).double()
    parameters = list(loss.parameters())
    for parameter in parameters:
        nn.init.normal_(parameter)
    s = torch.randn(3, 3, *student, dtype=Double, requires_grad=True)
    t = torch.randn(3, 4, *teacher, dtype=Double)
    assert_agree(loss(of_maps(s), of_maps(t), {}), written(s, t, parameters), [s, *parameters])


@pytest.mark.parametrize(("layer", "index"), [(None, 1), (0, 0), (2, 2), (-1, 2)])
def test_layer_is_of_the_paired_maps_by_default_the_middle_one(layer: int | None, index: int) -> None:
    loss = FitNet(STUDENT, TEACHER, layer=layer).double()
    s, t = maps(STUDENT), maps(TEACHER)
    expected = written(s[index], t[index], list(loss.parameters()))
    torch.testing.assert_close(loss(of_maps(*s), of_maps(*t), {}), expected)


def test_default_layer_of_four_maps_is_the_published_one() -> None:
    assert FitNet(*(Dims(8, maps=(3,) * 4, sizes=((4, 4),) * 4),) * 2).layer == 2


def test_pairs_the_last_maps_when_numbers_differ() -> None:
    student = Dims(8, maps=(6, 12), sizes=((4, 4), (2, 2)))
    s, t = maps(student), maps(TEACHER)
    loss = FitNet(student, TEACHER, layer=0).double()
    expected = written(s[0], t[1], list(loss.parameters()))
    torch.testing.assert_close(loss(of_maps(*s), of_maps(*t), {}), expected)


def test_tokens_are_a_grid_without_the_class_token() -> None:
    loss = FitNet(STUDENT, TEACHER).double()
    tokens = Dims(8, maps=TEACHER.maps, sizes=((65,), (17,), (5,)))
    of_tokens = FitNet(STUDENT, tokens).double()
    of_tokens.load_state_dict(loss.state_dict())
    s, t = maps(STUDENT), maps(TEACHER)
    flat = [torch.cat([torch.randn(3, 1, x.shape[1], dtype=Double), x.flatten(2).mT], 1) for x in t]
    found = of_tokens(of_maps(*s), of_maps(*flat), {})
    torch.testing.assert_close(found, loss(of_maps(*s), of_maps(*t), {}))


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ((6, 6), (24, 24), r"\(6 x 6\) to the teacher's \(24 x 24\)"),
        ((6, 6), (7, 5), r"\(6 x 6\) to the teacher's \(7 x 5\)"),
        (None, (4, 4), r"\(its size varies\) to the teacher's \(4 x 4\)"),
    ],
)
def test_refuses_sizes_that_no_convolution_matches(
    student: tuple[int, int] | None, teacher: tuple[int, int], words: str
) -> None:
    with pytest.raises(ValueError, match=f"layer 0: .*{words}.*No layer is supported"):
        FitNet(Dims(8, maps=(3,), sizes=(student,)), Dims(8, maps=(3,), sizes=(teacher,)))
    dims = [Dims(8, maps=(3, 3, 3), sizes=((6, 6), size, (6, 6))) for size in (student, teacher)]
    with pytest.raises(ValueError, match=f"layer 1: .*{words}.*Set layer to 0 or 2"):
        FitNet(*dims)
    assert FitNet(*dims, layer=-1).layer == -1


def test_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="the student has none"):
        FitNet(Dims(8), TEACHER)
    with pytest.raises(ValueError, match="the teacher has none"):
        FitNet(STUDENT, Dims(8))
    with pytest.raises(ValueError, match="the teacher declares 0 for 3 maps"):
        FitNet(STUDENT, Dims(8, maps=(5, 7, 20)))
    for layer in (3, -4):
        with pytest.raises(ValueError, match="does not exist: 3 maps"):
            FitNet(STUDENT, TEACHER, layer=layer)
