"""The ``--help`` pages as one document: ``python -m tests.cli.help_pages > docs/cli.md`` writes it anew."""

from __future__ import annotations

import os
import subprocess
import sys

from vitedge.cli import VERBS

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
    parts += [f"## {verb}\n\n```\n$ vitedge {verb} --help\n{page(verb)}\n```\n" for verb in VERBS]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(document())
