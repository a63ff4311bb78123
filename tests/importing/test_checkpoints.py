"""What training leaves: timm's train.py, DDP, torch.compile, Lightning, Trainer; imported without torch."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import vitedge
from tests.cli.command import vitedge as run_command
from tests.graph.test_author import relative, run
from tests.importing.references import CHECKPOINT, CHECKPOINT_LOGITS, LOGITS, random_weight, write_folder
from tests.importing.test_references import STORED, generated
from vitedge.errors import ModelError, UsageError, VitedgeError
from vitedge.graph import mappings, timm_architectures
from vitedge.graph.author import author_vit, expected_parameters
from vitedge.graph.checkpoint import Checkpoint
from vitedge.graph.state_dicts import Choice
from vitedge.importing.entry import summary

torch = pytest.importorskip("torch", reason="torch writes the files")

CLASSES = 5
TEST_VIT = timm_architectures.find("test_vit", "test").configured(CLASSES)  # 0.4 million parameters
SHAPES = dict(expected_parameters(TEST_VIT))
ARRAYS = {name: random_weight(name, shape) for name, shape in SHAPES.items()}
VIT = Choice(arch="test_vit")


def tensors(arrays: dict[str, NDArray[Any]], before: str = "") -> dict[str, Any]:
    return {f"{before}{name}": torch.from_numpy(np.array(values)) for name, values in arrays.items()}


def saved(content: object, folder: Path, name: str = "x.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def logits(checkpoint: Checkpoint) -> NDArray[np.float32]:
    """Of the generated pictures, from the picture on."""
    contract = checkpoint.preprocessing
    graph = author_vit(checkpoint.config, checkpoint.arrays, mean=contract.mean, std=contract.std)
    return run(graph, np.stack([contract.apply(picture) for picture in generated().values()]))


# --- against the libraries that write them ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "ema"])
def test_logits_are_those_of_timm_for_what_its_training_saves(kind: str) -> None:
    """With the architecture, image size and preprocessing that the run's arguments in the file say."""
    checkpoint = mappings.read_published(CHECKPOINT, choice=Choice(use_ema=kind == "ema"))
    assert relative(logits(checkpoint), np.load(CHECKPOINT_LOGITS)[kind]) <= 1e-5
    contract = checkpoint.preprocessing
    assert (contract.size, contract.mean, contract.crop_fraction) == ((32, 32), (0.4, 0.5, 0.6), 0.8)
    assert checkpoint.details["preprocessing_defaults"] == {
        "from": "timm's for vit_base_patch8_224", "interpolation": "bicubic", "resize": "shortest",
        "std": (0.5, 0.5, 0.5),
    }  # fmt: skip


@pytest.mark.parametrize("title", ["vit_tiny_patch16_224 resized", "deit_tiny_distilled_patch16_224"])
def test_logits_are_those_of_timm_at_another_size_and_of_another_family(title: str, tmp_path: Path) -> None:
    family = STORED["families"][title]
    published = family["files"]["config.json"]
    arrays = {name: random_weight(name, tuple(shape)) for name, shape in family["tensors"].items()}
    args = argparse.Namespace(model=published["architecture"], model_kwargs=published["model_args"])
    path = saved({"state_dict": tensors(arrays, "module."), "args": args}, tmp_path)
    given = {"size": tuple(family["size"])} if "size" in family else {}
    checkpoint = mappings.read_published(path, given, choice=Choice(arch=published["architecture"], num_classes=7))
    assert relative(logits(checkpoint), np.load(LOGITS)[title][: len(generated())]) <= 1e-4


def test_logits_are_those_of_transformers_for_what_its_trainer_saves(tmp_path: Path) -> None:
    title = "ViTForImageClassification"
    folder = write_folder(tmp_path / "checkpoint-500", STORED["families"][title])
    arrays = {name: random_weight(name, tuple(shape)) for name, shape in STORED["families"][title]["tensors"].items()}
    (folder / "model.safetensors").unlink()
    saved(tensors(arrays), folder, "pytorch_model.bin")
    saved({"lr": 0.1}, folder, "training_args.bin")
    checkpoint = mappings.read_published(folder)
    assert relative(logits(checkpoint), np.load(LOGITS)[title][: len(generated())]) <= 1e-4
    wrapped = saved({"state_dict": tensors(arrays, "model.")}, folder, "last.ckpt")
    assert relative(logits(mappings.read_published(wrapped)), logits(checkpoint)) == 0


