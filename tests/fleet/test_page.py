"""The page ``docs/fleet.md``, typed in order against a board that is an SSH server here."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitedge
from tests.fleet.boards import Desk
from tests.site import readers
from tests.site.pages import follow


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_a_board_to_a_report_and_from_python(desk: Desk, small_model: Path, small_data: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra report isn't installed")
    desk.add("pi5", labels=["arm"])
    readers.model_and_pictures(desk.laptop, small_model, small_data)
    vitedge.export(small_model, "onnxruntime", "fp32", desk.laptop / "fp32")
    vitedge.export(small_model, "onnxruntime", "int8", desk.laptop / "int8", data=str(small_data))
    short = "--duration 0.1 --warmup 0.1"
    instead = {"--duration 30": short, '"--duration", "10"': ", ".join(f'"{word}"' for word in short.split())}
    printed = follow("fleet.md", desk.laptop, instead=instead)
    assert (desk.laptop / "boards.html").stat().st_size > 10_000
    assert printed.splitlines()[-1].startswith("pi5 {"), "the last line is that of the Python program"
