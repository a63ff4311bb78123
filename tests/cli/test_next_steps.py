"""What to type next: a command that the parser takes, which the next verb understands; silent when asked to be."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.cli.command import vitedge
from vitedge.cli.application import VERBS, application
from vitedge.cli.next_steps import NEXT


def next_step(*arguments: object) -> list[str]:
    """The words after ``vitedge`` of the next step that a command prints; none where it prints none."""
    done = vitedge(*arguments)
    assert done.code == 0, done.err
    lines = [line.removeprefix("next: vitedge ") for line in done.err.splitlines() if line.startswith("next: ")]
    assert len(lines) <= 1 and (not lines or done.err.endswith(f"{lines[0]}\n")), done.err
    return shlex.split(lines[0]) if lines else []


def test_every_verb_says_what_follows() -> None:
    assert set(NEXT) == set(VERBS)


def test_the_steps_lead_from_a_model_to_a_report(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    """Each command is the one that the step before printed, with folders for what only the user knows."""
    known = {"PICTURES/": str(small_data), "artifact/": str(tmp_path / "my artifact"), "result.json": "result.json"}
    ran = []
    words = next_step("inspect", small_model)
    while words and words[0] not in ("stream", "eval"):
        words = [str(tmp_path / "r.json") if word == "result.json" else known.get(word, word) for word in words]
        words += ["--duration", "0.1", "--warmup", "0.1"] if words[0] == "bench" else []
        ran.append(words[0])
        words = next_step(*words)
    assert ran == ["export", "verify", "bench", "report"]
    assert (tmp_path / "r.html").is_file()


@pytest.mark.parametrize("silence", ["--quiet", "--json"])
def test_nothing_is_said_to_who_asked_for_silence(silence: str) -> None:
    assert next_step("targets") and not next_step("targets", silence)


def test_each_next_step_is_a_command(tmp_path: Path) -> None:
    """With values of every verb, whatever it says is parsed by the verb that it names."""
    (tmp_path / "model.json").touch()
    values: dict[str, Any] = {
        **{"out": tmp_path, "data": "d", "model": "m", "artifact": ["a"], "target": ["openvino"], "name": None},
        **{"dry_run": False, "autotune": False, "new": None, "path": tmp_path, "precision": None, "table": "t.json"},
        **{"latency": None, "speedup": None, "macs": None},
    }
    group: Any = typer.main.get_command(application())
    for verb, follows in NEXT.items():
        one = {**values, "artifact": "a"} if verb in ("verify", "classify") else values
        one = {**values, "target": "openvino"} if verb == "shrink" else one
        others = {"bench": {"out": None}, "eval": {"out": None}, "compare": {"out": None}, "shrink": {"macs": 0.5}}
        for each in (one, {**one, **others[verb]}) if verb in others else (one,):
            if words := [str(word) for word in follows(each)]:
                group.commands[words[0]].make_context(words[0], words[1:])
