"""The command line, called in this process."""

from __future__ import annotations

import pytest

from pipeline.cli.app import main


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)
