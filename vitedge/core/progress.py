"""Show progress on stderr: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

EVERY_S = 10.0  # a line through a pipe

_QUIET = ContextVar("quiet", default=False)

#: Called with the task's name, how much is done, and how much there is.
Progress = Callable[[str, int, int], None]


def silent(task: str, done: int, total: int) -> None:
    """Show nothing."""


def named(progress: Progress, suffix: object) -> Progress:
    """Add to the name of every task, where the same is done several times."""
    return lambda task, done, total: progress(f"{task} {suffix}", done, total)


def is_quiet() -> bool:
    """Whether this is within quiet :func:`bars`."""
    return _QUIET.get()


def lines() -> Progress:
    """Print a line on stderr for each tenth, with the time left, where another program may draw a bar."""
    if not sys.stderr.isatty():
        return silent
    started, shown_tenths = time.monotonic(), dict[str, int]()

    def show(task: str, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if tenth > shown_tenths.get(task, -1):
            shown_tenths[task] = tenth
            left = (time.monotonic() - started) * (total - done) / done if done else 0.0
            sys.stderr.write(f"{task}: {10 * tenth} %{f', about {left:.0f} s left' if left >= 1 else ''}\n")

    return show


@contextlib.contextmanager
def bars(*, quiet: bool = False) -> Iterator[Progress]:
    """Yield a callable that shows progress on stderr: one bar a task; through a pipe, a line every ten seconds.

    Inside of quiet ones, all are quiet.
    """
    if quiet or is_quiet():
        token = _QUIET.set(True)
        try:
            yield silent
        finally:
            _QUIET.reset(token)
        return
    if not sys.stderr.isatty():
        with _spoken() as spoken:
            yield spoken
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    display = Display(
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, object] = {}
    with display:

        def show(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = display.add_task(task, total=total)
            display.update(tasks[task], completed=done, total=total)  # type: ignore[arg-type]

        yield show


@contextlib.contextmanager
def _spoken() -> Iterator[Progress]:
    """Report progress from a thread, also within a step that reports nothing for long."""
    started, over, latest = time.monotonic(), threading.Event(), list[str]()

    def show(task: str, done: int, total: int) -> None:
        latest[:] = [f"{task}: {done:,} of {total:,}"]

    def speak() -> None:
        while not over.wait(EVERY_S):
            for text in latest:
                with contextlib.suppress(OSError, ValueError):  # it has no reader any more
                    sys.stderr.write(f"{text}, {time.monotonic() - started:.0f} s\n")

    thread = threading.Thread(target=speak, name="progress", daemon=True)
    thread.start()
    try:
        yield show
    finally:
        over.set()
        thread.join()
