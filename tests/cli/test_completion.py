"""Completion as a shell asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def completed(words: str, folder: Path) -> list[str]:
    """What bash is told to offer for the last word of ``vitedge WORDS``."""
    asked = f"vitedge {words}"
    environment = {
        **os.environ,
        "_VITEDGE_COMPLETE": "complete_bash",
        "COMP_WORDS": asked,
        "COMP_CWORD": str(asked.count(" ")),
        "_TYPER_COMPLETE_ARGS": asked,
    }
    code = "from vitedge.cli import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("exp", ["export"]),
        ("export model --target raspberry", ["raspberry-pi-5"]),
        ("export model --recipe tho", ["thorough"]),
        ("targets jetson-t", ["jetson-thor"]),
        ("recipes tho", ["thorough"]),
        ("train photos --model vit_edge_conv_3", ["vit_edge_conv_32"]),
        ("verify ", ["boards", "one"]),
        ("verify boards/", ["boards/two"]),
        ("export m", ["m"]),
        ("classify one photo.", []),  # the shell's own
    ],
)
def test_values_are_completed(words: str, offered: list[str], tmp_path: Path) -> None:
    for name in ("one/manifest.json", "boards/two/manifest.json", "m/model.json", "other/photo.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert completed(words, tmp_path) == offered
