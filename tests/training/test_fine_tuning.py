"""Starting from a trained model: what is kept, what is new, what is frozen, and how fast each layer learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.graph.vits import random_arrays, tiny
from tests.importing.references import FAMILIES, write_folder
from vitedge.errors import ModelError, UsageError
from vitedge.formats.architecture import BlockWidths, ConvStem
from vitedge.formats.model_folder import MODEL_ONNX, MODEL_WEIGHTS, Model, write_model
from vitedge.graph.author import author_vit, expected_parameters

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training.augment import Augmentation  # noqa: E402
from vitedge.training.distill import Distillation  # noqa: E402
from vitedge.training.evaluate import shipped_model  # noqa: E402
from vitedge.training.initial import HEADS, Start, starting_point  # noqa: E402
from vitedge.training.optimizer import build_optimizers, layer_of  # noqa: E402
from vitedge.training.train import TrainOptions, train  # noqa: E402
from vitedge.training.trainer import weights_of_classes  # noqa: E402
from vitedge.training.vit import VisionTransformer  # noqa: E402
from vitedge.training.zoo import EMBEDDED  # noqa: E402

COLOURS = ("blue", "green", "red")
PATCHES = TrainOptions(
    model="vit_nano_patch4_32",
    epochs=1,
    batch_size=8,
    lr=1e-3,
    augmentation=Augmentation(crop_padding=0),
    image_size=(8, 8),
    holdout=0.25,
    threads=1,
)


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch-stem model of two blocks' worth of learning."""
    return train(str(pictures), PATCHES, tmp_path_factory.mktemp("trained") / "model")


#: Of the four blocks, once the model was shrunk.
NARROW = (
    BlockWidths(heads=3, query_key=8, value=24, mlp_hidden=40),
    BlockWidths(heads=3, query_key=16, value=16, mlp_hidden=0),
    BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=100),
    BlockWidths(heads=3, query_key=32, value=8, mlp_hidden=192),
)


def tuned(source: Path | str, **changes: object) -> TrainOptions:
    options = replace(PATCHES, model=None, image_size=None, init_from=str(source))
    return replace(options, **changes)  # type: ignore[arg-type]


