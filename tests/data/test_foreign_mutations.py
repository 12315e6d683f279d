"""Shards of others with a fault of every kind: refused or read, but never a pair of two samples, a crash or a hang."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from foreign_shards import Sample, plain_tar, shard_writer

from pipeline.common.errors import UserError
from pipeline.data.join import Join
from pipeline.data.manifest import load_dataset, local
from pipeline.data.shard_reader import read_range

MEMBERS = frozenset({"text.txt", "label.txt", "json", "own.bin"})
Mutation = Callable[[bytes, random.Random], bytes]


def marked(number: int, key: str) -> Sample:
    """A sample whose every member says whose it is."""
    names = ("txt", "cls", "json", "own.bin")
    return key, {name: f"{number:05d} {name}".ljust(10 + 300 * (number % 3)).encode() for name in names}


def headers(data: bytes) -> list[int]:
    """Where a member's own header begins."""
    return [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]


def named(data: bytes, place: int, name: bytes) -> bytes:
    """The same tar with another name in a header, whose checksum fits."""
    header = bytearray(data[place : place + 512])
    header[:100] = name.ljust(100, b"\0")[:100]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header) + data[place + 512 :]


def flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.choice(headers(data)) + rng.randrange(512) if rng.random() < 0.8 else rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] if rng.random() < 0.5 else data[:start] + data[start + rng.choice([1, 511, 512, 5000]) :]


def swap(data: bytes, rng: random.Random) -> bytes:
    one, other = sorted(rng.sample(headers(data), 2))
    a, b = data[one : one + 512], data[other : other + 512]
    return data[:one] + b + data[one + 512 : other] + a + data[other + 512 :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    place, target = rng.choice(headers(data)), rng.choice(headers(data))
    length = rng.choice([512, 1024, 1536, 2560])
    return data[:target] + data[place : place + length] + data[target:]


def rename(data: bytes, rng: random.Random) -> bytes:
    place, other = rng.choice(headers(data)), rng.choice(headers(data))
    theirs = data[other : other + 100].rstrip(b"\0")
    odd = [b"../" + theirs, b"/" + theirs, b"x" + theirs, theirs.upper(), b"nodot", b"", b".txt", b"\xff\xfe.\xff"]
    return named(data, place, theirs if rng.random() < 0.5 else rng.choice(odd))


def overwrite(data: bytes, rng: random.Random) -> bytes:
    place = rng.choice(headers(data))
    field = place + rng.choice([0, 100, 124, 136, 148, 156, 157, 257, 345])
    return data[:field] + rng.randbytes(rng.randrange(1, 13)) + data[field + 12 :]


MUTATIONS: tuple[Mutation, ...] = (flip, cut, swap, repeat, rename, overwrite)


def ids(sample: Mapping[str, object]) -> set[bytes]:
    """Whose members a sample has; of one that lost its content, nobody's."""
    starts = {data[:5] for name, data in sample.items() if name in MEMBERS and isinstance(data, bytes)}
    return {start for start in starts if start.isdigit()}


@pytest.mark.slow
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_no_mutation_joins_members_of_two_samples(tmp_path: Path, mutate: Mutation) -> None:
    mutations_read(tmp_path, mutate, count=int(os.environ.get("MUTATIONS", "200")))  # 840 of each were run once


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_few_of_them(tmp_path: Path, mutate: Mutation) -> None:
    mutations_read(tmp_path, mutate, count=25)


def mutations_read(folder: Path, mutate: Mutation, count: int) -> None:
    rng = random.Random(mutate.__name__)
    plain = plain_tar(folder / "plain.tar", [marked(n, f"a.b/{n:05d}") for n in range(8)]).read_bytes()
    (path,) = shard_writer(folder / "by", [marked(n, f"{'long' * 30}/{n:05d}") for n in range(8)], maxcount=8)
    sources = (plain, path.read_bytes())  # without and with pax headers
    found: Counter[str] = Counter()
    for number in range(count):
        whole = sources[number % 2]
        shard = folder / f"{number:05d}.tar"
        if number % 4 < 2:  # counted as it is, then changed
            shard.write_bytes(whole)
            dataset = load_dataset(shard)
        shard.write_bytes(mutate(whole, rng))
        try:
            if number % 4 >= 2:
                dataset = load_dataset(shard)
            shards = dataset.splits["train"]
            layout = dataset.layout(local(shard), "train")
            for sample in read_range(layout, shards, 0, shards[0].samples, MEMBERS, tolerant=number % 3 == 0):
                found["lost" if "__lost__" in sample else "read"] += 1
                assert len(ids(sample)) <= 1, (number, sample)
            other = Join(shard, dataset)
            for own in range(8):
                key = f"a.b/{own:05d}" if number % 2 == 0 else f"{'long' * 30}/{own:05d}"
                joined = other.complete({"__key__": key, "text.txt": b"%05d" % own}, MEMBERS)
                assert ids(joined) == {b"%05d" % own}, (number, joined)
        except UserError as error:
            found["refused" if shard.name in str(error) else "refused without a name"] += 1
        shard.unlink(missing_ok=True)
    assert found["refused"] > 0
    assert found["refused without a name"] == 0
