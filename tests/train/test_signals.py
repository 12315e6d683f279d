"""A run that was asked to end leaves in peace."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from pipeline.train import signals
from pipeline.train.signals import Stop


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What reaches the handler that was there before."""
    numbers: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, old)


def test_a_signal_that_comes_again_is_the_same_one_also_after_the_run(heard: list[int]) -> None:
    with Stop().listening() as stop:
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert stop.number == signal.SIGTERM
    assert heard == []


def test_a_later_one_is_heard_by_who_listened_before(heard: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with Stop().listening():
        signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(signals, "SAME", 0.0)
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM] * 2


def test_a_run_that_was_not_asked_leaves_the_handlers_as_they_were(heard: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stop().listening():
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
