"""Says at the start how many labels a run uses if `data.label_fraction` hides some of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from losses import CrossEntropy, get
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.data.decoding import meta_of
from pipeline.data.skipped import SampleError
from pipeline.data.source import Source

log = logging.getLogger(__name__)

MOST = 10_000
"""Number of training samples above which labels are not counted: reading them would take long."""


def say_labels(config: Config, sources: Sequence[Source]) -> None:
    """Log how many labels `data.label_fraction` leaves. Larger or remote datasets are not read, only estimated.

    Args:
        config: The config.
        sources: The training split, or those of a mixture.

    Raises:
        UserError: No label is left, although a loss requires labels.
    """
    fraction, total = config.data.label_fraction, sum(source.samples for source in sources)
    if fraction == 1 or not any(source.task.classes for source in sources):
        return
    local = all(shard.path(source.folder).is_file() for source in sources for shard in source.shards)
    if total > MOST or not local:
        log.info(f"labels: about {round(fraction * total)} of {total} training samples (data.label_fraction)")
        return
    per_class = sum((count_labels(source) for source in sources), Counter[int]())
    used = per_class.total()
    supervised = [name for name in config.losses if issubclass(get(name), CrossEntropy)]
    if not used and supervised:
        raise UserError(
            f"data.label_fraction: {fraction:g} of {total} training samples leaves no label, but losses."
            f"{supervised[0]} requires labels. Increase it, or remove this loss."
        )
    counts = [per_class[number] for number in range(sources[0].task.classes)]
    spread = "" if sources[0].task.mask else f", {min(counts)} to {max(counts)} per class"
    log.info(f"labels: {used} of {total} training samples{spread}")


def count_labels(source: Source) -> Counter[int]:
    """Class -> number of samples whose label is used. All samples with a mask count as class 0."""
    task, members, found = source.task, source.task.members, Counter[int]()
    for raw in source.read(members):
        if task.shows(raw):
            with suppress(SampleError):  # training reports them
                whole = source.complete(raw, members)
                if task.labels(whole):
                    found[0 if task.mask else task.read(whole, meta_of(whole))["label"]] += 1
    return found
