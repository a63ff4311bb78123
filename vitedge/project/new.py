"""Write the folder of a new project."""

from __future__ import annotations

import re
from pathlib import Path

from vitedge.core.files import FolderKind, new_folder
from vitedge.errors import UsageError
from vitedge.installation import requirement

PROJECT_FILE = "vitedge.toml"
PROJECT = FolderKind("a project", (PROJECT_FILE,))
_FILES = Path(__file__).resolve().parent / "files"
#: Where each file goes; PROJECT stands for the project's name.
_PLACES = {
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "stream.toml": "stream.toml",
    "project.service": "PROJECT.service",
    "workflow.yml": ".github/workflows/vitedge.yml",
    "vitedge.toml": PROJECT_FILE,
}


def new_project(out: Path) -> Path:
    """Write the folder of a project: its steps, a folder for pictures, a CI workflow, a systemd unit.

    Args:
        out: the folder, which must not exist; its name is the project's.

    Raises:
        UsageError: it exists.
        ResourceError: it can't be written.
    """
    name = re.sub(r"[^\w-]+", "-", Path.cwd().joinpath(out).name, flags=re.ASCII).strip("-") or "project"
    words = {
        "HOST_REQUIREMENT": requirement("train"),
        "DEVICE_REQUIREMENT": requirement("onnxruntime,stream"),
        "PROJECT": name,
    }
    action = f"start the project {out}"
    if out.exists():
        raise UsageError(action, f"{out} exists already", "name a folder that doesn't exist")
    with new_folder(out, PROJECT, overwrite=False, action=action) as folder:
        (folder / "data").mkdir()
        (folder / "data" / ".gitkeep").touch()
        for file, place in _PLACES.items():
            path = folder / place.replace("PROJECT", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = (_FILES / file).read_text(encoding="utf-8")
            for word, value in words.items():
                text = text.replace(word, value)
            path.write_text(text, encoding="utf-8")
    return out
