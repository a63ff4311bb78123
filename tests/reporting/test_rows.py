"""Lines: what tables show of a row, and how results of several runs come together."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.reporting import results
from vitedge.errors import ArtifactError, UsageError
from vitedge.formats.result import Row, percentile, write_result
from vitedge.reporting import rows


def test_a_line_says_what_the_raw_samples_say() -> None:
    result = results.demo()
    line = rows.lines([result])[3]
    assert line.row.latency is not None and result.data is not None and line.row.accuracy is not None
    ordered = sorted(line.row.latency.samples.latency_ns)
    assert line.p50_ms == percentile(ordered, 50) / 1e6 and line.p95_ms == percentile(ordered, 95) / 1e6
    right = sum(a == b for a, b in zip(line.row.accuracy.predicted, result.data.label, strict=True))
    assert line.top1 == right / 600
    assert line.top1_interval is not None and line.top1_interval.low < line.top1 < line.top1_interval.high
    assert (line.letter, line.label, line.machine, line.verified) == ("D", "openvino int8", "AMD EPYC, 2 cores", True)


def test_the_drop_is_against_float32_on_the_same_images() -> None:
    fp32, int8, *_ = rows.lines([results.demo()])
    assert fp32.reference is None and fp32.top1_drop_pp is None
    assert int8.reference is fp32.row and fp32.top1 is not None and int8.top1 is not None
    assert int8.top1_drop_pp == pytest.approx(100 * (fp32.top1 - int8.top1))
    assert int8.drop_interval is not None and int8.drop_interval.low < int8.top1_drop_pp < int8.drop_interval.high


def test_without_float32_there_is_no_drop() -> None:
    result = results.demo()
    quantized = replace(result, rows=tuple(row for row in result.rows if row.subject.precision == "int8"))
    assert [line.top1_drop_pp for line in rows.lines([quantized])] == [None, None]


def test_another_model_s_float32_is_no_reference() -> None:
    result = results.demo()
    fp32, int8 = result.rows[:2]
    other = replace(fp32, subject=replace(fp32.subject, model_digest="x" * 64))
    assert rows.lines([replace(result, rows=(other, int8))])[1].reference is None


def test_float32_of_another_machine_serves_when_the_images_are_the_same() -> None:
    result = results.demo()
    laptop, pi = replace(result, rows=result.rows[:1]), replace(result, rows=result.rows[1:2], environment=results.PI)
    assert rows.lines([laptop, pi])[1].reference is result.rows[0]
    assert result.data is not None
    elsewhere = replace(pi, data=replace(result.data, digest="e" * 64))
    assert rows.lines([laptop, elsewhere])[1].reference is None


def test_notes_tell_what_stands_against_a_row() -> None:
    fp32 = results.demo().rows[0]
    few = replace(results.latency(3.0), samples=results.samples(3.0, blocks=5, each=12))
    assert "not enough data: 60 inferences support no p95" in _notes(replace(fp32, latency=few))
    hot = replace(fp32, latency=results.latency(3.0, throttled=True))
    assert any(note.startswith("throttled") for note in _notes(hot))
    other = replace(fp32, precision_executed={"bf16": 1.0})
    assert "executed as 100 % bf16" in _notes(other)


def _notes(row: Row) -> list[str]:
    return rows.lines([replace(results.demo(), rows=(row,))])[0].notes


def test_a_board_is_called_by_its_name() -> None:
    assert rows.machine_name(results.PI) == "Raspberry Pi 5 Model B Rev 1.0"


def test_letters_go_on_after_z() -> None:
    assert [rows.letter(number) for number in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.1234, "0.123"), (0.99996, "1.00"), (9.999, "10.0"), (99.96, "100"), (1234.5, "1234")],
)
def test_milliseconds_keep_three_digits(value: float | None, text: str) -> None:
    assert rows.milliseconds(value) == text


def test_bench_and_eval_of_one_machine_become_one_line_each() -> None:
    result = results.demo()
    benched = replace(result, rows=tuple(replace(row, accuracy=None) for row in result.rows), data=None)
    judged = replace(
        result,
        rows=tuple(replace(row, latency=None, checks=()) for row in result.rows if row.accuracy),
        created="2026-02-01T00:00:00+00:00",
    )
    (merged,) = rows.merge([judged, benched])
    assert len(merged.rows) == 5
    assert all(row.latency and row.accuracy for row in merged.rows[:4])


def test_two_measurements_of_one_thing_stay_apart() -> None:
    result = results.demo()
    assert len(rows.merge([result, result])) == 2
    assert len(rows.merge([result, replace(result, environment=results.PI)])) == 2


def test_a_folder_s_results_are_read_and_the_rest_passed_over(tmp_path: Path) -> None:
    result = results.demo()
    write_result(result, tmp_path / "laptop.json")
    (tmp_path / "pi").mkdir()
    write_result(replace(result, environment=results.PI), tmp_path / "pi" / "result.json")
    (tmp_path / "model.json").write_text('{"schema_version": 1}')
    assert len(rows.read([tmp_path])) == 2


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no result"):
        rows.read([tmp_path])


def test_a_broken_result_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"result\.json"):
        rows.read([tmp_path])
