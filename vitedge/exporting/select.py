"""Which layers of a candidate run quantized, and which candidates hold the budget: scanned, reverted, mixed."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace as changed
from statistics import median
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from msgspec.structs import replace

from vitedge.core.files import sha256, write_atomic
from vitedge.core.paths import cache_folder
from vitedge.core.progress import Progress
from vitedge.core.schema import Record, decode_json, encode_json
from vitedge.errors import ArtifactError, InputError, InvalidResultError
from vitedge.exporting.candidates import PROFILED, Built, Materials, build
from vitedge.exporting.evaluate import Trial, trial
from vitedge.exporting.groups import Group, Scan, divergences, fastest, fewest_reverted, grouped, saved_ns
from vitedge.exporting.plan import AUTO
from vitedge.formats.artifact import Step
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.target import QUANTIZED, Candidate
from vitedge.runtimes.base import BUDGET, NO_GAIN, PRICE, Placed
from vitedge.runtimes.here import runs_here
from vitedge.runtimes.session import Session

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

#: Pictures per group of the sensitivity scan, and per step of the selection that is drawn.
SCANNED, DRAWN = 64, 256
#: Steps that are drawn at most, and how each is timed: the median of so many turns, of each the fastest inference.
STEPS, TURNS, INFERENCES = 8, 15, 5


def candidates(materials: Materials, progress: Progress) -> tuple[list[Built], dict[Candidate, str]]:
    """The candidates that were judged: up to the first that holds the budget, or all to be measured or carried.

    Where the fastest or the first that holds is wanted, one that its runtime can't open or doesn't run as planned is
    left out. Where the target's preference is, that fails the export.

    Returns:
        Those that were built and judged, and why others came to nothing.

    Raises:
        InvalidResultError: none holds the budget, or no group gains time of the only candidate, which is to be mixed.
        ArtifactError, InvalidResultError: a failure that isn't left out, or the first of nothing but failures.
    """
    plan, judged, failed = materials.plan, list[Built](), dict[Candidate, str]()
    first: InvalidResultError | ArtifactError | None = None
    everyone = plan.autotune or plan.with_candidates
    for candidate in plan.candidates:
        try:
            built = _tried(materials, candidate, judged, progress)
        except (InvalidResultError, ArtifactError) as error:
            if not everyone and plan.precision != AUTO:
                raise
            failed[candidate], first = error.reason, first or error
            continue
        if built is not None:
            judged.append(built)
        if built is not None and built.holds is not False and not everyone:
            return judged, failed
    if any(built.holds is not False for built in judged):
        return judged, failed
    if first is not None and not judged:
        raise first
    if not judged:
        raise InvalidResultError(
            plan.action,
            "no group of layers gains time by being quantized here",
            "nothing was published; use the target's float precision",
        )
    lost = "; ".join([*map(_loss, judged), *(f"{one.form} failed: {why}" for one, why in failed.items())])
    raise InvalidResultError(
        plan.action,
        f"the budget is {plan.budget}, and no candidate holds it: {lost}",
        "nothing was published; allow more, hold out more pictures (a narrower interval), or use another --precision",
    )


def _tried(materials: Materials, candidate: Candidate, judged: Sequence[Built], progress: Progress) -> Built | None:
    """The candidate, built and judged, with layers back in float for the budget; None: it's mixed and nothing new."""
    plan, mixing = materials.plan, candidate.precision == "mixed"
    built = (_mixed if mixing else build)(materials, candidate, progress)
    if built is None or (mixing and _known(built, judged)):
        return None
    whole = built.placed.interpretable is None  # another tool quantized it: taken as it is, or not at all
    if built.holds is False and not whole:
        built = _within_budget(materials, built, progress) or built
    if plan.explain and candidate.precision in QUANTIZED and not whole:
        built = _stepped(materials, built, progress)
    return built


def _known(built: Built, judged: Sequence[Built]) -> bool:
    """Whether a mixture is what was built already: everything quantized, or nothing."""
    return any(built.placed.files == other.placed.files for other in judged)


def _loss(built: Built) -> str:
    found = built.manifest.fidelity
    assert found is not None
    drop = "" if found.drop is None else f", {found.drop.points:.2f} points lost (up to {found.drop.high:.2f})"
    return f"{built.candidate.form} {100 * found.agreement:.2f} % alike{drop}"


# --- selection -------------------------------------------------------------------------------------------------------


def _groups(built: Built) -> list[Group]:
    """The groups of what is quantized."""
    return grouped(layer.name for layer in built.manifest.layers if layer.precision in QUANTIZED)


def _without(groups: Sequence[Group], reverted: Sequence[Group]) -> frozenset[str]:
    """The layers that stay quantized."""
    return frozenset(name for group in groups if group not in reverted for name in group.layers)


