"""Webhook, MQTT, video and systemd over real sockets and files: what arrives, what is dropped, what is never shown."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.streaming.broker import Broker
from tests.streaming.items import event, picture, record, status, until
from vitedge.errors import UsageError
from vitedge.streaming import mqtt, webhook
from vitedge.streaming.delivery import delivering
from vitedge.streaming.mqtt import MqttSink
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.systemd import SystemdSink
from vitedge.streaming.video import VideoSink
from vitedge.streaming.webhook import WebhookSink

SECRET = "s3cret-w0rd"


# --- webhook


class Receiver(ThreadingHTTPServer):
    """Answers POSTs with the codes of a script, then with 200; 0 hangs up, and -1 keeps silent."""

    def __init__(self, *script: int, port: int = 0) -> None:
        self.script = list(script)
        self.bodies: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        super().__init__(("127.0.0.1", port), _Answer)
        self.daemon_threads = True
        self._running = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._running.start()

    def url(self, path: str = "/hook", user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_address[1]}{path}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._running.join(5)


class _Answer(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        code = self.server.script.pop(0) if self.server.script else 200
        if code == 0:
            self.close_connection = True
            return
        if code == 200:
            self.server.bodies.append(json.loads(body))
            self.server.headers.append(dict(self.headers))
            self.server.paths.append(self.path)
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(webhook, "LONGEST_PAUSE_S", 0.05)


@pytest.mark.usefixtures("quick")
def test_events_arrive_in_order_though_the_receiver_stumbles() -> None:
    receiver = Receiver(503, 200, 0, 429, 200, 500)
    sink = WebhookSink(receiver.url("/hook?key=x", f"me:{SECRET}%21@"))
    for number in range(5):
        sink.put(event(number), None)
        sink.put(record(number), None)  # not its kind, and not counted
    until(lambda: sink.written == 5)
    sink.close(5)
    receiver.close()
    assert [body["sequence"] for body in receiver.bodies] == list(range(5))
    assert receiver.bodies[0]["type"] == "event" and receiver.bodies[0]["label"] == "cat"
    assert receiver.paths[0] == "/hook?key=x"
    assert receiver.headers[0]["Authorization"].startswith("Basic ")
    assert sink.dropped == 0 and sink.error is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("code", [400, 401, 404, 302])
def test_what_the_receiver_refuses_is_dropped_at_once(code: int) -> None:
    receiver = Receiver(code)
    sink = WebhookSink(receiver.url(f"/{SECRET}"))
    sink.put(event(0), None)
    sink.put(event(1), None)
    until(lambda: sink.written == 1)
    sink.close(5)
    receiver.close()
    assert sink.dropped == 1 and sink.error == f"answered {code}"
    assert [body["sequence"] for body in receiver.bodies] == [1]


@pytest.mark.usefixtures("quick")
def test_a_receiver_that_is_away_costs_events_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "WAITING", 10)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    sink = WebhookSink(f"http://user:{SECRET}@127.0.0.1:{port}/{SECRET}?token={SECRET}")
    begin = time.monotonic()
    for number in range(1000):
        sink.put(event(number), None)
    assert time.monotonic() - begin < 5, "put waited"
    until(lambda: sink.error)
    sink.close(5)
    assert sink.written == 0 and sink.dropped == 1000
    assert SECRET not in f"{sink.name}{sink.error}"


@pytest.mark.parametrize("url", ["ftp://h/{}", "https:///{}", "h/{}", "http://[::1{}", "http://h/a {}", "http://h:{}"])
def test_what_is_no_webhook_is_refused_without_being_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", url.format(SECRET))
    with pytest.raises(UsageError) as refused:
        WebhookSink("env:HOOK")
    assert SECRET not in str(refused.value)


def test_an_address_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    monkeypatch.setenv("HOOK", receiver.url())
    sink = WebhookSink("env:HOOK")
    sink.put(event(0), None)
    until(lambda: sink.written == 1)
    sink.close(5)
    receiver.close()
    with pytest.raises(UsageError, match="isn't set"):
        WebhookSink("env:NOT_SET_ANYWHERE")


# --- MQTT


@pytest.fixture
def broker() -> Iterator[Broker]:
    pytest.importorskip("paho.mqtt", reason="MQTT needs the extra 'stream'")
    running = Broker()
    yield running
    running.close()


def test_records_and_events_have_topics_of_their_own(broker: Broker) -> None:
    sink = MqttSink(f"mqtt://me:{SECRET}@127.0.0.1:{broker.port}/plant/line%201", "records")
    until(lambda: any(message.topic.endswith("/online") for message in broker.published))
    sink.put(record(7, "host:554/main"), None)
    sink.put(event(7, "enter", "host:554/main"), None)
    sink.put(event(8, "exit", "host:554/main"), None)
    sink.put(status(), None)  # not delivered, and not counted
    until(lambda: sink.written == 3)
    sink.close(5)
    messages = {message.topic: message for message in broker.published}
    base = "plant/line 1"
    assert json.loads(messages[f"{base}/host:554-main/frame"].payload)["sequence"] == 7
    assert messages[f"{base}/host:554-main/event"].qos == 1
    labels = [message.payload for message in broker.published if message.topic.endswith("/label")]
    assert labels[-1] == b"" and messages[f"{base}/host:554-main/label"].retained
    online = [message.payload for message in broker.published if message.topic == f"{base}/online"]
    assert online == [b"1", b"0"]
    assert sink.dropped == 0
    assert SECRET.encode() in broker.connects[0] and f"{base}/online".encode() in broker.connects[0]
    assert SECRET not in f"{sink.name}{sink.error}"


def test_while_the_broker_is_away_events_wait_and_records_are_dropped(broker: Broker) -> None:
    sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}", "records")
    sink.put(event(0), None)
    until(lambda: sink.written == 1)
    broker.close()
    until(lambda: not sink._client.is_connected())
    for number in range(20):
        sink.put(record(number), None)
    sink.put(event(1), None)
    assert sink.dropped == 20
    again = Broker(broker.port)
    until(lambda: sink.written == 2)
    sink.put(record(99), None)
    until(lambda: sink.written == 3)
    sink.close(5)
    again.close()
    events = [json.loads(message.payload)["sequence"] for message in again.published if "/event" in message.topic]
    assert events == [1] and again.published[0].topic == "vitedge/online"


def test_an_event_on_its_way_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the broker is away: the time that it has for taking a message begins when it's back."""
    pytest.importorskip("paho.mqtt", reason="MQTT needs the extra 'stream'")
    monkeypatch.setattr(mqtt, "PATIENCE_S", 4.0)
    silent = Broker(acknowledges=False)
    sink = MqttSink(f"mqtt://127.0.0.1:{silent.port}/x", sources=("door",))
    sink.put(event(0), None)
    until(lambda: any(message.topic == "x/door/event" for message in silent.published))
    silent.close()
    until(lambda: not sink._client.is_connected())
    time.sleep(mqtt.PATIENCE_S + 0.2)
    again = Broker(silent.port)
    until(lambda: sink.written == 1)
    sink.close(5)
    again.close()
    assert sink.dropped == 0 and [message.payload for message in again.published if message.topic == "x/door/label"][-1]
    assert [message.topic for message in again.published].count("x/door/event") == 1


