"""Choose the artifact to deploy, with the reasons and the certainty: the fastest that meets its target's budgets.

Rows may be compared when they were measured on one machine under one set of rules. How fast one is and which is faster
are two claims. Milliseconds are worth as much as the machine was steady. Which is faster rests on the ratio of
interleaved rounds, of each its fastest inference: what slows all of them down cancels, and what other processes do for
a while adds time to some inferences only. What one row does alone (throttling, a drift of its own), wrong outputs and
too little data count against that row in both.

A choice is firm when the intervals leave no other that is faster by more than :data:`TOLERATED`, when none that was
faster went unranked for what may have been noise, and when the whole interval of its top-1 drop is within the budget.
Otherwise the headline says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from vitedge.comparison.ratio import Ratio, drifts, interleaved, ratio
from vitedge.formats.result import Environment, Rules
from vitedge.reporting.rows import UNKNOWN, Line, milliseconds, points

#: Costs per image within this factor of the fastest are a tie, which accuracy and size decide.
TIE = 1.03
#: What a firm choice may take, at most and with 95 % confidence, of the time of any other.
TOLERATED = 1.05
LONGER = 4  # times as long a measurement is advised where this one didn't do


@dataclass(frozen=True)
class Doubt:
    """A reason why a choice isn't firm, and what would settle it."""

    reason: str
    of_accuracy: bool = False


@dataclass(frozen=True)
class Decision:
    """The answer for one group of rows that may be compared."""

    machine: str
    rules: Rules | None  # None: no latency was measured
    lines: tuple[Line, ...]
    choice: Line | None  # None: nothing meets its budget, or nothing was measured
    headline: str  # what to do, in plain words
    reasons: tuple[str, ...]  # for the choice
    caveats: tuple[str, ...]  # what a reader has to know before acting on it
    ranking: tuple[Line, ...]  # what may be ranked, the fastest first
    excluded: tuple[tuple[Line, str], ...]  # the others, and why
    unsure: tuple[Doubt, ...] = ()  # what keeps the choice from being firm
    apart: str = ""  # why these rows aren't ranked with those of the first decision

    @property
    def provisional(self) -> bool:
        """Whether the choice isn't firm."""
        return bool(self.unsure)


def decide(lines: Sequence[Line]) -> list[Decision]:
    """Return one decision for each machine and set of rules, in the order of the rows."""
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
    """Return the differences that keep rows from being compared with the first: machine, versions, batch, rules."""
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
    measured = [line for line in lines if (line.cost_ms if timed else line.top1) is not None]
    paired = _paired(lines)
    cost = _cost(measured, timed, paired)
    moved = _moved(lines, paired)
    objections = {line.letter: _against(line, timed, paired, moved.get(line.letter, "")) for line in lines}
    ranking = sorted((line for line in measured if not objections[line.letter]), key=cost)
    tried = [line for line in lines if line.row.latency and len(line.row.latency.samples)] if timed else measured
    possible = [line for line in tried if line.verdict.right and not _over_budget(line)]
    contest = ranking or sorted((line for line in possible if not _too_little(line)), key=cost)
    choice = _best_of_tie(contest, timed, cost) if contest else None
    faster = [line for line in measured if objections[line.letter] and choice and timed and cost(line) < cost(choice)]
    unsure: tuple[Doubt, ...] = ()
    if choice is not None:
        drifting = [line for line in faster if objections[line.letter] == [moved.get(line.letter)]]
        faster = [line for line in faster if line not in drifting]
        unsure = _unsure(choice, contest, objections[choice.letter], timed)
        unsure += tuple(Doubt(f"{line.label} was faster, but {moved[line.letter]}") for line in drifting)
    elif possible:
        unsure = (Doubt("too little was measured to choose by"),)
    return Decision(
        machine=lines[0].machine,
        rules=rules,
        lines=tuple(lines),
        choice=choice,
        headline=_headline(choice, possible, measured, timed, unsure),
        reasons=_reasons(choice, _tied(contest, timed, cost), contest, measured, timed) if choice else (),
        caveats=(
            *_said(unsure, rules),
            *_caveats(choice, lines, objections, timed, faster),
            *_medians(choice, contest, paired),
        ),
        ranking=tuple(ranking),
        excluded=tuple((line, "; ".join(objections[line.letter])) for line in lines if objections[line.letter]),
        unsure=unsure,
    )


