"""Reads files of HTTP servers, which may send something else than what they were asked for.

fsspec's own reader takes whatever comes: other ranges, the whole file for each range, pages, redirects to anywhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Any, BinaryIO

from pipeline.common.errors import UserError
from pipeline.data.tar import BLOCK, is_header

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 10
MISSING = (404, 410)
PIECE = 1 << 16
"""Bytes of a whole file that are read at a time."""
LARGEST_FILE = 1 << 28
"""Bytes of the largest file that is read at once, such as a manifest, after it was decompressed."""


class NoRanges(Exception):  # noqa: N818
    """The server sends whole files only."""


def is_http(fs: Any) -> bool:
    """Whether a file system of fsspec is that of HTTP."""
    return "http" in getattr(fs, "protocol", ())


def in_loop(fs: Any, timeout: float, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Run a coroutine function in the event loop of an asynchronous file system.

    Raises:
        TimeoutError: It took longer than `timeout` seconds, and was cancelled.
    """
    from fsspec.asyn import sync

    async def limited() -> Any:
        try:
            return await asyncio.wait_for(call(*arguments, **keywords), timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"no complete answer within {timeout:g} s") from None

    return sync(fs.loop, limited)


async def read_file(fs: Any, url: str) -> bytes:
    """Read a small file.

    Raises:
        FileNotFoundError: There is none.
        UserError: It is larger than LARGEST_FILE, or the server sends a page.
    """
    response = await _ask(fs, "GET", url)
    async with response:
        data = await _limited(response, LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise UserError(
            f"{url}: the file is larger than {LARGEST_FILE >> 20} MB and cannot be a manifest. Check the URL."
        )
    _refuse_page(url, response, data)
    return data


async def read_part(fs: Any, url: str, start: int, end: int) -> bytes:
    """Read bytes `start` to `end`; fewer if the file ends before.

    Raises:
        FileNotFoundError: There is no such file.
        NoRanges: The server would send the whole file.
        OSError: The server sends another part.
        UserError: The server sends a page.
    """
    response = await _ask(fs, "GET", url, {"Range": f"bytes={start}-{end - 1}"})
    async with response:
        if response.status != 206:
            data = await _limited(response, BLOCK) if start == 0 else b""
            _refuse_page(url, response, data)
            response.close()  # the rest is not read
            raise NoRanges
        given = response.headers.get("Content-Range", "")
        found = re.match(r"bytes (\d+)-(\d+)/", given)
        if found is None or int(found[1]) != start or int(found[2]) >= end or _is_encoded(response):
            raise OSError(f"asked for bytes {start} to {end - 1}, the server sent `{given or 'no Content-Range'}`")
        data = await _limited(response, end - start)
    if start == 0 or response.headers.get("Content-Type", "").startswith("text/html"):
        _refuse_page(url, response, data)
    return data


async def read_whole(fs: Any, url: str, file: BinaryIO, size: int, stalled: float) -> None:
    """Write the first `size` bytes of a file to a local one, in one request.

    Args:
        fs: fsspec file system.
        url: The URL.
        file: The local file, which is emptied first.
        size: Size in bytes.
        stalled: Seconds that each PIECE bytes may take.

    Raises:
        OSError: The connection failed.
        UserError: The server sends a page.
    """
    file.seek(0)
    file.truncate()
    response = await _ask(fs, "GET", url)
    async with response:
        while (left := size - file.tell()) > 0:
            try:
                data = await asyncio.wait_for(response.content.readexactly(min(left, PIECE)), stalled)
            except asyncio.IncompleteReadError as error:
                data = error.partial
            except asyncio.TimeoutError:
                raise TimeoutError(f"less than {PIECE >> 10} kB within {stalled:g} s") from None
            if not data:
                return
            if file.tell() == 0:
                _refuse_page(url, response, data)
            file.write(data)
        response.close()  # what is beyond the size is not read


async def info(fs: Any, url: str) -> dict[str, Any]:
    """The `ETag` and `Last-Modified` of a file, and its `size`, None if the server does not say.

    Raises:
        FileNotFoundError: There is no such file.
    """
    response = await _ask(fs, "HEAD", url, refused=(403, 405, 501))
    if response.status >= 400:  # a server without HEAD
        response = await _ask(fs, "GET", url, {"Range": "bytes=0-0"})
    async with response:
        total = re.match(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        length = total[1] if total else response.headers.get("Content-Length", "")
        response.close()
    known = length.isascii() and length.isdigit() and not _is_encoded(response)
    version = {name: response.headers[name] for name in ("ETag", "Last-Modified") if name in response.headers}
    return {**version, "size": int(length) if known else None}


async def _ask(
    fs: Any, method: str, url: str, headers: dict[str, str] | None = None, refused: tuple[int, ...] = ()
) -> Any:
    """The response to a request, after its redirects. Statuses that are errors are raised, but not those `refused`."""
    session, target = await fs.set_session(), fs.encode_url(url)
    keywords = {key: value for key, value in fs.kwargs.items() if key not in ("headers", "allow_redirects")}
    own = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity", **(headers or {})}
    for _ in range(MOST_REDIRECTS):
        response = await session.request(method, target, headers=own, allow_redirects=False, **keywords)
        if response.status not in REDIRECTS or "Location" not in response.headers:
            break
        response.close()
        target = await _redirected(url, response)
    else:
        raise UserError(f"{url}: more than {MOST_REDIRECTS} redirects. Check the URL.")
    if response.status in MISSING:
        response.close()
        raise FileNotFoundError(url)
    if response.status not in refused:
        response.raise_for_status()
    return response


async def _redirected(url: str, response: Any) -> Any:
    """Where a redirect leads.

    Raises:
        UserError: To another scheme, or from a public host to a private one.
    """
    target = response.url.join(type(response.url)(response.headers["Location"]))
    if target.scheme not in (response.url.scheme, "https"):
        raise UserError(f"{url}: redirects to {target.scheme}://, which is rejected. Use the URL of the file itself.")
    if await _is_private(target.host) and not await _is_private(response.url.host):
        raise UserError(
            f"{url}: redirects to the private address {target.host}, which is rejected. Use the URL of the file itself."
        )
    return target


async def _is_private(host: str | None) -> bool:
    """Whether a name or address is of this machine or of a private network. Unknown names are not."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(not ipaddress.ip_address(str(place[4][0]).partition("%")[0]).is_global for place in found)


async def _limited(response: Any, most: int) -> bytes:
    """The body, at most its first `most` bytes; the rest is not read."""
    data = bytearray()
    while len(data) < most and (piece := await response.content.read(most - len(data))):
        data += piece
    if not response.content.at_eof():
        response.close()
    return bytes(data)


def _is_encoded(response: Any) -> bool:
    return response.headers.get("Content-Encoding", "identity") not in ("", "identity")


def _refuse_page(url: str, response: Any, start: bytes) -> None:
    """Raise UserError if a file starts as a page does, and not as a tar."""
    if start.lstrip()[:1] == b"<" and not is_header(start[:BLOCK]):
        kind = response.headers.get("Content-Type", "no content type").partition(";")[0]
        raise UserError(
            f"{url}: the server sent a page ({kind}), not the file. Open the URL in a browser: it may ask for a login."
        )
