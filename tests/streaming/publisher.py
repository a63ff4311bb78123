"""Cameras for tests: MJPEG over HTTP, MPEG-TS over TCP and H.264 over RTSP, with faults, each in its own process.

``python -m tests.streaming.publisher '{"kind": "rtsp", "fault": "hangup", "after": 20}'`` prints its port, and serves
until its standard input closes. Frame n of a connection is one grey whose level tells n: see :func:`level`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import itertools
import json
import re
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from tests.streaming.challenges import Gate

ROOT = Path(__file__).resolve().parent.parent.parent
RATE, HOLD, LEVELS, SIZE = 25, 5, 6, (96, 64)
FRAMES = 150
ENCODER = "libx264"


def level(number: int) -> int:
    """Which of six greys frame ``number`` shows."""
    return number // HOLD % LEVELS


def grey(number: int) -> int:
    """Its value."""
    return 20 + 42 * level(number)


def encodes() -> bool:
    """Whether this PyAV has the encoder of the transport and RTSP streams; its builds differ."""
    import av

    return ENCODER in av.codecs_available


class Behaviour(NamedTuple):
    """What a publisher does."""

    kind: str  # "mjpeg", "mpegts", "mpegts-client", "rtsp", "snapshot"
    fault: str = ""  # "hangup", "stall", "corrupt", "loss", "size", "401"
    after: int = 20  # frames until the fault
    times: int = 1  # connections that have it
    port: int = 0  # mpegts-client: where to connect to
    user: str = "camera"
    password: str = ""
    scheme: str = "basic"  # how it asks for them: see tests.streaming.challenges
    transport: str = "tcp"  # rtsp: how it sends packets; "udp" or "tcp"
    frames: int = FRAMES  # until the end of a connection
    rate: float = RATE  # frames a second; 0: as fast as they're taken
    bits_s: int = 0  # mpegts: stuffed with null packets to so many bits a second; 0: as it comes


class Publisher:
    """A publisher's process, a context manager."""

    def __init__(self, kind: str, **behaviour: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.streaming.publisher", json.dumps({"kind": kind, **behaviour})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()


# --- pictures


@functools.cache
def h264(width: int = SIZE[0], height: int = SIZE[1], first: int = 0) -> list[list[bytes]]:
    """NAL units of every frame; a key frame with its parameter sets every ten."""
    import av
    import numpy as np

    encoder = av.CodecContext.create(ENCODER, "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.framerate, encoder.time_base = RATE, Fraction(1, RATE)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10", "keyint_min": "10", "crf": "12"}
    packets = []
    for number in range(first, FRAMES):
        frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), grey(number), np.uint8), format="rgb24")
        frame.pts = number
        packets += encoder.encode(frame.reformat(format="yuv420p"))
    packets += encoder.encode(None)
    return [[nal for nal in re.split(rb"\x00\x00\x00?\x01", bytes(packet)) if nal] for packet in packets]


@functools.lru_cache(64)
def jpeg(value: int, width: int = SIZE[0], height: int = SIZE[1]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (width, height), (value,) * 3).save(file, "JPEG")
    return file.getvalue()


def film(path: str) -> None:
    """A file of ten seconds."""
    import av
    import numpy as np

    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(250):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), grey(number), np.uint8))))
        container.mux(stream.encode(None))


class Faulty:
    """One connection's frames at its rate, with its fault."""

    connections = itertools.count()

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.fault = behaviour.fault if next(Faulty.connections) < behaviour.times else ""

    def numbers(self) -> Iterator[int]:
        begin = time.monotonic()
        for number in range(self.behaviour.frames):
            if self.behaviour.rate:
                time.sleep(max(0.0, begin + number / self.behaviour.rate - time.monotonic()))
            if number == self.behaviour.after and self.fault == "hangup":
                return
            if number == self.behaviour.after and self.fault == "stall":
                time.sleep(3600)
            if self.fault == "loss" and self.behaviour.after <= number < self.behaviour.after + 2 * RATE:
                continue
            yield number

    def size(self, number: int) -> tuple[int, int]:
        return (64, 48) if self.fault == "size" and number >= self.behaviour.after else SIZE

    def damaged(self, number: int) -> bool:
        return self.fault == "corrupt" and self.behaviour.after <= number < self.behaviour.after + 10


