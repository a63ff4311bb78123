"""Sources that can't be opened: the error says why, and what can be read in another way is read."""

from __future__ import annotations

import http.server
import os
import shutil
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vitedge
from tests.benchmarking.nulls import null_artifact
from tests.streaming.connection import connect
from tests.streaming.levels import Ran, run, session
from tests.streaming.publisher import ENCODER, Publisher, encodes, jpeg, level, message
from tests.streaming.test_engine import video
from vitedge.errors import InputError, StreamError, UsageError
from vitedge.runtimes.session import Session
from vitedge.streaming.address import Credentials
from vitedge.streaming.causes import Failure, same_server
from vitedge.streaming.rtsp import redirect_of
from vitedge.streaming.run import refuse_failed
from vitedge.streaming.uri import (
    LONGEST_RTSP_PASSWORD,
    LONGEST_RTSP_PATH,
    LONGEST_URL,
    parse_source,
    parse_sources,
)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Session]:
    with session(tmp_path) as one:
        yield one


def refused(opened: Session, source: str, **settings: object) -> str:
    """The error of a source that can't be read."""
    ran = run(opened, source, retries=0, **settings)  # type: ignore[arg-type]
    assert ran.final is not None and not ran.records
    with pytest.raises((InputError, StreamError)) as error:
        refuse_failed(ran.final, stopped=False)
    return str(error.value)


# --- files


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: b"\n<!DOCTYPE html><html>log in</html>", "web page"),
        (lambda data: data[: len(data) // 2], "without its index (moov)"),
        (lambda data: data[: data.index(b"mdat") + 2], "without its index (moov)"),
        (lambda data: bytes(len(data)), "Invalid data"),
    ],
)
def test_four_causes_have_four_texts(
    damage: Callable[[bytes], bytes], cause: str, opened: Session, tmp_path: Path
) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(damage(video(tmp_path / "whole.mp4").read_bytes()))
    assert cause in refused(opened, str(path))


