"""Data sets on other machines: shards are fetched when they are first read and kept in a folder of limited size.

A remote data set has a mirror, a local folder like any other in which shards may not be there yet. It lies in
`$WCORD_CACHE` (default `~/.cache/wcord`) and holds up to `$WCORD_CACHE_GB` (default 50). Credentials come from where
fsspec's file systems look for them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

SCHEMES = ("http", "https", "s3", "gs", "memory")
ORIGIN = "origin.txt"
BLOCK = 8 << 20
RETRIES, FIRST_PAUSE, STALLED = 8, 0.25, 30.0
"""Failures in a row of one request, the pause after the first in seconds, doubled each time, and the seconds that a
request may take for a block."""


def is_remote(folder: str | Path) -> bool:
    """Whether it is a URL of a store that we read from."""
    return re.match(rf"({'|'.join(SCHEMES)})://", str(folder)) is not None


def mirror(url: str) -> Path:
    """The local folder of a remote one; it is made, with nothing in it but where it is from.

    Raises UserError for an address with a secret in it: addresses stand in run folders, reports and messages.
    """
    scheme, _, rest = url.partition("://")
    authority = rest.partition("/")[0]
    if "@" in authority:
        raise UserError(
            f"{scheme}://…@{authority.rpartition('@')[2]}: the address of a data set must not hold a user name or "
            "password. Remove them; give them as the store's client takes them."
        )
    if scheme in ("http", "https") and (mark := re.search(r"[?#]", rest)):
        raise UserError(
            f"{scheme}://{rest[: mark.start()]}: the address of a data set must end with its folder. Remove "
            f"`{mark[0]}` and what follows: a signature is of one file, not of a folder, and no run folder may hold it."
        )
    folder = _root() / blake2b(url.rstrip("/").encode(), digest_size=10).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ORIGIN).exists():
        _replace(folder / ORIGIN, url.rstrip("/").encode())
    return folder


def origin(folder: Path) -> str | None:
    """The URL that a folder is the mirror of, None for an ordinary one, whatever lies in it."""
    if folder.parent != _root():
        return None
    try:
        return (folder / ORIGIN).read_text()
    except OSError:
        return None


def _root() -> Path:
    return Path(os.environ.get("WCORD_CACHE") or Path.home() / ".cache" / "wcord")


def refresh(folder: Path, name: str) -> None:
    """Fetch a small file anew into a mirror; FileNotFoundError if there is none, UserError if it cannot be reached."""
    url = f"{origin(folder)}/{name}"
    _replace(folder / name, _patiently(url, lambda fs, path, failures: _read(fs, path)))


def keep(path: Path) -> None:
    """Never remove a file, which is made here, from a mirror; nothing to do for any other folder."""
    if origin(path.parent) is not None:
        _own(path).touch()


def _own(path: Path) -> Path:
    return path.with_name(f"{path.name}.own")


def fetch(path: Path, size: int) -> None:
    """Fetch a shard of a known size into its mirror, unless another process already has.

    It goes on where an interrupted one stopped. Raises UserError after several failures in a row, ValueError for an
    object that is shorter.
    """
    with _locked(path):
        with suppress(FileNotFoundError):
            used = path.stat()
            os.utime(path, ns=(time.time_ns(), used.st_mtime_ns))  # not every disk notes when something was read
            return
        part = path.with_name(f"{path.name}.part")
        url = f"{origin(path.parent)}/{path.name}"
        length = BLOCK
        with part.open("ab") as file:
            while (done := file.tell()) < size:

                def request(fs: Any, remote: str, failures: int, start: int = done, most: int = length) -> bytes:
                    return _block(fs, remote, start, min(start + max(most >> failures, 1), size))

                try:
                    data = _patiently(url, request)
                except UserError:
                    if _ends(url, done):
                        raise ValueError(f"{url} ends after {done} of {size} bytes") from None
                    raise
                file.write(data)
                file.flush()
                length = min(2 * len(data), BLOCK)  # a slow line has had to ask for less
        part.replace(path)
    _evict(path)


def _ends(url: str, at: int) -> bool:
    """Whether nothing comes from a byte on, though the one before it does: then it is not for want of a network."""
    came = []
    for start in (at - 1, at):
        with suppress(Exception):  # each file system has errors of its own
            came += [start] if start >= 0 and _block(*_file_system(url), start, start + 1) else []
    return came == [at - 1]


def _read(fs: Any, path: str, **part: int) -> bytes:
    """A file, or its bytes from `start` to `end`, within STALLED seconds where the file system can be interrupted."""
    data: bytes
    if hasattr(fs, "_cat_file"):
        from fsspec.asyn import sync

        data = sync(fs.loop, fs._cat_file, path, timeout=STALLED, **part)
    else:
        data = fs.cat_file(path, **part)
    return data


def _block(fs: Any, path: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end`, or fewer; raises OSError if nothing comes."""
    data = _read(fs, path, start=start, end=end)
    if len(data) > end - start:  # a server that does not know ranges sends all
        data = data[start:end]
    if not data:
        raise OSError(f"nothing came after byte {start}")
    return data


def _patiently(url: str, request: Callable[[Any, str, int], bytes]) -> bytes:
    """Try until it works, with longer and longer pauses; what will not get better by waiting is raised at once.

    request: of a file system, a path in it and how many attempts have failed.
    """
    for failures in range(1, RETRIES + 1):
        try:
            fs, path = _file_system(url)
            return request(fs, path, failures - 1)
        except FileNotFoundError:  # noqa: PERF203
            raise FileNotFoundError(f"{url} is not there") from None
        except (PermissionError, UserError):
            raise
        except Exception as error:  # each file system has errors of its own
            if failures == RETRIES:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise UserError(f"{url}: {RETRIES} attempts failed, the last by {reason}.") from None
            time.sleep(FIRST_PAUSE * 2 ** (failures - 1))
    raise AssertionError


def _file_system(url: str) -> tuple[Any, str]:
    """Anew each time: fsspec keeps them by process, and a forked worker must not share its parent's."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url}: {error}. Install it by `pip install 'wcord[remote]'`.") from None
    return fs, path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time for this file; where the system has no such locks, each fetches for itself."""
    with path.with_name(f"{path.name}.lock").open("w") as file:
        try:
            import fcntl
        except ImportError:
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _evict(kept: Path) -> None:
    """Remove the shards that were not used for the longest time until the rest of those that were fetched, or are being
    fetched, fits; open ones stay readable."""
    limit = _limit()
    found = []
    for path in kept.parents[1].glob("*/*.tar*"):
        with suppress(FileNotFoundError):
            if path.suffix in (".tar", ".part") and not _own(path).exists():
                found.append((path.stat().st_atime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > limit and path != kept and path.suffix == ".tar":
            path.unlink(missing_ok=True)
            total -= size


def _limit() -> float:
    """Bytes that the mirrors may hold together."""
    given = os.environ.get("WCORD_CACHE_GB") or "50"
    try:
        return float(given) * 1e9
    except ValueError:
        raise UserError(f"WCORD_CACHE_GB: `{given}` is no number of gigabytes; set it to one such as 50.") from None


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)
