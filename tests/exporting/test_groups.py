"""Groups, their order, and what a profile says each saves."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from vitedge.exporting.groups import Group, Scan, divergences, fastest, grouped, saved_ns
from vitedge.runtimes.base import LayerTime

LAYERS = [
    "patch_embed.proj",
    "blocks.0.attn.qkv",
    "blocks.0.attn.proj",
    "blocks.0.mlp.fc1",
    "blocks.10.mlp.fc1",
    "head",
]


def test_groups_are_what_stands_before_the_last_dot() -> None:
    assert grouped(LAYERS) == [
        Group("patch_embed", ("patch_embed.proj",)),
        Group("blocks.0.attn", ("blocks.0.attn.qkv", "blocks.0.attn.proj")),
        Group("blocks.0.mlp", ("blocks.0.mlp.fc1",)),
        Group("blocks.10.mlp", ("blocks.10.mlp.fc1",)),
        Group("head", ("head",)),
    ]


def test_each_group_is_scanned_alone() -> None:
    seen: list[frozenset[str]] = []

    def divergence(layers: frozenset[str]) -> float:
        seen.append(layers)
        return float(len(layers))

    groups = grouped(LAYERS)
    assert divergences(groups, divergence) == {group.name: len(group.layers) for group in groups}
    assert seen == [frozenset(group.layers) for group in groups]


def test_the_worst_loses_most_for_what_it_saves() -> None:
    groups = [Group(name, (name,)) for name in "abcd"]
    scan = Scan({"a": 1.0, "b": 1.0, "c": 4.0, "d": 0.1}, {"a": 10.0, "b": 1.0, "c": 10.0, "d": -2.0}, measured=True)
    assert [group.name for group in scan.worst_first(groups)] == ["d", "b", "c", "a"]


def test_what_a_group_saves_counts_what_it_adds() -> None:
    def times(**ns: int) -> list[LayerTime]:
        return [LayerTime(name.replace("_", "."), "", "", value) for name, value in ns.items()]

    before = times(blocks_1_mlp_fc1=100, blocks_1_mlp_fc2=50, blocks_10_mlp_fc1=70, blocks_1_norm1=9)
    after = times(blocks_1_mlp_fc1=40, blocks_1_mlp_fc1_input_q=15, blocks_1_mlp_fc2=50, blocks_10_mlp_fc1=90)
    groups = [Group("blocks.1.mlp", ("blocks.1.mlp.fc1",)), Group("blocks.10.mlp", ("blocks.10.mlp.fc1",))]
    assert saved_ns(groups, before, after) == {"blocks.1.mlp": 45, "blocks.10.mlp": -20}
    fused = [LayerTime("blocks.1.mlp+blocks.1.act", "", "", 5)]
    assert saved_ns(groups[:1], [], fused) == {"blocks.1.mlp": -5}


def test_a_nodes_fastest_time() -> None:
    rounds = [
        [LayerTime("a", "", "", 5), LayerTime("b", "", "", 2)],
        [LayerTime("a", "", "", 3), LayerTime("b", "", "", 4)],
    ]
    assert [time.ns for time in fastest(rounds)] == [3, 2]


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(-10, 1000)), min_size=1, max_size=8))
def test_a_mixture_keeps_what_costs_less_than_average(found: list[tuple[int, int]]) -> None:
    groups = [Group(f"g{number}", (f"g{number}.fc",)) for number in range(len(found))]
    scan = Scan(
        {group.name: cost for group, (cost, _) in zip(groups, found, strict=True)},
        {group.name: gain for group, (_, gain) in zip(groups, found, strict=True)},
        measured=True,
    )
    unprofitable = scan.unprofitable(groups)
    assert unprofitable == scan.worst_first(groups)[: len(unprofitable)], (
        "a beginning of the order in which groups go back to float"
    )
    kept = [group for group in groups if group not in unprofitable]
    assert all(scan.gain[group.name] > 0 for group in kept)
    gaining = [group for group in groups if scan.gain[group.name] > 0]
    assert bool(kept) == bool(gaining), "the cheapest of those that gain is never over the average"

    def share(of: list[Group], what: Mapping[str, float]) -> float:
        whole = sum(what[group.name] for group in gaining)
        return sum(what[group.name] for group in of) / whole if whole else 1.0

    assert share(kept, scan.gain) >= share(kept, scan.divergence) - 1e-6


def test_equal_prices_are_no_reason_to_mix() -> None:
    groups = [Group(name, (name,)) for name in "abc"]
    equal = Scan({"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 1.0, "b": 2.0, "c": 3.0}, measured=True)
    assert equal.unprofitable(groups) == []
    none = Scan({"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 0.0, "b": -2.0, "c": 0.0}, measured=True)
    assert len(none.unprofitable(groups)) == 3
