"""The frame of ``vitedge stream`` around the engine: its arguments, signals, frame counts and exit code."""

from __future__ import annotations

import sys

from vitedge.core.arguments import hide_passwords
from vitedge.core.stopping import postponed
from vitedge.formats.model_folder import GIVE_NAMES, nameless
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
        KeyboardInterrupt: a signal came before the sources were opened.
    """
    hide_passwords()
    options = OpenOptions(device=settings.device, threads=settings.threads)
    with open_session(open_artifact(settings), options) as session, running(session, settings) as engine:
        if nameless(label.name for label in session.classes) and not settings.quiet:
            sys.stderr.write(f"the classes have no names; {GIVE_NAMES}\n")
        engine.sinks.append(terminal_sink(settings, engine.stop))
        try:
            with postponed(engine.stop) as signals:
                for _ in engine.items():
                    pass
        finally:
            _print_counts(engine, settings)
    assert engine.final is not None
    refuse_failed(engine.final, stopped=bool(signals))


def _print_counts(engine: Engine, settings: StreamSettings) -> None:
    if engine.final is not None and not settings.quiet:
        sys.stderr.write("".join(f"{line}\n" for line in summary_lines(engine.final)))
