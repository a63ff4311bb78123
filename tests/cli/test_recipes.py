"""``vitedge recipes``."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.cli.command import fails, vitedge
from vitedge.core import paths
from vitedge.formats.recipe import Recipe, load_recipe


def test_all_of_them() -> None:
    done = vitedge("recipes")
    assert done.code == 0
    for name in paths.names("calibration"):
        assert name in done.out and load_recipe(name).summary in done.out


@pytest.mark.parametrize("name", list(paths.names("calibration")))
def test_one_of_them_fully(name: str) -> None:
    recipe = load_recipe(name)
    done = vitedge("recipes", name)
    assert done.code == 0
    for section in ("observe", "improve", "round"):
        assert section in done.out.splitlines()
    assert str(recipe.observe.reservoir_rows) in done.out
    assert msgspec.convert(json.loads(vitedge("recipes", name, "--json", "-").out), Recipe) == recipe


def test_unknown_and_nearest() -> None:
    _, reason, _ = fails(2, "recipes", "defualt")
    assert reason == "no recipe has this name; the nearest is 'default'"


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    text = (paths.shipped_folder("calibration") / "fast.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("seed = 0", "seeds = 0"))
    _, reason, _ = fails(2, "recipes", tmp_path / "mine.toml")
    assert "unknown key 'seeds'" in reason and "line" in reason
