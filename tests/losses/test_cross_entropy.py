import torch
from torch.nn import functional as F

from losses import CrossEntropy, Dims, Features

LOSS = CrossEntropy(Dims(4, classes=5), None)


def test_is_the_mean_over_labelled_samples() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0, -1, 4, -1, 2, 2])
    loss = LOSS(Features(torch.empty(6, 0), logits=logits), None, {"label": label})
    known = label >= 0
    torch.testing.assert_close(loss, F.cross_entropy(logits[known], label[known]))
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[~known] == 0).all()


def test_a_batch_without_labels_gives_zero_with_a_gradient() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    loss = LOSS(Features(torch.empty(3, 0), logits=logits), None, {"label": torch.full((3,), -1)})
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()
