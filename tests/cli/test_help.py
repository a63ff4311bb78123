"""Help pages: complete, quick to read, and the same as in the documentation."""

from __future__ import annotations

import pytest

from tests.cli.command import fails, vitedge
from tests.cli.help_pages import document
from tests.conftest import ROOT
from vitedge.cli import VERBS


def test_the_documentation_shows_the_help_pages() -> None:
    written = (ROOT / "docs" / "cli.md").read_text()
    assert written == document(), "run: python -m tests.cli.help_pages > docs/cli.md"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(verb: str) -> None:
    done = vitedge(verb, "--help")
    assert done.code == 0
    assert "Example" in done.out
    assert f"vitedge {verb}" in done.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_readme(verb: str) -> None:
    assert f"`{verb}`" in (ROOT / "README.md").read_text()


def test_version() -> None:
    done = vitedge("--version")
    assert done.code == 0
    assert done.out.startswith("vitedge 0.")


def test_unknown_verb_is_a_usage_error() -> None:
    done = vitedge("exprot")
    assert done.code == 2
    assert "export" in done.err


def test_a_bug_is_called_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitedge import machine

    def broken() -> None:
        raise RuntimeError("planted")

    monkeypatch.delenv("VITEDGE_DEBUG", raising=False)
    monkeypatch.setattr(machine, "examine", broken)
    _, true, _ = fails(1, "doctor")
    assert true == "a bug in vitedge: RuntimeError: planted"
