"""Data that ships with vitedge: a compact ViT trained on CIFAR-10, and pictures to calibrate, choose and show it with.

=============  =====================================  ===================================================
name           taken from                             may be used for
=============  =====================================  ===================================================
calibration    CIFAR-10 ``train``, seen in training   observing the embedded model
held-out       CIFAR-10 ``train``, held out           choosing between candidates, budgets
display        CIFAR-10 ``test``                      showing figures; its selection and calibration refuse it
=============  =====================================  ===================================================

The weights lie in this folder (float16; their float32 upcast *is* the model), the pictures in ``calibration/``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from vitedge.core.files import sha256
from vitedge.core.paths import shipped_folder
from vitedge.data.images import ImageSet
from vitedge.errors import ImageError, UsageError

FOLDER = Path(__file__).resolve().parent
Pictures = Literal["calibration", "held-out", "display"]
PICTURES: tuple[Pictures, ...] = get_args(Pictures)


def pictures(name: Pictures) -> ImageSet:
    """Open one of the embedded sets, with class folders."""
    return ImageSet.open(
        shipped_folder("calibration") / f"cifar10-{name}.zip", action=f"open the embedded {name} images"
    )


def _digest(images: ImageSet, index: int) -> str:
    """Return the hex SHA-256 of a picture's pixels, which every lossless format keeps; "" where it can't be read."""
    try:
        return sha256(images.read(index).convert("RGB").tobytes())
    except ImageError:
        return ""


@cache
def _display_digests() -> frozenset[str]:
    images = pictures("display")
    return frozenset(_digest(images, index) for index in range(len(images)))


def refuse_display(images: ImageSet, indices: Iterable[int], origin: str, action: str) -> None:
    """Refuse to choose or calibrate the embedded model by its test pictures, which are for display only.

    Args:
        images: the set of those that are to be used.
        indices: their numbers in it.
        origin: the kind of the model's origin; any other model's owner knows what its test pictures are.
        action: for the error text.

    Raises:
        UsageError: some of them have the pixels of embedded display pictures.
    """
    if origin != "embedded":
        return
    shown = [images.records[index].name for index in indices if _digest(images, index) in _display_digests()]
    if shown:
        names = f"{', '.join(shown[:3])}{f' and {len(shown) - 3} more' if len(shown) > 3 else ''}"
        reason = f"these are test pictures of the embedded model (CIFAR-10's), embedded for display alone: {names}"
        raise UsageError(
            action, reason, "use pictures of its training split, or leave out --data and --held-out: it has its own"
        )


def open_images(source: str | Path, *, action: str) -> ImageSet:
    """Open a data set by path, or an embedded one by name (``calibration``, ``held-out``, ``display``).

    Raises:
        UsageError, ImageError: as :meth:`ImageSet.open`.
    """
    for name in PICTURES:
        if source == name:
            return pictures(name)
    return ImageSet.open(source, action=action)
