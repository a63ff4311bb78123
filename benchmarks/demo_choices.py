"""Does `vitedge demo` end with a firm choice on a noisy machine, and with the same one each time?

    python benchmarks/demo_choices.py [--runs 20] [--neighbours 1] [--out FILE]

Each run is a process of its own: `vitedge demo` as a user starts it, whose result is then decided on as the report
does. Beside it, neighbours come and go: each works with all of one core for a random 0.5 to 5 seconds, then rests for
as long a time. Prints each run's choice, whether it's firm, and its headline; exits with 7 when fewer than nine in ten
are firm or the firm ones differ.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from vitedge.device.hardware import processor
from vitedge.formats.result import read_result
from vitedge.reporting.decision import decide
from vitedge.reporting.rows import lines

FIRM = 0.9  # share of the runs


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--neighbours", type=int, default=1, help="processes that work by fits and starts")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    neighbours = [
        multiprocessing.Process(target=neighbour, args=(n,), daemon=True) for n in range(arguments.neighbours)
    ]
    for process in neighbours:
        process.start()
    runs = []
    for number in range(arguments.runs):
        runs.append(found := run())
        print(
            f"{number + 1:>3} {found['seconds']:.0f} s: {found['headline']}",
            *found["doubts"],
            sep="; ",
            flush=True,
        )
    for process in neighbours:
        process.terminate()
    firm = Counter(run["choice"] for run in runs if run["firm"])
    print(
        f"{processor().model}, {arguments.neighbours} neighbours: "
        f"firm {sum(firm.values())} of {len(runs)}, {dict(firm)}"
    )
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"processor": processor().model, "neighbours": arguments.neighbours, "runs": runs})
        )
    return 0 if len(firm) == 1 and sum(firm.values()) >= FIRM * len(runs) else 7


def neighbour(seed: int) -> None:
    """Work and rest for random times, for ever."""
    chance = random.Random(seed)
    while True:
        seconds = chance.uniform(0.5, 5)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        time.sleep(seconds)


def run() -> dict[str, Any]:
    """One demo: its choice, whether it's firm, its headline, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        command = [sys.executable, "-m", "vitedge", "demo", "--quiet", "--out", f"{folder}/demo"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        result = read_result(Path(folder) / "demo")
    (decision,) = decide(lines([result]))
    chosen = decision.choice
    return {
        "choice": "" if chosen is None else f"{chosen.row.subject.target} {chosen.row.subject.precision}",
        "firm": chosen is not None and not decision.provisional,
        "headline": decision.headline,
        "doubts": [doubt.reason for doubt in decision.unsure],
        "measured_s": None if decision.rules is None else decision.rules.min_duration_s,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
