"""The recipe `webdataset`: repacks existing WebDataset shards with other fields, smaller photos or filters.

Shards can also be joined by key. To train on unchanged shards, no packing is needed: see `wcord index`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.file_names import nfc
from pipeline.common.spill import Spilled, blob, scratch
from pipeline.data.member_formats import field_of, member_name
from pipeline.data.member_names import USUAL, member_of
from pipeline.data.shard_urls import SEPARATOR
from pipeline.data.user_stages import UserStage
from pipeline.packing.recipes.plan import (
    UNITS,
    Excluded,
    Plan,
    Refusal,
    SourceSample,
    check_unique,
    safe_key,
    sift,
    spilled,
)
from pipeline.packing.recipes.shard_members import ShardMembers, is_field
from pipeline.packing.recipes.shard_rows import Row, RowJob, find_rows
from pipeline.packing.recipes.shard_source import ShardSource

log = logging.getLogger(__name__)

PROBED = 64
"""Number of samples that are made during planning, to estimate the size of packed samples."""


def plan(
    shards: Sequence[str],
    fields: Mapping[str, Sequence[str]] = {},
    label: str | None = None,
    classes: Sequence[str] = (),
    group: str | None = None,
    size: int | None = None,
    filters: Sequence[str] = (),
    join: str | None = None,
    workers: int = 1,
    name: str | None = None,
    licence: str | None = None,
) -> Plan:
    """Plan a dataset from WebDataset shards.

    Several splits (from an index, a packed dataset or the names of shards) are kept. One is divided by fractions.

    Args:
        shards: Tars, brace patterns, globs or folders; local, or URLs of object storage.
        fields: Field -> extensions, of which the first one that a sample has is used. Only these fields are packed. By
            default, all fields with a common extension, and members that are named like fields, such as `depth.png`.
        label: Location of the class: `cls` or `json:path.to.value`. None means `cls`, if it exists.
        classes: Class names in order, if the shards contain class indices.
        group: Location of the group, such as `json:clip`. Samples of a group stay in one split.
        size: Short side in pixels to which larger photos are downscaled.
        filters: User-defined stages, each `package.module:name`, that exclude or change samples.
        join: Other shards, whose fields are added to the samples with the same keys.
        workers: Number of processes.
        name: Name of the dataset; by default, that of the shards.
        licence: Licence of the data; by default, that of the shards.

    Raises:
        UserError: A shard cannot be read, a field, label, group or filter does not exist, or keys are not unique.
    """
    if size is not None and size < 1:
        raise UserError(f"--size {size}: expected a number of pixels, at least 1.")
    source = ShardSource.open(SEPARATOR.join(shards), fields, label, classes)
    other = ShardSource.open(join, fields) if join else None
    dataset = source.dataset
    members = _members(source, other, fields, size, filters)
    packed = _packed(members, source, other)
    _check_fields(fields, packed, source, other, bool(filters))
    _say_dropped(source, packed)
    split = len(dataset.splits) > 1
    samples, refused = _samples(source, other, group, filters, workers, join, split)
    masks = {own: values for own, values in dataset.masks.items() if own in packed}
    return Plan(
        recipe="webdataset",
        name=name or dataset.name,
        options={"fields": {field: list(own) for field, own in fields.items()}, "label": label, "group": group}
        | {"size": size, "filter": list(filters), "join": join is not None},
        samples=_sized(samples, members),
        refused=refused,
        classes=source.classes() | {own: dataset.classes[own] for own in masks},
        masks=masks,
        units=dict(unit for field, unit in UNITS.items() if field in packed),
        licence=licence or dataset.licence,
        split_rule=f"given by the shards: {dataset.split_rule}" if split else None,
        make=members,
    )


def refuse_inside(shards: Sequence[str], out: str) -> None:
    """Check that the output is not inside a folder of shards, where it would become a source itself.

    Args:
        shards: The shards to pack.
        out: Folder of the new dataset.

    Raises:
        UserError: The output is inside such a folder.
    """
    for text in chain.from_iterable(own.split(SEPARATOR) for own in shards):
        if Path(text).is_dir() and Path(out).resolve().is_relative_to(Path(text).resolve()):
            raise UserError(
                f"{out}: is inside {text}, whose shards are being packed. Choose an output folder outside it."
            )


def read_classes(file: Path) -> list[str]:
    """Read class names, one per line.

    Args:
        file: Text file.

    Raises:
        UserError: The file cannot be read, or is empty.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {file}: {error}. Specify a text file with one class per line.") from None
    if not names:
        raise UserError(f"--classes {file}: the file is empty. Write one class per line.")
    return names


def _members(
    source: ShardSource,
    other: ShardSource | None,
    fields: Mapping[str, Sequence[str]],
    size: int | None,
    filters: Sequence[str],
) -> ShardMembers:
    """What makes the members of packed samples, from those of the shards and the joined shards."""
    return ShardMembers(
        own=source.naming,
        joined=other.naming if other else None,
        fields=frozenset(fields) or None,
        preferred=_preferred(fields),
        size=size,
        filters=tuple(filters),
    )


