"""`vitedge import --factory`: a user's own torch module, its weights, and whatever is wrong with them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.graph.test_author import run
from tests.graph.vits import MEAN, STD, random_images, tiny
from vitedge.errors import ModelError, UsageError, VitedgeError
from vitedge.graph import surgery
from vitedge.graph.state_dicts import Choice
from vitedge.importing.entry import import_model
from vitedge.importing.factory import _export, chosen_source
from vitedge.training import factory as torch_modules
from vitedge.training.factory import Factory

torch = pytest.importorskip("torch", reason="a factory makes a torch module")
pytest.importorskip("onnxscript", reason="torch's exporter works with onnxscript")

from torch import nn  # noqa: E402

from tests.graph.networks import Folded, Rows, Windows, randomised  # noqa: E402

CONTRACT = {"size": (32, 48), "mean": MEAN, "std": STD, "resize": "squash"}
ROOT = Path(__file__).resolve().parent.parent.parent


def rows() -> nn.Module:
    torch.manual_seed(2)
    return randomised(Rows()).train()


def windows() -> nn.Module:
    torch.manual_seed(2)
    return Windows().half()


def folded() -> nn.Module:
    """As timm makes them: it says how pictures are prepared."""
    torch.manual_seed(2)
    module = randomised(Folded())
    module.pretrained_cfg = {
        "input_size": (3, 32, 48), "mean": MEAN, "std": STD, "crop_pct": 0.9, "interpolation": "bicubic",
        "crop_mode": "squash",
    }  # fmt: skip
    return module


class Answer:
    """What Hugging Face's models return."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


torch.utils._pytree.register_pytree_node(Answer, lambda x: ([x.logits], None), lambda x, _: Answer(*x))


class Answering(nn.Module):
    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.answer = nn.Linear(32 * 48 * 3, 5), answer

    def forward(self, pixels: torch.Tensor) -> Any:
        return self.answer(self.layer(pixels.flatten(1)))


def answering() -> nn.Module:
    torch.manual_seed(3)
    return Answering(Answer)


def listing() -> nn.Module:
    return Answering(lambda logits: [logits])


def maps() -> nn.Module:
    return nn.Conv2d(3, 4, 8, 8)


def raising() -> nn.Module:
    raise RuntimeError("no weights here")


def number() -> int:
    return 7


