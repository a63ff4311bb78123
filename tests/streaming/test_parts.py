"""The parts of a stream, one by one: smoothing, gaps, turning, shared memory, clips, sinks, settings."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from vitedge.errors import ArtifactError, UsageError
from vitedge.formats.clip import Clip, ClipHeader, ClipWriter
from vitedge.streaming.gaps import GapDetector
from vitedge.streaming.outputs import CsvLines, JsonLines
from vitedge.streaming.pattern import parse_pattern, show
from vitedge.streaming.records import Event, FrameCounts, FrameRecord, Item, Score, percentiles
from vitedge.streaming.settings import StreamSettings, merged, read_settings
from vitedge.streaming.shared import BUFFERS, Shared
from vitedge.streaming.sink import QueuedSink
from vitedge.streaming.smoothing import Smoother
from vitedge.streaming.view import FLIPS, Crop, parse_crop, picture


def one(label: int, probability: float, classes: int = 3) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Probabilities with the rest shared by the others."""
    rest = np.full(classes, (1 - probability) / (classes - 1), np.float32)
    rest[label] = probability
    return rest


# --- smoothing


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(st.floats(0, 3, allow_subnormal=False).map(lambda x: round(x, 3)), min_size=1, max_size=20),
    tau=st.floats(0.01, 10).map(lambda x: round(x, 3)),
)
def test_smoothing_depends_on_time_not_on_the_number_of_frames(steps: list[float], tau: float) -> None:
    smoother, at = Smoother(tau, 0, 0, 0), 0.0
    smoother.update(one(0, 1.0), at)
    for step in steps:
        at += step
        values, _ = smoother.update(one(1, 1.0), at)
    assert values.sum() == pytest.approx(1)
    assert values[0] == pytest.approx(math.exp(-at / tau), abs=1e-9)


def test_a_label_enters_holds_and_leaves() -> None:
    smoother = Smoother(0, enter=0.6, leave=0.4, switch_after_s=0)
    said = [
        [(change.kind, change.label) for change in smoother.update(one(label, probability), at)[1]]
        for at, (label, probability) in enumerate([(0, 0.5), (0, 0.7), (0, 0.5), (0, 0.39), (1, 0.9), (2, 0.9)])
    ]
    assert said == [[], [("enter", 0)], [], [("exit", 0)], [("enter", 1)], [("exit", 1), ("enter", 2)]]


def test_a_new_label_must_lead_for_a_while() -> None:
    smoother = Smoother(0, enter=0.5, leave=0.1, switch_after_s=1.0)
    labels = []
    for at, label in [(0, 0), (0.5, 0), (1.0, 0), (1.2, 1), (1.6, 0), (2.0, 1), (2.9, 1), (3.0, 1)]:
        smoother.update(one(label, 0.8), at)
        labels.append(smoother.label)
    assert labels == [None, None, 0, 0, 0, 0, 0, 1]


def test_nothing_outlives_a_reset() -> None:
    smoother = Smoother(100.0, 0, 0, 0)
    smoother.update(one(0, 1.0), 0)
    (change,) = smoother.reset()
    assert (change.kind, change.label) == ("exit", 0) and smoother.label is None and smoother.probability is None
    values, _ = smoother.update(one(1, 1.0), 0.01)
    assert values[1] == 1 and smoother.reset() and not smoother.reset()


def test_the_gap_detector_knows_slow_sources() -> None:
    fast, slow = GapDetector(0.5), GapDetector(0.5)
    assert not any(fast.observe(0.04) for _ in range(20)) and fast.observe(0.6) and fast.observe(-0.01)
    assert not fast.observe(0.4)
    assert not any(slow.observe(1.0) for _ in range(20)) and not slow.observe(2.0) and slow.observe(3.0)


def test_percentiles_are_nearest_rank() -> None:
    found = percentiles([float(value) for value in range(100, 0, -1)])
    assert found is not None
    assert (found.p50_ms, found.p95_ms, found.p99_ms, found.max_ms, found.count) == (50, 95, 99, 100, 100)
    assert percentiles([]) is None


