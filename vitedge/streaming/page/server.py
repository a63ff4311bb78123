"""The page's process: it reads items from its standard input and serves them; nothing that viewers do reaches further.

Run as ``python -c "… serve()"`` with its task as one line of JSON on standard input, then items as
:func:`vitedge.streaming.page.feed.pack` writes them. On standard output it says how many viewers there are, a line each
time that changes. It ends when standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from vitedge.core.schema import Record
from vitedge.streaming.page.feed import Feed, Viewer, unpack
from vitedge.streaming.page.metrics import CONTENT_TYPE, metrics

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.responses import Response

ASSETS = Path(__file__).resolve().parent / "assets"
MOST_VIEWERS = 200
SEND_TIMEOUT_S = 10.0  # a viewer that takes nothing for so long is let go
COOKIE = "vitedge"
NICE = 5  # classifying goes first
_TYPES = {"css": "text/css", "js": "text/javascript", "html": "text/html", "svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Listener(Record):
    """A socket that is already bound, and what is served there."""

    descriptor: int
    page: bool  # False: metrics and health alone


class Serving(Record):
    """What the process is told to do. It holds the token: never print it."""

    listeners: tuple[Listener, ...]
    token: str | None

    def __repr__(self) -> str:
        return "Serving(…)"


def serve() -> None:
    """The process's main function."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a Ctrl-C is the engine's to understand; the end of input is ours
    os.nice(NICE)
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Serving)
    asyncio.run(_serve(task))


async def _serve(task: Serving) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # they stay ignored

    logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)  # nothing of what viewers send is logged
    feed, loop, ended = Feed(), asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        try:
            for item, jpeg in unpack(sys.stdin.buffer):
                loop.call_soon_threadsafe(feed.take, item, jpeg)
        finally:
            loop.call_soon_threadsafe(ended.set)

    servers = []
    for listener in task.listeners:
        app = application(feed, task.token, page=listener.page, count=_say_viewers)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", server_header=False, ws="none", http="h11"
        )
        servers.append(Server(config).serve([socket.socket(fileno=listener.descriptor)]))
    threading.Thread(target=read, daemon=True).start()
    running = asyncio.gather(*servers)
    await ended.wait()
    await asyncio.sleep(0.2)  # the last status goes out
    os._exit(0 if not running.done() else 1)


def _say_viewers(count: int) -> None:
    os.write(1, f"{count}\n".encode())


Handler = Callable[[Any], Awaitable[Any]]


def application(feed: Feed, token: str | None, *, page: bool, count: Callable[[int], None]) -> Starlette:
    """The web application.

    Args:
        feed: what is shown.
        token: what every request must know; None: the sockets are bound to loopback.
        page: whether the page is served beside metrics and health.
        count: called with the number of viewers when it changes.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route

    guard = Guard(token)

    def answer(content: str | bytes, kind: str, status: int = 200) -> Response:
        return Response(content, status, media_type=kind, headers=HEADERS)

    def asset(name: str, status: int = 200) -> Response:
        return answer((ASSETS / name).read_bytes(), f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8", status)

    def guarded(handler: Handler) -> Handler:
        async def checked(request: Request) -> Any:
            if not guard.host_is_ours(request.headers.get("host", "")):
                return answer("this address isn't served here\n", "text/plain", 421)
            if not guard.admits(request.headers.get("authorization", ""), request.cookies.get(COOKIE, "")):
                if request.url.path == "/":
                    return asset("login.html", 401)
                refused = answer("a token is needed\n", "text/plain", 401)
                refused.headers["WWW-Authenticate"] = "Bearer"
                return refused
            return await handler(request)

        return checked

    async def index(_: Request) -> Response:
        return asset("page.html")

    async def login(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > 4096:
                return answer("too long\n", "text/plain", 413)
        given = parse_qs(body.decode("latin-1")).get("token", [""])[0]
        if not guard.admits(f"Bearer {given}", ""):
            await asyncio.sleep(1)  # guessing takes its time
            return asset("login.html", 401)
        found = RedirectResponse("/", 303, headers=HEADERS)
        found.set_cookie(COOKIE, guard.cookie, httponly=True, samesite="strict", max_age=30 * 86400)
        return found

    async def stream(_: Request) -> Any:
        if len(feed.viewers) >= MOST_VIEWERS:
            return answer("there are too many viewers\n", "text/plain", 503)
        return Watching(feed, count)

    async def picture(request: Request) -> Response:
        jpeg = feed.pictures.get(request.path_params["source"])
        return answer(jpeg, "image/jpeg") if jpeg else answer("there's no picture of this\n", "text/plain", 404)

    async def status(_: Request) -> Response:
        return answer(msgspec.json.encode(feed.status), "application/json")

    async def figures(_: Request) -> Response:
        return answer(metrics(feed.status) if feed.status else "", CONTENT_TYPE)

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n" if feed.alive else "the engine says nothing\n", 200 if feed.alive else 503)

    async def ready(_: Request) -> Response:
        fine = feed.alive and not feed.troubles()
        return PlainTextResponse("ok\n" if fine else "not every source delivers\n", 200 if fine else 503)

    routes = [
        Route("/metrics", guarded(figures)),
        Route("/status.json", guarded(status)),
        Route("/health", health),  # one word, for probes that can't hold a token
        Route("/ready", ready),
    ]
    if page:
        routes += [
            Route("/", guarded(index)),
            Route("/login", login, methods=["POST"]),
            Route("/stream", guarded(stream)),
            Route("/picture/{source:path}", guarded(picture)),
        ]
        for name in ("page.css", "page.js", "icon.svg"):  # they say nothing, and the login page needs them

            def send(_: Request, name: str = name) -> Response:
                return asset(name)

            routes.append(Route(f"/{name}", send))
    return Starlette(routes=routes)


class Watching:
    """The response to one viewer: parts as :mod:`feed` makes them, until it leaves or is stuck."""

    def __init__(self, feed: Feed, count: Callable[[int], None]) -> None:
        self._feed, self._count = feed, count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI call."""
        import anyio

        viewer = Viewer()
        self._feed.viewers.add(viewer)
        self._count(len(self._feed.viewers))
        try:
            # asyncio's tasks can lose a cancellation that comes as a wait ends (wait_for, before Python 3.12);
            # a task group's holds until they end.
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._push, viewer, send, tasks.cancel_scope.cancel)
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()
        finally:
            self._feed.viewers.discard(viewer)
            self._count(len(self._feed.viewers))

    async def _push(self, viewer: Viewer, send: Any, give_up: Callable[[], None]) -> None:
        import anyio

        kinds = {**HEADERS, "Content-Type": "application/octet-stream"}
        headers = [(name.lower().encode(), value.encode()) for name, value in kinds.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        data = self._feed.welcome()
        while True:
            with anyio.move_on_after(SEND_TIMEOUT_S) as patience:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if patience.cancelled_caught:
                return give_up()
            data = await viewer.take()


class Guard:
    """Who may see the page."""

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()
        self.cookie = "" if token is None else hmac.new(token.encode(), b"vitedge page", sha256).hexdigest()

    def admits(self, authorization: str, cookie: str) -> bool:
        """Whether a request with this header and cookie knows the token; compared in constant time."""
        if self._token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        by_header = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)
        return by_header or hmac.compare_digest(cookie.encode(), self.cookie.encode())

    def host_is_ours(self, host: str) -> bool:
        """Without a token only names of this machine are answered, so that no other site's name can lead here."""
        if self._token is not None:
            return True
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name.lower() == "localhost"
