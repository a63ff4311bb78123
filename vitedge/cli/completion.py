"""Completion of values: targets, recipes, models, and the folders that vitedge wrote.

Each function takes the beginning of a word and returns the words that go on from it; where there are none, the shell
completes names of files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

Completion = Callable[[str], list[str]]


def targets(begun: str) -> list[str]:
    """Return names of targets."""
    from vitedge import api

    return [target.name for target in api.targets() if target.name.startswith(begun)]


def recipes(begun: str) -> list[str]:
    """Return names of recipes."""
    from vitedge import api

    return [recipe.name for recipe in api.recipes() if recipe.name.startswith(begun)]


def architectures(begun: str) -> list[str]:
    """Return names of the zoo's models."""
    from vitedge import api

    return [name for name in api.architectures() if name.startswith(begun)]


def artifacts(begun: str) -> list[str]:
    """Return folders that are artifacts, or that contain some."""
    return _folders(begun, "manifest.json")


def models(begun: str) -> list[str]:
    """Return folders that are models, or that contain some."""
    return _folders(begun, "model.json")


def _folders(begun: str, file: str) -> list[str]:
    """Return folders that hold a file of this name, or a folder that does."""
    parent = os.path.dirname(begun)  # noqa: PTH120 - what was typed stays as it is: "./boards/"
    try:
        inside = sorted(path for path in Path(parent or ".").iterdir() if path.is_dir())
    except OSError:
        return []
    named = [(os.path.join(parent, path.name), path) for path in inside]  # noqa: PTH118 - likewise
    return [
        name
        for name, path in named
        if name.startswith(begun) and ((path / file).exists() or any(path.glob(f"*/{file}")))
    ]


#: By the name of an argument or option, or by verb and name where it means something else there.
COMPLETIONS: dict[str, Completion] = {
    "target": targets,
    "targets name": targets,
    "recipe": recipes,
    "recipes name": recipes,
    "train model": architectures,
    "model": models,
    "init_from": models,
    "teacher": models,
    "artifact": artifacts,
}


def of(verb: str, name: str) -> Completion | None:
    """Return the completion of an argument or option; None: names of files."""
    return COMPLETIONS.get(f"{verb} {name}", COMPLETIONS.get(name))
