"""Each board's hardware, runtimes and free space, and the differences between boards."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from vitedge.core.schema import Record
from vitedge.errors import NotInstalledError, ResourceError, VitedgeError
from vitedge.fleet.connection import Link

DOCTOR_S = 180.0


class BoardState(Record):
    """A board's state; None where a value can't be read."""

    name: str
    labels: tuple[str, ...] = ()
    problem: str | None = None  # why it can't be reached, or vitedge can't be started there
    hint: str | None = None  # what to do about it
    machine: str | None = None  # of the board or its processor: "Raspberry Pi 5 Model B Rev 1.0"
    arch: str | None = None
    cores: int | None = None
    python: str | None = None
    versions: Mapping[str, str] = {}  # package -> version: vitedge and the runtimes
    gpus: tuple[str, ...] = ()
    memory_mb: int | None = None  # available
    disk_mb: int | None = None  # that can be written in the board's folder
    clock_s: float | None = None  # how far its clock is ahead of ours
    targets: tuple[str, ...] = ()  # that it can run
    holder: str | None = None  # who measures there now
    kind: str | None = None  # processor, instruction sets, GPUs: boards of one kind share choices and engines


async def examine(link: Link) -> BoardState:
    """Examine one board. Problems are part of the answer, so this raises nothing but a stop."""
    board = link.board
    found: dict[str, Any] = {"name": board.name, "labels": board.labels}
    try:
        await link.open()
        facts = link.facts
        found |= {
            "machine": facts["model"] or None,
            "arch": facts["arch"],
            "python": facts["python"],
            "versions": facts["versions"],
            "disk_mb": facts["free"] >> 20,
            "clock_s": round(facts["clock_s"], 1),
            "holder": held_by((await link.ask("holder", lock=board.lock))["holder"]),
        }
        found |= _described(await vitedge_doctor(link), found)
    except Exception as error:
        problem = error if isinstance(error, VitedgeError) else VitedgeError("", f"{type(error).__name__}: {error}", "")
        found |= {"problem": problem.reason, "hint": problem.hint}
    return BoardState(**found)


async def vitedge_doctor(link: Link) -> Mapping[str, Any]:
    """Return the output of ``vitedge doctor --json -`` on a board.

    Raises:
        NotInstalledError: it isn't there.
        ResourceError: it fails, or the board can't be reached.
    """
    argv = [*link.argv(), "doctor", "--json", "-"]
    action, install = f"start vitedge on {link.board.name}", "run: vitedge fleet install"
    try:
        answer = await link.ask("call", DOCTOR_S + 30, argv=argv, seconds=DOCTOR_S)
    except VitedgeError as error:
        if "No such file" not in error.reason:
            raise
        raise NotInstalledError(action, f"the board has no {argv[0]}", install) from error
    if answer["code"]:
        last = (answer["stderr"].strip().splitlines() or [f"exit code {answer['code']}"])[-1]
        raise ResourceError(
            action, f"vitedge doctor fails there: {last}", f"{install}, or correct the board's entry in the inventory"
        )
    said: Mapping[str, Any] = json.loads(answer["content"])
    return said


def _described(said: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a state from the output of the board's own doctor."""
    processor, gpus = said["processor"], tuple(gpu["name"] for gpu in said["gpus"])
    return {
        "machine": found["machine"] or said["board"]["model"] or processor["model"],
        "cores": processor["allowed_cores"],
        "python": said["python"],
        "versions": versions_of(said),
        "gpus": gpus,
        "memory_mb": said["memory"]["available_mb"],
        "targets": tuple(target["name"] for target in said["targets"] if target["runs"]),
        "kind": " ".join([processor["model"] or "unknown", *sorted(processor["isa"] or ()), *gpus]),
    }


def versions_of(said: Mapping[str, Any]) -> dict[str, str]:
    """Return vitedge and its runtimes with their versions."""
    runtimes = {each["name"]: each["version"] for each in said["runtimes"] if each["version"] and each["extra"]}
    return {"vitedge": said["vitedge_version"], **runtimes}


def held_by(holder: Mapping[str, str]) -> str | None:
    """Describe the holder of a board's lock."""
    return f"{holder['who']}: {holder['what']}, since {holder['since']}" if holder else None


def differences(states: Iterable[BoardState]) -> list[str]:
    """Return a line for each package, and for Python, that boards have in different versions."""
    boards: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for state in states:
        if state.problem is None:
            for package, version in {"Python": state.python or "?", **state.versions}.items():
                boards[package][version].append(state.name)
    return [
        f"{package}: " + "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(by_version.items()))
        for package, by_version in boards.items()
        if len(by_version) > 1
    ]
