"""Read sensors several times a second in a process of the lowest priority, apart from the one that is measured.

The process ends with the one that started it: it watches its standard input, which closes when that one dies.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from vitedge.core import system
from vitedge.core.environment import for_children
from vitedge.core.schema import Record
from vitedge.device import hardware
from vitedge.device.reading import Reading

PERIOD_S = 0.2
STARTING_S = 20.0  # a small board takes seconds to start Python
_CHILD = (
    "import sys; sys.path[:] = {path!r}; from vitedge.device.telemetry import serve; "
    "serve({root!r}, {gpu!r}, {period!r})"
)


class MeterNames(Record):
    """The first line of the process: the parts of the machine whose power it reads."""

    power_of: tuple[str, ...]


class Telemetry:
    """Readings :data:`PERIOD_S` apart, from its creation until :meth:`close`. A context manager.

    Args:
        root: of ``/proc`` and ``/sys``.
        gpu: read a discrete NVIDIA GPU, too.
        period_s: seconds between two readings.
    """

    def __init__(self, root: Path = hardware.ROOT, *, gpu: bool = False, period_s: float = PERIOD_S) -> None:
        self._kept: list[bytes] | None = None  # once closed
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(path=sys.path, root=str(root), gpu=gpu, period=period_s)],
            stdin=subprocess.PIPE,
            stdout=self._file,
            stderr=subprocess.DEVNULL,
            env=for_children(),
            start_new_session=True,  # Ctrl-C is for the one that measures
        )
        try:
            self._wait_for_first()
        except BaseException:  # a signal
            self.close()
            raise

    def _wait_for_first(self) -> None:
        """Wait for the first reading: throttle counters have to be known before the run begins."""
        until = time.monotonic() + STARTING_S
        while len(self._lines()) < 2 and self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)

    @property
    def power_of(self) -> tuple[str, ...]:
        """The parts of the machine whose power is read; empty where none can be read."""
        lines = self._lines()
        return msgspec.json.decode(lines[0], type=MeterNames).power_of if lines else ()

    def readings(self, start_ns: int, offset_ns: int = 0) -> tuple[Reading, ...]:
        """Return all readings from the last one before ``start_ns`` on, which counts as ``offset_ns``."""
        readings = [msgspec.json.decode(line, type=Reading) for line in self._lines()[1:]]
        before = [reading for reading in readings if reading.at_ns <= start_ns][-1:]
        after = [reading for reading in readings if reading.at_ns > start_ns]
        return tuple(
            replace(reading, at_ns=offset_ns + max(0, reading.at_ns - start_ns)) for reading in (*before, *after)
        )

    def _lines(self) -> list[bytes]:
        if self._kept is not None:
            return self._kept
        pread = getattr(os, "pread", None)  # the file's own position is the child's, too
        if pread is None:  # Windows, where nothing can be read either
            return []
        data: bytes = pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size, 0)
        return data[: data.rfind(b"\n") + 1].splitlines()

    def close(self) -> None:
        """End the process; its readings are kept."""
        if self._kept is not None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._kept = self._lines()
        self._file.close()

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(root: str, gpu: bool, period_s: float) -> None:
    """Run the process: write the power meters' names as one JSON line, then a line a reading, until stdin closes."""
    from vitedge.device.nvml import open_nvml
    from vitedge.device.sensors import Sensors

    system.lower_priority(19)
    sensors = Sensors(Path(root), open_nvml() if gpu else None)
    _say(MeterNames(power_of=sensors.power_of))
    for _ in _beats(period_s):
        _say(sensors.read())


def _beats(period_s: float) -> Iterator[None]:
    """Yield once a period, without drifting, until standard input closes; late beats are skipped."""
    due = time.monotonic()
    while True:
        yield
        due = max(due + period_s, time.monotonic())
        if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0] and not os.read(0, 4096):
            return


def _say(record: Record) -> None:
    with contextlib.suppress(OSError):  # a full disk ends no measurement
        os.write(1, msgspec.json.encode(record) + b"\n")
