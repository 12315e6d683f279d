"""The program in processes of their own, forked from one that has imported it: no start pays for the imports again."""

from __future__ import annotations

import gc
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import wait
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

from torch.distributed import TCPStore
from torch.multiprocessing import start_processes

FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "torch._dynamo",
        "pipeline.cli.app",
        "pipeline.evaluate.evaluate_run",
        "pipeline.report.page",
        "pipeline.train.loop",
        "sklearn.linear_model",
        "sklearn.manifold",
        "torch.utils.tensorboard",
    ]
)
CLEAN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Started:
    """One process, or the ranks of one training; together they have one output and end together."""

    def __init__(
        self,
        arguments: Sequence[str],
        program: Path | None = None,
        ranks: int = 1,
        environment: Mapping[str, str] = {},
        folder: Path | None = None,
    ) -> None:
        self._texts = tempfile.TemporaryDirectory()
        places = [{}]
        if ranks > 1:  # the store of a launcher like torchrun, at a port that nobody else can have
            self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            places = [place(rank, ranks, self._store.port) for rank in range(ranks)]
        known = {name: value for name, value in os.environ.items() if name not in CLEAN}
        known |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment
        about = (list(arguments), program, folder or Path.cwd(), Path(self._texts.name))
        self.processes = [FORKED.Process(target=_run, args=(*about, known | own)) for own in places]
        for process in self.processes:
            process.start()

    def poll(self) -> int | None:
        """The exit code, of ranks that of the first that failed; None while one of them runs."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next(filter(None, codes), 0)

    def wait(self, timeout: float = 200) -> int:
        """Wait for all of them. When one fails, the others are asked to end, as a launcher does."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            running = [process for process in self.processes if process.exitcode is None]
            if not wait([process.sentinel for process in running], end - time.monotonic()):
                self.kill()
                raise TimeoutExpired("wcord", timeout, *(text.encode() for text in self.output()))
            if any(process.exitcode for process in self.processes):
                for process in running:
                    process.terminate()
        return code

    def kill(self) -> None:
        """Kill them with the processes that they started, and wait for their end."""
        for process in self.processes:
            if process.exitcode is None:
                os.killpg(process.pid or 0, signal.SIGKILL)
        for process in self.processes:
            process.join(60)

    def output(self) -> tuple[str, str]:
        """What they have written to stdout and stderr so far."""
        out, err = (Path(self._texts.name) / name for name in ("out", "err"))
        return (out.read_text() if out.exists() else "", err.read_text() if err.exists() else "")


def place(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables of torchrun."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_ADDR": "127.0.0.1"}
    return {name: str(value) for name, value in names.items()} | agent


def launch(arguments: Sequence[str], program: Path | None = None, processes: int = 2) -> CompletedProcess[str]:
    """Run `wcord ARGUMENTS`, or a program with them, in so many ranks of one training."""
    started = Started(arguments, program, processes)
    code = started.wait()
    return CompletedProcess(arguments, code, *started.output())


def spawn(worker: Callable[..., None], arguments: tuple[object, ...], count: int) -> None:
    """Call `worker(rank, *arguments)` in so many processes; an error in one of them is raised here."""
    start_processes(_rank, args=(worker, *arguments), nprocs=count, start_method="forkserver")


def _rank(rank: int, worker: Callable[..., None], *arguments: object) -> None:
    set_start_method(None, force=True)
    worker(rank, *arguments)


def _run(arguments: list[str], program: Path | None, folder: Path, texts: Path, environment: dict[str, str]) -> None:
    os.setsid()
    set_start_method(None, force=True)  # else each loader's processes would begin with a forkserver and its imports
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream, name in ((1, sys.stdout, "out"), (2, sys.stderr, "err")):
        os.dup2(os.open(texts / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = [str(program or "wcord"), *arguments]
    gc.freeze()
    if program is not None:
        runpy.run_path(str(program), run_name="__main__")
        return
    from pipeline.cli.app import main
    from pipeline.common import process_pool

    process_pool.START_METHOD = "fork"  # this process has no other threads
    main(arguments)
