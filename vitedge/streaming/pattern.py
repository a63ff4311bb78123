"""``test://``: frames without a camera. Every picture's label and time are known beforehand.

``test://?rate=30&frames=300`` and so on, with these settings:

==============  ===================================================================================================
``pattern``     ``pictures`` (default): the pictures embedded with vitedge, whose labels the embedded model knows;
                ``steps``: one colour a step, red = the step's number, label ``step N``
``rate``        frames a second (30)
``frames``      frames until the end (0: endless)
``hold``        frames that each picture stays (30)
``size``        ``WIDTHxHEIGHT`` (640x480)
``live``        1 (default): in real time, and its end is a hang-up; 0: like a file, as fast as they're taken
``gap``         leave a second out of the presentation times after every so many frames (0: never)
``corrupt``     report every so manyth frame as broken (0: none)
``resize``      halve the size after so many frames (0: never)
``stall``       fall silent after so many frames (0: never)
==============  ===================================================================================================

The last four are the faults of real cameras. Counting starts anew with every connection.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple
from urllib.parse import parse_qsl

import msgspec
import numpy as np
from PIL import Image

from vitedge.core.schema import Record
from vitedge.errors import UsageError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class Pattern(Record):
    """The settings of a ``test://`` source."""

    pattern: Literal["pictures", "steps"] = "pictures"
    rate: Annotated[float, msgspec.Meta(ge=0.001, le=100_000)] = 30.0
    frames: Count = 0
    hold: Annotated[int, msgspec.Meta(ge=1)] = 30
    size: Annotated[str, msgspec.Meta(pattern=r"^[1-9]\d{0,3}x[1-9]\d{0,3}$")] = "640x480"
    live: bool = True
    gap: Count = 0
    corrupt: Count = 0
    resize: Count = 0
    stall: Count = 0


class Shown(NamedTuple):
    """One frame of a pattern."""

    picture: NDArray[np.uint8]  # RGB [H, W, 3]
    presentation_s: float
    truth: str
    corrupt: bool


def parse_pattern(rest: str) -> Pattern:
    """Parse the settings after ``test://``.

    Raises:
        UsageError: an unknown setting or a value that it can't have.
    """
    action, hint = f"classify the stream test://{rest}", "see: vitedge stream --help"
    head, mark, query = rest.partition("?")
    if head:
        raise UsageError(
            action, f"a test source takes settings behind a ?, not '{head}'", "write, for example: test://?rate=30"
        )
    try:
        given = dict(parse_qsl(query, strict_parsing=True, keep_blank_values=True)) if mark and query else {}
        for key in given:
            if key not in Pattern.__struct_fields__:
                suggestion = nearest(key, Pattern.__struct_fields__)
                raise UsageError(action, f"a test source has no setting '{key}'{suggestion}", hint)
        return msgspec.convert(given, Pattern, strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        raise UsageError(action, f"{error}", hint) from error


def show(pattern: Pattern) -> Iterator[Shown]:
    """Yield the frames of one connection, in real time where the pattern is live."""
    width, height = (int(side) for side in pattern.size.split("x"))
    begin = time.monotonic()
    number = 0
    while not pattern.frames or number < pattern.frames:
        if pattern.stall and number == pattern.stall:
            while True:
                time.sleep(3600)
        if pattern.live and (early := begin + number / pattern.rate - time.monotonic()) > 0:
            time.sleep(early)
        part = 2 if pattern.resize and number >= pattern.resize else 1
        picture, truth = _picture(
            pattern.pattern, number // pattern.hold, max(1, width // part), max(1, height // part)
        )
        gaps = number // pattern.gap if pattern.gap else 0
        corrupt = bool(pattern.corrupt) and number % pattern.corrupt == pattern.corrupt - 1
        yield Shown(picture, number / pattern.rate + gaps, truth, corrupt)
        number += 1


@lru_cache(maxsize=4)
def _picture(pattern: str, step: int, width: int, height: int) -> tuple[NDArray[np.uint8], str]:
    if pattern == "steps":
        step %= 256
        picture = np.empty((height, width, 3), np.uint8)
        picture[:] = (step, 255 - step, 128)
        return picture, f"step {step}"
    from vitedge.data import embedded

    images = embedded.pictures("display")
    index = _in_turn()[step % len(images)]
    small = Image.open(io.BytesIO(images.read_bytes(index))).convert("RGB")
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST)), images.records[index].folder or ""


@lru_cache(maxsize=1)
def _in_turn() -> list[int]:
    """Order the embedded pictures so that neighbours show different classes."""
    from vitedge.data import embedded

    images = embedded.pictures("display")
    groups = {name: [i for i, record in enumerate(images.records) if record.folder == name] for name in images.classes}
    longest = max(map(len, groups.values()))
    return [group[turn] for turn in range(longest) for group in groups.values() if turn < len(group)]
