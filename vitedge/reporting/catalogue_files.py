"""Target files to start from."""

from __future__ import annotations

from pathlib import Path

from vitedge.core import paths
from vitedge.core.files import write_atomic
from vitedge.errors import UsageError

TEMPLATE = Path(__file__).resolve().parent / "templates" / "target.toml"


def write_target(out: Path, name: str | None = None) -> str:
    """Write a commented target file that loads as it is.

    Args:
        out: the file, which must not exist.
        name: start from this target's file instead of the template.

    Returns:
        What to type next.

    Raises:
        UsageError: ``out`` exists or isn't called ``*.toml``, or no target has this name.
        ResourceError: it can't be written.
    """
    action = f"write the target file {out}"
    source = TEMPLATE if name is None else paths.find("targets", name)
    if out.suffix != ".toml":
        raise UsageError(action, "a target file ends in .toml", f"name it: --new {out.with_suffix('.toml')}")
    if out.exists() or out.is_symlink():
        raise UsageError(action, f"{out} already exists", "name another file: --new FILE.toml")
    write_atomic(out, source.read_bytes(), action)
    return f"wrote {out}; edit it, then: vitedge targets {out}"
