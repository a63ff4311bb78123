"""What a machine can run: targets held against hardware and runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.device import machines
from vitedge import doctor
from vitedge.core import paths
from vitedge.core.schema import encode_json
from vitedge.device import hardware
from vitedge.doctor import RuntimeState, TargetState, fit
from vitedge.formats.target import load_target
from vitedge.reporting import terminal


def state(name: str, version: str | None, *devices: str, problem: str | None = None) -> RuntimeState:
    runs_on = dict.fromkeys(devices, True)
    return RuntimeState(name=name, extra=name, version=version, facts={}, runs_on=runs_on, problem=problem)


HERE = [
    state("onnxruntime", "1.31.1", "cpu"),
    state("openvino", "2026.4.1", "CPU"),
    state("tensorrt", "10.3.0", "cuda:0"),
    state("tensorrt_rtx", None),
]


RUNTIMES = [*HERE, state("null", "1", "null")]


def fits(name: str, root: Path, states: list[RuntimeState] = HERE) -> TargetState:
    return fit(load_target(name), hardware.processor(root), hardware.gpus(root), states)


def test_the_pi_runs_what_is_for_it(tmp_path: Path) -> None:
    root = machines.raspberry_pi_5(tmp_path)
    assert fits("raspberry-pi-5", root).runs
    assert fits("onnxruntime", root).runs
    assert fits("intel-n100", root).reasons == ("it's for x86_64; this machine is aarch64",)
    no_gpu = "no NVIDIA GPU with compute capability 8.7"
    assert fits("jetson-orin-nano", root, [state("tensorrt", None)]).reasons == (no_gpu, "tensorrt isn't installed")
    assert fits("jetson-orin-nano", root).runs  # the runtime sees a GPU that no other reader does


def test_the_orin_runs_its_own_target_and_not_thor_s(tmp_path: Path) -> None:
    root = machines.jetson_orin_nano(tmp_path)
    assert fits("jetson-orin-nano", root).runs
    assert fits("jetson-thor", root).reasons == (
        "no NVIDIA GPU with compute capability 11.0",
        "tensorrt 10.3.0 is older than 10.13",
    )


def test_the_doctor_on_a_jetson(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a copy of the board's files: the runtimes are those planted above."""
    monkeypatch.setattr(doctor, "runtime_state", lambda name, targets: next(s for s in RUNTIMES if s.name == name))
    found = doctor.examine(machines.jetson_orin_nano(tmp_path))
    assert found.power_mode == "25W (1 of 15W, 25W, MAXN_SUPER, 7W)"
    assert found.clocks is not None and found.clocks.gpu is not None and found.clocks.gpu.most_mhz == 918
    terminal.show_doctor(found)
    text = capsys.readouterr().out
    for said in (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "6.2 (L4T 36.4.3)",
        "25W (1 of 15W, 25W, MAXN_SUPER, 7W)",
        "processor 729 MHz of 1344, 1728 by its hardware; GPU 306 MHz of 918, 1020 by its hardware; not locked",
        "7,619 MiB, 5,087 MiB available, 3,809 MiB of swap",
        "Orin, integrated",
    ):
        assert said in text


def test_instructions_that_are_missing(tmp_path: Path) -> None:
    root = machines.intel_n100(tmp_path)
    assert fits("intel-n100", root).runs
    assert fits("x86-server", root).reasons == ("this CPU has no avx512_vnni",)


def test_runtimes_that_are_missing_or_broken(tmp_path: Path) -> None:
    root = machines.intel_n100(tmp_path)
    missing = [state("openvino", None), state("onnxruntime", "1.31", problem="ImportError: libonnx.so")]
    assert fits("intel-n100", root, missing).reasons == ("openvino isn't installed",)
    assert fits("onnxruntime", root, missing).reasons == ("onnxruntime is broken: ImportError: libonnx.so",)
    assert fits("intel-n100", root, [state("openvino", "2026.4")]).reasons == ("openvino finds no device CPU",)


def test_versions_compare_as_numbers() -> None:
    assert doctor.older("10.3", "10.13") and not doctor.older("10.13.2.6", "10.13")
    assert not doctor.older("2026.4.1-dev", "2026.4.1") and not doctor.older("1.31.1", "1.23")


