"""The commands that install more of vitedge, by the way in which it was installed here.

Only where an index has the package does ``pip install "vitedge[stream]"`` find it. A checkout, a wheel file and an
address are recorded by the installer (PEP 610, ``direct_url.json``), and are named in the command.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_CHECKOUT = Path(__file__).resolve().parent.parent
_EXTRA = re.compile(r"""(?:\s+and\s+)?extra == ['"]([\w.-]+)['"]""")


#: Where vitedge can be had: an address that pip takes, also without git; "" once an index has it. This is the one place
#: to change: ``python -m tests.install_lines`` rewrites the documents' install lines by it.
SOURCE = "https://github.com/vitedge/vitedge/archive/main.zip"


def requirement(extras: str) -> str:
    """Return pip's requirement for vitedge with extras, from this one's source: ``vitedge[stream] @ https://…``."""
    return f"vitedge[{extras}]" + (f" @ {SOURCE}" if SOURCE else "")


def pip() -> str:
    """Return the command of this Python's pip: ``pip`` where that is the first one on the PATH."""
    first = shutil.which("pip")
    if first and Path(first).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"


def install_command(extra: str) -> str:
    """Return the command that adds an extra: ``pip install "vitedge[stream]"``, with a path or an address if needed."""
    record = _record()
    url, name = str(record.get("url", "")), f"vitedge[{extra}]"
    if not url:
        return f"{pip()} install {_quoted(name)}"
    if not url.startswith("file:"):
        return f"{pip()} install {_quoted(f'{name} @ {_address(record)}')}"
    path = _path(url)
    if not Path(path).exists():  # the wheel was deleted after it was installed: what the extra brings can still be had
        return f"{pip()} install {' '.join(_quoted(each) for each in _requirements(extra))}"
    editable = "-e " if record.get("dir_info", {}).get("editable") else ""
    return f"{pip()} install {editable}{_quoted(f'{path}[{extra}]')}"


def upgrade_hint(version: str) -> str:
    """Return the hint for getting ``version`` or a newer one."""
    url = str(_record().get("url", ""))
    if not url:
        return f"install vitedge {version} or newer; run: {pip()} install {_quoted(f'vitedge>={version}')}"
    origin = _path(url) if url.startswith("file:") else url
    return f"install vitedge {version} or newer; this one came from {origin}"


def _record() -> dict[str, Any]:
    """Read ``direct_url.json`` of this installation; empty for one from an index."""
    if (_CHECKOUT / "pyproject.toml").is_file():  # it runs from a checkout, even if another version is installed
        return {"url": _CHECKOUT.as_uri(), "dir_info": {"editable": True}}
    try:
        text = importlib.metadata.distribution("vitedge").read_text("direct_url.json")
        record = json.loads(text) if text else {}
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _path(url: str) -> str:
    return unquote(urlsplit(url).path)


def _address(record: dict[str, Any]) -> str:
    """Return the requirement's address: of a repository at the installed commit, of an archive as it is."""
    repository = record.get("vcs_info", {})
    if not repository:
        return str(record["url"])
    return f"{repository.get('vcs', 'git')}+{record['url']}@{repository.get('commit_id', '')}".rstrip("@")


def _requirements(extra: str) -> Iterator[str]:
    """Yield the requirements of an extra, without vitedge itself."""
    for line in importlib.metadata.requires("vitedge") or ():
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if extra not in _EXTRA.findall(marker):
            continue
        if own := re.match(r"vitedge\[([^\]]+)\]", requirement):
            for each in own.group(1).split(","):
                yield from _requirements(each.strip())
        else:
            others = _EXTRA.sub("", marker).strip().removeprefix("and ").strip()
            yield f"{requirement}; {others}" if others else requirement


def _quoted(text: str) -> str:
    """Quote for a shell."""
    return shlex.quote(text) if re.search(r'["\\$`!]', text) else f'"{text}"'
