"""`vitedge import`: every kind of source, labels, preprocessing, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tomli
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.conftest import ROOT
from tests.graph.test_author import relative, run
from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from vitedge.data import embedded
from vitedge.data.golden import golden_pictures
from vitedge.errors import InvalidResultError, ModelError, UsageError
from vitedge.formats.architecture import PatchStem, ViTConfig
from vitedge.formats.model_folder import Model, class_table
from vitedge.graph import mappings
from vitedge.graph.reference import reference_logits
from vitedge.importing.entry import import_model, summary
from vitedge.importing.labels import read_labels, recognise_imagenet
from vitedge.importing.options import ImportOptions, parse_size, parse_three
from vitedge.importing.proof import PICTURES

EXPORTS = Path(__file__).resolve().parent.parent / "graph" / "exports"
TINY_TIMM = tiny(embed_dim=192, num_heads=3, mlp_hidden=64, image_size=(32, 32), depth=1)
NORMALISATION = {"mean": MEAN, "std": STD}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, data in golden_pictures().items():
        (folder / Path(name).name).write_bytes(data)
    return folder


def timm_folder(
    folder: Path,
    config: ViTConfig = TINY_TIMM,
    *,
    architecture: str = "vit_tiny_patch8_32",
    arrays: dict[str, NDArray[Any]] | None = None,
    **changes: Any,
) -> Path:
    """A folder as timm publishes it."""
    folder.mkdir(parents=True, exist_ok=True)
    published = {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        "global_pool": config.pool,
        "pretrained_cfg": {
            "tag": "random_in1k",
            "custom_load": False,
            "input_size": [3, *config.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": list(MEAN),
            "std": list(STD),
            "num_classes": config.num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(published))
    save_file(random_arrays(config) if arrays is None else arrays, folder / "model.safetensors")
    return folder


TIMM_FAMILIES = {
    "vit_tiny_patch8_32": tiny(embed_dim=192),
    "deit_tiny_distilled_patch8_32": tiny(embed_dim=192, distillation_token=True),
    "deit3_small_patch8_32": tiny(
        embed_dim=384, num_heads=6, layer_scale=True, position_embedding_covers_prefix=False
    ),
    "vit_wee_patch8_reg1_gap_32": tiny(
        embed_dim=256, num_heads=4, class_token=False, register_tokens=1, pool="avg", final_norm="fc_norm",
        layer_scale=True, position_embedding_covers_prefix=False,
    ),
    "vit_medium_patch8_gap_32": tiny(
        embed_dim=512, num_heads=8, class_token=False, pool="avg", qkv_bias=False, layer_scale=True
    ),
    "vit_xsmall_patch8_clip_32": tiny(embed_dim=256, num_heads=4, pre_norm=True, layer_norm_eps=1e-5),
    "test_vit": tiny(embed_dim=64, num_heads=2),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM_FAMILIES)
def test_timm_families_are_derived_from_their_tensors(name: str, tmp_path: Path) -> None:
    config = TIMM_FAMILIES[name]
    checkpoint = mappings.read_timm(timm_folder(tmp_path, config, architecture=name))
    assert checkpoint.config == config
    assert checkpoint.preprocessing.mean == MEAN and checkpoint.preprocessing.crop_fraction == 0.9
    assert (checkpoint.licence, checkpoint.details["tag"]) == ("apache-2.0", "random_in1k")


def test_a_timm_folder_becomes_a_model(tmp_path: Path, pictures: Path) -> None:
    source = timm_folder(tmp_path / "timm")
    model = import_model(source, tmp_path / "model", images=pictures)
    record = Model.open(model.path).record
    parity = record.origin.parity
    assert parity is not None and parity.images == 6 and 0 < parity.relative <= 1e-5
    assert (record.origin.kind, record.licence, len(record.classes)) == ("timm", "apache-2.0", 7)
    assert record.architecture == TINY_TIMM
    images = random_images(TINY_TIMM, 3)
    expected = reference_logits(TINY_TIMM, random_arrays(TINY_TIMM), images, mean=MEAN, std=STD)
    assert relative(run(onnx.load(model.onnx_path), images), expected) <= 1e-5
    assert summary(model)["relative_difference"] == parity.relative


def test_the_weights_file_alone_finds_its_configuration(tmp_path: Path, pictures: Path) -> None:
    source = timm_folder(tmp_path / "timm")
    first = import_model(source, tmp_path / "a", images=pictures)
    second = import_model(source / "model.safetensors", tmp_path / "b", images=pictures)
    assert first.onnx_path.read_bytes() == second.onnx_path.read_bytes()


def test_half_precision_checkpoints(tmp_path: Path) -> None:
    halves = {name: values.astype(np.float16) for name, values in random_arrays(TINY_TIMM).items()}
    arrays = mappings.read_timm(timm_folder(tmp_path, arrays=halves)).arrays
    assert all(np.array_equal(arrays[name], halves[name]) for name in halves)


def test_bfloat16_becomes_float32_exactly(tmp_path: Path) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    values = np.asarray([[1.5, -3.0, 2.0**-120], [0.0, np.inf, 3.4e38]], np.float32).astype(bfloat16)
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    read = mappings.read_safetensors(tmp_path / "x.safetensors")["x"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float32))


def changed(**changes: Any) -> Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    return lambda arrays: {name: values for name, values in {**arrays, **changes}.items() if values is not None}


@pytest.mark.parametrize(
    ("architecture", "change", "config", "text"),
    [
        ("resnet50", {}, {}, "isn't a plain ViT or DeiT"),
        ("vit_relpos_small_patch16_224", {}, {}, r"known here \('relpos'\)"),
        ("vit_small_patch16_rope_224", {}, {}, r"'pos_embed' \[1, 17, 192\]: the configuration has no place"),
        ("vit_base_patch16_rpn_224", {}, {}, r"known here \('rpn'\)"),
        ("vit_base_patch32_clip_quickgelu_224", {}, {}, r"\('quickgelu'\)"),
        ("vit_tiny_patch8_32", {"head.weight": None, "head.bias": None}, {}, "no classification head"),
        ("vit_tiny_patch8_32", {}, {"num_classes": 10}, "says 10 classes and 'head.weight' has 7"),
        ("vit_tiny_patch8_32", {"blocks.0.norm1.bias": None}, {}, r"'blocks\.0\.norm1\.bias' is missing"),
        ("vit_tiny_patch8_32", {"attn_pool.q.weight": np.ones(3)}, {}, r"'attn_pool\.q\.weight' \[3\]"),
        (
            "vit_tiny_patch8_32",
            {"pos_embed": np.zeros((1, 63, 192), np.float32)},
            {},
            "'pos_embed': expected 16 or 17 positions for 32×32 pixels, or a square of patches, received 63",
        ),
        ("vit_tiny_patch8_32", {}, {"global_pool": "map"}, "pooling 'map' isn't offered"),
        ("vit_tiny_patch8_32", {}, {"model_args": {"norm_layer": "rmsnorm"}}, "'norm_layer', which isn't understood"),
        ("vit_tiny_patch8_32", {}, {"model_args": {"act_layer": "silu"}}, "'silu' isn't GELU"),
        ("vit_tiny_patch8_32", {}, {"model_args": {"img_size": 36}}, "aren't made of whole patches of 8×8"),
        ("vit_tiny_patch8_32", {}, {"label_names": ["a", "b"]}, "label_names has 2 names; the head has 7"),
        ("vit_tiny_patch8_32", {}, {"pretrained_cfg": {"input_size": [3, 32, 32], "mean": 0.5}}, "mean"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, architecture: str, change: dict[str, Any], config: dict[str, Any], text: str
) -> None:
    arrays = changed(**change)(random_arrays(TINY_TIMM))
    source = timm_folder(tmp_path / "timm", architecture=architecture, arrays=arrays, **config)
    with pytest.raises(ModelError, match=text) as refusal:
        import_model(source, tmp_path / "model")
    assert refusal.value.exit_code == 3 and not (tmp_path / "model").exists()


def test_heads_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    config = tiny(embed_dim=24)
    with pytest.raises(ModelError, match='add "num_heads" to model_args'):
        mappings.read_timm(timm_folder(tmp_path / "a", config))
    folder = timm_folder(tmp_path / "b", config, model_args={"num_heads": 3})
    assert mappings.read_timm(folder).config == config


def test_names_of_the_classes_come_along(tmp_path: Path, pictures: Path) -> None:
    keys = [f"n0{index}" for index in range(7)]
    descriptions = {key: f"thing {key}" for key in keys}
    source = timm_folder(tmp_path / "timm", label_names=keys, label_descriptions=descriptions)
    classes = import_model(source, tmp_path / "model", images=pictures).record.classes
    assert [(label.folder, label.name) for label in classes][:2] == [("n00", "thing n00"), ("n01", "thing n01")]


@pytest.mark.parametrize("name", ["dynamo-20", "legacy-17-dynamic", "hybrid-17"])
def test_an_onnx_file_becomes_a_model(name: str, tmp_path: Path, pictures: Path) -> None:
    options = {**NORMALISATION, "size": (32, 48)}
    source = EXPORTS / f"{name}.onnx"
    model = import_model(source, tmp_path / "model", images=pictures, preprocessing=options, labels=list("abcde"))
    record = model.record
    assert record.origin.parity is not None and record.origin.parity.relative <= 1e-5
    assert record.origin.details["authored"] is (name != "hybrid-17")
    assert [label.name for label in record.classes] == list("abcde")
    logits = np.load(EXPORTS / "logits.npz")[name]
    assert relative(run(onnx.load(model.onnx_path), random_images(tiny(), 3)), logits) <= 1e-4
    assert "Sigmoid" in record.origin.details.get("operators_left_alone", {}) or name != "hybrid-17"


def test_an_onnx_file_needs_its_preprocessing(tmp_path: Path, pictures: Path) -> None:
    source, out = EXPORTS / "dynamo-20.onnx", tmp_path / "model"
    with pytest.raises(UsageError, match="--mean, --std is missing"):
        import_model(source, out, images=pictures)
    with pytest.raises(ModelError, match=r"expected .*\[N, 3, 64, 64\].*received float \[1, 3, 32, 48\]") as refusal:
        import_model(source, out, images=pictures, preprocessing={**NORMALISATION, "size": (64, 64)})
    assert refusal.value.hint == "give its own size: --size 32x48"
    with pytest.raises(UsageError, match="the preprocessing is wrong"):
        import_model(source, out, images=pictures, preprocessing={**NORMALISATION, "resize": "stretch"})
    assert not out.exists()


def test_the_embedded_model(tmp_path: Path) -> None:
    if not (embedded.FOLDER / "model.json").exists():
        pytest.skip("the embedded model isn't in this checkout yet")
    model = import_model("embedded", tmp_path / "model")
    record = model.record
    assert record.origin.kind == "embedded" and record.origin.parity is not None
    assert record.origin.parity.images == PICTURES and record.origin.parity.relative <= 1e-5
    assert record.licence == tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    again = import_model(model.path, tmp_path / "again")
    assert again.record.origin.kind == "embedded"
    assert again.onnx_path.read_bytes() == model.onnx_path.read_bytes()


def test_worse_parity_than_allowed_writes_nothing(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitedge.graph import reference

    def other(*arguments: Any, **options: Any) -> NDArray[np.float64]:
        return reference_logits(*arguments, **options) * 1.01

    monkeypatch.setattr(reference, "reference_logits", other)
    with pytest.raises(InvalidResultError, match=r"differ from the source's by 9\.9e-03") as refusal:
        import_model(timm_folder(tmp_path / "timm"), tmp_path / "model", images=pictures)
    assert refusal.value.exit_code == 7 and not (tmp_path / "model").exists()


def test_weights_whose_logits_overflow_are_refused(tmp_path: Path, pictures: Path) -> None:
    arrays = random_arrays(TINY_TIMM)
    arrays["norm.weight"], arrays["head.weight"] = (
        arrays["norm.weight"] * 1000,
        arrays["head.weight"] * np.float32(1e38),
    )
    with pytest.raises(ModelError, match="NaN or infinite"):
        import_model(timm_folder(tmp_path / "timm", arrays=arrays), tmp_path / "model", images=pictures)


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.pth").write_bytes(b"\x80\x04cos\nsystem\n)R.")
    (tmp_path / "notes.txt").write_text("hello")
    for source, kind, text in (
        ("missing", UsageError, "no such file or folder"),
        ("empty", UsageError, "no known checkpoint"),
        ("model.pth", ModelError, "an object of 'os.system', which isn't read"),
        ("notes.txt", UsageError, r"files ending in '\.txt'"),
    ):
        with pytest.raises(kind, match=text):
            import_model(tmp_path / source, tmp_path / "model")


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    with pytest.raises(UsageError, match="already exists"):
        import_model(tmp_path / "missing", tmp_path / "model")


def test_labels_from_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    (tmp_path / "list.json").write_text('["cat", "dog", "bird"]')
    (tmp_path / "table.json").write_text('{"2": "bird", "0": "cat", "1": "dog"}')
    for source in (tmp_path / "names.txt", tmp_path / "list.json", tmp_path / "table.json", ["cat", "dog", "bird"]):
        assert [label.name for label in read_labels(source, 3, "test")] == ["cat", "dog", "bird"]
    for name in ("dog", "cat"):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(next(iter(EXPORTS.parent.glob("*.py"))), tmp_path / "data" / name / "1.png")
    assert [label.folder for label in read_labels(tmp_path / "data", 2, "test")] == ["cat", "dog"]


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "gap.json").write_text('{"0": "cat", "2": "bird"}')
    (tmp_path / "number.json").write_text("7")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="2 class names; the model has 3 classes"):
        read_labels(["a", "b"], 3, "test")
    with pytest.raises(ModelError, match="aren't 0, 1, 2"):
        read_labels(tmp_path / "gap.json", 2, "test")
    for name in ("number.json", "binary.txt"):
        with pytest.raises(ModelError, match="can't be read"):
            read_labels(tmp_path / name, 1, "test")
    with pytest.raises(UsageError, match="don't exist"):
        read_labels(tmp_path / "none.txt", 1, "test")


def test_imagenet_names_ship() -> None:
    table = read_labels("imagenet-1k", 1000, "test")
    assert (table[0].folder, table[0].name) == ("n01440764", "tench, Tinca tinca")
    assert len({label.folder for label in table}) == 1000 and [label.id for label in table] == list(range(1000))
    with pytest.raises(ModelError, match="imagenet-1k has 1000 class names; the model has 10"):
        read_labels("imagenet-1k", 10, "test")


def test_imagenet_is_recognised() -> None:
    known = read_labels("imagenet-1k", 1000, "test")
    assert recognise_imagenet(None, 1000, "augreg2_in21k_ft_in1k") == known
    assert recognise_imagenet(None, 1000, "mine") is None and recognise_imagenet(None, 21843, "in1k") is None
    spelt = class_table([label.name.split(",")[0] for label in known], [None] * 1000)
    found = recognise_imagenet(spelt, 1000, "")
    assert found is not None and (found[7].folder, found[7].name) == (known[7].folder, "cock")
    others = class_table([f"thing {index}" for index in range(1000)])
    assert recognise_imagenet(others, 1000, "") == others


def test_tables_of_id_folder_and_name(tmp_path: Path) -> None:
    rows = [{"id": 1, "folder": "n2", "name": "dog"}, {"id": 0, "folder": "n1", "name": "cat"}]
    (tmp_path / "table.json").write_text(json.dumps(rows))
    (tmp_path / "table.txt").write_text("n1\tcat\nn2\tdog\n")
    for name in ("table.json", "table.txt"):
        table = read_labels(tmp_path / name, 2, "test")
        assert [(label.id, label.folder, label.name) for label in table] == [(0, "n1", "cat"), (1, "n2", "dog")]
    (tmp_path / "twice.json").write_text(json.dumps([rows[0], rows[0]]))
    with pytest.raises(ModelError, match="aren't 0, 1, 2"):
        read_labels(tmp_path / "twice.json", 2, "test")
    for folder in ("n01440764", "n01443537"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "1.png").write_bytes(b"")
    names = [label.name for label in read_labels(tmp_path / "data", 2, "test")]
    assert names == ["tench, Tinca tinca", "goldfish, Carassius auratus"]


def test_command_line_spellings() -> None:
    options = ImportOptions(size=parse_size("224"), mean=(0.5, 0.5, 0.5), resize="pad")
    assert options.preprocessing == {"size": (224, 224), "mean": (0.5, 0.5, 0.5), "resize": "pad"}
    assert parse_size("192x256") == (192, 256)
    assert parse_three("0.5,0.5,0.5") == (0.5, 0.5, 0.5) and parse_three("0, 0,255") == (0, 0, 255)
    for text in ("large", "1x2x3"):
        with pytest.raises(UsageError, match="isn't HEIGHT or HEIGHTxWIDTH"):
            parse_size(text)
    for text in ("a,b,c", "1,2", "1,2,3,4"):
        with pytest.raises(UsageError, match="isn't three numbers"):
            parse_three(text)


def test_photographs(tmp_path: Path, photos: list[Path]) -> None:
    """Parity is measured on real photographs, from the file on."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos[:12]:
        (folder / path.name).symlink_to(path)
    config = tiny(embed_dim=192, image_size=(64, 64), stem=PatchStem(patch_size=16))
    source = timm_folder(tmp_path / "timm", config, architecture="vit_tiny_patch16_64")
    parity = import_model(source, tmp_path / "model", images=folder).record.origin.parity
    assert parity is not None and parity.images == 12 and parity.relative <= 1e-4
