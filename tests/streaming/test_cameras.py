"""Cameras that people own, each as a small real server: snapshots, digest, RTSP over UDP, HLS."""

from __future__ import annotations

import contextlib
import http.server
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.streaming.challenges import Gate
from tests.streaming.connection import connect
from tests.streaming.levels import level_of, run, session
from tests.streaming.publisher import ENCODER, RATE, SIZE, Publisher, encodes, grey, jpeg, level, message
from tests.streaming.test_causes import serving
from tests.streaming.test_engine import video
from tests.streaming.test_live import enough
from vitedge.runtimes.session import Session
from vitedge.streaming.causes import Failure

SCHEMES = ["basic", "digest", "digest-MD5", "digest-SHA-256"]
encoding = pytest.mark.skipif(not encodes(), reason=f"this PyAV has no {ENCODER}, which these cameras encode with")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Session]:
    with session(tmp_path) as one:
        yield one


# --- snapshots


class SnapshotCamera(http.server.BaseHTTPRequestHandler):
    """Answers the n-th request that it admits with grey n, over one connection for as long as the visitor likes."""

    server: SnapshotServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        with self.server.answering:
            self._answer_one()

    def _answer_one(self) -> None:
        server = self.server
        if not server.gate.admits(f"{self.requestline}\r\n{self.headers}"):
            self._say(401, b"", challenge=server.gate.challenge)
            return
        number, server.asked = server.asked, server.asked + 1
        fault = server.faults.get(number, "")
        data = jpeg(grey(number))
        if fault == "busy":
            self._say(503, b"try later")
        elif fault == "hangup":
            self.close_connection = True
        elif fault == "cut":
            self._say(200, data[:200], length=len(data))
            self.close_connection = True
        elif fault == "damaged":
            self._say(200, data[:200] + bytes(len(data) - 200))
        elif fault == "page":
            self._say(200, b"<html>log in</html>")
        else:
            if fault == "slow":
                time.sleep(0.2)
            self._say(200, data)

    def _say(self, status: int, body: bytes, *, length: int = 0, challenge: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "image/jpeg" if status == 200 else "text/plain")
        self.send_header("Content-Length", str(length or len(body)))
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


class OneAtATime:
    """A context that counts how many were in it at once."""

    def __init__(self) -> None:
        self._lock, self._inside, self.most = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1


class SnapshotServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, scheme: str = "basic", password: str = "") -> None:
        self.gate, self.faults = Gate(scheme, "camera", password), dict[int, str]()
        self.connections = self.asked = 0
        self.answering = OneAtATime()
        super().__init__(("127.0.0.1", 0), SnapshotCamera)

    def url(self, before: str = "", scheme: str = "http+snapshot") -> str:
        return f"{scheme}://{before}127.0.0.1:{self.server_port}/snap.jpg?q=1,2"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_snapshots_are_polled_over_one_connection(scheme: str) -> None:
    server = SnapshotServer(scheme, "hush")
    with serving(server):
        seen = connect(server.url("camera:hush@"), poll=100)
    assert seen.levels == [level(number) for number in range(12)] and (seen.codec, seen.finite) == ("mjpeg", False)
    times = [at for at in seen.times if at is not None]
    assert len(times) == 12 and times == sorted(times) and times[0] == 0
    assert server.connections == 1 and server.answering.most == 1


def test_a_snapshot_that_fails_is_asked_for_again() -> None:
    server = SnapshotServer()
    server.faults = {3: "busy", 5: "hangup", 6: "slow", 7: "cut", 9: "damaged", 11: "busy", 12: "slow"}
    with serving(server):
        seen = connect(server.url(), poll=100)
    faults = {"damaged": None}
    expected = [faults.get(server.faults.get(number, ""), level(number)) for number in (0, 1, 2, 4, 6, 8, 9, 10, 12)]
    assert seen.levels[:9] == expected and seen.levels.count(None) == 1
    assert server.answering.most == 1


def test_snapshots_that_stay_away_are_a_loss() -> None:
    server = SnapshotServer()
    server.faults = dict.fromkeys(range(3, 10000), "busy")
    with serving(server), pytest.raises(Failure, match="it answers 503 Service Unavailable"):
        connect(server.url(), poll=50, stall_timeout=0.3)
    assert server.asked > 5


def test_a_stream_of_snapshots(opened: Session) -> None:
    """Through the engine, and more seldom than the stall timeout."""
    server = SnapshotServer("digest-MD5", "hush")
    with serving(server):
        ran = run(opened, server.url("camera:hush@"), until=enough(1, 3), poll=0.9, stall_timeout=0.1)  # type: ignore[arg-type]
    assert [level_of(record) for record in ran.records] == [level(number) for number in range(len(ran.records))]
    assert [event.kind for event in ran.events("connected", "lost", "gap")] == ["connected"] and ran.counts.complete
    assert "hush" not in repr(ran.items) + repr(ran.final)


