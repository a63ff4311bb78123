"""A fleet job of 4 boards × 6 artifacts under a hundred seeded faults, with the real vitedge on real SSH servers.

    python benchmarks/fleet_faults.py [--faults 100] [--seed 26] [--json FILE]

Four boards on loopback, each an OpenSSH server with its own host key: two x86-64 environments with different versions
of ONNX Runtime, an aarch64 Python under emulation, and a board on a small disk.

Faults: connections that drop or stall, power that is cut, a disk that fills, a clock that jumps,
and the laptop's command that is killed. At the end the ledger has to have what a run without faults gives, and the
boards' own records say that nothing was measured twice and nothing ran beside anything else.

Needs root for the small disk, OpenSSH's server, and the program of $VITEDGE_AARCH64_PYTHON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections import Counter, defaultdict
from pathlib import Path

from random_models import random_model

import vitedge
from tests.disks import small_disk
from tests.fleet import emulated, faults
from tests.fleet.boards import Desk

ROOT = Path(vitedge.__file__).resolve().parent.parent
OLDER = "onnxruntime==1.31.1"
OPTIONS = ["--duration", "0.2", "--warmup", "0.1", "--percentile", "50"]


def counted(place: Path, python: str, vitedge: str) -> str:
    """An environment whose vitedge notes the digest of each result that it gives, in the board's home folder."""
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (place / "bin" / "vitedge").write_text(
        f'#!/bin/sh\n{vitedge} "$@" || exit $?\n'
        '[ ! -e result.json ] || echo "$* $(sha256sum < result.json)" >> "$HOME/measured"\n'
    )
    for program in (place / "bin").iterdir():
        program.chmod(0o755)
    return str(place)


def with_older_runtime(folder: Path) -> str:
    """The Python of a virtual environment that has an older ONNX Runtime, and the rest from this one."""
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), OLDER]
    subprocess.run(command, check=True)
    (site / "zz.pth").write_text("\n".join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]))
    return f"{folder}/bin/python"


def build(desk: Desk, folder: Path, disk: Path) -> None:
    """The four boards."""
    pythons = {
        "older": with_older_runtime(folder / "older"),
        "newer": sys.executable,
        "aarch64": f"{emulated.environment(folder / 'emulated')}/bin/python",
        "full": sys.executable,
    }
    for name, python in pythons.items():
        place = counted(folder / f"environment-{name}", python, f"{python} -m vitedge")
        desk.add(name, venv=place, **({"folder": f"{disk}/fleet"} if name == "full" else {}))


def measured_twice(desk: Desk) -> int:
    """How many jobs gave two different results, by what the boards have noted."""
    digests: dict[str, set[str]] = defaultdict(set)
    for board in desk.boards.values():
        for line in (board.home / "measured").read_text().splitlines():
            arguments, digest, _ = line.rsplit(maxsplit=2)
            digests[f"{board.name} {arguments}"].add(digest)
    return sum(len(found) > 1 for found in digests.values())


def reference(desk: Desk, artifacts: list[Path]) -> set[tuple[object, ...]]:
    """What a run without faults gives."""
    command = faults.command("bench", *artifacts, *OPTIONS, "--out", "reference", "-q")
    done = subprocess.run(command, cwd=desk.laptop, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return told(faults.rows(desk.laptop / "reference"))


def told(rows: list[dict[str, object]]) -> set[tuple[object, ...]]:
    """Of each row what doesn't depend on the moment."""
    return {(row["board"], row["subject"], row["versions"], row["state"], row["code"]) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=26)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder) / "disk", 15_000) as disk:
        desk = Desk(Path(folder) / "desk")
        os.environ["HOME"] = str(desk.laptop)
        try:
            model = random_model("vit_nano_patch4_32", Path(folder) / "model")
            one = vitedge.export(model, "onnxruntime", "fp32", Path(folder) / "one")
            artifacts = faults.copies(one.path, Path(folder) / "artifacts", 6)
            build(desk, Path(folder), disk)
            expected = reference(desk, artifacts)
            started = time.monotonic()
            made, rows, rounds = faults.campaign(
                desk,
                artifacts,
                lambda number: [*OPTIONS, "--iterations", str(number + 1)],
                faults=given.faults,
                seed=given.seed,
                disks={"full": disk},
                pause_s=(1.0, 6.0),
            )
            twice = measured_twice(desk)
        finally:
            desk.close()
    found = {
        "faults": dict(made),
        "rounds": rounds,
        "jobs": len(rows),
        "attempts": sum(row["attempt"] for row in rows),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "states": dict(Counter(str(row["state"]) for row in rows)),
        "as_without_faults": told(rows) == expected and len(rows) == len(expected) * rounds,
        "measured_twice": twice,
        "overlapping": len(faults.overlapping(rows)),
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(not found["as_without_faults"] or bool(found["overlapping"] or found["measured_twice"]))


if __name__ == "__main__":
    main()