def test_logits_are_those_of_a_torch_module_with_half_weights(tmp_path: Path) -> None:
    from vitedge.training.vit import VisionTransformer

    module = VisionTransformer(TEST_VIT)
    module.load_state_dict(tensors(ARRAYS))
    checkpoint = mappings.read_published(saved(module.bfloat16().state_dict(), tmp_path), choice=VIT)
    contract = checkpoint.preprocessing
    frames = np.stack([contract.apply(picture) for picture in generated().values()])
    pixels = (torch.from_numpy(frames) / 255 - torch.tensor(contract.mean)) / torch.tensor(contract.std)
    with torch.inference_mode():
        expected = module.float().eval()(pixels.permute(0, 3, 1, 2)).numpy()
    assert relative(logits(checkpoint), expected) <= 1e-4


# --- wrappers and choices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "key"),
    [
        ("", None), ("module.", None), ("_orig_mod.module.", None), ("module._orig_mod.", "model"),
        ("net.", "state_dict"), ("model.", "state_dict"), ("timm_model.", "state_dict"),
        ("_forward_module.model.", "state_dict"),
        ("model._orig_mod.backbone.", "state_dict"), ("", "module"), ("", "weights"),
    ],
)  # fmt: skip
def test_wrappers_are_removed(before: str, key: str | None, tmp_path: Path) -> None:
    named = tensors(ARRAYS, before)
    loss = {"loss.weight": torch.ones(CLASSES)} if before == "model." else {}
    content = named if key is None else {"epoch": 3, key: {**named, **loss}, "optimizer": {"state": {0: named}}}
    checkpoint = mappings.read_published(saved(content, tmp_path), choice=VIT)
    assert all(np.array_equal(checkpoint.arrays[name], values) for name, values in ARRAYS.items())
    assert checkpoint.arrays.keys() == ARRAYS.keys()
    label = ".".join(part for part in (key, before.replace("_orig_mod.", "").removeprefix("_forward_module.")) if part)
    left = "; 1 tensor beside it left out" if loss else ""
    assert checkpoint.details.get("weights", "") == label.removesuffix(".") + left


def test_parts_that_are_compiled_or_averaged(tmp_path: Path) -> None:
    inside = {name.replace("blocks.0.", "blocks.0._orig_mod."): values for name, values in tensors(ARRAYS).items()}
    averaged = {"n_averaged": torch.tensor(7), **{f"module.{name}": values for name, values in inside.items()}}
    checkpoint = mappings.read_published(saved(averaged, tmp_path), choice=VIT)
    assert checkpoint.arrays.keys() == ARRAYS.keys() and checkpoint.details["weights"] == "module"


def two_models(folder: Path) -> Path:
    ema = {name: values + 1 for name, values in tensors(ARRAYS).items()}
    return saved({"state_dict_ema": ema, "state_dict": tensors(ARRAYS, "module.")}, folder)


def test_one_of_two_models_is_taken_and_the_other_is_told(tmp_path: Path) -> None:
    path = two_models(tmp_path)
    for choice, added, words in (
        (VIT, 0, "state_dict.module; also there: state_dict_ema (--use-ema)"),
        (Choice("test_vit", use_ema=True), 1, "state_dict_ema; also there: state_dict.module (--weights-key)"),
        (Choice("test_vit", key="state_dict_ema"), 1, "state_dict_ema; also there: state_dict.module (--weights-key)"),
        (Choice("test_vit", key="state_dict"), 0, "state_dict.module; also there: state_dict_ema (--use-ema)"),
    ):
        checkpoint = mappings.read_published(path, choice=choice)
        assert np.array_equal(checkpoint.arrays["norm.bias"], ARRAYS["norm.bias"] + np.float32(added))
        assert checkpoint.details["weights"] == words


def test_one_state_dict_under_two_names_is_two(tmp_path: Path) -> None:
    both = tensors(ARRAYS)
    path = saved({"state_dict": both, "state_dict_ema": both}, tmp_path)
    assert mappings.read_published(path, choice=Choice("test_vit", use_ema=True)).details["weights"] == (
        "state_dict_ema; also there: state_dict (--weights-key)"
    )