def stored(model: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(model / "model.safetensors")


def test_the_same_classes_keep_the_head(trained: Path) -> None:
    start = starting_point(tuned(trained), COLOURS, "train")
    record = Model.open(trained).record
    assert record.architecture is not None
    assert start.config == record.architecture and start.preprocessing == record.preprocessing
    image = torch.randn(2, 3, 8, 8)
    expected = shipped_model(record.architecture, stored(trained)).eval()
    torch.testing.assert_close(start.model(tuned(trained)).eval()(image), expected(image))


def test_other_classes_and_sizes_get_a_new_head_and_a_resized_embedding(trained: Path) -> None:
    start = starting_point(tuned(trained, image_size=(16, 12)), ("a", "b"), "train")
    assert start.config.num_classes == 2 and start.config.grid == (4, 3)
    assert start.weights is not None and not set(HEADS) & set(start.weights)
    model, old = start.model(tuned(trained)), stored(trained)
    assert model.pos_embed is not None and model.pos_embed.shape == (1, 13, 96)
    np.testing.assert_array_equal(model.pos_embed[0, 0].detach(), old["pos_embed"][0, 0].astype(np.float32))
    grid = torch.from_numpy(old["pos_embed"][:, 1:].astype(np.float32)).reshape(1, 2, 2, 96).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (4, 3), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(model.pos_embed[:, 1:].detach(), expected.flatten(2).mT, rtol=1e-5, atol=1e-6)
    assert not model.head.weight.any()
    name = "blocks.2.mlp.fc1.weight"
    np.testing.assert_array_equal(model.state_dict()[name], old[name].astype(np.float32))


def test_a_run_from_a_model_learns_and_says_where_it_started(trained: Path, pictures: Path, tmp_path: Path) -> None:
    options = tuned(trained, epochs=4, ema=0.5, layer_decay=0.8)
    record = Model.open(train(str(pictures), options, tmp_path / "model")).record
    assert record.training is not None and record.accuracy is not None
    assert record.name == "vit_nano_patch4_32" and record.training["options"]["init_from"] == record.name
    assert len(record.training["initial_weights"]["sha256"]) == 64
    assert record.accuracy["held_out"]["top1_percent"] >= 80
    other = train(str(pictures), replace(PATCHES, seed=1), tmp_path / "other")
    with pytest.raises(UsageError, match="written with initial weights"):
        train(
            str(pictures),
            tuned(other, epochs=4, ema=0.5, layer_decay=0.8),
            tmp_path / "model",
            resume=True,
            overwrite=True,
        )


@pytest.fixture(scope="module")
def narrowed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with the first hidden units and channels of each head alone, and two branches gone."""
    from safetensors.numpy import save

    record, arrays = Model.open(trained).record, stored(trained)
    cut = {}
    for name, shape in expected_parameters(replace(record.architecture, blocks=NARROW)):
        if ".attn.qkv." in name:  # of each of 3 · 3 heads of 32 channels
            widths = NARROW[int(name.split(".")[1])]
            sizes = [widths.query_key] * 6 + [widths.value] * 3
            cut[name] = np.concatenate([arrays[name][32 * i :][:size] for i, size in enumerate(sizes)])
        elif ".attn.proj.weight" in name:
            cut[name] = np.concatenate([arrays[name][:, 32 * i :][:, : shape[1] // 3] for i in range(3)], axis=1)
        else:
            cut[name] = arrays[name][tuple(slice(size) for size in shape)]
    config = replace(record.architecture, blocks=NARROW)
    contract = record.preprocessing
    graph = author_vit(config, cut, mean=contract.mean, std=contract.std)
    files = {MODEL_WEIGHTS: save(cut), MODEL_ONNX: graph.SerializeToString()}
    out = tmp_path_factory.mktemp("narrowed") / "model"
    return write_model(out, replace(record, architecture=config), files).path


def test_a_model_with_widths_of_its_own_learns_from_the_one_it_was_cut_from(
    trained: Path, narrowed: Path, pictures: Path, tmp_path: Path
) -> None:
    lesson = Distillation(teacher=str(trained), lesson="feature")
    options = tuned(narrowed, epochs=3, optimizer="muon", drop_path=0.1, layer_decay=0.9, distillation=lesson)
    model = Model.open(train(str(pictures), options, tmp_path / "model"))
    config, accuracy = model.record.architecture, model.record.accuracy
    assert config is not None and config.blocks == NARROW and accuracy is not None
    assert accuracy["held_out"]["top1_percent"] >= 80
    before, after = stored(narrowed), stored(model.path)
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    assert all((after[name] != before[name]).any() for name in before if name.endswith("weight"))


@pytest.mark.parametrize("blocks", [2, 4])
def test_what_is_frozen_stays(trained: Path, pictures: Path, tmp_path: Path, blocks: int) -> None:
    old, new = stored(trained), stored(train(str(pictures), tuned(trained, freeze=blocks), tmp_path / "model"))
    for name, value in old.items():
        frozen = layer_of(name, 4) <= blocks
        if frozen or name.endswith("weight"):
            assert np.array_equal(value, new[name]) == frozen, name


def test_batch_norm_of_a_frozen_stem_keeps_its_statistics() -> None:
    config = tiny(stem=ConvStem(channels=(6, 8), strides=(2, 4)))
    arrays = {key: torch.from_numpy(value) for key, value in random_arrays(config).items()}
    model = Start(config, arrays).model(tuned("any", freeze=1))
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    assert before
    model(torch.randn(4, 3, 32, 48)).sum().backward()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model.patch_embed.proj.weight.grad is None and model.head.weight.grad is not None


def test_the_embedded_model_and_a_published_checkpoint_are_starting_points(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    start = starting_point(tuned("embedded"), ("one", "two"), "train")
    assert start.folded and start.name == EMBEDDED
    assert start.model(tuned("embedded"))(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    config = tiny(image_size=(32, 32), num_classes=4)
    save_file(random_arrays(config), tmp_path / "model.safetensors")
    published = {
        "architecture": "vit_tiny_patch8_32",
        "num_classes": 4,
        "model_args": {"img_size": 32, "patch_size": 8, "num_heads": config.num_heads},
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": [3, 32, 32]},
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    start = starting_point(tuned(tmp_path), ("one", "two"), "train")
    assert start.preprocessing is not None and start.preprocessing.std == (0.25, 0.25, 0.25)
    np.testing.assert_array_equal(
        start.model(tuned(tmp_path)).state_dict()["norm.weight"], random_arrays(config)["norm.weight"]
    )


def test_a_checkpoint_without_preprocessing_needs_only_its_values(tmp_path: Path) -> None:
    """Training fits pictures by its own options; mean and std are the checkpoint's, and the advice gives them."""
    family = json.loads(FAMILIES.read_text())["families"]["ViTForImageClassification"]
    source = write_folder(tmp_path / "checkpoint-500", family)
    processor = source / "preprocessor_config.json"
    published = processor.read_text()
    processor.unlink()
    with pytest.raises(UsageError, match=r"missing: --mean, --std\n.*put the preprocessor_config\.json"):
        starting_point(tuned(source), ("one", "two"), "train")
    processor.write_text(json.dumps({**json.loads(published), "do_resize": False}))
    start = starting_point(tuned(source), ("one", "two"), "train")
    assert start.preprocessing is not None and start.preprocessing.mean == (0.5, 0.5, 0.5)


def test_wishes_that_contradict_each_other_are_refused(trained: Path, tmp_path: Path) -> None:
    for options, text in (
        (replace(PATCHES, freeze=1), "fresh weights would be frozen"),
        (tuned(trained, freeze=5), "5 blocks are to be frozen; the model has 4"),
        (tuned(trained, distillation_token=True), "part of a model from its first step"),
        (replace(tuned(trained), model="vit_mini_patch4_32"), "isn't a vit_mini_patch4_32"),
        (tuned(trained, image_size=(9, 9)), "not a positive multiple"),
        (tuned(tmp_path / "none"), "doesn't exist"),
        (replace(PATCHES, model="vit_edge_conv_32", distillation_token=True), "beside a class token"),
    ):
        with pytest.raises(UsageError, match=text):
            starting_point(options, COLOURS, "train")
    with pytest.raises(UsageError, match="neither a model nor weights"):
        replace(PATCHES, model=None)
    record = Model.open(trained).record
    bare = write_model(tmp_path / "bare", record, {MODEL_ONNX: (trained / MODEL_ONNX).read_bytes()})
    with pytest.raises(ModelError, match="name the checkpoint that it was imported from"):
        starting_point(tuned(bare.path), COLOURS, "train")


def test_each_layer_learns_at_its_own_rate() -> None:
    model = VisionTransformer(tiny(depth=3, register_tokens=1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer_name in ("muon", "adamw"):
        scales = {
            names[parameter]: group["lr_scale"]
            for optimizer in build_optimizers(model, optimizer_name, lr=1.0, weight_decay=0.1, layer_decay=0.5)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        assert set(scales) == set(names.values())
        assert {scales[name] for name in ("head.weight", "norm.bias")} == {1.0}
        assert scales["blocks.2.attn.qkv.weight"] == scales["blocks.2.norm1.bias"] == 0.5
        assert scales["blocks.0.mlp.fc1.weight"] == 0.125
        assert {scales[name] for name in ("patch_embed.proj.weight", "pos_embed", "reg_token")} == {0.0625}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.sampled_from([0.5, 1.0]))
@settings(max_examples=30, deadline=None)
def test_weights_of_classes(labels: list[int], power: float) -> None:
    counted = torch.tensor(labels)
    weights = weights_of_classes(counted, 5, power)
    assert weights is not None
    assert weights[counted].mean().item() == pytest.approx(1.0, rel=1e-4)
    a, b = labels[0], labels[-1]
    ratio = (labels.count(a) / labels.count(b)) ** -power
    assert (weights[a] / weights[b]).item() == pytest.approx(ratio, rel=1e-4)
    assert weights_of_classes(counted, 5, 0.0) is None


def test_the_rare_class_is_learnt_with_class_weights(pictures: Path, tmp_path: Path) -> None:
    """One picture in nineteen, and too few steps to learn it unless it weighs more."""
    import shutil

    shutil.copytree(pictures / "blue", tmp_path / "data" / "blue")
    (tmp_path / "data" / "red").mkdir()
    for number in range(2):
        shutil.copy(pictures / "red" / f"{number}.png", tmp_path / "data" / "red")
    losses = {}
    for power in (0.0, 1.0):
        options = replace(PATCHES, epochs=3, holdout=0.1, class_weights=power, ema=0.0)
        model = train(str(tmp_path / "data"), options, tmp_path / f"model {power}")
        record = Model.open(model).record
        assert record.architecture is not None
        red = torch.zeros(1, 3, 8, 8)
        red[:, 0] += 2
        red[:, 1:] -= 1
        with torch.inference_mode():
            logits = shipped_model(record.architecture, stored(model)).eval()(red)
        losses[power] = float(torch.nn.functional.cross_entropy(logits, torch.tensor([1])))
    assert losses[1.0] < losses[0.0]
