"""Run a function where its crash can't take the caller down: in a child process, with a time and a memory limit.

For parsers and builders in other people's native code (ONNX Runtime on a foreign file, TensorRT on a new graph) that
may abort, overflow their stack or hang. It contains accidents; it isn't a sandbox against an attacker.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from vitedge.core import system
from vitedge.core.environment import for_children
from vitedge.errors import VitedgeError

T = TypeVar("T")

_CHILD = "import sys; sys.path[:] = {path!r}; from vitedge.core.isolation import _serve; _serve()"
_LAST_WORDS = 2000  # characters of the child's output that are kept


class ChildError(Exception):
    """The child crashed, ran out of time, or its function raised something that isn't a VitedgeError.

    ``str()`` says which, in words for an error text.
    """


def run_isolated(
    function: Callable[..., T],
    *args: Any,
    timeout_s: float = 60.0,
    memory_mb: int | None = None,
    heard: Callable[[str], None] | None = None,
    **kwargs: Any,
) -> T:
    """Call ``function(*args, **kwargs)`` in a fresh process and return its value.

    Args:
        function: importable by module and name; it imports what it needs by itself.
        args: positional arguments, picklable.
        timeout_s: after so many seconds the child and its children are killed.
        memory_mb: limit of the child's address space.
        heard: called, in a thread, with each line that the function says by :func:`tell`.
        kwargs: keyword arguments, picklable.

    Raises:
        VitedgeError: raised by the function; it passes unchanged.
        ChildError: a crash, the time limit, or any other exception of the function.
    """
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as words, _listening(heard) as line:
        numbers = [memory_mb or 0, line, os.getpid()]
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(path=sys.path), *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=words,
            pass_fds=[line] if line else [],
            env=for_children(),
            start_new_session=True,
        )
        try:
            child.communicate(pickle.dumps((function, args, kwargs)), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ChildError(f"it took longer than {timeout_s:g} seconds and was stopped") from None
        finally:
            if child.poll() is None:
                system.kill_group(child)
                child.wait()
        if child.returncode != 0:
            raise ChildError(f"{cause_of_death(child.returncode)}{_tail(words)}")
        answer.seek(0)
        succeeded, value = pickle.load(answer)
    if succeeded:
        return value  # type: ignore[no-any-return]  # the type is the function's
    raise value


_line = 0  # in the child: the descriptor that :func:`tell` writes to; 0: the parent doesn't listen


def tell(text: str) -> None:
    """Send a line to the caller of :func:`run_isolated`; nothing happens where it doesn't listen."""
    if _line:
        with contextlib.suppress(OSError):  # the parent has gone
            os.write(_line, text.replace("\n", " ").encode() + b"\n")


@contextlib.contextmanager
def _listening(heard: Callable[[str], None] | None) -> Iterator[int]:
    """Yield the descriptor for the child's lines, 0 without a listener; at the end, all lines have been delivered."""
    if heard is None or os.name == "nt":  # Windows passes no descriptors on
        yield 0
        return
    reading, writing = os.pipe()

    def listen() -> None:
        with os.fdopen(reading, errors="replace") as lines:
            for line in lines:
                heard(line.rstrip("\n"))

    thread = threading.Thread(target=listen, name="isolation", daemon=True)
    thread.start()
    try:
        yield writing
    finally:
        os.close(writing)
        thread.join(timeout=5.0)  # a grandchild may still hold the other end


def cause_of_death(code: int) -> str:
    """Describe the exit status of a child process."""
    if code >= 0:
        return f"the process ended with code {code}"
    try:
        return f"the process was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"the process was killed by signal {-code}"


def _tail(output: Any) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - _LAST_WORDS))
    text = output.read().decode(errors="replace").strip()
    return f": {text.splitlines()[-1]}" if text else ""


def _end_with(parent: int) -> None:
    """End with the parent, however it ends, by prctl(2) with PR_SET_PDEATHSIG, where the C library has it."""
    if (prctl := system.c_function("prctl")) is not None:
        prctl(1, signal.Signals["SIGKILL"])
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


def _serve() -> None:
    """Run the child: read the call from stdin, write (succeeded, value or exception) to stdout, all else to stderr."""
    global _line
    memory_mb, _line, parent = map(int, sys.argv[1:4])
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # killed by it, like by any other
    _end_with(parent)
    if memory_mb:
        system.limit_memory(memory_mb)
    result: tuple[bool, Any]
    try:
        function, args, kwargs = pickle.load(sys.stdin.buffer)
        result = True, function(*args, **kwargs)
    except VitedgeError as error:
        result = False, error
    except (Exception, SystemExit) as error:
        result = False, ChildError(f"{type(error).__name__}: {error}")
    try:
        data = pickle.dumps(result)
    except Exception as error:
        data = pickle.dumps((False, ChildError(f"its result can't be returned: {error}")))
    with os.fdopen(answer, "wb") as stream:
        stream.write(data)
