"""Hide secrets in this process's arguments, which other users of the machine can see."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from pathlib import Path

_USER_INFO = re.compile(rb"(?<=://)[^\0]+(?=@)")  # up to the last @: a password may hold what should end the host


def hide_passwords() -> None:
    """Overwrite user names and passwords of URLs in the arguments that ``ps`` shows; Python's own copy stays.

    They were there for the moment of the start, and the shell's history keeps them.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)
        shown = Path("/proc/self/cmdline").read_bytes()
        if 0 < start < end and ctypes.string_at(start, end - start) == shown:
            hidden = _USER_INFO.sub(lambda match: b"*" * len(match[0]), shown)
            ctypes.memmove(start, hidden, len(hidden))
