"""Pictures in a report: classified samples, and images that an artifact classifies differently from float32."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from vitedge.core.files import sha256
from vitedge.data.images import ImageSet, open_picture
from vitedge.data.preprocessing import Preprocessing, to_rgb
from vitedge.errors import ImageError, UsageError
from vitedge.reporting.rows import Line

MOST_FLIPS = 24
LONGEST_SIDE = 96  # pixels of an embedded picture


@dataclass(frozen=True)
class Answer:
    """One artifact's prediction for a picture."""

    by: str  # "openvino int8"
    label: str
    probability: float | None = None  # None: not kept
    right: bool | None = None  # None: the truth isn't known


@dataclass(frozen=True)
class Shown:
    """One picture and the predictions for it."""

    name: str
    picture: bytes | None  # an encoded JPEG, PNG, WEBP or BMP file; None: only the answers are known
    truth: str | None
    answers: tuple[Answer, ...]


def flips(line: Line, images: ImageSet | None = None) -> list[Shown]:
    """Return the first :data:`MOST_FLIPS` images on which ``line`` and its reference differ, wrong predictions first.

    Args:
        line: a row with accuracy and a reference.
        images: the evaluated pictures, for the gallery to show; see :func:`check_images`.
    """
    data, paired, reference = line.result.data, line.paired, line.reference
    if data is None or paired is None or reference is None or reference.accuracy is None or line.row.accuracy is None:
        return []
    old, new = reference.accuracy.predicted, line.row.accuracy.predicted
    where = {record.name: index for index, record in enumerate(images.records)} if images is not None else {}
    ordered = sorted(paired.flips, key=lambda index: (new[index] == data.label[index], index))
    pictures = []
    for index in ordered[:MOST_FLIPS]:
        truth, name = data.label[index], data.names[index]
        picture = None
        if images is not None and name in where:
            with contextlib.suppress(ImageError):
                picture = images.read_bytes(where[name])
        answers = (
            Answer("float32", data.classes[old[index]], right=old[index] == truth),
            Answer(line.label, data.classes[new[index]], right=new[index] == truth),
        )
        pictures.append(Shown(name, picture, data.classes[truth], answers))
    return pictures


def check_images(images: ImageSet, lines: Sequence[Line]) -> None:
    """Check that pictures have the digest of those that accuracy was measured on.

    Raises:
        UsageError: they're other pictures.
    """
    where = {record.name: index for index, record in enumerate(images.records)}
    for data in {id(line.result.data): line.result.data for line in lines if line.result.data is not None}.values():
        digests = [images.digest(where[name]) for name in data.names if name in where]
        if sha256("".join(sorted(digests)).encode()) != data.digest:
            raise UsageError(
                f"show pictures of {images.source}",
                f"they aren't the ones that accuracy was measured on ({data.source})",
                "name the --data that eval was given, or leave it out",
            )


def data_uri(picture: bytes, name: str) -> str | None:
    """Return a small PNG of an encoded picture as a data URI; None when it can't be decoded."""
    with contextlib.suppress(ImageError):
        image = to_rgb(open_picture(picture, name), Preprocessing(size=(LONGEST_SIDE, LONGEST_SIDE)))
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        stream = io.BytesIO()
        image.save(stream, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return None
