"""Prints the error that ends a command once on each machine, although every process of a launch meets it."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.common.console import rank, say
from pipeline.common.hashing import digest


def say_error(message: str) -> None:
    """Print the error that ends a command to stderr, unless another process of the launch has printed the same one.

    torchrun and `accelerate launch` give the processes that they start on a machine a common temporary folder, in which
    the first one leaves a mark. Under other launchers, every process prints its error, with its rank.

    Args:
        message: The error.
    """
    process = f"[rank {rank()}] " if rank() else ""
    if _is_first(message):
        say(f"{process}error: {message}", error=True)


def _is_first(message: str) -> bool:
    file = os.environ.get("TORCHELASTIC_ERROR_FILE", "")  # FOLDER/attempt_N/LOCAL_RANK/error.json
    if not file:
        return True
    try:
        (Path(file).parents[1] / f"error_{digest(message):016x}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except (OSError, IndexError):  # no such folder, so there is nothing to agree by
        pass
    return True
