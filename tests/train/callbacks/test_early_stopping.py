"""Early stopping and the learning-rate finder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.train import train
from pipeline.train.callbacks import EarlyStopping


def stopped_at(stopping: EarlyStopping, values: list[float]) -> int | None:
    reasons: list[str] = []
    for step, value in enumerate(values, 1):
        metrics = {stopping.monitor: value}
        stopping.on_validation(SimpleNamespace(metrics=metrics, step=step, stop=reasons.append))  # type: ignore[arg-type]
        if reasons:
            return step
    return None


@pytest.mark.parametrize(
    ("keywords", "values", "step"),
    [
        ({}, [0.1, 0.2, 0.2, 0.2], 4),
        ({}, [0.1, 0.2, 0.2, 0.3, 0.2], None),
        ({"min_delta": 0.1}, [0.1, 0.15, 0.19], 3),
        ({"mode": "min"}, [3, 2, 2, 3], 4),
        ({"monitor": "loss"}, [3, 2, 1, 0], None),
        ({"mode": "max", "monitor": "loss"}, [3, 2, 1], 3),
        ({}, [float("nan"), float("nan")], 2),
    ],
)
def test_it_stops_after_validations_without_improvement(
    keywords: dict[str, Any], values: list[float], step: int | None
) -> None:
    whole = EarlyStopping(**{"monitor": "top1", "patience": 2, **keywords})
    assert stopped_at(whole, values) == step
    resumed, first = (EarlyStopping(**{"monitor": "top1", "patience": 2, **keywords}) for _ in range(2))
    assert stopped_at(first, values[:1]) is None
    resumed.load_state_dict(first.state_dict())
    assert stopped_at(resumed, values[1:]) == (step and step - 1)


def test_a_metric_that_validation_does_not_have_is_named(make_config: Any) -> None:
    callback = "train.callbacks=[{name: early_stopping, monitor: top3}]"
    with pytest.raises(
        UserError, match=r"early_stopping.monitor: there is no validation metric 'top3'. Choose one of: top1"
    ):
        train(configs.load(make_config(), [callback, "evaluation.every=2"]))
    with pytest.raises(UserError, match=r"requires validation during training; set evaluation\.every"):
        train(configs.load(make_config(), [callback]), overwrite=True)


def test_without_a_metric_it_monitors_that_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    first, same, other = EarlyStopping(patience=2), EarlyStopping(patience=2), EarlyStopping(patience=2)
    for stopping, monitor in ((first, "loss"), (same, "loss"), (other, "R@1")):
        stopping.on_start(SimpleNamespace(monitor=monitor))  # type: ignore[arg-type]
    assert stopped_at(first, [3, 2, 1, 0]) is None  # a loss should fall
    for stopping in (same, other):
        stopping.load_state_dict(first.state_dict())
    assert (same.best, other.best) == (0, float("-inf"))
    assert "the monitored metric changed from loss to R@1" in caplog.text


def test_a_run_ends_early(make_config: Any) -> None:
    callback = "train.callbacks=[{name: early_stopping, monitor: top1, patience: 2, min_delta: 0.9}]"
    run = train(configs.load(make_config(), [callback, "evaluation.every=2"]))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())][-1] == "step_00000006"
