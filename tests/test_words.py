"""Words of documentation, help, errors, tables and public docstrings: short plain sentences, no retired word."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import vitedge
from tests.conftest import ROOT
from vitedge import errors
from vitedge.cli.application import application

PACKAGE = Path(errors.__file__).parent
GENERATED = ("cli.md", "faults.md")  # from help pages and errors, which are read themselves

#: What is retired, and what is said instead.
RETIRED = {
    r"\bplacements?\b|\bplaced graph": "lowering",
    r"\bforms?\b(?! of)": "kernel variant",
    r"\bjur(y|ies)\b|\bsummon": "hold-out set",
    r"\bjudg(e|es|ed|ing)\b|held-out pictures": "evaluate, hold-out pictures",
    r"points? (of top-1 )?lost|lost (pts|points)|points of top-1|\bloses?\b.*\btop-1": "top-1 drop (pp)",
    r"\bagrees,? ?%|\balike\b|called differently": "top-1 agreement (%)",
    r"\bplans \d": "planned",
    r"told apart": "no significant difference",
    r"typically ×": "median ratio",
    r"time ×": "best-case ratio",
    r"\b(by|in|take|takes|taking|took) turns\b|\bturns of\b": "interleaved",
    r"harness's own cost|harness itself": "overhead",
    r"\bdialects?\b|by the rules of": "as the tool measures it",
    r"\bcircumstances\b": "environment",
    r"\bcontenders?\b": "workload",
    r"\bwish(es)?\b": "options",
    r"\bpassports?\b": "engine metadata",
    r"\breferees?\b": "parser check",
    r"unread rows": "unused tokens",
    r"\b(the|these|those) books\b|books balance": "frame counts",
    r"\bweather\b|\brhythm\b|\bturnover\b": "sensor thread, gap detector, state change",
    r"\bshares? of\b": "percentage of, fraction of",
    r"\bper cent\b": "%",
    r"\bproved by\b": "executed by",
    r"passed over": "skipped",
    r"\bthe house\b|\bthe line\b": "the architecture, the pipeline",
}

#: What makes a reader stop, and what is written instead.
UNCLEAR = {
    r"^What (?!(is|are|do|does|did|can|should)\b)[^?]*\.$": "begin with the subject, not with a clause as a noun",
    r"\b(by|of|from|with|than|against|beside|for) what\b(?! (is|it) called)": "a noun in place of 'what …'",
    r"\bso many\b": "the number",
    r"\bit's said\b|\b(are|is|was) told\b": "who reports it, and to whom",
    r"\bof ours\b|\bours\b": "of vitedge",
    r"\bone an? (picture|source|core|line|class|block|shard|board)\b": "one for each",
    r"\bif need be\b|\bas ever\b|\bwon't do\b|\bwill do\b|\bgoes on from\b|\bheeds?\b": "plain words",
    r"\btravels?\b|\bhonest|\bspeaks? of\b|\bthe stranger": "the literal meaning",
}
LONGEST = 45  # words of a sentence
#: The first word of a clause or a fragment.
FRAGMENT = re.compile(r"(What|Which|Who|Whose|Where|When|How|Why|Those|The one|As|At|By|In|Of|Under|With)\b")

#: (file or page, text): why a word or a sentence stands there all the same.
EXEMPT: dict[tuple[str, str], str] = {}


def literals(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every text that a program can show: no docstrings, no keys of a mapping that is read."""
    hidden: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                hidden.add(id(body[0].value))
        if isinstance(node, ast.Subscript):
            hidden.update(id(inner) for inner in ast.walk(node.slice))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            hidden.update(id(argument) for argument in node.args[:1])
        if isinstance(node, ast.keyword) and node.arg == "name":
            hidden.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in hidden:
            yield node