def _mixed(materials: Materials, candidate: Candidate, progress: Progress) -> Built | None:
    """The candidate with those groups quantized that are worth it (:meth:`Scan.overpriced`); None where none is."""
    whole = build(materials, candidate, progress)
    groups = _groups(whole)
    scan = _scan(materials, whole, groups, progress)
    dear = scan.overpriced(groups)
    if len(dear) == len(groups):
        return None
    built = build(materials, candidate, progress, _without(groups, dear)) if dear else whole
    reasons = {name: NO_GAIN if scan.gain[group.name] <= 0 else PRICE for group in dear for name in group.layers}
    layers = tuple(replace(layer, reason=reasons.get(layer.name, layer.reason)) for layer in built.manifest.layers)
    return _noted(changed(built, manifest=replace(built.manifest, layers=layers)), scan.divergence)


def _within_budget(materials: Materials, built: Built, progress: Progress) -> Built | None:
    """The candidate with as few groups back in float as the budget allows; None where it allows none."""
    candidate, groups = built.candidate, _groups(built)
    scan = _scan(materials, built, groups, progress)
    tried: dict[frozenset[str], Built] = {}

    def judge(reverted: Sequence[Group]) -> Fidelity:
        left = _without(groups, reverted)
        tried[left] = build(materials, candidate, progress, left)
        found = tried[left].manifest.fidelity
        assert found is not None
        return found

    best = fewest_reverted(scan.worst_first(groups), judge, materials.plan.budget)
    if best is None:
        return None
    found = tried[_without(groups, best[0])]
    before = {layer.name: layer.reason for layer in built.manifest.layers}
    layers = tuple(
        replace(layer, reason=before[layer.name] or BUDGET if layer.reason == BUDGET else layer.reason)
        for layer in found.manifest.layers
    )
    return _noted(changed(found, manifest=replace(found.manifest, layers=layers)), scan.divergence)


def _noted(built: Built, sensitivity: Mapping[str, float]) -> Built:
    """With its group's sensitivity noted at every layer."""

    def known(name: str) -> float | None:
        return sensitivity.get(name.rpartition(".")[0] or name)

    layers = tuple(
        replace(layer, sensitivity=known(layer.name) if known(layer.name) is not None else layer.sensitivity)
        for layer in built.manifest.layers
    )
    return changed(built, manifest=replace(built.manifest, layers=layers))


# --- scan ------------------------------------------------------------------------------------------------------------


class _Divergence(Record):
    """One graph's, kept in the cache folder: runtimes that round alike share it."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    divergence: float


def _scan(materials: Materials, built: Built, groups: Sequence[Group], progress: Progress) -> Scan:
    """Sensitivity and gain of every group."""
    candidate = built.candidate

    def divergence(layers: frozenset[str]) -> float:
        known = materials.scanned
        if (candidate.form, layers) not in known:
            placed = materials.place(candidate, layers)
            known[candidate.form, layers] = _divergence(materials, built, placed)
        return known[candidate.form, layers]

    found = divergences(groups, divergence, progress)
    saved = _saved(materials, built, groups)
    macs = {layer.name: layer.macs for layer in built.manifest.layers}
    work = {group.name: float(sum(macs[name] for name in group.layers)) for group in groups}
    return Scan(found, saved or work, measured=saved is not None)


def _divergence(materials: Materials, built: Built, placed: Placed) -> float:
    """Mean KL of a graph's arithmetic to the float logits, on the first pictures of the jury."""
    from vitedge.runtimes.interpreter import run_graph

    jury, action, graph = materials.jury, materials.plan.action, placed.interpretable
    assert jury is not None
    if graph is None:  # its runtime alone knows its arithmetic
        with trial(replace(built.manifest, layers=placed.layers), placed, action) as running:
            return jury.judge(running, SCANNED).divergence
    key = sha256("\0".join([jury.digest, str(SCANNED), *_rounding(materials.graph, graph)]).encode())
    kept = cache_folder() / "sensitivity" / f"{key[:32]}.json"
    with contextlib.suppress(OSError, InputError):
        return decode_json(kept.read_bytes(), _Divergence, action=action, file=kept.name).divergence
    found = jury.judge(Trial(lambda frames: run_graph(graph, frames), "", None), SCANNED).divergence
    write_atomic(kept, encode_json(_Divergence(divergence=found)), action)
    return found


def _rounding(plain: onnx.ModelProto, graph: onnx.ModelProto) -> Iterator[str]:
    """What rounding changed, in words: the constants that the float graph hasn't, and how many nodes round.

    Layout and fusions, in which runtimes differ, change nothing of it; so the order within integer weights doesn't
    count.
    """
    from vitedge.graph.surgery import array, initializers

    before = initializers(plain)
    for name, tensor in sorted(initializers(graph).items()):
        if name in before and before[name] == tensor:
            continue
        values = array(tensor)
        ordered = np.sort(values, axis=None) if values.dtype.kind in "iu" else values
        yield f"{name} {values.dtype} {sha256(np.ascontiguousarray(ordered).tobytes())}"
    kinds = Counter(node.op_type for node in graph.graph.node if "Quantize" in node.op_type or node.op_type == "Cast")
    yield from (f"{kind} {count}" for kind, count in sorted(kinds.items()))


