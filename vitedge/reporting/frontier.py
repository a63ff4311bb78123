"""The curve of a model shrunk to several budgets: as JSON, and as a picture beside the model."""

from __future__ import annotations

import contextlib

from msgspec.structs import replace

from vitedge.core.files import write_atomic
from vitedge.core.schema import encode_json
from vitedge.errors import NotInstalledError
from vitedge.shrinking.frontier import Frontier, Point
from vitedge.shrinking.plan import ShrinkPlan


def write(plan: ShrinkPlan, curve: Frontier) -> Frontier:
    """Write ``OUT.frontier.json`` and ``OUT.frontier.svg``; without matplotlib the picture is left out.

    Raises:
        ResourceError: they can't be written.
    """
    files = {plan.beside("frontier.json"): b""}
    with contextlib.suppress(NotInstalledError):
        files[plan.beside("frontier.svg")] = draw(curve).encode()
    curve = replace(curve, files=tuple(path.name for path in files))
    files[plan.beside("frontier.json")] = encode_json(curve)
    for path, data in files.items():
        write_atomic(path, data, plan.action)
    return curve


def draw(curve: Frontier) -> str:
    """Top-1 (or the agreement with the whole model) over latency, one line a precision, as an SVG file.

    Raises:
        NotInstalledError: matplotlib isn't installed.
    """
    from vitedge.reporting import plots

    labelled = all(point.top1 is not None for point in curve.points)
    title = f"Accuracy against latency: {curve.model} shrunk for {curve.target}"
    with plots.picture(title, height=3.8) as drawing:
        axes = drawing.axes
        for number, precision in enumerate(dict.fromkeys(point.precision for point in curve.points)):
            points = [point for point in curve.points if point.precision == precision]
            places = [(point.latency_ms, _height(point, labelled=labelled)) for point in points]
            axes.plot(*zip(*places, strict=True), "o-", color=plots.colour(number), markersize=5, linewidth=1.2)
            axes.plot(
                *places[0], "o", color=plots.colour(number), markersize=11, markerfacecolor="none", markeredgewidth=1.6
            )
            axes.annotate(
                precision, places[0], xytext=(0, 9), textcoords="offset points", ha="center", color=plots.colour(number)
            )
        axes.set_xlim(left=0)
        axes.set_xlabel("median latency, ms (ringed: the whole model)")
        axes.set_ylabel("top-1, %" if labelled else "top-1 agreement with the whole model, %")
    return plots.standalone(drawing.svg)


def _height(point: Point, *, labelled: bool) -> float:
    return 100 * (point.top1 if labelled and point.top1 is not None else point.loss.agreement)
