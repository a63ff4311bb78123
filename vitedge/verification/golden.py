"""The golden pictures in the runtime here: does this machine compute what was exported?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitedge.core.deviation import deviation
from vitedge.formats.artifact import GOLDEN_INPUTS, GOLDEN_REFERENCE
from vitedge.formats.result import Check

if TYPE_CHECKING:
    from vitedge.formats.artifact import Artifact
    from vitedge.runtimes.session import Session

TIMES_RECORDED = 3.0  # the deviation recorded at export may be exceeded so many times …
LEAST_ALLOWED = 1e-5  # … and rounding in another order is always allowed


def allowed_deviation(artifact: Artifact) -> float:
    """Largest |difference| over largest |logit| that the golden logits may have from the float32 reference."""
    return max(LEAST_ALLOWED, TIMES_RECORDED * artifact.manifest.golden.deviation)


def golden_check(session: Session) -> Check:
    """Compare the golden inputs' logits with the float32 reference that was recorded at export.

    They must be finite, deviate by no more than :func:`allowed_deviation`, and have the reference's top-1 wherever the
    reference's margin between its first and second class exceeds the allowed difference.
    """
    artifact = session.artifact
    inputs, reference = artifact.array(GOLDEN_INPUTS), artifact.array(GOLDEN_REFERENCE)
    logits = np.stack(list(session.map_batches(inputs)))  # [n, classes]
    if not np.isfinite(logits).all():
        return Check(name="golden logits", ok=False, detail="the outputs aren't finite")
    difference, allowed = deviation(logits, reference), allowed_deviation(artifact)
    ranked = np.sort(reference, axis=1)
    margins = ranked[:, -1] - ranked[:, -2] if reference.shape[1] > 1 else np.full(len(reference), np.inf)
    clear = margins > allowed * np.abs(reference).max()
    other = np.flatnonzero(clear & (logits.argmax(axis=1) != reference.argmax(axis=1)))
    names = ", ".join(artifact.manifest.golden.pictures[index] for index in other)
    detail = f"deviation {difference:.2g} of the largest logit, {allowed:.2g} is allowed"
    if names:
        detail += f"; another top-1 on {names}"
    return Check(name="golden logits", ok=difference <= allowed and not names, detail=detail)
