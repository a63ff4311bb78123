"""What `vitedge verify` finds: the deviation of damaged INT8 artifacts against the tolerance that export measured.

    python benchmarks/verification_gap.py [--targets onnxruntime,intel-cpu] [--artifacts FOLDER] [--each]

Exports the embedded model in INT8 with every kernel variant of each target that runs here, damages one block or layer
after the other (digests made right again), and runs the golden pictures. Per artifact: the tolerance and the largest
deviation of a sound run at export; per kind of damage: how many were found, the smallest deviation, and which layer's.
`--each` prints every damage. With `--artifacts` they're kept: `vitedge verify` prints on another processor, or under
emulation, the deviation there. A zero point moved for rounding and multiplying alike changes only what is clipped, and
a key's bias changes nothing (softmax), so these two can't be found.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vitedge
from tests.verification import damaged as damages
from vitedge.core.deviation import relative_rms
from vitedge.data.golden import golden_views
from vitedge.errors import VitedgeError
from vitedge.formats.artifact import GOLDEN_INPUTS, GOLDEN_LOGITS, Artifact
from vitedge.formats.target import load_target
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.choice import candidates_of
from vitedge.runtimes.session import open_session

KINDS = {
    "4 bits in a block": damages.blocks_in_4_bits,
    "4 bits in a layer": damages.layers_in_4_bits,
    "scales × 1.1": lambda named: damages.scales_times(1.1, named),
    "two channels exchanged": damages.channels_swapped,
    "bias zeroed": damages.biases_zeroed,
    "zero point + 8": damages.zero_points_moved,
}


def deviation(artifact: Artifact) -> float:
    """Of the golden logits here from those of the export."""
    with open_session(artifact, OpenOptions(threads=1)) as session:
        logits = np.stack(list(session.map_batches(golden_views(artifact.array(GOLDEN_INPUTS)))))
    return relative_rms(logits, artifact.array(GOLDEN_LOGITS))


def measure(artifact: Artifact, *, each: bool) -> None:
    """Print an artifact's rows."""
    manifest, named = artifact.manifest, damages.constants(artifact)
    tolerance = manifest.golden.tolerance
    assert tolerance is not None
    sound = f"{max(tolerance.measured.values()):.2g}" if tolerance.measured else "none"
    print(f"\n{manifest.target.name} {manifest.variant}: tolerance {tolerance.allowed:.2g}, largest sound run {sound}")
    for kind, damage in KINDS.items():
        found = []
        for name, changes in damage(named):
            with tempfile.TemporaryDirectory(prefix="vitedge-") as folder, contextlib.suppress(VitedgeError):
                found.append((deviation(damages.damaged(artifact, Path(folder) / "damaged", changes)), name))
                if each:
                    print(f"    {found[-1][0]:.2g}  {name}")
        if found:
            least, where = min(found)
            count = sum(value > tolerance.allowed for value, _ in found)
            print(f"  {kind:24}{count:3} of {len(found):2} found, smallest {least:.2g} ({where})")


def main() -> None:
    """Export, damage, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--targets", default="onnxruntime,intel-cpu,x86-server", help="names, with commas")
    parser.add_argument("--artifacts", type=Path, help="folder to keep the artifacts in [default: a temporary one]")
    parser.add_argument("--each", action="store_true", help="print every damage")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.artifacts or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitedge-")))
        if not (folder / "model").exists():
            vitedge.import_model("embedded", out=folder / "model")
        for target in options.targets.split(","):
            out = folder / f"{target}-int8"
            if not out.exists():
                several = len(load_target(target).candidates("int8")) > 1
                vitedge.export(folder / "model", target, "int8", out, recipe="fast", with_candidates=several)
            for artifact in candidates_of(Artifact.open(out)):
                measure(artifact, each=options.each)


if __name__ == "__main__":
    main()
