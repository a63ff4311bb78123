"""``vitedge stream`` with its page, as a shell runs it: several sources, figures for anyone, a password for nobody."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import vitedge as package
from tests.cli.command import fails
from tests.streaming.items import until

for needed in ("av", "starlette", "uvicorn"):
    pytest.importorskip(needed, reason="a stream with its page needs the extra 'stream'")

PASSWORD = "hunter2-and-more"


@pytest.fixture(scope="module")
def artifact(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "artifact"
    package.export(small_model, target="onnxruntime", precision="fp32", out=out)
    return out


def test_the_page_tells_everything_but_passwords(artifact: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    command = [sys.executable, "-m", "vitedge", "stream", str(artifact), "front=test://?rate=20", "test://?rate=10"]
    command += [f"yard=rtsp://me:{PASSWORD}@127.0.0.1:{closed}/main", "--page", "127.0.0.1:0"]
    command += ["--metrics", "127.0.0.1:0", "--video", str(tmp_path / "seen.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        said = [running.stderr.readline(), running.stderr.readline()]
        try:
            page, figures = (re.fullmatch(r"serving (http://127\.0\.0\.1:\d+/.*)\n", line)[1] for line in said)  # type: ignore[index]

            def ask(url: str) -> str:
                with urllib.request.urlopen(url, timeout=60) as answer:
                    return str(answer.read().decode())

            def status() -> dict[str, dict[str, object]]:
                found = json.loads(ask(f"{page}status.json"))
                return {source["name"]: source for source in found["sources"]} if found else {}

            until(lambda: all((status().get(name) or {}).get("label") for name in ("front", "test")))
            until(lambda: status()["yard"]["reason"])
            texts = [ask(f"{page}status.json"), ask(figures), ask(page), ask(f"{page}health")]
            with urllib.request.urlopen(f"{page}stream", timeout=60) as stream:
                texts.append(stream.read(20_000).decode("latin-1"))
        finally:
            running.send_signal(signal.SIGTERM)
            out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert 'vitedge_frames_total{source="front",outcome="classified"}' in texts[1]
    assert all(PASSWORD not in text for text in (*texts, out, err, *said))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seen-front.mp4", "seen-test.mp4"]


def test_an_address_for_others_without_a_token_is_refused_at_once(artifact: Path, tmp_path: Path) -> None:
    for option in ("--page", "--metrics"):
        _, reason, hint = fails(2, "stream", artifact, "test://", option, "0.0.0.0:0")
        assert "there is no token" in reason and "--token" in hint
    (tmp_path / "token").write_text("short")
    fails(2, "stream", artifact, "test://", "--page", "0.0.0.0:0", "--token", tmp_path / "token")
    fails(2, "stream", artifact, "test://", "--page", "elsewhere", "--duration", "1")


def test_a_taken_port_is_refused(artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, reason, _ = fails(5, "stream", artifact, "test://", "--page", f"127.0.0.1:{port}")
    assert reason == os.strerror(errno.EADDRINUSE)
