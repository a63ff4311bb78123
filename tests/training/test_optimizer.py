"""Muon: what it orthogonalises, which parameters it takes, and that it minimises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.vits import tiny
from vitedge.formats.architecture import BlockWidths, ConvStem

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training.optimizer import Muon, build_optimizers, orthogonalise  # noqa: E402
from vitedge.training.vit import VisionTransformer  # noqa: E402


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 1 << 30))
@settings(max_examples=30, deadline=None)
def test_singular_vectors_stay_and_singular_values_become_about_one(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    values = torch.linspace(0.2, 1.0, min(rows, columns))
    inside = u.T @ orthogonalise(u * values @ v) @ v.T
    torch.testing.assert_close(inside, torch.diag(inside.diag()), atol=1e-3, rtol=0)
    assert inside.diag().min() > 0.6 and inside.diag().max() < 1.3


def test_packed_queries_keys_and_values_are_orthogonalised_apart() -> None:
    rows = (6, 6, 12)
    packed = torch.nn.Parameter(torch.zeros(24, 8))
    packed.grad = torch.randn(24, 8) * torch.cat([torch.full((n, 1), 10.0**i) for i, n in enumerate(rows)])
    Muon([packed], lr=1.0, packed={packed: rows}).step()
    sizes = torch.stack([part.square().mean().sqrt() for part in packed.detach().split(rows)])
    assert sizes.max() / sizes.min() < 1.5  # together, the largest would have swallowed the others


def test_a_blocks_own_widths_say_which_rows_are_packed() -> None:
    narrow = BlockWidths(heads=3, query_key=4, value=2, mlp_hidden=72)
    model = VisionTransformer(tiny(blocks=(narrow, narrow)))
    muon, _ = build_optimizers(model, "muon", lr=0.1, weight_decay=0.05)
    assert isinstance(muon, Muon)
    assert muon.packed[model.blocks[1].attn.qkv.weight] == (12, 12, 6)
    assert model.blocks[1].mlp.fc1.weight not in muon.packed  # three times as many rows as columns, and one matrix


def test_a_linear_weight_steps_as_torchs_own_does_in_bfloat16() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(10, 16)) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.05, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(10, 16)
        for optimizer in optimizers:
            optimizer.step()
    step = 0.05 * 0.2 * 16**0.5  # the largest singular value of an update is about this
    torch.testing.assert_close(ours, theirs, atol=5 * 0.03 * step, rtol=0)
    assert (ours - 1).abs().max() > 2 * step


def test_every_parameter_has_one_optimizer() -> None:
    model = VisionTransformer(tiny(stem=ConvStem(channels=(6, 8), strides=(2, 4)), register_tokens=1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, adamw = build_optimizers(model, "muon", lr=0.1, weight_decay=0.05)
    groups = [group for optimizer in (muon, adamw) for group in optimizer.param_groups]
    taken = [names[parameter] for group in groups for parameter in group["params"]]
    assert sorted(taken) == sorted(names.values())
    hidden = {names[parameter] for parameter in muon.param_groups[0]["params"]}
    assert "patch_embed.stem.1.conv.weight" in hidden
    assert "blocks.1.mlp.fc2.weight" in hidden
    assert not hidden & {"patch_embed.stem.0.conv.weight", "head.weight", "pos_embed", "cls_token", "norm.bias"}
    still = {names[p] for group in adamw.param_groups if not group["weight_decay"] for p in group["params"]}
    assert {"pos_embed", "reg_token", "blocks.0.norm1.weight", "blocks.0.attn.qkv.bias"} <= still
    assert len(build_optimizers(model, "adamw", lr=0.1, weight_decay=0.05)) == 1


def test_scales_and_biases_of_a_stems_batch_norm_have_rates_of_their_own() -> None:
    model = VisionTransformer(tiny(stem=ConvStem(channels=(6, 8), strides=(2, 4))))
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizers = build_optimizers(model, "muon", lr=0.1, weight_decay=0.05, momentum=0.6, norm_rates=(0.5, 8.0))
    assert optimizers[0].param_groups[0]["momentum"] == 0.6
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}
    others = {name: rate for name, rate in rates.items() if rate != 1}
    assert others == {
        f"patch_embed.stem.{stage}.norm.{kind}": rate
        for stage in (0, 1)
        for kind, rate in (("weight", 0.5), ("bias", 8.0))
    }


def test_it_minimises() -> None:
    torch.manual_seed(0)
    weight, goal = torch.nn.Parameter(torch.zeros(6, 10)), torch.randn(6, 10)
    optimizer = Muon([weight], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (weight - goal).square().sum().backward()
        optimizer.step()
    assert (weight - goal).abs().max() < 0.2
