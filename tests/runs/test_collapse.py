import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn

from losses import LOSSES, Dims, Features
from losses.diagnostics import effective_rank, relative_std
from pipeline.runs.collapse import LABELLED, LABELS, PREDICTED, collapse_warnings, cure

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
        (
            "wcord/global/similarity_gap",
            0.001,
            "wcord/global: positive and negative similarities are indistinguishable",
        ),
        ("wcord/global/projected_std", 0.01, "wcord/global: the features of all samples are nearly identical"),
        ("student/effective_rank", 1.2, "student: the features have a low effective rank (1.2)"),
        ("info_nce/effective_rank", 5.0, "info_nce: the projection has a much lower effective rank than the teacher"),
        ("local/marginal_error", 0.18, "local: the transport plan does not satisfy its marginals (error 0.18"),
    ],
)
def test_each_sign_of_collapse_is_said_in_words(key: str, value: float, words: str) -> None:
    (warning,) = collapse_warnings(HEALTHY | {key: value})
    assert warning.startswith(words)


SETTING = re.compile(r"`((?:losses|train|data)[^`]*)`")


def settings_of(name: str) -> dict[str, Any]:
    """Of a loss, as a loaded config has them."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {"weight": 1.0} | {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("change", [{}, {"relational": 0.5, "anchor": 0.9, "link": "linear"}])
def test_warnings_name_only_settings_that_the_loss_has(name: str, change: dict[str, Any]) -> None:
    settings = settings_of(name)
    settings |= {key: value for key, value in change.items() if key in settings}
    signs = {
        "similarity_gap": 0.0,
        "projected_std": 0.0,
        "effective_rank": 1.0,
        "marginal_error": 1.0,
        "negatives": 0.0,
    }
    metrics = {f"{name}/{key}": value for key, value in signs.items()}
    found = collapse_warnings(metrics | {"teacher/effective_rank": 20.0}, {"cross_entropy": {}, name: settings})
    assert len(found) == 5
    for warning in found:
        named = SETTING.findall(warning)
        assert named or "data.batch_size" in warning, warning
        for key in named:
            own = key.removeprefix(f"losses.{name}.")
            assert own in settings or key in ("train.learning_rate", "data.batch_size"), warning


@pytest.mark.parametrize(
    ("name", "settings", "cure"),
    [
        ("wcord", {"relational": 0.15, "anchor": 0.8}, "Set `losses.wcord.relational` to 0,"),
        ("wcord", {"relational": 0.0, "anchor": 0.8}, "Set `losses.wcord.anchor` to 0.2 or less,"),
        ("wcord", {"relational": 0.0, "anchor": 0.2}, "Lower `losses.wcord.weight` or `train.learning_rate`."),
        ("local_transport", {"relational": 0.0, "anchor": 1.0}, "Set `losses.local_transport.anchor`"),
        ("global_contrast", {"link": "linear"}, "Set `losses.global_contrast.link` to log_softmax,"),
        ("info_nce", {}, "Lower `losses.info_nce.weight` or `train.learning_rate`."),
        ("cosine", {}, "Lower `losses.cosine.weight` or `train.learning_rate`."),
    ],
)
def test_the_setting_that_is_most_likely_at_fault_is_named(name: str, settings: dict[str, Any], cure: str) -> None:
    (warning,) = collapse_warnings({f"{name}/similarity_gap": 0.0}, {name: settings})
    assert cure in warning


def test_the_part_that_pulls_the_most_is_named() -> None:
    losses = {"kd": {}, "wcord": {"relational": 0.15, "global_weight": 0.5}}
    assert cure(None, losses, ("wcord", "relational")).startswith("Set `losses.wcord.relational` to 0")
    assert cure(None, losses, ("kd", "weight")).startswith("Lower `losses.kd.weight`")
    own = {"benchmarks.relational_kl:RelationalKL": {"weight": 3.0}}
    assert "`losses[benchmarks.relational_kl:RelationalKL].weight`" in cure(None, own, (next(iter(own)), "weight"))
    assert cure(None, {"gone.module:Loss": {}, "cross_entropy": {}}) == (
        "Lower `losses[gone.module:Loss].weight` or `train.learning_rate`."
    )


@pytest.mark.parametrize(
    ("predicted", "labelled", "constant"),
    [
        (1.0, 9.8, True),  # one of ten
        (1.2, 95.0, True),
        (2.2, 12.0, True),  # two or three classes for most samples
        (4.0, 95.0, False),  # early features of many classes
        (1.25, 3.0, True),  # of three classes 95 % are one
        (1.4, 3.0, False),
        (1.0, 2.0, True),
        (1.0, 1.0, False),  # nothing else to predict
        (1.05, 1.2, False),  # 96 % of the labels are of one class
        (1.0, 0.0, False),  # no labels
    ],
)
def test_constant_predictions_are_judged_by_the_labels(predicted: float, labelled: float, constant: bool) -> None:
    found = collapse_warnings({PREDICTED: predicted, LABELLED: labelled, LABELS: 50.0, "student/std": 0.5})
    assert any("nearly all predictions are one class" in warning for warning in found) == constant


def test_the_least_rank_follows_the_number_of_classes() -> None:
    """The features of K classes need K - 1 directions."""
    for labelled, rank, low in ((3.0, 1.9, False), (3.0, 1.0, True), (2.0, 1.0, False), (10.0, 2.5, True)):
        found = collapse_warnings({"student/effective_rank": rank, LABELLED: labelled})
        assert any("low effective rank" in warning for warning in found) == low, (labelled, rank)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (
            {"teacher/std": 0.0, "teacher/effective_rank": 1.0},
            "teacher: its features are the same for all samples of a batch",
        ),
        ({"teacher/std": 0.5, "teacher/effective_rank": 1.0}, "teacher: its features lie on one line"),
        ({LABELLED: 1.0, LABELS: 40.0}, "labels: all labels so far belong to one class"),
        ({"wcord/global/negatives": 0.0}, "wcord/global: samples have almost no negatives (0.0 on average)"),
        ({"info_nce/negatives": 0.0}, "info_nce: samples have almost no negatives"),
    ],
)
def test_what_does_nothing_is_said_with_a_cure(metrics: dict[str, float], words: str) -> None:
    (warning,) = collapse_warnings(metrics, {"wcord": settings_of("wcord"), "info_nce": settings_of("info_nce")})
    assert warning.startswith(words)
    assert warning.endswith(".")


def test_healthy_data_say_nothing() -> None:
    two_classes = {"teacher/effective_rank": 1.0, "teacher/std": 0.9, LABELLED: 2.0, LABELS: 40.0}
    assert collapse_warnings(two_classes) == []
    assert collapse_warnings({LABELLED: 1.0, LABELS: 3.0}) == []  # too few to tell
    assert collapse_warnings({"info_nce/negatives": 63.0}) == []


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
        output = loss.with_metrics(Features(pooled), Features(teacher), unknown)
        output.loss.backward()
        optimizer.step()
    own = {f"{name}/{key}": float(value) for key, value in output.metrics().items()}
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
