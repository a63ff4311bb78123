"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def data_folder(name: str) -> Path:
    """A folder of the real data beside the checkout, or in $VITEDGE_DATA; skips where it's absent."""
    base = Path(os.environ.get("VITEDGE_DATA") or ROOT.parent / "shared" / "data")
    if not (base / name).exists():
        pytest.skip(f"the data folder {name}/ isn't beside this checkout (set VITEDGE_DATA)")
    return base / name


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """The 125 photographs, many sizes and aspect ratios, some grey."""
    return sorted(data_folder("photos").glob("*.JPEG"))


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder with CIFAR-10's train.tar.gz and test.tar.gz."""
    return data_folder("cifar10")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own cache and settings."""
    home = tmp_path_factory.getbasetemp() / "home"
    monkeypatch.setenv("VITEDGE_CACHE", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
