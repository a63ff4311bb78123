"""What comes with vitedge: a compact ViT trained on CIFAR-10, and pictures to calibrate, choose and show it with.

=============  =====================================  ===================================================
name           taken from                             may be used for
=============  =====================================  ===================================================
calibration    CIFAR-10 ``train``, seen in training   observing the embedded model
held-out       CIFAR-10 ``train``, held out           choosing between candidates, budgets
display        CIFAR-10 ``test``                      showing figures; selection and calibration refuse it
=============  =====================================  ===================================================

The weights lie in this folder (float16; their float32 upcast *is* the model), the pictures in ``calibration/``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, get_args

from vitedge.core.paths import shipped_folder
from vitedge.data.images import ImageSet
from vitedge.errors import UsageError

FOLDER = Path(__file__).resolve().parent
Pictures = Literal["calibration", "held-out", "display"]
PICTURES: tuple[Pictures, ...] = get_args(Pictures)


def pictures(name: Pictures) -> ImageSet:
    """One of the embedded sets, with class folders."""
    return ImageSet.open(
        shipped_folder("calibration") / f"cifar10-{name}.zip", action=f"open the embedded {name} images"
    )


@cache
def _display_digests() -> frozenset[str]:
    images = pictures("display")
    return frozenset(images.digest(index) for index in range(len(images)))


def refuse_display(digests: frozenset[str] | set[str], action: str) -> None:
    """Refuse to choose or calibrate by pictures that are for display alone.

    Args:
        digests: hex SHA-256 of the encoded pictures that are to be used.
        action: for the error text.

    Raises:
        UsageError: one of them is among the embedded display pictures.
    """
    overlap = len(digests & _display_digests())
    if overlap:
        raise UsageError(
            action,
            f"{overlap} of these pictures come from the CIFAR-10 test set and are embedded for display alone",
            "use pictures from a training split",
        )


def open_images(source: str | Path, *, action: str) -> ImageSet:
    """A data set by path, or an embedded one by name (``calibration``, ``held-out``, ``display``).

    Raises:
        UsageError, ImageError: as :meth:`ImageSet.open`.
    """
    for name in PICTURES:
        if source == name:
            return pictures(name)
    return ImageSet.open(source, action=action)
