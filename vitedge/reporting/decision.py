"""Which artifact to deploy, and why: the fastest that meets its target's budgets, among rows that may be compared.

Rows may be compared when they were measured on one machine under one set of rules. Rows with a verdict against them are
shown and never ranked. Where nothing valid was measured, a provisional choice says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vitedge.comparison.ratio import interleaved, ratio
from vitedge.formats.result import Environment, Rules
from vitedge.reporting.rows import UNKNOWN, Line, milliseconds, points

#: Costs per image within this factor of the fastest are a tie, which accuracy and size decide.
TIE = 1.03


@dataclass(frozen=True)
class Decision:
    """The answer for one group of rows that may be compared."""

    machine: str
    rules: Rules | None  # None: no latency was measured
    lines: tuple[Line, ...]
    choice: Line | None  # None: nothing meets its budget, or nothing was measured
    headline: str
    reasons: tuple[str, ...]  # for the choice
    caveats: tuple[str, ...]  # what a reader has to know before acting on it
    ranking: tuple[Line, ...]  # what may be ranked, the fastest first
    excluded: tuple[tuple[Line, str], ...]  # the others, and why
    provisional: bool = False  # nothing valid was measured; this is the best of what there is
    apart: str = ""  # why these rows aren't ranked with those of the first decision


def decide(lines: Sequence[Line]) -> list[Decision]:
    """One decision for each machine and set of rules, in the order of the rows."""
    groups: list[tuple[Environment, Rules | None, int, list[Line]]] = []
    for line in sorted(lines, key=lambda line: line.rules is None):  # a row without latency joins its machine's group
        where, batch = line.result.environment, line.row.subject.batch
        for environment, rules, size, members in groups:
            if environment == where and (line.rules is None or (line.rules, batch) == (rules, size)):
                members.append(line)
                break
        else:
            groups.append((where, line.rules, batch, [line]))
    ordered = sorted(groups, key=lambda group: min(lines.index(line) for line in group[-1]))
    decisions = [_decide(rules, sorted(members, key=lines.index)) for _, rules, _, members in ordered]
    return [replace(decision, apart=_apart(decision, decisions[0])) for decision in decisions]


def _apart(this: Decision, first: Decision) -> str:
    """What keeps rows from being compared with the first ones: machine, versions, batch or rules."""
    if this is first:
        return ""
    here, there = this.lines[0], first.lines[0]
    where, elsewhere = here.result.environment, there.result.environment
    differences = []
    if (where.processor, where.board, where.gpus) != (elsewhere.processor, elsewhere.board, elsewhere.gpus):
        differences.append("another machine")
    elif where.versions != elsewhere.versions:
        names = sorted({*where.versions, *elsewhere.versions})
        differences += [
            f"{name} {where.versions.get(name, UNKNOWN)} instead of {elsewhere.versions.get(name, UNKNOWN)}"
            for name in names
            if where.versions.get(name) != elsewhere.versions.get(name)
        ]
    elif where != elsewhere:
        differences += [
            f"{name.replace('_', ' ')} {getattr(where, name)} instead of {getattr(elsewhere, name)}"
            for name in ("memory_mb", "virtual", "power_source")
            if getattr(where, name) != getattr(elsewhere, name)
        ]
    if this.rules is None or first.rules is None:
        differences += ["no latency" if this.rules is None else "with latency"] if this.rules != first.rules else []
    else:
        for name in this.rules.__struct_fields__:
            ours, theirs = getattr(this.rules, name), getattr(first.rules, name)
            if ours != theirs:
                differences.append(f"{_RULES.get(name, name)} {_word(ours)} instead of {_word(theirs)}")
        if here.row.subject.batch != there.row.subject.batch:
            differences.append(f"batch {here.row.subject.batch} instead of {there.row.subject.batch}")
    return ", ".join(differences)


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else UNKNOWN if value is None else str(value)


_RULES = {
    "warmup_s": "seconds of warm-up",
    "min_duration_s": "seconds at least",
    "min_samples": "inferences at least",
    "block_s": "seconds a block",
    "block_samples": "inferences a block at least",
    "rate_hz": "pictures a second",
}


def _decide(rules: Rules | None, lines: list[Line]) -> Decision:
    timed = rules is not None
    objections = {line.letter: _objections(line, timed) for line in lines}
    measured = [line for line in lines if (line.cost_ms if timed else line.top1) is not None]
    ranking = _ranked([line for line in measured if not objections[line.letter]], timed)
    provisional = not ranking and any(_meets_budget(line) for line in measured)
    contest = _ranked([line for line in measured if _meets_budget(line)], timed) if provisional else ranking
    choice = _best_of_tie(contest, timed) if contest else None
    return Decision(
        machine=lines[0].machine,
        rules=rules,
        lines=tuple(lines),
        choice=choice,
        headline=_headline(choice, measured, timed, provisional),
        reasons=_reasons(choice, contest, measured, timed) if choice else (),
        caveats=_caveats(choice, lines, objections, timed, provisional),
        ranking=tuple(ranking),
        excluded=tuple((line, "; ".join(objections[line.letter])) for line in lines if objections[line.letter]),
        provisional=provisional,
    )


def _objections(line: Line, timed: bool) -> list[str]:
    """Why a row can't be ranked; empty when it can."""
    if timed and line.cost_ms is None:
        return [line.row.note or "its latency wasn't measured"]
    if not timed and line.top1 is None:
        return [line.row.note or "neither latency nor accuracy was measured"]
    objections = [] if line.verdict.valid else list(line.verdict.reasons)
    return objections + _over_budget(line)


