"""Numbers of samples that other tools have stored with their shards: an index of wids, or img2dataset's statistics.

A stated number may be wrong. It is compared with the shard before any sample of the shard is used. If it is wrong, the
shards are counted from then on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.data.dataset import MANIFEST, Shard
from pipeline.data.remote import THREADS, cache_folder, is_remote, read_file
from pipeline.data.shard_urls import SEPARATOR
from pipeline.data.wids import natural, read_wids

STATISTICS = "_stats.json"
"""End of the name of the file that img2dataset writes for each shard when the shard is finished."""

BEGINNING = 1 << 16
"""Bytes; an index of wids has its list within them."""


@dataclass(frozen=True)
class Statement:
    """A stated number of samples.

    Attributes:
        samples: The number.
        by: URL or path of the file that states it.
    """

    samples: int
    by: str


def stated_counts(patterns: str, sizes: Mapping[str, int]) -> dict[str, Statement]:
    """Find the number of samples per shard, as stated by wids indexes or by img2dataset.

    Numbers for a shard of another size, contradictory numbers, and those that were wrong before are ignored.

    Args:
        patterns: `data.shards`, which may name indexes of wids.
        sizes: URL or absolute path of each shard -> its size in bytes.

    Returns:
        URL or path -> its statement, for the shards that have one.
    """
    found: dict[str, list[Statement]] = {}
    for url, one in (*_of_wids(patterns, sizes), *_of_img2dataset(sizes)):
        if is_trusted(one.by):
            found.setdefault(url, []).append(one)
    return {url: own[0] for url, own in found.items() if len({one.samples for one in own}) == 1}


def _of_wids(patterns: str, sizes: Mapping[str, int]) -> Iterator[tuple[str, Statement]]:
    """Statements of the indexes of wids that are named, or next to local shards."""
    named = [pattern for pattern in patterns.split(SEPARATOR) if pattern.endswith(".json")]
    for index in named:
        for shard in read_wids(index):
            if shard.size in (None, sizes.get(shard.url)) and shard.url in sizes:
                yield shard.url, Statement(shard.samples, index)
    for folder in sorted({Path(url).parent for url in sizes if not is_remote(url)}):
        for path in filter(_lists_shards, sorted(folder.glob("*.json"))):
            with suppress(OSError, ValueError):
                for shard in read_wids(str(path)):
                    # Its addresses may be relative to the working folder of its author; the names are unique here.
                    url = str(folder / shard.url.rpartition("/")[2])
                    if url in sizes and shard.size in (None, sizes[url]):
                        yield url, Statement(shard.samples, str(path))


def _lists_shards(path: Path) -> bool:
    if path.name.endswith(STATISTICS) or path.name == MANIFEST:
        return False
    with suppress(OSError), path.open("rb") as file:
        return b'"shardlist"' in file.read(BEGINNING)
    return False


def _of_img2dataset(urls: Iterable[str]) -> Iterator[tuple[str, Statement]]:
    folders: dict[str, list[str]] = {}
    for url in urls:
        folders.setdefault(url.rpartition("/")[0], []).append(url)
    with ThreadPoolExecutor(THREADS) as pool:
        for own in folders.values():
            first = _statistics(own[0])
            if first is None and is_remote(own[0]):  # saves a request for each of the others
                continue
            statements = [first, *pool.map(_statistics, own[1:])]
            yield from ((url, one) for url, one in zip(own, statements, strict=True) if one is not None)


def _statistics(url: str) -> Statement | None:
    by = url.removesuffix(".tar") + STATISTICS
    with suppress(OSError, ValueError, KeyError, TypeError, UserError):
        document = json.loads(read_file(by) if is_remote(by) else Path(by).read_bytes())
        natural(document["count"])
        return Statement(natural(document["successes"]), by)
    return None


def is_trusted(by: str) -> bool:
    """Whether no number in this folder was wrong so far.

    Args:
        by: URL or path of a file that states numbers.
    """
    return not (_notes() / _note(by.rpartition("/")[0])).exists()


def refuted(
    shard: Shard, path: str | Path, samples: int, members: Iterable[str], names: Mapping[str, str] = {}
) -> UserError | None:
    """Compare a shard that was read with what was stated about it.

    If it differs, this is recorded: on this machine, all shards of the folder of the statement are counted from now on.

    Args:
        shard: Its entry in the manifest.
        path: Its path or URL.
        samples: Its number of samples.
        members: The members of its samples.
        names: Extension in the shard -> member, if members are renamed.

    Returns:
        The error to raise or report; None if the shard was counted, or is as stated.
    """
    if (stated := shard.stated) is None:
        return None
    unknown = set(members).difference(names.get(extension, extension) for extension in stated.extensions)
    if samples != shard.samples:
        fault = f"has {samples} samples, but {stated.by} states {shard.samples}"
    elif unknown:
        fault = f"has the member {min(unknown)}, which the first sample of no shard has. It was not counted, since "
        fault += f"{stated.by} states its number of samples"
    else:
        return None
    folder = stated.by.rpartition("/")[0]
    refute([_note(folder)])
    return UserError(
        f"{path}: the shard {fault}. From now on, the numbers stated in {folder} are ignored and its shards are "
        "counted. If data.shards is an index, run `wcord index` again. Then start the run again, without --resume."
    )


def refuted_folders() -> list[str]:
    """Short names of the folders with a wrong number, to hand to other machines; see `refute`."""
    return sorted(path.name for path in _notes().glob("*"))


def refute(folders: Iterable[str]) -> None:
    """Ignore from now on, on this machine, the numbers that are stated in folders.

    Args:
        folders: Short names of the folders; see `refuted_folders`.
    """
    with suppress(OSError):  # a cache that cannot be written: the numbers are compared again
        _notes().mkdir(parents=True, exist_ok=True)
        for name in folders:
            (_notes() / name).touch()


def _notes() -> Path:
    return cache_folder() / "refuted"


def _note(folder: str) -> str:
    return blake2b(folder.encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()
