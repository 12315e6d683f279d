"""What is printed of the log: by which process, to which stream, and who decides."""

from __future__ import annotations

import io
import logging
import multiprocessing
import unicodedata
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call
from torch.utils.data import IterableDataset

from pipeline import config as configs
from pipeline.common.console import (
    log_from_worker,
    log_level,
    log_to_console,
    log_to_console_by_default,
    printable,
    rank,
    say_data,
    world_size,
)
from pipeline.common.process_pool import map_jobs
from pipeline.common.progress import Progress
from pipeline.data.stream import loader
from pipeline.train import train

log = logging.getLogger("pipeline.some.module")


def say(number: int = 0) -> int:
    log.debug(f"detail {number}")
    log.info(f"progress {number}: 100%")
    log.warning(f"caution {number}")
    return number


def test_information_and_warnings_have_streams_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_console()
    log_to_console()  # does not print twice
    say()
    assert capsys.readouterr() == ("progress 0: 100%\n", "warning: caution 0\n")
    log_to_console(logging.WARNING)
    say()
    assert capsys.readouterr() == ("", "warning: caution 0\n")


def test_other_processes_only_warn_and_name_their_rank(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log_to_console()
    monkeypatch.setenv("RANK", "3")
    say()
    assert capsys.readouterr() == ("", "[rank 3] warning: caution 0\n")


def test_each_line_is_flushed_to_the_stream_of_the_moment() -> None:
    class Buffered(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    log_to_console()
    with redirect_stdout(Buffered()) as stream:
        say()
        assert stream.flushed == "progress 0: 100%\n"


def test_a_stream_that_cannot_be_written_is_an_error_as_with_print() -> None:
    log_to_console()
    closed = io.StringIO()
    closed.close()
    with redirect_stdout(closed), pytest.raises(ValueError, match="closed"):
        say()


@pytest.mark.slow
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_workers_of_a_pool_lose_nothing(level: int, capfd: pytest.CaptureFixture[str]) -> None:
    log_to_console(level)
    assert sorted(map_jobs(say, range(4), 2, lambda count: None)) == [0, 1, 2, 3]
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == [f"progress {n}: 100%" for n in range(4) if level == logging.INFO]
    assert sorted(err.splitlines()) == [f"warning: caution {n}" for n in range(4)]


class Talking(IterableDataset[Any]):
    def __iter__(self) -> Any:
        say()
        return iter([{"label": torch.zeros(1)}])


def test_workers_of_a_loader_lose_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    log_to_console()
    assert len(list(loader(Talking(), 1, torch.device("cpu")))) == 1
    assert capfd.readouterr() == ("progress 0: 100%\n", "warning: caution 0\n")


def in_a_fresh_process(level: int) -> None:
    log_from_worker(level)
    say()


def test_a_worker_that_is_spawned_takes_over_the_level(capfd: pytest.CaptureFixture[str]) -> None:
    log_to_console()
    worker = multiprocessing.get_context("spawn").Process(target=in_a_fresh_process, args=(log_level(),))
    worker.start()
    worker.join()
    assert capfd.readouterr() == ("progress 0: 100%\n", "warning: caution 0\n")


def test_a_training_prints_its_progress_unless_the_user_decides(
    make_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(configs.load(make_config()))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run}: training on 1 x {'cuda' if torch.cuda.is_available() else 'cpu'}"
    assert lines[1].startswith("learning rates: encoder 0.003 ")
    assert [line.split("  ")[0] for line in lines[2:-1]] == ["step 4/12", "step 8/12", "step 12/12"]
    assert lines[-1].endswith(f"next: wcord evaluate {run}")
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    train(configs.load(make_config()), overwrite=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("own", ["level", "handler", "root"])
def test_logging_that_the_user_configured_stays(own: str, capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    logger, handler = logging.getLogger("pipeline"), logging.StreamHandler(io.StringIO())
    if own == "level":
        logger.setLevel(logging.ERROR)
    elif own == "handler":
        logger.addHandler(handler)
    else:
        caplog.set_level(logging.INFO)  # of the root
    log_to_console_by_default()
    say()
    assert capsys.readouterr() == ("", "")
    assert logger.propagate
    assert caplog.messages == {"level": [], "handler": ["caution 0"], "root": ["progress 0: 100%", "caution 0"]}[own]


def test_a_handler_of_the_root_that_takes_warnings_only_hides_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    assert logging.getLogger().handlers  # pytest's; a hosted notebook has one as well
    log_to_console_by_default()
    say()
    assert capsys.readouterr() == ("progress 0: 100%\n", "warning: caution 0\n")


def test_progress_is_silent_where_only_warnings_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "SECONDS", 0.0)
    log_to_console(logging.WARNING)
    with Progress("packing", 10) as progress:
        progress.advance(5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("done", "seconds", "line"),
    [
        (0, 100.0, "packing: 0 of 1000 samples\n"),
        (10, 1000.0, "packing: 10 of 1000 samples, 0.6/min, 1 day, 3:30:00 left\n"),
        (500, 100.0, "packing: 500 of 1000 samples, 5/s, 0:01:40 left\n"),
        (1000, 100.0, "packing: 1000 of 1000 samples, 10/s, 0:00:00 left\n"),
    ],
)
def test_progress_estimates_the_time_left_from_what_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, done: int, seconds: float, line: str
) -> None:
    clock = iter([0.0, seconds])
    monkeypatch.setattr("pipeline.common.progress.time.monotonic", lambda: next(clock))
    Progress("packing", 1000).advance(done)
    assert capsys.readouterr().err == line


def test_quiet_commands_print_results_only(
    make_config: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = make_config()
    assert call("--quiet", "train", path, "data.labels=0.5") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [line for line in err.splitlines() if line.startswith("warning: ")]
    assert "data.label_fraction" in err
    assert call("-q", "evaluate", tmp_path / "run") == 0
    assert "student/top1" in capsys.readouterr().out
    assert call("train", path, "data.label_fraction=0.5", "--resume") == 0
    assert "already trained for 12 steps" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "expected"), [("", 0), (" ", 0), ("1", 1), ("one", 0), ("-1", 0)])
def test_the_rank_is_read_tolerantly(monkeypatch: pytest.MonkeyPatch, value: str, expected: int) -> None:
    monkeypatch.setenv("RANK", value)
    monkeypatch.setenv("WORLD_SIZE", value)
    assert (rank(), world_size()) == (expected, expected or 1)


ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e\udc9b"


def is_safe(text: str) -> bool:
    """Whether a terminal shows the text and does nothing else."""
    return all(c.isprintable() or c in "\n\t" for c in text)


def test_no_character_that_commands_a_terminal_is_printed() -> None:
    shown = {chr(n): printable(chr(n)) for n in range(0x11000)}
    unchanged = {c for c, text in shown.items() if c == text}
    assert not {c for c in unchanged if unicodedata.category(c) in ("Cc", "Cs")} - {"\n", "\t"}
    assert not unchanged & set("\u202a\u202e\u2066\u2069")
    assert {c for c in shown if unicodedata.category(c)[0] in "LMNPSZ"} <= unchanged
    assert printable("a\x1b[2J\udcffb") == r"a\x1b[2J\udcffb"


def test_escapes_in_names_reach_no_log_message_or_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # the table is not cut
    log_to_console()
    log.info(f"sample {ESCAPES}")
    log.warning(f"sample {ESCAPES}")
    for seed, name in enumerate(("a", "b")):
        run = tmp_path / f"{name}{ESCAPES}"
        run.mkdir()
        (run / "results.json").write_text('{"student/top1": 0.5, "x\\u001b[2J": null}')
        (run / "config.yaml").write_text(f"seed: {seed}")
    compared = call("compare", *sorted(tmp_path.iterdir()), "--out", tmp_path / "out")
    assert call("check", tmp_path / f"nowhere{ESCAPES}") == 2
    assert compared == 0
    out, err = capsys.readouterr()
    assert out.count("\\x1b]0;title") > 2
    assert err.count("\\x1b]0;title") > 1
    assert is_safe(out.replace("\x1b[2m", "").replace("\x1b[0m", ""))  # the styles of the table
    assert is_safe(err)


def test_data_is_changed_for_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say_data("a\x1b[2J,1\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    say_data("a\x1b[2J,1\n")
    assert capsys.readouterr().out == "a\x1b[2J,1\na\\x1b[2J,1\n"
