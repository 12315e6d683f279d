"""Lists the training pairs with the probability that each matches, at the end of a run on noisy pairs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import Tensor

from pipeline.data.mixture import Mixture
from pipeline.data.source import Source
from pipeline.runs.pairs_file import MISMATCHED, PAIRS, Pair, write_pairs
from pipeline.train.state import Training

log = logging.getLogger(__name__)


def list_pairs(training: Training) -> None:
    """Write `pairs.jsonl`, and log how many pairs are probably mismatched. Does nothing without a pair filter."""
    pair_filter, source = training.distillation.pair_filter, training.source
    if pair_filter is None or not isinstance(source, (Source, Mixture)):
        return
    sources = source.sources if isinstance(source, Mixture) else (source,)
    pairs = list(_pairs(sources, pair_filter.probability().cpu()))
    write_pairs(training.run, pairs)
    doubtful = sum(pair.matches <= MISMATCHED for pair in pairs)
    log.info(
        f"{training.run / PAIRS}: {doubtful} of {len(pairs)} training pairs are probably mismatched; to see them: "
        f"wcord check --pairs {training.run}"
    )


def _pairs(sources: tuple[Source, ...], probability: Tensor) -> Iterator[Pair]:
    for number, source in enumerate(sources):
        first = source.first()
        for raw in source.read(frozenset()):
            if "__lost__" not in raw:
                place = raw["__place__"]
                matches = round(float(probability[first[raw["__url__"]] + place]), 4)
                yield Pair(raw["__key__"], raw["__shard__"], place, matches, number)
