"""Draw pictures as inline SVG, with matplotlib.

Colours are CSS variables of the page (:data:`VARIABLES` and ``--s0`` … ``--s7``), so that one picture serves light,
dark and paper. Text stays text. Nothing from outside is parsed as mathematics or markup.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vitedge.errors import NotInstalledError, printable
from vitedge.evaluation.statistics import confusion, per_class
from vitedge.reporting.rows import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vitedge.formats.artifact import CandidateResult, Step

SERIES = 8
MARKERS = "osD^vPX*"
VARIABLES = ("ink", "quiet", "grid", "card", "accent", "bad")
#: Colours that matplotlib draws with, and the CSS variable that each becomes.
INK, QUIET, GRID, CARD, RIGHT, WRONG = (f"#0a00{number:02x}" for number in range(6))
_PLACEHOLDERS = dict(zip((INK, QUIET, GRID, CARD, RIGHT, WRONG), VARIABLES, strict=True)) | {
    f"#0b00{number:02x}": f"s{number}" for number in range(SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10,
}


def colour(line: Line | int) -> str:
    """Return the colour of a line, or of a number, for matplotlib."""
    number = line if isinstance(line, int) else _number(line.letter)
    return f"#0b00{number % SERIES:02x}"


def _number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def series(line: Line) -> int:
    """Return the number of a line's colour among the page's series colours."""
    return _number(line.letter) % SERIES


def marker(line: Line) -> str:
    """Return the shape of a line's points."""
    return MARKERS[_number(line.letter) % len(MARKERS)]


class Picture:
    """One picture while it's drawn: a figure with axes below each other, and its SVG afterwards."""

    def __init__(self, title: str, height: float, width: float, panels: int) -> None:
        from matplotlib.figure import Figure

        self.title = title
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.panels: list[Axes] = [self.figure.add_subplot(panels, 1, number + 1) for number in range(panels)]
        self.svg = ""

    @property
    def axes(self) -> Axes:
        """The first panel, which usually is the only one."""
        return self.panels[0]

    def render(self) -> str:
        """Return ``<svg>`` without fixed size, with a title for screen readers."""
        stream = io.StringIO()
        self.figure.savefig(
            stream, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
        )
        text = stream.getvalue()
        text = text[text.index("<svg") :]
        for element in ("metadata", "style"):  # a style sheet in here would be one of the whole page
            text = re.sub(rf"<{element}\b.*?</{element}>\s*", "", text, count=1, flags=re.DOTALL)
        text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', self._open, text, count=1)
        for placeholder, name in _PLACEHOLDERS.items():
            text = text.replace(placeholder, f"var(--{name})")
        return re.sub(r'font-family: [^;"]*; ?|(?<=<g) id="[^"]*"', "", text)

    def _open(self, match: re.Match[str]) -> str:
        from html import escape

        title = escape(printable(self.title))
        return f'<svg role="img" aria-label="{title}" viewBox="{match[1]}"><title>{title}</title>'


@contextlib.contextmanager
def picture(title: str, *, height: float = 3.4, width: float = 5.2, panels: int = 1) -> Iterator[Picture]:
    """Provide a picture to draw on; afterwards its ``svg`` is set.

    Raises:
        NotInstalledError: matplotlib isn't installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra("draw the report's pictures", "matplotlib", "report") from error
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}), warnings.catch_warnings():
        # Text stays text: a letter that our font lacks is drawn by the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawing = Picture(title, height, width, panels)
        yield drawing
        drawing.svg = drawing.render()


def letters(axes: Axes, places: Sequence[tuple[Line, float, float]]) -> None:
    """Put a letter beside each (x, y), where it covers no other point or letter; call it after all drawing."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout decides where data lie
    points = [tuple(axes.transData.transform((x, y))) for _, x, y in places]
    placed: list[tuple[float, float]] = []
    for (line, x, y), (across, up) in sorted(zip(places, points, strict=True), key=lambda item: -item[1][1]):
        for dx, dy in _AROUND:
            place = across + dx, up + dy
            if all(math.dist(place, other) >= _APART for other in placed) and all(
                math.dist(place, point) >= _CLEAR for point in points
            ):
                break
        placed.append(place)
        axes.annotate(
            line.letter,
            (x, y),
            xytext=(dx * 72 / axes.figure.dpi, dy * 72 / axes.figure.dpi),
            textcoords="offset points",
            ha="center",
            va="center",
            color=colour(line),
            fontweight="bold",
            annotation_clip=False,
        )


