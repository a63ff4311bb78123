"""Open a clip of ``vitedge stream --record`` for ``vitedge bench --scenario camera --replay``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from vitedge.benchmarking.arrivals import Replay
from vitedge.errors import UsageError
from vitedge.formats.artifact import Artifact
from vitedge.formats.clip import SUFFIX, Clip

MOST_FRAMES, MOST_BYTES = 2000, 300_000_000  # they're held in memory: 300 MB at 224 pixels
MOST_REORDERED_NS = 10_000_000_000


def open_replay(path: Path, artifacts: Sequence[Artifact] = ()) -> Replay:
    """Return the clip's frames and arrival times; of a long one, the first :data:`MOST_FRAMES` or :data:`MOST_BYTES`.

    Args:
        path: the clip, or the folder that ``--record`` named, where it holds one.
        artifacts: what is to classify the frames; each must take their size.

    Raises:
        ArtifactError: not a clip, or a damaged one.
        UsageError: a folder of no clip or of several; fewer than two frames, of another size, or recorded over a
            restart of the machine.
    """
    action = f"replay {path}"
    path = _clip_in(path, action) if path.is_dir() else path
    clip = Clip(path)
    height, width = clip.header.size
    for artifact in artifacts:
        taken = artifact.manifest.preprocessing.size
        if taken != clip.header.size:
            reason = (
                f"its frames have {height} × {width} pixels; {artifact.manifest.name} takes {taken[0]} × {taken[1]}"
            )
            raise UsageError(action, reason, f"record another: vitedge stream {artifact.path} SOURCE --record FOLDER")
    count = min(len(clip), MOST_FRAMES, max(2, MOST_BYTES // (height * width * 3)))
    if count < 2:
        raise UsageError(action, f"it holds {count} frames, and two are needed", "record for longer")
    times = tuple(accumulate(clip.times_ns[:count], max))  # frames that are reordered arrive out of turn
    if max(high - time for high, time in zip(times, clip.times_ns, strict=False)) > MOST_REORDERED_NS:
        raise UsageError(action, "its times go back, as the machine was restarted during it", "record it again")
    part = "" if count == len(clip) else f", first {count} of {len(clip)} frames"
    part += ", its end is missing" if clip.truncated else ""
    return Replay(f"{path.name} ({clip.digest()[:12]}{part})", times, clip[:count], prepared=True)


def _clip_in(folder: Path, action: str) -> Path:
    clips = sorted(folder.glob(f"*{SUFFIX}"))
    if not clips:
        raise UsageError(action, "the folder holds no clip", f"record one: vitedge stream ART SOURCE --record {folder}")
    if len(clips) > 1:
        names = ", ".join(clip.name for clip in clips)
        raise UsageError(action, f"the folder holds {len(clips)} clips: {names}", f"name one: --replay {clips[0]}")
    return clips[0]
