"""A float graph and its statistics in; the graph as a runtime runs it fast, and sessions, out.

A runtime is found by its folder's name, and only the module that is asked for is imported:

- ``detect``: ``NAME`` (as users call it), ``EXTRA`` (what to install, by its name on the index; ``extra()`` names
  another where the machine decides, ``not_from_pip()`` says how where no extra serves), ``installed() -> version or
  None``, ``runs_here(device) -> bool`` (sessions can be opened on this machine), ``describe() -> dict`` for the doctor;
  where they apply, ``package(variant) -> name or ""`` (another package makes some of the kernel variants),
  ``missing_provider(target) -> why`` (of execution providers), ``WRITES_ITS_FILES`` (its own package writes the files
  that it opens) and ``ON_GPU`` (it computes on GPUs alone);
- ``lowering``: ``VARIANTS``, and ``lower(request) -> Lowered``, the graph as this runtime runs it fast;
- ``preflight``: ``check(graph, target) -> list of findings`` against the oldest version that the target allows; where
  it applies, ``sentences(model) -> list`` on what the runtime won't fuse;
- ``session``: ``open_backend(artifact, options) -> Backend`` and ``read_contract(artifact) -> dict or None``, the
  preprocessing contract's copy inside the graph file;
- ``build``, of runtimes that make engines of their graphs, ``parser_check``, where another package can parse them, and
  ``commands``, where their maker's own tools build and time the same graph.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from vitedge.core.versions import newer_than_tested, newest_tested
from vitedge.errors import NotInstalledError, UsageError, nearest
from vitedge.installation import pip


def names() -> list[str]:
    """Return the runtimes, sorted: the folders here, except those with an underscore, which hold shared code."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("[!_]*/__init__.py"))


def part(runtime: str, module: str) -> ModuleType:
    """Return the module ``detect``, ``lowering`` or ``session`` of a runtime.

    Raises:
        UsageError: no runtime has this name.
    """
    if runtime not in names():
        raise UsageError(
            f"runtime '{runtime}'", f"there is none of this name{nearest(runtime, names())}", "run: vitedge doctor"
        )
    return importlib.import_module(f"vitedge.runtimes.{runtime}.{module}")


def has(runtime: str, module: str) -> bool:
    """Whether a runtime has the optional module ``build`` or ``parser_check``; nothing is imported."""
    return importlib.util.find_spec(f"vitedge.runtimes.{runtime}.{module}") is not None


def installed(runtime: str) -> str | None:
    """Return the version of the runtime on this machine, or None."""
    version = part(runtime, "detect").installed()
    return None if version is None else str(version)


def require(runtime: str, action: str) -> str:
    """Return the version of the runtime on this machine.

    Raises:
        NotInstalledError: it isn't installed; the extra is named.
    """
    facts = part(runtime, "detect")
    version = facts.installed()
    if version is None:
        missing = NotInstalledError.for_extra(action, runtime.replace("_", "-"), extra(runtime))
        otherwise = facts.not_from_pip() if hasattr(facts, "not_from_pip") else None
        raise NotInstalledError(missing.action, missing.reason, otherwise) if otherwise else missing
    return str(version)


def extra(runtime: str) -> str:
    """Return the extra that brings a runtime on this machine; "" for the null runtime."""
    facts = part(runtime, "detect")
    return str(facts.extra() if hasattr(facts, "extra") else facts.EXTRA)


def require_writer(runtime: str, action: str) -> None:
    """Demand the package that writes a runtime's files, where there is one.

    Raises:
        NotInstalledError: as :func:`require`.
    """
    if getattr(part(runtime, "detect"), "WRITES_ITS_FILES", False):
        require(runtime, action)


def needs_package(runtime: str) -> bool:
    """Whether a runtime is a package to install; the null runtime is part of vitedge."""
    return bool(part(runtime, "detect").EXTRA)


def on_gpu(runtime: str) -> bool:
    """Whether a runtime computes on GPUs only, so that the processor's instructions don't matter."""
    return runtime in names() and getattr(part(runtime, "detect"), "ON_GPU", False)


def untested(runtime: str, version: str) -> str:
    """Return a warning that this version of a runtime is newer than this release's tests; empty where it isn't."""
    facts = part(runtime, "detect")
    return newer_than_tested(facts.NAME, version, newest_tested(facts.EXTRA))


def fuses_otherwise(runtime: str) -> tuple[str, str]:
    """Return (reason, hint) if a runtime newer than the tested versions didn't execute a graph as planned.

    Both are empty where the installed version is no newer.
    """
    newer = untested(runtime, installed(runtime) or "")
    if not newer:
        return "", ""
    package = part(runtime, "detect").EXTRA
    return (
        f"{newer}, and may fuse otherwise",
        f"install the tested version: {pip()} install {package}=={newest_tested(package)}",
    )


def package(runtime: str, variant: str) -> str:
    """Return the package that makes a kernel variant, and the extra that brings it; empty where vitedge makes it."""
    facts = part(runtime, "detect")
    return str(facts.package(variant)) if hasattr(facts, "package") else ""