def test_a_film_whose_every_frame_is_damaged_is_refused(tmp_path: Path) -> None:
    data = bytearray(video(tmp_path / "whole.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    data[start : start + size] = bytes(size)
    (tmp_path / "zeros.mp4").write_bytes(data)
    with pytest.raises(InputError, match=r"all \d+ frames are damaged"):
        list(vitedge.stream(null_artifact(tmp_path / "null"), str(tmp_path / "zeros.mp4")))


NAMES = (
    "10:30:05.mp4",
    "gate:1.mp4",
    "http:cam.mp4",
    "rtsp:film.mp4",
    "concat:a.mp4",
    "file:a.mp4",
    "subfile,,start,0,end,9,,:a.mp4",
    "-rf.mp4",
    "--out=a.mp4",
    "two words\tand a tab.mp4",
    "日本 ünïcode 🎥.mp4",
    "100%.mp4",
    "%03d.mp4",
    "a%2Fb.mp4",
    "[1]*?.mp4",
    "a=b.mp4",
    "test:.mp4",
    "#1&$(touch x);`.mp4",
    os.fsdecode(b"latin-\xff.mp4"),
)


def test_files_of_any_name_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = video(tmp_path / "a.mp4", 5)
    folder = tmp_path / "any"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(whole, folder / name)
    monkeypatch.chdir(folder)
    for name in NAMES:
        source = parse_source(name)
        assert (source.kind, source.targets, source.live) == ("videos", (name,), False)
        assert connect(name).levels == [level(number) for number in range(5)]
    assert len(connect("*.mp4", 1000).levels) == 5 * len(NAMES)
    assert {entry.name for entry in folder.iterdir()} == set(NAMES)


# --- HTTP


class Camera(http.server.BaseHTTPRequestHandler):
    """What some cameras and servers answer, by the path."""

    server: Site

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Authorization", "")))
        path = self.path.partition("?")[0]
        if path in self.server.redirects:
            self._answer(302, "text/plain", b"", Location=self.server.redirects[path])
        elif self.server.password and not self.headers.get("Authorization"):
            self._answer(401, "text/plain", b"", **{"WWW-Authenticate": 'Basic realm="camera"'})
        elif path == "/login":
            self._answer(200, "text/html; charset=utf-8", b"<html><body>Please log in</body></html>")
        elif path == "/nothing":
            self._answer(200, "video/mp4", b"")
        else:
            self._pictures(first_boundary=path != "/esp32")

    def _pictures(self, *, first_boundary: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        if first_boundary:
            self.wfile.write(b"--frame\r\n")
        try:
            for number in range(400):
                picture = jpeg(20 + number // 5 % 6 * 42)
                self.wfile.write(b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture))
                self.wfile.write(picture + b"\r\n--frame\r\n")
                time.sleep(0.02)
        except OSError:
            return

    def _answer(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


class Site(http.server.ThreadingHTTPServer):
    """A web server on loopback; ``address`` has its host and port."""

    daemon_threads = True

    def __init__(self, password: str = "", host: str = "127.0.0.1") -> None:
        self.password, self.redirects = password, dict[str, str]()
        self.requests: list[tuple[str, str]] = []
        super().__init__((host, 0), Camera)
        self.address = f"{host}:{self.server_port}"


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    with serving(server):
        yield server


def several(ran: Ran) -> bool:
    return len(ran.records) >= 12


def test_pictures_without_a_first_boundary_are_read(site: Site, opened: Session) -> None:
    ran = run(opened, f"http://{site.address}/esp32", until=several)
    assert ran.final is not None and ran.final.sources[0].connections == 1 and several(ran)
    assert {(record.width, record.height) for record in ran.records} == {(96, 64)}


@pytest.mark.parametrize(("path", "cause"), [("/login", "web page"), ("/nothing", "it answers with nothing")])
def test_what_answers_with_something_else_is_named(path: str, cause: str, site: Site, opened: Session) -> None:
    assert cause in refused(opened, f"http://{site.address}{path}")


def test_an_address_that_ffmpeg_would_cut_off_is_refused(site: Site) -> None:
    path = "/onvif/s?token="
    longest = f"http://{site.address}{path}".ljust(LONGEST_URL, "A")
    assert len(connect(longest).levels) == 12 and site.requests[0][0] == longest[len(f"http://{site.address}") :]
    with pytest.raises(UsageError, match="cut off") as error:
        parse_source(longest + "A")
    assert "AAAA" not in str(error.value)


def test_of_rtsp_ffmpeg_cuts_off_paths_and_passwords_sooner() -> None:
    path = "/onvif?token=".ljust(LONGEST_RTSP_PATH, "A")
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), UdpAlone)
    server.daemon_threads = True
    server.requests = []  # type: ignore[attr-defined]
    with serving(server), pytest.raises(Failure, match="RTP over TCP"):
        connect(f"rtsp://127.0.0.1:{server.server_address[1]}{path}")
    asked = [request.split()[1] for request in server.requests]  # type: ignore[attr-defined]
    assert asked and all(path in url for url in asked)
    with pytest.raises(UsageError, match=f"{LONGEST_RTSP_PATH + 1:,} characters"):
        parse_source(f"rtsp://cam{path}A")
    secret = "ä".ljust(LONGEST_RTSP_PASSWORD - 9, "P")  # six characters in an address
    assert parse_sources([f"rtsp://you:{secret}@cam/"])
    with pytest.raises(UsageError, match="user name and password have 128 characters") as error:
        parse_sources([f"rtsp://you:{secret}P@cam/"])
    assert "PPP" not in str(error.value)


def test_a_redirect_within_a_server_is_followed_with_the_password(opened: Session) -> None:
    site = Site("hush")
    site.redirects = {"/a": "/b", "/b": f"http://{site.address}/main"}
    with serving(site):
        ran = run(opened, f"http://me:hush@{site.address}/a", until=several)
    assert several(ran)
    assert [path for path, authorization in site.requests if authorization] == ["/main"]


def test_a_redirect_to_another_server_does_not_get_the_password(opened: Session) -> None:
    site, elsewhere = Site("hush"), Site("other", "127.0.0.2")
    site.redirects = {"/a": f"http://{elsewhere.address}/main?key=x"}
    with serving(site), serving(elsewhere):
        error = refused(opened, f"http://me:hush@{site.address}/a")
        assert (
            f"it leads to another host, http://{elsewhere.address}/main: " in error and "--allow-other-hosts" in error
        )
        assert not elsewhere.requests and "hush" not in error
        site.redirects = {"/a": "/a"}
        assert "too many times" in refused(opened, f"http://me:hush@{site.address}/a")
        site.redirects = {"/a": f"http://{elsewhere.address}/main"}
        assert "another host" in refused(opened, f"http://{site.address}/a")  # without a password, too
        assert not elsewhere.requests
        error = refused(opened, f"http://me:hush@{site.address}/a", allow_other_hosts=True)
        assert f"{elsewhere.address.partition(':')[0]}, which asks for a password" in error
        elsewhere.password = ""
        ran = run(opened, f"http://me:hush@{site.address}/a", until=several, allow_other_hosts=True)
        assert several(ran) and all(not authorization for _, authorization in elsewhere.requests)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "rtsp://127.0.0.1/", "mailto:me", "data:,x", "concat:/etc/passwd"]
)
def test_a_redirect_to_another_protocol_is_refused(location: str, site: Site) -> None:
    site.redirects = {"/a": location}
    with pytest.raises(Failure, match="isn't an address of http"):
        connect(f"http://{site.address}/a", allow_other_hosts=True)


