"""Measures training and its parts on this machine within a given time, most useful measurements first.

    python -m benchmarks.gpu --minutes 25

Each measurement runs in its own process: one that fails is recorded with its reason, and the others go on. Finished
measurements are kept in OUT/results.json: run the same command again to measure what is missing. OUT/table.md is the
table for the docs. All data are synthetic and made on this machine, so no network is needed. Without a GPU, smaller
networks are measured once, to check that the measurements work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="time for all measurements (default: 25)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results (default: runs/gpu)")
    parser.add_argument("--small", action="store_true", help="smaller networks and one repeat, as without a GPU")
    for name in ("--measure", "--deadline", "--started", "--runner"):  # for the process of one measurement
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    folder: Path = options.out.resolve()
    if options.measure is not None:
        from benchmarks.gpu.child import measure

        times = float(options.deadline), float(options.started)
        measure(options.measure, folder, options.small, *times, int(options.runner))
        return
    from benchmarks.gpu.runner import Runner, command_line

    record = Runner(folder, options.minutes, options.small).run(command_line(given))
    print(f"\n{record.table()}\n{record.path}")


if __name__ == "__main__":
    main()
