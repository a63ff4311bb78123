"""The built wheel in empty environments: what is inside, what the extras bring, and the demo outside the checkout."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(900)

#: .ci/newest installs the newest releases; else those that constraints.txt says.
NEWEST = "VITEDGE_NEWEST" in os.environ
CONSTRAINTS = () if NEWEST else ("-c", str(ROOT / "constraints.txt"))
#: What other projects decide: a device has to have it, however large it is.
OTHERS = ("numpy", "onnxruntime", "pillow", "protobuf", "flatbuffers", "packaging")


def _run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
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
    """The ``bin`` of a new environment that has the wheel with one extra, and nothing else, pip neither."""
    venv.create(folder, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    _run(*pip, "install", "-q", "--no-compile", *CONSTRAINTS, f"{wheel}[{extra}]", cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="session")
def demo(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(bin of an environment with the demo extra, the demo's output folder, what it printed)."""
    folder = tmp_path_factory.mktemp("demo")
    binaries = _environment(folder / "venv", wheel, "demo")
    done = _run(binaries / "vitedge", "demo", "--out", folder / "out", "--duration", "1", cwd=folder)
    return binaries, folder / "out", done.stdout


def _recommended(vitedge: Path, *arguments: str | Path, cwd: Path) -> list[str]:
    """The words of the command that an error of this installation recommends."""
    done = _run(vitedge, *arguments, cwd=cwd, check=False)
    assert done.returncode == 8, (done.stdout, done.stderr)
    return shlex.split(done.stderr.strip().splitlines()[-1].strip().removeprefix("run: "))


def _pip_takes(command: list[str], python: Path, cwd: Path) -> str:
    """What pip of this environment makes of the arguments of a recommended command; it installs nothing."""
    arguments = command[command.index("install") :]
    pip = (sys.executable, "-m", "pip", "--python", python)
    return _run(*pip, *arguments, "--dry-run", *CONSTRAINTS, cwd=cwd).stdout


def test_a_wheel_names_the_wheel_for_what_is_missing(wheel: Path, tmp_path: Path) -> None:
    binaries = _environment(tmp_path / "venv", wheel, "nvml")
    command = _recommended(binaries / "vitedge", "demo", cwd=tmp_path)
    assert command[-2:] == ["install", f"{wheel}[demo]"]
    assert "matplotlib" in _pip_takes(command, binaries / "python", tmp_path).split("Would install")[1]


def test_an_editable_checkout_names_the_checkout(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "-q", *CONSTRAINTS, "-e", ROOT, cwd=tmp_path)
    command = _recommended(python.with_name("vitedge"), "demo", cwd=tmp_path)
    assert command[-3:] == ["install", "-e", f"{ROOT}[demo]"]
    assert "matplotlib" in _pip_takes(command, python, tmp_path).split("Would install")[1]


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vitedge"}
    for needed in (
        "vitedge/py.typed",
        "vitedge/constraints.txt",
        "vitedge/targets/jetson-orin-nano.toml",
        "vitedge/calibration/default.toml",
        "vitedge/calibration/cifar10-calibration.zip",
        "vitedge/calibration/cifar10-held-out.zip",
        "vitedge/calibration/cifar10-display.zip",
        "vitedge/data/embedded/model.safetensors",
        "vitedge/data/embedded/model.json",
    ):
        assert needed in names, needed
    weights = zipfile.ZipFile(wheel).getinfo("vitedge/data/embedded/model.safetensors").file_size
    assert weights <= 6_000_000
    assert sum(name.endswith(("LICENSE", "THIRD_PARTY.md")) for name in names) == 2


def test_links_of_the_description_lead_somewhere_from_an_index(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    links = re.findall(r"\]\(([^)]+)\)", metadata)
    assert len(links) > 10 and [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "blob/main/docs/status.md" in metadata and "Description-Content-Type: text/markdown" in metadata


def test_demo_runs_outside_the_checkout_without_torch(demo: tuple[Path, Path, str]) -> None:
    binaries, out, printed = demo
    assert _run(binaries / "python", "-c", "import torch", cwd=out, check=False).returncode == 1
    for word in ("onnxruntime", "openvino", "tensorrt", "int8", "fp32"):
        assert word in printed
    result = json.loads((out / "result.json").read_text())
    assert result["rows"]
    assert (out / "report.html").stat().st_size < 5_000_000


def test_device_extra_is_small_and_sufficient(demo: tuple[Path, Path, str], wheel: Path, tmp_path: Path) -> None:
    """`vitedge[onnxruntime]` opens, benches, evaluates and classifies an artifact, and stays under 185 MB with it.

    Installed as docs/targets.md says, without compiling what no verb imports. What vitedge and the packages that it
    chooses add is bounded whatever the others weigh; these are bounded in the tested versions, where nothing changes.
    """
    binaries = _environment(tmp_path / "device", wheel, "onnxruntime")
    for package in ("onnx", "torch", "openvino", "safetensors"):
        assert _run(binaries / "python", "-c", f"import {package}", cwd=tmp_path, check=False).returncode == 1
    artifact = demo[1] / "artifacts" / "onnxruntime-int8"
    vitedge = binaries / "vitedge"
    picture = next((artifact / "golden").glob("*.png"))
    _run(vitedge, "doctor", cwd=tmp_path)
    _run(vitedge, "verify", artifact, cwd=tmp_path)
    assert len(_run(vitedge, "classify", artifact, picture, cwd=tmp_path).stdout.splitlines()) >= 1
    evaluated = json.loads(_run(vitedge, "eval", artifact, "--data", "held-out", "--json", "-", cwd=tmp_path).stdout)
    assert evaluated["rows"][0]["accuracy"]
    benched = json.loads(
        _run(vitedge, "bench", artifact, "--duration", "1", "--warmup", "0.2", "--json", "-", cwd=tmp_path).stdout
    )
    assert benched["rows"][0]["latency"]

    sizes = _sizes(tmp_path / "device")  # with the bytecode that the verbs left behind
    total, ours = sum(sizes.values()), sum(size for name, size in sizes.items() if name not in OTHERS)
    told = ", ".join(f"{name or 'other files'} {size / 1e6:.1f}" for name, size in sorted(sizes.items()))
    print(f"device install: {total / 1e6:.1f} MB: {told}")  # .ci/newest shows it
    assert ours < 22_000_000, told
    assert NEWEST or total < 185_000_000, told


def _sizes(environment: Path) -> dict[str, int]:
    """Bytes that every distribution of an environment takes, bytecode included; "" is what belongs to none."""
    (site,) = environment.glob("lib/python*/site-packages")
    sizes: dict[str, int] = {}
    seen: set[Path] = set()
    for distribution in distributions(path=[str(site)]):
        tops = {site / file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        files = {path for top in tops for path in ([top] if top.is_file() else top.rglob("*")) if path.is_file()} - seen
        sizes[distribution.metadata["Name"].lower()] = sum(path.stat().st_size for path in files)
        seen |= files
    everything = (path for path in environment.rglob("*") if path.is_file() and not path.is_symlink())
    sizes[""] = sum(path.stat().st_size for path in everything if path not in seen)
    return sizes


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