# --- turning and cropping


@pytest.mark.parametrize("name", FLIPS)
@pytest.mark.parametrize("first", FLIPS)
def test_turns(name: str, first: str) -> None:
    frame = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    turned = FLIPS[name].apply(FLIPS[first].apply(frame))
    assert (FLIPS[name].after(FLIPS[first]).apply(frame) == turned).all()
    assert FLIPS[name].after(FLIPS[first]).size(3, 2) == (turned.shape[1], turned.shape[0])
    straight = {
        "none": frame,
        "horizontal": frame[:, ::-1],
        "vertical": frame[::-1],
        "rotate-180": frame[::-1, ::-1],
        "upper-left-diagonal": frame.transpose(1, 0, 2),
        "upper-right-diagonal": frame[::-1, ::-1].transpose(1, 0, 2),
        "clockwise": np.rot90(frame, -1),
        "counterclockwise": np.rot90(frame),
    }
    assert (FLIPS[name].apply(frame) == straight[name]).all()


def test_crops() -> None:
    assert parse_crop("10,20,30,40") == Crop(10, 20, 30, 40, False)
    assert parse_crop("25%, 0%,50%,100%").box(640, 480) == (160, 0, 480, 480)
    for text in ("1,2,3", "1,2,0,4", "a,b,c,d", "-1,0,5,5", "60%,0%,50%,50%", "1,2,3,4%"):
        with pytest.raises(UsageError):
            parse_crop(text)
    with pytest.raises(ValueError):
        parse_crop("600,0,100,100").box(640, 480)
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:, 40:] = 200
    assert (picture(frame, 80, 10**6, FLIPS["horizontal"], Crop(0, 0, 40, 40, False)) == 200).all()
    assert picture(frame, 20, 10**6, FLIPS["none"], None).shape[1] <= 40
    assert picture(frame, 80, 1000, FLIPS["none"], None).size <= 3000


# --- the shared memory


def fill(memory: Shared, number: int, *, newest_only: bool, gap: bool = False) -> bool:
    memory.count(captured=1)
    buffer = memory.free()
    if buffer is None:
        return False
    memory.image(buffer)[...] = number
    memory.publish(
        buffer, sequence=number, presentation_s=number / 10 if number else None, monotonic_ns=number, wall_ns=number,
        gap=gap, shown=(4, 2), rule="dts" if number == 7 else None, truth=f"t{number}",
        picture=np.full((2, 4, 3), number, np.uint8) if number % 2 else None,
        newest_only=newest_only,
    )  # fmt: skip
    return True


def test_the_newest_replaces_one_that_waits_and_its_gap_is_kept() -> None:
    memory = Shared.create((3, 5))
    for number in range(8):
        assert fill(memory, number, newest_only=True, gap=number == 2)
    taken = memory.take()
    assert taken is not None and taken.sequence == 7 and taken.gap and (taken.image == 7).all()
    assert taken.presentation_s == 0.7 and taken.rule == "dts" and taken.truth == "t7" and taken.picture is not None
    assert memory.take() is None and memory.counters.dropped == 7 and memory.counters.captured == 8
    memory.close()


def test_every_frame_waits_in_order() -> None:
    memory = Shared.create((3, 5))
    for number in range(BUFFERS):
        assert fill(memory, number, newest_only=False)
    assert memory.free() is None and memory.waiting() == BUFFERS
    taken = [memory.take() for _ in range(BUFFERS)]
    assert [frame.sequence for frame in taken if frame] == list(range(BUFFERS))
    assert taken[0] is not None and taken[0].presentation_s is None and taken[0].picture is None
    memory.begin()
    assert memory.counters.captured == 0
    memory.close()


