"""Differences between systems: locks, flags of open files, processors, limits, priorities, process groups.

Everything but streams is to work on macOS and Windows, too; there the calls below do without what only Linux has. Names
that a system may lack are looked up when they're wanted, so that importing this fails nowhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from types import ModuleType

from vitedge.errors import UsageError


def module(name: str) -> ModuleType | None:
    """Return a module of the standard library that only some systems have: ``fcntl``, ``resource``."""
    try:
        return __import__(name, globals())
    except ModuleNotFoundError:
        return None


def flags(*names: str) -> int:
    """Combine flags of ``os.open``, those that this system has; never with translated line ends."""
    number = 0
    for name in (*names, "O_BINARY"):
        number |= getattr(os, name, 0)
    return number


def lock(descriptor: int) -> None:
    """Lock an open file for this process only, without waiting; the lock ends when the file is closed.

    Raises:
        BlockingIOError: another process has it.
        OSError: a file system without locks.
    """
    if (fcntl := module("fcntl")) is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif (msvcrt := module("msvcrt")) is not None:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error


def processors() -> set[int]:
    """Return the numbers of the processors that this process may use."""
    if (affinity := getattr(os, "sched_getaffinity", None)) is not None:
        return set(affinity(0))
    return set(range(os.cpu_count() or 1))


def limit_memory(megabytes: int) -> None:
    """Limit this process's address space, where the system can."""
    if (resource := module("resource")) is not None:
        with contextlib.suppress(OSError, ValueError):  # macOS takes no such limit
            resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def memory_mb() -> int | None:
    """Return the memory of this machine; None where it's unknown."""
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) >> 20  # type: ignore[attr-defined, unused-ignore]
    except (AttributeError, ValueError, OSError):
        return None


def lower_priority(by: int) -> None:
    """Let other processes of this machine go first, where the system can."""
    if (nice := getattr(os, "nice", None)) is not None:
        with contextlib.suppress(OSError):
            nice(by)


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """End a child that began a session, and its children on systems with process groups."""
    if (killpg := getattr(os, "killpg", None)) is not None:
        killpg(child.pid, signal.Signals["SIGKILL"])
    else:
        child.kill()


def c_function(name: str) -> ctypes._NamedFuncPointer | None:
    """Return a function of the C library; None where it has none of this name."""
    try:
        return getattr(ctypes.CDLL(None), name)  # type: ignore[no-any-return]
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library without a name
        return None


def require_linux(action: str) -> None:
    """Refuse functions that need calls of Linux.

    Raises:
        UsageError: another system.
    """
    if not (hasattr(os, "eventfd") and hasattr(os, "memfd_create")):
        raise UsageError(
            action,
            f"streams need Linux with Python 3.10 or newer; this is {sys.platform}",
            "classify pictures with: vitedge classify; or run the stream on Linux (a container, WSL)",
        )
