"""Gradient caching against the same parts with their graph, for losses that look across samples."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losses import LOSSES, Dims, Features
from losses.base import Loss
from pipeline.models.gradient_cache import in_parts

DIMS = Dims(6, (3,), 4)


class Student(nn.Module):
    """Everything that makes running a part twice hard: batch norm, dropout, an output that no loss may use."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(dropout)
        self.linear, self.head = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x: Any) -> Features:
        feature_map = self.norm(self.conv(x["image"] if isinstance(x, dict) else x)).relu()
        pooled = self.linear(self.dropout(feature_map.mean((2, 3))))
        return Features(pooled, [feature_map], self.head(pooled))


def joined(student: nn.Module, x: Tensor, size: int) -> Features:
    """The same parts, with their graph."""
    parts = [student(part) for part in x.split(size)]
    return Features(
        torch.cat([part.pooled for part in parts]),
        [torch.cat([part.maps[0] for part in parts])],
        torch.cat([part.logits for part in parts]),
    )


def losses() -> dict[str, Loss]:
    keywords: dict[str, dict[str, Any]] = {"crd": {"samples": 40, "negatives": 8}}
    names = ("wcord", "crd", "kd", "rkd", "at", "cross_entropy")
    return {name: LOSSES[name](DIMS, DIMS, **keywords.get(name, {})) for name in names}  # type: ignore[arg-type]


def test_a_frozen_trunk_gets_no_gradient_from_a_loss_on_its_features() -> None:
    student = Student().requires_grad_(False)
    student.head.requires_grad_()
    features = in_parts(student, torch.randn(10, 1, 8, 8), 4, False)
    features.pooled.square().sum().backward()
    assert student.head.weight.grad is None
    in_parts(student, torch.randn(10, 1, 8, 8), 4, False).logits.sum().backward()
    assert student.head.weight.grad is not None


@pytest.mark.parametrize("name", sorted(losses()))
@pytest.mark.parametrize("size", [1, 4, 10])
def test_gradients_are_those_of_the_parts_with_graph(name: str, size: int) -> None:
    """Over three steps, so that queues and banks count, and running statistics that moved twice would show."""
    torch.manual_seed(0)
    models = [nn.ModuleDict({"student": Student(), "loss": losses()[name]}).double()]
    models.append(copy.deepcopy(models[0]))
    x, h = torch.randn(3, 10, 1, 8, 8).double(), torch.randn(3, 10, 6).double()
    for step in range(3):
        teacher = Features(h[step], [torch.randn(10, 3, 6, 6).double()], h[step, :, :4])
        batch = {"label": torch.arange(10) % 4, "group": torch.full((10,), -1), "index": torch.arange(10) + step}
        for model, run in zip(models, (in_parts, joined), strict=True):
            torch.manual_seed(step)
            features = run(model["student"], x[step], size)
            torch.manual_seed(step + 100)
            loss = model["loss"](features, teacher, batch)
            loss.backward()
        for (key, ours), expected in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            assert (ours.grad is None) == (expected.grad is None), key
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-10, atol=1e-12, msg=key)
    for ours, expected in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_without_batch_norm_it_is_the_whole_batch_at_once() -> None:
    torch.manual_seed(0)
    student = Student(dropout=0).double()
    student.norm = nn.Identity()  # type: ignore[assignment]
    loss = LOSSES["wcord"](DIMS, DIMS).double()
    x, teacher = torch.randn(10, 1, 8, 8).double(), Features(torch.randn(10, 6).double())
    batch = {"label": torch.full((10,), -1), "group": torch.full((10,), -1)}
    state, found = copy.deepcopy(loss.state_dict()), []
    for features in (in_parts(student, x, 3), student(x)):
        loss.load_state_dict(state)
        student.zero_grad()
        loss(features, teacher, batch).backward()
        found.append([p.grad.clone() for p in student.parameters() if p.grad is not None])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_no_activation_of_the_batch_is_kept() -> None:
    """Between forward and backward nothing is held that grows with the batch."""
    student, x = Student(), torch.randn(64, 1, 8, 8)
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        student(x)
        whole, _ = sum(saved), saved.clear()
        in_parts(student, x, 8)
    assert sum(saved) <= sum(p.numel() for p in student.parameters())
    assert whole > 64 * 36  # what is spared


def test_other_inputs_than_a_tensor_are_split_too() -> None:
    student, x = Student(dropout=0).eval(), torch.randn(7, 1, 8, 8)
    torch.testing.assert_close(in_parts(student, {"image": x}, 3).pooled, student(x).pooled)


def test_under_autocast_the_second_run_is_in_the_same_precision() -> None:
    student, x = Student(dropout=0), torch.randn(6, 1, 8, 8)
    found = []
    for run in (in_parts, joined):
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            features = run(student, x, 3)
        assert features.logits is not None
        assert features.logits.dtype == torch.bfloat16
        features.logits.float().square().sum().backward()
        found.append([p.grad.clone() for p in student.parameters()])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-4)
