"""The curve of a model shrunk to several budgets: as JSON, and as a picture beside the model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from vitedge.core.files import write_atomic
from vitedge.core.schema import encode_json
from vitedge.errors import NotInstalledError
from vitedge.shrinking.frontier import Frontier, Point
from vitedge.shrinking.plan import ShrinkPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    """Draw top-1 (or the agreement with the whole model) over latency, one line for each precision, as an SVG file.

    Raises:
        NotInstalledError: matplotlib isn't installed.
    """
    from vitedge.reporting import plots

    labelled = all(point.top1 is not None for point in curve.points if point.loss is not None)
    title = f"Accuracy against latency: {curve.model} shrunk for {curve.target}"
    with plots.picture(title, height=3.8) as drawing:
        axes = drawing.axes
        for number, precision in enumerate(dict.fromkeys(point.precision for point in curve.points)):
            points = [point for point in curve.points if point.precision == precision]
            _curve([point for point in points if point.model is None], axes, plots.colour(number), labelled=labelled)
            _others([point for point in points if point.model], axes, plots.colour(number), labelled=labelled)
        axes.set_xlim(left=0)
        axes.set_xlabel("median latency, ms (ringed: the whole model)")
        axes.set_ylabel("top-1, %" if labelled else "top-1 agreement with the whole model, %")
    return plots.standalone(drawing.svg)


def _curve(points: Sequence[Point], axes: Axes, colour: str, *, labelled: bool) -> None:
    """Draw a line from the whole model, which has a ring and the name of its precision."""
    places = [(point.latency_ms, _height(point, labelled=labelled)) for point in points]
    axes.plot(*zip(*places, strict=True), "o-", color=colour, markersize=5, linewidth=1.2)
    axes.plot(*places[0], "o", color=colour, markersize=11, markerfacecolor="none", markeredgewidth=1.6)
    axes.annotate(points[0].precision, places[0], xytext=(0, 9), textcoords="offset points", ha="center", color=colour)


def _others(points: Sequence[Point], axes: Axes, colour: str, *, labelled: bool) -> None:
    """Draw other models: a diamond where one is trained, else a tick on the axis of latency."""
    for point in points:
        x, style = point.latency_ms, dict[str, Any](textcoords="offset points", color=colour, fontsize=8)
        if point.loss is not None:
            place = x, _height(point, labelled=labelled)
            axes.plot(*place, "D", color=colour, markersize=6)
            axes.annotate(str(point.model), place, xytext=(7, -3), **style)
        else:
            axis = axes.get_xaxis_transform()
            axes.plot([x], [0], "|", color=colour, markersize=14, transform=axis, clip_on=False)
            axes.annotate(str(point.model), (x, 0), xycoords=axis, xytext=(-3, 9), rotation=90, **style)


def _height(point: Point, *, labelled: bool) -> float:
    assert point.loss is not None, "only what is trained has a height"
    return 100 * (point.top1 if labelled and point.top1 is not None else point.loss.agreement)
