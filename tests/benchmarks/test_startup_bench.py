"""The benchmark of start-up measures each command, and a training only until its first step."""

from __future__ import annotations

import pytest

from benchmarks import startup
from benchmarks.startup import Waited, main, table


@pytest.mark.slow
def test_each_command_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured: dict[str, list[Waited]] = {}
    monkeypatch.setattr(startup, "table", lambda found: measured.update(found) or table(found))
    main(["--rounds", "1", "--scenes", "100"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `wcord ")]
    assert [row.split("`")[1].removeprefix("wcord ") for row in rows] == list(measured)
    for name, (waited,) in measured.items():
        assert waited.wall > 0.02
        assert waited.cpu > 0.02
        if name.startswith("train "):  # importing torch alone takes longer than a command that does not import it
            assert waited.cpu > 2 * measured["--help"][0].cpu


def test_the_table_has_medians_ranges_and_limits() -> None:
    found = {"--help": [Waited(1.0, 0.5), Waited(3.0, 0.25), Waited(2.0, 0.75)], "train a": [Waited(5.0, 4.0)]}
    assert table(found).splitlines()[2:] == [
        "| `wcord --help` | its end | 2.00 (1.00 to 3.00) | 0.50 (0.25 to 0.75) | 0.5 |",
        "| `wcord train a` | first step | 5.00 (5.00 to 5.00) | 4.00 (4.00 to 4.00) | 6 |",
    ]


def test_a_training_that_ends_without_a_step_is_an_error() -> None:
    with pytest.raises(SystemExit, match="logged no first step"):
        startup.until_first_step(["train", "no_such_config"])
