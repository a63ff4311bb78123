"""``vitedge stream`` as a shell runs it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarking.nulls import null_artifact
from tests.cli.command import fails, vitedge

QUICK = "test://?pattern=steps&live=0&frames=12&hold=1"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return null_artifact(tmp_path / "artifact").path


def test_json_lines_alone_on_stdout(artifact: Path) -> None:
    done = vitedge("stream", artifact, QUICK, "--headless", "--json", "-", "--top-k", 2)
    assert done.code == 0, done.err
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [record["sequence"] for record in records] == list(range(12))
    assert [record["label"] for record in records[:3]] == ["ant", "bee", "cat"]
    assert all(len(record["raw"]) == 2 and record["type"] == "frame" for record in records)
    assert "12 captured = 12 classified + 0 skipped + 0 dropped + 0 corrupt" in done.err


def test_words_for_a_person(artifact: Path) -> None:
    done = vitedge("stream", artifact, "gate=" + QUICK, "--headless")
    assert done.code == 0 and "gate: connected, test" in done.err and "gate: ended" in done.err
    *labels, last = done.out.splitlines()
    assert len(labels) == 12 and "gate: ant (35%)" in labels[0] and "no longer fox" in last


def test_files_csv_and_events(artifact: Path, tmp_path: Path) -> None:
    table, events = tmp_path / "r.csv", tmp_path / "e.jsonl"
    outputs = ("--csv", table, "--events", events, "--snapshot-on", "enter", tmp_path / "shots")
    done = vitedge("stream", artifact, QUICK, "--headless", "-q", *outputs, "--every", 4)
    assert done.code == 0 and done.err == ""
    assert [line.split(",")[1] for line in table.read_text().splitlines()] == ["sequence", "0", "4", "8"]
    assert [json.loads(line)["kind"] for line in events.read_text().splitlines()][:2] == ["connected", "enter"]
    assert len(list((tmp_path / "shots").iterdir())) == 3


def test_settings_from_a_file(artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "stream.toml"
    file.write_text(
        f'artifact = "{artifact}"\nsource = ["{QUICK}"]\nheadless = true\njson = "-"\npolicy = "every:5"\n'
        f'snapshot-on = ["enter", "{tmp_path / "shots"}"]\nsnapshot-count = 2\n'
    )
    done = vitedge("stream", "--settings", file)
    assert done.code == 0 and [json.loads(line)["sequence"] for line in done.out.splitlines()] == [0, 5, 10]
    assert len(list((tmp_path / "shots").iterdir())) == 2
    file.write_text("polcy = 'latest'\n")
    assert "policy" in fails(2, "stream", artifact, QUICK, "--settings", file)[1]


@pytest.mark.parametrize(
    ("code", "arguments", "word"),
    [
        (2, (), "no source"),
        (2, ("rtps://cam/",), "rtsp"),
        (2, (QUICK, "--policy", "newest"), "policy"),
        (2, (QUICK, "--flip", "left"), "flip"),
        (2, (QUICK, "--hwaccel", "abacus"), "offers"),
        (2, (QUICK, "--credentials", "env:VITEDGE_NOT_SET"), "isn't set"),
        (2, (QUICK, "--mqtt-discovery"), "add --mqtt"),
        (2, (QUICK, "--mqtt-publish", "labels"), "add --mqtt"),
        (2, (QUICK, "--snapshot-on", "entr", "shots"), "nearest is 'enter'"),
        (4, ("none.mp4",), "no such file"),
        (2, (QUICK, "--json", "/nowhere/r.jsonl"), "/nowhere/r.jsonl"),
        (2, (QUICK, "--csv", "/"), os.strerror(errno.EISDIR)),
        (2, (QUICK, "--record", "/proc/nowhere"), "/proc/nowhere"),
    ],
)
def test_what_cannot_be_is_refused(code: int, arguments: tuple[str, ...], word: str, artifact: Path) -> None:
    assert word in " ".join(fails(code, "stream", artifact, *arguments, "--headless"))


def test_a_broken_file_and_a_camera_that_never_answers(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert "a.mp4" in fails_last(3, "stream", artifact, tmp_path / "a.mp4", "--headless", "-q")
    text = fails_last(
        4,
        "stream",
        artifact,
        "rtsp://camera:hush@127.0.0.1:9/",
        "--headless",
        "-q",
        "--retries",
        1,
        "--backoff-min",
        0.05,
    )
    assert "classify the stream rtsp://127.0.0.1:9/\n" in text and "check the address" in text and "hush" not in text


def fails_last(code: int, *arguments: object) -> str:
    """The error of a run that did something first."""
    done = vitedge(*arguments)
    assert done.code == code and "Traceback" not in done.err, done.err
    return done.err[done.err.index("error: ") :]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_exits_with_zero(number: signal.Signals, artifact: Path) -> None:
    code = "from vitedge.cli import main; main()"
    arguments = ["stream", str(artifact), "test://?pattern=steps", "--headless", "--json", "-"]
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    child.send_signal(number)
    assert child.stderr is not None
    out, err = child.stdout.read(), child.stderr.read()  # communicate() would forget what readline() has buffered
    assert child.wait(60) == 0, err
    child.stdout.close()
    child.stderr.close()
    records = [json.loads(line) for line in [first, *out.splitlines()]]
    assert f"= {len(records)} classified" in err and "BALANCED" not in err


def test_nobody_reads_stdout_any_more(artifact: Path) -> None:
    code = "from vitedge.cli import main; main()"
    arguments = ["stream", str(artifact), "test://?pattern=steps&rate=200", "--headless", "--json", "-"]
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    err = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(60) == 0 and "Traceback" not in err, err


def test_readers_go_when_the_engine_is_killed(artifact: Path) -> None:
    code = "from vitedge.cli import main; main()"
    arguments = ["stream", str(artifact), "test://?pattern=steps", "--headless", "--json", "-"]
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    child.stdout.readline()
    listings = [file.read_text() for file in Path(f"/proc/{child.pid}/task").glob("*/children")]
    readers = [int(word) for listing in listings for word in listing.split()]
    assert readers
    child.kill()
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 30
    while readers and time.monotonic() < deadline:
        readers = [process for process in readers if _alive(process)]
        time.sleep(0.05)
    assert not readers


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_csi_camera_through_gstreamer(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for gst-launch-1.0 that answers as the real one does: raw pictures behind y4menc's header."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gst-inspect-1.0").write_text("#!/bin/sh\nexit 0\n")
    (programs / "gst-launch-1.0").write_text(
        f"#!{sys.executable}\nimport sys, time\n"
        f"open({str(tmp_path / 'pipeline')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        "sys.stdout.buffer.write(b'YUV4MPEG2 W64 H48 F30:1 Ip A1:1 C420jpeg\\n')\n"
        "for n in range(90):\n    sys.stdout.buffer.write(b'FRAME\\n' + bytes([60]) * (64 * 48 * 3 // 2))\n"
        "    sys.stdout.buffer.flush(); time.sleep(0.02)\n"
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    arguments = ("csi://1", "--headless", "--json", "-", "--duration", 4, "--input-width", 64, "--input-height", 48)
    done = vitedge("stream", artifact, *arguments)
    assert done.code == 0, done.err
    record = json.loads(done.out.splitlines()[0])
    assert (record["source"], record["width"], record["height"]) == ("csi1", 64, 48)
    action = (tmp_path / "pipeline").read_text()
    assert "nvarguscamerasrc sensor-id=1" in action and "width=64,height=48" in action


def test_without_gstreamer_a_csi_camera_is_refused(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "GStreamer" in " ".join(fails(8, "stream", artifact, "csi://0", "--headless"))
