"""Tokens that are merged: which become one, where, what that is worth, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

import vitedge
from tests.graph.test_canonical import run
from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from tests.shrinking.test_components import authored
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import UsageError
from vitedge.formats.architecture import Rope, ViTConfig
from vitedge.formats.model_folder import Model
from vitedge.graph.author import author_vit
from vitedge.graph.authored import read_authored
from vitedge.graph.reference import reference_logits
from vitedge.shrinking.choose import Option, choose_with_schedule, schedules_of, together
from vitedge.shrinking.components import Component, check_widths, components, truncate
from vitedge.shrinking.shrink import shrink
from vitedge.shrinking.table import Shape, Table, Width
from vitedge.shrinking.tokens import gram_of, groupings, offering, tokens_behind_blocks, with_merged

POOLED = {"class_token": False, "pool": "avg", "final_norm": "fc_norm"}
FORMS = pytest.mark.parametrize("changes", [{"register_tokens": 2}, POOLED, {"pool": "token_avg"}], ids=str)
PICTURES = random_images(tiny(), 24, seed=7)


def read(model: onnx.ModelProto, config: ViTConfig) -> tuple[ViTConfig, dict[str, np.ndarray]]:
    return read_authored(model, config, Preprocessing(size=config.image_size, mean=MEAN, std=STD))


@FORMS
def test_a_graph_with_merged_tokens_computes_what_its_parameters_say(changes: dict[str, object]) -> None:
    """Twice behind one block, then behind another, against float64; every patch counts once in a mean."""
    config = tiny(depth=4, **changes)
    model = with_merged(authored(config), "blocks.0.tokens", config.tokens - 4)
    model = with_merged(with_merged(model, "blocks.0.tokens", config.tokens - 7), "blocks.2.tokens", 9)
    onnx.checker.check_model(model, full_check=True)
    new, arrays = read(model, config)
    assert [new.tokens_before(index) for index in range(5)] == [config.tokens, *[config.tokens - 7] * 2, 9, 9]
    expected = reference_logits(new, arrays, PICTURES, mean=MEAN, std=STD)
    assert np.abs(run(model, PICTURES) - expected).max() <= 1e-5 * np.abs(expected).max()


@FORMS
def test_tokens_that_are_alike_are_merged_exactly(changes: dict[str, object]) -> None:
    """Where neighbours hold the same, no logit moves: class and register tokens stay, and attention is an average."""
    config = tiny(depth=2, position_embedding="none", **changes)
    arrays = random_arrays(config)
    for part in ("weight", "bias"):  # attention that looks at all tokens alike would count merged ones less
        arrays[f"blocks.1.attn.proj.{part}"][:] = 0
    model = author_vit(config, arrays, mean=MEAN, std=STD)
    pictures = np.repeat(np.repeat(random_images(config, 3)[:, ::16, ::16], 16, 1), 16, 2)  # every 2×2 patches alike
    (place,) = offering(tokens_behind_blocks(model))
    kept = shrink(model, {place.name: config.prefix_tokens + 6}, pictures)
    assert kept.kept[place.name].error < 1e-6
    whole = run(model, pictures)
    assert np.abs(run(kept.model, pictures) - whole).max() <= 1e-5 * np.abs(whole).max()


def test_groups_are_of_neighbours_and_grow_by_the_least_error() -> None:
    """On a line of four and a second of four: two of equal tokens are joined first, and only side by side."""
    place = tokens_behind_blocks(authored(tiny(image_size=(16, 32))))[0]
    assert place.grid == (2, 4) and place.prefix == 1
    a, b, c = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 3)))[0].T - 1 / 24
    tokens = np.stack([np.ones(24), a, b, b, a, a, b, c, c + 0.1 * a])  # class token; then rows of the picture
    found = groupings(place, gram_of(place, [np.stack([tokens] * 2)]))
    assert found[8][0] == 0 and found[8][1] == [[index] for index in range(8)]
    error, groups = found[5]
    assert sorted(groups) == [[0, 4], [1, 2, 5], [3], [6], [7]] and error < 1e-9
    errors = [found[count][0] for count in sorted(found, reverse=True)]
    assert errors == sorted(errors) and min(found) == 1
    for count, (_, members) in found.items():
        assert len(members) == count and sorted(index for group in members for index in group) == list(range(8))


def test_where_merging_is_offered() -> None:
    """Behind three blocks of many, never behind the last; not for few patches, nor beside a rotary embedding."""
    deep = {each.name: each.offered for each in components(authored(tiny(depth=12))) if each.kind == "tokens"}
    assert deep == dict.fromkeys(("blocks.2.tokens", "blocks.5.tokens", "blocks.8.tokens"), (7, 13, 19, 25))
    for changes in ({"depth": 1}, {"rope": Rope(kind="axial")}, {"image_size": (16, 32)}):
        assert not [each for each in components(authored(tiny(**changes))) if each.kind == "tokens"]
    model = authored(tiny(register_tokens=2))
    check_widths(model, {"blocks.0.tokens": 4})
    with pytest.raises(UsageError, match=r"'blocks\.0\.tokens' \(tokens\) can be 4 to 27, not 3"):
        check_widths(model, {"blocks.0.tokens": 3})


def test_a_branch_that_goes_behind_merged_tokens_leaves_its_mean_before_them() -> None:
    config = tiny(depth=3)
    widths = {"blocks.0.tokens": 9, "blocks.1.mlp": 0, "blocks.1.attn.heads": 0, "blocks.2.mlp": 16}
    shrunk = shrink(authored(config), widths, PICTURES).model
    new, arrays = read(shrunk, config)
    assert new.block(0).tokens == 9 and new.block(1).mlp_hidden == new.block(1).heads == 0
    expected = reference_logits(new, arrays, PICTURES, mean=MEAN, std=STD)
    assert np.abs(run(shrunk, PICTURES) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_later_layers_make_up_for_merged_tokens() -> None:
    """An MLP that is solved behind them comes nearer to the whole model than one that is merely cut."""
    model, widths = authored(tiny(depth=3)), {"blocks.0.tokens": 13, "blocks.1.mlp": 24}
    whole = run(model, PICTURES)
    solved, cut = (
        run(each, PICTURES) - whole for each in (shrink(model, widths, PICTURES).model, truncate(model, widths))
    )
    assert np.square(solved).sum() < 0.7 * np.square(cut).sum()


PARTS = [Component("blocks.0.tokens", "tokens", 17, (5, 9, 17)), Component("blocks.1.mlp", "hidden", 64, (32, 64))]


def test_a_schedule_is_chosen_where_it_costs_less_than_widths() -> None:
    """Behind merged tokens an MLP has half to save."""
    errors = {"blocks.0.tokens": {5: 4.0, 9: 1.0}, "blocks.1.mlp": {32: 2.0}}
    saved = {"blocks.0.tokens": {5: 60.0, 9: 40.0}, "blocks.1.mlp": {32: 50.0}}
    schedules = schedules_of(PARTS, saved, errors, lambda name, width: {"blocks.1.mlp": 0.5})

    def chosen(needed: float) -> Option | None:
        options = choose_with_schedule(schedules, needed)
        return None if options is None else together(options)

    assert chosen(40) == Option(40.0, 1.0, {"blocks.0.tokens": 9})
    assert chosen(50) == Option(50.0, 2.0, {"blocks.1.mlp": 32})
    assert chosen(60) == Option(65.0, 3.0, {"blocks.1.mlp": 32, "blocks.0.tokens": 9})
    assert chosen(70) == Option(85.0, 6.0, {"blocks.1.mlp": 32, "blocks.0.tokens": 5})
    assert chosen(90) is None


def test_merging_is_offered_where_the_table_is_sure_of_a_gain() -> None:
    widths = (Width(width=9, saved=5.0, low=-1.0, high=11.0), Width(width=5, saved=20.0, low=15.0, high=25.0))
    shapes = (
        Shape(kind="tokens", width=17, components=("blocks.0.tokens",), widths=widths),
        Shape(kind="hidden", width=64, components=("blocks.1.mlp",), widths=widths[:1]),
    )
    table = Table(unit="ns", full=100.0, shapes=shapes)
    assert table.saved == {"blocks.0.tokens": {5: 20.0}, "blocks.1.mlp": {9: 5.0}}
    slower = Shape(kind="tokens", width=17, components=("blocks.0.tokens",), widths=widths[:1])
    table = replace(table, shapes=(slower, shapes[1]))
    errors = {"blocks.0.tokens": {9: 0.0}, "blocks.1.mlp": {9: 9.0}}
    assert len(schedules_of(PARTS, table.saved, errors, lambda name, width: {})) == 1


def test_a_model_folder_with_merged_tokens_is_like_any_other(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen, written, seen by inspect, trained from, and exported in INT8, whose verification passes."""
    pytest.importorskip("torch")
    from vitedge.training.options import TrainOptions

    def merging(*given: Any) -> list[list[list[Option]]]:
        return [each for each in schedules_of(*given) if each[-1][0].widths == {"blocks.0.tokens": 13}]

    monkeypatch.setattr("vitedge.shrinking.subject.schedules_of", merging)
    how = {"macs": 0.7, "data": small_data, "num_samples": 24}
    model = vitedge.shrink(small_model, "onnxruntime", tmp_path / "small", **how)
    assert model.record.architecture is not None and model.record.architecture.block(0).tokens == 13
    removed = model.record.origin.details["shrunk"]["removed"]
    assert {"component": "blocks.0.tokens", "kind": "tokens", "before": 17, "after": 13} in [
        {name: each[name] for name in ("component", "kind", "before", "after")} for each in removed
    ]
    widths = next(section for section in vitedge.inspect(model.path).sections if section.title == "Widths")
    assert [row[5] for row in widths.rows] == ["17", "13"]
    artifact = vitedge.export(model, "onnxruntime", "int8", tmp_path / "int8", data=small_data, num_samples=24)
    assert all(check.ok for check in vitedge.verify(artifact))
    options = TrainOptions(init_from=str(model.path), epochs=1, batch_size=8)
    trained = Model.open(vitedge.train(small_data, options, tmp_path / "trained"))
    assert trained.record.architecture == model.record.architecture
    with pytest.raises(UsageError, match="merges tokens by their places"):
        vitedge.train(small_data, replace(options, image_size=(48, 48)), tmp_path / "x")
