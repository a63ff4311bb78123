"""What fifty viewers of the page cost a live source of 30 frames a second; one of them never reads.

::

    python benchmarks/stream_viewers.py ARTIFACT [--viewers 50] [--seconds 20] [--rounds 3] [--threads N]

One stream runs throughout; viewers, in a process of their own on the same machine, come and go in turns of so many
seconds, of which the first two don't count. It prints the rate of classification and the percentiles of age of both,
and exits with 1 if the rate is more than 5 % lower or the 99th percentile more than 10 ms higher with viewers.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SETTLE_S = 2.0
REQUEST = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"


def watch(port: int, viewers: int) -> None:
    """Be viewers until standard input closes; say how many bytes came. The first takes nothing.

    They stand for other machines, whose work isn't this one's: they run at the lowest priority.
    """
    os.nice(19)
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(viewers)]
    for connection in connections:
        connection.sendall(REQUEST)
    received = [0] * viewers

    def read(index: int) -> None:
        while piece := connections[index].recv(1 << 16):
            received[index] += len(piece)

    for index in range(1, viewers):
        threading.Thread(target=read, args=(index,), daemon=True).start()
    sys.stdin.read()
    print(sum(received), flush=True)
    os._exit(0)


def measure(artifact: str, viewers: int, seconds: float, rounds: int, threads: int | None) -> dict[str, Any]:
    """Rate and age with and without viewers."""
    import vitedge
    from vitedge.streaming.records import percentiles

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    source, page = "test://?rate=30&size=1280x720", f"127.0.0.1:{port}"
    stream = vitedge.stream(artifact, source, policy="latest", headless=False, page=page, threads=threads, quiet=True)
    ages: dict[bool, list[float]] = {False: [], True: []}
    measured = {False: 0.0, True: 0.0}
    received, crowd = 0, None
    for record in stream:  # the first frame: everything runs
        del record
        break
    for turn in range(2 * rounds):
        watched = turn % 2 == 1
        if watched:
            command = [sys.executable, __file__, "--be-viewers", str(port), "--viewers", str(viewers), "-"]
            crowd = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        begin = time.monotonic() + SETTLE_S
        for record in stream:
            now = time.monotonic()
            if now >= begin:
                ages[watched].append(record.age_ms)
            if now >= begin + seconds:
                measured[watched] += now - begin
                break
        if crowd is not None:
            received += int(crowd.communicate()[0])
            crowd = None
    stream.close()
    found = {}
    for watched in (False, True):
        spread = percentiles(ages[watched])
        assert spread is not None
        found["viewers" if watched else "none"] = {
            "rate_hz": len(ages[watched]) / measured[watched],
            "age_p50_ms": spread.p50_ms,
            "age_p99_ms": spread.p99_ms,
            "frames": spread.count,
        }
    return {**found, "viewers_mb_s": received / 1e6 / (measured[True] + rounds * SETTLE_S)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--viewers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--be-viewers", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be_viewers:
        watch(given.be_viewers, given.viewers)
    found = measure(given.artifact, given.viewers, given.seconds, given.rounds, given.threads)
    ratio = found["viewers"]["rate_hz"] / found["none"]["rate_hz"]
    later = found["viewers"]["age_p99_ms"] - found["none"]["age_p99_ms"]
    met = ratio >= 0.95 and later <= 10
    print(json.dumps({**found, "rate_ratio": ratio, "age_p99_later_ms": later, "met": met}, indent=2))
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
