"""Tables on stdout, one function a table; plain where stdout isn't a terminal or ``NO_COLOR`` is set.

Every cell is text, never markup: labels, names and paths come from outside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitedge import runtimes
from vitedge.errors import printable
from vitedge.installation import install_command

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from vitedge.device.clocks import Clock, Clocks
    from vitedge.doctor import Machine, RuntimeState
    from vitedge.formats.recipe import Recipe
    from vitedge.formats.target import Target
    from vitedge.reporting.inspection import Inspection

T = TypeVar("T")

#: Columns when stdout is a file or a pipe: nothing is wrapped there.
UNLIMITED = 400
LONGEST_WORD = 12  # a column that wraps isn't made narrower than its longest word, up to this
GOOD, BAD, UNSURE, QUIET, LOUD = "green", "red", "yellow", "dim", "bold"


def emit(value: T, json: str | None, show: Callable[[T], None]) -> None:
    """Print a value: as a table, as JSON alone with ``-``, or as a table and JSON in a file.

    Args:
        value: anything that :func:`vitedge.core.schema.encode_json` takes.
        json: the option ``--json``.
        show: one of this module's functions.

    Raises:
        UsageError: the file exists and isn't JSON.
        ResourceError: it can't be written.
    """
    from vitedge.core.files import JSON, refuse_existing, write_atomic
    from vitedge.core.schema import encode_json

    if json == "-":
        sys.stdout.write(encode_json(value).decode())
        return
    if json is not None:
        refuse_existing(Path(json), JSON, overwrite=True, action=f"write {json}")
        write_atomic(Path(json), encode_json(value), f"write {json}")
    show(value)


# --- parts -----------------------------------------------------------------------------------------------------------


def console() -> Console:
    """Return the console for tables: stdout as it is now."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else UNLIMITED
    return Console(file=sys.stdout, markup=False, emoji=False, highlight=False, width=width)


def text(value: object, style: str = "") -> Text:
    """Return a cell; None is unknown."""
    from rich.text import Text

    return Text("unknown", style=QUIET) if value is None else Text(printable(value).replace("\n", " "), style=style)


def mark(ok: bool | None) -> Text:
    """Return ✓, ✗, or – where it's undecided."""
    return {True: text("✓", GOOD), False: text("✗", BAD), None: text("–", UNSURE)}[ok]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> RenderableType:
    """Return a table with one line only. ``>`` before a column's name aligns it right; ``!`` keeps it on one line.

    Where there is little room, the names of columns of numbers take two lines, and text wraps between words.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    narrow = console().width < 100
    table = Table(
        box=box.SIMPLE_HEAD,
        header_style=QUIET,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1 if narrow else 2, 0, 0),
    )
    cells = [[cell if isinstance(cell, Text) else text(cell) for cell in row] for row in rows]
    for number, column in enumerate(columns):
        right, single = ">" in column[:2], "!" in column[:2]
        name = column.lstrip(">!")
        longest = max((len(word) for row in cells for word in row[number].plain.split()), default=0)
        table.add_column(
            Text(name.replace(" ", "\n")) if right and narrow else text(name),
            justify="right" if right else "left",
            vertical="top",
            no_wrap=right or single,
            overflow="fold",
            min_width=None if right or single else min(longest, LONGEST_WORD),
        )
    for row in cells:
        table.add_row(*row)
    return _titled(title, table)


def facts(pairs: Iterable[tuple[str, object]], title: str | None = None) -> RenderableType:
    """Return names and values, one a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style=QUIET, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(text(name), value if isinstance(value, Text) else text(value))
    return _titled(title, table)


def _titled(title: str | None, table: Table) -> RenderableType:
    from rich.console import Group

    return table if title is None else Group(text(title, LOUD), table)


def show(*parts: RenderableType | None) -> None:
    """Print parts with a line between them; None is left out."""
    out = console()
    with out.capture() as captured:
        for number, part in enumerate(part for part in parts if part is not None):
            if number:
                out.print()
            out.print(part)
    lines = captured.get().splitlines()
    sys.stdout.write("".join(f"{line if out.is_terminal else line.rstrip()}\n" for line in lines))


def indented(value: object, style: str = "") -> RenderableType:
    """Return a text indented by two columns, also where it's wrapped."""
    from rich.padding import Padding

    return Padding(text(value, style), (0, 0, 0, 2))