def _preferred(fields: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    chosen = fields or {field: own for field, own in USUAL.items() if field != "label"}
    return tuple(dict.fromkeys(member_of(field, extension) for field, own in chosen.items() for extension in own))


def _packed(members: ShardMembers, source: ShardSource, other: ShardSource | None) -> set[str]:
    """The fields that packed samples may have, unless a filter adds others."""
    found = source.members() | (other.members() if other else set())
    fields = {field_of(name) for name in found if is_field(name)}
    return fields & members.fields if members.fields else fields


def _check_fields(
    fields: Mapping[str, Sequence[str]],
    packed: set[str],
    source: ShardSource,
    other: ShardSource | None,
    filtered: bool,
) -> None:
    """Raise UserError for a field name that is invalid, or a field that no sample has."""
    there = ", ".join(sorted({*source.extensions, *(other.extensions if other else ())}))
    for field, extensions in fields.items():
        option = f"--field {field}={','.join(extensions)}"
        try:
            for extension in extensions:
                member_name(field, member_of(field, extension))
        except ValueError as error:
            raise UserError(f"{option}: {error}.") from None
        if field not in packed and not filtered:
            raise UserError(f"{option}: no sample has this member; there are {there}.")
    if not packed - {"meta"} and not filtered:
        raise UserError(
            f"{source.spec}: no member is recognised as a field; there are {there}. Use --field NAME=EXTENSION."
        )


def _say_dropped(source: ShardSource, packed: set[str]) -> None:
    """Log the members of the shards that are not packed."""
    if dropped := sorted(name for name in source.members() if field_of(name) not in {*packed, "label", "meta"}):
        log.info(f"not packed: {', '.join(dropped)}. To keep one, add e.g. `--field meta=json`.")


def _mark(filters: Sequence[str]) -> str:
    """A text that changes with the code of a filter. Raises UserError for a filter that cannot be imported."""
    digest = hashlib.sha256()
    for path in filters:
        UserStage(path, "--filter")
        found = importlib.util.find_spec(path.partition(":")[0])
        if found and found.origin and Path(found.origin).is_file():
            digest.update(Path(found.origin).read_bytes())
    return digest.hexdigest()[:16] if filters else ""


def _samples(
    source: ShardSource,
    other: ShardSource | None,
    group: str | None,
    filters: Sequence[str],
    workers: int,
    join: str | None,
    split: bool,
) -> tuple[Spilled[SourceSample], list[Refusal]]:
    """The samples of the shards, joined by key, and the rejected ones. Raises UserError if keys are not unique."""
    mark = _mark(filters)
    pairs = _pairs(source.jobs(group), other.jobs() if other else [], workers, join)
    states = source.states() | (other.states() if other else {})
    samples, refused = sift(_sample(row, partner, states, mark, split, join) for row, partner in pairs)
    check_unique(samples)
    return samples, refused


def _pairs(
    jobs: Sequence[RowJob], others: Sequence[RowJob], workers: int, join: str | None
) -> Iterator[tuple[Row, Row | None]]:
    """Each sample with the sample of the other shards that has the same key."""
    known = Spilled(Row)
    db = scratch("keys (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
    for row in find_rows([replace(job, group=None, labels={}) for job in others], workers):
        if not db.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (blob(nfc(row.key)), len(known))).rowcount:
            raise UserError(f"{join}: the key `{row.key}` occurs twice; joining requires unique keys.")
        known.append(row)
    for row in find_rows(jobs, workers):
        number = db.execute("SELECT number FROM keys WHERE key = ?", (blob(nfc(row.key)),)).fetchone()
        yield row, known[number[0]] if number else None


def _sample(
    row: Row, partner: Row | None, states: Mapping[str, tuple[str, str]], mark: str, split: bool, join: str | None
) -> SourceSample | Refusal:
    key = safe_key(row.key)
    file, state = states[row.url]
    source = f"{file}: {row.key}"
    if row.fault:
        return Refusal(key, source, row.fault)
    if join and not partner:
        return Refusal(key, source, f"no sample with this key in {join}")
    other = (partner.url, partner.start, partner.stop, partner.key) if partner else ()
    labels = dict(row.labels)
    return SourceSample(
        key=key,
        group=row.group or key,
        size=row.stop - row.start + (partner.stop - partner.start if partner else 0),
        stamp=" ".join(filter(None, (state, states[partner.url][1] if partner else "", mark))),
        arguments=[row.key, row.url, row.place, row.start, row.stop, *other],
        label=labels.pop("label", None),
        labels=labels,
        split=row.split if split else None,
        source=source,
    )


def _sized(samples: Spilled[SourceSample], members: ShardMembers) -> Spilled[SourceSample]:
    """The samples with their estimated packed size, extrapolated from a few samples that are made here."""
    before = after = 0
    for place in range(0, len(samples), max(len(samples) // PROBED, 1)):
        sample = samples[place]
        before += sample.size
        try:
            after += sum(map(len, sample.read(members).values()))
        except (Excluded, OSError, ValueError):
            continue
    ratio = max(after, 1) / max(before, 1)
    return spilled(sample._replace(size=max(round(sample.size * ratio), 1)) for sample in samples)
