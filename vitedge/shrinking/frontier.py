"""The frontier: the accuracy and latency of models for about ten budgets, in two precisions, to choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from vitedge._version import __version__
from vitedge.core.files import resource_errors
from vitedge.core.progress import Progress, silent
from vitedge.core.schema import Record
from vitedge.exporting.candidates import evaluate_candidate
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.target import QUANTIZED, Candidate
from vitedge.graph.surgery import load, macs
from vitedge.quantization.observe import observe
from vitedge.shrinking import timing
from vitedge.shrinking.beside import Neighbour, neighbours
from vitedge.shrinking.choose import Option, Places, choose_with_schedule, fastest_schedule, together
from vitedge.shrinking.plan import ShrinkPlan
from vitedge.shrinking.prices import prices
from vitedge.shrinking.subject import Subject, subject
from vitedge.shrinking.timing import Stopwatch

if TYPE_CHECKING:
    import onnx

BUDGETS = 10
LEAST_SHARE = 0.25  # of the whole model's time, by the table


class Point(Record):
    """One model of the curve in one precision."""

    budget: str  # "whole", or what to ask for: "--speedup 1.5"; of another model "–"
    precision: str
    latency_ms: float  # median
    speedup: float  # against the whole model in the same precision
    macs: int
    loss: Fidelity | None  # against the whole model in float32, on the hold-out pictures; None: its weights are random
    top1: float | None  # fraction; None: the hold-out pictures have no labels, or its weights are random
    widths: dict[str, int]  # of the components that became narrower
    model: str | None = None  # that was measured beside; None: the one that is shrunk


class Frontier(Record):
    """The contents of ``OUT.frontier.json``."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    vitedge_version: str = __version__
    model: str
    model_digest: str
    target: str
    chosen_by: str
    points: tuple[Point, ...]  # from the whole model on, each precision in turn
    files: tuple[str, ...] = ()  # what was written


def frontier(plan: ShrinkPlan, progress: Progress = silent) -> Frontier:
    """Shrink to about ten budgets and measure each, in float and in the plan's precision.

    Raises:
        as :func:`vitedge.shrinking.run.subject`.
    """
    with resource_errors(plan.action):
        plan = changed(plan, budget=None)
        whole = subject(plan, progress)
        priced = prices(plan, whole.inputs.graph, whole.components, progress)
        schedules = whole.schedules(priced.table.saved)
        widths = [together(options).widths for options in _steps(schedules, priced.table.full)]
        narrowed = list[Drawn]()
        for number, each in enumerate(widths):
            progress("shrink", number, len(widths))
            graph = whole.shrunk(each, whole.frames, silent).model if each else whole.inputs.graph
            narrowed.append(Drawn(whole, graph, "", dict(each)))
        progress("shrink", len(widths), len(widths))
        with neighbours(plan.options.beside, plan.deployed.model.record) as others:
            drawn = [*narrowed, *map(partial(_beside, whole), others)]
            points = [point for candidate in _candidates(plan) for point in _points(whole, candidate, drawn, progress)]
    deployed = plan.deployed
    return Frontier(
        model=deployed.model.record.name,
        model_digest=deployed.model.digest,
        target=deployed.target.name,
        chosen_by=str(priced.table),
        points=tuple(points),
    )


def _steps(schedules: Sequence[Places], full: float) -> Iterator[list[Option]]:
    """Yield the whole model, then choices that save more and more; by the table, down to a quarter of the time."""
    fastest = fastest_schedule(schedules)
    most = min(together(fastest).saved, full * (1 - LEAST_SHARE))
    seen = list[Mapping[str, int]]()
    for number in range(BUDGETS + 1):
        options = choose_with_schedule(schedules, most * number / BUDGETS) or fastest
        widths = together(options).widths
        if widths not in seen:
            seen.append(widths)
            yield options


def _candidates(plan: ShrinkPlan) -> list[Candidate]:
    """Return the float candidate, where the target has one, and the candidate that will be deployed."""
    (deployed,) = plan.deployed.candidates
    plain = plan.deployed.target.plain
    return [deployed] if plain is None or plain == deployed else [plain, deployed]


@dataclass(frozen=True)
class Drawn:
    """A model that the frontier's picture shows."""

    subject: Subject  # whose pictures it takes
    graph: onnx.ModelProto
    name: str = ""  # of another model than the one that is shrunk
    widths: dict[str, int] = field(default_factory=dict)
    trained: bool = True


def _beside(whole: Subject, other: Neighbour) -> Drawn:
    """Prepare another model for the frontier's picture."""
    if not other.trained:
        return Drawn(whole, load(other.model.onnx_path), other.name, trained=False)
    subject = whole.of(other.model)
    return Drawn(subject, subject.inputs.graph, other.name)


def _points(whole: Subject, candidate: Candidate, drawn: Sequence[Drawn], progress: Progress) -> Iterator[Point]:
    """Yield the points of one precision."""
    plan = whole.plan
    deployed = changed(plan.deployed, candidates=(candidate,), precision=candidate.precision)
    watch = Stopwatch(
        deployed, drawn[0].graph, threads=plan.options.threads, duration_s=timing.WHOLE_S, statistic="median"
    )
    full, timings = watch.times([each.graph for each in drawn[1:]], progress)
    ratios = [1.0, *(timing.ratio for timing in timings)]
    for number, (each, ratio) in enumerate(zip(drawn, ratios, strict=True)):
        progress(f"evaluate {candidate.precision}", number, len(drawn))
        loss = _loss(each.subject, candidate, each.graph) if each.trained else None
        yield Point(
            budget="–" if each.name else f"--speedup {1 / ratio:.2f}" if number else "whole",
            precision=candidate.precision,
            latency_ms=full * ratio / 1e6,
            speedup=1 / ratio,
            macs=sum(macs(each.graph).values()),
            loss=loss,
            top1=None if loss is None else _top1(whole, loss),
            widths=each.widths,
            model=each.name or None,
        )
    progress(f"evaluate {candidate.precision}", len(drawn), len(drawn))


def _loss(subject: Subject, candidate: Candidate, graph: onnx.ModelProto) -> Fidelity:
    """Compare a graph in one precision with the whole model in float32."""
    if candidate.precision not in QUANTIZED:
        return subject.loss(graph)
    recipe = subject.plan.deployed.recipe
    assert recipe is not None
    statistics = observe(graph, subject.frames, recipe.observe, key="shrunk")
    evaluated = evaluate_candidate(changed(subject.inputs, graph=graph, statistics=statistics), candidate, silent)
    assert evaluated.manifest.fidelity is not None
    return evaluated.manifest.fidelity


def _top1(whole: Subject, loss: Fidelity) -> float | None:
    """Return the top-1 accuracy on the hold-out pictures, where they have labels."""
    labels = whole.hold_out.labels
    if labels is None or loss.top1_drop is None:
        return None
    original = float((whole.hold_out.reference.argmax(axis=1) == labels).mean())
    return original - loss.top1_drop.pp / 100
