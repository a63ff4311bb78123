"""The code blocks of a documentation page, in the order in which a reader types them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parents[2] / "docs"
_BLOCK = re.compile(
    r"^(<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """One block."""

    kind: str  # "": lines for a shell; "python"; "text" and others aren't typed
    code: str
    why: str  # the tests don't run it; "": they do

    @property
    def commands(self) -> list[str]:
        """What is typed: each line of a shell, or one Python program."""
        return self.code.splitlines() if not self.kind else [self.code] if self.kind == "python" else []


def blocks(page: str) -> list[Block]:
    """The blocks of a page, named from ``docs/``: ``start/python.md``."""
    return [
        Block(found["kind"], found["code"], found["why"] or "") for found in _BLOCK.finditer((DOCS / page).read_text())
    ]


def shell(block: Block, command: str, python: str) -> list[str]:
    """The lines of a shell script that do what a command of a block does."""
    return [command] if not block.kind else [f"{python} - <<'PYTHON'", command, "PYTHON"]
