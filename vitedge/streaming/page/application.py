"""The page as a web application: its paths, who may open them, and the updates for viewers."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from vitedge.streaming.page.feed import Feed, Viewer
from vitedge.streaming.page.metrics import CONTENT_TYPE, metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

ASSETS = Path(__file__).resolve().parent / "assets"
MOST_VIEWERS = 200
MOST_LOGIN_BYTES = 4096
LOGIN_S = 10.0  # for the form to arrive
SEND_TIMEOUT_S = 10.0  # a viewer that takes nothing for this long is disconnected
COOKIE = "vitedge"
COOKIE_S = 30 * 86400
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


def application(feed: Feed, token: str | None, *, page: bool, count: Callable[[int], None]) -> Starlette:
    """Build the web application.

    Args:
        feed: what is shown.
        token: what every request must know; None: the sockets are bound to loopback.
        page: whether the page is served beside metrics and health.
        count: called with the number of viewers when it changes.
    """
    guard, state = Guard(token), StatePaths(feed)
    routes = [
        Route("/metrics", guard.protect(state.metrics)),
        Route("/status.json", guard.protect(state.status)),
        Route("/health", state.health),  # without a token: probes can't hold one, and it answers with one word
        Route("/ready", state.ready),
    ]
    if page:
        paths = PagePaths(feed, guard, count)
        routes += [
            Route("/", guard.protect(paths.index)),
            Route("/login", paths.login, methods=["POST"]),
            Route("/stream", guard.protect(paths.stream)),
            Route("/picture/{source:path}", guard.protect(paths.picture)),
            *(Route(f"/{name}", _asset_handler(name)) for name in ("page.css", "page.js", "icon.svg")),  # no secrets
        ]
    return Starlette(routes=routes)


Handler = Callable[[Request], Awaitable["Response | ASGIApp"]]


def _answer(content: str | bytes, kind: str, status: int = 200) -> Response:
    return Response(content, status, media_type=kind, headers=HEADERS)


def _asset(name: str, status: int = 200) -> Response:
    return _answer((ASSETS / name).read_bytes(), f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8", status)


def _asset_handler(name: str) -> Handler:
    """Return a handler with a fixed name: a request's own URL is built from its Host header, which anyone can write."""

    async def asset(_: Request) -> Response:
        return _asset(name)

    return asset


class StatePaths:
    """The paths for programs: metrics, the status, and health."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def status(self, _: Request) -> Response:
        """Return all data of the page, as JSON."""
        return _answer(msgspec.json.encode(self._feed.status), "application/json")

    async def metrics(self, _: Request) -> Response:
        """Return the same for Prometheus; nothing before the first status."""
        return _answer(metrics(self._feed.status) if self._feed.status else "", CONTENT_TYPE)

    async def health(self, _: Request) -> Response:
        """Tell whether the engine's loop runs."""
        alive = self._feed.alive
        return PlainTextResponse("ok\n" if alive else "the engine says nothing\n", 200 if alive else 503)

    async def ready(self, _: Request) -> Response:
        """Tell whether every source delivers frames."""
        ready = self._feed.alive and not self._feed.troubles()
        return PlainTextResponse("ok\n" if ready else "not every source delivers\n", 200 if ready else 503)


class PagePaths:
    """The paths for people: the page, its login, the stream of updates and the pictures."""

    def __init__(self, feed: Feed, guard: Guard, count: Callable[[int], None]) -> None:
        self._feed, self._guard, self._count = feed, guard, count

    async def index(self, _: Request) -> Response:
        """Return the page."""
        return _asset("page.html")

    async def login(self, request: Request) -> Response:
        """Set a cookie for a client that knows the token."""
        body = b""
        with anyio.move_on_after(LOGIN_S) as patience:
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_LOGIN_BYTES:
                    return _answer("too long\n", "text/plain", 413)
        if patience.cancelled_caught:
            return _answer("too slow\n", "text/plain", 408)
        token = parse_qs(body.decode("latin-1")).get("token", [""])[0]
        if not self._guard.admits(f"Bearer {token}", ""):
            await asyncio.sleep(1)  # guessing takes its time
            return _asset("login.html", 401)
        response = RedirectResponse("/", 303, headers=HEADERS)
        response.set_cookie(COOKIE, self._guard.cookie, httponly=True, samesite="strict", max_age=COOKIE_S)
        return response

    async def stream(self, _: Request) -> Response | ASGIApp:
        """Send updates to one viewer, as long as it stays."""
        if len(self._feed.viewers) >= MOST_VIEWERS:
            return _answer("there are too many viewers\n", "text/plain", 503)
        return Watching(self._feed, self._count)

    async def picture(self, request: Request) -> Response:
        """Return the latest picture of a source, JPEG."""
        jpeg = self._feed.pictures.get(request.path_params["source"])
        return _answer(jpeg, "image/jpeg") if jpeg else _answer("there's no picture of this\n", "text/plain", 404)


class Watching:
    """The response to one viewer: parts as :mod:`feed` makes them, until it leaves or is stuck."""

    def __init__(self, feed: Feed, count: Callable[[int], None]) -> None:
        self._feed, self._count = feed, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the ASGI call."""
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

    async def _push(self, viewer: Viewer, send: Send, give_up: Callable[[], None]) -> None:
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
    """Decides who may see the page."""

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()
        self.cookie = "" if token is None else hmac.new(token.encode(), b"vitedge page", sha256).hexdigest()

    def protect(self, handler: Handler) -> Handler:
        """Wrap a handler so that only admitted requests reach it; others get the login page or a refusal."""

        async def protected(request: Request) -> Response | ASGIApp:
            if not self.host_is_ours(request.headers.get("host", "")):
                return _answer("this address isn't served here\n", "text/plain", 421)
            if self.admits(request.headers.get("authorization", ""), request.cookies.get(COOKIE, "")):
                return await handler(request)
            if request.scope["path"] == "/":
                return _asset("login.html", 401)
            refusal = _answer("a token is needed\n", "text/plain", 401)
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal

        return protected

    def admits(self, authorization: str, cookie: str) -> bool:
        """Whether a request with this header and cookie knows the token; compared in constant time."""
        if self._token is None:
            return True
        scheme, _, token = authorization.partition(" ")
        by_header = scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token)
        return by_header or hmac.compare_digest(cookie.encode(), self.cookie.encode())

    def host_is_ours(self, host: str) -> bool:
        """Without a token, answer only names of this machine, so that no other site's name can lead here."""
        if self._token is not None:
            return True
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name.lower() == "localhost"