def test_averaged_weights_alone_are_taken(tmp_path: Path) -> None:
    path = saved({"model_ema": tensors(ARRAYS)}, tmp_path)
    assert mappings.read_published(path, choice=VIT).details["weights"] == "model_ema"


@pytest.mark.parametrize(
    ("choice", "kind", "words"),
    [
        (Choice("test_vit"), ModelError, "holds 2 models: student, teacher.*choose one with --weights-key"),
        (Choice("test_vit", use_ema=True), UsageError, r"no averaged weights \(EMA\); it holds student, teacher"),
        (Choice("test_vit", key="teach"), UsageError, "has no 'teach'; the nearest is 'teacher'; it holds student"),
    ],
)
def test_a_choice_is_asked_for(choice: Choice, kind: type[VitedgeError], words: str, tmp_path: Path) -> None:
    path = saved({"student": tensors(ARRAYS), "teacher": tensors(ARRAYS)}, tmp_path)
    with pytest.raises(kind, match=words.replace(".*", r"[\s\S]*")):
        mappings.read_published(path, choice=choice)
    assert (
        mappings.read_published(path, choice=Choice("test_vit", key="teacher")).details["weights"].startswith("teacher")
    )


# --- what doesn't fit ------------------------------------------------------------------------------------------------

RENAMED = {name.replace("attn.qkv", "attention.qkv"): values for name, values in ARRAYS.items()}


@pytest.mark.parametrize(
    ("content", "choice", "words"),
    [
        (tensors(ARRAYS), Choice(), "doesn't say which architecture it has; its tensors fit test_vit.*--arch test_vit"),
        (tensors(ARRAYS), Choice("test_vit9"), "'test_vit9' isn't one of timm's plain ViTs.*the nearest is 'test_vit'"),
        (tensors(ARRAYS), Choice("test_vit.r160"), "test_vit has no tag 'r160'; the nearest is 'r160_in1k'"),
        (tensors(ARRAYS), Choice("resnet50"), "'resnet50' isn't one of timm's plain ViTs.*--factory"),
        (
            tensors(ARRAYS), Choice("test_vit2"),
            r"its tensors don't fit test_vit2: .*expected 'reg_token' \[1, 1, 64\].*its tensors fit test_vit: give",
        ),
        (
            tensors(RENAMED), VIT,
            r"expected 'blocks.5.attn.qkv.weight' \[192, 64\], the file has 'blocks.5.attention.qkv.weight'"
            ".*and 8 more",
        ),
        (
            tensors({**ARRAYS, "blocks.0.mlp.fc1.bias": np.zeros(7, np.float32)}), VIT,
            r"'blocks.0.mlp.fc1.bias' is \[7\], expected \[\d+\]",
        ),
        (tensors({**ARRAYS, "tail.weight": np.zeros(7, np.float32)}), VIT, r"'tail.weight' \[7\] has no place"),
        (
            tensors({name: values for name, values in ARRAYS.items() if not name.startswith("head")}), VIT,
            "no classification head",
        ),
        (tensors(ARRAYS), Choice("test_vit", num_classes=10), "its head has 5 classes; --num-classes says 10"),
        ({"model": tensors(ARRAYS), "args": argparse.Namespace(model="resnet50")}, Choice(), "'resnet50' isn't one"),
        (
            {"state_dict": tensors(ARRAYS), "args": argparse.Namespace(model="test_vit2")}, VIT,
            "its training arguments say test_vit2, and --arch test_vit",
        ),
        (
            {"state_dict": tensors(ARRAYS), "args": argparse.Namespace(model="test_vit", mean="half")}, VIT,
            "the training arguments in it aren't timm's: Expected `array",
        ),
        (
            {"state_dict": tensors(ARRAYS), "args": argparse.Namespace(model="test_vit", bce_loss=True)}, VIT,
            "x.pth says bce_loss.*--activation sigmoid",
        ),
        (
            {"vit.embeddings.patch_embeddings.projection.weight": torch.ones(8, 3, 4, 4)}, VIT,
            "transformers' names.*config.json",
        ),
        (
            {"0.weight": torch.ones(8, 3)}, VIT,
            r"expected 'patch_embed.proj.weight' .* and \d+ more; the file has '0.weight' \[8, 3\].*--factory",
        ),
        ({"epoch": 3}, VIT, "holds no state dict"),
        ([tensors(ARRAYS)], VIT, "holds no state dict"),
    ],
    ids=range(18),
)  # fmt: skip
def test_what_does_not_fit_is_shown(content: object, choice: Choice, words: str, tmp_path: Path) -> None:
    with pytest.raises(VitedgeError, match=words.replace(".*", r"[\s\S]*")) as refusal:
        mappings.read_published(saved(content, tmp_path), choice=choice)
    assert refusal.value.exit_code in (2, 3)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    for name, words in (("page.pth", "neither a zip archive nor a pickle"), ("empty.ckpt", "neither a zip")):
        with pytest.raises(ModelError, match=words):
            mappings.read_published(tmp_path / name, choice=VIT)
    (tmp_path / "page.pth").rename(tmp_path / "model_best.pth")
    with pytest.raises(ModelError, match=r"has neither .* nor pytorch_model.bin; it has empty.ckpt, model_best.pth"):
        vitedge.import_model(tmp_path, tmp_path / "model", arch="test_vit")


