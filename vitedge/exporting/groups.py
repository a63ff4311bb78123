"""Groups of layers that stay together (one attention, one MLP, one convolution), and which go back to float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitedge.core.progress import Progress, silent
from vitedge.formats.budget import Budget

if TYPE_CHECKING:
    from vitedge.formats.fidelity import Fidelity
    from vitedge.runtimes.base import LayerTime


@dataclass(frozen=True)
class Group:
    """Layers that are quantized together or not at all."""

    name: str  # "blocks.3.attn"
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Scan:
    """The cost and the gain of quantizing each group, by the group's name."""

    divergence: Mapping[str, float]  # mean KL to the float logits with this group alone quantized, nats
    gain: Mapping[str, float]  # nanoseconds that quantizing it saves; multiply-accumulates where not measured
    measured: bool  # whether the gain was measured

    def worst_first(self, groups: Iterable[Group]) -> list[Group]:
        """Sort groups in the order in which they go back to float: without gain first, then by divergence per gain."""
        return sorted(groups, key=lambda group: (-self._price(group), group.name))

    def unprofitable(self, groups: Sequence[Group]) -> list[Group]:
        """Return groups that gain nothing, or whose divergence per gain is above the others' average; worst first.

        Quantizing the others is the knee of the curve of divergence against gain: each of them costs less for its gain
        than the straight line from everything in float to everything quantized.
        """
        gaining = [group for group in groups if self.gain.get(group.name, 0.0) > 0]
        gain = sum(self.gain[group.name] for group in gaining)
        average = sum(self.divergence[group.name] for group in gaining) / gain if gain else 0.0
        limit = average * (1 + 1e-9)  # so that equal prices aren't over their average
        return [group for group in self.worst_first(groups) if self._price(group) > limit]

    def _price(self, group: Group) -> float:
        """Return the divergence per gain."""
        gain = self.gain.get(group.name, 0.0)
        return self.divergence[group.name] / gain if gain > 0 else float("inf")


def grouped(layers: Iterable[str]) -> list[Group]:
    """Group layers by their name before its last dot; a name without a dot is a group of its own."""
    members: dict[str, list[str]] = {}
    for layer in layers:
        members.setdefault(layer.rpartition(".")[0] or layer, []).append(layer)
    return [Group(name, tuple(names)) for name, names in members.items()]


def layers_of(groups: Iterable[Group]) -> frozenset[str]:
    """Return the names of all layers of some groups."""
    return frozenset(layer for group in groups for layer in group.layers)


def layers_except(groups: Iterable[Group], reverted: Sequence[Group]) -> frozenset[str]:
    """Return the layers that stay quantized when some of the groups go back to float."""
    return layers_of(group for group in groups if group not in reverted)


def divergences(
    groups: Sequence[Group], divergence: Callable[[frozenset[str]], float], progress: Progress = silent
) -> dict[str, float]:
    """Measure the divergence with each group alone quantized, by its name.

    Args:
        groups: to scan.
        divergence: measures a graph in which these layers alone are quantized.
        progress: called with ("sensitivity", groups done, groups).
    """
    by_group = {}
    for done, group in enumerate(groups):
        progress("sensitivity", done, len(groups))
        by_group[group.name] = divergence(frozenset(group.layers))
    progress("sensitivity", len(groups), len(groups))
    return by_group


def saved_ns(groups: Sequence[Group], before: Sequence[LayerTime], after: Sequence[LayerTime]) -> dict[str, float]:
    """Return the nanoseconds that quantizing saves in each group, from one profile without and one with it.

    A node belongs to the group whose name its own begins with, so what quantizing adds (``blocks.3.attn.qkv.input.q``)
    counts against the group.
    """

    def time_of_groups(times: Sequence[LayerTime]) -> dict[str, float]:
        total = dict.fromkeys((group.name for group in groups), 0.0)
        for time in times:
            name = max((name for name in total if _inside(time.name, name)), key=len, default=None)
            if name is not None:
                total[name] += time.ns
        return total

    in_float, quantized = time_of_groups(before), time_of_groups(after)
    return {group.name: in_float[group.name] - quantized[group.name] for group in groups}


def fastest(rounds: Sequence[Sequence[LayerTime]]) -> list[LayerTime]:
    """Return the least time of every node over profiled inferences of the same nodes."""
    return [min(times, key=lambda time: time.ns) for times in zip(*rounds, strict=True)]


def _inside(node: str, group: str) -> bool:
    return node == group or node.startswith((f"{group}.", f"{group}+"))


def fewest_reverted(
    order: Sequence[Group], evaluate: Callable[[Sequence[Group]], Fidelity], budget: Budget
) -> Sequence[Group] | None:
    """Find the shortest prefix of ``order`` that has to go back to float for the budget to hold.

    Bisection, as if more float never lost more; the beginning that is returned was evaluated itself.

    Args:
        order: groups, the worst first. With all of them quantized the budget doesn't hold.
        evaluate: lowers and evaluates the graph with these groups in float.
        budget: what may be lost.

    Returns:
        The groups that go back; None when even the last group alone is too much.
    """
    low, high = 0, len(order) - 1  # with `low` groups in float the budget doesn't hold, with `high` it does
    if high < 1 or not budget.holds(evaluate(order[:high])):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if budget.holds(evaluate(order[:middle])):
            high = middle
        else:
            low = middle
    return order[:high]
