"""The steps of a project: one vitedge command each, run in a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vitedge.core.schema import Record, load_toml
from vitedge.errors import Interrupted, UsageError, VitedgeError, nearest, signal_of
from vitedge.project.new import PROJECT_FILE


class Project(Record):
    """The contents of ``vitedge.toml``."""

    steps: dict[str, str]  # a command line by its name, in the order of the file


def run_project(
    names: Sequence[str] = (),
    *,
    start: str | None = None,
    file: Path = Path(PROJECT_FILE),
    say: Callable[[str], None] = lambda words: None,
) -> None:
    """Run steps of a project, each in a process of its own, in the folder of its file; the first failure ends the run.

    Args:
        names: of the steps; none: all of them.
        start: leave out the steps before this one.
        file: of the project.
        say: called with one sentence a step.

    Raises:
        UsageError: an unreadable file, an unknown step, a step that isn't a command of vitedge.
        VitedgeError: a step failed; the exit code is the step's.
        Interrupted: SIGINT or SIGTERM; the step was stopped, too.
    """
    action = f"run the steps of {file}"
    if not file.exists():
        raise UsageError(
            action, "there is no such file", "change into the project's folder, or run: vitedge new PROJECT"
        )
    steps = {name: _words(name, line, action) for name, line in load_toml(file, Project, action).steps.items()}
    for name in (*names, *([start] if start else [])):
        if name not in steps:
            reason = f"there is no step '{name}'{nearest(name, steps)}"
            raise UsageError(action, reason, f"choose from: {', '.join(steps)}")
    order = list(steps)
    chosen = list(names) or order[order.index(start) if start else 0 :]
    for number, name in enumerate(chosen, 1):
        say(f"step {number} of {len(chosen)}, {name}: {shlex.join(['vitedge', *steps[name]])}")
        where = "" if file == Path(PROJECT_FILE) else f"--file {shlex.quote(str(file))} "
        _run(name, steps[name], file.parent, f"run: vitedge run {where}--from {shlex.quote(name)}")


def _words(name: str, line: str, action: str) -> list[str]:
    """Return the words after ``vitedge`` of a step."""
    try:
        program, *words = shlex.split(line)
    except ValueError as error:
        raise UsageError(action, f"the step '{name}' can't be read: {error}", "correct the step's quotes") from error
    if program != "vitedge" or not words:
        raise UsageError(action, f"the step '{name}' isn't a vitedge command: {line}", 'write: "vitedge VERB …"')
    if words[0] == "run":
        raise UsageError(action, f"the step '{name}' would run all steps again", "write the verbs that it's to run")
    return words


def _run(name: str, words: Sequence[str], folder: Path, go_on: str) -> None:
    command = [sys.executable, "-m", "vitedge", *words]
    with subprocess.Popen(command, cwd=folder, env={**os.environ, "VITEDGE_STEP": name}) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt as stop:
            number = signal_of(stop)
            process.send_signal(number)
            process.wait()
            reason = f"received {number.name}; the step was stopped"
            raise Interrupted(f"run the step '{name}'", reason, go_on, signal_number=number) from stop
    if code:
        error = VitedgeError(f"run the step '{name}'", f"it ended with {code}; its own error stands above", go_on)
        error.exit_code = code if code > 0 else 128 - code
        raise error
