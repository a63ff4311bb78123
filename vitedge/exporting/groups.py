"""Layers in groups that stay together: one attention, one MLP, one convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitedge.core.progress import Progress, silent
from vitedge.formats.budget import AccuracyBudget

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
    """What each group costs and gains, by its name."""

    divergence: Mapping[str, float]  # mean KL to the float logits with this group alone quantized
    gain: Mapping[str, float]  # what quantizing it saves: nanoseconds, or multiply-accumulates where not measured
    measured: bool  # whether the gain was measured

    def worst_first(self, groups: Iterable[Group]) -> list[Group]:
        """The order in which groups go back to float: most divergence for least gain, groups without gain at first."""

        return sorted(groups, key=lambda group: (-self._price(group), group.name))

    def overpriced(self, groups: Sequence[Group]) -> list[Group]:
        """Groups that gain nothing, or whose divergence for the gain is over the average of those that gain.

        Quantizing the others is the knee of the curve of divergence against gain: each of them costs less for its gain
        than the straight line from everything in float to everything quantized.
        """
        gaining = [group for group in groups if self.gain.get(group.name, 0.0) > 0]
        gain = sum(self.gain[group.name] for group in gaining)
        average = sum(self.divergence[group.name] for group in gaining) / gain if gain else 0.0
        nearly = average * (1 + 1e-9)  # equal prices are no reason
        return [group for group in self.worst_first(groups) if self._price(group) > nearly]

    def _price(self, group: Group) -> float:
        gain = self.gain.get(group.name, 0.0)
        return self.divergence[group.name] / gain if gain > 0 else float("inf")


def grouped(layers: Iterable[str]) -> list[Group]:
    """Groups by what stands before the last dot of a name; a name without a dot is a group of its own."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        found.setdefault(layer.rpartition(".")[0] or layer, []).append(layer)
    return [Group(name, tuple(members)) for name, members in found.items()]


def divergences(
    groups: Sequence[Group], divergence: Callable[[frozenset[str]], float], progress: Progress = silent
) -> dict[str, float]:
    """Sensitivity of every group: what ``divergence`` says when this group's layers alone are quantized."""
    found = {}
    for done, group in enumerate(groups):
        progress("sensitivity", done, len(groups))
        found[group.name] = divergence(frozenset(group.layers))
    progress("sensitivity", len(groups), len(groups))
    return found


def saved_ns(groups: Sequence[Group], before: Sequence[LayerTime], after: Sequence[LayerTime]) -> dict[str, float]:
    """Nanoseconds that quantizing saves in each group, from one profile without and one with it.

    A node belongs to the group whose name its own begins with, so what quantizing adds (``blocks.3.attn.qkv.input.q``)
    counts against the group.
    """

    def spent(times: Sequence[LayerTime]) -> dict[str, float]:
        total = dict.fromkeys((group.name for group in groups), 0.0)
        for time in times:
            name = max((name for name in total if _inside(time.name, name)), key=len, default=None)
            if name is not None:
                total[name] += time.ns
        return total

    plain, quantized = spent(before), spent(after)
    return {group.name: plain[group.name] - quantized[group.name] for group in groups}


def fastest(rounds: Sequence[Sequence[LayerTime]]) -> list[LayerTime]:
    """Every node's least time over profiled inferences of the same nodes."""
    return [min(times, key=lambda time: time.ns) for times in zip(*rounds, strict=True)]


def _inside(node: str, group: str) -> bool:
    return node == group or node.startswith((f"{group}.", f"{group}+"))


def fewest_reverted(
    order: Sequence[Group], judge: Callable[[Sequence[Group]], Fidelity], budget: AccuracyBudget
) -> tuple[Sequence[Group], Fidelity] | None:
    """The shortest beginning of ``order`` that has to go back to float for the budget to hold.

    Found by halving, as if more float never lost more; what is returned was judged itself.

    Args:
        order: groups, the worst first.
        judge: builds and judges the graph with these groups in float.
        budget: what may be lost.

    Returns:
        The groups and what was found of the rest; None when even the last group alone is too much.
    """
    low, high, best = 0, len(order) - 1, None  # low fails, as the caller saw
    while high >= 1 and (best is None or high - low > 1):
        middle = high if best is None else (low + high) // 2
        found = judge(order[:middle])
        if budget.holds(found):
            best, high = (order[:middle], found), middle
        elif best is None:
            return None
        else:
            low = middle
    return best