_APART, _CLEAR = 16.0, 13.0  # pixels between the middles of two letters, and of a letter and a point
#: Where a letter may stand, pixels from its point: beside it, then around it, then farther away.
_AROUND = [
    (distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle)))
    for distance in (16.0, 22.0, 30.0, 40.0)
    for angle in (0, 45, -45, 180, 135, -135, 90, -90)
]


# --- accuracy against latency ----------------------------------------------------------------------------------------


def front(lines: Sequence[Line]) -> list[Line]:
    """Return the Pareto front among valid rows, from the fastest on: no other is both faster and more accurate."""
    points = [line for line in lines if line.cost_ms is not None and line.top1 is not None and line.verdict.valid]
    members: list[Line] = []
    for line in sorted(points, key=lambda line: (line.cost_ms or 0.0, -(line.top1 or 0.0))):
        if not members or (line.top1 or 0.0) > (members[-1].top1 or 0.0):
            members.append(line)
    return members


def tradeoff(lines: Sequence[Line], title: str) -> str | None:
    """Draw top-1 over latency, 95 % intervals of top-1, and the Pareto front; hollow where a row isn't valid."""
    points = [line for line in lines if line.cost_ms is not None and line.top1 is not None]
    if len(points) < 2:
        return None
    with picture(title) as drawing:
        axes = drawing.axes
        best = front(points)
        if len(best) > 1:
            axes.plot(
                [line.cost_ms or 0.0 for line in best],
                [100 * (line.top1 or 0.0) for line in best],
                color=QUIET,
                linewidth=1.2,
                linestyle=(0, (4, 3)),
                drawstyle="steps-post",
                zorder=1,
            )
        for line in points:
            x, y = line.cost_ms or 0.0, 100 * (line.top1 or 0.0)
            if line.top1_interval is not None:
                low, high = (100 * end for end in line.top1_interval)
                axes.plot([x, x], [low, high], color=colour(line), linewidth=1, alpha=0.45, zorder=2)
            axes.plot(
                x,
                y,
                marker=marker(line),
                markersize=8,
                color=colour(line),
                markerfacecolor=colour(line) if line.verdict.valid else CARD,
                markeredgewidth=1.6,
                linestyle="none",
                zorder=3,
            )
        axes.set_xlim(0, 1.1 * max(line.cost_ms or 0.0 for line in points))
        axes.set_xlabel("milliseconds an image, median" if points[0].row.subject.batch > 1 else "latency p50, ms")
        axes.set_ylabel("top-1, %")
        letters(axes, [(line, line.cost_ms or 0.0, 100 * (line.top1 or 0.0)) for line in points])
    return drawing.svg


