"""The HTTP service of ``examples/service``, run by uvicorn on a real socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vitedge
from tests.conftest import ROOT
from vitedge.formats.artifact import Artifact

pytest.importorskip("fastapi", reason="fastapi isn't installed")
pytest.importorskip("uvicorn", reason="the extra stream isn't installed")


@pytest.fixture(scope="module")
def artifact(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    pytest.importorskip("onnxruntime", reason="the extra onnxruntime isn't installed")
    return vitedge.export(small_model, "onnxruntime", "fp32", tmp_path_factory.mktemp("service") / "artifact")


@pytest.fixture(scope="module")
def port(artifact: Artifact) -> Iterator[int]:
    """A running service's port; it ends by SIGTERM, with the exit code of uvicorn's clean end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = int(listening.getsockname()[1])
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "examples/service"), "app:app"]
        command += ["--fd", str(listening.fileno()), "--log-level", "warning"]
        environment = {**os.environ, "ARTIFACT": str(artifact.path), "THREADS": "1", "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, pass_fds=[listening.fileno()]) as service:
            yield number  # connections wait in the listening socket until the service accepts them
            service.terminate()
            assert service.wait(60) in (0, -15)


def ask(port: int, method: str, path: str, body: bytes | Iterator[bytes] | None = None) -> tuple[int, Any, Any]:
    """(status, JSON, headers) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers
    finally:
        connection.close()


def test_many_callers_get_their_own_answers(port: int, artifact: Artifact, small_data: Path) -> None:
    pictures = sorted(small_data.rglob("*.png"))[::5]
    found: dict[Path, Any] = {}

    def call(picture: Path) -> None:
        found[picture] = ask(port, "POST", "/classify?top_k=3", picture.read_bytes())[:2]

    callers = [threading.Thread(target=call, args=(picture,)) for picture in pictures]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    with vitedge.open(artifact, threads=1) as session:
        for picture in pictures:
            status, answers = found[picture]
            expected = session.classify(picture, top_k=3)
            assert status == 200 and [answer["label"] for answer in answers] == [one.label for one in expected]
            assert [answer["probability"] for answer in answers] == pytest.approx(
                [one.probability for one in expected], abs=1e-5
            )


def test_what_is_no_picture_is_refused_with_a_reason(port: int) -> None:
    status, answer, _ = ask(port, "POST", "/classify", b"%PDF-1.7 and so on")
    assert status == 422 and "PDF" in answer["detail"]
    assert ask(port, "POST", "/classify", b"")[0] == 422
    assert ask(port, "POST", "/classify?top_k=0", b"x")[0] == 422


def test_a_body_that_is_too_large_is_refused(port: int) -> None:
    status, answer, _ = ask(port, "POST", "/classify", bytes(20_000_001))
    assert status == 413 and "20,000,000" in answer["detail"]


def test_health_tells_what_runs(port: int) -> None:
    status, answer, _ = ask(port, "GET", "/health")
    assert status == 200 and answer["runtime"] == "onnxruntime" and answer["threads"] == 1


def test_calls_that_would_wait_too_long_are_refused(port: int, small_data: Path) -> None:
    """32 callers that begin a picture and don't end it hold all places; when they end it, there is room again."""
    picture = (small_data / "bee" / "3.png").read_bytes()
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    callers = [socket.create_connection(("127.0.0.1", port)) for _ in range(32)]
    try:
        for caller in callers:
            caller.sendall(head + picture[:10])
        while (refused := ask(port, "POST", "/classify", picture))[0] != 503:
            assert refused[0] == 200
        assert refused[1]["detail"] == "32 pictures wait" and refused[2]["Retry-After"] == "1"
        for caller in callers:
            caller.sendall(picture[10:])
        assert {caller.recv(12) for caller in callers} == {b"HTTP/1.1 200"}
        assert ask(port, "POST", "/classify", picture)[0] == 200
    finally:
        for caller in callers:
            caller.close()
