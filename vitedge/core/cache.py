"""Write to the cache, where a failed write only costs time when the data is needed again."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from vitedge.core.paths import cache_folder
from vitedge.errors import ResourceError, UsageError, printable

_reasons: set[str] = set()  # that were said


@contextlib.contextmanager
def optional_writes() -> Iterator[None]:
    """Go on where the cache can't be written (a full or read-only disk); print the reason once, on stderr."""
    try:
        yield
    except (ResourceError, UsageError) as error:
        if error.reason not in _reasons:
            _reasons.add(error.reason)
            folder = cache_folder()
            sys.stderr.write(
                f"the cache {printable(folder)} can't be written: {error.reason}. What it would have kept is computed"
                " anew each time; to change that, free space there or name another folder in $VITEDGE_CACHE\n"
            )
