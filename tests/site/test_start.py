"""The pages under docs/start, run as they stand: every block in order, in one folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.site import readers
from tests.site.pages import follow

pytestmark = pytest.mark.skipif(find_spec("onnx") is None, reason="the extra host isn't installed")


def test_a_checkpoint_that_you_trained(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra train isn't installed")
    readers.engineer(tmp_path)
    follow("start/checkpoint.md", tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_in_a_python_program(tmp_path: Path) -> None:
    readers.developer(tmp_path)
    said = follow("start/python.md", tmp_path)
    assert "(1, 10)" in said and said.rstrip().endswith("ms")


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