# --- protocols


def message(file: Iterable[bytes]) -> str:
    """The next request up to its empty line; "" at the end of the connection, which reads as empty lines for ever."""
    return b"".join(itertools.takewhile(bytes.strip, file)).decode()


class Mjpeg(socketserver.StreamRequestHandler):
    """``multipart/x-mixed-replace``, as cameras speak it."""

    def handle(self) -> None:
        behaviour: Behaviour = self.server.behaviour  # type: ignore[attr-defined]
        head = message(self.rfile)
        gate = Gate(behaviour.scheme, behaviour.user, behaviour.password)
        if not gate.admits(head):
            self.wfile.write(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: %b\r\n"
                             b"Content-Length: 0\r\nConnection: close\r\n\r\n" % gate.challenge.encode())  # fmt: skip
            return
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        faulty = Faulty(behaviour)
        with contextlib.suppress(OSError):
            for number in faulty.numbers():
                data = jpeg(grey(number), *faulty.size(number))
                if faulty.damaged(number):
                    data = data[:200] + bytes(len(data) - 200)
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n"
                                 % (len(data), data))  # fmt: skip


class Snapshot(socketserver.StreamRequestHandler):
    """The picture of the moment, as a JPEG; it has no faults."""

    begin = time.monotonic()

    def handle(self) -> None:
        message(self.rfile)
        data = jpeg(grey(int((time.monotonic() - self.begin) * RATE)))
        head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n"
        self.wfile.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)


class MpegTs(socketserver.BaseRequestHandler):
    """A transport stream, to whoever connects."""

    def handle(self) -> None:
        publish_ts(self.request, self.server.behaviour)  # type: ignore[attr-defined]


