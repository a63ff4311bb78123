"""A run over time: latency, clocks, temperature and power; burst against sustained; energy.

Everything is computed from the raw samples and readings of a :class:`vitedge.formats.samples.Latency`.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from vitedge.core.percentiles import percentile
from vitedge.device.reading import Reading
from vitedge.formats.samples import Latency

LONG_S = 60.0  # a run of at least this length shows sustained load
BURST_S = 10.0  # the beginning of a run, before heat has built up
WINDOWS = 60  # of a curve
OWN_FRACTION = 0.7  # of the run's time; with less of it, others were interleaved with this artifact
READINGS_A_BLOCK = 2.0  # readings that a block must have before their power counts as its own


@dataclass(frozen=True)
class Window:
    """A part of the run; times count from the run's beginning."""

    start_s: float
    end_s: float
    p50_ms: float | None  # None: nothing was measured in it
    p95_ms: float | None
    images_per_s: float | None
    clock_mhz: float | None
    gpu_clock_mhz: float | None
    temperature_c: float | None  # the hottest of processor and GPU
    power_w: float | None


@dataclass(frozen=True)
class Sustained:
    """The first :data:`BURST_S` seconds against the last third of the run."""

    burst_p50_ms: float
    sustained_p50_ms: float
    burst_images_per_s: float
    sustained_images_per_s: float

    @property
    def slowdown(self) -> float:
        """The slow-down of an inference under sustained load: 0.1 is ten percent."""
        return self.sustained_p50_ms / self.burst_p50_ms - 1


def duration_s(latency: Latency) -> float:
    """Return the seconds from the first block's beginning to the last one's end."""
    blocks = latency.samples.blocks
    return (blocks[-1].end_ns - blocks[0].start_ns) / 1e9 if blocks else 0.0


def curve(latency: Latency, batch: int, windows: int = WINDOWS) -> list[Window]:
    """Return the run in windows of equal length."""
    blocks = latency.samples.blocks
    if not blocks:
        return []
    begin, end = blocks[0].start_ns, blocks[-1].end_ns
    edges = [begin + (end - begin) * number // windows for number in range(windows + 1)]
    return [_window(latency, batch, *edge) for edge in pairwise(edges)]


def burst_and_sustained(latency: Latency, batch: int) -> Sustained | None:
    """Compare burst and sustained load; None for a run shorter than :data:`LONG_S`."""
    if duration_s(latency) < LONG_S:
        return None
    blocks = latency.samples.blocks
    begin, end = blocks[0].start_ns, blocks[-1].end_ns
    first = _window(latency, batch, begin, begin + int(BURST_S * 1e9))
    last = _window(latency, batch, end - (end - begin) // 3, end)
    if first.p50_ms is None or last.p50_ms is None or first.images_per_s is None or last.images_per_s is None:
        return None
    return Sustained(first.p50_ms, last.p50_ms, first.images_per_s, last.images_per_s)


def _window(latency: Latency, batch: int, start_ns: int, end_ns: int) -> Window:
    samples, origin = latency.samples, latency.samples.blocks[0].start_ns
    latencies: list[int] = []
    spent_ns = first = 0
    for block in samples.blocks:  # in order of time; a window takes a block's part that lies in it
        if block.end_ns > start_ns and block.start_ns < end_ns:
            low, high = (bisect_left(samples.start_ns, at, first, first + block.samples) for at in (start_ns, end_ns))
            latencies += samples.latency_ns[low:high]
            spent_ns += min(end_ns, block.end_ns) - max(start_ns, block.start_ns)
        first += block.samples
    latencies.sort()
    readings = [reading for reading in latency.readings if start_ns <= reading.at_ns < end_ns]
    temperatures = [
        value
        for reading in readings
        for value in (reading.temperature_c, reading.gpu_temperature_c)
        if value is not None
    ]
    return Window(
        start_s=(start_ns - origin) / 1e9,
        end_s=(end_ns - origin) / 1e9,
        p50_ms=percentile(latencies, 50) / 1e6 if latencies else None,
        p95_ms=percentile(latencies, 95) / 1e6 if latencies else None,
        images_per_s=batch * len(latencies) * 1e9 / spent_ns if latencies and spent_ns else None,
        clock_mhz=_median([reading.clock_mhz for reading in readings]),
        gpu_clock_mhz=_median([reading.gpu_clock_mhz for reading in readings]),
        temperature_c=max(temperatures, default=None),
        power_w=_median([reading.power_w for reading in readings]),
    )


def _median(values: list[float | None]) -> float | None:
    readable = [value for value in values if value is not None]
    return median(readable) if readable else None


def energy_j(latency: Latency) -> float | None:
    """Return the joules per inference: the power while this artifact's blocks ran, over their inferences.

    Idle power is in it. None where power couldn't be read through the whole of the blocks, or where the blocks of
    several artifacts alternate too fast for the readings to separate them.
    """
    blocks, readings = latency.samples.blocks, latency.readings
    if not len(latency.samples) or len(readings) < 3:
        return None
    spacing = median(after.at_ns - before.at_ns for before, after in pairwise(readings))
    lengths = [block.end_ns - block.start_ns for block in blocks]
    interleaved = sum(lengths) < OWN_FRACTION * (blocks[-1].end_ns - blocks[0].start_ns)
    if interleaved and median(lengths) < READINGS_A_BLOCK * spacing:
        return None
    total = 0.0
    for block in blocks:
        joules = _joules(readings, block.start_ns, block.end_ns)
        if joules is None:
            return None
        total += joules
    return total / len(latency.samples)


def _joules(readings: tuple[Reading, ...], start_ns: int, end_ns: int) -> float | None:
    """Integrate power: a reading's power holds from the reading before it, and one period after the last reading."""
    times = [reading.at_ns for reading in readings]
    total, at = 0.0, start_ns
    for index in range(max(1, bisect_left(times, start_ns)), len(readings)):
        until = min(end_ns, times[index])
        power = readings[index].power_w
        if until > at:
            if power is None:
                return None
            total += power * (until - at) / 1e9
            at = until
        if at >= end_ns:
            return total
    period = times[-1] - times[-2]
    power = readings[-1].power_w
    return total + power * (end_ns - at) / 1e9 if power is not None and end_ns - at <= 2 * period else None
