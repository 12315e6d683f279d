"""Joins rows of a table that list the same file: into one sample with several captions, or into one group."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from pipeline.common.spill import Spilled, scratch
from pipeline.packing.recipes.plan import SourceSample, spilled

log = logging.getLogger(__name__)

TEXT = "text.txt"


def one_sample_per_file(samples: Sequence[SourceSample], grouped: bool) -> Spilled[SourceSample]:
    """Keep the rows that list the same file together, so no file is in two splits.

    Args:
        samples: The samples, in the order of the table.
        grouped: Whether the table sets the groups, which are then left unchanged.

    Returns:
        Samples that differ only in their caption become one, with the key of the first row and one caption per line,
        without duplicates. Other samples with the same first file form a group, unless the table sets group or split.
    """
    joined = spilled()
    for rows in _alike(samples, (_without_caption(sample, grouped) for sample in samples)):
        joined.append(_joined(rows))
    if len(joined) < len(samples):
        log.info(
            f"merged {len(samples)} rows into {len(joined)} samples: rows with the same files are treated as captions "
            "of one sample"
        )
    if grouped:
        return joined
    found, shared = spilled(), 0
    for rows in _alike(joined, (next(iter(sample.files.values()), "") for sample in joined)):
        together = len(rows) > 1 and all(sample.split is None for sample in rows)
        shared += len(rows) if together else 0
        for sample in rows:
            found.append(sample._replace(group=rows[0].key) if together else sample)
    if shared:
        log.info(
            f"{shared} samples share a file with others and stay in the same split; use --group to set other groups"
        )
    return found


def _without_caption(sample: SourceSample, grouped: bool) -> str:
    """The values that must be equal for two rows to form one sample; empty if the row cannot be joined."""
    if not sample.files or TEXT not in sample.texts:
        return ""
    same = [sample.files, sample.label, sample.labels, sample.split, sample.group if grouped else ""]
    return json.dumps(same, sort_keys=True)


def _joined(rows: Sequence[SourceSample]) -> SourceSample:
    first = rows[0]
    if len(rows) == 1:
        return first
    captions = dict.fromkeys(row.texts[TEXT] for row in rows)
    text = "\n".join(captions)
    return first._replace(texts={**first.texts, TEXT: text}, size=first.size - len(first.texts[TEXT]) + len(text))


def _alike(samples: Sequence[SourceSample], identities: Iterable[str]) -> Iterator[list[SourceSample]]:
    """The samples of each identity, in order of first appearance. An empty identity matches no other sample."""
    db = scratch("rows (number INTEGER PRIMARY KEY, identity BLOB)")
    marks = (_mark(identity) if identity else number.to_bytes(8) for number, identity in enumerate(identities))
    db.executemany("INSERT INTO rows VALUES (?, ?)", enumerate(marks))
    first = "SELECT MIN(number) OVER (PARTITION BY identity) AS first, number FROM rows ORDER BY first, number"
    for _, rows in groupby(db.execute(first), key=itemgetter(0)):
        yield [samples[number] for _, number in rows]


def _mark(identity: str) -> bytes:
    return hashlib.sha256(identity.encode(errors="backslashreplace")).digest()[:16]
