"""Run the golden pictures in this machine's runtime, and check that the logits are the exported ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitedge.core.deviation import deviation, relative_rms
from vitedge.data.golden import golden_views
from vitedge.formats.artifact import COPY_AGAIN, GOLDEN_INPUTS, GOLDEN_LOGITS, GOLDEN_REFERENCE
from vitedge.formats.result import Check

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitedge.formats.artifact import Artifact
    from vitedge.runtimes.session import Session

NAME = "golden logits"
TIMES_RECORDED = 3.0  # allowed: this multiple of the deviation from float32 that export recorded …
LEAST_ALLOWED = 1e-5  # … and rounding in another order is always allowed


def golden_check(session: Session) -> Check:
    """Compare the golden pictures' logits with the artifact's own at export, and with the float32 reference.

    They must be finite; deviate from the exported ones by no more than the manifest's tolerance (an artifact of version
    0.1.0 has none); deviate from float32 by no more than :func:`allowed_deviation`; and have the reference's top-1
    wherever its margin between first and second class exceeds that.
    """
    artifact = session.artifact
    inputs, exported = artifact.array(GOLDEN_INPUTS), artifact.array(GOLDEN_LOGITS)
    views = max(1, len(exported) // max(1, len(inputs)))
    logits = np.stack(list(session.map_batches(golden_views(inputs, views))))  # [views * n, classes]
    if not np.isfinite(logits).all():
        return Check(name=NAME, ok=False, detail="the outputs aren't finite")
    wrong, details = _against_export(artifact, logits, exported)
    others, detail = _against_float(artifact, logits, artifact.array(GOLDEN_REFERENCE))
    return Check(name=NAME, ok=not (wrong or others), detail="; ".join((*details, detail)))


def _against_export(
    artifact: Artifact, logits: NDArray[np.float32], exported: NDArray[np.float32]
) -> tuple[bool, tuple[str, ...]]:
    """Compare the logits with the exported ones; return whether they deviate more than sound kernels', and a text."""
    tolerance = artifact.manifest.golden.tolerance
    if tolerance is None:
        return False, ()
    difference = relative_rms(logits, exported)
    detail = f"deviation {difference:.2g} (RMS) from the export, {tolerance.allowed:.2g} is allowed"
    wrong = difference > tolerance.allowed
    return wrong, (f"{detail}: another kernel alone doesn't explain it; {COPY_AGAIN}" if wrong else detail,)


def allowed_deviation(artifact: Artifact) -> float:
    """Return the largest allowed |difference| of the golden logits from float32's, over the largest |logit|."""
    return max(LEAST_ALLOWED, TIMES_RECORDED * artifact.manifest.golden.deviation)


def _against_float(artifact: Artifact, logits: NDArray[np.float32], reference: NDArray[np.float32]) -> tuple[bool, str]:
    """Compare the logits with the float32 model's; return whether they deviate more than at export, and the text."""
    difference, allowed = deviation(logits, reference), allowed_deviation(artifact)
    ranked = np.sort(reference, axis=1)
    margins = ranked[:, -1] - ranked[:, -2] if reference.shape[1] > 1 else np.full(len(reference), np.inf)
    clear = margins > allowed * np.abs(reference).max()
    other = np.flatnonzero(clear & (logits.argmax(axis=1) != reference.argmax(axis=1)))
    pictures = artifact.manifest.golden.pictures
    names = ", ".join(dict.fromkeys(pictures[index % len(pictures)] for index in other))
    detail = f"{difference:.2g} of the largest logit from float32, {allowed:.2g} is allowed"
    if names:
        detail += f"; another top-1 on {names}"
    return difference > allowed or bool(names), detail
