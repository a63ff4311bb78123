"""The C++ programs of ``examples/cpp``: built with CMake, held against vitedge's own answers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

import vitedge
from tests.conftest import ROOT
from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.artifact import Artifact

SOURCES = ROOT / "examples/cpp"
HEADERS = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("g++") is None, reason="cmake or g++ isn't installed"
)


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def preprocess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("cpp") / "preprocess"
    source = Path(__file__).with_name("preprocess.cpp")
    run("g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", source, "-o", program)
    return program


CONTRACTS = {
    "squash": Preprocessing(size=(32, 48), resize="squash", interpolation="bilinear"),
    "shortest": Preprocessing(size=(40, 40), interpolation="bicubic", crop_fraction=0.875),
    "shortest of an oblong": Preprocessing(
        size=(40, 24), interpolation="lanczos", crop_fraction=0.9, crop_rounding="round"
    ),
    "pad": Preprocessing(size=(33, 47), resize="pad", interpolation="box", fill=(9, 99, 199), crop_offset="floor"),
    "hamming": Preprocessing(size=(31, 31), interpolation="hamming", crop_fraction=0.8, crop_rounding="ceil"),
}


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("size", [(64, 48), (31, 90), (20, 17), (300, 33)])
def test_pictures_are_prepared_bit_for_bit(preprocess: Path, tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    contract = CONTRACTS[name]
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.ppm")
    (tmp_path / "contract.json").write_bytes(msgspec.json.encode(contract))
    run(preprocess, tmp_path / "contract.json", tmp_path / "picture.ppm", tmp_path / "out.rgb")
    found = np.frombuffer((tmp_path / "out.rgb").read_bytes(), np.uint8).reshape(*contract.size, 3)
    np.testing.assert_array_equal(found, contract.apply(pixels))


def test_what_the_program_cannot_do_is_refused(preprocess: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.ppm")
    for change in ({"interpolation": "nearest"}, {"antialias": False}):
        contract = msgspec.structs.replace(CONTRACTS["squash"], **change)
        (tmp_path / "contract.json").write_bytes(msgspec.json.encode(contract))
        command = [preprocess, tmp_path / "contract.json", tmp_path / "picture.ppm", tmp_path / "out.rgb"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and "this program has no" in done.stderr


def library(runtime: str, folder: Path) -> list[str]:
    """CMake's arguments for a runtime; skips where its headers aren't here. ``folder`` is for a link."""
    if runtime == "openvino":
        openvino = pytest.importorskip("openvino", reason="the extra openvino isn't installed")
        cmake = Path(openvino.__file__).parent / "cmake"
        if not cmake.is_dir():
            pytest.skip("this OpenVINO comes without headers")
        return [f"-DOpenVINO_DIR={cmake}"]
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnxruntime isn't installed")
    includes = [folder for folder in HEADERS if (Path(folder) / "onnxruntime_cxx_api.h").is_file()]
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not includes or not libraries:
        pytest.skip("ONNX Runtime's headers aren't here: set ONNXRUNTIME_INCLUDE, or install libonnxruntime-dev")
    link = folder / "libonnxruntime.so.1"  # what the wheel's library calls itself, which isn't its file's name
    link.symlink_to(libraries[0])
    return [f"-DONNXRUNTIME_INCLUDE={includes[0]}", f"-DONNXRUNTIME_LIBRARY={link}"]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_program_answers_as_the_session_does(
    runtime: str, small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    found = library(runtime, tmp_path)
    artifact = vitedge.export(small_model, runtime, "fp32", tmp_path / "artifact")
    run("cmake", "-S", SOURCES, "-B", tmp_path / "build", "-DCMAKE_BUILD_TYPE=Debug", *found)
    run("cmake", "--build", tmp_path / "build", "--target", f"classify_{runtime}")
    for number, path in enumerate(sorted(small_data.rglob("*.png"))[::9]):
        picture = Image.open(path).convert("RGB")
        picture.save(tmp_path / f"{number}.ppm")
        said = run(
            tmp_path / "build" / f"classify_{runtime}",
            artifact.graph_path,
            tmp_path / f"{number}.ppm",
            *options(artifact),
        )
        answers = [line.split(" ", 1) for line in said.splitlines()]
        with vitedge.open(artifact, threads=1) as session:
            expected = session.classify(picture)
        assert [label for _, label in answers] == [answer.label for answer in expected]
        np.testing.assert_allclose(
            [float(value) for value, _ in answers], [answer.probability for answer in expected], atol=1e-5
        )


def options(artifact: Artifact) -> list[str]:
    """The manifest's runtime options as the programs take them."""
    wanted = artifact.manifest.runtime_options
    if artifact.manifest.target.runtime == "openvino":
        return [f"{key}={value}" for key, value in wanted.items()]
    return [f"{key}={int(value)}" for key, value in wanted.items() if "." in key]