def _over_budget(line: Line) -> list[str]:
    budget, objections = line.row.subject.budget, []
    if line.top1_drop_pp is not None and line.top1_drop_pp > budget.max_top1_drop_pp:
        objections.append(f"its top-1 drop is {drop(line)}; its budget is {budget.max_top1_drop_pp:g} pp")
    if budget.latency_p95_ms is not None and line.row.latency is not None:
        if line.p95_ms is None:
            objections.append("too few samples to hold its p95 against the budget")
        elif line.p95_ms > budget.latency_p95_ms:
            objections.append(f"its p95 is {milliseconds(line.p95_ms)} ms; its budget is {budget.latency_p95_ms:g} ms")
    return objections


def drop(line: Line) -> str:
    """The top-1 drop in pp, with its 95 % interval; negative is a gain."""
    if line.top1_drop_pp is None or line.drop_interval is None:
        return UNKNOWN
    low, high = line.drop_interval
    return f"{points(line.top1_drop_pp)} pp (95 % interval {points(low)} to {points(high)})"


def _meets_budget(line: Line) -> bool:
    """Whether it may be chosen provisionally: correct, and nothing but noise against it."""
    return line.verdict.correct and line.verdict.audited is not False and not _over_budget(line)


def _cost(line: Line, timed: bool) -> float:
    """Smaller is better; only called for rows that were measured."""
    return (line.cost_ms or 0.0) if timed else -(line.top1 or 0.0)


def _ranked(lines: list[Line], timed: bool) -> list[Line]:
    return sorted(lines, key=lambda line: _cost(line, timed))


def _tied(ranking: Sequence[Line], timed: bool) -> list[Line]:
    if not timed:
        return [line for line in ranking if line.top1 == ranking[0].top1]
    return [line for line in ranking if _cost(line, timed) <= TIE * _cost(ranking[0], timed)]


def _best_of_tie(ranking: Sequence[Line], timed: bool) -> Line:
    """Among the fastest: one that isn't significantly less accurate, then the smallest."""

    def order(line: Line) -> tuple[bool, int, float]:
        worse = line.drop_interval is not None and line.drop_interval.low > 0
        return worse, line.row.subject.bytes, _cost(line, timed)

    return min(_tied(ranking, timed), key=order)


def _headline(choice: Line | None, measured: list[Line], timed: bool, provisional: bool) -> str:
    if choice is None:
        return "Nothing meets its budget" if measured else "Nothing was measured here"
    if provisional:
        return f"Provisionally {choice.label}: no run here is valid"
    return f"Deploy {choice.label}" if timed else f"Most accurate: {choice.label}"


def _reasons(choice: Line, contest: Sequence[Line], measured: Sequence[Line], timed: bool) -> tuple[str, ...]:
    reasons = []
    if timed:
        reasons.append(_speed(choice, measured))
    tied = [line.label for line in _tied(contest, timed) if line is not choice]
    if tied:
        reasons.append(f"As fast as {' and '.join(tied)} within {TIE - 1:.0%}; chosen for accuracy and size.")
    if len(contest) > 1 and not tied and timed:
        second = next(line for line in contest if line is not choice)
        reasons.append(
            f"The next, {second.label}, takes {_cost(second, timed) / _cost(choice, timed):.2f} times as long."
        )
    reasons.append(_accuracy(choice))
    largest = _float_of(choice, measured)
    if largest is not None and largest.row.subject.bytes:
        fraction = choice.row.subject.bytes / largest.row.subject.bytes
        reasons.append(
            f"{choice.row.subject.bytes / 1e6:.1f} MB, {fraction:.0%} of {largest.label}.".replace("%", " %")
        )
    checks = choice.row.checks
    if choice.verified:
        reasons.append(f"Verified on this machine: {sum(check.ok is True for check in checks)} checks passed.")
    return tuple(reasons)