def publish_ts(connection: socket.socket, behaviour: Behaviour) -> None:
    import av

    faulty = Faulty(behaviour)

    class File(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            connection.sendall(bytes(data))
            return len(data)

    file = File()
    with contextlib.suppress(OSError):
        stuffing = {"muxrate": str(behaviour.bits_s)} if behaviour.bits_s else {}
        container = av.open(file, "w", format="mpegts", options={"flush_packets": "1", **stuffing})
        stream = container.add_stream(ENCODER, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10"}
        import numpy as np

        for number in faulty.numbers():
            frame = av.VideoFrame.from_ndarray(np.full((SIZE[1], SIZE[0], 3), grey(number), np.uint8), format="rgb24")
            frame.pts = number
            for packet in stream.encode(frame.reformat(format="yuv420p")):
                container.mux(_damaged(packet) if faulty.damaged(number) else packet)
        connection.shutdown(socket.SHUT_RDWR)


def _damaged(packet: Any) -> Any:
    """The packet with its bytes inverted behind the first slice's header."""
    import av

    data = bytes(packet)
    start = max(data.rfind(b"\0\0\1\x65"), data.rfind(b"\0\0\1\x41"), data.rfind(b"\0\0\1\x61")) + 8
    broken = av.Packet(data[:start] + bytes(byte ^ 0x5A for byte in data[start:]))
    broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
    broken.is_keyframe, broken.stream = packet.is_keyframe, packet.stream
    return broken


class Rtsp(socketserver.StreamRequestHandler):
    """Just as much of RFC 2326 as a player needs, and RFC 6184's packets."""

    _datagrams: socket.socket | None = None

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while self._answer():
                pass

    def _answer(self) -> bool:
        behaviour: Behaviour = self.server.behaviour  # type: ignore[attr-defined]
        request = message(self.rfile)
        if not request:
            return False
        method = request.split()[0]
        number = re.search(r"(?im)^cseq:\s*(\d+)", request)
        assert number
        gate = Gate(behaviour.scheme, behaviour.user, behaviour.password)
        if not gate.admits(request):
            self._say("401 Unauthorized", number[1], f"WWW-Authenticate: {gate.challenge}")
        elif method == "OPTIONS":
            self._say("200 OK", number[1], "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        elif method == "DESCRIBE":
            sets = [nal for nal in h264()[0] if nal[0] & 31 in (7, 8)]
            sprop = ",".join(base64.b64encode(nal).decode() for nal in sets)
            sdp = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                f"a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;sprop-parameter-sets={sprop}\r\n"
                "a=control:track\r\n"
            )
            self._say("200 OK", number[1], "Content-Type: application/sdp", body=sdp)
        elif method == "SETUP" and ("RTP/AVP/TCP" in request) != (behaviour.transport == "tcp"):
            self._say("461 Unsupported Transport", number[1])
        elif method == "SETUP" and behaviour.transport == "udp":
            ports = re.search(r"client_port=(\d+)-(\d+)", request)
            assert ports
            self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._datagrams.bind(("127.0.0.1", 0))
            self._datagrams.connect(("127.0.0.1", int(ports[1])))
            port = self._datagrams.getsockname()[1]
            transport = f"Transport: RTP/AVP;unicast;{ports[0]};server_port={port}-{port + 1}"
            self._say("200 OK", number[1], "Session: 1", transport)
        elif method == "SETUP":
            self._say("200 OK", number[1], "Session: 1", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        elif method == "PLAY":
            self._say("200 OK", number[1], "Session: 1", "RTP-Info: url=track;seq=0;rtptime=90000", "Range: npt=0-")
            self._play(Faulty(behaviour))
            return False
        else:
            self._say("200 OK", number[1], "Session: 1")
        return True

    def _say(self, status: str, number: str, *headers: str, body: str = "") -> None:
        lines = [f"RTSP/1.0 {status}", f"CSeq: {number}", *headers, f"Content-Length: {len(body)}", "", body]
        self.wfile.write("\r\n".join(lines).encode())

    def _play(self, faulty: Faulty) -> None:
        sequence = itertools.count()
        small = h264(64, 48, faulty.behaviour.after) if faulty.fault == "size" else []
        for number in faulty.numbers():
            normal, later = faulty.size(number) == SIZE, number - faulty.behaviour.after
            units = h264()[number % FRAMES] if normal else small[later % len(small)]
            for place, unit in enumerate(units):
                if faulty.damaged(number) and unit[0] & 31 in (1, 5):
                    unit = unit[:6] + bytes(byte ^ 0x5A for byte in unit[6:])
                for packet in _fragments(unit, last=place == len(units) - 1):
                    marker, payload = packet
                    head = struct.pack(">BBHII", 0x80, 96 | marker << 7, next(sequence) & 0xFFFF,
                                       90000 + number * 90000 // RATE & 0xFFFFFFFF, 1)  # fmt: skip
                    data = head + payload
                    if self._datagrams is not None:
                        self._datagrams.send(data)
                    else:
                        self.wfile.write(b"$\0" + struct.pack(">H", len(data)) + data)


def _fragments(unit: bytes, *, last: bool, most: int = 1200) -> Iterator[tuple[bool, bytes]]:
    """(marker, payload) of a NAL unit's RTP packets: itself, or FU-A fragments."""
    if len(unit) <= most:
        yield last, unit
        return
    kind, rest = unit[0], unit[1:]
    for start in range(0, len(rest), most):
        end = start + most >= len(rest)
        flags = (start == 0) << 7 | end << 6 | kind & 31
        yield last and end, bytes([kind & 0xE0 | 28, flags]) + rest[start : start + most]


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    behaviour = Behaviour(**json.loads(sys.argv[1]))
    if behaviour.kind == "mpegts-client":
        sys.stdout.write(f"{behaviour.port}\n")
        sys.stdout.flush()
        threading.Thread(target=_knock, args=[behaviour], daemon=True).start()
        sys.stdin.read()
        return
    handler = {"mjpeg": Mjpeg, "mpegts": MpegTs, "rtsp": Rtsp, "snapshot": Snapshot}[behaviour.kind]
    if behaviour.kind in ("rtsp", "mpegts"):
        h264()  # what an encoder's first time costs isn't a silence of the first connection
    with Server(("127.0.0.1", behaviour.port), handler) as server:
        server.behaviour = behaviour  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        sys.stdin.read()


def _knock(behaviour: Behaviour) -> None:
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", behaviour.port), 1) as connection:
            publish_ts(connection, behaviour)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
