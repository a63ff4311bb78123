"""The code blocks of a documentation page, and running them in the order in which a reader types them."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

DOCS = ROOT / "docs"
#: Kinds of blocks that are typed; of the others, these show a file or an output.
SHELL, SHOWN = ("", "sh"), ("text", "toml", "ini", "yaml", "dockerfile", "sql")
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?(?:<!-- program: (?P<program>\S+) -->\n)?"
    r"```(?P<kind>\w*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """One block."""

    kind: str  # "" and "sh": lines for a shell; "python"; "text" and others aren't typed
    code: str
    why: str  # the tests don't run it; "": they do
    program: str  # its name in tests/runtimes/test_without_vitedge.py, which runs it; "": it's no program

    @property
    def commands(self) -> list[str]:
        """What is typed: each line of a shell, or one Python program."""
        return self.code.splitlines() if self.kind in SHELL else [self.code] if self.kind == "python" else []


def blocks(page: str) -> list[Block]:
    """The blocks of a page, named from ``docs/``: ``start/python.md``."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = [Block(*(block[name] or "" for name in Block._fields)) for block in _BLOCK.finditer(text)]
    assert len(re.findall("^```", text, re.MULTILINE)) == 2 * len(found), f"{page}: a block isn't understood"
    return found


def section(title: str) -> list[str]:
    """The pages below a title of the site's navigation."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (part,) = re.findall(rf"^  - {title}:\n((?:      - .*\n)+)", navigation, re.MULTILINE)
    return re.findall(r": (\S+\.md)$", part, re.MULTILINE)


def typed() -> Iterator[tuple[str, Block]]:
    """Yield every block of the pages whose commands are typed, with its page."""
    for title in ("Start", "Tutorials", "How-to"):
        for page in section(title):
            yield from ((page, block) for block in blocks(page))


def shell(block: Block, command: str, python: str) -> list[str]:
    """The lines of a shell script that do what a command of a block does."""
    return [f"{python} - <<'PYTHON'", command, "PYTHON"] if block.kind == "python" else [command]


def script(page: str, after: Mapping[str, str], instead: Mapping[str, str]) -> str:
    """The blocks of a page that are run, as one shell script.

    Args:
        page: its path below docs/.
        after: by a line of the page, what a reader does by hand once it's done.
        instead: by a text of the page, what the test types: less work, or an address that is here.
    """
    lines = ["set -euo pipefail"]
    for block in blocks(page):
        for command in block.commands if not block.why and not block.program else ():
            lines += [*shell(block, command, sys.executable), *filter(None, [after.get(command)])]
    for line in after:
        assert line in lines, f"{page} no longer says: {line}"
    text = "\n".join(lines)
    for said, typed in instead.items():
        assert said in text, f"{page} no longer says: {said}"
        text = text.replace(said, typed)
    return text


def follow(
    page: str, folder: Path, after: Mapping[str, str] | None = None, instead: Mapping[str, str] | None = None
) -> str:
    """Run a page in a folder, as :func:`script` says; what it printed."""
    commands = folder / ".commands"
    commands.mkdir()
    (commands / "vitedge").write_text(f'#!/bin/sh\nexec {sys.executable} -m vitedge "$@"\n')
    (commands / "vitedge").chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    typed = ["bash", "-c", script(page, after or {}, instead or {})]
    done = subprocess.run(typed, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def vitedge_commands(block: Block) -> Iterator[list[str]]:
    """The words of each ``vitedge`` command in a block of shell lines, without ``vitedge``."""
    code = block.code.replace("\\\n", " ") if block.kind in SHELL else ""
    for name, value in re.findall(r'^(\w+)="(.*)"$', code, re.MULTILINE):
        code = code.replace(f"${name}", value)
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        while words:
            command = list(itertools.takewhile("&&".__ne__, words))
            words = words[len(command) + 1 :]
            if Path(command[0]).name == "vitedge":
                yield command[1:]