def _float_of(line: Line, among: Sequence[Line]) -> Line | None:
    """The float row that a reader compares with: of the same target, else the fastest; None for a float row."""
    if line.row.subject.precision == "fp32":
        return None
    floats = [
        other
        for other in among
        if other.row.subject.precision == "fp32" and other.row.subject.model_digest == line.row.subject.model_digest
    ]
    same = [other for other in floats if other.row.subject.target == line.row.subject.target]
    return min(same or floats, key=lambda other: other.cost_ms or 0.0, default=None)


def _speed(choice: Line, measured: Sequence[Line]) -> str:
    batch = choice.row.subject.batch
    each = f" for {batch} pictures" if batch > 1 else ""
    text = f"p50 {milliseconds(choice.p50_ms)} ms{each}"
    if choice.p95_ms is not None:
        text += f", p95 {milliseconds(choice.p95_ms)} ms"
    slower = _float_of(choice, measured)
    if slower is not None and slower.cost_ms and choice.cost_ms:
        text += f": {slower.cost_ms / choice.cost_ms:.2f} times as fast as {slower.label}{_interval(choice, slower)}"
    return f"{text}."


def _interval(choice: Line, slower: Line) -> str:
    """How sure the factor between two rows is, where they were interleaved."""
    ours, theirs = choice.row.latency, slower.row.latency
    same_batch = choice.row.subject.batch == slower.row.subject.batch
    if ours is None or theirs is None or not same_batch or not interleaved(ours.samples, theirs.samples):
        return ""
    measured = ratio(ours, theirs, statistic="median")
    return (
        ""
        if measured is None
        else f" (95 % interval {measured.low:.2f} to {measured.high:.2f}, in {measured.rounds} rounds)"
    )


def _accuracy(choice: Line) -> str:
    if choice.top1 is None:
        return "Its accuracy wasn't measured; run: vitedge eval."
    text = f"Top-1 {100 * choice.top1:.1f} % on {choice.images:,} images"
    if choice.top1_drop_pp is None or choice.drop_interval is None:
        return f"{text}."
    return f"{text}; top-1 drop against float32 on the same images: {drop(choice)}."


def _caveats(
    choice: Line | None, lines: Sequence[Line], objections: dict[str, list[str]], timed: bool, provisional: bool
) -> tuple[str, ...]:
    caveats = []
    if choice is not None:
        budget = choice.row.subject.budget
        if choice.drop_interval is not None and choice.drop_interval.high > budget.max_top1_drop_pp:
            caveats.append(
                f"{choice.images:,} images can't rule out a top-1 drop over the budget of "
                f"{budget.max_top1_drop_pp:g} pp: the interval reaches {points(choice.drop_interval.high)} pp."
            )
        if timed and budget.latency_p95_ms is None:
            caveats.append("No latency budget is set for this target; the choice is the fastest within the accuracy's.")
        if timed and choice.verdict.throttled is None:
            caveats.append("No sensor here tells whether the processor throttled.")
        if provisional:
            caveats.append(f"Measure again before relying on it: {'; '.join(choice.verdict.reasons)}.")
        caveats.extend(
            f"{line.label} was faster, but {'; '.join(objections[line.letter])}."
            for line in lines
            if timed and line.cost_ms and objections[line.letter] and line.cost_ms < (choice.cost_ms or 0.0)
        )
        if len([line for line in lines if line.cost_ms is not None]) == 1 and timed:
            caveats.append("It's the only one measured under these rules.")
    images = {
        line.result.data.digest: line.result.data for line in lines if line.images and line.result.data is not None
    }
    if len(images) > 1:
        names = " and ".join(f"{len(data.names):,} of {data.source}" for data in images.values())
        caveats.append(f"Accuracies here are from different images, and can't be compared: {names}.")
    if any(line.result.partial for line in lines):
        caveats.append("A run was interrupted: its rows hold what had been measured by then.")
    return tuple(caveats)
