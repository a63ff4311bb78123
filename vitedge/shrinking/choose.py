"""Choose the widths that meet a budget at the least error: a knapsack over all components that can become narrower.

What can be narrowed apart (an MLP, an attention, a convolution) is a *place*; it offers some :class:`Option`, of which
one is taken. Dynamic programming over what the options save finds the least sum of errors that saves enough. It is
exact for whole numbers up to :data:`STEPS`; larger ones are counted in so many steps, each option rounded down.

What places save adds up, but for two of them: with a narrower embedding all places have less to save, and where tokens
are merged, all later ones. So an embedding's width together with one place behind which to merge, and how far, is a
*schedule*; for each of those that are offered the other widths are chosen anew.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from vitedge.shrinking.components import Component

SCHEDULED = ("embedding", "tokens")  # kinds of components that leave others less to save
STEPS = 1 << 14  # the knapsack counts the saving that is needed in at most this many steps


@dataclass(frozen=True)
class Option:
    """One choice of widths for a place, with what it saves and the error that it adds."""

    saved: float  # against the whole width: nanoseconds, or multiply-accumulates
    error: float  # squared error of the logits that it adds
    widths: Mapping[str, int] = field(default_factory=dict)  # of the components that become narrower


Places = Sequence[Sequence[Option]]


def choose_with_schedule(schedules: Sequence[Places], needed: float) -> list[Option] | None:
    """Return the options of the schedule that saves enough at the least sum of errors; None: no schedule does.

    Args:
        schedules: places of each; of some the last place is the embedding or the tokens, with a single option.
        needed: what has to be saved, in the unit of the options.
    """
    best: list[Option] | None = None
    least = float("inf")
    for places in sorted(schedules, key=_error_at_least):
        if _error_at_least(places) < least and (options := _meeting(places, needed)) is not None:
            error = together(options).error
            best, least = (options, error) if error < least else (best, least)
    return best


def _meeting(places: Places, needed: float) -> list[Option] | None:
    """Choose as :func:`choose` does, after taking the places that have a single option."""
    given = [options[0] for options in places if len(options) == 1]
    chosen = choose([options for options in places if len(options) > 1], needed - together(given).saved)
    return None if chosen is None else [*chosen, *given]


def _error_at_least(places: Places) -> float:
    return sum(min(option.error for option in options) for options in places)


def leading(schedules: Sequence[Places], needed: float, component: str, most: int) -> list[list[Places]]:
    """Group schedules by the width of a component, and return the groups that save enough at the least sum of errors.

    Args:
        schedules: as of :func:`choose_with_schedule`.
        needed: what has to be saved, in the unit of the options.
        component: of those that schedules name.
        most: groups at most; the best comes first.
    """
    groups: dict[int | None, list[Places]] = {}
    for places in schedules:
        named = [options[0].widths for options in places if len(options) == 1]
        groups.setdefault(next((widths[component] for widths in named if component in widths), None), []).append(places)
    chosen = [(choose_with_schedule(group, needed), group) for group in groups.values()]
    meeting = [(together(options).error, group) for options, group in chosen if options is not None]
    return [group for _, group in sorted(meeting, key=lambda each: each[0])[:most]]


def fastest_schedule(schedules: Sequence[Places]) -> list[Option]:
    """Return the fastest options of the fastest schedule."""
    return max(map(most_saving, schedules), key=lambda options: together(options).saved)


def choose(places: Places, needed: float) -> list[Option] | None:
    """Choose one option for each place, so that together they save enough at the least sum of errors.

    Args:
        places: the options of each; one of them saves nothing at no error.
        needed: what has to be saved, in the unit of the options.

    Returns:
        The options in the order of the places; None where all that can be saved isn't enough.
    """
    if sum(max(option.saved for option in options) for options in places) < needed:
        return None
    offered = [[option for option in options if option.saved >= 0] for options in places]
    unit = max(1.0, needed / STEPS)
    steps = max(0, int(np.ceil(needed / unit)))
    least = np.full(steps + 1, np.inf)  # [s]: of the places so far, the least error that saves s steps or more
    least[0] = 0.0
    taken = []
    for options in offered:
        gains = np.array([int(option.saved // unit) for option in options])
        before = np.clip(np.arange(steps + 1)[None] - gains[:, None], 0, steps)  # [option, s]
        errors = least[before] + np.array([option.error for option in options])[:, None]
        taken.append((best := errors.argmin(axis=0), before[best, np.arange(steps + 1)]))
        least = errors[best, np.arange(steps + 1)]
    if not np.isfinite(least[steps]):  # by the rounding alone
        return most_saving(places)
    return list(_walk_back(offered, taken, steps))[::-1]


def _walk_back(places: Places, taken: Sequence[tuple[np.ndarray, np.ndarray]], state: int) -> Iterator[Option]:
    """Yield the options that led to a state, the last place's first."""
    for options, (best, before) in zip(reversed(places), reversed(taken), strict=True):
        yield options[best[state]]
        state = int(before[state])


