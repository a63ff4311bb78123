"""The page's process over real sockets: what it serves, to whom, and what viewers can't do to the engine."""

from __future__ import annotations

import asyncio
import errno
import http.client
import io
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.streaming.items import event, picture, record, source_status, status, until
from vitedge.errors import ResourceError, UsageError
from vitedge.streaming.page import application
from vitedge.streaming.page.application import Guard, Watching
from vitedge.streaming.page.feed import PART, Feed, pack, unpack
from vitedge.streaming.page.metrics import metrics
from vitedge.streaming.page.server import Serving
from vitedge.streaming.page.sink import PageSink, listen, parse_address, read_token

pytest.importorskip("starlette", reason="the page needs the extra 'stream'")
pytest.importorskip("uvicorn", reason="the page needs the extra 'stream'")

TOKEN = "a-token-of-some-length"
LOOPBACK = ("127.0.0.1", 0)


def port_of(sink: PageSink) -> int:
    return int(sink.addresses[0].split(":")[2].partition("/")[0])


def ask(
    sink: PageSink, path: str, headers: dict[str, str] | None = None, method: str = "GET", body: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(sink), timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.fixture
def page() -> Iterator[PageSink]:
    sink = PageSink(LOOPBACK, None, None, sources=2)
    yield sink
    sink.close(5)


@pytest.fixture
def guarded() -> Iterator[PageSink]:
    sink = PageSink(LOOPBACK, None, TOKEN, sources=1)
    yield sink
    sink.close(5)


class Stream:
    """A viewer: parts as they come."""

    def __init__(self, sink: PageSink) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port_of(sink), timeout=20)
        self.connection.request("GET", "/stream")
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200

    def part(self) -> tuple[bytes, bytes]:
        kind, length = PART.unpack(self.answer.read(PART.size))
        return kind, self.answer.read(length)

    def close(self) -> None:
        self.connection.close()
        self.answer.close()

    def until(self, kind: str) -> Any:
        """The next part of this type of JSON, or ``P``: (source, picture)."""
        while True:
            found, data = self.part()
            if found == b"P" and kind == "P":
                length = int.from_bytes(data[:2], "big")
                return data[2 : 2 + length].decode(), Image.open(io.BytesIO(data[2 + length :]))
            if found == b"J" and (value := json.loads(data))["type"] == kind:
                return value


def test_it_serves_page_health_figures_and_nothing_else(page: PageSink) -> None:
    assert ask(page, "/health")[0] == 503, "nothing was heard of an engine yet"
    page.put(status(source_status("door"), source_status("yard", state="waiting")), None)
    until(lambda: ask(page, "/health")[0] == 200)
    assert ask(page, "/ready")[0] == 503, "one of the two doesn't deliver"
    page.put(status(), None)
    until(lambda: ask(page, "/ready")[0] == 200)
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        code, headers, content = ask(page, path)
        assert code == 200 and headers["content-type"].startswith(kind) and content
        assert "default-src 'none'" in headers["content-security-policy"]
        assert b"//" not in content.replace(b"http://www.w3.org", b"").replace(b"// ", b""), "it names another site"
    shown = json.loads(ask(page, "/status.json")[2])
    assert shown["artifact"] == "pets" and shown["sources"][0]["books"]["captured"] == 100
    assert b'vitedge_frames_total{source="door",outcome="dropped"} 5\n' in ask(page, "/metrics")[2]
    for method, path in (("POST", "/"), ("PUT", "/stream"), ("DELETE", "/status.json"), ("POST", "/metrics")):
        assert ask(page, path, method=method)[0] == 405
    for path in ("/../pyproject.toml", "/page.js/..", "/assets/page.js", "/picture/door", "/picture/..%2f..%2fetc"):
        assert ask(page, path)[0] == 404
    outside = ask(page, "/page.js", {"Host": "127.0.0.1/../../../../../etc/hostname?"})
    assert outside[0] == 421 or outside[2] == ask(page, "/page.js")[2], "a Host header names no file"
    assert "server" not in ask(page, "/")[1]


