"""Expands `data.shards` to the URLs of shards: brace patterns, globs, lists, folders, tars and indexes of wids.

The webdataset library expands braces and splits at `::`. It cannot list remote folders or globs, and it runs `pipe:`
URLs in a shell, which this program never does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from glob import glob, has_magic
from pathlib import Path

from webdataset.shardlists import expand_urls

from pipeline.common.errors import UserError
from pipeline.common.file_names import left_by
from pipeline.data.remote import file_system, is_remote, refuse_secrets
from pipeline.data.wids import read_wids

COMPRESSED = re.compile(r"\.(tgz|tar\.(gz|bz2|xz|zst))$")
SEPARATOR = "::"
"""Separator of the patterns in a list, as in webdataset."""


def shard_urls(patterns: str) -> list[str]:
    """Expand patterns to shards, in the order of the patterns. Shards of a folder or a glob are sorted by name.

    Args:
        patterns: Tars, brace patterns, globs, folders or indexes of wids (`.json`), local or remote, separated by `::`.

    Returns:
        URLs and absolute paths.

    Raises:
        UserError: There is no shard, one occurs twice or is compressed, or a pattern is a `pipe:` URL.
    """
    found: list[str] = []
    for pattern in patterns.split(SEPARATOR):
        _refuse_unsafe(pattern)
        try:
            expanded = expand_urls(pattern)
        except ValueError as error:
            raise UserError(f"data.shards: {pattern}: {error}") from None
        for url in expanded:
            found += _listed(url)
    if compressed := next(filter(COMPRESSED.search, found), None):
        raise UserError(
            f"{compressed}: the tar is compressed, which does not allow random access. Decompress it to a .tar "
            "(`gunzip`). This takes little extra space, since images and audio are already compressed."
        )
    if twice := next((url for url in found if found.count(url) > 1), None) if len(set(found)) < len(found) else None:
        raise UserError(f"data.shards: {twice} occurs twice. Remove one of them.")
    return found


def _refuse_unsafe(url: str) -> None:
    if url.startswith("pipe:"):
        raise UserError(
            f"data.shards: {url}: pipe: commands are never run. Use the URL of the shards, e.g. s3://bucket/shards."
        )
    refuse_secrets(url)


def _indexed(index: str) -> list[str]:
    """The shards in an index of wids, in its order."""
    try:
        shards = [shard.url for shard in read_wids(index)]
    except (OSError, ValueError) as error:
        raise UserError(f"data.shards: {index}: cannot be read: {error}.") from None
    for url in shards:
        _refuse_unsafe(url)
        if not is_remote(url) and not Path(url).is_file():
            raise UserError(
                f"data.shards: {index}: its shard {url} does not exist. Correct the address, which is relative to the "
                "folder of the index, or write a pattern of the shards in data.shards."
            )
    return _some(index, shards)


def _listed(url: str) -> list[str]:
    """The shards of one URL or path without braces."""
    if url.endswith(".json"):
        return _indexed(url)
    if is_remote(url):
        return _far(url)
    if has_magic(url):
        found = glob(url, recursive=True)  # noqa: PTH207 - of a path that may be absolute
        return _some(url, _tars(map(Path, found)))
    path = Path(url).absolute()
    if path.is_dir():
        return _some(url, _tars(found for found in path.rglob("*") if not left_by(found.relative_to(path).as_posix())))
    if not path.is_file():
        raise UserError(f"data.shards: {url}: not found. Check the path.")
    if not path.name.endswith(".tar") and not COMPRESSED.search(path.name):
        raise UserError(f"data.shards: {url}: not a .tar. Use a packed dataset or WebDataset shards.")
    return [str(path)]


def _tars(paths: Iterable[Path]) -> list[str]:
    """The tars among these paths, sorted, without hidden ones."""
    return sorted(str(path.absolute()) for path in paths if _is_tar(path.name) and path.is_file())


def _is_tar(name: str) -> bool:
    return not name.startswith(".") and (name.endswith(".tar") or COMPRESSED.search(name) is not None)


def _far(url: str) -> list[str]:
    """The shards of a remote tar, glob or folder. Globs and folders are listed by the store."""
    scheme, _, rest = url.partition("://")
    if not has_magic(rest) and _is_tar(url):
        return [url]
    fs, path = file_system(url)
    listing: Callable[[str], list[str]] = fs.glob if has_magic(rest) else fs.find
    try:
        names = [str(name) for name in listing(path)]
    except FileNotFoundError:
        names = []
    except Exception as error:  # each file system has its own exceptions
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"data.shards: {url}: cannot be listed ({reason}). Use a pattern, e.g. {url}/{{000..099}}.tar."
        ) from None
    full = [name if "://" in name else f"{scheme}://{name}" for name in names]
    return _some(url, sorted(name for name in full if _is_tar(name.rpartition("/")[2])))


def _some(url: str, found: list[str]) -> list[str]:
    if not found:
        raise UserError(
            f"data.shards: {url}: contains no dataset.json and no .tar. Use a packed dataset, or a folder, a glob or a "
            "brace pattern such as {000..099}.tar of WebDataset shards."
        )
    return found
