"""The steps of a selection as a picture beside the artifact."""

from __future__ import annotations

from vitedge.core.files import write_atomic
from vitedge.errors import NotInstalledError
from vitedge.exporting.plan import Plan
from vitedge.formats.artifact import (
    Artifact,
)


def draw(plan: Plan, artifact: Artifact) -> str | None:
    """Write the steps of the selection as a picture beside the artifact.

    Returns:
        Its path, or why there is none; None where nothing was selected.

    Raises:
        ResourceError: it can't be written.
    """
    from vitedge.reporting import plots

    manifest = artifact.manifest
    try:
        svg = plots.selection(
            manifest.steps, manifest.candidates, f"Accuracy against latency of the selection: {manifest.name}"
        )
    except NotInstalledError as error:
        return f"no picture: {error.reason}; {error.hint}"
    if svg is None:
        return None
    write_atomic(plan.picture, plots.standalone(svg).encode(), plan.action)
    return str(plan.picture)
