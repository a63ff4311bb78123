"""Markdown and CSV."""

from __future__ import annotations

import csv as reader
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.reporting import results
from tests.reporting.test_html import hostile
from vitedge.reporting import csv, markdown
from vitedge.reporting.rows import lines


def test_markdown_has_the_decision_and_one_row_each() -> None:
    text = markdown.render([results.demo()])
    assert text.startswith("**Deploy openvino int8** on AMD EPYC, 2 cores")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5 and {row.count("|") for row in rows} == {rows[0].count("|")}
    assert "| **openvino int8** | 2.9 |" in text
    assert "- tensorrt fp16: portable: build on the device" in text


def test_markdown_escapes_what_is_from_outside() -> None:
    text = markdown.render([hostile()])
    assert "<script" not in text and "<img" not in text and "\x1b" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.replace("\\|", "").count("|") for row in table}) == 1


@settings(deadline=None)
@given(st.text())
def test_markdown_cells_stay_in_their_cell(text: str) -> None:
    made = markdown.escape(text)
    assert "\n" not in made and "<" not in made and "|" not in made.replace("\\\\", "").replace("\\|", "")


def test_csv_has_every_number_unrounded() -> None:
    result = results.demo()
    found = list(reader.DictReader(io.StringIO(csv.render([result]))))
    line = lines([result])[3]
    row = found[3]
    assert (row["target"], row["precision"], row["recommended"], row["rank"]) == ("openvino", "int8", "True", "1")
    assert float(row["latency_p50_ms"]) == line.p50_ms and float(row["top1"]) == line.top1
    assert float(row["top1_drop_pp"]) == pytest.approx(line.top1_drop_pp)
    assert (found[4]["latency_p50_ms"], found[4]["valid"], found[4]["rank"]) == ("", "", "")


def test_rows_that_may_not_be_compared_have_other_numbers() -> None:
    result = results.demo()
    found = csv.records([result, replace(result, environment=results.PI)])
    assert [row["comparable"] for row in found] == [1] * 5 + [2] * 5


@settings(deadline=None)
@given(st.text(max_size=30))
def test_no_cell_begins_like_a_formula(name: str) -> None:
    result = results.demo()
    row = replace(result.rows[0], subject=replace(result.rows[0].subject, name=name), latency=None, accuracy=None)
    text = csv.render([replace(result, rows=(row,), data=None)])
    cell = next(reader.DictReader(io.StringIO(text)))["artifact"]
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
