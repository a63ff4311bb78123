"""Words that can't be used: one block of ours, all that is missing at once; ``--json`` without a file is stdout."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.cli.command import fails, vitedge
from vitedge.cli import synonyms
from vitedge.cli.application import VERBS, application
from vitedge.cli.records import parameters
from vitedge.streaming.settings import StreamSettings


@pytest.mark.parametrize(
    ("words", "reason", "hint"),
    [
        ("exprot model/", "there is no verb 'exprot'; the nearest is 'export'", "run: vitedge --help"),
        (
            "bench a --durtion 3",
            "there is no option '--durtion'; the nearest is '--duration'",
            "run: vitedge bench --help",
        ),
        ("--verbose doctor", "there is no option '--verbose'; here it's '--debug'", "run: vitedge --help"),
        ("shrink m --budget 3", "there is no option '--budget'", "run: vitedge shrink --help"),
        (
            "quantize model/",
            "there is no verb 'quantize'; here it's 'vitedge export --precision int8'",
            "run: vitedge --help",
        ),
        (
            "fleet predict a",
            "there is no verb 'predict'",
            "run: vitedge fleet --help",
        ),
        (
            "bench a --num_threads 3",
            "there is no option '--num_threads'; here it's '--threads'",
            "run: vitedge bench --help",
        ),
        (
            "export --model m",
            "there is no option '--model'; here it's the argument MODEL",
            "run: vitedge export --help",
        ),
        ("classify a b --top-k 0", "--top-k: 0 is not in the range 1<=x<=100", "run: vitedge classify --help"),
        ("report a --format pdf", "--format: 'pdf' is not one of 'html', 'md', 'csv'", "run: vitedge report --help"),
        ("eval a --limit", "option '--limit' requires an argument", "run: vitedge eval --help"),
    ],
)
def test_words_that_cannot_be_used_are_one_block(words: str, reason: str, hint: str) -> None:
    assert fails(2, *words.split())[1:] == [reason, hint]


def test_words_of_other_tools_lead_to_words_that_there_are() -> None:
    """None is ours already in every verb, and what it leads to exists."""
    every = typer.main.get_command(application())
    commands = every.commands  # type: ignore[attr-defined]
    ours = {
        name: {word for each in verb.params for word in (*each.opts, str(each.name).upper())}
        for name, verb in {**commands, "": every}.items()
    }
    for word, meant in synonyms.VERBS.items():
        verb, *option = meant.split()
        assert word not in commands and set(option[:1]) <= ours[verb], word
    for word, meanings in synonyms.OPTIONS.items():
        for meaning in meanings:
            reached = [words for words in ours.values() if word not in words and meaning.split()[0] in words]
            assert reached, (word, meaning)


def test_all_that_is_missing_is_named_at_once() -> None:
    action, reason, hint = fails(2, "export")
    assert action == "run 'vitedge export'" and reason == "missing: MODEL, --target, --out"
    assert hint.startswith("run: vitedge export MODEL --target TARGET --out OUT (")
    _, reason, hint = fails(2, "export", "my model", "-t", "openvino")
    assert reason == "missing: --out"
    assert shlex.split(hint.removeprefix("run: "))[:6] == ["vitedge", "export", "my model", "-t", "openvino", "--out"]


def options(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every option of a command and of those inside it, with the words that lead to it."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from options(inner, *path, name)
    yield from ((path, each) for each in command.params if each.param_type_name == "option")


def test_every_time_is_read_in_the_same_forms() -> None:
    """No option counts seconds by another name, and all refuse the same words."""
    every = {(*path, each.opts[0]): each for path, each in options(typer.main.get_command(application()))}
    times = {name for name, each in every.items() if each.metavar == "<time>"}
    assert {(verb, "--duration") for verb in ("bench", "build", "compare", "demo", "stream")} <= times
    assert {("fleet", "bench", "--duration"), ("train", "--checkpoint-seconds")} <= times
    seconds = {name for name, each in every.items() if each.metavar == "<seconds>" or "duration" in name[-1]}
    assert seconds <= times
    arguments = {"bench": "a", "build": "a", "compare": "a b", "demo": "", "stream": "a test://"}
    for verb, words in arguments.items():
        refused = fails(2, verb, *words.split(), "--duration", "soon")
        assert refused == ["read a time", "'soon' isn't one", "write 90, 90s, 10m or 1h"], verb
    for verb in ("build", "compare", "demo"):
        option = every[verb, "--duration"]
        assert option.type_cast_value(None, "10m") == 600
    assert {parameter.value("10m") for parameter in parameters(StreamSettings) if parameter.name == "duration"} == {600}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_words_runs_or_names_what_is_missing(verb: str) -> None:
    done = vitedge(verb, "--help")
    if "[required]" in done.out:
        _, reason, _ = fails(2, verb)
        assert reason.startswith("missing: ")


def test_help_needs_nothing_else() -> None:
    assert vitedge("export", "--help").code == 0


def test_json_without_a_file_is_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    alone, dash = vitedge("recipes", "--json"), vitedge("recipes", "--json", "-")
    assert alone.code == 0 and alone.out == dash.out and json.loads(alone.out)
    assert json.loads(vitedge("recipes", "--json", "--quiet").out)
    assert vitedge("recipes", "--json", "file.json").code == 0
    assert json.loads((tmp_path / "file.json").read_text()) and "recipe" in vitedge("recipes").out


def test_a_word_that_json_took_is_named() -> None:
    _, reason, _ = fails(2, "verify", "--json", "artifact/")
    assert reason == "missing: ARTIFACT; --json took 'artifact/' for its file, write --json - for stdout"
