"""The command line: `wcord COMMAND …`, the same as `python -m wcord COMMAND …`."""

import os
import sys


def main() -> None:
    """Run the command line with the arguments of the process."""
    from pipeline.cli.app import main as run

    run()


if __name__ == "__main__":
    # `-m` puts the working folder first in sys.path, so a user's file `pipeline.py` would be imported instead of ours.
    # Move the folder to the end, unless it is a checkout of this program. (Importing pathlib would also search there.)
    folder, here = os.getcwd(), os.path.abspath(__file__)  # noqa: PTH109, PTH100
    if sys.path[0] == folder and here != os.path.join(folder, "wcord", "__main__.py"):  # noqa: PTH118
        sys.path.append(sys.path.pop(0))
    main()
