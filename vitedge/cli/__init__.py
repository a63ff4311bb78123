"""Options in, one call and one rendering out: the command line, one file a verb.

Nothing is imported here but what a signal needs, so that a stop is understood from the first moment on.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from vitedge.core.process import check_process, delivered_output, open_standard_streams
from vitedge.core.stopping import end_with, stop_on_signals
from vitedge.errors import Interrupted, ResourceError, VitedgeError, behind, signal_of

ACTION = "run this command"


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code that :mod:`vitedge.errors` gives."""
    try:
        open_standard_streams()
        with stop_on_signals() as raised:
            try:
                code = _run(arguments, raised)
            except Interrupted as stop:  # it came when all work was done but not yet reported
                code = _fail(stop)
            end_with(code)
    except (ResourceError, OSError, RuntimeError) as error:  # even the resources that signals need are missing
        code = _fail(error if isinstance(error, ResourceError) else _lacking(error))
    sys.exit(code)


def _lacking(error: Exception) -> VitedgeError:
    try:
        check_process(ACTION)
    except VitedgeError as lack:
        return lack
    return _bug(error)


def _run(arguments: list[str] | None, raised: list[Interrupted]) -> int:
    """The exit code of a command; its error is printed."""
    try:
        check_process(ACTION)
        from vitedge.api import resource_errors
        from vitedge.cli.application import needed

        with resource_errors(ACTION, unchanged=False), delivered_output():
            needed(sys.argv[1:] if arguments is None else arguments)(arguments, prog_name="vitedge")
        return 0
    except SystemExit as end:
        stop = behind(end, Interrupted)  # typer made an exit of it
        return _fail(stop) if stop is not None else _code(end)
    except Interrupted as stop:
        return _fail(stop)
    except Exception as error:
        if raised:
            return _fail(_after_stop(error, raised[0]))
        return _fail(error if isinstance(error, VitedgeError) else _bug(error))


def _code(end: SystemExit) -> int:
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _after_stop(error: Exception, stop: Interrupted) -> Interrupted:
    """Return the stop in place of an error that it caused by cutting off foreign code; only a full disk is added."""
    cause = behind(error, Interrupted) or stop
    if not isinstance(error, ResourceError):
        return cause
    reason = f"received {signal_of(stop).name}; then: {error.action}: {error.reason}"
    return Interrupted(cause.action, reason, error.hint, signal_number=signal_of(stop))


def _bug(error: Exception) -> VitedgeError:
    return VitedgeError(
        ACTION,
        f"a bug in vitedge: {type(error).__name__}: {error}",
        "repeat with: vitedge --debug …, and report what it prints",
    )


def _fail(error: VitedgeError | Interrupted) -> int:
    """Print an error as one block on stderr, with its traceback where one is wanted."""
    if os.environ.get("VITEDGE_DEBUG"):
        raise error
    sys.stderr.write(f"error: {error}\n")
    return error.exit_code