def selection(steps: Sequence[Step], candidates: Sequence[CandidateResult], title: str) -> str | None:
    """Draw divergence from float32 over latency (or the unquantized fraction) as groups of layers go back to float.

    The steps are one line, numbered by the groups in float; the chosen one is ringed. Other candidates that were
    measured and evaluated are hollow. None for fewer than three steps.
    """
    if len(steps) < 3:
        return None
    timed = all(step.latency_ms is not None for step in steps)
    others = [
        (candidate.latency_p50_ms, candidate.divergence or 0.0, shortened(candidate.variant))
        for candidate in candidates
        if timed and not candidate.chosen and candidate.latency_p50_ms is not None
    ]
    highest = max([step.divergence for step in steps] + [y for _, y, _ in others])
    power = math.floor(math.log10(highest)) if highest > 0 else 0
    unit = 10.0**power
    with picture(title, height=3.8) as drawing:
        axes = drawing.axes
        places = [
            (step.latency_ms or 0.0 if timed else 100 * (1 - step.quantized), step.divergence / unit) for step in steps
        ]
        axes.plot(*zip(*places, strict=True), color=colour(0), linewidth=1.2, alpha=0.5, zorder=1)
        axes.plot(*zip(*places, strict=True), "o", color=colour(0), markersize=6, zorder=3)
        labels = []
        for step, (x, y) in zip(steps, places, strict=True):
            labels.append((x, y, _step_words(step), RIGHT if step.chosen else QUIET))
            if step.chosen:
                axes.plot(x, y, "o", color=RIGHT, markersize=13, markerfacecolor="none", markeredgewidth=2, zorder=4)
        for x, y, variant in others:
            axes.plot(x, y / unit, "s", color=QUIET, markersize=6, markerfacecolor=CARD, markeredgewidth=1.4, zorder=2)
            labels.append((x, y / unit, variant, QUIET))
        left, right = min(x for x, *_ in labels), max(x for x, *_ in labels)
        wide = right - left or 1.0
        axes.set_xlim(left - 0.08 * wide, right + 0.3 * wide)
        axes.set_ylim(-0.12 * highest / unit, 1.16 * highest / unit or 1.0)
        axes.set_xlabel("latency, ms" if timed else "multiply-accumulates in float, %")
        axes.set_ylabel(f"mean KL from float32, 10{str(power).translate(_SUPERSCRIPT)}")
        _beside(axes, sorted(labels, key=lambda word: (word[2].isdecimal(), word[3] == QUIET)))
    return drawing.svg


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _beside(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each (x, y, text, colour) beside its point, where no earlier text is; leave out numbers without a place."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout decides where data lie
    taken: list[tuple[float, float, float]] = []  # left, middle, right in points
    for x, y, text, shade in labels:
        across, up = (value * 72 / axes.figure.dpi for value in axes.transData.transform((x, y)))
        width, number = 5.0 * len(text), text.isdecimal()
        for dx, dy in ((-8, -9),) if number else ((8, 8), (8, 21), (-8 - width, -13), (8, -15)):
            begin = across + dx - (width / 2 if number else 0)
            end, height = begin + width, up + dy
            if all(end < start or begin > other or abs(height - level) > 10 for start, level, other in taken):
                axes.annotate(
                    text,
                    (x, y),
                    xytext=(dx, dy),
                    textcoords="offset points",
                    ha="center" if number else "left",
                    va="center",
                    color=shade,
                    fontsize=9,
                    annotation_clip=False,
                )
                taken.append((begin, height, end))
                break


def _step_words(step: Step) -> str:
    if step.quantized == 0:
        return "all in float"
    label = str(step.groups_in_float) if step.groups_in_float else "all quantized"
    return f"{label}, chosen" if step.chosen else label


def standalone(svg: str) -> str:
    """Return a picture as a file of its own: with a size, a background, and the report's colours for light and dark."""
    from pathlib import Path

    css = (Path(__file__).resolve().parent / "templates" / "report.css").read_text()
    light, dark = (css.partition(start)[2].partition("}")[0] for start in (":root {", "(prefers-color-scheme: dark) {"))
    box = re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', svg)
    size = f' width="{float(box[1]) * 1.6:.0f}" height="{float(box[2]) * 1.6:.0f}"' if box is not None else ""
    style = (
        f"svg {{ {_colours(light)} background: var(--card); font-family: sans-serif; }}\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {_colours(dark)} }} }}"
    )
    return svg.replace(
        "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"{size} ', 1
    ).replace("</title>", f"</title><style>{style}</style>", 1)


def _colours(css: str) -> str:
    """Return the variables of one colour scheme."""
    return " ".join(f"{name}: {value};" for name, value in re.findall(r"(--[a-z][a-z0-9-]*): (#[0-9a-f]{6})", css))


# --- latency ---------------------------------------------------------------------------------------------------------


def distributions(lines: Sequence[Line], title: str) -> str | None:
    """Draw the percentage of inferences below each latency, one curve for each artifact, to the 99.5th percentile."""
    import numpy as np

    timed = [line for line in lines if line.row.latency is not None and len(line.row.latency.samples) > 1]
    if not timed:
        return None
    with picture(title) as drawing:
        axes, right, places = drawing.axes, 0.0, []
        for number, line in enumerate(timed):
            assert line.row.latency is not None
            ordered = np.sort(np.asarray(line.row.latency.samples.latency_ns)) / 1e6
            right = max(right, float(ordered[int(0.995 * (len(ordered) - 1))]))
            # At most 300 steps for each curve, which is as fine as can be seen.
            fractions = np.linspace(0, 1, min(300, len(ordered)))
            values = ordered[np.round(fractions * (len(ordered) - 1)).astype(int)]
            axes.plot(values, 100 * fractions, color=colour(line), linewidth=1.8)
            height = 25 + 50 * (number + 0.5) / len(timed)
            places.append((line, float(ordered[int(height / 100 * (len(ordered) - 1))]), height))
        axes.axhline(95, color=QUIET, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.annotate("p95", (0, 95), xytext=(3, 2), textcoords="offset points", color=QUIET, fontsize=9, va="bottom")
        axes.set_xlim(0, 1.08 * right)
        axes.set_ylim(0, 101)
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("inferences, %")
        letters(axes, places)
    return drawing.svg


# --- accuracy --------------------------------------------------------------------------------------------------------


def classes(line: Line, title: str) -> str | None:
    """Draw top-1 of each class beside the reference's; None with more than 40 classes."""
    data, accuracy = line.result.data, line.row.accuracy
    if data is None or accuracy is None or not 1 < len(data.classes) <= 40:
        return None
    counts = per_class(accuracy, data)
    reference_counts = per_class(line.reference.accuracy, data) if line.reference and line.reference.accuracy else None
    order = sorted(range(len(counts)), key=lambda index: counts[index][0] / max(1, counts[index][1]))
    with picture(title, height=1.0 + 0.24 * len(order)) as drawing:
        axes = drawing.axes
        for y, index in enumerate(order):
            top1_pct = 100 * counts[index][0] / max(1, counts[index][1])
            if reference_counts is not None:
                other = 100 * reference_counts[index][0] / max(1, reference_counts[index][1])
                axes.plot([other, top1_pct], [y, y], color=QUIET, linewidth=1.2, zorder=1)
                axes.plot(other, y, "o", color=QUIET, markerfacecolor=CARD, markersize=6, zorder=2)
            axes.plot(top1_pct, y, "o", color=colour(line), markersize=6, zorder=3)
        axes.set_yticks(range(len(order)), [shortened(data.classes[index]) for index in order])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.margins(y=0.04)
        axes.set_xlabel("top-1, %" + (" (hollow: float32)" if reference_counts is not None else ""))
    return drawing.svg


def confusions(line: Line, title: str) -> str | None:
    """Draw the confusion matrix, true classes downwards, fractions of each row; None with more than 20 classes."""
    data, accuracy = line.result.data, line.row.accuracy
    if data is None or accuracy is None or not 1 < len(data.classes) <= 20:
        return None
    counts = confusion(accuracy, data)
    size = len(counts)
    with picture(title, height=1.2 + 0.28 * size) as drawing:
        axes = drawing.axes
        for row, cells in enumerate(counts):
            total = max(1, sum(cells))
            for column, count in enumerate(cells):
                if not count:
                    continue
                strength = count / total if row == column else min(1.0, 4 * count / total)
                shade = RIGHT if row == column else WRONG
                axes.add_patch(_square(column - 0.5, row - 0.5, shade, 0.1 + 0.6 * strength))
                if size <= 12:
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=9, color=INK)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        names = [shortened(name) for name in data.classes]
        axes.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), names)
        axes.grid(visible=False)
        axes.set_xlabel("answered")
        axes.set_ylabel("true")
    return drawing.svg


