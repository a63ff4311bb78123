"""The engine's side of the page: an address, a process that serves it, and a sink that never waits for either."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vitedge.core.environment import for_children, secret
from vitedge.errors import NotInstalledError, ResourceError, UsageError
from vitedge.streaming.page.feed import pack
from vitedge.streaming.page.server import Listener, Serving
from vitedge.streaming.records import Event, FrameRecord, Item, Status
from vitedge.streaming.sink import QueuedSink

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ONE_WIDTH, MANY_WIDTH = 640, 480  # pixels of the pictures for one camera, and for several
PICTURE_S = 1 / 12.5  # between two pictures of a source, so that people see motion
RESTART_S = 1.0
IDLE_S = 10.0  # that a connection may be open without a request
MOST_CONNECTIONS = 320  # at each address: more than there may be viewers
SHORTEST_TOKEN = 12
_STUCK_MS = 15_000


def read_token(where: str | None) -> str | None:
    """Read the token that ``--token`` names: a file, or ``env:NAME``.

    Raises:
        UsageError: nothing there, or too short; the content is never shown.
    """
    if where is None:
        return None
    action = f"read the token from {where}"
    hint = f"write a random one there, for example: {secrets.token_urlsafe(18)}"
    if where.startswith("env:"):
        text = secret(where.removeprefix("env:"), action, hint)
    else:
        try:
            text = Path(where).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it isn't a text file"
            raise UsageError(action, f"{reason}; --token takes a file, or env:NAME", hint) from None
    token = text.strip()
    if len(token) < SHORTEST_TOKEN or not re.fullmatch(r"[!-~]+", token):
        raise UsageError(action, f"a token must have {SHORTEST_TOKEN} or more visible ASCII characters", hint)
    return token


def parse_address(text: str, token: str | None, option: str) -> tuple[str, int]:
    """Return (host, port) of HOST:PORT, [IPV6]:PORT or PORT.

    Raises:
        UsageError: another form, or an address that others can reach without a token.
    """
    action = f"serve at {option} {text}"
    match = re.fullmatch(r"(?:(?P<host>[^:\[\]]*|\[[0-9A-Fa-f:.]+\]):)?(?P<port>\d{1,5})", text)
    if match is None or int(match["port"]) > 65535:
        raise UsageError(action, "this isn't HOST:PORT", "write, for example: 127.0.0.1:8042")
    host = (match["host"] if match["host"] is not None else "127.0.0.1").strip("[]") or "0.0.0.0"
    if token is None and not _is_loopback(host):
        raise UsageError(
            action,
            "other machines could open this address, and there is no token",
            "add --token FILE (or env:NAME), or serve at 127.0.0.1 and forward a port by ssh",
        )
    return host, int(match["port"])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def listen(host: str, port: int, option: str) -> socket.socket:
    """Return a bound, listening socket.

    Raises:
        UsageError: there's no such host.
        ResourceError: the address is taken or may not be used.
    """
    action = f"serve at {option} {host}:{port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UsageError(action, str(error.strerror), "name an address of this machine") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it: one that takes no data for so long is closed by the kernel.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STUCK_MS)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ResourceError(action, str(error.strerror), "name another port, or end the program that uses it") from None
    return listening


class PageSink(QueuedSink):
    """Hands all items to the page's process, and starts it again if it ends.

    Args:
        page: (host, port) of the page; None: no page.
        metrics: (host, port) of metrics and health alone; None: none.
        token: what requests must know.
        sources: how many there are.

    Raises:
        UsageError, ResourceError: an address can't be served.
        NotInstalledError: the packages of the extra ``stream`` are missing.
    """

    def __init__(
        self, page: tuple[str, int] | None, metrics: tuple[str, int] | None, token: str | None, sources: int
    ) -> None:
        _require_server()
        self._width = ONE_WIDTH if sources == 1 else MANY_WIDTH
        self._sockets: list[tuple[socket.socket, bool]] = []
        try:
            for address, is_page in ((page, True), (metrics, False)):
                if address is not None:
                    self._sockets.append((listen(*address, "--page" if is_page else "--metrics"), is_page))
        except BaseException:
            self._close_sockets()
            raise
        listeners = tuple(Listener(descriptor=listening.fileno(), page=is_page) for listening, is_page in self._sockets)
        task = Serving(listeners=listeners, token=token, idle_s=IDLE_S, most_connections=MOST_CONNECTIONS)
        self._task = msgspec.json.encode(task) + b"\n"
        self.viewers = 0  # at this moment
        self._pictured: dict[str, float] = {}  # by source, when the last picture came
        self._seen: dict[str, float] = {}  # and the last frame
        self._process: subprocess.Popen[bytes] | None = None
        self._started = -RESTART_S
        self._start()
        super().__init__("page" if page else "metrics", (FrameRecord, Event, Status), depth=256)

    @property
    def picture_width(self) -> int:  # type: ignore[override]
        """The width of wanted pictures: 0 without viewers or while none is due, as pictures cost the readers time."""
        if not self.viewers:
            return 0
        now = time.monotonic()
        due = (
            now - self._pictured.get(source, 0.0) >= PICTURE_S
            for source, seen in self._seen.copy().items()
            if now - seen < 2
        )
        return self._width if any(due) else 0

    @property
    def addresses(self) -> list[str]:
        """The addresses where it's served, the page first."""
        addresses = []
        for listening, is_page in self._sockets:
            host, port = listening.getsockname()[:2]
            addresses.append(f"http://{f'[{host}]' if ':' in host else host}:{port}{'/' if is_page else '/metrics'}")
        return addresses

    def put(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class. Of pictures only as many go along as people see, and none while others wait."""
        if isinstance(item, FrameRecord):
            now = time.monotonic()
            self._seen[item.source] = now
            if picture is not None:
                if len(self._items) > 8 or now - self._pictured.get(item.source, 0.0) < PICTURE_S:
                    picture = None
                else:
                    self._pictured[item.source] = now
        super().put(item, picture)

    def wanted(self, picture: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """See the base class; the choice was made in :meth:`put`."""
        return picture

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class. A process that has ended is replaced, at most once a second."""
        if self._process is None or self._process.poll() is not None:
            if time.monotonic() - self._started < RESTART_S:
                raise BrokenPipeError("the page's process has ended; it's started again soon")
            self._start()
        assert self._process is not None and self._process.stdin is not None
        for piece in pack(item, picture):
            self._process.stdin.write(piece)
        self._process.stdin.flush()

    def finish(self) -> None:
        """See the base class."""
        self._end()
        self._close_sockets()

    def _start(self) -> None:
        self._end()
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from vitedge.streaming.page.server import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listening.fileno() for listening, _ in self._sockets],
            env=for_children(),
        )
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # room for a whole picture, where the system permits it
            fcntl.fcntl(self._process.stdin, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._process.stdin.write(self._task)
        self._process.stdin.flush()
        self._counting = threading.Thread(target=self._count, args=(self._process,), name="page viewers", daemon=True)
        self._counting.start()

    def _count(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.viewers = int(line)
        if process is self._process:
            self.viewers = 0

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._counting.join(1)
        self.viewers = 0

    def _close_sockets(self) -> None:
        for listening, _ in self._sockets:
            listening.close()


def _require_server() -> None:
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise NotInstalledError.for_extra("serve the page", package, "stream")
