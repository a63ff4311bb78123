"""Pictures of a run over time and of a model's layers; see :mod:`vitedge.reporting.plots`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from vitedge.benchmarking import profile, sustained
from vitedge.device.reading import Reading
from vitedge.reporting.plots import GRID, QUIET, colour, letters, marker, picture
from vitedge.reporting.rows import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 120  # of a curve
FEWEST_READINGS = 5
MINUTES_FROM_S = 180.0  # a longer run is drawn in minutes


class _Sensor(NamedTuple):
    """One panel of readings: its axis, and the values that are drawn in it."""

    label: str
    values: tuple[tuple[str, Callable[[Reading], float | None]], ...]


_SENSORS = (
    _Sensor("MHz", (("CPU", lambda reading: reading.clock_mhz), ("GPU", lambda reading: reading.gpu_clock_mhz))),
    _Sensor("°C", (("CPU", lambda reading: reading.temperature_c), ("GPU", lambda reading: reading.gpu_temperature_c))),
    _Sensor("W", (("power", lambda reading: reading.power_w),)),
)


def over_time(lines: Sequence[Line], title: str) -> str | None:
    """Draw latency over the run, and below it the clocks, temperatures and power that could be read.

    A short run shows the median of every block; a long one (:data:`vitedge.benchmarking.sustained.LONG_S`) the median
    and the 95th percentile of :data:`vitedge.benchmarking.sustained.WINDOWS` windows.
    """
    timed = [line for line in lines if line.row.latency is not None and len(line.row.latency.samples.blocks) > 1]
    if not timed:
        return None
    readings = _readings(timed)
    sensors = [sensor for sensor in _SENSORS if any(_series(readings, value) for _, value in sensor.values)]
    seconds = max(sustained.duration_s(line.row.latency) for line in timed if line.row.latency is not None)
    unit, scale = ("minutes", 60.0) if seconds > MINUTES_FROM_S else ("seconds", 1.0)
    with picture(title, height=3.4 + 1.2 * len(sensors), panels=1 + len(sensors)) as drawing:
        ends = _latencies(drawing.axes, timed, scale)
        for axes, sensor in zip(drawing.panels[1:], sensors, strict=True):
            for number, (name, value) in enumerate(sensor.values):
                points = _series(readings, value)
                if points:
                    style = (0, (4, 2)) if number else "-"
                    xs, ys = [x / scale for x, _ in points], [y for _, y in points]
                    axes.plot(xs, ys, color=QUIET, linewidth=1.2, linestyle=style)
                    axes.annotate(name, (xs[-1], ys[-1]), xytext=(4, 0), textcoords="offset points", color=QUIET)
            axes.set_ylabel(sensor.label)
            axes.margins(x=0.06, y=0.2)
            if sensor.label == "W":
                axes.set_ylim(bottom=0)
            axes.set_xlim(drawing.axes.get_xlim())
        for axes in drawing.panels[:-1]:
            axes.tick_params(labelbottom=not sensors)
        drawing.panels[-1].set_xlabel(f"{unit} since the run began")
        letters(drawing.axes, ends)
    return drawing.svg


def _latencies(axes: Axes, timed: Sequence[Line], scale: float) -> list[tuple[Line, float, float]]:
    """Draw each line's latency; return the end of each curve."""
    top, ends = 0.0, []
    for line in timed:
        assert line.row.latency is not None
        latency = line.row.latency
        if sustained.duration_s(latency) >= sustained.LONG_S:
            windows = [
                window for window in sustained.curve(latency, line.row.subject.batch) if window.p50_ms is not None
            ]
            xs = [(window.start_s + window.end_s) / 2 / scale for window in windows]
            p50, p95 = [window.p50_ms or 0.0 for window in windows], [window.p95_ms or 0.0 for window in windows]
            axes.plot(xs, p95, color=colour(line), linewidth=0.9, alpha=0.55)
            axes.plot(xs, p50, color=colour(line), linewidth=1.8)
            top = max([top, *p95])
        else:
            blocks = zip(latency.samples.blocks, latency.samples.block_latencies(), strict=True)
            pairs = [(block.start_ns / 1e9 / scale, median(values) / 1e6) for block, values in blocks if values]
            xs, p50 = [x for x, _ in pairs], [y for _, y in pairs]
            axes.plot(xs, p50, color=colour(line), linewidth=1.2, marker=marker(line), markersize=3)
            top = max([top, *p50])
        if xs:
            ends.append((line, xs[-1], p50[-1]))
    axes.set_ylim(0, 1.15 * top or 1.0)
    axes.margins(x=0.06)
    axes.set_ylabel("median, ms")
    return ends


def _readings(timed: Sequence[Line]) -> Sequence[Reading]:
    """Return the longest list of readings, which has all of them, as interleaved artifacts share readings."""
    return max((line.row.latency.readings for line in timed if line.row.latency is not None), key=len, default=())


def _series(readings: Sequence[Reading], value: Callable[[Reading], float | None]) -> list[tuple[float, float]]:
    """Return (seconds, value) of the readings, medians of adjacent ones where there are many; empty with too few."""
    points = [(reading.at_ns / 1e9, number) for reading in readings if (number := value(reading)) is not None]
    if len(points) < FEWEST_READINGS:
        return []
    step = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + step] for start in range(0, len(points), step)]
    return [(group[len(group) // 2][0], median(y for _, y in group)) for group in groups]


# --- layers ----------------------------------------------------------------------------------------------------------

_SHADES = {
    part: colour(number)
    for number, part in enumerate(
        ("patch embedding", "norm", "attention", "mlp", "residual", "quantize", "head", "fused")
    )
} | {"input": QUIET, "other": GRID}


def layers(line: Line, title: str) -> str | None:
    """Draw the time of layers: a bar for each block, and one for the rest, coloured by part of the model."""
    if line.row.profile is None:
        return None
    blocks = profile.by_block(line.row.profile)
    inside = sorted(number for number in blocks if number is not None)
    bars = [("the rest", blocks.get(None, {})), *((f"block {number}", blocks[number]) for number in inside)]
    bars = [(name, parts) for name, parts in bars if sum(parts.values())]
    if not bars:
        return None
    parts = [part for part in profile.PARTS if any(part in times for _, times in bars)]
    with picture(title, height=1.5 + 0.26 * len(bars)) as drawing:
        axes = drawing.axes
        starts = [0.0] * len(bars)
        for part in parts:
            widths = [times.get(part, 0.0) / 1e6 for _, times in bars]
            axes.barh(range(len(bars)), widths, left=starts, height=0.72, color=_SHADES[part], label=part)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("ms, medians of the profiled inferences")
        drawing.figure.legend(loc="outside upper left", ncols=4, handlelength=0.9, columnspacing=1.2)
    return drawing.svg
