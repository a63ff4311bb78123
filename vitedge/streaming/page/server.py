"""The page's process reads items from its standard input and serves them; viewers can't affect anything beyond it.

Run as ``python -c "… serve()"`` with its task as one line of JSON on standard input, then items as
:func:`vitedge.streaming.page.feed.pack` writes them. On standard output it reports how many viewers there are, a
line each time that changes. It ends when standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import msgspec

from vitedge.core.schema import Record
from vitedge.streaming.page.feed import Feed, unpack

NICE = 5  # classifying goes first


class Listener(Record):
    """A bound socket, and the application that is served there."""

    descriptor: int
    page: bool  # False: metrics and health alone


class Serving(Record):
    """The task of the page's process. It holds the token: never print it."""

    listeners: tuple[Listener, ...]
    token: str | None
    idle_s: float  # that a connection may be open without a request
    most_connections: int  # at each listener

    def __repr__(self) -> str:
        return "Serving(…)"


def serve() -> None:
    """Run the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the engine handles Ctrl-C; this process ends with its input
    os.nice(NICE)
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Serving)
    asyncio.run(_serve(task))


async def _serve(task: Serving) -> None:
    import uvicorn

    from vitedge.streaming.page.application import application
    from vitedge.streaming.page.connections import LimitedConnection

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

    LimitedConnection.idle_s, LimitedConnection.most = task.idle_s, task.most_connections
    servers = []
    for listener in task.listeners:
        app = application(feed, task.token, page=listener.page, count=_report_viewers)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            ws="none",
            http=LimitedConnection,
            limit_concurrency=task.most_connections,
        )
        servers.append(Server(config).serve([socket.socket(fileno=listener.descriptor)]))
    threading.Thread(target=read, daemon=True).start()
    running = asyncio.gather(*servers)
    await ended.wait()
    await asyncio.sleep(0.2)  # the last status goes out
    os._exit(0 if not running.done() else 1)


def _report_viewers(count: int) -> None:
    os.write(1, f"{count}\n".encode())
