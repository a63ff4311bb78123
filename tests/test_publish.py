"""What an index, a reader and a release need: metadata, install lines from one place, files that agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import install_lines
from tests.conftest import ROOT
from vitedge import __version__, installation

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("page", install_lines.PAGES, ids=lambda page: page.name)
def test_install_lines_come_from_one_place(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == install_lines.written(page), "run: python -m tests.install_lines"


def test_a_change_there_reaches_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for page in install_lines.PAGES for line in install_lines.LINE.findall(page.read_text("utf-8"))]
    assert len(lines) >= 12
    assert all(set(extras.split(",")) <= set(PROJECT["optional-dependencies"]) for _, extras in lines)
    monkeypatch.setattr(installation, "SOURCE", "")
    assert not [page for page in install_lines.PAGES if "/archive/main.zip" in install_lines.written(page)]


def test_the_metadata_is_complete() -> None:
    assert {"Homepage", "Documentation", "Changelog", "Issues", "Source"} <= set(PROJECT["urls"])
    assert PROJECT["description"] and PROJECT["keywords"] and PROJECT["authors"] and PROJECT["license"] == "Apache-2.0"
    minors = [int(name.rpartition(".")[2]) for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert minors == list(range(int(PROJECT["requires-python"].removeprefix(">=3.")), max(minors) + 1))
    assert f"3.{sys.version_info.minor}" in [f"3.{minor}" for minor in minors], "this Python isn't listed"


def test_the_citation_is_of_this_version() -> None:
    fields = dict(re.findall(r"^([\w-]+): (\S.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert fields["version"] == __version__ and fields["license"] == PROJECT["license"]
    assert fields["repository-code"] == PROJECT["urls"]["Source"]
    assert {"cff-version", "message", "title", "type"} <= set(fields)


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_call_scripts_that_exist(workflow: Path) -> None:
    called = re.findall(r"bash (\.ci/\w+)", workflow.read_text())
    assert called and all(os.access(ROOT / script, os.X_OK) for script in called)


def test_the_notes_of_a_release_are_its_section() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    (command,) = re.findall(r"- run: (sed .+) >notes.md", text)
    environment = {**os.environ, "GITHUB_REF_NAME": "v0.1.0"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() and "## " not in done.stdout.replace("### ", ""), done.stderr
    assert done.stdout in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_would_be_published_passes_the_checks_of_an_index(tmp_path: Path) -> None:
    """Both archives are built, twine finds nothing to say about them, and the wheel starts in an empty environment."""
    done = subprocess.run(["bash", ROOT / ".ci" / "publish", tmp_path / "dist"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert sorted(path.name for path in (tmp_path / "dist").iterdir()) == [
        f"vitedge-{__version__}-py3-none-any.whl",
        f"vitedge-{__version__}.tar.gz",
    ]
    assert done.stdout.count("PASSED") == 2 and f"vitedge {__version__}" in done.stdout
