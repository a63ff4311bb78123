"""Check before any work what a command needs of its process: standard streams, open files, threads, a folder.

Native libraries answer a missing thread with a crash or a signal, and a missing descriptor with a damaged file; so both
are asked for while they can still be named.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import threading
from collections.abc import Iterator

from vitedge.core import system
from vitedge.errors import ResourceError, UsageError, behind

OPEN_FILES = 64  # most files that a verb with one source, its child processes and its runtime open, rounded up
OPEN_FILES_USUAL = 1024
THREAD_STACK = 1 << 18  # bytes, of the threads that only prove that they can be started
_OUTPUT = "write to standard output"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # without a file's name: a stream that was open before us


def check_process(action: str) -> None:
    """Refuse to begin work that couldn't be finished.

    Raises:
        UsageError: the working directory is gone.
        ResourceError: too few files may be open, or too few threads can be started.
    """
    try:
        os.getcwd()  # noqa: PTH109 - nothing is made of it
    except FileNotFoundError as error:
        raise UsageError(
            action, "the working directory has been deleted", "run: cd; then name files by their absolute paths"
        ) from error
    _check_open_files(action)
    _check_threads(action)


def _check_open_files(action: str) -> None:
    """Raise the soft limit as far as possible; the hard limit has to leave room."""
    if (resource := system.module("resource")) is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= OPEN_FILES:
        return
    possible = OPEN_FILES_USUAL if hard == unlimited else min(hard, OPEN_FILES_USUAL)
    if possible < OPEN_FILES:
        raise ResourceError(
            action,
            f"this process may have {possible} files open at once; {OPEN_FILES} are needed",
            f"run: ulimit -n {OPEN_FILES_USUAL} (or raise the limit where it's set: limits.conf, systemd, a container)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))


def _check_threads(action: str) -> None:
    """Start as many threads as numeric libraries, a runtime and vitedge need together, and let them end."""
    wanted, started, over = 2 * len(system.processors()) + 8, list[threading.Thread](), threading.Event()
    usual = threading.stack_size(THREAD_STACK)
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise ResourceError(
            action,
            f"only {len(started)} more threads or processes can be started; {wanted} are needed",
            "end other processes of this user, or raise the limit (ulimit -u; pids.max of a container)",
        ) from error
    finally:
        threading.stack_size(usual)
        over.set()
        for thread in started:
            thread.join()


def open_standard_streams() -> None:
    """Open stdin, stdout and stderr where they are closed.

    stdout and stderr are UTF-8 in every locale; what isn't text (a file name in another encoding) is written with
    backslashes. A closed descriptor becomes ``/dev/null``, so that no file that is opened later gets its number.

    Raises:
        ResourceError: stdout is closed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as we live
    if sys.stdout is None:
        raise ResourceError(_OUTPUT, "it's closed, so a result has nowhere to go", "add: >/dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def delivered_output() -> Iterator[None]:
    """Make sure at the end of the context that everything written to stdout has arrived.

    Raises:
        ResourceError: stdout is full, or nobody reads it any more.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (OSError, SystemExit) as error:
        if behind(error, BrokenPipeError):  # typer makes an exit of it
            raise _undelivered("its reader has ended", "read it to its end, or write it to a file") from error
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            raise _undelivered(f"{error.strerror}", "free space there, or write to another place") from error
        raise


def _undelivered(reason: str, hint: str) -> ResourceError:
    """Return the error for a stdout that can't be written; discard the rest, so that Python's exit doesn't fail."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.close(sink)
    return ResourceError(_OUTPUT, reason, hint)
