"""Passwords and tokens: whatever they're made of and wherever they come from, nothing shows them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.benchmarking.nulls import null_artifact
from tests.streaming.items import until
from tests.streaming.publisher import Publisher
from vitedge.errors import UsageError, VitedgeError
from vitedge.streaming.address import shown, split_url
from vitedge.streaming.mqtt import MqttSink
from vitedge.streaming.uri import parse_source
from vitedge.streaming.webhook import WebhookSink

ROOT = Path(__file__).resolve().parents[2]
MARK = "Hunter2"
SIGNS = st.text(st.sampled_from("0123456789/?#@:[]%&=.;, az§"), max_size=8)
PASSWORDS = st.tuples(SIGNS, SIGNS).map(lambda parts: f"{parts[0]}{MARK}{parts[1]}")


@settings(max_examples=300, deadline=None)
@given(password=PASSWORDS, scheme=st.sampled_from(["rtsp", "http", "rtps", "rtsp:/x", ""]))
@example(password=f"2024/{MARK}", scheme="rtsp")
@example(password=f"12?{MARK}", scheme="rtsp")
@example(password=f"554#{MARK}", scheme="rtsp")
@example(password=f"p@ss/{MARK}", scheme="rtsp")
@example(password=f"/{MARK}", scheme="")
def test_a_source_with_any_password_is_understood_or_refused_without_it(password: str, scheme: str) -> None:
    url = f"{scheme}://admin:{password}@127.0.0.1:9/live" if scheme else f"admin:{password}@127.0.0.1:9/live"
    error = ""
    try:
        source = parse_source(url)
    except VitedgeError as refused:
        error = str(refused)
    else:
        assert source.credentials is not None and MARK in source.credentials.password
        assert MARK not in f"{source} {source.uri} {source.name} {source.targets}"
    assert MARK not in error + shown(url)


@settings(max_examples=100, deadline=None)
@given(password=PASSWORDS.filter(lambda text: not re.search(r"\s", text)))
def test_no_error_shows_a_password_in_a_url(password: str) -> None:
    """Someone may type it where a folder, a file or another address belongs."""
    url = f"rtsp://admin:{password}@127.0.0.1:9/live"
    for text in (url, str(Path(url))):
        assert MARK not in str(VitedgeError(f"open the artifact {text}", f"{text}: not there", f"name one: {text}"))


@pytest.mark.parametrize("url", ["http://cdn/@2x.mp4", "http://cam/a@b", "rtsp://[fe80::1]/a@b", "rtsp://@:1234"])
def test_an_at_sign_that_follows_no_colon_belongs_to_the_path(url: str) -> None:
    address = split_url(url, "open it")
    assert address.credentials is None and address.url in (url, url.replace("@", "", 1))


@pytest.mark.parametrize("secret", [f"12/{MARK}", f"12?{MARK}", f"12#{MARK}"])
def test_addresses_of_outputs_are_split_alike(secret: str) -> None:
    for sink, url in ((WebhookSink, f"http://me:{secret}@h/x"), (MqttSink, f"mqtt://me:{secret}@h/t")):
        with pytest.raises(UsageError, match="%2F") as refused:
            sink(url)
        assert MARK not in str(refused.value)


#: What children get besides an environment without credentials, and the files whose children get another one.
MORE = {"fleet/wheels.py": "{**for_children(), **own}"}  # pip's own variables
OTHERS = {
    "fleet/agent.py",  # on a board, in the environment of its login
    "project/steps.py",  # vitedge's own verbs, as the user's shell would start them
}


def test_every_child_process_is_started_without_secrets() -> None:
    """In the source: each call that starts a process passes an environment on."""
    starts = 0
    for path in sorted((ROOT / "vitedge").rglob("*.py")):
        name = path.relative_to(ROOT / "vitedge").as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and called in ("subprocess.Popen", "subprocess.run") and name not in OTHERS:
                starts += 1
                environment = [ast.unparse(word.value) for word in node.keywords if word.arg == "env"]
                assert environment == [MORE.get(name, "for_children()")], f"{path}:{node.lineno}"
    assert starts >= 8


def test_secrets_reach_no_output_and_no_child(tmp_path: Path) -> None:
    artifact = null_artifact(tmp_path / "null").path
    password, token = f"2024/{MARK}?#", f"{MARK}-of-some-length"
    outputs = [tmp_path / name for name in ("records.jsonl", "events.jsonl", "table.csv")]
    with Publisher("mjpeg", password=password) as camera:
        source = f"http://127.0.0.1:{camera.port}/main"
        secrets = {
            "CAMERA": f"camera:{password}",
            "TOKEN": token,
            "BROKER": f"mqtt://me:{MARK}@127.0.0.1:1/t",
            "HOOK": f"http://me:{MARK}@127.0.0.1:1/{MARK}",
            "MQTT_PASSWORD": MARK,  # nobody told vitedge of these two
            "https_proxy": f"http://me:{MARK}@127.0.0.1:1",
        }
        names = ("--json", "--events", "--csv")
        files = [word for name, path in zip(names, outputs, strict=True) for word in (name, str(path))]
        away = f"away=rtsp://me:{MARK}@127.0.0.1:1/live"
        arguments = ["stream", str(artifact), source, away, "--page", "127.0.0.1:0", *files]
        arguments += ["--credentials", "env:CAMERA", "--token", "env:TOKEN", "--mqtt", "env:BROKER"]
        arguments += ["--webhook", "env:HOOK"]
        command = [sys.executable, "-m", "vitedge", *arguments]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | secrets
        ) as process:
            assert process.stderr is not None
            served = process.stderr.readline()
            assert served.startswith("serving "), served
            page = served.split()[-1]
            request = {name: urllib.request.Request(page + name) for name in ("status.json", "metrics", "")}
            for each in request.values():
                each.add_header("Authorization", f"Bearer {token}")
            until(lambda: outputs[0].stat().st_size)
            until(lambda: b'"connections":1' in urllib.request.urlopen(request["status.json"], timeout=20).read())
            texts = [urllib.request.urlopen(each, timeout=20).read().decode() for each in request.values()]
            children = descendants(process.pid)
            texts.append(Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace"))
            for child in children:
                texts += [Path(f"/proc/{child}/{name}").read_text(errors="replace") for name in ("cmdline", "environ")]
            process.terminate()
            texts += process.communicate(timeout=60)
    assert process.returncode == 0 and sum("vitedge.streaming" in text for text in texts) >= 2, texts
    texts += [served, *(path.read_text() for path in outputs)]
    for text in texts:
        assert MARK not in text


def descendants(process: int) -> list[int]:
    """Ids of a process's children, and of theirs."""
    found: list[int] = []
    for listing in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, listing.read_text().split()):
            found += [child, *descendants(child)]
    return found
