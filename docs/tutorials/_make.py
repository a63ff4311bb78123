"""Makes the pages and notebooks of tutorials and examples from their sources: ``python docs/tutorials/_make.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

TUTORIALS = Path(__file__).parent
EXAMPLE = TUTORIALS.parents[1] / "examples" / "notebook"


def cells(source: Path) -> list[tuple[str, str]]:
    """Every cell of a source: ("markdown" or "code", its text)."""
    parts = re.split(r"^# %%( \[markdown\])?\n", source.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = []
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        if kind:
            found.append(("markdown", re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)))
        else:
            found.append(("code", re.sub(r"  # noqa: \w+$", "", text.strip(), flags=re.MULTILINE)))
    return found


def page(source: Path) -> str:
    """The cells as Markdown."""
    texts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells(source)]
    return "\n\n".join(texts) + "\n"


def notebook(source: Path) -> str:
    """The cells as a Jupyter notebook (nbformat 4.5), without outputs."""
    made = []
    for number, (kind, text) in enumerate(cells(source)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        made.append(cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def made() -> Iterator[tuple[Path, str]]:
    """Every file that is made, with its content."""
    tutorial = TUTORIALS / "build_a_vit.py"
    yield TUTORIALS / "build-a-vit.md", page(tutorial)
    yield TUTORIALS / "build-a-vit.ipynb", notebook(tutorial)
    yield EXAMPLE / "quantize.ipynb", notebook(EXAMPLE / "quantize.py")


if __name__ == "__main__":
    for path, text in made():
        path.write_text(text, encoding="utf-8")
