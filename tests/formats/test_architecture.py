"""What a configuration says of blocks with widths of their own, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tests.graph.vits import tiny
from vitedge.core.schema import encode_json
from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.architecture import BlockWidths, Rope, ViTConfig
from vitedge.formats.model_folder import ModelRecord, Origin, class_table, write_model

WHOLE = BlockWidths(heads=3, query_key=8, value=8, mlp_hidden=40)  # of tiny()
NARROW = BlockWidths(heads=2, query_key=4, value=6, mlp_hidden=16)
GONE = BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=0)


def test_a_uniform_configuration_does_not_mention_blocks() -> None:
    assert b"blocks" not in encode_json(tiny())
    assert tiny(blocks=(WHOLE, WHOLE)) == tiny()
    assert not tiny().blocks and tiny().block(1) == WHOLE


def test_widths_are_read_as_they_were_written() -> None:
    config = tiny(blocks=(NARROW, GONE))
    text = encode_json(config)
    assert msgspec.json.decode(text, type=ViTConfig) == config
    assert b"rope_pairs" not in text
    assert config.block(0) == NARROW and config.block(1) == GONE
    turned = tiny(rope=Rope(kind="axial"), blocks=(replace(NARROW, rope_pairs=(0, 3)), WHOLE))
    assert msgspec.json.decode(encode_json(turned), type=ViTConfig).block(0).rope_pairs == (0, 3)


def test_work_is_counted_block_by_block() -> None:
    """25 tokens of 24 channels, by hand: qkv 2·4 + 2·4 + 2·6 rows, projection 2·6, MLP 16."""
    without = tiny(blocks=(GONE, GONE)).macs()
    assert tiny(blocks=(GONE, NARROW)).macs() - without == 25 * 24 * (28 + 12 + 2 * 16) + 25 * 25 * (8 + 12)
    assert tiny(mlp="swiglu", blocks=(GONE, NARROW)).macs() - without == 25 * 24 * (28 + 12 + 3 * 16) + 25 * 25 * 20
    assert tiny().macs() - without == 2 * (25 * 24 * (4 * 24 + 2 * 40) + 2 * 25 * 25 * 24)


def test_tokens_are_fewer_behind_a_block_that_merges_some() -> None:
    config = tiny(depth=3, blocks=(replace(WHOLE, tokens=25), replace(WHOLE, tokens=9), WHOLE))
    assert config.merges and config.block(0) == WHOLE  # as many as there are
    assert [config.tokens_before(index) for index in range(4)] == [25, 25, 9, 9]
    text = encode_json(config)
    assert msgspec.json.decode(text, type=ViTConfig) == config and text.count(b'"tokens"') == 1
    block = {tokens: tokens * 24 * (4 * 24 + 2 * 40) + 2 * tokens**2 * 24 for tokens in (25, 9)}
    assert config.macs() == tiny(depth=3).macs() - block[25] + block[9] + 25 * 9 * 24
    assert not tiny().merges and tiny().tokens_before(2) == 25


def test_nothing_is_left_of_heads_that_are_gone() -> None:
    assert BlockWidths(heads=0, query_key=8, value=8, mlp_hidden=0, rope_pairs=(0, 1)) == GONE


def test_pairs_of_a_rotary_embedding_that_are_all_there_are_not_listed() -> None:
    whole = replace(WHOLE, rope_pairs=(0, 1, 2, 3))
    assert tiny(rope=Rope(kind="axial"), blocks=(whole, whole)) == tiny(rope=Rope(kind="axial"))
    mixed = tiny(rope=Rope(kind="mixed"), blocks=(replace(NARROW, rope_pairs=(1, 2)), WHOLE))
    assert mixed.block(0) == NARROW  # its frequencies are those of the kept pairs


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"blocks": (NARROW,)}, "widths of 1 blocks; the depth is 2"),
        ({"blocks": (replace(NARROW, rope_pairs=(0, 1)), WHOLE)}, "there is none"),
        ({"blocks": (NARROW, WHOLE), "qk_norm": True}, "normalised over 8 channels"),
        ({"blocks": (replace(NARROW, query_key=3), WHOLE), "rope": Rope(kind="mixed")}, "keeps 1 pairs"),
        ({"blocks": (NARROW, WHOLE), "rope": Rope(kind="axial")}, "has 4 channels a query and keeps 4 pairs"),
        ({"blocks": (replace(NARROW, rope_pairs=(2, 1)), WHOLE), "rope": Rope(kind="axial")}, "ascending order"),
        ({"blocks": (replace(NARROW, rope_pairs=(2, 4)), WHOLE), "rope": Rope(kind="axial")}, "below 4"),
        ({"blocks": (replace(WHOLE, tokens=26), WHOLE)}, "behind block 0 there can be 2 to 25 tokens, not 26"),
        ({"blocks": (replace(WHOLE, tokens=9), replace(WHOLE, tokens=1))}, "behind block 1 there can be 2 to 9"),
        ({"blocks": (replace(WHOLE, tokens=9), WHOLE), "rope": Rope(kind="axial")}, "merged in a model with a rotary"),
    ],
)
def test_widths_that_contradict_the_rest_are_refused(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        tiny(**options)


@pytest.mark.parametrize("name", ["heads", "query_key", "value", "mlp_hidden"])
def test_negative_widths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="negative"):
        replace(NARROW, **{name: -1})


@pytest.mark.parametrize("name", ["query_key", "value"])
def test_heads_without_channels_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="2 heads need channels"):
        replace(NARROW, **{name: 0})


@pytest.mark.parametrize(("blocks", "version"), [(msgspec.UNSET, 2), ((NARROW, GONE), 3)])
def test_a_model_folder_has_the_oldest_version_that_can_read_it(
    tmp_path: Path, blocks: tuple[BlockWidths, ...], version: int
) -> None:
    record = ModelRecord(
        name="a",
        classes=class_table("abcdefg"),
        preprocessing=Preprocessing(size=(32, 48)),
        origin=Origin(kind="train", source="a"),
        architecture=tiny(blocks=blocks),
    )
    model = write_model(tmp_path / "model", record, {"model.onnx": b"graph"})
    assert model.record.schema_version == version and model.record.architecture == record.architecture
