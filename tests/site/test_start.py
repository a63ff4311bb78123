"""The pages under docs/start, and docs/service.md, run as they stand: every block in order, in one folder."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.site import pages, readers

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(find_spec("onnx") is None, reason="the extra host isn't installed")


def script(page: str, after: dict[str, str] | None = None) -> str:
    """The blocks of a page as one shell script.

    Args:
        page: its path below docs/.
        after: by a line of the page, what a reader does by hand once it's done.
    """
    lines = ["set -euo pipefail"]
    for block in pages.blocks(page):
        for command in block.commands if not block.why else ():
            lines += [*pages.shell(block, command, sys.executable), *filter(None, [(after or {}).get(command)])]
    for line in after or {}:
        assert line in lines, f"{page} no longer says: {line}"
    return "\n".join(lines)


def follow(page: str, folder: Path, after: dict[str, str] | None = None) -> str:
    """Run a page in a folder; what it printed."""
    commands = folder / ".commands"
    commands.mkdir()
    (commands / "vitedge").write_text(f'#!/bin/sh\nexec {sys.executable} -m vitedge "$@"\n')
    (commands / "vitedge").chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script(page, after)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_checkpoint_that_you_trained(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra train isn't installed")
    readers.engineer(tmp_path)
    follow("start/checkpoint.md", tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_in_a_python_program(tmp_path: Path) -> None:
    readers.developer(tmp_path)
    said = follow("start/python.md", tmp_path)
    assert "(1, 10)" in said and said.rstrip().endswith("ms")


def test_in_a_service(tmp_path: Path) -> None:
    readers.developer(tmp_path)
    labels, generated, pooled = follow("service.md", tmp_path).splitlines()
    assert len(ast.literal_eval(labels)) == 8 and len(set(ast.literal_eval(labels))) == 1
    assert (generated, pooled) == ("20 answers", "20 answers of 2 sessions")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_camera_and_your_own_pictures(tmp_path: Path) -> None:
    for package in ("torch", "av"):
        pytest.importorskip(package, reason="the extras train and stream aren't installed")
    readers.hobbyist(tmp_path)
    said = follow("start/camera.md", tmp_path, readers.HOBBYIST_DOES)
    assert "truck" in said


def test_the_first_hour_asks_for_few_commands() -> None:
    """benchmarks/first_hour.py plays the pages with a clock; how much is typed needs none."""
    from benchmarks.first_hour import STORIES, judged

    for story in STORIES.values():
        typed = story.commands()
        assert any("pip install" in command for _, command in typed), f"{story.page} doesn't say how to install"
        assert judged(story, len(typed), 0) == "ok"