def test_a_broker_that_refuses_is_named_without_the_password() -> None:
    pytest.importorskip("paho.mqtt", reason="MQTT needs the extra 'stream'")
    refusing = Broker(refuse=5)
    sink = MqttSink(f"mqtt://me:{SECRET}@127.0.0.1:{refusing.port}/x")
    until(lambda: sink.error)
    sink.put(event(0), None)
    sink.close(3)
    refusing.close()
    assert sink.dropped == 1 and sink.written == 0
    assert SECRET not in f"{sink.name}{sink.error}"


def test_a_broker_that_acknowledges_nothing_does_not_hold_the_end_up() -> None:
    pytest.importorskip("paho.mqtt", reason="MQTT needs the extra 'stream'")
    silent = Broker(acknowledges=False)
    sink = MqttSink(f"mqtt://127.0.0.1:{silent.port}/x")
    for number in range(5):
        sink.put(event(number), None)
    until(lambda: silent.published)
    begin = time.monotonic()
    sink.close(0.5)
    assert time.monotonic() - begin < 5 and sink.dropped == 5
    silent.close()


@pytest.mark.parametrize("url", ["http://h/x", "mqtt:///x", "mqtt://h/a/#", "mqtt://h/+/b", "mqtt://[::1"])
def test_what_is_no_broker_is_refused(url: str) -> None:
    pytest.importorskip("paho.mqtt", reason="MQTT needs the extra 'stream'")
    with pytest.raises(UsageError):
        MqttSink(url)


# --- video


def test_a_video_has_every_frame_at_its_time(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="videos need the extra 'stream'")
    sink = VideoSink(tmp_path / "out.mp4", ("door",))
    times = [0.0, 0.033, 0.066, 0.5, 0.533]
    for number, at in enumerate(times):
        sink.put(record(number, presentation_s=at), picture(60, 321, 181))
    sink.put(record(5, presentation_s=0.6), picture(60, 200, 300))  # another size is fitted in
    sink.put(record(6), None)
    sink.close(20)
    assert (sink.written, sink.dropped, sink.error) == (6, 0, None)
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [round(frame.time, 3) for frame in frames] == [*times, 0.6]
    assert (frames[0].width, frames[0].height) == (320, 180)
    corner = frames[0].to_ndarray(format="rgb24")[120:, :120]
    assert corner.max() > 180 and corner.min() < 40, "no label is drawn"


def test_each_source_has_its_video_and_none_is_overwritten(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos need the extra 'stream'")
    sink = VideoSink(tmp_path / "out.mkv", ("door", "../yard"))
    for name in ("door", "../yard"):
        sink.put(record(0, name), picture())
    sink.close(20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-..-yard.mkv", "out-door.mkv"]
    with pytest.raises(UsageError, match="already exists"):
        VideoSink(tmp_path / "out.mkv", ("door", "x"))
    with pytest.raises(UsageError, match="suffix"):
        VideoSink(tmp_path / "out.txt", ("door",))


# --- systemd, and all together


def test_systemd_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(10)
        sink = SystemdSink(str(path))
        sink.put(status(), None)
        assert manager.recv(1000) == b"READY=1\nSTATUS=door connected 27.0/s"
        sink.put(status(), None)
        assert manager.recv(1000).startswith(b"WATCHDOG=1\n")
        sink.close(5)
        assert manager.recv(1000) == b"STOPPING=1"


def test_a_wish_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"mine")
    before = {thread.name for thread in threading.enumerate()}
    wish = StreamSettings(webhook="http://127.0.0.1:9/x", video=str(tmp_path / "out.mp4"), headless=True)
    with pytest.raises(UsageError):
        delivering(wish, ("door",))
    assert {thread.name for thread in threading.enumerate()} == before
    assert (tmp_path / "out.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize("wish", [{"page": "0.0.0.0:0"}, {"metrics": "0.0.0.0:0", "headless": True}])
def test_an_open_address_without_a_token_is_refused(wish: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="token"):
        delivering(StreamSettings(**wish), ("door",))  # type: ignore[arg-type]