def _paired(lines: Sequence[Line]) -> bool:
    """Whether all timed rows were interleaved with each other."""
    timed = [line.row.latency.samples for line in lines if line.row.latency is not None]
    return len(timed) > 1 and all(interleaved(first, second) for first, second in combinations(timed, 2))


def _moved(lines: Sequence[Line], paired: bool) -> dict[str, str]:
    """Return, by letter, a remark about rows whose own time changed during an interleaved run."""
    if not paired:
        return {}
    timed = {line.letter: line.row.latency for line in lines if line.row.latency is not None}
    changes = zip(timed, drifts(list(timed.values())), strict=True)
    return {
        letter: f"its time changed by {'+' * (factor > 1)}{points(100 * (factor - 1), 0)} % "
        "against the others' during the run"
        for letter, factor in changes
        if factor != 1.0
    }


def _against(line: Line, timed: bool, paired: bool, moved: str) -> list[str]:
    """Return the reasons why one row can't be ranked.

    Args:
        line: the row.
        timed: whether latency is ranked.
        paired: whether its rounds can be held against the others': then what all share doesn't count.
        moved: what to say of a drift of its own; empty: there was none.
    """
    if timed and line.row.latency is None:
        return [line.row.note or "its latency wasn't measured"]
    if not timed and line.top1 is None:
        return [line.row.note or "neither latency nor accuracy was measured"]
    objections = [reason for reason in line.verdict.reasons if not (paired and reason == line.verdict.noise)]
    if moved:
        objections.append(moved)
    if line.row.partial:
        objections.append("its measurement was interrupted")
    return objections + _over_budget(line)


def _too_little(line: Line) -> bool:
    """Whether a row has too little latency data for any choice, even a provisional one."""
    return line.verdict.enough is False or line.row.partial


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
    """Return the top-1 drop in pp, with its 95 % interval; negative is a gain."""
    if line.top1_drop_pp is None or line.drop_interval is None:
        return UNKNOWN
    low, high = line.drop_interval
    return f"{points(line.top1_drop_pp)} pp (95 % interval {points(low)} to {points(high)})"


def _cost(measured: Sequence[Line], timed: bool, paired: bool) -> Callable[[Line], float]:
    """Return the function that ranks rows, the smallest value first: the ratios of the rounds' fastest inferences where
    all were interleaved, else the milliseconds; without latency, accuracy. Only called for rows that were measured."""
    if not timed:
        return lambda line: -(line.top1 or 0.0)
    ratios = {line.letter: _ratio(measured[0], line, "fastest") for line in measured} if paired and measured else {}
    if not all(ratios.values()):
        ratios = {}
    relative = {letter: between.value for letter, between in ratios.items() if between is not None}
    return lambda line: relative.get(line.letter, line.cost_ms or 0.0)


def _tied(ranking: Sequence[Line], timed: bool, cost: Callable[[Line], float]) -> list[Line]:
    return [line for line in ranking if cost(line) <= cost(ranking[0]) * (TIE if timed else 1.0)]


def _best_of_tie(ranking: Sequence[Line], timed: bool, cost: Callable[[Line], float]) -> Line:
    """Choose among the fastest: first one that isn't significantly less accurate, then the smallest."""
    return min(_tied(ranking, timed, cost), key=lambda line: (*_preference(line), cost(line)))