def test_what_is_no_snapshot_is_named() -> None:
    server = SnapshotServer("digest-SHA-256", "hush")
    with serving(server):
        with pytest.raises(Failure, match="it wants a name and a password") as error:
            connect(server.url("camera:wr0ng@"))
        assert "wr0ng" not in str(error.value)
        with pytest.raises(Failure, match=r"one picture: write http\+snapshot:// in"):
            connect(server.url("camera:hush@", "http"))
        server.faults[server.asked] = "page"
        with pytest.raises(Failure, match="web page"):
            connect(server.url("camera:hush@"))
    with pytest.raises(Failure, match="Connection refused"):
        connect(server.url())


# --- MJPEG as cameras spell it


class Spelt(socketserver.StreamRequestHandler):
    """Pictures with whatever comes before, between and behind them."""

    def handle(self) -> None:
        message(self.rfile)
        kind, begin, head, end = self.server.spelling  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\n%b" % (kind, begin))
            for number in range(100):
                data = jpeg(grey(number))
                self.wfile.write(head.replace(b"N", b"%d" % len(data)) + data + end)
                time.sleep(0.01)


TYPE, LENGTH = b"Content-Type: image/jpeg\r\n", b"Content-Length: N\r\n"
MULTIPART = b"multipart/x-mixed-replace; boundary="


@pytest.mark.parametrize(
    "spelling",
    [
        (MULTIPART + b"frame", b"", b"--frame\r\n" + TYPE + LENGTH + b"\r\n", b"\r\n"),
        (MULTIPART + b"frame", b"\r\n", b"\r\n--frame\r\n" + TYPE + b"\r\n", b"\r\n"),
        (MULTIPART + b"--frame", b"", b"--frame\r\n" + TYPE + LENGTH + b"\r\n", b"\r\n"),
        (MULTIPART + b"frame", b"", b"--another\r\n" + TYPE + LENGTH + b"\r\n", b"\r\n"),
        (MULTIPART + b"frame", b"", b"--frame\n" + TYPE.lower() + LENGTH.lower() + b"X-Timestamp: 1.5\r\n\r\n", b"\n"),
        (MULTIPART + b"frame", b"", b"--frame\r\n" + LENGTH + b"\r\n", b"\r\n"),
        (MULTIPART + b"frame", b"", TYPE + LENGTH + b"\r\n", b"\r\n--frame\r\n"),
        (MULTIPART + b"frame", b"", TYPE + b"\r\n", b"\r\n--frame\r\n"),
        (b"image/jpeg", b"", b"", b""),
        (b"video/x-motion-jpeg", b"", b"", b""),
    ],
    ids=["usual", "no length", "dashes", "another", "lines", "no type", "esp32", "esp32 no length", "bare", "motion"],
)
def test_mjpeg_in_every_spelling(spelling: tuple[bytes, ...]) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Spelt) as server:
        server.daemon_threads = True
        server.spelling = spelling  # type: ignore[attr-defined]
        with serving(server):
            seen = connect(f"http://127.0.0.1:{server.server_address[1]}/stream", 8)
    assert seen.levels == [level(number) for number in range(8)] and seen.codec == "mjpeg"


# --- digest, and RTSP over UDP


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        ("mjpeg", "digest-SHA-256"),
        ("mjpeg", "digest"),
        pytest.param("rtsp", "digest-MD5", marks=encoding),
        pytest.param("rtsp", "digest", marks=encoding),
    ],
)
def test_a_camera_that_asks_for_a_digest(kind: str, scheme: str) -> None:
    url = {"mjpeg": "http", "rtsp": "rtsp"}[kind]
    with Publisher(kind, password="hush:/@#", scheme=scheme) as camera:
        seen = connect(f"{url}://camera:hush%3A%2F%40%23@127.0.0.1:{camera.port}/a?b=c")
    assert seen.levels == [level(number) for number in range(12)]


@encoding
def test_rtsp_over_udp() -> None:
    with Publisher("rtsp", transport="udp", password="hush") as camera:
        url = f"rtsp://camera:hush@127.0.0.1:{camera.port}/main"
        with pytest.raises(Failure, match="RTP over TCP: try --rtsp-transport udp") as error:
            connect(url)
        assert "hush" not in str(error.value)
        assert connect(url, rtsp_transport="udp").levels == [level(number) for number in range(12)]
    with (
        Publisher("rtsp", transport="udp", fault="stall", after=0) as camera,
        pytest.raises(Failure, match="silent for 1 s: does a firewall drop packets over UDP"),
    ):
        connect(f"rtsp://127.0.0.1:{camera.port}/main", rtsp_transport="udp", stall_timeout=1.0)
    with Publisher("rtsp") as camera, pytest.raises(Failure, match="RTP over UDP: try --rtsp-transport tcp"):
        connect(f"rtsp://127.0.0.1:{camera.port}/main", rtsp_transport="udp")