def test_tensors_that_share_a_storage_cannot_fill_the_memory(tmp_path: Path) -> None:
    """A hundred thousand blocks of one storage."""
    block = torch.ones(1 << 20)
    content = {"patch_embed.proj.weight": torch.ones(8, 3, 4, 4)} | {f"blocks.{index}.w": block for index in range(40)}
    with pytest.raises(ModelError, match="41 tensors need 160 MiB, far more than the file has"):
        mappings.read_published(saved(content, tmp_path), choice=VIT)


# --- the whole import ------------------------------------------------------------------------------------------------


def test_the_command_and_python_do_the_same(tmp_path: Path) -> None:
    path = two_models(tmp_path)
    command = ["import", path, "--arch", "test_vit", "--num-classes", CLASSES, "--img-size", 96, "--use-ema"]
    done = run_command(*command, "--out", tmp_path / "a", "--json", "-")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)
    made = vitedge.import_model(path, tmp_path / "b", arch="test_vit", num_classes=CLASSES, size=(96, 96), use_ema=True)
    paths = {"model": "", "class_names": ""}
    assert {**row, **paths} == json.loads(json.dumps({**summary(made), **paths}))
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()
    assert row["weights"] == "state_dict_ema; also there: state_dict.module (--weights-key)"
    assert row["preprocessing_defaults"] == (
        "crop fraction 0.95, interpolation bicubic, mean 0.5,0.5,0.5, resize shortest, std 0.5,0.5,0.5 "
        "(timm's for test_vit)"
    )
    assert row["position_embedding"] == "resized from 10×10 to 6×6 patches" and row["relative_difference"] < 1e-4


def test_torch_is_not_needed(tmp_path: Path) -> None:
    code = f"""import sys; sys.modules["torch"] = None
import vitedge; print(vitedge.import_model({str(CHECKPOINT)!r}, {str(tmp_path / "model")!r}).record.name)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "vit_base_patch8_224\n", done.stderr


def test_safetensors_without_a_configuration(tmp_path: Path) -> None:
    """As timm's clean_checkpoint.py writes them."""
    save_file(ARRAYS, tmp_path / "clean.safetensors")
    record = vitedge.import_model(tmp_path / "clean.safetensors", tmp_path / "model", arch="test_vit").record
    assert record.origin.kind == "timm" and record.architecture == TEST_VIT


def test_choices_that_nothing_would_heed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--arch and --use-ema belong to a checkpoint of training, not to this source"):
        vitedge.import_model("embedded", tmp_path / "model", arch="test_vit", use_ema=True)
    with pytest.raises(UsageError, match="--num-classes belongs to a checkpoint of training, not to a factory's"):
        vitedge.import_model(None, tmp_path / "model", factory="a:b", num_classes=5)


def test_two_ways_to_choose_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both choose"):
        vitedge.import_model(CHECKPOINT, tmp_path / "model", use_ema=True, weights_key="state_dict")