def _preference(line: Line) -> tuple[bool, int]:
    """Rank equally fast rows, smaller is better: whether it's significantly less accurate; then its bytes."""
    return line.drop_interval is not None and line.drop_interval.low > 0, line.row.subject.bytes


def _unsure(choice: Line, contest: Sequence[Line], objections: Sequence[str], timed: bool) -> tuple[Doubt, ...]:
    doubts = [Doubt(reason) for reason in objections]
    if timed:
        doubts += [Doubt(doubt) for line in contest if line is not choice and (doubt := _doubt(choice, line))]
    budget = choice.row.subject.budget.max_top1_drop_pp
    if choice.drop_interval is not None and choice.drop_interval.high > budget:
        reason = f"{choice.images:,} images can't rule out a top-1 drop over the budget of {budget:g} pp: the interval"
        doubts.append(Doubt(f"{reason} reaches {points(choice.drop_interval.high)} pp", of_accuracy=True))
    return tuple(doubts)


def _doubt(choice: Line, other: Line) -> str:
    """Return why another row may be the better choice despite the measurement; empty: it isn't.

    The rounds' fastest inferences have to show that it's slower, and the rounds' medians mustn't show the opposite:
    where other processes stay for the whole run, one artifact may be the faster alone, and another beside them.
    """
    best, typical = _ratio(choice, other, "fastest"), _ratio(choice, other, "median")
    if best is None or typical is None:
        return f"too few rounds to hold {other.label} against it"
    slower = best.low > 1.0 or (best.low >= 1 / TOLERATED and _preference(choice) < _preference(other))
    if not slower:
        return (
            f"{other.label} takes {best.value:.2f} times as long, and {best.rounds} rounds tell no more than "
            f"{best.low:.2f} to {best.high:.2f} (95 % interval)"
        )
    if typical.high < 1 / TOLERATED:
        return (
            f"{other.label} takes {best.value:.2f} times as long by the rounds' fastest inferences and "
            f"{typical.value:.2f} times by their medians, so what else runs here decides which is faster"
        )
    return ""


def _ratio(choice: Line, other: Line, statistic: Literal["median", "fastest"]) -> Ratio | None:
    """Return the time of ``other`` over the choice's, for one image."""
    if choice.row.latency is None or other.row.latency is None:
        return None
    return ratio(choice.row.latency, other.row.latency, statistic=statistic)


def _said(unsure: Sequence[Doubt], rules: Rules | None) -> list[str]:
    """Return the doubts as sentences, and the command that settles them."""
    sentences = [f"Not certain: {doubt.reason}." for doubt in unsure]
    if rules is not None and any(not doubt.of_accuracy for doubt in unsure):
        longer = max(LONGER * rules.min_duration_s, LONGER)
        sentences.append(f"To settle it, measure them together for longer: vitedge bench … --duration {longer:g}s.")
    if any(doubt.of_accuracy for doubt in unsure):
        sentences.append("To settle it, evaluate on more images: vitedge eval … --data FOLDER.")
    return sentences


def _headline(
    choice: Line | None, possible: list[Line], measured: list[Line], timed: bool, unsure: Sequence[Doubt]
) -> str:
    if choice is None:
        if possible:
            return "Not enough was measured to choose: measure longer"
        return "Nothing meets its budget" if measured else "Nothing was measured here"
    if not timed:
        return f"Most accurate: {choice.label}"
    if not unsure:
        return f"Deploy {choice.label}"
    of_accuracy = all(doubt.of_accuracy for doubt in unsure)
    return f"Probably {choice.label}: {'evaluate on more images' if of_accuracy else 'measure longer'} to be sure"