def error_texts() -> Iterator[tuple[str, str]]:
    """The texts passed to an error class of ours, wherever it is raised, and the actions of ``doing``."""
    names = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                while isinstance(function, ast.Attribute) and not function.attr.endswith(("Error", "Error_", "doing")):
                    function = function.value
                name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                if name in names or name in ("doing", "error_type"):
                    for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                        for text in literals(argument):
                            yield str(path.relative_to(PACKAGE)), str(text.value)


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, code as one word."""
    text = re.sub(r"``?[^`]+``?", "CODE", " ".join(text.split()))
    yield from re.split(r"(?<=[.?!])[)\"]?\s+(?=[A-Z\"(*]|\d|vitedge\b)", text)


def documented_texts() -> Iterator[tuple[str, str]]:
    """Paragraphs, list items and headings of the documentation; no code, and no tables, whose cells are notes."""
    pages = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name not in GENERATED]
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages):
        text = re.sub(r"^```.*?^```$|<!--.*?-->|^\|[^\n]*$", "\n\n", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
        text = re.sub(
            r"^#+ (.*)$|^\s*(?:[-*]|\d+\.) ", lambda match: f"\n\n{match[1] or ''}\n\n", text, flags=re.MULTILINE
        )
        for paragraph in re.split(r"\n\s*\n", text.replace("**", "")):
            yield str(path.relative_to(ROOT)), " ".join(paragraph.split())


def public_texts() -> Iterator[tuple[str, str]]:
    """The docstrings that the page of the Python API shows, argument by argument."""
    for name in vitedge.__all__:
        documented = inspect.getdoc(getattr(vitedge, name)) or ""
        for paragraph in re.split(r"\n\s*\n|\n +(?=\w+: )", documented):
            yield f"vitedge.{name}", " ".join(paragraph.split())


def shown_texts() -> Iterator[tuple[str, str]]:
    """Tables, reports and sentences: literals of the modules that write them, and templates without their code."""
    modules = ("demo.py", "doctor.py", "exporting/explain.py", "comparison/compare.py", "benchmarking/validity.py")
    for path in (*sorted((PACKAGE / "reporting").glob("*.py")), *(PACKAGE / name for name in modules)):
        for text in literals(ast.parse(path.read_text())):
            yield str(path.relative_to(PACKAGE)), str(text.value)
    for path in sorted(PACKAGE.rglob("*.html")):
        visible = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|<[^>]*>", "\n", path.read_text(), flags=re.DOTALL)
        for line in visible.splitlines():
            yield str(path.relative_to(PACKAGE)), line


def help_texts() -> Iterator[tuple[str, str]]:
    """What ``--help`` prints of every verb and of each of its options."""
    verbs: list[tuple[str, Any]] = [("vitedge", typer.main.get_command(application()))]
    for verb, command in verbs:
        verbs += [(f"{verb} {name}", inner) for name, inner in getattr(command, "commands", {}).items()]
        described = (command.help or "").split("**Examples**")[0].split("\n\n")
        texts = [*described, *(getattr(option, "help", None) for option in command.params)]
        yield from ((f"{verb} --help", re.sub(r"\s+", " ", text)) for text in texts if text)


def exempt(source: str, text: str) -> bool:
    return any(source == where and words in text for where, words in EXEMPT)


@pytest.mark.parametrize(("texts", "least"), [(error_texts, 1000), (shown_texts, 1000), (help_texts, 150)])
def test_no_retired_word_is_shown(texts: Callable[[], Iterator[tuple[str, str]]], least: int) -> None:
    """``least`` texts are there at all: a collector that finds nothing proves nothing."""
    found, count = [], 0
    for source, text in texts():
        count += 1
        for pattern, instead in RETIRED.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                around = text[max(0, match.start() - 40) : match.end() + 40]
                if not exempt(source, text):
                    found.append(f"{source}: '{around}': say {instead}")
    assert count >= least and not found, "\n".join(found)


@pytest.mark.parametrize(
    ("texts", "least"), [(documented_texts, 600), (help_texts, 150), (error_texts, 1000), (public_texts, 100)]
)
def test_sentences_are_plain_and_short(texts: Callable[[], Iterator[tuple[str, str]]], least: int) -> None:
    found, count = [], 0
    for source, text in texts():
        count += 1
        for sentence in sentences(text):
            wrong = [instead for pattern, instead in UNCLEAR.items() if re.search(pattern, sentence)]
            if len(re.findall(r"[\w'’%·.-]*\w[\w'’%·.-]*", sentence)) > LONGEST:
                wrong.append(f"more than {LONGEST} words")
            found += [f"{source}: '{sentence}': {each}" for each in wrong if not exempt(source, text)]
    assert count >= least and not found, "\n".join(found)


def docstrings() -> Iterator[tuple[str, str]]:
    """The docstrings of all modules, classes and functions, public or not."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(PACKAGE)}:{node.body[0].lineno}", text


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    """Not with a clause ("What the file holds") or a fragment ("Of all boards"), which say nothing by themselves."""
    texts = list(docstrings())
    found = [f"{source}: {text.splitlines()[0]}" for source, text in texts if FRAGMENT.match(text)]
    assert len(texts) >= 2500 and not found, "\n".join(found)
