"""``vitedge report``."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.cli.command import fails, vitedge
from tests.reporting import results
from vitedge.formats.result import write_result
from vitedge.installation import install_command


@pytest.fixture
def result(tmp_path: Path) -> Path:
    write_result(results.demo(), tmp_path / "result.json")
    return tmp_path / "result.json"


def test_html_is_written_and_the_decision_is_told(result: Path, tmp_path: Path) -> None:
    done = vitedge("report", result, "--out", tmp_path / "report.html")
    assert done.code == 0, done.err
    assert "Deploy openvino int8" in done.out and f"wrote {tmp_path / 'report.html'}" in done.out
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_html_goes_to_report_html_when_nothing_is_named(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert vitedge("report", result).code == 0
    assert (tmp_path / "report.html").is_file()


def test_markdown_and_csv_go_to_stdout(result: Path) -> None:
    done = vitedge("report", result, "--format", "md")
    assert done.code == 0 and done.out.startswith("**Deploy openvino int8**") and done.err.startswith("next: ")
    done = vitedge("report", result, "-f", "csv")
    assert [row["precision"] for row in csv.DictReader(io.StringIO(done.out))] == [
        "fp32",
        "int8",
        "fp32",
        "int8",
        "fp16",
    ]


def test_the_name_of_the_file_tells_the_format(result: Path, tmp_path: Path) -> None:
    assert vitedge("report", result, "--out", tmp_path / "table.md").code == 0
    assert (tmp_path / "table.md").read_text().startswith("**Deploy")
    _, reason, hint = fails(2, "report", result, "--out", tmp_path / "table.pdf")
    assert reason.startswith("its name tells no format") and hint == "add: --format html|md|csv"


def test_json_alone(result: Path) -> None:
    done = vitedge("report", result, "--json", "-")
    assert done.code == 0
    assert [row["recommended"] for row in json.loads(done.out)] == [False, False, False, True, False]


def test_a_folder_of_several_machines(result: Path) -> None:
    write_result(replace(results.demo(), environment=results.PI), result.parent / "pi.json")
    done = vitedge("report", result.parent, "--format", "md")
    assert done.out.count("**Deploy openvino int8** on") == 2


def test_an_existing_report_is_not_replaced_unasked(result: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("<!DOCTYPE html>mine")
    _, reason, hint = fails(2, "report", result, "--out", out)
    assert reason.endswith("already exists") and "--overwrite" in hint and out.read_text() == "<!DOCTYPE html>mine"
    assert vitedge("report", result, "--out", out, "--overwrite").code == 0
    assert "mine" not in out.read_text()[:30]
    _, reason, _ = fails(2, "report", result, "--out", tmp_path, "--format", "html", "--overwrite")
    assert reason.endswith("is a folder")


def test_nothing_there(tmp_path: Path) -> None:
    action, reason, hint = fails(2, "report", tmp_path / "none.json")
    assert "none.json" in action and reason == "there is no such file" and "vitedge bench" in hint


def test_what_is_not_a_result(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema_version": 1}')
    _, reason, _ = fails(3, "report", tmp_path / "x.json")
    assert "isn't a valid record" in reason


def test_a_newer_result_names_the_version_that_reads_it(result: Path) -> None:
    text = result.read_text().replace('"schema_version": 3', '"schema_version": 9')
    result.write_text(text.replace('"vitedge_version": "', '"vitedge_version": "9.'))
    _, reason, hint = fails(3, "report", result)
    assert "schema version 9" in reason and "vitedge 9." in hint


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_names_the_extra(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    _, reason, hint = fails(8, "report", result, "--out", tmp_path / "r.html")
    assert reason == f"the package '{package}' is not installed" and hint == f"run: {install_command('report')}"
    assert not (tmp_path / "r.html").exists()
    assert vitedge("report", result, "--format", "md").code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(result: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    fails(5, "report", result, "--out", tmp_path / "locked" / "r.html")


def test_other_pictures_are_refused(result: Path, small_data: Path, tmp_path: Path) -> None:
    _, reason, _ = fails(2, "report", result, "--data", small_data, "--out", tmp_path / "r.html")
    assert reason.startswith("they aren't the ones that accuracy was measured on")