def _reasons(
    choice: Line, ties: Sequence[Line], contest: Sequence[Line], measured: Sequence[Line], timed: bool
) -> tuple[str, ...]:
    reasons = []
    if timed:
        reasons.append(_speed(choice, measured))
    tied = [line.label for line in ties if line is not choice]
    if tied and timed:
        within = f"{TIE - 1:.0%}".replace("%", " %")
        reasons.append(f"As fast as {' and '.join(tied)} within {within}; chosen for accuracy and size.")
    elif tied:
        reasons.append(f"As accurate as {' and '.join(tied)}; chosen for its size.")
    elif len(contest) > 1 and timed:
        second = next(line for line in contest if line is not choice)
        reasons.append(f"The next, {second.label}, takes {_times(choice, second)[0]} times as long.")
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
    """Return the float row to compare with: of the same target, else the fastest; None for a float row."""
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
        times, interval = _times(choice, slower)
        text += f": {times} times as fast as {slower.label}{interval}"
    return f"{text}."


def _times(choice: Line, other: Line) -> tuple[str, str]:
    """Return another row's time over the choice's, and its interval: by the rounds' fastest inferences where they were
    interleaved, else by the medians, without an interval."""
    ours, theirs = choice.row.latency, other.row.latency
    paired = ours is not None and theirs is not None and interleaved(ours.samples, theirs.samples)
    between = _ratio(choice, other, "fastest") if paired else None
    if between is None:
        return f"{(other.cost_ms or 0.0) / (choice.cost_ms or 1.0):.2f}", ""
    interval = f" (95 % interval {between.low:.2f} to {between.high:.2f}, in {between.rounds} rounds)"
    return f"{between.value:.2f}", interval


def _medians(choice: Line | None, contest: Sequence[Line], paired: bool) -> list[str]:
    """Return remarks where the table's milliseconds have another order than the ratios that decided."""
    if choice is None or not paired:
        return []
    return [
        f"By their medians {line.label} took {line.cost_ms / choice.cost_ms:.2f} times as long: other processes ran "
        "meanwhile. The choice rests on the fastest inference of each round, which they disturb least."
        for line in contest
        if line.cost_ms and choice.cost_ms and line.cost_ms * TIE < choice.cost_ms
    ]


def _accuracy(choice: Line) -> str:
    if choice.top1 is None:
        return "Its accuracy wasn't measured; run: vitedge eval."
    text = f"Top-1 {100 * choice.top1:.1f} % on {choice.images:,} images"
    if choice.top1_drop_pp is None or choice.drop_interval is None:
        return f"{text}."
    return f"{text}; top-1 drop against float32 on the same images: {drop(choice)}."


def _caveats(
    choice: Line | None,
    lines: Sequence[Line],
    objections: dict[str, list[str]],
    timed: bool,
    faster: Sequence[Line],
) -> tuple[str, ...]:
    caveats = []
    if choice is not None:
        budget = choice.row.subject.budget
        if timed and budget.latency_p95_ms is None:
            caveats.append("No latency budget is set for this target; the choice is the fastest within the accuracy's.")
        if timed and choice.verdict.throttled is None:
            caveats.append("No sensor here tells whether the processor throttled.")
        if timed and choice.verdict.unstable and not objections[choice.letter]:
            caveats.append(
                f"This machine's speed changed during the run ({choice.verdict.noise.removeprefix('unstable: ')}): "
                "read the ratios, which hold, and not the milliseconds."
            )
        caveats.extend(f"{line.label} was faster, but {'; '.join(objections[line.letter])}." for line in faster)
        if len([line for line in lines if line.cost_ms is not None]) == 1 and timed:
            caveats.append("It's the only one measured under these rules.")
    images = {
        line.result.data.digest: line.result.data for line in lines if line.images and line.result.data is not None
    }
    if len(images) > 1:
        names = " and ".join(f"{len(data.names):,} of {data.source}" for data in images.values())
        caveats.append(f"Accuracies here are from different images, and can't be compared: {names}.")
    if any(line.result.partial for line in lines) and not any(line.row.partial for line in lines):
        caveats.append("A run was interrupted: its rows hold what had been measured by then.")
    return tuple(caveats)