def test_a_viewer_gets_what_was_and_what_comes(page: PageSink) -> None:
    page.put(record(0), None)
    page.put(event(0), None)
    page.put(status(), None)
    until(lambda: ask(page, "/health")[0] == 200)
    assert page.picture_width == 0, "nobody watches"
    viewer = Stream(page)
    welcome = viewer.until("welcome")
    assert welcome["status"]["artifact"] == "pets"
    assert welcome["latest"]["door"]["label"] == "cat" and len(welcome["history"]["door"]) == 1
    assert [event["kind"] for event in welcome["events"]] == ["enter"]
    until(lambda: page.viewers)
    page.put(record(1, label=None, probability=None), picture(200))
    assert viewer.until("frame")["sequence"] == 1
    name, image = viewer.until("P")
    assert name == "door" and image.size == (64, 36)
    assert max(abs(channel - 200) for channel in image.getpixel((30, 20))) <= 2
    code, headers, jpeg = ask(page, "/picture/door")
    assert code == 200 and headers["content-type"] == "image/jpeg" and jpeg[:2] == b"\xff\xd8"
    viewer.close()
    page.put(status(), None)
    until(lambda: page.viewers == 0)
    assert page.dropped == 0


def test_a_viewer_that_never_reads_holds_nobody_up(page: PageSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitedge.streaming.page.sink.PICTURE_S", 0.0)
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", port_of(page)))
    deaf.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    viewer = Stream(page)
    until(lambda: page.viewers == 2)
    noise = Image.effect_noise((480, 270), 90).convert("RGB")
    import numpy as np

    pixels = np.asarray(noise)
    for number in range(60):  # far more than all buffers on the way to the deaf one hold
        page.put(record(number), pixels)
        until(lambda: len(page._items) < 4)
    while viewer.until("frame")["sequence"] < 59:
        pass
    assert page.dropped == 0
    viewer.close()
    deaf.close()


def test_a_stuck_viewer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "SEND_TIMEOUT_S", 0.05)
    counts: list[int] = []

    async def run() -> None:
        async def receive() -> dict[str, str]:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                await asyncio.sleep(60)

        await asyncio.wait_for(Watching(Feed(), counts.append)({}, receive, send), 20)

    asyncio.run(run())
    assert counts == [1, 0]


@pytest.mark.parametrize("later", range(6))
def test_a_viewer_that_leaves_while_something_is_sent_is_gone(later: int) -> None:
    counts: list[int] = []

    async def run() -> None:
        left = asyncio.Event()

        async def receive() -> dict[str, str]:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            left.set()
            for _ in range(later):  # ends in one of the loop's next rounds, as the leaving comes through
                await asyncio.sleep(0)

        await asyncio.wait_for(Watching(Feed(), counts.append)({}, receive, send), 5)

    asyncio.run(run())
    assert counts == [1, 0]


def test_a_slow_viewer_is_given_the_newest() -> None:
    async def run() -> list[dict[str, Any]]:
        feed, viewer = Feed(), application.Viewer()
        feed.viewers.add(viewer)
        for number in range(500):
            feed.take(record(number), b"jpeg")
            feed.take(event(number), None)
        data, found = await viewer.take(), []
        while data:
            kind, length = PART.unpack(data[: PART.size])
            if kind == b"J":
                found.append(json.loads(data[PART.size : PART.size + length]))
            data = data[PART.size + length :]
        return found

    parts = asyncio.run(run())
    assert [part["sequence"] for part in parts if part["type"] == "frame"] == [499]
    assert [part["sequence"] for part in parts if part["type"] == "event"] == list(range(450, 500))


def test_its_process_is_replaced_when_it_dies(page: PageSink) -> None:
    page.put(status(), None)
    until(lambda: ask(page, "/health")[0] == 200)
    process = page._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    def served() -> bool:
        page.put(status(), None)
        try:
            return ask(page, "/health")[0] == 200
        except OSError:
            return False

    until(served)
    assert page._process is not process


# --- connections