# --- HLS


class HlsCamera(http.server.SimpleHTTPRequestHandler):
    """A live playlist that has one more segment every time it's asked for."""

    server: HlsServer

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(self.path)
        if not server.gate.admits(f"{self.requestline}\r\n{self.headers}"):
            self._say(401, b"", **{"WWW-Authenticate": server.gate.challenge})
        elif self.path == "/live":
            server.newest = min(server.newest + 1, len(server.segments))
            first = max(0, server.newest - 4)
            lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
            for number in range(first, server.newest):
                lines += ["#EXTINF:0.400000,", f"{server.before}{number}.ts"]
            self._say(200, "\n".join([*lines, ""]).encode(), **{"Content-Type": "application/vnd.apple.mpegurl"})
        elif self.path in server.redirects:
            self._say(302, b"", Location=server.redirects[self.path])
        elif self.path in server.missing:
            self._say(404, b"")
        else:
            self._say(200, server.segments[int(re.sub(r"\D", "", self.path))], **{"Content-Type": "video/mp2t"})

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


class HlsServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, segments: list[bytes], host: str = "127.0.0.1", password: str = "") -> None:
        self.segments, self.newest, self.before = segments, 3, "/"
        self.redirects, self.missing, self.requests = dict[str, str](), set[str](), list[str]()
        self.gate = Gate("digest-MD5", "camera", password)
        super().__init__((host, 0), HlsCamera)
        self.url = f"http://{host}:{self.server_port}"


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Of ten frames each."""
    import av

    folder = tmp_path_factory.mktemp("hls")
    with av.open(str(folder / "a.m3u8"), "w", format="hls", options={"hls_time": "0.4", "hls_list_size": "0"}) as out:
        stream = out.add_stream(ENCODER, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10", "keyint_min": "10"}
        for number in range(100):
            picture = np.full((SIZE[1], SIZE[0], 3), grey(number), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return [(folder / f"a{number}.ts").read_bytes() for number in range(10)]


@encoding
def test_a_live_playlist_behind_a_digest(segments: list[bytes]) -> None:
    server = HlsServer(segments, password="hush")
    server.redirects = {"/2.ts": "/moved/2.ts"}
    with serving(server):
        seen = connect(f"{server.url}/live".replace("//", "//camera:hush@"), 40)
    assert seen.levels == [level(number) for number in range(10, 50)] and not seen.finite
    assert server.requests.count("/live") >= 4 and "/moved/2.ts" in server.requests


@encoding
def test_a_segment_that_is_missing_is_passed_over(segments: list[bytes]) -> None:
    server = HlsServer(segments)
    server.missing = {"/3.ts"}
    with serving(server):
        seen = connect(f"{server.url}/live", 25)
    assert seen.levels == [level(number) for number in (*range(10, 30), *range(40, 45))]


@encoding
@pytest.mark.parametrize("by", ["redirect", "playlist"])
def test_segments_of_another_host_need_a_permission(by: str, segments: list[bytes]) -> None:
    server, elsewhere = HlsServer(segments), HlsServer(segments, "127.0.0.2")
    if by == "redirect":
        server.redirects = {f"/{number}.ts": f"{elsewhere.url}/{number}.ts" for number in range(10)}
    else:
        server.before = f"{elsewhere.url}/"
    with serving(server), serving(elsewhere):
        with pytest.raises(Failure, match=r"it leads to another host, http://127\.0\.0\.2"):
            connect(f"{server.url}/live")
        assert not elsewhere.requests
        server.newest = 3
        assert connect(f"{server.url}/live", 5, allow_other_hosts=True).levels == [level(n) for n in range(10, 15)]


def test_a_film_over_http_is_read_by_parts(tmp_path: Path) -> None:
    """Its index is at its end."""
    film, asked = video(tmp_path / "film.mp4").read_bytes(), list[str]()
    index = film.index(b"moov") - 4
    assert film.index(b"mdat") < index
    film = film[:index] + (1 << 20).to_bytes(4, "big") + b"free" + bytes((1 << 20) - 8) + film[index:]

    class Parts(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            part = self.headers.get("Range", "")
            asked.append(part)
            begin = int(part.removeprefix("bytes=").removesuffix("-") or 0)
            self.send_response(206 if part else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(film) - begin))
            if part:
                self.send_header("Content-Range", f"bytes {begin}-{len(film) - 1}/{len(film)}")
            self.end_headers()
            self.wfile.write(film[begin:])

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Parts)
    with serving(server):
        seen = connect(f"http://127.0.0.1:{server.server_port}/film.mp4", 100)
    assert seen.levels == [level(number) for number in range(30)] and seen.finite
    assert asked[0] == "" and len(asked) >= 2
