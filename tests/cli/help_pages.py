"""The ``--help`` pages as one document: ``python -m tests.cli.help_pages > docs/cli.md`` writes it anew.

typer and rich lay the pages out, in the versions of constraints.txt; write the document anew when these change.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import typer.main

from vitedge.cli.application import STEPS, VERBS, application
from vitedge.core.versions import newest_tested

WRITTEN_WITH = {name: newest_tested(name) for name in ("typer", "rich")}
#: Words of the document that are typer's, not ours.
TYPERS = frozenset(
    re.findall(
        r"\w+",
        "Usage OPTIONS COMMAND ARGS Options Arguments Commands Show this message and exit h help required default "
        "env var str int float path range x install show completion Install Show for the current shell to copy it or "
        "customize installation",
    )
)

HEAD = """# The command line

These are the `--help` pages, word for word; a test holds them against the program.
"""


def page(*arguments: str) -> str:
    """One help page at 100 columns, without colours."""
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    environment.pop("FORCE_COLOR", None)
    environment.pop("GITHUB_ACTIONS", None)
    done = subprocess.run(
        [sys.executable, "-m", "vitedge", *arguments, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def document() -> str:
    """All pages as Markdown."""
    parts = [HEAD, f"```\n$ vitedge --help\n{page()}\n```\n"]
    for verb in VERBS:
        pages = [(verb,), *((verb, name) for name in subcommands(verb))]
        shown = [f"```\n$ vitedge {' '.join(words)} --help\n{page(*words)}\n```\n" for words in pages]
        parts += [f"## {verb}\n", *shown]
    return "\n".join(parts)


def subcommands(verb: str) -> dict[str, Any]:
    """The verbs of a group of verbs; most have none."""
    root: Any = typer.main.get_command(application())
    return dict(getattr(root.commands[verb], "commands", {}))


def laid_out_by() -> dict[str, str]:
    """The versions that lay pages out here."""
    return {name: importlib.metadata.version(name) for name in WRITTEN_WITH}


def sections(written: str) -> dict[str, str]:
    """The document by verb; what stands in front of the first one is vitedge's own page."""
    first, *rest = re.split(r"^## ([\w-]+)$", written, flags=re.MULTILINE)
    return {"": first.removeprefix(HEAD), **dict(zip(rest[::2], rest[1::2], strict=True))}


def words(text: str) -> Counter[str]:
    """Its words: what boxes, columns and line ends do to a text is left out."""
    return Counter(re.findall(r"[^\W_]+", text))


def told(verb: str) -> Counter[str]:
    """Every word that the command line says about a verb, by its functions' texts; about all verbs if it's empty."""
    root: Any = typer.main.get_command(application())
    command = root.commands[verb] if verb else root
    texts = [f"vitedge {verb} {command.help or ''}", *_parameters(command)]
    panels = {getattr(parameter, "rich_help_panel", None) or "" for parameter in command.params}
    for name, one in (subcommands(verb) if verb else {}).items():
        texts += [f"vitedge {verb} {name} {one.help or ''} {name} {_first(one)}", *_parameters(one)]
        panels |= {getattr(parameter, "rich_help_panel", None) or "" for parameter in one.params}
    if not verb:
        panels |= set(STEPS.values())
        texts += [f"{name} {_first(one)}" for name, one in root.commands.items()]
    return words(" ".join([*texts, *panels]))


def _first(command: Any) -> str:
    """What an overview says of a command."""
    return str(command.help or "").split("\n\n")[0]


def _parameters(command: Any) -> Iterator[str]:
    for parameter in command.params:
        names = parameter.opts if parameter.param_type_name == "option" else [parameter.name]
        yield " ".join([*names, *parameter.secondary_opts, getattr(parameter, "help", None) or ""])


def values(verb: str) -> Counter[str]:
    """Words that a page may have beside: defaults, bounds, choices, names of values."""
    root: Any = typer.main.get_command(application())
    commands = [root.commands[verb], *subcommands(verb).values()] if verb else [root]
    found = []
    for parameter in (each for command in commands for each in command.params):
        default = getattr(parameter.default, "value", parameter.default)
        bounds = [getattr(parameter.type, name, "") for name in ("min", "max", "choices")]
        found.append(f"{default} {parameter.metavar} {bounds} {getattr(parameter, 'envvar', '')}")
    return words(" ".join(found))


if __name__ == "__main__":
    sys.stdout.write(document())
