"""What the documentation site adds to the pages: the home page, links out of docs/, and the list of the Python API.

MkDocs calls these functions by their names (``hooks`` in ``mkdocs.yml``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_RELATIVE = re.compile(r"(\]\()((?!https?:|#|mailto:)[^)\s]+)(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the home page, which is the README, and the reference of the Python API."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    files.append(File.generated(config, "api.md", content=_api()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to files that aren't pages lead to the repository, and show why a block isn't run by the tests."""
    folder = ROOT if page.file.src_uri == "index.md" else (ROOT / "docs" / page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        path, _, anchor = match[2].partition("#")
        place = (folder / path).resolve()
        if place.is_relative_to(ROOT / "docs"):
            start = (ROOT / "docs" / page.file.src_uri).parent
            link = Path(*[".."] * len(start.relative_to(ROOT / "docs").parts), place.relative_to(ROOT / "docs"))
        elif place.is_relative_to(ROOT) and place.exists():
            kind = "raw" if place.suffix in (".png", ".svg") else "blob"
            return f"{match[1]}{config.repo_url}/{kind}/main/{place.relative_to(ROOT)}{match[3]}"
        else:
            link = Path(path)
        return f"{match[1]}{link}{'#' + anchor if anchor else ''}{match[3]}"

    markdown = re.sub(r"<!-- not run: (.*?) -->", r"*The tests don't run this: \1.*\n", markdown)
    return _RELATIVE.sub(moved, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Show names in docstrings as names: ``:func:`vitedge.export` `` is Sphinx's spelling."""
    return re.sub(r":(?:func|class|meth|mod|data|attr):<code>~?(?:vitedge\.)?([^<]+)</code>", r"<code>\1</code>", html)


def _api() -> str:
    """A page with every public name of ``import vitedge``, functions first."""
    import vitedge

    names = [name for name in vitedge.__all__ if name != "__version__"]
    groups = {
        "Functions": [name for name in names if name[0].islower()],
        "Errors": [name for name in names if name.endswith("Error") or name in ("Interrupted", "Stopped")],
    }
    groups["Types"] = [name for name in names if not any(name in known for known in groups.values())]
    lead = "Everything in `vitedge.__all__`. `import vitedge` loads nothing heavy; each function imports what it needs."
    text = [f"# Python\n\n{lead}\n"]
    for title in ("Functions", "Types", "Errors"):
        text.append(f"## {title}\n")
        text += [f"::: vitedge.{name}\n" for name in groups[title]]
    return "\n".join(text)