def most_saving(places: Iterable[Sequence[Option]]) -> list[Option]:
    """Return each place's option that saves most."""
    return [max(options, key=lambda option: (option.saved, -option.error)) for options in places]


def together(options: Iterable[Option]) -> Option:
    """Add up what several options save, and the errors that they add."""
    chosen = list(options)
    widths = {name: width for option in chosen for name, width in option.widths.items()}
    return Option(sum(each.saved for each in chosen), sum(each.error for each in chosen), widths)


def schedules_of(
    components: Sequence[Component],
    saved: Mapping[str, Mapping[int, float]],
    errors: Mapping[str, Mapping[int, float]],
    left: Callable[[str, int], Mapping[str, float]],
) -> list[list[list[Option]]]:
    """Return the schedules: the places of the whole embedding and all tokens, then those of every way to have fewer.

    Args:
        components: what can become narrower.
        saved: by component and width, what it saves; only these widths are offered.
        errors: by component and width, what it costs.
        left: of a narrower embedding, or fewer tokens, the fraction of its work that each place has left.
    """
    narrowed = [each for each in components if each.kind not in SCHEDULED]
    ways = dict[str, list[_Way]]()
    for component in (each for each in components if each.kind in SCHEDULED):
        for width, gain in saved.get(component.name, {}).items():
            if gain > 0:
                option = Option(gain, errors[component.name][width], {component.name: width})
                ways.setdefault(component.kind, []).append(_Way(option, left(component.name, width)))
    schedules = [places_of(narrowed, saved, errors)]
    for chosen in itertools.product(*([None, *each] for each in ways.values())):
        if taken := [way for way in chosen if way is not None]:
            way = functools.reduce(_Way.then, taken)
            schedules.append([*places_of(narrowed, saved, errors, way.left), [way.option]])
    return schedules


class _Way(NamedTuple):
    """A narrower embedding, fewer tokens, or both."""

    option: Option
    left: Mapping[str, float]  # of the work, by place

    def then(self, other: _Way) -> _Way:
        """Return both: the other one saves less, as there's less work."""
        share = sum(self.left.values()) / max(len(self.left), 1)
        both = together([self.option, replace(other.option, saved=share * other.option.saved)])
        return _Way(both, {place: part * other.left.get(place, 1.0) for place, part in self.left.items()})


def places_of(
    components: Sequence[Component],
    saved: Mapping[str, Mapping[int, float]],
    errors: Mapping[str, Mapping[int, float]],
    left: Mapping[str, float] = MappingProxyType({}),
) -> list[list[Option]]:
    """Return the options of each place, without those that another option beats in both saving and error.

    Args:
        components: what can become narrower.
        saved: by component and width, what it saves; only these widths are offered.
        errors: by component and width, what it costs.
        left: by place, the fraction of its work that there is; 1 of those that aren't named.
    """
    members: dict[str, list[Component]] = {}
    for component in components:
        members.setdefault(place_name(component), []).append(component)
    return [_undominated(_combinations(each, saved, errors, left.get(name, 1.0))) for name, each in members.items()]


def place_name(component: Component) -> str:
    """Return the name of the place that a component belongs to: ``blocks.3.attn`` for ``blocks.3.attn.value``."""
    return component.name.removesuffix(f".{component.kind}")


def _combinations(
    members: Sequence[Component],
    saved: Mapping[str, Mapping[int, float]],
    errors: Mapping[str, Mapping[int, float]],
    work: float,
) -> Iterator[Option]:
    """Yield every combination of widths of one place's components.

    Where one goes entirely, nothing is left for the others to save; fewer heads have less to narrow in each of them.
    """
    offered = []
    for component in members:
        widths = [
            width for width in saved[component.name] if width < component.width and width in errors[component.name]
        ]
        offered.append([component.width, *widths])
    for chosen in itertools.product(*offered):
        narrowed = [(each, width) for each, width in zip(members, chosen, strict=True) if width < each.width]
        gone = [(each, width) for each, width in narrowed if width == 0]
        if gone and len(narrowed) > 1:
            continue
        left = min((width / each.width for each, width in narrowed if each.kind == "heads"), default=1.0)
        gains = (work * saved[each.name][width] * (1.0 if each.kind == "heads" else left) for each, width in narrowed)
        costs = (max(0.0, errors[each.name][width]) for each, width in narrowed)
        yield Option(sum(gains), sum(costs), {each.name: width for each, width in narrowed})


def _undominated(options: Iterable[Option]) -> list[Option]:
    """Drop every option that another one beats in both saving and error; the option that saves least comes first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (-option.saved, option.error, len(option.widths))):
        if not kept or option.error < kept[-1].error:
            kept.append(option)
    return kept[::-1]
