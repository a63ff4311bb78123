"""What the terminal shows behind a latency: memory and energy, load over time, layers, other tools."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.benchmarking.nulls import null_artifact
from tests.benchmarking.test_profile import ONNXRUNTIME
from tests.device.test_telemetry import heated
from tests.formats.test_result import latency, samples
from vitedge.benchmarking.profile import profile_of
from vitedge.formats.result import Environment, Result, Row, Subject, now
from vitedge.formats.samples import Latency, Memory, ProtocolRun
from vitedge.reporting import latency_details, rows, terminal
from vitedge.runtimes.base import LayerTime


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject.of(null_artifact(tmp_path_factory.mktemp("artifact") / "a"))


def shown(subject: Subject, measured: Latency, capsys: pytest.CaptureFixture[str], **more: object) -> str:
    row = Row(subject=subject, latency=measured, **more)
    result = Result(created=now(), environment=Environment.here(Path("/nowhere")), rows=(row,))
    terminal.show(*latency_details.tables(rows.lines([result])))
    return capsys.readouterr().out


def test_burst_against_sustained(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(subject, heated(), capsys)
    assert "Burst (the first 10 s)" in told and "+25.0%" in told
    assert "A over time" in told and "2000" in told and "1600" in told
    burst = next(line for line in told.splitlines() if "+25.0%" in line)
    assert "100" in burst and "125" in burst


def test_energy_and_what_it_is_of(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(subject, heated(), capsys)  # 10 W and some 0.116 s an inference
    assert "board" in told and "1,1" in next(line for line in told.splitlines() if "board" in line)
    capped = heated()
    capped = replace(capped, readings=tuple(replace(reading, power_capped=True) for reading in capped.readings))
    assert "board, at its power limit" in shown(subject, capped, capsys)
    without = shown(subject, latency(samples([1000] * 100)), capsys)
    assert "no power meter can be read" in without and "Burst" not in without


def test_memory_of_process_and_gpu(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    memory = Memory(before_bytes=40_000_000, after_bytes=130_100_000, peak_bytes=None)
    gpu = replace(memory, device_before_bytes=500_000_000, device_after_bytes=812_300_000)
    told = shown(subject, replace(latency(samples([1000] * 100)), memory=memory), capsys)
    assert "40.0" in told and "130.1" in told and "312.3" not in told
    assert "312.3" in shown(subject, replace(latency(samples([1000] * 100)), memory=gpu), capsys)


def test_layers_by_part_and_blocks(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [LayerTime(name, operator, type_, 100_000) for name, operator, type_, _, _ in ONNXRUNTIME]
    told = shown(subject, latency(samples([1000] * 100)), capsys, profile=profile_of([nodes] * 3))
    assert "attention" in told and "the 1 block " in told and "0.700" in told
    assert "quantize" in told and "18.2%" in told  # 2 of 11 nodes


def test_other_tools_side_by_side(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    queries = samples([2_000_000] * 200)
    loadgen = ProtocolRun(tool="loadgen", samples=queries, first_ns=1, min_duration_s=5.0, shortened=True)
    told = shown(subject, latency(samples([1_000_000] * 700)), capsys, protocol_runs=(loadgen,))
    line = next(line for line in told.splitlines() if line.startswith("90th percentile latency"))
    assert "2,000,000" in line and "1,000,000" in line and line.rstrip().endswith("ns")
    assert "MLPerf LoadGen, SingleStream" in told and "5 s instead of the tool's 600 s" in told


def test_a_resumed_run_is_told(subject: Subject) -> None:
    row = Row(subject=subject, latency=replace(latency(samples([1000] * 700)), resumed_ns=(5, 9)))
    result = Result(created=now(), environment=Environment.here(Path("/nowhere")), rows=(row,))
    assert any("resumed 2 times" in note for note in rows.lines([result])[0].notes)
