"""Lists the training pairs with the probability that each matches, at the end of a run on noisy pairs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from pipeline.data.mixture import Mixture
from pipeline.data.source import Source
from pipeline.models.pair_filter import PairFilter
from pipeline.runs.pairs_file import MISMATCHED, PAIRS, Pair, write_pairs

log = logging.getLogger(__name__)


def list_pairs(run: Path, pair_filter: PairFilter, source: Source | Mixture) -> None:
    """Write `pairs.jsonl`, and log how many pairs are probably mismatched.

    Args:
        run: The run folder.
        pair_filter: The pair filter at the end of the training.
        source: The training data.
    """
    sources = source.sources if isinstance(source, Mixture) else (source,)
    pairs = list(_pairs(sources, pair_filter.probability().cpu()))
    write_pairs(run, pairs)
    if not pair_filter.separates():
        log.warning(
            "data.pairs: noisy: the student does not predict the teacher's features well enough to tell which pairs "
            "match, so all pairs were used. Train for more steps, or on more pairs."
        )
        return
    doubtful = sum(pair.matches <= MISMATCHED for pair in pairs)
    log.info(
        f"{run / PAIRS}: {doubtful} of {len(pairs)} training pairs are probably mismatched; to see them: "
        f"wcord check --pairs {run}"
    )


def _pairs(sources: tuple[Source, ...], probability: Tensor) -> Iterator[Pair]:
    for number, source in enumerate(sources):
        first = source.first()
        for raw in source.read(frozenset()):
            if "__lost__" not in raw:
                place = raw["__place__"]
                matches = round(float(probability[first[raw["__url__"]] + place]), 4)
                yield Pair(raw["__key__"], raw["__shard__"], place, matches, number)
