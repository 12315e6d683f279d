"""Reads input files for predict.py and load.py. Has the same dependencies as preprocess.py."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from preprocess import batch, read


def inputs_of(paths: Sequence[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each file with the inputs of the network. Report files that cannot be read, and exit with 1 at the end."""
    failed = False
    for path in paths:
        try:
            inputs = batch([read(Path(path).read_bytes())])
        except (OSError, ValueError) as error:  # noqa: PERF203 - process the other files
            failed = True
            print(f"{path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        else:
            yield path, inputs
    if failed:
        sys.exit(1)