def test_a_lock_dies_with_its_holder() -> None:
    memory = Shared.create((3, 5))
    code = (
        "import fcntl, os, sys; from vitedge.streaming.shared import Shared\n"
        f"memory = Shared({memory.descriptor}, (3, 5)); fcntl.lockf(memory.descriptor, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[memory.descriptor], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == b"held\n"
    child.kill()
    child.wait()
    assert memory.take() is None  # it would wait for ever
    child.stdin.close()
    child.stdout.close()
    memory.close()


def test_frame_counts_add_up() -> None:
    counts = FrameCounts(captured=10, classified=4, skipped=3, dropped=2, corrupt=1)
    assert counts.complete and (counts + counts).captured == 20 and not replace(counts, dropped=1).complete


# --- patterns


def test_a_pattern_tells_the_truth() -> None:
    shown = list(show(parse_pattern("?pattern=steps&live=0&frames=7&hold=2&gap=4&corrupt=3&resize=5&size=8x4")))
    assert [frame.truth for frame in shown] == [f"step {n // 2}" for n in range(7)]
    assert [frame.picture[0, 0, 0] for frame in shown] == [0, 0, 1, 1, 2, 2, 3]
    assert [round(frame.presentation_s * 30) for frame in shown] == [0, 1, 2, 3, 34, 35, 36]
    assert [frame.corrupt for frame in shown] == [False, False, True, False, False, True, False]
    assert shown[4].picture.shape == (4, 8, 3) and shown[5].picture.shape == (2, 4, 3)
    pictures = list(show(parse_pattern("?live=0&frames=3&hold=1")))
    assert len({frame.truth for frame in pictures}) == 3 and pictures[0].picture.shape == (480, 640, 3)


# --- clips

HEADER = ClipHeader(source="test", size=(3, 5), artifact="a")


def record(path: Path, numbers: range) -> None:
    writer = ClipWriter(path, HEADER)
    for number in numbers:
        image = np.full((3, 5, 3), number, np.uint8)
        writer.append(image, sequence=number, arrival_ns=1000 + number, presentation_s=number / 10 if number else None)
    writer.close()


def test_a_clip_comes_back_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.clip"
    record(path, range(3))
    record(path, range(3, 5))
    clip = Clip(path)
    assert len(clip) == 5 and clip.header == HEADER and not clip.truncated
    assert clip.times_ns == (0, 1, 2, 3, 4) and clip.presentations_s == (None, 0.1, 0.2, 0.3, 0.4)
    assert [int(frame[0, 0, 0]) for frame in clip] == [0, 1, 2, 3, 4]
    before = clip.digest()
    other = tmp_path / "b.clip"
    record(other, range(5))
    assert Clip(other).digest() == before


def test_an_unfinished_frame_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.clip"
    record(path, range(3))
    os.truncate(path, path.stat().st_size - 3)
    assert len(Clip(path)) == 2 and Clip(path).truncated
    record(path, range(2, 4))
    assert [int(frame[0, 0, 0]) for frame in Clip(path)] == [0, 1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_damaged_clip_is_refused_or_read(place: int, flip: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.clip"
    path.unlink(missing_ok=True)
    record(path, range(3))
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flip
    path.write_bytes(data)
    with contextlib.suppress(ArtifactError):
        assert all(frame.shape == (3, 5, 3) for frame in Clip(path))


def test_another_sources_clip_is_not_continued(tmp_path: Path) -> None:
    record(tmp_path / "a.clip", range(2))
    with pytest.raises(ArtifactError):
        ClipWriter(tmp_path / "a.clip", replace(HEADER, source="other"))
    (tmp_path / "b.clip").write_bytes(b"something else")
    with pytest.raises(ArtifactError):
        Clip(tmp_path / "b.clip")


# --- sinks

FRAME = FrameRecord(
    source="a", sequence=1, connection=0, presentation_s=0.5, time="2026-01-01T00:00:00.000Z", monotonic_ns=1,
    age_ms=2.0, dropped=0, gap=False, width=4, height=2, label="=cmd()", probability=0.5,
    raw=(Score(label="=cmd()", probability=0.5),), smoothed=(Score(label="b", probability=0.25),),
)  # fmt: skip
EVENT = Event(source="a", kind="enter", time="2026-01-01T00:00:00.000Z", monotonic_ns=1, label="b")


def test_lines_are_whole_and_appended(tmp_path: Path) -> None:
    for _ in range(2):
        json = JsonLines("json", str(tmp_path / "r.jsonl"), (FrameRecord,), lambda: None)
        table = CsvLines("csv", str(tmp_path / "r.csv"), lambda: None)
        for sink in (json, table):
            sink.put(FRAME, None)
            sink.put(EVENT, None)  # not its kind
            sink.close(5)
            assert (sink.written, sink.dropped, sink.error) == (1, 0, None)
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(lines) == 2 and '"label":"=cmd()"' in lines[0]
    rows = (tmp_path / "r.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("source,sequence,") and "'=cmd()" in rows[1]


def test_a_sink_that_hangs_blocks_nobody_and_counts() -> None:
    class Hangs(QueuedSink):
        def __init__(self) -> None:
            self.go = threading.Event()
            super().__init__("hangs", (FrameRecord,), depth=5)

        def write(self, item: Item, picture: object) -> None:
            self.go.wait()

    sink = Hangs()
    for _ in range(20):
        sink.put(FRAME, None)
    sink.close(0.05)
    assert sink.written == 0 and sink.dropped == 20
    sink.go.set()


def test_a_sink_that_fails_goes_on() -> None:
    class Fails(QueuedSink):
        def write(self, item: Item, picture: object) -> None:
            assert isinstance(item, FrameRecord)
            if item.sequence % 2:
                raise OSError("no\x1b[31m")

    sink = Fails("fails", (FrameRecord,))
    for number in range(6):
        sink.put(replace(FRAME, sequence=number), None)
    sink.close(5)
    assert (sink.written, sink.dropped) == (3, 3) and sink.error == "OSError: no\\x1b[31m"


# --- settings


def test_settings_of_a_file_with_flags_over_them(tmp_path: Path) -> None:
    file = tmp_path / "stream.toml"
    file.write_text('artifact = "a/"\nsource = ["0", "test://"]\ntop-k = 3\nsmoothing = 0.5\nexit-threshold = 0.2\n'
                    "threshold = 0.4\n")  # fmt: skip
    found = read_settings(file, {"top_k": 2, "policy": "every:3"})
    assert (found.artifact, found.source, found.top_k, found.smoothing) == ("a/", ("0", "test://"), 2, 0.5)
    assert (found.threshold, found.exit_threshold, found.one_of, found.newest_only(True)) == (0.4, 0.2, 3, False)
    assert StreamSettings().newest_only(True) and not StreamSettings().newest_only(False)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("top_k = 3", "top-k"),
        ("top-k = 0", "top-k"),
        ("smothing = 1", "smoothing"),
        ("x = [", "TOML"),
        ("gap = -1", "gap"),
    ],
)
def test_a_wrong_setting_is_named(text: str, word: str, tmp_path: Path) -> None:
    file = tmp_path / "stream.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_settings(file, {})
    assert word in str(refused.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Expected `int` >= 1 - at `$.top-k`", "--top-k: Expected `int` >= 1"),
        ("words that no version has said yet", "words that no version has said yet"),
        ("", "a value is wrong"),
    ],
)
def test_what_msgspec_says_of_a_setting(text: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise msgspec.ValidationError(text)

    monkeypatch.setattr(msgspec, "convert", refuse)
    with pytest.raises(UsageError) as refused:
        merged(StreamSettings(), {"top_k": 0})
    assert refused.value.reason == reason and refused.value.hint == "see: vitedge stream --help"


@pytest.mark.parametrize(
    "given",
    [
        {"policy": "newest"},
        {"policy": "every:0"},
        {"flip": "left"},
        {"crop": "1,2"},
        {"threshold": 2},
        {"threshold": 0.3, "exit_threshold": 0.5},
        {"backoff_min": 60},
        {"json": "-", "csv": "-"},
        {"input_width": 640},
        {"colour": 1},
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        read_settings(None, given)