def words(value: Any) -> str:
    """Format a value of any type in words."""
    if isinstance(value, Mapping):
        return " · ".join(f"{name}: {words(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(words(inner) for inner in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)


def megabytes(size: int) -> str:
    """Format bytes as megabytes (10⁶) with two significant digits."""
    return f"{size / 1e6:.1f}" if size >= 1e6 else f"{size / 1e6:.2f}"


# --- models and artifacts --------------------------------------------------------------------------------------------


def show_models(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the flat rows of ``import``."""
    show(*(facts(((name.replace("_", " "), words(value)) for name, value in row.items())) for row in rows))


def show_plans(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the flat rows of ``export --dry-run``."""
    show_models(rows)


def show_exports(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one row for each artifact that ``export`` wrote."""
    show(
        table(
            [
                "artifact",
                "target",
                "!precision",
                "variant",
                "MACs",
                ">MB",
                ">top-1 agreement (%)",
                ">top-1 drop (pp)",
                "executed by",
            ],
            [
                (
                    row["artifact"],
                    row["target"],
                    row["precision"],
                    row["form"],
                    ", ".join(f"{name} {fraction:.0%}" for name, fraction in row["obtained"].items()),
                    megabytes(row["bytes"]),
                    "" if row["agreement"] is None else f"{100 * row['agreement']:.2f}",
                    "" if row["drop"] is None else f"{row['drop']['points']:.2f} (≤ {row['drop']['high']:.2f})",
                    row["executed_by"],
                )
                for row in rows
            ],
        ),
        *(_tuned(row) for row in rows if any(each["latency_p50_ms"] is not None for each in row["candidates"])),
        *(
            text(f"{row['artifact']}: {each['form']} ({each['precision']}) was left out: {each['failed']}")
            for row in rows
            for each in row["candidates"]
            if each["failed"]
        ),
        *(part for row in rows if "explained" in row for part in _explained(row["explained"])),
        *(text(row["picture"]) for row in rows if row.get("picture")),
        *(text(f"evaluated on {pictures}") for pictures in dict.fromkeys(row["judged_on"] for row in rows) if pictures),
        *(
            text(f"{row['artifact']}: {len(row['left_in_float'])} layers that could be quantized stay in float")
            for row in rows
            if row["left_in_float"]
        ),
        _skipped(rows),
        *(text(note, UNSURE) for note in dict.fromkeys(note for row in rows for note in row["notes"])),
    )


def _tuned(row: Mapping[str, Any]) -> RenderableType:
    """Return the table of measurements for the choice."""
    return table(
        [
            "candidate",
            "precision",
            ">p50 ms",
            ">MB",
            ">top-1 agreement (%)",
            ">top-1 drop (pp)",
            "meets its budget",
            "",
        ],
        [
            (
                each["form"],
                each["precision"],
                "" if each["latency_p50_ms"] is None else f"{each['latency_p50_ms']:.3f}",
                megabytes(each["bytes"]),
                "" if each["agreement"] is None else f"{100 * each['agreement']:.2f}",
                "" if each["drop_pts"] is None else f"{each['drop_pts']:.2f}",
                "" if each["holds"] is None else words(each["holds"]),
                "chosen" if each["chosen"] else "",
            )
            for each in row["candidates"]
            if not each["failed"]
        ],
        title=f"{row['artifact']}: measured interleaved on this machine",
    )


def _explained(explained: Mapping[str, Any]) -> list[RenderableType]:
    """Return the layers, then the sentences."""

    from rich.console import Group

    def microseconds(value: float | None) -> str:
        return "" if value is None else f"{value:.0f}"

    rows = [
        (
            layer["name"],
            layer["precision"],
            f"{layer['share_of_macs']:.1%}",
            "" if layer["sensitivity"] is None else f"{layer['sensitivity']:.2g}",
            microseconds(layer["before_us"]),
            microseconds(layer["after_us"]),
            layer["reason"],
        )
        for layer in explained["layers"]
    ]
    columns = ["layer", "precision", ">MACs", ">KL", ">float32 µs", ">quantized µs", "reason"]
    return [
        table(columns, rows, title=f"{explained['artifact']}, layer by layer"),
        Group(*(text(sentence) for sentence in explained["sentences"])),
    ]


def _skipped(rows: Sequence[Mapping[str, Any]]) -> Text | None:
    names = sorted({name for row in rows for name in row["skipped_images"]})
    if not names:
        return None
    return text(
        f"{len(names)} calibration image{'s' if len(names) > 1 else ''} could not be read: {', '.join(names[:5])}",
        UNSURE,
    )


# --- catalogue -------------------------------------------------------------------------------------------------------


def show_targets(targets: Sequence[Target]) -> None:
    """Print one row for each target."""
    show(
        table(
            ["!target", "for", "!runtime", "device", "precisions"],
            [
                (
                    text(target.name, LOUD),
                    target.summary,
                    target.runtime,
                    target.device,
                    precisions(target),
                )
                for target in targets
            ],
        )
    )


def precisions(target: Target) -> str:
    """Return the precisions of a target, the preferred one first."""
    return " ".join(dict.fromkeys(candidate.precision for candidate in target.candidate))


def show_target(target: Target) -> None:
    """Print all settings of one target."""
    latency = target.budget.latency_p95_ms
    show(
        facts(
            [
                ("target", text(target.name, LOUD)),
                ("for", target.summary),
                ("runtime", f"{target.runtime}, {target.runtime_min} or newer"),
                ("architecture", target.arch if target.isa == "any" else f"{target.arch} with {target.isa}"),
                ("device", target.device),
                *([("compute capability", target.sm)] if target.sm else []),
                *([("engines for", ", ".join(target.sms))] if target.sms else []),
                *([("memory", f"{target.memory_mb} MiB")] if target.memory_mb else []),
                ("threads", target.threads or "the machine's physical cores"),
                ("batch", target.batch),
                ("options", words(target.options) or "none"),
                ("bench", f"{target.bench.warmup_s:g} s of warm-up, at least {target.bench.min_duration_s:g} s"),
                (
                    "budget",
                    f"top-1 drop up to {target.budget.max_top1_drop_pp:g} pp"
                    + (f", p95 up to {latency:g} ms" if latency else ""),
                ),
            ]
        ),
        table(
            ["!precision", "variant"],
            [(candidate.precision, candidate.variant) for candidate in target.candidate],
            title="Candidates, the preferred one first",
        ),
        table(["!precision", "reason"], target.refused.items(), title="Refused") if target.refused else None,
    )


def show_recipes(recipes: Sequence[Recipe]) -> None:
    """Print one row for each recipe."""
    show(
        table(
            ["!recipe", "what it does", ">images", "!activations", "!weights"],
            [
                (
                    text(recipe.name, LOUD),
                    recipe.summary,
                    recipe.observe.num_samples,
                    recipe.round.activations,
                    recipe.round.weights,
                )
                for recipe in recipes
            ],
        )
    )


def show_recipe(recipe: Recipe) -> None:
    """Print all settings of one recipe, section by section."""
    from msgspec import to_builtins

    sections = to_builtins(recipe)
    show(
        facts([("recipe", text(recipe.name, LOUD)), ("what it does", recipe.summary)]),
        *(
            facts([(name.replace("_", " "), words(value)) for name, value in sections[section].items()], title=section)
            for section in ("observe", "improve", "round")
        ),
    )


# --- doctor ----------------------------------------------------------------------------------------------------------


def show_doctor(machine: Machine) -> None:
    """Print this machine's facts, and what it can run."""
    show(
        facts(_machine_facts(machine), title="This machine"),
        table(
            ["", "!runtime", "!version", "what it finds"],
            [
                (
                    mark(False if state.problem else True if state.version else None),
                    state.name,
                    state.version or "",
                    text(state.problem, BAD) if state.problem else _runtime_words(state),
                )
                for state in machine.runtimes
                if runtimes.needs_package(state.name)
            ],
            title="Runtimes",
        ),
        table(
            ["", "!target", "for, or why not here"],
            [
                (mark(state.runs), state.name, state.summary if state.runs else text("; ".join(state.reasons), QUIET))
                for state in sorted(machine.targets, key=lambda state: not state.runs)
            ],
            title="Targets whose artifacts run here",
        ),
        table(
            ["", "!extra", "what it adds", "!to add it"],
            [
                (mark(not state.missing or None), state.name, state.adds, state.install if state.missing else "")
                for state in machine.extras
            ],
            title="Extras",
        ),
    )


def _machine_facts(machine: Machine) -> list[tuple[str, object]]:
    processor, memory, board, cache = machine.processor, machine.memory, machine.board, machine.cache
    free = "" if cache.free_mb is None else f"; {cache.free_mb / 1024:.1f} GiB free there"
    system = ", ".join(part for part in (board.os, board.kernel and f"kernel {board.kernel}") if part)
    jetpack = f"{board.jetpack or 'unknown'} (L4T {board.l4t})"
    return [
        ("board", board.model),
        ("system", system or None),
        *([("JetPack", jetpack), ("power mode", machine.power_mode)] if board.l4t else []),
        *([("clocks", _clocks(machine.clocks))] if machine.clocks else []),
        ("processor", f"{processor.model or 'unknown'}, {processor.architecture or 'unknown architecture'}"),
        ("cores", _cores(machine)),
        ("instructions", None if processor.isa is None else " ".join(processor.isa) or "none that matter here"),
        *([("governor", processor.governor)] if processor.governor else []),
        ("memory", _memory(machine) if memory.total_mb is not None else None),
        *(("NVIDIA GPU", words(_stated(gpu))) for gpu in machine.gpus),
        *(("camera", _camera(camera)) for camera in machine.cameras),
        *([("CUDA", _cuda(machine))] if machine.cuda is not None else []),
        *([] if machine.gpus else [("NVIDIA GPU", "none found")]),
        *([] if machine.cameras else [("cameras", "none found")]),
        ("Python", f"{machine.python}, vitedge {machine.vitedge_version}"),
        ("cache", f"{cache.path}: {cache.mb:g} MB in {cache.files} files{free}"),
    ]


def _cuda(machine: Machine) -> str:
    """Describe the CUDA version that the driver serves, and the extra that brings TensorRT for it."""
    by = f"Jetson Linux {machine.board.l4t}" if machine.board.l4t else f"driver {machine.gpus[0].driver}"
    if not machine.cuda:
        return f"{by} is older than TensorRT takes"
    return f"{' and '.join(map(str, machine.cuda))}, by {by}: vitedge[tensorrt-cu{machine.cuda[0]}]"


def _cores(machine: Machine) -> str | None:
    processor = machine.processor
    if processor.logical_cores is None:
        return None
    parts = [f"{processor.physical_cores or 'unknown'} physical, {processor.logical_cores} logical"]
    if processor.allowed_cores not in (None, processor.logical_cores):
        parts.append(f"{processor.allowed_cores} allowed to this process")
    if processor.quota_cores is not None:
        parts.append(f"limited to {processor.quota_cores:g} by a control group")
    return ", ".join(parts)


def _memory(machine: Machine) -> str:
    memory = machine.memory
    available = "unknown" if memory.available_mb is None else f"{memory.available_mb:,} MiB"
    limited = ", limited by a control group" if memory.limited else ""
    swap = f", {memory.swap_mb:,} MiB of swap" if memory.swap_mb else ""
    return f"{memory.total_mb:,} MiB, {available} available{limited}{swap}"


def _clocks(clocks: Clocks) -> str:
    def one(name: str, clock: Clock | None) -> str:
        if clock is None:
            return f"{name} unknown"
        able = f", {clock.able_mhz} by its hardware" if clock.able_mhz and clock.able_mhz != clock.most_mhz else ""
        return f"{name} {clock.now_mhz} MHz of {clock.most_mhz}{able}"

    locked = "locked" if clocks.locked else "not locked (to measure: sudo jetson_clocks)"
    return f"{one('processor', clocks.processor)}; {one('GPU', clocks.gpu)}; {locked}"


def _stated(record: Any) -> dict[str, Any]:
    from msgspec import to_builtins

    return {name.replace("_", " "): value for name, value in to_builtins(record).items() if value is not None}


def _camera(camera: Any) -> str:
    state = {True: "captures", False: "doesn't capture", None: camera.problem or "unknown"}[camera.captures]
    return ", ".join(part for part in (camera.device, camera.name, camera.by_id, state) if part)


def _runtime_words(state: RuntimeState) -> Text:
    if not state.facts:
        return text(f"not installed; {install_command(state.extra)}", QUIET)
    rest = {name: value for name, value in state.facts.items() if name not in ("version", "unknown_providers")}
    return text("; ".join(part for part in (words(rest) if rest else "", state.untested) if part))


# --- inspect ---------------------------------------------------------------------------------------------------------


def show_commands(rows: Sequence[Mapping[str, str]]) -> None:
    """Print lines that a shell takes unchanged."""
    for row in rows:
        sys.stdout.write(f"# {row['purpose']}\n{row['command']}\n")


def show_inspection(inspection: Inspection) -> None:
    """Print the description of a file or folder."""
    show(
        facts(inspection.facts.items()),
        *(table(section.columns, section.rows, title=section.title) for section in inspection.sections),
    )
