"""Everything that knows a runtime's name, one folder each; siblings never import each other.

A runtime is found by its folder's name, and only the module that is asked for is imported:

- ``facts``: ``NAME`` (as users call it), ``EXTRA`` (what to install, by its name on the index; ``not_from_pip()`` says
  how where pip doesn't serve), ``installed() -> version or None``, ``runs_here(device) -> bool`` (sessions can be
  opened on this machine), ``describe() -> dict`` for the doctor, and, where another package makes some of the forms,
  ``package(form) -> its name or ""``;
- ``placement``: ``FORMS``, and ``place(request) -> Placed``, the graph in the form that this runtime runs fast;
- ``preflight``: ``check(graph, target) -> list of findings`` against the oldest version that the target allows;
- ``session``: ``open_backend(artifact, options) -> Backend`` and ``read_contract(artifact) -> dict or None``, the
  preprocessing contract's copy inside the graph file.
"""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from types import ModuleType

from vitedge import hardware
from vitedge.errors import NotInstalledError, UsageError, nearest
from vitedge.target import Target
from vitedge.versions import newer_than_tested, newest_tested


def names() -> list[str]:
    """The runtimes, sorted: the folders that lie here. Those with an underscore are what several runtimes share."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("[!_]*/__init__.py"))


def part(runtime: str, module: str) -> ModuleType:
    """The module ``facts``, ``placement`` or ``session`` of a runtime.

    Raises:
        UsageError: no runtime has this name.
    """
    if runtime not in names():
        raise UsageError(
            f"runtime '{runtime}'", f"there is none of this name{nearest(runtime, names())}", "run: vitedge doctor"
        )
    return importlib.import_module(f"vitedge.runtimes.{runtime}.{module}")


def installed(runtime: str) -> str | None:
    """Version of the runtime on this machine, or None."""
    version = part(runtime, "facts").installed()
    return None if version is None else str(version)


def require(runtime: str, asked: str) -> str:
    """Version of the runtime on this machine.

    Raises:
        NotInstalledError: it isn't installed; the extra is named.
    """
    facts = part(runtime, "facts")
    version = facts.installed()
    if version is None:
        missing = NotInstalledError.for_extra(asked, runtime.replace("_", "-"), facts.EXTRA)
        otherwise = facts.not_from_pip() if hasattr(facts, "not_from_pip") else None
        raise NotInstalledError(missing.asked, missing.true, otherwise) if otherwise else missing
    return str(version)


def untested(runtime: str, version: str) -> str:
    """Says that this version of a runtime is newer than what this release was tested with; empty where it isn't."""
    facts = part(runtime, "facts")
    return newer_than_tested(facts.NAME, version, newest_tested(facts.EXTRA))


def fuses_otherwise(runtime: str) -> tuple[str, str]:
    """(why, what to do) where a graph wasn't executed as planned by a runtime that is newer than what was tested.

    Both are empty where the installed version is no newer.
    """
    newer = untested(runtime, installed(runtime) or "")
    if not newer:
        return "", ""
    package = part(runtime, "facts").EXTRA
    return (
        f"{newer}, and may fuse otherwise",
        f"install the tested version: pip install {package}=={newest_tested(package)}",
    )


def package(runtime: str, form: str) -> str:
    """The package that makes a form, its name being that of the extra, too; empty where vitedge does."""
    facts = part(runtime, "facts")
    return str(facts.package(form)) if hasattr(facts, "package") else ""


def elsewhere(target: Target) -> str:
    """Why this machine can't stand for a target's, whatever is installed; empty where it can.

    What can't be read of the processor is no reason against it.
    """
    if target.arch not in ("any", platform.machine()):
        return f"it's for {target.arch}, and this machine is {platform.machine()}"
    if target.device.startswith("cuda") and not hardware.gpus():
        return "it's for an NVIDIA GPU, and there is none here"
    facts = part(target.runtime, "facts")
    if target.providers and facts.installed() is not None and (why := facts.lacks(target)):
        return str(why)
    isa = hardware.processor().isa
    if target.isa != "any" and isa is not None and target.isa not in isa:
        return f"it's for processors with {target.isa}, and this one has none"
    return ""
