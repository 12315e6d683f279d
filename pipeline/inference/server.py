"""`wcord serve`: a local web page that shows the predicted class and the nearest neighbours of an uploaded file.

The modality decodes uploads in memory. They are never stored, and no request can make the server open a file by name.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
from base64 import b64encode
from dataclasses import dataclass
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np

from modalities import Text
from pipeline.common.errors import UserError
from pipeline.common.optional_deps import require_package
from pipeline.data.decoding import check_pixels
from pipeline.inference.faiss_index import unit
from pipeline.inference.search import Role, Side, sides
from pipeline.inference.server_guard import (
    Room,
    TooLarge,
    TrustedHosts,
    impatient_protocol,
    read_upload,
    stated_length,
)
from pipeline.runs.artifacts import Embeddings, Thumbnails, read_embeddings, read_thumbnails

log = logging.getLogger(__name__)

LIMIT = 20_000_000
"""Maximum size of an upload in bytes."""
UPLOADS = 5
"""Number of uploads of that size that are in memory at a time; others wait."""
CLASSES, NEIGHBOURS = 5, 6
INLINE = "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
POLICY = f"default-src 'none'; img-src 'self' data:; connect-src 'self'; {INLINE}"


@dataclass(frozen=True)
class Gallery:
    """The test samples for which evaluation stored pictures."""

    embeddings: Embeddings
    thumbnails: Thumbnails

    def nearest(self, vector: np.ndarray) -> dict[str, Any]:
        """Find the nearest samples to a unit vector `[D]`, by student and by teacher embeddings.

        Returns:
            Role -> its modality and samples.
        """
        found = {}
        for role in ("student", "teacher"):
            side, modality = getattr(self.embeddings, role), getattr(self.thumbnails, f"{role}_modality")
            if side is None or self.pictures(role) is None:
                continue
            cosine = side[self.thumbnails.rows] @ vector
            order = np.argsort(-cosine)[:NEIGHBOURS].tolist()
            found[role] = {"modality": modality, "samples": [self._sample(i, float(cosine[i])) for i in order]}
        return found

    def pictures(self, role: str) -> np.ndarray | None:
        """The pictures of a role, uint8 `[n, H, W, 3]`."""
        return {"student": self.thumbnails.student, "teacher": self.thumbnails.teacher}.get(role)

    def _sample(self, index: int, cosine: float) -> dict[str, Any]:
        row = int(self.thumbnails.rows[index])
        label = self.embeddings.class_name(int(self.embeddings.label[row]))
        return {"index": index, "key": str(self.embeddings.keys[row]), "label": label, "similarity": cosine}


class Desk:
    """Answers queries for one run.

    Raises:
        UserError: The run cannot be queried; see `sides`.
    """

    def __init__(self, run: Path) -> None:
        self.sides: dict[Role, Side] = {role: side for role, side in sides(run).items() if side.view is not None}
        if not self.sides:
            raise UserError(
                f"{run}: its networks require several modalities per sample, so a single file is not enough."
            )
        embeddings = read_embeddings(run)
        thumbnails = read_thumbnails(run, len(embeddings.keys)) if embeddings is not None else None
        self.gallery = Gallery(embeddings, thumbnails) if embeddings is not None and thumbnails is not None else None
        self.lock = Lock()

    def about(self) -> list[dict[str, Any]]:
        """The possible queries: role, modality, and whether the query is typed text."""
        return [
            {"role": role, "modality": side.sees, "typed": isinstance(getattr(side.view, "modality", None), Text)}
            for role, side in self.sides.items()
        ]

    def answer(self, role: Role, data: bytes) -> dict[str, Any]:
        """Process the bytes of one file.

        Args:
            role: Student or teacher.
            data: The bytes.

        Returns:
            Picture, classes and neighbours.

        Raises:
            ValueError: The bytes are not valid for the modality.
        """
        side = self.sides[role]
        assert side.view is not None
        modality = side.view.modality
        check_pixels(data)
        with self.lock:
            value = modality.decode(data, {})
            out = side.network.features([side.view.whole(value)])
            vector = side.shared(out.pooled.float().cpu().numpy())[0]
        found: dict[str, Any] = {"picture": png_url(modality.picture(value)), "classes": [], "neighbours": {}}
        if out.logits is not None:
            odds = side.network.name([""], out)[0].probabilities
            found["classes"] = [{"name": name, "probability": p} for name, p in list(odds.items())[:CLASSES]]
        if self.gallery is not None and self.gallery.embeddings.student.shape[1] == len(vector):
            found["neighbours"] = self.gallery.nearest(unit(vector[None])[0])
        return found


def app(run: Path, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> Any:
    """Make the web application (ASGI) of a run.

    Args:
        run: The run folder.
        hosts: Accepted host names. Other requests are rejected, so no other web page can access the server.
    """
    require_package("starlette", "serve")
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    desk, room = Desk(run), Room(UPLOADS * LIMIT)
    page = (Path(__file__).parent / "server_page.html").read_text().replace("RUN_NAME", escape(run.resolve().name))

    async def home(request: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    async def about(request: Request) -> Response:
        return JSONResponse(desk.about())

    async def look(request: Request) -> Response:
        role: Any = request.path_params["role"]
        if role not in desk.sides:
            return JSONResponse({"error": f"no {role} here"}, 404)
        try:
            async with room.taken(stated_length(request, LIMIT)):
                data = await read_upload(request, LIMIT)
                return JSONResponse(await run_in_threadpool(desk.answer, role, data))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 422)
        except TooLarge:
            return JSONResponse({"error": f"more than {LIMIT // 1_000_000} MB; send a smaller file"}, 413)
        except asyncio.TimeoutError:
            return JSONResponse({"error": "the file did not arrive in time"}, 408)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it

    async def picture(request: Request) -> Response:
        pictures = desk.gallery.pictures(request.path_params["role"]) if desk.gallery is not None else None
        index = request.path_params["index"]
        if pictures is None or not re.fullmatch("[0-9]{1,9}", index) or int(index) >= len(pictures):
            return Response(status_code=404)
        return Response(png(pictures[int(index)]), media_type="image/png")

    routes = [
        Route("/", home),
        Route("/about", about),
        Route("/look/{role}", look, methods=["POST"]),
        Route("/picture/{role}/{index}", picture),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHosts, hosts=hosts)])


def serve(run: Path, host: str, port: int) -> None:
    """Serve until interrupted.

    Args:
        run: The run folder.
        host: Address to listen on.
        port: Port to listen on.

    Raises:
        UserError: The port is in use. This is checked before anything is loaded.
    """
    uvicorn = require_package("uvicorn", "serve")
    listener = bind(host, port)
    names = ("*",) if host in ("0.0.0.0", "::") else ("127.0.0.1", "localhost", host.lower())
    application = app(run, names)
    log.info(f"{run}: {url(host, port)} (stop with Ctrl-C)")
    settings = uvicorn.Config(application, http=impatient_protocol(), log_level="warning")
    uvicorn.Server(settings).run(sockets=[listener])


def url(host: str, port: int) -> str:
    """The address of the page; IPv6 addresses are in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        UserError: The host or the port cannot be used.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is busy; choose another one: --port {port + 1}.") from None
        raise UserError(
            f"cannot listen on {host}:{port}: {error}. Use a free port and an address of this machine."
        ) from None
    return listener


def png(picture: np.ndarray) -> bytes:
    """Encode uint8 RGB `[H, W, 3]` as PNG."""
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1])


def png_url(picture: np.ndarray) -> str:
    """Encode a picture as a data URL, scaled down to at most 320 pixels in width and height."""
    scale = min(320 / max(picture.shape[:2]), 1)
    size = max(round(picture.shape[1] * scale), 1), max(round(picture.shape[0] * scale), 1)
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return f"data:image/png;base64,{b64encode(png(small)).decode()}"
