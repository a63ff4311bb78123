"""Divide the pictures of ``--data`` into those that are observed and those held out to measure the loss."""

from __future__ import annotations

from vitedge.data.images import ImageSet
from vitedge.errors import UsageError

#: Observed at least, where the recipe decides: with fewer, the choice of the pictures matters more than their number
#: (docs/quantization-results.md has the figures).
LEAST_OBSERVED = 16
COST_OF_FEWER = "with 16 the mean KL was up to 1.8 times that with 256, with 64 up to 1.2 times"
#: Held out of a small ``--data``: one picture in ONE_IN, and at least LEAST_HELD_OUT.
ONE_IN, LEAST_HELD_OUT = 5, 4

OTHERS = "name other hold-out pictures: --held-out DIR"


def observed_count(images: ImageSet, wanted: int, *, data: str, held_out_elsewhere: bool, action: str) -> int:
    """Return how many of the available calibration pictures a recipe observes.

    Args:
        images: calibration pictures, and hold-out pictures where there are no others.
        wanted: what the recipe asks for.
        data: what ``images`` are, for error texts.
        held_out_elsewhere: the hold-out pictures come from another set.
        action: for error texts.

    Raises:
        UsageError: too few.
    """
    usable = _usable(images, wanted)
    reserved = 0 if held_out_elsewhere else max(LEAST_HELD_OUT, usable // ONE_IN)
    observed, least = min(wanted, usable - reserved), min(wanted, LEAST_OBSERVED)
    if observed >= least:
        return observed
    more = "" if held_out_elsewhere else f" and holds {LEAST_HELD_OUT} others out to measure the loss on"
    fewer = _most(usable, held_out_elsewhere)
    steps = ["add pictures"] + [f"observe fewer all the same: --num-samples {fewer}"] * (fewer > 0)
    steps += [OTHERS] * (usable >= least)
    reason = f"{_counted(images, usable, data)}; the recipe observes at least {least}{more}"
    raise UsageError(action, reason, ", or ".join(steps))


def require_samples(images: ImageSet, count: int, *, data: str, held_out_elsewhere: bool, action: str) -> None:
    """Check that there are ``--num-samples`` pictures, and hold-out pictures left where both come from the same set.

    Raises:
        UsageError: it can't, or doesn't.
    """
    usable = _usable(images, count)
    most = _most(usable, held_out_elsewhere)
    if count <= most:
        return
    steps = ["add pictures"] + [f"use --num-samples {most}"] * (most > 0)
    if held_out_elsewhere or count > usable:
        why = "asks for more"
    else:
        steps.append(OTHERS)
        why = f"leaves {usable - count} to measure the loss on, where {LEAST_HELD_OUT} are needed"
    raise UsageError(action, f"{_counted(images, usable, data)}; --num-samples {count} {why}", ", or ".join(steps))


def _most(usable: int, held_out_elsewhere: bool) -> int:
    """Return how many of the usable pictures can be observed at most."""
    return usable if held_out_elsewhere else usable - LEAST_HELD_OUT


def _usable(images: ImageSet, wanted: int) -> int:
    """Count the pictures that can be used: all, or, of few, those that differ and have a sound header."""
    return len(images) if len(images) >= 2 * wanted else images.count_different()


def _counted(images: ImageSet, usable: int, data: str) -> str:
    of_these = f" that can be read and differ, of {len(images)}" if usable < len(images) else ""
    return f"{data} has {usable} picture{'' if usable == 1 else 's'}{of_these}"
