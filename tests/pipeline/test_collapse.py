from pathlib import Path

import pytest
import torch
from torch import nn

from losses import LOSSES, Dims, Features
from losses.diagnostics import effective_rank, relative_std
from pipeline import config as configs
from pipeline.collapse import collapse_warnings
from pipeline.pack import pack
from pipeline.recipes import tabletop
from pipeline.runs import read_log
from pipeline.train import train

HEALTHY = {
    "wcord/global/similarity_gap": 0.4,
    "wcord/global/projected_std": 0.8,
    "student/effective_rank": 7.0,  # as its classes need
    "teacher/effective_rank": 20.0,
    "wkd_logit/marginal_error": 0.125,  # as published
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
        ("info_nce/effective_rank", 5.0, "info_nce: the projection keeps few of the teacher's directions"),
        ("local/marginal_error", 0.18, "local: the plan misses its marginals (error 0.18"),
    ],
)
def test_each_sign_of_collapse_is_said_in_words(key: str, value: float, words: str) -> None:
    (warning,) = collapse_warnings(HEALTHY | {key: value})
    assert warning.startswith(words)


def trained(name: str, seed: int = 0, **keywords: object) -> dict[str, float]:
    """The metrics of a small student after 100 steps under one loss.

    All of the teacher's features can be learnt, but as in real ones some directions vary far more than others: what
    only maximises a covariance keeps those alone.
    """
    torch.manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(48, 48)).Q * torch.arange(1, 49)[:, None] ** -0.5
    mix = 0.7 * torch.randn(48, 32)
    student = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))
    loss = LOSSES[name](Dims(64), Dims(48), **keywords)  # type: ignore[call-arg, arg-type]
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], lr=3e-3)
    unknown = {"label": torch.full((64,), -1), "group": torch.full((64,), -1)}
    for _ in range(100):
        teacher = torch.randn(64, 48) @ directions
        pooled = student(teacher @ mix + torch.randn(64, 32))
        optimizer.zero_grad()
        loss(Features(pooled), Features(teacher), unknown).backward()
        optimizer.step()
    own = {f"{name}/{key}": float(value) for key, value in loss.metrics().items()}
    x = pooled.detach()
    ranks = {"student/effective_rank": effective_rank(x), "teacher/effective_rank": effective_rank(teacher)}
    return own | {key: float(rank) for key, rank in ranks.items()} | {"student/std": float(relative_std(x))}


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("global_contrast", {"link": "linear", "weighting": "sum", "discount": False}),
        ("global_contrast", {"link": "linear", "weighting": "sum", "discount": False, "critic": "cosine"}),
        ("global_contrast", {"link": "linear", "discount": False}),
        ("global_contrast", {"link": "linear", "discount": False, "critic": "cosine"}),
        ("global_contrast", {"link": "bounded"}),
        ("local_transport", {"space": "shared", "anchor": 1, "epsilon": 0.5}),
        ("local_transport", {"space": "shared", "anchor": 1, "epsilon": 0.05, "iterations": 10}),
        ("local_transport", {"epsilon": 0.02, "anchor": 1, "iterations": 1}),
    ],
)
def test_degenerate_forms_are_seen(name: str, keywords: dict[str, object]) -> None:
    assert collapse_warnings(trained(name, **keywords))


@pytest.mark.parametrize("name", ["wcord", "global_contrast", "local_transport", "info_nce", "siglip", "cosine"])
def test_the_defaults_do_not_collapse(name: str) -> None:
    assert collapse_warnings(trained(name)) == []


@pytest.mark.slow
def test_the_shipped_students_do_not_collapse(tmp_path: Path) -> None:
    """At the end of short runs on generated scenes; `paper` is shipped as what may."""
    pack(tabletop.plan(800), tmp_path / "data")
    settings = [f"data.shards={tmp_path / 'data'}", "data.workers=0", "train.steps=250"]
    teacher = train(configs.load("rgb_teacher", [*settings, f"run={tmp_path / 'teacher'}"]))
    for name in ("rgb_to_depth", "compress"):
        run = train(configs.load(name, [*settings, f"run={tmp_path / name}", f"teacher.run={teacher}"]))
        log = read_log(run / "metrics.jsonl", [])
        assert not collapse_warnings(log[max(log)]), name
