"""Remote datasets: shards are downloaded when they are first read, and kept in a cache of limited size.

A remote dataset has a mirror: an ordinary local folder in which shards may be missing. Mirrors are in `$WCORD_CACHE`
(default `~/.cache/wcord`) and together contain up to `$WCORD_CACHE_GB` gigabytes (default 50). The file systems of
fsspec find the credentials. A little over 350 lines, because downloads, requests and the mirror share their limits.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock

from pipeline.common.errors import UserError
from pipeline.data.http_reader import NoRanges, in_loop, is_http, read_part, read_whole
from pipeline.data.http_reader import info as http_info
from pipeline.data.http_reader import read_file as read_http_file
from pipeline.data.hub import reach_hub

T = TypeVar("T")

SCHEMES = ("http", "https", "s3", "gs", "hf", "memory")
ORIGIN = "origin.txt"
BLOCK = 8 << 20
THREADS = 16
"""Requests to an object store at a time."""

RETRIES, FIRST_PAUSE, STALLED = 8, 0.25, 8.0
"""Number of attempts per request; pause in seconds after the first failure (doubled each time); and timeout in seconds
per block."""

LAST_START = 36.0
"""Seconds after the first attempt in which the last one may start. Together with STALLED for this attempt and for the
two requests of `_ends`, a fault is reported within a minute."""

WHOLE = 86_400.0
"""Timeout in seconds of a whole shard, of which no block may take longer than STALLED."""
DENIED = (401, 403)
"""HTTP status codes for which retrying is useless."""


def is_remote(folder: str | Path) -> bool:
    """Whether this is the URL of a supported object store or web server."""
    return re.match(rf"({'|'.join(SCHEMES)})://", str(folder)) is not None


def mirror(url: str) -> Path:
    """The local mirror of a remote folder. It is created if needed, with a file that contains the URL.

    Args:
        url: URL of the folder.

    Raises:
        UserError: The URL contains a secret.
    """
    refuse_secrets(url)
    folder = cache_folder() / blake2b(url.rstrip("/").encode(), digest_size=10).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ORIGIN).exists():
        _replace(folder / ORIGIN, url.rstrip("/").encode())
    return folder


def refuse_secrets(url: str) -> None:
    """Reject URLs that contain a secret, since run folders, reports and messages store URLs.

    Args:
        url: URL of a dataset.

    Raises:
        UserError: The URL contains a user name, password or signature.
    """
    scheme, _, rest = url.partition("://")
    authority = rest.partition("/")[0]
    if "@" in authority:
        raise UserError(
            f"{scheme}://…@{authority.rpartition('@')[2]}: the URL of a dataset must not contain a user name or "
            "password. Remove them, and configure the credentials as the client library of the object store expects "
            "them."
        )
    if scheme in ("http", "https") and (mark := re.search(r"[?#]", rest)):
        raise UserError(
            f"{scheme}://{rest[: mark.start()]}: the URL of a dataset must not contain a query or signature. Remove "
            f"`{mark[0]}` and everything after it: a signature is valid for one file only, and run folders store URLs."
        )


def origin(folder: Path) -> str | None:
    """The URL of a mirror; None for any other folder, whatever it contains."""
    if folder.parent != cache_folder():
        return None
    try:
        return (folder / ORIGIN).read_text()
    except OSError:
        return None


def cache_folder() -> Path:
    """Folder of downloaded shards and of indexes: `$WCORD_CACHE`, default `~/.cache/wcord`."""
    return Path(os.environ.get("WCORD_CACHE") or Path.home() / ".cache" / "wcord")


def refresh(folder: Path, name: str) -> None:
    """Download a small file into a mirror again.

    Args:
        folder: The mirror.
        name: Name of the file.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The store cannot be reached.
    """
    _replace(folder / name, read_file(f"{origin(folder)}/{name}"))


def read_file(url: str) -> bytes:
    """Read a small remote file.

    Args:
        url: Its URL.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The store cannot be reached.
    """
    return patiently(url, lambda fs, path, failures: _read(fs, path))


def exists(url: str) -> bool:
    """Whether there is an object at a URL."""
    with suppress(FileNotFoundError):
        info(url)
        return True
    return False


def pin(path: Path) -> None:
    """Mark a file that was created locally, so that it is never evicted from a mirror. Other folders are ignored."""
    if origin(path.parent) is not None:
        _own(path).touch()


def _own(path: Path) -> Path:
    return path.with_name(f"{path.name}.own")


def fetch(path: Path, size: int, version: str = "") -> None:
    """Download a shard into its mirror, unless it is already there. An interrupted download resumes.

    Args:
        path: Path of the shard in the mirror.
        size: Size of the shard in bytes.
        version: Version that the store reports. A local copy of another version is replaced; "" accepts any.

    Raises:
        UserError: Several consecutive attempts failed.
        ValueError: The remote file is smaller than `size`.
    """
    with FileLock(path.with_name(f"{path.name}.lock")):  # one process at a time
        _remove_other_version(path, version)
        with suppress(FileNotFoundError):
            used = path.stat()
            os.utime(path, ns=(time.time_ns(), used.st_mtime_ns))  # not every file system updates the access time
            return
        part = path.with_name(f"{path.name}.part")
        url = f"{origin(path.parent)}/{path.name}"
        length = BLOCK
        with part.open("ab") as file:
            while (done := file.tell()) < size:

                def request(fs: Any, remote: str, failures: int, start: int = done, most: int = length) -> bytes:
                    return read_block(fs, remote, start, min(start + max(most >> failures, 1), size))

                try:
                    data = patiently(url, request)
                except NoRanges:
                    fetch_whole(url, file, size)
                    if file.tell() < size:
                        raise ValueError(f"{url} ends after {file.tell()} of {size} bytes") from None
                    break
                except UserError:
                    if _ends(url, done):
                        raise ValueError(f"{url} ends after {done} of {size} bytes") from None
                    raise
                file.write(data)
                file.flush()
                length = min(2 * len(data), BLOCK)  # it was reduced by retries on a slow connection
        part.replace(path)
    _evict(path)


def _remove_other_version(path: Path, version: str) -> None:
    """Remove the local copy of another version of the shard, and record this version."""
    note = path.with_name(f"{path.name}.version")
    if version and not (note.exists() and note.read_text() == version):
        for old in (path, path.with_name(f"{path.name}.part")):
            old.unlink(missing_ok=True)
        _replace(note, version.encode())


def _ends(url: str, at: int) -> bool:
    """Whether the file ends at this byte: if the byte before it can be read, the connection works."""
    came = []
    for start in (at - 1, at):
        with suppress(Exception):  # each file system has its own exceptions
            came += [start] if start >= 0 and read_block(*file_system(url), start, start + 1) else []
    return came == [at - 1]


def _read(fs: Any, path: str, **part: int) -> bytes:
    """Read a file, or its bytes `start` to `end`. Asynchronous file systems time out after STALLED seconds."""
    data: bytes
    if is_http(fs):
        data = in_loop(fs, STALLED, partial(read_part if part else read_http_file, fs), path, **part)
    elif hasattr(fs, "_cat_file"):
        data = in_loop(fs, STALLED, fs._cat_file, path, **part)
    else:
        # Huggingface_hub would read 5 MB ahead, also for the few bytes of a header.
        data = fs.cat_file(path, **part, **({"cache_type": "none"} if getattr(fs, "protocol", "") == "hf" else {}))
    return data


def info(url: str) -> dict[str, Any]:
    """What the store says of a file: its `size` in bytes, None if unknown, and its version.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The store cannot be reached.
    """

    def ask(fs: Any, path: str, failures: int) -> dict[str, Any]:
        return dict(in_loop(fs, STALLED, partial(http_info, fs), path) if is_http(fs) else fs.info(path))

    return patiently(url, ask)


def fetch_whole(url: str, file: BinaryIO, size: int) -> None:
    """Write a file of a server without ranges to a local one, in one request.

    Args:
        url: Its URL.
        file: The local file, which is emptied first.
        size: Size in bytes.

    Raises:
        UserError: Several attempts failed, or the server sends a page.
    """

    def request(fs: Any, path: str, failures: int) -> None:
        in_loop(fs, WHOLE, partial(read_whole, fs), path, file, size, STALLED)

    patiently(url, request)


def read_block(fs: Any, path: str, start: int, end: int) -> bytes:
    """Read bytes `start` to `end` of a remote file. May return fewer, but at least one.

    Args:
        fs: fsspec file system.
        path: Path in the file system.
        start: First byte.
        end: Last byte plus 1.

    Raises:
        OSError: No bytes were received, or others.
        NoRanges: The server sends whole files only.
    """
    data = _read(fs, path, start=start, end=end)[: end - start]
    if not data:
        raise OSError(f"no data was received after byte {start}")
    return data


def patiently(url: str, request: Callable[[Any, str, int], T]) -> T:
    """Retry a request with increasing pauses. Errors that retries cannot fix are raised at once.

    Args:
        url: URL of the file.
        request: Called with a file system, the path in it, and the number of failed attempts.

    Returns:
        The result of the request.

    Raises:
        FileNotFoundError: There is no such file.
        PermissionError: The store denies access.
        UserError: All attempts failed, or an HTTP server denies access.
    """
    begun = time.monotonic()
    for failures in range(1, RETRIES + 1):
        try:
            fs, path = file_system(url)
            return request(fs, path, failures - 1)
        except FileNotFoundError:  # noqa: PERF203
            raise FileNotFoundError(f"{url} does not exist") from None
        except (PermissionError, UserError, NoRanges):
            raise
        except Exception as error:  # each file system has its own exceptions
            if (status := getattr(error, "status", None)) in DENIED:
                raise UserError(
                    f"{url}: the server denies access (HTTP {status}). Check the URL and your credentials."
                ) from None
            pause = max(FIRST_PAUSE * 2 ** (failures - 1), _asked_pause(error))
            if failures == RETRIES or time.monotonic() + pause > begun + LAST_START:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                many = f"{failures} attempts" if failures > 1 else "1 attempt"
                raise UserError(f"{url}: {many} failed. The last error was {reason}.") from None
            time.sleep(pause)
    raise AssertionError


def _asked_pause(error: Exception) -> float:
    """Seconds to wait that a busy server asks for (`Retry-After`); 0 if it does not."""
    asked = str((getattr(error, "headers", None) or {}).get("Retry-After", ""))
    return float(asked) if asked.isascii() and asked.isdigit() else 0.0


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Call this for each request: fsspec caches file systems by process, and a forked worker must not use its parent's.

    Raises:
        UserError: The client of the store is not installed, or the Hugging Face Hub cannot be reached.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
        if url.startswith("hf://"):
            reach_hub(fs.endpoint)
    except ImportError as error:
        raise UserError(f"{url}: {error}. Install it with `pip install 'wcord[remote]'`.") from None
    return fs, path


def _evict(kept: Path) -> None:
    """Remove the least recently used shards until the cache fits its limit. Open files stay readable."""
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
        raise UserError(f"WCORD_CACHE_GB: `{given}` is not a number. Set it to gigabytes, e.g. 50.") from None


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)
