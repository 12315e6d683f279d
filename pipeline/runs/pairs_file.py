"""The list of training pairs with the probability that each matches, `pairs.jsonl`: written by runs on noisy pairs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic

PAIRS = "pairs.jsonl"
SHEET = "doubtful_pairs.png"
"""The pictures of the most doubtful pairs, which `wcord check --pairs` draws."""

MISMATCHED = 0.5
"""Pairs that match with at most this probability are probably mismatched."""


@dataclass(frozen=True)
class Pair:
    """A training sample.

    Attributes:
        key: Its key.
        shard: Name of its shard.
        place: Index in the shard.
        matches: Estimated probability that its two sides match, in [0, 1].
        source: Number of its dataset in a mixture; 0 if there is only one.
    """

    key: str
    shard: str
    place: int
    matches: float
    source: int = 0


_LINE = TypeAdapter(Pair)


def write_pairs(run: Path, pairs: Iterable[Pair]) -> None:
    """Write the list of a run, in the given order."""
    write_atomic(run / PAIRS, "".join(f"{json.dumps(asdict(pair))}\n" for pair in pairs).encode())


def read_pairs(run: Path) -> list[Pair]:
    """Read the list of a run, the most doubtful pairs first; [] if it has none.

    Raises:
        UserError: The file does not contain such a list.
    """
    path = run / PAIRS
    if not path.is_file():
        return []
    try:
        pairs = [_LINE.validate_python(json.loads(line)) for line in path.read_bytes().splitlines()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a list of pairs ({' '.join(str(error).split())[:200]}).") from None
    return sorted(pairs, key=lambda pair: pair.matches)
