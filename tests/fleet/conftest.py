"""A desk of boards for every test of the fleet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import boards
from tests.fleet.boards import Desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """An empty desk; the working directory and the home folder are the laptop's."""
    boards.require()
    made = Desk(tmp_path / "desk")
    monkeypatch.setenv("HOME", str(made.laptop))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.chdir(made.laptop)
    yield made
    made.close()


@pytest.fixture(scope="session")
def artifacts(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two artifacts of one model, called ``one`` and ``two``."""
    import vitedge

    folder = tmp_path_factory.mktemp("artifacts")
    for name, target in (("one", "onnxruntime"), ("two", "x86-server")):
        vitedge.export(small_model, target, "fp32", folder / name)
    return folder