@pytest.mark.parametrize(
    ("here", "there", "same"),
    [
        ("http://cam/a", "http://cam/b", True),
        ("http://cam/a", "https://CAM/b", True),
        ("http://cam:8080/a", "https://cam:443/b", True),
        ("https://cam/a", "http://cam/a", False),
        ("http://cam/a", "http://cam:81/a", False),
        ("rtsp://cam/a", "rtsp://cam:554/b", True),
        ("http://cam/a", "https://cam:8443/a", False),
        ("http://cam/a", "http://cam.example/a", False),
    ],
)
def test_which_redirects_stay_at_a_server(here: str, there: str, same: bool) -> None:
    assert same_server(here, there) is same


# --- RTSP


class UdpAlone(socketserver.StreamRequestHandler):
    """An RTSP server that doesn't offer RTP over TCP."""

    SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track1\r\n"

    def handle(self) -> None:
        while request := message(self.rfile):
            self.server.requests.append(request)  # type: ignore[attr-defined]
            number = next(line for line in request.splitlines() if line.lower().startswith("cseq"))
            head, body = f"RTSP/1.0 200 OK\r\n{number}\r\n", ""
            if request.startswith("SETUP"):
                head = f"RTSP/1.0 461 Unsupported Transport\r\n{number}\r\n"
            elif request.startswith("DESCRIBE"):
                head, body = f"{head}Content-Type: application/sdp\r\n", self.SDP
            self.wfile.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())


class Redirecting(socketserver.StreamRequestHandler):
    """An RTSP server that sends its viewers elsewhere, once they have said who they are where it asks for that."""

    server: Redirector

    def handle(self) -> None:
        while request := message(self.rfile):
            lines = request.splitlines()
            self.server.requests.append(request)
            head = "401 Unauthorized\r\nWWW-Authenticate: " + self.server.challenge
            if request.startswith("OPTIONS"):
                head = "200 OK"
            elif not self.server.challenge or any(line.startswith("Authorization") for line in lines):
                head = f"302 Found\r\nLocation: {self.server.location}"
            number = next(line for line in lines if line.lower().startswith("cseq"))
            self.wfile.write(f"RTSP/1.0 {head}\r\n{number}\r\n\r\n".encode())


class Redirector(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, host: str, challenge: str) -> None:
        self.challenge, self.location = challenge, ""
        self.requests: list[str] = []
        super().__init__((host, 0), Redirecting)


@pytest.mark.parametrize("challenge", ["", 'Basic realm="cam"', 'Digest realm="cam", nonce="0123456789abcdef"'])
def test_a_redirect_of_rtsp_does_not_carry_the_password_elsewhere(challenge: str, opened: Session) -> None:
    camera, elsewhere = Redirector("127.0.0.1", challenge), Redirector("127.0.0.2", 'Basic realm="other"')
    with serving(camera), serving(elsewhere):
        camera.location = f"rtsp://127.0.0.2:{elsewhere.server_address[1]}/live?key=x"
        error = refused(opened, f"rtsp://me:hush@127.0.0.1:{camera.server_address[1]}/live")
        assert "it leads to another host, rtsp://127.0.0.2" in error and "key" not in error
        assert camera.requests and not elsewhere.requests
        assert "another host" in refused(opened, f"rtsp://127.0.0.1:{camera.server_address[1]}/live") or challenge
        camera.location = f"rtsp://127.0.0.1:{camera.server_address[1]}/live"
        assert "too many times" in refused(opened, camera.location.replace("//", "//me:hush@"))


@pytest.mark.skipif(not encodes(), reason=f"this PyAV has no {ENCODER}, which this camera encodes with")
def test_a_camera_that_does_not_redirect_is_asked_once_more_and_read(opened: Session) -> None:
    with Publisher("rtsp", password="hush") as camera:
        url = f"rtsp://127.0.0.1:{camera.port}/main"
        assert redirect_of(url, Credentials("camera", "hush"), 5) is None
        assert several(run(opened, url.replace("//", "//camera:hush@"), until=several))


def test_a_camera_that_sends_over_udp_alone_is_told_apart(opened: Session) -> None:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), UdpAlone)
    server.daemon_threads = True
    server.requests = []  # type: ignore[attr-defined]
    with serving(server):
        error = refused(opened, f"rtsp://127.0.0.1:{server.server_address[1]}/live")
    assert "RTP over TCP" in error and "--rtsp-transport udp" in error
