"""Handle SIGINT and SIGTERM: the first raises :class:`Interrupted` in the main thread, a second ends the process.

A call into native code can't be interrupted, and Python's own handlers wait for its end. A thread therefore hears of
each signal at once, says so where the run goes on for a while, and listens for the second. Only the command line
installs this; in a Python program signals are the program's, but for the loops that :func:`postponed` guards.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from vitedge.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER_S = 0.3  # signals that come within this time are one: ``timeout`` sends two, and so do some supervisors
ACKNOWLEDGED = "stopping after this step; again to stop now\n"

#: Whether a thread can receive signals while the main thread can't: not on Windows, which selects no pipes.
_WATCHED = hasattr(signal, "setitimer")

_came: list[int] = []  # signals since the command began


@contextlib.contextmanager
def stop_on_signals() -> Iterator[list[Interrupted]]:
    """Let the first signal raise inside the context; yield the list of stops, which foreign code may have swallowed."""
    raised: list[Interrupted] = []
    _came.clear()

    def stop(number: int, _: FrameType | None) -> None:
        if not _came:  # the second is the watcher's
            _came.append(number)
            raised.append(_stopped_by(number))
            raise raised[0]
        if not _WATCHED:
            os._exit(128 + number)

    def again(*_: object) -> None:
        raise raised[0]

    def unraisable(details: Any) -> None:
        """Raise a stop again that came within a finaliser, which it can't leave, when the finaliser is over."""
        if isinstance(details.exc_value, Interrupted):
            _alarm(0.01)
        else:
            before(details)

    before, sys.unraisablehook = sys.unraisablehook, unraisable
    if _WATCHED:
        signal.signal(signal.Signals["SIGALRM"], again)
    with _watched() if _WATCHED else contextlib.nullcontext():
        for number in SIGNALS:
            signal.signal(number, stop)
        try:
            yield raised
        finally:
            _alarm(0)
            sys.unraisablehook = before


def _alarm(seconds: float) -> None:
    """Raise SIGALRM after so many seconds; 0: never. Do nothing where there are no timers."""
    if (setitimer := getattr(signal, "setitimer", None)) is not None:
        setitimer(getattr(signal, "ITIMER_REAL", 0), seconds)


def _stopped_by(number: int) -> Interrupted:
    return Interrupted(
        "stop",
        f"received {signal.Signals(number).name}; nothing half-written was left",
        "run the command again; if its output is complete already, add --overwrite",
        signal_number=number,
    )


def end_with(code: int) -> None:
    """Make signals end the process with this code from now on, and be ignored at the very end: all work is done."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(code))
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in SIGNALS])


@contextlib.contextmanager
def postponed(then: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Keep a signal inside the context from raising: append it to the list that is yielded, and call ``then``.

    In a Python program a second one does what it did before. Outside of the main thread, where Python takes no signals,
    nothing is ever appended.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        _came.append(number)
        signal.signal(number, handlers[number])
        then()

    handlers: dict[int, Any] = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# --- the thread ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Let a thread receive signals at once inside the context, whatever the main thread does."""
    reading, writing = os.pipe()
    assert hasattr(os, "set_blocking")
    os.set_blocking(writing, False)
    thread = threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()
        os.close(reading)


def _watch(reading: int) -> None:
    if not _next(reading):
        return
    until = time.monotonic() + TOGETHER_S
    while (left := until - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0] and not os.read(reading, 64):
            return  # it has stopped
    _say("\n" * os.isatty(2) + ACKNOWLEDGED)
    if number := _next(reading):
        _say("\x1b[?25h\n" * os.isatty(2))  # a progress bar hides the cursor
        os._exit(128 + number)


def _next(reading: int) -> int:
    """Return the next of :data:`SIGNALS`; 0 at the end."""
    while numbers := os.read(reading, 64):
        for number in numbers:
            if number in SIGNALS:
                return number
    return 0


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