def quitting() -> nn.Module:
    sys.exit(3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(random_images(tiny(), 3)):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def named(function: Callable[[], Any], **options: Any) -> Factory:
    return Factory(f"{__name__}:{function.__name__}", **options)


def torch_logits(module: nn.Module) -> np.ndarray:
    images = random_images(tiny(), 3)
    pixels = ((torch.from_numpy(images) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found = module.float().eval()(pixels)
        return getattr(found, "logits", found).numpy()


@pytest.mark.parametrize(
    ("function", "given", "layers"),
    [
        (rows, CONTRACT, 4),
        pytest.param(folded, {"crop_fraction": 1.0}, 9, marks=pytest.mark.slow),
        pytest.param(windows, CONTRACT, 5, marks=pytest.mark.slow),
        pytest.param(answering, CONTRACT, 1, marks=pytest.mark.slow),
    ],
)
def test_a_module_becomes_a_model(
    function: Callable[[], nn.Module], given: dict[str, Any], layers: int, tmp_path: Path, pictures: Path
) -> None:
    model = import_model(named(function), tmp_path / "model", images=pictures, preprocessing=given)
    record, graph = model.record, onnx.load(model.onnx_path)
    assert (record.origin.kind, record.name) == ("factory", function.__name__)
    assert record.origin.details["factory"] == f"{__name__}:{function.__name__}"
    assert record.origin.details["torch"] == torch.__version__
    parity = record.origin.parity
    assert parity is not None and parity.images == 3 and parity.relative <= 1e-5
    assert parity.reference == f"the module in torch {torch.__version__}"
    assert record.preprocessing.size == (32, 48) and record.preprocessing.resize == "squash"
    expected = torch_logits(function())
    assert np.abs(run(graph, random_images(tiny(), 3)) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert surgery.batch_size(graph) is None and len(surgery.linear_layers(graph)) == layers


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("no_such_package:thing", UsageError, "no module 'no_such_package' in this folder"),
        (f"{__name__}:nobody", UsageError, "has no 'nobody'"),
        (f"{__name__}:windowss", UsageError, "the nearest is 'windows'"),
        (f"{__name__}:CONTRACT", UsageError, "is dict, not a function"),
        ("nothing", UsageError, "isn't package.module:function"),
        ("a;b:c", UsageError, "isn't package.module:function"),
        (f"{__name__}:raising", ModelError, r"RuntimeError: no weights here \(test_factory.py, line \d+\)"),
        (f"{__name__}:number", ModelError, "returned int, not a torch.nn.Module"),
    ],
)
def test_a_factory_that_is_none(name: str, kind: type[VitedgeError], text: str) -> None:
    with pytest.raises(kind, match=text) as refusal:
        torch_modules.build(Factory(name), "test")
    assert refusal.value.exit_code == (2 if kind is UsageError else 3)


def test_a_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("import vitedge\n1 / 0\n")
    (tmp_path / "lacking_module.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ModelError, match=r"ZeroDivisionError: .*\(broken_module.py, line 2\)"):
        torch_modules.build(Factory("broken_module:make"), "test")
    with pytest.raises(ModelError, match=r"no_such_package_at_all.*\(lacking_module.py, line 1\)"):
        torch_modules.build(Factory("lacking_module:make"), "test")


@pytest.mark.parametrize(
    ("function", "size", "text"),
    [
        (listing, (32, 48), "the module returns list; a tensor of logits"),
        (maps, (32, 48), r"gives \[1, 4, 4, 6\] for one picture"),
        (answering, (64, 48), r"can't take float32 \[1, 3, 64, 48\]: \S"),
    ],
)
def test_a_module_that_does_not_classify(function: Callable[[], nn.Module], size: tuple[int, int], text: str) -> None:
    pixels = np.zeros((1, 3, *size), np.float32)
    with pytest.raises(ModelError, match=text):
        torch_modules.logits(torch_modules.build(named(function), "test")[0], pixels, "test")


def test_a_factory_that_ends_the_process(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ModelError, match="could not be built or exported: SystemExit: 3"):
        import_model(named(quitting), tmp_path / "model", images=pictures, preprocessing=CONTRACT)
    assert not (tmp_path / "model").exists()


def test_preprocessing_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a torch module doesn't say .*; --size, --mean, --std is missing"):
        _export(named(rows), {}, None, tmp_path / "module.onnx", "test", Choice())


def test_a_module_of_timm_tells_its_preprocessing() -> None:
    declared, defaults = torch_modules.declared_preprocessing(folded(), {}, "test")
    assert defaults == {}
    assert declared == {
        "size": (32, 48), "mean": MEAN, "std": STD, "crop_fraction": 0.9, "interpolation": "bicubic",
        "resize": "squash", "crop_rounding": "floor",
    }  # fmt: skip
    assert torch_modules.declared_preprocessing(rows(), {}, "test") == ({}, {})


def test_a_module_of_timm_is_prepared_as_timm_does() -> None:
    module = folded()
    module.pretrained_cfg = {"mean": MEAN, "std": STD, "crop_mode": "border", "crop_pct": 1.0}
    declared, defaults = torch_modules.declared_preprocessing(module, {}, "test")
    assert declared["resize"] == "pad" and declared["fill"] == tuple(round(255 * value) for value in MEAN)
    assert defaults == {"from": "timm", "size": (224, 224), "interpolation": "bicubic"}
    module.pretrained_cfg["crop_pct"] = 0.9
    with pytest.raises(UsageError, match="missing: --crop-fraction"):
        torch_modules.declared_preprocessing(module, {}, "test")
    assert torch_modules.declared_preprocessing(module, {"crop_fraction": 1.0}, "test")[0]["resize"] == "pad"


class Harm:
    """A pickle that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_weights_are_loaded(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(9)
    state = Rows().state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": values for name, values in state.items()}}, tmp_path / "n.ckpt"
    )
    for file in ("plain.safetensors", "plain.pt", "n.ckpt"):
        module, loaded = torch_modules.build(named(rows, weights=tmp_path / file), "test")
        assert not module.training and loaded.get("weights") == ("state_dict.module" if file == "n.ckpt" else None)
        for name, values in module.state_dict().items():
            assert torch.equal(values, state[name]), (file, name)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state = Rows().state_dict()
    cases = {
        "missing": ({name: values for name, values in state.items() if name != "head.bias"}, r"no 'head.bias' \[5\]"),
        "more": ({**state, "tail.weight": torch.zeros(2)}, r"'tail.weight' \[2\], which the module doesn't"),
        "shape": ({**state, "head.bias": torch.zeros(7)}, r"'head.bias': expected \[5\], shape.pt has \[7\]"),
        "two": ({"student": state, "teacher": state}, "holds 2 models: student, teacher"),
        "none": ({"epoch": 3}, "holds no state dict"),
        "list": ([1, 2], "holds no state dict"),
    }
    for name, (content, text) in cases.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(ModelError, match=text):
            torch_modules.build(named(rows, weights=tmp_path / f"{name}.pt"), "test")


def test_pickles_run_nothing(tmp_path: Path) -> None:
    target = tmp_path / "harmed"
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Harm(target)))
    torch.save({"layer": Harm(target)}, tmp_path / "zip.pt")
    torch.save(Rows(), tmp_path / "whole.pth")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "zip.pt").read_bytes()[:300])
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 40)
    for file in ("plain.pkl", "zip.pt", "whole.pth", "cut.pt", "empty.bin", "bad.safetensors"):
        with pytest.raises(ModelError, match=r"isn't a sound|an object of|not a sound safetensors") as refusal:
            torch_modules.build(named(rows, weights=tmp_path / file), "test")
        assert refusal.value.exit_code == 3 and not target.exists()


def test_weights_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"weights ending in '\.npz' aren't supported"):
        named(rows, weights=tmp_path / "weights.npz").check("test")
    with pytest.raises(UsageError, match="there are no weights"):
        named(rows, weights=tmp_path / "none.pt").check("test")


def test_a_command_line_names_one_source() -> None:
    assert chosen_source("model.onnx", None, None) == "model.onnx"
    assert chosen_source(None, "a.b:c", Path("w.pt")) == Factory("a.b:c", Path("w.pt"))
    for arguments, text in (
        ((None, None, None), "neither a source nor a factory"),
        (("model.onnx", "a.b:c", None), "a source was given too"),
        (("model.onnx", None, Path("w.pt")), "belong to --factory"),
    ):
        with pytest.raises(UsageError, match=text):
            chosen_source(*arguments)


def test_the_command_finds_a_module_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text("def small():\n    return 'not yet'\n")
    command = [sys.executable, "-m", "vitedge", "import", "--factory", "my_models:small", "--size", "32"]
    command += ["--mean", "0,0,0", "--std", "1,1,1", "--out", str(tmp_path / "model")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 3 and "my_models:small returned str" in done.stderr and "Traceback" not in done.stderr
