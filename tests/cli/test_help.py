"""Help pages: complete, quick to read, and the same as in the documentation."""

from __future__ import annotations

import pytest

from tests.cli import help_pages
from tests.cli.command import fails, vitedge
from tests.conftest import ROOT
from vitedge import __version__
from vitedge.cli.application import VERBS

WRITTEN = (ROOT / "docs" / "cli.md").read_text()


@pytest.mark.skipif(
    help_pages.laid_out_by() != help_pages.WRITTEN_WITH,
    reason="another typer or rich lays pages out otherwise; their words are compared all the same",
)
def test_the_documentation_shows_the_help_pages() -> None:
    assert help_pages.document() == WRITTEN, "run: python -m tests.cli.help_pages > docs/cli.md"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_the_documentation_has_every_word_of_ours_and_no_other(verb: str) -> None:
    """Whatever typer and rich make of them."""
    shown, ours = help_pages.words(help_pages.sections(WRITTEN)[verb]), help_pages.told(verb)
    assert ours - shown == {}, "the documentation lacks them"
    assert shown.keys() - ours.keys() - help_pages.values(verb).keys() - help_pages.TYPERS == set(), "nobody says them"


def test_the_documentation_has_a_section_for_every_verb() -> None:
    assert list(help_pages.sections(WRITTEN)) == ["", *VERBS]


def test_changed_words_would_be_noticed() -> None:
    page = help_pages.sections(WRITTEN)["verify"]
    assert help_pages.told("verify") - help_pages.words(page.replace("--threads", "--thread"))
    assert help_pages.told("verify") - help_pages.words(page.replace("compute threads", "threads"))


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
    assert done.out == f"vitedge {__version__}\n"


def test_unknown_verb_is_a_usage_error() -> None:
    done = vitedge("exprot")
    assert done.code == 2 and done.out == ""
    assert done.err.strip() and "Traceback" not in done.err


def test_a_bug_is_called_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitedge import doctor

    def broken() -> None:
        raise RuntimeError("planted")

    monkeypatch.delenv("VITEDGE_DEBUG", raising=False)
    monkeypatch.setattr(doctor, "examine", broken)
    _, reason, _ = fails(1, "doctor")
    assert reason == "a bug in vitedge: RuntimeError: planted"