def test_examine_on_a_pi_s_files(tmp_path: Path) -> None:
    found = doctor.examine(machines.raspberry_pi_5(tmp_path))
    assert found.board.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert {runtime.name for runtime in found.runtimes} >= {"null", "onnxruntime", "openvino", "tensorrt"}
    assert {target.name for target in found.targets} == set(paths.names("targets"))
    assert encode_json(found)


def test_a_runtime_whose_import_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    (broken / "openvino-2026.4.1.dist-info").mkdir(parents=True)
    (broken / "openvino-2026.4.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: openvino\nVersion: 1\n")
    (broken / "openvino.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.syspath_prepend(broken)
    found = doctor.runtime_state("openvino", [load_target("openvino")])
    assert found.version is None and "SIGSEGV" in str(found.problem)
    assert doctor.runtime_state("null", []).problem is None


def test_a_broken_target_file_is_a_finding() -> None:
    folder = paths.user_folder("targets")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / "broken.toml").write_text("summary = 1")
        good, (broken,) = doctor.readable_targets()
        assert "broken" not in {target.name for target in good} and len(good) > 5
        assert not broken.runs and "broken.toml" in broken.reasons[0]
    finally:
        (folder / "broken.toml").unlink()


def test_every_extra_is_known() -> None:
    import sys

    if sys.version_info < (3, 11):
        pytest.skip("tomllib is newer than this Python")
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"dev", "docs"}
    assert all(found.adds and found.install for found in doctor.extras())


def test_on_a_jetson_tensorrt_is_not_a_wheel() -> None:
    found = {extra.name: extra.install for extra in doctor.extras(on_jetson=True, served=(12,))}
    assert "pip" not in found["tensorrt-cu12"] and "JetPack" in found["tensorrt-cu12"]
    assert found["tensorrt-cu13"] == "not here: CUDA 13 takes driver 580 or newer"
    assert "pip" in found["tensorrt-rtx"]


@pytest.mark.parametrize(
    ("driver", "served", "said"),
    [
        ("580.65.06", (13, 12), "13 and 12, by driver 580.65.06: vitedge[tensorrt-cu13]"),
        ("550.1", (12,), "12, by driver 550.1: vitedge[tensorrt-cu12]"),
        ("470.82", (), "driver 470.82 is older than TensorRT takes"),
    ],
)
def test_which_of_the_extras_the_driver_takes(
    driver: str,
    served: tuple[int, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu = hardware.Gpu(name="NVIDIA RTX A2000", compute_capability="8.6", memory_mb=6138, driver=driver)
    monkeypatch.setattr(hardware, "gpus", lambda root=hardware.ROOT: [gpu])
    monkeypatch.setattr(doctor, "runtime_state", lambda name, targets: next(s for s in RUNTIMES if s.name == name))
    found = doctor.examine(machines.intel_n100(tmp_path))
    assert found.cuda == served
    refused = {extra.name for extra in found.extras if extra.install.startswith("not here")}
    assert refused == {name for name, major in doctor.CUDA_OF.items() if major not in served}
    terminal.show_doctor(found)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("version", "complete"), [("12.9.10", "tensorrt-cu12"), ("13.5.0", "tensorrt-cu13")])
def test_bindings_of_another_cuda_are_missing(
    version: str, complete: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "cuda"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "cuda_bindings-1.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: cuda-bindings\nVersion: {version}\n"
    (tmp_path / "cuda_bindings-1.dist-info/METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    missing = {extra.name: extra.missing for extra in doctor.extras()}
    other = ({"tensorrt-cu12", "tensorrt-cu13"} - {complete}).pop()
    assert missing[complete] == () and missing[other] == (f"cuda-bindings {doctor.CUDA_OF[other]}",)


def test_the_cache_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))
    assert (doctor.cache().mb, doctor.cache().files) == (0, 0)
    machines.write(tmp_path / "cache", {"statistics/a": "x" * 300_000, "b": "y" * 200_000})
    assert (doctor.cache().mb, doctor.cache().files) == (0.5, 2)
    assert doctor.cache().free_mb
