"""The documentation site: built strictly, so that a broken link or an unknown name ends it, and complete."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import vitedge

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None:
        pytest.skip("the extra docs isn't installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_page_is_in_the_navigation(site: Path) -> None:
    named = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(there) == sorted(set(named) - {"index.md", "api.md"})  # which are made
    for name in named:
        page = "index.html" if name == "index.md" else f"{name.removesuffix('.md')}/index.html"
        assert (site / page).is_file(), name


def test_every_public_name_is_described(site: Path) -> None:
    page = (site / "api/index.html").read_text()
    missing = [name for name in vitedge.__all__ if name != "__version__" and f'id="vitedge.{name}"' not in page]
    assert missing == []
    assert ":func:" not in page


def test_a_block_that_the_tests_do_not_run_says_so(site: Path) -> None:
    for page, reason in {"start/camera": "installing is tested", "without-vitedge": "it needs TensorRT"}.items():
        text = (site / page / "index.html").read_text().replace("&rsquo;", "'")
        assert f"The tests don't run this: {reason}" in text


def test_tables_are_those_of_the_result_files() -> None:
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    page = tables["PAGE"].read_text(encoding="utf-8")
    assert tables["written"](page) == page, "run: python benchmarks/tables.py"


def test_pages_ask_no_other_host_for_anything(site: Path) -> None:
    page = (site / "index.html").read_text()
    loaded = re.findall(r"<(?:script|img)[^>]+src=.?(https?://[^\s>]+)", page)
    loaded += re.findall(r"<link[^>]+href=.?(https?://[^\s>]+)[^>]*rel=.?stylesheet", page)
    assert loaded == []
