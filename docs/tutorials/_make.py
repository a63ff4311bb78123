"""Makes the page and the notebook of the tutorial from its source: ``python docs/tutorials/_make.py``."""

from __future__ import annotations

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
SOURCE, PAGE, NOTEBOOK = HERE / "build_a_vit.py", HERE / "build-a-vit.md", HERE / "build-a-vit.ipynb"


def cells() -> list[tuple[str, str]]:
    """Every cell of the source: ("markdown" or "code", its text)."""
    parts = re.split(r"^# %%( \[markdown\])?\n", SOURCE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = []
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        if kind:
            found.append(("markdown", re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)))
        else:
            found.append(("code", re.sub(r"  # noqa: \w+$", "", text.strip(), flags=re.MULTILINE)))
    return found


def page() -> str:
    """The cells as Markdown."""
    texts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells()]
    return "\n\n".join(texts) + "\n"


def notebook() -> str:
    """The cells as a Jupyter notebook (nbformat 4.5), without outputs."""
    made = []
    for number, (kind, text) in enumerate(cells()):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        made.append(cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
