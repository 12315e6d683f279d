"""Guards `wcord serve`: which hosts may ask, how much memory uploads share, and how long a client may take."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 30.0
"""Seconds within which a client must send the head of a request, and then its body."""


class TooLarge(Exception):  # noqa: N818
    """An upload exceeds the size limit."""


class Room:
    """Memory budget shared by all concurrent uploads. An upload that does not fit waits before it is read.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        self.left, self.changed = size, asyncio.Condition()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes, at most those of the whole room, until the end of the block."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.left >= size)
            self.left -= size
        try:
            yield
        finally:
            async with self.changed:
                self.left += size
                self.changed.notify_all()


def stated_length(request: Any, limit: int) -> int:
    """Bytes that an upload will have; `limit` if the client does not say.

    Raises:
        TooLarge: More than `limit`.
    """
    length = request.headers.get("content-length", "")
    size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else limit
    if size > limit:
        raise TooLarge
    return size


async def read_upload(request: Any, limit: int) -> bytes:
    """Read the body of a request.

    Raises:
        TooLarge: It has more than `limit` bytes.
        asyncio.TimeoutError: It did not come within PATIENCE.
    """

    async def read() -> bytes:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > limit:
                raise TooLarge
        return bytes(data)

    return await asyncio.wait_for(read(), PATIENCE)


class TrustedHosts:
    """ASGI middleware: 400 if `Host` is not in `hosts`; `*` accepts all. 403 if `Origin` is another place than `Host`.

    Each connection serves one request, so that none is left open. The middleware of Starlette truncates IPv6 addresses
    at their first colon.
    """

    def __init__(self, app: Any, hosts: tuple[str, ...]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or reject it."""
        from starlette.responses import PlainTextResponse

        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = dict(scope.get("headers", ()))
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin")
        name = re.sub(r":\d*$", "", host).strip("[]")
        answer = self.app
        if "*" not in self.hosts and name not in self.hosts:
            answer = PlainTextResponse("Invalid host header", 400)
        elif origin is not None and _place(origin.decode("latin-1")) != host:
            answer = PlainTextResponse("Invalid origin header: only the page of this server may ask", 403)

        async def send_last(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        return await answer(scope, receive, send_last)


def _place(origin: str) -> str:
    """Host and port of an origin; empty for `null` and what is no URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def impatient_protocol() -> Any:
    """The HTTP protocol of uvicorn, which closes connections without a request within PATIENCE."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        """Closes a connection whose client sends no complete head of a request."""

        def connection_made(self, transport: Any) -> None:
            """Wait for a request."""
            super().connection_made(transport)
            self.loop.call_later(PATIENCE, self._close_unless_asked)

        def _close_unless_asked(self) -> None:
            if self.cycle is None:
                self.transport.close()

    return Impatient
