"""Sensors read by a process of their own, and what a run looks like over time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.device.test_sensors import INTEL, tree
from tests.formats.test_result import latency, samples
from vitedge.benchmarking.sustained import burst_and_sustained, curve, duration_s, energy_j
from vitedge.device.reading import Reading
from vitedge.device.telemetry import Telemetry
from vitedge.formats.samples import Latency

S = 10**9


def test_readings_come_from_another_process(tmp_path: Path) -> None:
    tree(tmp_path, INTEL)
    with Telemetry(tmp_path, period_s=0.02) as telemetry:
        start = time.perf_counter_ns()
        until = time.monotonic() + 20
        while len(telemetry.readings(start)) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        child = telemetry._process.pid
        assert os.getpriority(os.PRIO_PROCESS, child) == 19
        assert telemetry.power_of == ("processor packages (RAPL)",)
    readings = telemetry.readings(start)
    assert telemetry._process.poll() is not None
    assert len(readings) >= 4 and readings[0].at_ns == 0  # the last before the start counts as its beginning
    assert list(readings) == sorted(readings, key=lambda reading: reading.at_ns)
    assert all(reading.clock_mhz == 2900 for reading in readings)
    assert telemetry.readings(start, 7 * S)[0].at_ns == 7 * S


def test_the_process_ends_with_the_one_that_measures(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from vitedge.device.telemetry import Telemetry\n"
        f"print(Telemetry(Path({str(tmp_path)!r}))._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    child, until = int(done.stdout), time.monotonic() + 20
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _runs(child)


def test_a_signal_while_it_starts_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(self: Telemetry) -> None:
        started.append(self._process)
        raise KeyboardInterrupt

    monkeypatch.setattr(Telemetry, "_wait_for_first", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Telemetry(tmp_path)
    assert started[0].poll() is not None


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# --- over time -------------------------------------------------------------------------------------------------------


def heated(seconds: int = 120, watts: float | None = 10.0) -> Latency:
    """100 ms an inference for 40 s, then 125; a reading every 200 ms, clocks that fall and heat that rises."""
    latencies = [S // 10] * 400
    while sum(latencies) < seconds * S:
        latencies.append(S // 8)
    readings = tuple(
        Reading(
            at_ns=at,
            clock_mhz=2000 if at < 40 * S else 1600,
            temperature_c=50 + at / S / 4,
            power_w=watts,
        )
        for at in range(0, seconds * S, S // 5)
    )
    return replace(latency(samples(latencies, block=10)), readings=readings, power_of=("board",))


def test_curve_and_burst_against_sustained() -> None:
    run = heated()
    found = curve(run, batch=2, windows=12)
    assert len(found) == 12 and found[0].start_s == 0 and found[-1].end_s == pytest.approx(duration_s(run))
    assert (found[0].p50_ms, found[-1].p50_ms) == (100, 125)
    assert (found[0].clock_mhz, found[-1].clock_mhz) == (2000, 1600)
    assert found[0].images_per_s == pytest.approx(20, rel=0.02) and found[-1].images_per_s == pytest.approx(
        16, rel=0.02
    )
    assert found[-1].temperature_c == pytest.approx(80, abs=0.2) and found[3].power_w == 10
    both = burst_and_sustained(run, batch=2)
    assert both is not None and both.slowdown == pytest.approx(0.25)
    assert both.burst_images_per_s == pytest.approx(20, rel=0.02)
    assert both.sustained_images_per_s == pytest.approx(16, rel=0.02)
    assert burst_and_sustained(heated(50), batch=1) is None  # too short to be called sustained


def test_energy_of_an_inference() -> None:
    assert energy_j(replace(heated(), readings=heated().readings)) == pytest.approx(
        10 * duration_s(heated()) / len(heated().samples), rel=0.01
    )
    assert energy_j(heated(watts=None)) is None  # missing power isn't zero
    run = heated()
    gone = [replace(reading, power_w=None) if 50 * S < reading.at_ns < 51 * S else reading for reading in run.readings]
    assert energy_j(replace(run, readings=tuple(gone))) is None
    assert energy_j(replace(run, readings=run.readings[: len(run.readings) // 2])) is None
    assert energy_j(replace(run, readings=())) is None


def test_energy_of_turns_that_are_too_short_is_unknown() -> None:
    """Two artifacts in turns: power can be told apart when each turn holds some readings."""

    def taking_turns(block_ns: int, power: tuple[float, float]) -> Latency:
        count = 20
        blocks, starts = [], []
        for turn in range(count):
            begin = 2 * turn * block_ns
            starts += [begin + number * block_ns // 10 for number in range(10)]
            blocks.append(replace(samples([block_ns // 10] * 10).blocks[0], start_ns=begin, end_ns=begin + block_ns))
        all_samples = replace(samples([block_ns // 10] * 10 * count), start_ns=tuple(starts), blocks=tuple(blocks))
        readings = [
            Reading(at_ns=at, power_w=power[((at - 1) // block_ns) % 2])
            for at in range(0, 2 * count * block_ns, S // 5)
        ]
        return replace(latency(all_samples), readings=tuple(readings))

    assert energy_j(taking_turns(S, (20.0, 5.0))) == pytest.approx(2.0, rel=0.05)  # 20 W for a second, ten inferences
    assert energy_j(taking_turns(S // 10, (20.0, 5.0))) is None
