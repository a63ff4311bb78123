"""What ``vitedge stream`` does around the engine: signals, the frame counts, the exit code."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.session import open_session
from vitedge.streaming.engine import Engine
from vitedge.streaming.outputs import summary_lines
from vitedge.streaming.run import open_artifact, refuse_failed, running, terminal_sink
from vitedge.streaming.settings import StreamSettings


def run(settings: StreamSettings) -> None:
    """Run until the sources end, the duration is over, or a signal comes; then print the frame counts.

    Raises:
        VitedgeError: as :func:`vitedge.streaming.run.running` and :func:`vitedge.streaming.run.refuse_failed`.
    """
    signals: list[int] = []
    engines: list[Engine] = []

    def drain(number: int, frame: FrameType | None) -> None:
        if signals:  # asked twice: at once
            raise KeyboardInterrupt
        signals.append(number)
        if not engines:
            raise _Early
        engines[0].stop()

    previous = {number: signal.signal(number, drain) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _run_engine(settings, engines)
    except _Early:
        return
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        final = engines[0].final if engines else None
        if final is not None and not settings.quiet:
            sys.stderr.write("".join(f"{line}\n" for line in summary_lines(final)))
    assert final is not None
    refuse_failed(final, stopped=bool(signals))


class _Early(Exception):
    """A signal came before there was anything to drain."""


def _run_engine(settings: StreamSettings, engines: list[Engine]) -> None:
    options = OpenOptions(device=settings.device, threads=settings.threads)
    with open_session(open_artifact(settings), options) as session, running(session, settings) as engine:
        engine.sinks.append(terminal_sink(settings, engine.stop))
        engines.append(engine)
        for _ in engine.items():
            pass
