"""The inputs of a comparison: artifacts to measure, or results that were measured before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitedge.errors import UsageError
from vitedge.formats.artifact import MANIFEST
from vitedge.formats.result import RESULT_JSON


def separate(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Divide paths to compare into (artifacts, results), one of which is empty.

    Raises:
        UsageError: both kinds, neither kind, or too few.
    """
    action = f"compare {' with '.join(str(path) for path in paths)}"
    artifacts = [path for path in paths if (path / MANIFEST).is_file()]
    results = [path for path in paths if path.is_file() or (path / RESULT_JSON).is_file()]
    neither = [str(path) for path in paths if path not in artifacts and path not in results]
    if neither:
        raise UsageError(
            action, f"{neither[0]} is neither an artifact nor a result", "name artifact folders, or results"
        )
    if artifacts and results:
        raise UsageError(action, "an artifact and a result can't be compared", "name artifacts, or results")
    if len(artifacts) == 1 or len(results) > 2:
        raise UsageError(action, "a baseline and a candidate are needed", "run: vitedge compare BASELINE CANDIDATE")
    return artifacts, results
