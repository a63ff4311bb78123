"""What pushing artifacts to a fleet costs beside ``scp -r`` of the same bytes, and what a second push moves.

    python benchmarks/fleet_push.py [--boards 4] [--artifacts 24] [--mb 5] [--rounds 3] [--json FILE]

The boards are OpenSSH servers on loopback. Both sides send random bytes to all boards at once, the two interleaved;
``scp`` is called once for each board, in parallel. The fleet's push also hashes on both sides, flushes each file to the
disk and names the artifacts atomically.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fleet import faults
from tests.fleet.boards import Desk, FakeBoard
from vitedge import Selection, open_fleet
from vitedge.fleet import fleet
from vitedge.fleet.push import data_package


def scp(desk: Desk, board: FakeBoard, source: Path) -> subprocess.Popen[bytes]:
    shutil.rmtree(board.home / "copied", ignore_errors=True)
    options = ["-q", "-r", "-i", desk.key, "-o", f"UserKnownHostsFile={desk.laptop}/.ssh/known_hosts", "-P", board.port]
    return subprocess.Popen(["scp", *map(str, [*options, source, f"127.0.0.1:{board.home}/copied"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boards", type=int, default=4)
    parser.add_argument("--artifacts", type=int, default=24)
    parser.add_argument("--mb", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        desk, source = Desk(Path(folder) / "desk"), Path(folder) / "artifacts"
        os.environ["HOME"] = str(desk.laptop)
        for number in range(given.artifacts):
            (source / f"a{number}").mkdir(parents=True)
            (source / f"a{number}" / "model.onnx").write_bytes(os.urandom(int(given.mb * 1e6)))
        fleet.artifact_package = data_package  # what it holds doesn't matter here
        places = sorted(source.iterdir())
        try:
            for number in range(given.boards):
                desk.add(f"board{number}")
            boards = open_fleet(Selection(inventory=str(desk.inventory)))
            times: dict[str, list[float]] = {"push": [], "scp": [], "second_push": []}
            for _ in range(given.rounds):
                faults.remove(desk)
                started = time.monotonic()
                rows, refused = boards.push(places)
                times["push"].append(time.monotonic() - started)
                assert not refused and len(rows) == given.boards * given.artifacts, refused
                started = time.monotonic()
                again, _ = boards.push(places)
                times["second_push"].append(time.monotonic() - started)
                moved = sum({row.board: row.sent_bytes for row in again}.values())
                started = time.monotonic()
                copies = [scp(desk, board, source) for board in desk.boards.values()]
                assert all(copy.wait() == 0 for copy in copies)
                os.sync()
                times["scp"].append(time.monotonic() - started)
        finally:
            desk.close()
    seconds = {name: round(statistics.median(values), 2) for name, values in times.items()}
    found = {"median_s": seconds, "ratio": round(seconds["push"] / seconds["scp"], 2), "second_push_bytes": moved}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
