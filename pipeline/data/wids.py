"""Reads an index of wids, the part of webdataset for random access: `{"shardlist": [{"url": …, "nsamples": …}]}`.

The package wids is not on PyPI. Source of the format: `wids_specs.py` of https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.remote import is_remote, read_file


@dataclass(frozen=True)
class WidsShard:
    """A shard in an index of wids.

    Attributes:
        url: Its URL or absolute path.
        samples: Its number of samples.
        size: Its size in bytes; None if the index does not state it.
    """

    url: str
    samples: int
    size: int | None


def read_wids(index: str) -> list[WidsShard]:
    """Read an index of wids.

    Args:
        index: Its URL or path.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is not an index of wids.
    """
    try:
        document = json.loads(read_file(index) if is_remote(index) else Path(index).read_bytes())
        base = str(document.get("base") or index.rpartition("/")[0])
        return [
            WidsShard(_resolved(base, row["url"]), natural(row["nsamples"]), row.get("filesize"))
            for row in document["shardlist"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'not a wids index, {{"shardlist": [{{"url": …, "nsamples": …}}]}} ({error!r})') from None


def natural(number: Any) -> int:
    """Check a number of samples from a JSON document.

    Raises:
        TypeError: It is not a natural number.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise TypeError(f"{number!r} is not a number of samples")
    return number


def _resolved(base: str, url: str) -> str:
    """The address of a shard, which may be relative to the folder of the index."""
    if url.startswith(("/", "pipe:")) or "://" in url:
        return url
    return f"{base}/{url}" if is_remote(base) else str((Path(base) / url).absolute())
