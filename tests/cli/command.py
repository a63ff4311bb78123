"""Running the command line in this process, as a shell would."""

from __future__ import annotations

import contextlib
import io
import signal
from typing import NamedTuple

from vitedge import cli


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> list[str]:
        """The lines of the one error block."""
        lines = self.err.strip().splitlines()
        assert lines and lines[0].startswith("error: "), self.err
        return [lines[0].removeprefix("error: "), *(line.strip() for line in lines[1:])]


def vitedge(*arguments: object) -> Done:
    """Run ``vitedge ARGUMENTS`` and return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            code = 0
            try:
                cli.main([str(argument) for argument in arguments])
            except SystemExit as stop:
                code = int(stop.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Done(code, out.getvalue(), err.getvalue())


def fails(code: int, *arguments: object) -> list[str]:
    """Run a command that must fail with ``code``; the three lines of its error, and no traceback."""
    done = vitedge(*arguments)
    assert done.code == code, (done.code, done.out[-500:], done.err[-1500:])
    assert "Traceback" not in done.err
    assert len(done.error) == 3, done.err
    return done.error
