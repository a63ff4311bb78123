"""The built wheel in empty environments: what is inside, what the extras bring, and the demo outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("wheel")]


def _run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=environment)
    if check and done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("vitedge-*.whl"))


def _environment(folder: Path, wheel: Path, extra: str) -> Path:
    """The ``bin`` of a new environment that has the wheel with one extra, and nothing else."""
    venv.create(folder, with_pip=True, symlinks=True)
    _run(folder / "bin" / "pip", "install", "-q", f"{wheel}[{extra}]", cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="session")
def demo(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(bin of an environment with the demo extra, the demo's output folder, what it printed)."""
    folder = tmp_path_factory.mktemp("demo")
    binaries = _environment(folder / "venv", wheel, "demo")
    done = _run(binaries / "vitedge", "demo", "--out", folder / "out", cwd=folder)
    return binaries, folder / "out", done.stdout


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vitedge"}
    for needed in (
        "vitedge/py.typed",
        "vitedge/targets/jetson-orin-nano.toml",
        "vitedge/calibration/default.toml",
        "vitedge/calibration/cifar10-calibration.zip",
        "vitedge/calibration/cifar10-held-out.zip",
        "vitedge/calibration/cifar10-display.zip",
        "vitedge/embedded/model.safetensors",
        "vitedge/embedded/model.json",
    ):
        assert needed in names, needed
    weights = zipfile.ZipFile(wheel).getinfo("vitedge/embedded/model.safetensors").file_size
    assert weights <= 6_000_000
    assert sum(name.endswith(("LICENSE", "THIRD_PARTY.md")) for name in names) == 2


def test_demo_runs_outside_the_checkout_without_torch(demo: tuple[Path, Path, str]) -> None:
    binaries, out, printed = demo
    assert _run(binaries / "python", "-c", "import torch", cwd=out, check=False).returncode == 1
    for word in ("onnxruntime", "openvino", "tensorrt", "int8", "fp32"):
        assert word in printed
    result = json.loads((out / "result.json").read_text())
    assert result["rows"]
    assert (out / "report.html").stat().st_size < 5_000_000


def test_device_extra_is_small_and_sufficient(demo: tuple[Path, Path, str], wheel: Path, tmp_path: Path) -> None:
    """`vitedge[onnxruntime]` adds under 200 MB, and opens, benches, evaluates and classifies an artifact."""
    empty = tmp_path / "empty"
    venv.create(empty, with_pip=True, symlinks=True)
    binaries = _environment(tmp_path / "device", wheel, "onnxruntime")

    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())

    assert size(tmp_path / "device") - size(empty) < 200_000_000
    for package in ("onnx", "torch", "openvino", "safetensors"):
        assert _run(binaries / "python", "-c", f"import {package}", cwd=tmp_path, check=False).returncode == 1
    artifact = next(path for path in (demo[1] / "artifacts").iterdir() if path.name == "onnxruntime-int8")
    vitedge = binaries / "vitedge"
    picture = next((artifact / "golden").glob("*.png"))
    _run(vitedge, "verify", artifact, cwd=tmp_path)
    assert len(_run(vitedge, "classify", artifact, picture, cwd=tmp_path).stdout.splitlines()) >= 1
    evaluated = json.loads(_run(vitedge, "eval", artifact, "--data", "held-out", "--json", "-", cwd=tmp_path).stdout)
    assert evaluated["rows"][0]["accuracy"]
    benched = json.loads(
        _run(vitedge, "bench", artifact, "--duration", "1", "--warmup", "0.2", "--json", "-", cwd=tmp_path).stdout
    )
    assert benched["rows"][0]["latency"]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
@pytest.mark.parametrize("extra", ["onnxruntime", "openvino"])
def test_device_extras_resolve_for_aarch64(wheel: Path, tmp_path: Path, extra: str, python: str) -> None:
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (17, 24, 27, 28, 31, 34, 35)] + ["manylinux2014_aarch64"]
    options = [part for platform in platforms for part in ("--platform", platform)]
    report = tmp_path / "report.json"
    _run(
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"),
        *("--quiet", "--report", report),
        *("--python-version", python, "--implementation", "cp", "--target", tmp_path, *options, f"{wheel}[{extra}]"),
        cwd=tmp_path,
    )
    assert {extra, "vitedge"} <= {each["metadata"]["name"] for each in json.loads(report.read_text())["install"]}
