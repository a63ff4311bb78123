"""The documents' install lines: ``python -m tests.install_lines`` writes them anew by ``SOURCE`` of installation.py."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import ROOT
from vitedge.installation import requirement

#: What a ``pip install`` line installs of vitedge, with the extras as a group.
LINE = re.compile(r'(pip install (?:-[\w./-]+ )*)"vitedge\[([\w,-]+)\][^"]*"')
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def written(page: Path) -> str:
    """A page with the install lines that it should have; those that name a folder of wheels stay."""
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(
        line if "--no-index" in line else LINE.sub(lambda match: f'{match[1]}"{requirement(match[2])}"', line)
        for line in lines
    )


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page), encoding="utf-8")