def _square(x: float, y: float, shade: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor=shade, alpha=alpha, linewidth=0)


def reliability(lines: Sequence[Line], title: str) -> str | None:
    """Draw accuracy over confidence in equal-width bins; on the diagonal the model is calibrated."""
    shown = [line for line in lines if line.row.accuracy is not None and line.row.accuracy.calibrated is not None]
    if not shown:
        return None
    with picture(title) as drawing:
        axes, places = drawing.axes, []
        axes.plot([0, 100], [0, 100], color=QUIET, linewidth=1, linestyle=(0, (2, 3)))
        for line in shown:
            assert line.row.accuracy is not None and line.row.accuracy.calibrated is not None
            bins = line.row.accuracy.calibrated
            points = [
                (100 * confidence / count, 100 * correct / count)
                for count, correct, confidence in zip(bins.count, bins.correct, bins.confidence_sum, strict=True)
                if count >= 5
            ]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=colour(line),
                marker=marker(line),
                markersize=4,
                linewidth=1.4,
            )
            if points:
                places.append((line, *points[-1]))
        axes.set_xlim(0, 106)
        axes.set_ylim(0, 102)
        axes.set_xlabel("confidence of the answer, %")
        axes.set_ylabel("correct, %")
        letters(axes, places)
    return drawing.svg


def shortened(name: str, most: int = 18) -> str:
    """Return a printable name of at most ``most`` characters."""
    clean = printable(name).replace("\n", " ")
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"
