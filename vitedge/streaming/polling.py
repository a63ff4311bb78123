"""A camera's snapshots: request a JPEG picture from one address at a rate. In the reader's process only."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing

from vitedge.streaming.causes import Failure, Unavailable, cause_in_answer
from vitedge.streaming.http_client import Client, task_client
from vitedge.streaming.task import Task

MOST_BYTES = 64 << 20
_JPEG = b"\xff\xd8"


def poll(task: Task) -> Generator[bytes, None, None]:
    """Yield pictures as the server sends them; one request at a time, so a slow server isn't asked more often.

    A server that fails is asked again at the same rate, until it's silent for too long.

    Raises:
        Failure: it can't be reached at first, is silent for too long, or doesn't send JPEG pictures.
    """
    url, interval_s = task.targets[0], 1 / task.poll_hz
    due, last = time.monotonic(), float("-inf")  # of the last picture
    with closing(task_client(task, url)) as client:
        while True:
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                yield _picture(client, url)
                last = time.monotonic()
            except Unavailable:
                if time.monotonic() - last + interval_s > task.stall_s:
                    raise
            due = max(due + interval_s, time.monotonic())


def _picture(client: Client, url: str) -> bytes:
    """Read one snapshot.

    Raises:
        Failure: it isn't a JPEG picture.
        Unavailable: it breaks off, or as :meth:`~vitedge.streaming.http_client.Client.get`.
    """
    answer = client.get(url)
    try:
        length, data = answer.length, bytearray()
        while piece := answer.read(1 << 16):
            data += piece
            if len(data) > MOST_BYTES:
                raise Failure(f"its snapshot has more than {MOST_BYTES >> 20} MiB: is it a stream (http://)?")
    finally:
        answer.close()
    if length is not None and len(data) < length:
        raise Unavailable("its snapshot is cut off")
    if not data.startswith(_JPEG):
        raise Failure(
            cause_in_answer(answer.content_type, bytes(data[:4096])) or "it doesn't answer with a JPEG picture"
        )
    return bytes(data)
