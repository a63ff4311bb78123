"""Tables on stdout: readable in 80 columns, plain in a pipe, and text is never markup."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.device import machines
from tests.reporting import results
from tests.reporting.test_html import hostile
from vitedge import doctor
from vitedge.device import hardware
from vitedge.formats.recipe import load_recipe
from vitedge.formats.target import load_target
from vitedge.reporting import delivery, measured, terminal


class Terminal(io.StringIO):
    """A terminal that takes colours."""

    def isatty(self) -> bool:
        return True


def printed(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, show: object, value: object) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    show(value)  # type: ignore[operator]
    return stream.getvalue()


def test_a_pipe_gets_plain_lines_without_wrapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    targets = [load_target(name) for name in ("jetson-orin-nano", "raspberry-pi-5")]
    text = printed(monkeypatch, io.StringIO(), terminal.show_targets, targets)
    assert "\x1b" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())
    (line,) = (line for line in text.splitlines() if line.startswith("jetson-orin-nano"))
    assert "Jetson Orin Nano 8 GB, JetPack 6 or 7" in line and "int8 fp16 fp32" in line


@pytest.mark.parametrize("show", [measured.show_result, lambda result: delivery.tell([result], Path("report.html"))])
def test_eighty_columns_are_enough(monkeypatch: pytest.MonkeyPatch, show: object) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(monkeypatch, io.StringIO(), show, results.demo())
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "openvino" in text


def test_a_terminal_gets_colours_unless_they_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    recipe = load_recipe("fast")
    assert "\x1b[" in printed(monkeypatch, Terminal(), terminal.show_recipe, recipe)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in printed(monkeypatch, Terminal(), terminal.show_recipe, recipe)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_is_from_outside_is_neither_markup_nor_escape_sequence(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    text = printed(monkeypatch, stream(), measured.show_result, hostile())
    assert "\x1b[31m" not in text and "\u202e" not in text
    models = [{"name": "[bold]cat[/bold] :smile:", "note": "\x1b]0;title\x07"}]
    text = printed(monkeypatch, stream(), terminal.show_models, models)
    assert "[bold]cat[/bold] :smile:" in text and "\x1b]0" not in text and "\\x1b]0" in text


def test_json_alone_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream := io.StringIO())
    terminal.emit({"b": 1, "a": None}, "-", lambda value: pytest.fail("shown"))
    assert json.loads(stream.getvalue()) == {"a": None, "b": 1}


def test_json_in_a_file_beside_the_table(tmp_path: Path) -> None:
    shown: list[object] = []
    terminal.emit([1, 2], str(tmp_path / "out.json"), shown.append)
    assert json.loads((tmp_path / "out.json").read_text()) == [1, 2] and shown == [[1, 2]]


def test_the_doctor_s_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    root = machines.jetson_orin_nano(tmp_path)
    runtime = doctor.RuntimeState(
        name="tensorrt", extra="tensorrt", version=None, facts={}, runs_on={}, problem="SIGSEGV on import"
    )
    found = doctor.Machine(
        python="3.10.12",
        processor=hardware.processor(root),
        memory=hardware.memory(root),
        board=hardware.board(root),
        gpus=tuple(hardware.gpus(root)),
        cameras=(),
        runtimes=(runtime,),
        extras=tuple(doctor.extras(on_jetson=True)),
        cache=doctor.cache(),
        targets=(
            doctor.fit(load_target("jetson-orin-nano"), hardware.processor(root), hardware.gpus(root), [runtime]),
        ),
    )
    text = printed(monkeypatch, io.StringIO(), terminal.show_doctor, found)
    for words in (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "6.2 (L4T 36.4.3)",
        "Cortex-A78AE, aarch64",
        "6 physical, 6 logical, 4 allowed to this process",
        "neon fp16 dotprod",
        "compute capability: 8.7",
        "SIGSEGV on import",
        "tensorrt is broken",
        "--system-site-packages",
    ):
        assert words in text, words


def test_the_doctor_on_a_machine_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = doctor.Machine(
        python="3.12",
        processor=hardware.processor(tmp_path),
        memory=hardware.memory(tmp_path),
        board=hardware.board(tmp_path),
        gpus=(),
        cameras=(),
        runtimes=(),
        extras=(),
        cache=doctor.cache(),
        targets=(),
    )
    text = printed(monkeypatch, io.StringIO(), terminal.show_doctor, found)
    assert text.count("unknown") >= 6
