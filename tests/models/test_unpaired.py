"""What the losses see of a batch in which some samples lack the teacher's modality."""

from __future__ import annotations

import torch
from torch import nn

from losses import CrossEntropy, Dims, Features, WCoRD
from pipeline.models.distillation import Distillation
from pipeline.models.unpaired import nothing, term

STUDENT, TEACHER = Dims(6, (3,), 4), Dims(8)


class Fixed(nn.Module):
    """A network that says what it is shown."""

    def __init__(self, width: int, classes: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, classes) if classes else None

    def forward(self, x: torch.Tensor) -> Features:
        pooled = x * self.scale
        return Features(pooled, logits=self.head(pooled) if self.head else None)


def batch(paired: list[bool]) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(sum(paired))
    count = len(paired)
    return {
        "student": torch.randn(count, 6, generator=rng),
        "teacher": torch.randn(count, 8, generator=rng),
        "label": torch.arange(count) % 4,
        "group": torch.full((count,), -1),
        "index": torch.arange(count),
        "paired": torch.tensor(paired),
    }


def model() -> Distillation:
    torch.manual_seed(0)
    losses = {"cross_entropy": CrossEntropy(STUDENT, TEACHER), "wcord": WCoRD(STUDENT, TEACHER, queue=16)}
    return Distillation(Fixed(8), Fixed(6, 4), losses, dict.fromkeys(losses, 1.0))  # type: ignore[arg-type]


def test_a_loss_sees_the_pairs_alone() -> None:
    few, rows = batch([True, False, True, True, False]), torch.tensor([0, 2, 3])
    student, teacher = Features(few["student"]), Features(few["teacher"])
    loss = model().losses["wcord"].eval()
    found = term(loss, student, teacher, few).loss  # type: ignore[arg-type]
    own = {name: few[name][rows] for name in ("label", "group", "index")}
    assert torch.equal(found, loss(Features(few["student"][rows]), Features(few["teacher"][rows]), own))


def test_what_stands_in_for_a_view_enters_nothing() -> None:
    distillation = model()
    wcord = distillation.losses["wcord"]
    before = {name: buffer.clone() for name, buffer in wcord.named_buffers()}
    for paired in ([False] * 5, [True, *[False] * 4]):
        output = distillation(batch(paired))
        output.loss.backward()
        assert output.terms["wcord"] == 0
        assert output.loss == output.terms["cross_entropy"] != 0
        assert all((p.grad == 0).all() for p in wcord.parameters() if p.requires_grad)  # DDP waits for each of them
        assert not any(name.startswith("wcord") for name in output.metrics())
    torch.testing.assert_close(dict(wcord.named_buffers()), before, rtol=0, atol=0)
    output = distillation(batch([True, True, False, False, False]))
    assert wcord.global_contrast.queue.filled.sum() == 2  # type: ignore[union-attr, operator]
    assert "wcord/global/similarity_gap" in output.metrics()


def test_nothing_reaches_whatever_a_loss_may_read_of_the_student() -> None:
    rng = torch.Generator().manual_seed(0)
    leaves = [torch.randn(shape, generator=rng).requires_grad_() for shape in ((2, 6), (2, 3, 4, 4), (2, 4))]
    zero = nothing(WCoRD(STUDENT, TEACHER), Features(leaves[0], [leaves[1]], leaves[2]))
    zero.backward()
    assert zero == 0
    assert all((leaf.grad == 0).all() for leaf in leaves)
