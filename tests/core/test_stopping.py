"""SIGINT and SIGTERM: the first raises, is acknowledged where it takes a while, and the second ends the process."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vitedge.core.stopping import ACKNOWLEDGED, postponed
from vitedge.errors import Interrupted, VitedgeError, signal_of

BOTH = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]

#: A command that does something, says "ready" while it does, and ends as the command line does.
COMMAND = """
import contextlib, os, subprocess, sys, threading, time
from vitedge import cli
from vitedge.core import stopping
from vitedge.errors import ResourceError

def step(*_):
    threading.Timer(0.2, os.write, (1, b"ready\\n")).start()
    {step}

class Application:
    def __call__(self, *_, **__):
        step()

from vitedge.cli import application
application.needed = lambda arguments: Application()
cli.main([])
"""
#: A native call that no signal interrupts: a mutex, locked a second time.
NATIVE = (
    "import ctypes; lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64); "
    "lock(mutex); lock(mutex)"
)


def started(step: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(step=step)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def ended(child: subprocess.Popen[str]) -> tuple[int, str]:
    assert child.stdout is not None and child.stderr is not None
    err = child.stderr.read()
    child.stdout.close()
    child.stderr.close()
    return child.wait(60), err


def said(name: str) -> str:
    return (
        f"error: stop\n       received {name}; nothing half-written was left\n"
        "       run the command again; if its output is complete already, add --overwrite\n"
    )


@pytest.mark.parametrize(("number", "code"), BOTH)
def test_a_stop_at_once_says_only_what_stopped_it(number: signal.Signals, code: int) -> None:
    child = started("time.sleep(60)")
    child.send_signal(number)
    assert ended(child) == (code, said(number.name))


SWALLOWED = {
    "broad handler": "\n    while True:\n        try: time.sleep(60)\n        except Exception: pass",
    "suppressed": "\n    while True:\n        with contextlib.suppress(Exception): time.sleep(60)",
    "turned into a fault": "\n    try: time.sleep(60)\n    except BaseException: raise ImportError('numpy.core')",
    "a failing clean-up": "\n    try: time.sleep(60)\n    finally: {}['absent']",
    "an exit": "\n    try: time.sleep(60)\n    finally: raise SystemExit(1)",
    "within a finaliser": (
        "\n    class Slow:\n        def __del__(self): time.sleep(60)"
        "\n    slow = Slow()\n    del slow\n    time.sleep(60)"
    ),
}


@pytest.mark.parametrize("step", SWALLOWED.values(), ids=SWALLOWED.keys())
def test_a_stop_that_foreign_code_swallows_is_a_stop(step: str) -> None:
    child = started(step)
    child.send_signal(signal.SIGTERM)
    assert ended(child) == (143, said("SIGTERM"))


def test_what_cannot_be_saved_is_said() -> None:
    full = "ResourceError('write the result r.json', 'No space left on device', 'free space')"
    child = started(f"\n    try: time.sleep(60)\n    finally: raise {full}")
    child.send_signal(signal.SIGINT)
    code, err = ended(child)
    assert code == 130
    assert err.splitlines()[1:] == [
        "       received SIGINT; then: write the result r.json: No space left on device",
        "       free space",
    ]


@pytest.mark.parametrize(("number", "code"), BOTH)
def test_within_a_native_call_it_is_acknowledged_and_the_second_ends_it(number: signal.Signals, code: int) -> None:
    child = started(NATIVE)
    assert child.stderr is not None
    child.send_signal(number)
    child.send_signal(number)  # as `timeout` does
    assert child.stderr.readline() == ACKNOWLEDGED
    assert child.poll() is None
    child.send_signal(number)
    assert ended(child) == (code, "")


def test_the_second_signal_takes_the_children_along() -> None:
    child = started(
        "\n    from vitedge.core.isolation import run_isolated"
        "\n    threading.Thread(target=run_isolated, args=(time.sleep, 600), daemon=True).start()"
        f"\n    {NATIVE}"
    )
    assert child.stderr is not None
    deadline = time.monotonic() + 20
    while not (inside := [path for path in Path("/proc").glob("[0-9]*") if _parent(path) == child.pid]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    assert child.stderr.readline() == ACKNOWLEDGED
    child.send_signal(signal.SIGINT)
    assert ended(child)[0] == 130
    while any(_parent(path) is not None for path in inside):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.02)


def _parent(process: Path) -> int | None:
    """Of a process that runs; None once it has ended."""
    try:
        state, parent = (process / "stat").read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


@pytest.mark.parametrize(("number", "code"), BOTH)
def test_a_signal_after_the_end_changes_nothing(number: signal.Signals, code: int) -> None:
    child = started("import atexit; atexit.register(lambda: (os.write(1, b'over\\n'), time.sleep(0.2)))")
    assert child.stdout is not None and child.stdout.readline() == "over\n"
    child.send_signal(number)
    assert ended(child) == (0, "")


def test_a_stop_is_no_exception() -> None:
    stop = Interrupted("a", "b", "c", signal_number=signal.SIGTERM)
    assert not isinstance(stop, (Exception, VitedgeError)) and isinstance(stop, KeyboardInterrupt)
    assert (stop.exit_code, signal_of(stop), str(stop)) == (143, signal.SIGTERM, "a\n       b\n       c")
    assert signal_of(KeyboardInterrupt()) == signal.SIGINT


def test_postponed_in_a_program_the_second_does_what_it_did() -> None:
    calls: list[int] = []
    with postponed(lambda: calls.append(1)) as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT] and calls == [1]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_postponed_in_another_thread_takes_no_signals() -> None:
    handlers: list[object] = []

    def work() -> None:
        with postponed() as received:
            handlers.extend((signal.getsignal(signal.SIGINT), received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler, []]


STOPS = {"BaseException", "KeyboardInterrupt", "Interrupted", "Stopped"}


def caught(kind: ast.expr | None) -> set[str]:
    """The names in an ``except``; of a bare one, everything."""
    return {"BaseException"} if kind is None else {name.id for name in ast.walk(kind) if isinstance(name, ast.Name)}


def leaves(node: ast.AST) -> bool:
    """Whether a statement of a ``finally`` leaves it, which drops what was raised."""
    return any(
        isinstance(inner, (ast.Return, ast.Break, ast.Continue))
        for inner in ast.walk(node)
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.For, ast.While))
    )


def test_no_handler_keeps_a_stop() -> None:
    """But for the command line, which ends by it."""
    keep = []
    for path in sorted((ROOT / "vitedge").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and path.parent.name != "cli":
                wrong = bool(caught(node.type) & STOPS) and not isinstance(node.body[-1], ast.Raise)
            elif isinstance(node, ast.Try):
                wrong = any(map(leaves, node.finalbody))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                wrong = bool(STOPS & {name for given in node.args for name in caught(given)})
            else:
                continue
            keep += [f"{path}:{node.lineno}"] * wrong
    assert not keep
