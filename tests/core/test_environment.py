"""What a child process sees of its parent's environment and arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitedge.core.environment import for_children, secret
from vitedge.core.isolation import run_isolated

HIDDEN = {
    "MQTT_PASSWORD": "hush",
    "CAM_PW": "hush",
    "HF_TOKEN": "hush",
    "aws_secret_access_key": "hush",
    "OPENAI_API_KEY": "hush",
    "GATE_CREDENTIALS": "hush",
    "PASSWORD": "hush",
    "https_proxy": "http://me:hush@proxy:3128",
    "INDEX": "https://hush@packages/simple",
    "COPY": "gate:hush-hush",
}
SHOWN = {
    "SSH_AUTH_SOCK": "/run/agent",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/run/token",
    "TOKENIZERS_PARALLELISM": "false",
    "XAUTHORITY": "/home/me/.Xauthority",
    "KEYBOARD": "de",
    "http_proxy": "http://proxy:3128/@",
    "PWD": "/srv",
    "COMPASS": "north",
}


def environment() -> dict[str, str]:
    return dict(os.environ)


def test_children_see_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (HIDDEN | SHOWN | {"ANY_NAME": "gate:hush-hush"}).items():
        monkeypatch.setenv(name, value)
    assert secret("ANY_NAME", "read it", "set it") == "gate:hush-hush"
    seen = run_isolated(environment)
    for variables in (seen, for_children()):
        assert "hush" not in str(variables)
        assert {name: variables.get(name) for name in SHOWN} == SHOWN
    assert seen["PATH"] == os.environ["PATH"]


def test_passwords_in_arguments_are_hidden() -> None:
    code = "from vitedge.core.arguments import hide_passwords; hide_passwords(); print(); input()"
    arguments = ["gate=rtsp://me:2024/hush@cam/live", "--mqtt", "mqtt://me:hü%sh@broker/t", "rtsp://cam/a", "a@b"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.communicate(b"\n")
    assert process.returncode == 0
    words = [word.decode() for word in shown.split(b"\0")[3:-1]]
    assert words == [
        f"gate=rtsp://{'*' * 12}@cam/live", "--mqtt", f"mqtt://{'*' * 9}@broker/t", "rtsp://cam/a", "a@b"
    ]  # fmt: skip
