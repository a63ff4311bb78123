"""Faults on command, and a fleet job under them, until as many have come as are wanted."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fleet.boards import Desk, FakeBoard

#: In place of vitedge on a board: takes a while, counts what it has measured to the end, goes on from a whole result.
#: The next one that is started after :func:`hold` ends after :func:`release` at the earliest.
STUB = """#!/bin/sh
[ -e result.json ] && exit 0
if mv "$HOME/hold" "$HOME/held" 2> /dev/null; then while [ -e "$HOME/held" ]; do sleep 0.05; done; fi
sleep "$(cat "$HOME/seconds")"
echo "{\\"artifact\\": \\"$2\\"}" > result.new || { echo "error: x
       No space left on device
       y" >&2; exit 5; }
mv result.new result.json
echo "$*" >> "$HOME/measured"
"""
FAULTS = ("drop", "stall", "power", "full", "clock", "laptop")


def stub(board: FakeBoard, seconds: float) -> str:
    """Make a virtual environment whose vitedge is the stub; returns its place."""
    place = board.home / "stub" / "bin"
    place.mkdir(parents=True)
    (place / "vitedge").write_text(STUB)
    (place / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for name in ("vitedge", "python"):
        (place / name).chmod(0o755)
    (board.home / "seconds").write_text(str(seconds))
    return str(place.parent)


def hold(board: FakeBoard) -> None:
    """Let the next job of the stub last until :func:`release`."""
    (board.home / "hold").touch()


def begun(board: FakeBoard) -> None:
    """Wait until the stub is held."""
    until_true((board.home / "held").exists)


def until_true(condition: Callable[[], object]) -> None:
    """Wait for something that comes."""
    until = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < until, "it hasn't come"
        time.sleep(0.05)


def release(board: FakeBoard) -> None:
    """Let it end."""
    (board.home / "held").unlink()


class Troublemaker:
    """Makes faults on boards, and takes them back."""

    def __init__(self, boards: list[FakeBoard], seed: int, disks: dict[str, Path]) -> None:
        self.boards, self.random, self.disks = boards, random.Random(seed), disks
        self.made = Counter[str]()

    def one(self, laptop: subprocess.Popen[bytes]) -> None:
        """A fault somewhere."""
        kind, board = self.random.choice(FAULTS), self.random.choice(self.boards)
        if kind == "full" and not self.disks:
            kind = "power"
        if kind == "full":
            board = next(each for each in self.boards if each.name in self.disks)
        self.made[kind] += 1
        getattr(self, f"_{kind}")(board, laptop)

    def _drop(self, board: FakeBoard, _: object) -> None:
        board.drop()

    def _stall(self, board: FakeBoard, _: object) -> None:
        sessions = board.sessions()
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in sessions:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            time.sleep(self.random.uniform(0.2, 1.0) if number == signal.SIGSTOP else 0)

    def _power(self, board: FakeBoard, _: object) -> None:
        board.cut_power()
        threading.Timer(self.random.uniform(0.1, 2.0), board.start).run()

    def _full(self, board: FakeBoard, _: object) -> None:
        with contextlib.suppress(OSError), (self.disks[board.name] / "filler").open("wb") as stream:
            while stream.write(b"\0" * (1 << 20)):
                stream.flush()

    def _clock(self, board: FakeBoard, _: object) -> None:
        (board.home / "clock" / "shift").write_text(str(self.random.randint(-(10**8), 10**8)))

    def _laptop(self, _: FakeBoard, laptop: subprocess.Popen[bytes]) -> None:
        laptop.kill()

    def heal(self) -> None:
        """Take back what doesn't end by itself."""
        for board in self.boards:
            if board.server is None:
                board.start()
            if board.name in self.disks:
                (self.disks[board.name] / "filler").unlink(missing_ok=True)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vitedge", "fleet", "--patience", "4", *map(str, arguments)]


def rows(out: Path) -> list[dict[str, Any]]:
    connection = sqlite3.connect(out / "ledger.db")
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute("SELECT * FROM outcomes ORDER BY board, artifacts, rules")]
    finally:
        connection.close()


def campaign(
    desk: Desk,
    artifacts: list[Path],
    options: Callable[[int], list[str]],
    *,
    faults: int,
    seed: int,
    disks: dict[str, Path],
    pause_s: tuple[float, float],
) -> tuple[Counter[str], list[dict[str, Any]], int]:
    """Work under faults until so many have come, then finish without.

    Args:
        desk: the boards.
        artifacts: what is measured.
        options: of `bench`, for the so-manieth round; a round begins when everything of the one before is done.
        faults: to make.
        seed: of when, where and which.
        disks: small file systems by board, for full disks.
        pause_s: between faults.

    Returns:
        The faults by kind, the ledger's rows, and the number of rounds.
    """
    out, trouble = desk.laptop / "out", Troublemaker(list(desk.boards.values()), seed, disks)
    round_, log = 0, (desk.laptop / "log").open("ab")
    with log:

        def start() -> subprocess.Popen[bytes]:
            arguments = ["bench", *artifacts, *options(round_), "--out", out, "--resume", "-q"]
            return subprocess.Popen(command(*arguments), cwd=desk.laptop, stdout=log, stderr=log)

        while sum(trouble.made.values()) < faults:
            laptop = start()
            while laptop.poll() is None and sum(trouble.made.values()) < faults:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    laptop.wait(trouble.random.uniform(*pause_s))
                    break
                trouble.one(laptop)
                if trouble.random.random() < 0.5:
                    trouble.heal()
            with contextlib.suppress(subprocess.TimeoutExpired):
                laptop.wait(60)
            trouble.heal()
            round_ += laptop.wait(600) == 0
        for _ in range(5):
            if start().wait(600) == 0:
                return trouble.made, rows(out), round_ + 1
    raise AssertionError((desk.laptop / "log").read_text()[-4000:])


def overlapping(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Jobs of one board that ran at the same time."""
    return [
        (one["job"] if "job" in one else one["rules"], other["rules"])
        for one in found
        for other in found
        if one is not other
        and one["board"] == other["board"]
        and one["started_ns"] < other["ended_ns"]
        and other["started_ns"] < one["ended_ns"]
    ]


def measured(board: FakeBoard) -> Counter[str]:
    """What the stub has measured to the end, and how often."""
    path = board.home / "measured"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def copies(artifact: Path, folder: Path, count: int) -> list[Path]:
    """Different artifacts made of one: each is named otherwise in its manifest."""
    from msgspec.structs import replace

    from vitedge.formats.artifact import Artifact, write_artifact

    opened, made = Artifact.open(artifact), []
    for number in range(count):
        files = {name: (artifact / name).read_bytes() for name in opened.manifest.files}
        manifest = replace(opened.manifest, name=f"copy {number}")
        made.append(write_artifact(folder / f"a{number}", manifest, files, overwrite=False, action="copy").path)
    return made


def remove(desk: Desk) -> None:
    """What a board's folder holds."""
    for board in desk.boards.values():
        shutil.rmtree(board.home / "fleet", ignore_errors=True)
