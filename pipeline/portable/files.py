"""The files that predict.py and load.py are given. Needs what preprocess.py needs."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from preprocess import batch, read


def inputs_of(paths: Sequence[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Each file and the network's inputs; one that cannot be read is named, and ends the program with 1 after all."""
    failed = False
    for path in paths:
        try:
            inputs = batch([read(Path(path).read_bytes())])
        except (OSError, ValueError) as error:  # noqa: PERF203 - the others are not lost for it
            failed = True
            print(f"{path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        else:
            yield path, inputs
    if failed:
        sys.exit(1)
