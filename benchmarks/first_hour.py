"""Plays the four stories of the documentation's Start pages and tutorial from an empty machine state, with a clock.

    python benchmarks/first_hour.py [--story NAME...] [--out FILE]

Each story gets a folder, a home and caches that are empty, and what its reader would have: a checkpoint, pictures. The
commands are all that the page itself has, installing included, each typed when the one before it has ended. In place of
the address that the page names, pip installs a wheel of this checkout, with constraints.txt, and the packages that it
needs from whichever index pip is configured for. Prints minutes and commands of each story, and exits with 7 when one
fails or is over its bars.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.site import pages, readers
from vitedge.device.hardware import processor

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r" @ https://\S+\.zip")


@dataclass(frozen=True)
class Story:
    """A page, and who reads it."""

    page: str  # below docs/
    prepare: Callable[[Path], None]  # what the reader has beforehand
    after: dict[str, str] = field(default_factory=dict)  # by a line of the page, what is done by hand once it's done
    most_commands: int | None = None
    most_minutes: float | None = None
    kinds: tuple[str, ...] = ("", "python")  # of the blocks that are typed: lines of a shell, Python programs

    def commands(self) -> list[tuple[pages.Block, str]]:
        """What the reader types, with its block."""
        typed = [block for block in pages.blocks(self.page) if block.kind in self.kinds]
        return [(block, command) for block in typed for command in block.commands]


STORIES = {
    "engineer with a checkpoint": Story("start/checkpoint.md", readers.engineer, most_commands=8),
    "hobbyist with a camera": Story(
        "start/camera.md", readers.hobbyist, readers.HOBBYIST_DOES, most_commands=10, most_minutes=20
    ),
    "student": Story("tutorials/build-a-vit.md", readers.student, kinds=("",)),  # the script has the page's Python
    "Python developer": Story("start/python.md", readers.developer),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--story", nargs="*", choices=STORIES, default=list(STORIES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="first-hour-") as place:
        wheel = built(Path(place))
        told = [play(name, wheel, Path(place) / str(number)) for number, name in enumerate(arguments.story)]
    for each in told:
        print(f"{each['story']:<28} {each['minutes']:5.1f} min  {len(each['commands'])} commands  {each['verdict']}")
    if arguments.out:
        circumstances = {
            "processor": processor().model,
            "cores": len(os.sched_getaffinity(0)),
            "python": sys.version.split()[0],
            "installation": "from a local index, with constraints.txt; no cache of pip's",
            "load_average": os.getloadavg(),
            "date": time.strftime("%Y-%m-%d"),
        }
        arguments.out.write_text(json.dumps({"circumstances": circumstances, "stories": told}, indent=1) + "\n")
    return 0 if all(each["verdict"] == "ok" for each in told) else 7


def built(folder: Path) -> Path:
    """A wheel of this checkout."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("vitedge-*.whl")
    return wheel


def play(name: str, wheel: Path, folder: Path) -> dict[str, Any]:
    """Follow one story; what was typed, how long it took, and whether its bars hold."""
    story = STORIES[name]
    for part in ("home", "work"):
        (folder / part).mkdir(parents=True)
    story.prepare(folder / "work")
    start, log = time.monotonic(), folder / "log"
    with log.open("w") as written:
        done = subprocess.run(
            ["bash", "-c", script(story, wheel)],
            cwd=folder / "work",
            env=empty(folder),
            stdout=written,
            stderr=subprocess.STDOUT,
            check=False,
        )
    minutes = (time.monotonic() - start) / 60
    stamps = [line.split("\t", 1) for line in (folder / "times").read_text().splitlines()]
    ends = [float(stamp) for stamp, _ in stamps[1:]]
    commands = [
        {"command": command, "seconds": round(end - float(begin), 1)}
        for (begin, command), end in zip(stamps, ends, strict=False)
    ]
    verdict = judged(story, len(story.commands()), minutes) if done.returncode == 0 else f"failed: {last(log)}"
    print(f"{name}: {verdict}", file=sys.stderr, flush=True)
    return {"story": name, "page": story.page, "minutes": round(minutes, 2), "commands": commands, "verdict": verdict}


def script(story: Story, wheel: Path) -> str:
    """The page's commands for bash; before each, and at the end, the time goes to the file ``times``."""
    lines = ["set -euo pipefail", 'mark() { printf "%s\\t%s\\n" "$EPOCHREALTIME" "$1" >>"$TIMES"; }']
    for block, command in story.commands():
        lines.append(f"mark {quoted(command.splitlines()[0])}")
        lines += pages.shell(block, ADDRESS.sub(f" @ file://{wheel}", command), "python")
        lines += filter(None, [story.after.get(command)])
    return "\n".join([*lines, "mark end"])


def empty(folder: Path) -> dict[str, str]:
    """An environment without a home's files, caches, or a virtual environment around it."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name == "LANG"}
    home = str(folder / "home")
    path = [str(Path(sys.base_prefix) / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]
    return kept | {
        "HOME": home,
        "XDG_CACHE_HOME": f"{home}/cache",
        "PATH": ":".join(path),
        "PIP_NO_CACHE_DIR": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "TIMES": str(folder / "times"),
    }


def judged(story: Story, commands: int, minutes: float) -> str:
    """``ok``, or which bar a story is over."""
    if story.most_commands is not None and commands > story.most_commands:
        return f"{commands} commands, {story.most_commands} are allowed"
    if story.most_minutes is not None and minutes > story.most_minutes:
        return f"{minutes:.1f} minutes, {story.most_minutes:g} are allowed"
    return "ok"


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def last(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-4:])


if __name__ == "__main__":
    sys.exit(main())