def half_open(sink: PageSink, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port_of(sink)), timeout=60)
    connection.sendall(sent)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side hangs up, before the socket's time limit."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_half_open_connections_are_closed_and_harm_no_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitedge.streaming.page.sink.IDLE_S", 2.0)
    page = PageSink(LOOPBACK, None, None, sources=1)
    page.put(status(), None)
    until(lambda: ask(page, "/health")[0] == 200)
    viewer = Stream(page)
    viewer.until("welcome")
    flood = [half_open(page, b"GET / HTTP/1.1\r\nHost: local" if number % 2 else b"") for number in range(500)]
    for number in range(20):
        page.put(record(number), None)
        assert viewer.until("frame")["sequence"] == number
    assert ask(page, "/health")[0] == 200, "a new visitor has no place"
    later = Stream(page)
    assert later.until("welcome")["latest"]["door"]["sequence"] == 19
    assert all(is_closed(connection) for connection in flood)
    page.put(record(20), None)
    assert viewer.until("frame")["sequence"] == later.until("frame")["sequence"] == 20
    for connection in flood:
        connection.close()
    viewer.close()
    later.close()
    page.close(5)


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_header_that_trickles_in_is_not_waited_for(before: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitedge.streaming.page.sink.IDLE_S", 0.5)
    page = PageSink(LOOPBACK, None, None, sources=1)
    slow = half_open(page, before + b"GET / HTTP/1.1\r\nX: ")
    slow.settimeout(0.05)

    def ended() -> bool:
        try:
            slow.sendall(b"x")
            return bool(slow.recv(1 << 16) == b"")
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    until(ended)
    slow.close()
    page.close(5)


def test_more_connections_than_places_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitedge.streaming.page.sink.MOST_CONNECTIONS", 3)
    page = PageSink(LOOPBACK, None, None, sources=1)
    page.put(status(), None)
    viewers = [Stream(page) for _ in range(2)]
    until(lambda: page.viewers == 2)
    code, _, body = ask(page, "/health")
    assert code == 503 and b"Service Unavailable" in body
    page.put(record(7), None)
    assert [viewer.until("frame")["sequence"] for viewer in viewers] == [7, 7]
    viewers.pop().close()
    until(lambda: ask(page, "/health")[0] == 200)
    viewers.pop().close()
    page.close(5)


def test_half_a_form_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "LOGIN_S", 0.05)
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            if not sent:
                sent.append({})
                return {"type": "http.request", "body": b"token=", "more_body": True}
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        app = application.application(Feed(), TOKEN, page=True, count=lambda _: None)
        scope = {"type": "http", "method": "POST", "path": "/login", "headers": [], "query_string": b""}
        await asyncio.wait_for(app(scope, receive, send), 20)

    asyncio.run(run())
    assert sent[1]["status"] == 408


# --- the token


def test_without_the_token_nothing_is_shown(guarded: PageSink) -> None:
    guarded.put(status(), None)
    until(lambda: ask(guarded, "/health")[0] == 200)  # one word, for probes
    for path in ("/stream", "/metrics", "/status.json", "/picture/door"):
        code, headers, content = ask(guarded, path)
        assert code == 401 and headers["www-authenticate"] == "Bearer" and b"pets" not in content
        for header in ("Bearer wrong", "Bearer", "Basic " + TOKEN, TOKEN, f"Bearer {TOKEN}x"):
            assert ask(guarded, path, {"Authorization": header})[0] == 401
    code, _, content = ask(guarded, "/")
    assert code == 401 and b"Token" in content
    assert ask(guarded, "/status.json", {"Authorization": f"Bearer {TOKEN}"})[0] == 200
    assert ask(guarded, f"/status.json?token={TOKEN}")[0] == 401, "a token in an address ends up in histories"


def test_the_form_lets_a_browser_in(guarded: PageSink) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    code, headers, _ = ask(guarded, "/login", form, "POST", "token=wrong")
    assert code == 401 and "set-cookie" not in headers
    code, headers, _ = ask(guarded, "/login", form, "POST", f"token={TOKEN}")
    assert code == 303 and headers["location"] == "/"
    cookie = headers["set-cookie"]
    assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower() and TOKEN not in cookie
    assert ask(guarded, "/", {"Cookie": cookie.partition(";")[0]})[0] == 200
    assert ask(guarded, "/", {"Cookie": "vitedge=0000"})[0] == 401
    assert ask(guarded, "/login", form, "POST", "x" * 5000)[0] == 413


def test_the_token_is_in_no_argument_and_no_text(guarded: PageSink, capfd: pytest.CaptureFixture[str]) -> None:
    assert guarded._process is not None
    assert TOKEN not in Path(f"/proc/{guarded._process.pid}/cmdline").read_text()
    assert TOKEN not in Path(f"/proc/{guarded._process.pid}/environ").read_text()
    assert TOKEN not in repr(Serving(listeners=(), token=TOKEN, idle_s=1.0, most_connections=1))
    ask(guarded, "/status.json", {"Authorization": f"Bearer {TOKEN}"})
    ask(guarded, "/nowhere", {"Authorization": f"Bearer {TOKEN}"})
    guarded.close(5)
    assert capfd.readouterr() == ("", "")


