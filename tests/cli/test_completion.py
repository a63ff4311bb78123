"""Completion as a shell asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from vitedge.cli import completion
from vitedge.cli.application import application


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


FILES = ("one/manifest.json", "boards/two/manifest.json", "m/model.json", "other/photo.jpg")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("exp", ["export", "explain-picture"]),
        ("export model --target raspberry", ["raspberry-pi-5"]),
        ("verify boards/", ["boards/two"]),
        ("classify one photo.", []),  # the shell's own
    ],
)
def test_a_shell_is_told_what_goes_on(words: str, offered: list[str], folder: Path) -> None:
    assert completed(words, folder) == offered


@pytest.mark.parametrize(
    ("verb", "name", "begun", "offered"),
    [
        ("export", "recipe", "tho", ["thorough"]),
        ("targets", "name", "jetson-t", ["jetson-thor"]),
        ("recipes", "name", "tho", ["thorough"]),
        ("train", "model", "vit_edge_conv_3", ["vit_edge_conv_32"]),
        ("verify", "artifact", "", ["boards", "one"]),
        ("verify", "artifact", "./b", ["./boards"]),
        ("export", "model", "", ["m"]),
        ("export", "model", "nowhere/", []),
    ],
)
def test_values_are_completed(verb: str, name: str, begun: str, offered: list[str], folder: Path) -> None:
    complete = completion.of(verb, name)
    assert complete is not None and complete(begun) == offered


def test_what_is_completed_is_there() -> None:
    """Every entry of the table is an argument or option of a verb."""
    group: Any = typer.main.get_command(application())
    names = {f"{verb} {each.name}" for verb, command in group.commands.items() for each in command.params}
    for key in completion.COMPLETIONS:
        assert key in names or any(name.endswith(f" {key}") for name in names), key
