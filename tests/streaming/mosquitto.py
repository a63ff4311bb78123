"""A real MQTT broker in a process of its own, and what it keeps for those who come later."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from tests.streaming.items import until

PROGRAM = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class Mosquitto:
    """A context manager; it keeps what is retained over a restart.

    Args:
        folder: for its configuration, its log and what is retained.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\n"
            f"persistence true\npersistence_location {folder}/\nautosave_on_changes true\nautosave_interval 1\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Begin to listen."""
        assert PROGRAM is not None
        with (self._folder / "mosquitto.log").open("ab") as log:
            command = [PROGRAM, "-c", str(self._folder / "mosquitto.conf")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._listens)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def _listens(self) -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", self.port)) == 0

    def retained(self, *topics: str) -> dict[str, bytes]:
        """What it keeps, by topic; empty payloads aren't kept.

        Args:
            topics: filters.
        """
        from paho.mqtt import client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        messages: dict[str, bytes] = {}
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.on_message = lambda _client, _data, message: messages.update({message.topic: message.payload})
        client.on_connect = lambda *_: client.subscribe([(topic, 1) for topic in (*topics, "end")]) and None
        client.on_subscribe = lambda *_: client.publish("end", b"1", 1) and None  # comes after what was retained
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        until(lambda: "end" in messages)
        client.disconnect()
        client.loop_stop()
        return {topic: payload for topic, payload in messages.items() if topic != "end"}