def test_another_sites_name_does_not_lead_here(page: PageSink) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        assert ask(page, "/", {"Host": host})[0] == 421
    for host in ("localhost:8042", "127.0.0.1", "[::1]:8042", "127.8.9.10:1"):
        assert ask(page, "/", {"Host": host})[0] == 200


def test_names_of_any_kind_are_compared_without_an_exception() -> None:
    assert not Guard(TOKEN).admits("Bearer ümläut", "çookie")
    assert Guard(None).admits("", "")


# --- addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8042", ("127.0.0.1", 8042)),
        ("8042", ("127.0.0.1", 8042)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:8042", ("::1", 8042)),
        ("127.9.9.9:80", ("127.9.9.9", 80)),
    ],
)
def test_loopback_needs_no_token(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text, None, "--page") == expected


@pytest.mark.parametrize("text", ["0.0.0.0:8042", ":8042", "10.0.0.7:80", "[::]:8042", "box.local:8042"])
def test_every_other_address_needs_one(text: str) -> None:
    with pytest.raises(UsageError, match="there is no token"):
        parse_address(text, None, "--page")
    assert parse_address(text, TOKEN, "--page")[1] in (80, 8042)


@pytest.mark.parametrize("text", ["", "host", "127.0.0.1:", "127.0.0.1:99999", "::1:80", "http://x:80", "a b:1/"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text, TOKEN if " " not in text else None, "--page")


def test_a_taken_port_is_said(page: PageSink) -> None:
    with pytest.raises(ResourceError, match=os.strerror(errno.EADDRINUSE)):
        listen("127.0.0.1", port_of(page), "--page")


def test_where_a_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_TOKEN", TOKEN)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "short").write_text("short")
    assert read_token("env:PAGE_TOKEN") == read_token(str(tmp_path / "token")) == TOKEN
    assert read_token(None) is None
    for where in ("env:NOT_SET_ANYWHERE", str(tmp_path / "short"), str(tmp_path / "none"), TOKEN):
        with pytest.raises(UsageError) as refused:
            read_token(where)
        assert "short" not in str(refused.value).splitlines()[1]


# --- formats


def test_items_survive_the_pipe() -> None:
    items = [(record(3), picture(90)), (event(1), None), (status(), None), (record(4), None)]
    data = b"".join(bytes(piece) for item, image in items for piece in pack(item, image))
    found = list(unpack(io.BytesIO(data)))
    assert [item for item, _ in found] == [item for item, _ in items]
    assert [jpeg is not None for _, jpeg in found] == [True, False, False, False]
    assert len(list(unpack(io.BytesIO(data[:-5])))) == 3, "half an item is none"


def test_prometheus_reads_the_metrics() -> None:
    shown = status(source_status('a"b\\c\nd'), source_status("yard", state="waiting", age=None))
    families = {family.name: family for family in text_string_to_metric_families(metrics(shown))}
    assert families["vitedge_frames"].type == "counter" and families["vitedge_silent_seconds"].type == "gauge"
    assert all(family.documentation for family in families.values())
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["vitedge_frames_total", ("outcome", "dropped"), ("source", 'a"b\\c\nd')] == 5
    assert samples["vitedge_source_state", ("source", "yard"), ("state", "waiting")] == 1
    assert samples["vitedge_inference_seconds", ("quantile", "0.99")] == 0.02
    assert len(samples) == sum(len(family.samples) for family in families.values()), "a sample stands there twice"


def test_metrics_escape_names_and_leave_out_what_is_unknown() -> None:
    text = metrics(status(source_status('a"b\\c\nd', label="<b>")))
    assert 'source="a\\"b\\\\c\\nd"' in text and text.endswith("\n")
    assert "vitedge_power_watts" not in text and "vitedge_temperature_celsius 61\n" in text
    assert 'vitedge_frame_age_seconds{source="a\\"b\\\\c\\nd",quantile="0.99"} 0.02\n' in text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_pictures_are_asked_for_when_they_are_due_and_watched(page: PageSink, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("vitedge.streaming.page.sink.time.monotonic", lambda: clock[0])
    page.put(record(0), None)
    assert page.picture_width == 0
    page.viewers = 1
    assert page.picture_width == 480
    page.put(record(1), picture())
    assert page.picture_width == 0, "the next one isn't due"
    page.put(record(1, "yard"), None)
    assert page.picture_width == 480, "the other source's is"
    page.put(record(2, "yard"), picture())
    clock[0] += 0.1
    assert page.picture_width == 480
    clock[0] += 5
    assert page.picture_width == 0, "no source delivers"
    monkeypatch.undo()