def _saved(materials: Materials, built: Built, groups: Sequence[Group]) -> dict[str, float] | None:
    """Nanoseconds saved by each group, from profiles of the float and the quantized graph; None where neither runs."""
    plain = materials.plain
    if plain is None or not runs_here(materials.plan.target):
        return None
    profiles = []
    for placed in (plain, built.placed):
        with trial(built.manifest, placed, materials.plan.action) as running:
            if running.session is None:
                return None
            profiles.append(fastest(running.session.profile(materials.frames, PROFILED)))
    return saved_ns(groups, *profiles)


# --- the steps of the selection --------------------------------------------------------------------------------------


def _stepped(materials: Materials, built: Built, progress: Progress) -> Built:
    """With sensitivities and the steps of the selection noted: from everything quantized to everything in float.

    Groups go back to float as for a budget, the worst first. Of many steps some are drawn, the one that was built
    among them. Each is placed, judged, and timed in turns where the target's runtime runs here.
    """
    whole = build(materials, built.candidate, progress) if _reverted(built) else built
    groups = _groups(whole)
    scan = _scan(materials, whole, groups, progress)
    order = scan.worst_first(groups)
    own = _without(groups, [group for group in groups if not set(group.layers) <= _quantized(built)])
    macs = {layer.name: layer.macs for layer in built.manifest.layers}
    lefts = dict.fromkeys([*(_without(groups, order[:count]) for count in _counts(len(order))), own])
    drawn = [(left, built.placed if left == own else materials.place(built.candidate, left)) for left in lefts]
    if materials.plain is not None:
        drawn.append((frozenset(), materials.plain))
    steps = [
        Step(
            quantized=sum(macs[name] for name in left) / (sum(macs.values()) or 1),
            groups_in_float=sum(not set(group.layers) <= left for group in groups),
            divergence=found.divergence,
            agreement=found.agreement,
            latency_ms=latency,
            chosen=left == own,
        )
        for (left, _), (found, latency) in zip(drawn, _judged(materials, built, drawn, progress), strict=True)
    ]
    steps.sort(key=lambda step: -step.quantized)
    noted = _noted(built, scan.divergence)
    return changed(noted, manifest=replace(noted.manifest, steps=tuple(steps)))


def _reverted(built: Built) -> bool:
    return any(layer.reason in (BUDGET, NO_GAIN, PRICE) for layer in built.manifest.layers)


def _quantized(built: Built) -> set[str]:
    return {layer.name for layer in built.manifest.layers if layer.precision in QUANTIZED}


def _counts(groups: int) -> list[int]:
    """How many groups are in float at each step that is drawn, evenly from none on; all of them is the float graph."""
    return sorted({round(number * groups / STEPS) for number in range(STEPS)})


def _judged(
    materials: Materials, built: Built, drawn: Sequence[tuple[frozenset[str], Placed]], progress: Progress
) -> list[tuple[Fidelity, float | None]]:
    """What each graph loses, and the milliseconds that it takes here, all of them in turns."""
    jury, plan = materials.jury, materials.plan
    assert jury is not None
    with contextlib.ExitStack() as stack:
        trials, found = [], []
        for number, (left, placed) in enumerate(drawn):
            progress("steps", number, len(drawn))
            layers = placed.layers if left else built.manifest.layers
            manifest = replace(built.manifest, layers=layers, runtime_options=dict(placed.runtime_options))
            trials.append(stack.enter_context(trial(manifest, placed, plan.action, threads=None)))
            found.append(jury.judge(trials[-1], DRAWN))
        progress("steps", len(drawn), len(drawn))
        sessions = [running.session for running in trials if running.session is not None]
        times: Sequence[float | None] = [None] * len(drawn)
        if len(sessions) == len(drawn):
            times = _in_turns(sessions, materials.frames)
    return list(zip(found, times, strict=True))


def _in_turns(sessions: Sequence[Session], frames: NDArray[np.uint8]) -> list[float]:
    """Milliseconds of an inference of each session: the median over turns of each turn's fastest."""
    found: list[list[int]] = [[] for _ in sessions]
    order = np.random.default_rng(0)
    for _ in range(TURNS):
        for number in order.permutation(len(sessions)):
            sessions[number].run(frames)
            taken = []
            for _ in range(INFERENCES):
                start = time.perf_counter_ns()
                sessions[number].run(frames)
                taken.append(time.perf_counter_ns() - start)
            found[number].append(min(taken))
    return [median(times) / 1e6 for times in found]
