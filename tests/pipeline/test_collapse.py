import pytest
import torch
from torch import nn

from losses import LOSSES, Dims, Features
from losses.diagnostics import effective_rank, relative_std
from pipeline.collapse import collapse_warnings

HEALTHY = {
    "wcord/global/similarity_gap": 0.4,
    "wcord/global/projected_std": 0.8,
    "student/effective_rank": 20.0,
    "lr": 0,
}


def test_healthy_metrics_say_nothing() -> None:
    assert collapse_warnings(HEALTHY) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("wcord/global/similarity_gap", 0.001, "wcord/global: true pairs look hardly more alike"),
        ("wcord/global/projected_std", 0.01, "wcord/global: all samples get nearly the same features"),
        ("student/effective_rank", 1.2, "student: the features use few directions (effective rank 1.2)"),
    ],
)
def test_each_sign_of_collapse_is_said_in_words(key: str, value: float, words: str) -> None:
    (warning,) = collapse_warnings(HEALTHY | {key: value})
    assert warning.startswith(words)


def trained(name: str, **keywords: object) -> dict[str, float]:
    """The metrics of a small student after 150 steps under one loss; the teacher's features can all be learnt."""
    torch.manual_seed(0)
    mix = torch.randn(24, 32)
    student = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48))
    loss = LOSSES[name](Dims(48), Dims(24), **keywords)  # type: ignore[call-arg, arg-type]
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], lr=3e-3)
    unknown = {"label": torch.full((64,), -1), "group": torch.full((64,), -1)}
    for _ in range(150):
        teacher = torch.randn(64, 24)
        pooled = student(teacher @ mix + torch.randn(64, 32))
        optimizer.zero_grad()
        loss(Features(pooled), Features(teacher), unknown).backward()
        optimizer.step()
    own = {f"{name}/{key}": float(value) for key, value in loss.metrics().items()}
    x = pooled.detach()
    return own | {"student/effective_rank": float(effective_rank(x)), "student/std": float(relative_std(x))}


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("global_contrast", {"link": "linear", "weighting": "sum", "discount": False}),
        ("global_contrast", {"link": "linear", "weighting": "sum", "discount": False, "critic": "cosine"}),
        ("local_transport", {"space": "shared", "anchor": 1, "epsilon": 0.5}),
        ("local_transport", {"space": "shared", "anchor": 1, "epsilon": 0.05, "iterations": 10}),
    ],
)
def test_degenerate_forms_are_seen(name: str, keywords: dict[str, object]) -> None:
    assert collapse_warnings(trained(name, **keywords))


@pytest.mark.parametrize("name", ["wcord", "global_contrast", "local_transport"])
def test_the_defaults_do_not_collapse(name: str) -> None:
    assert collapse_warnings(trained(name)) == []
