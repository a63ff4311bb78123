"""The readers of this machine, on copies of other machines' files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device import machines
from vitedge.device import clocks, cuda, hardware


def test_raspberry_pi_5(tmp_path: Path) -> None:
    root = machines.raspberry_pi_5(tmp_path)
    processor = hardware.processor(root)
    assert (processor.model, processor.architecture) == ("Cortex-A76", "aarch64")
    assert processor.isa == ("neon", "fp16", "dotprod")
    assert (processor.logical_cores, processor.physical_cores, processor.allowed_cores) == (4, 4, 4)
    assert (processor.governor, processor.max_mhz, processor.quota_cores) == ("ondemand", 2400, None)
    assert hardware.memory(root) == hardware.Memory(total_mb=4056, available_mb=3515, swap_mb=511, limited=False)
    board = hardware.board(root)
    assert (board.model, board.os) == ("Raspberry Pi 5 Model B Rev 1.0", "Debian GNU/Linux 13 (trixie)")
    assert (board.kernel, board.l4t, board.jetpack) == ("6.12.34+rpt-rpi-2712", None, None)
    assert hardware.gpus(root) == []


def test_cameras_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    first, second = hardware.cameras(machines.raspberry_pi_5(tmp_path))
    assert (first.device, first.name) == ("/dev/video0", "rp1-cfe-csi2_ch0")
    assert first.by_id == "/dev/v4l/by-id/usb-046d_HD_Webcam-video-index0"
    assert (second.device, second.name, second.by_id) == ("/dev/video19", "rpi-hevc-dec", None)
    assert first.captures is None and first.problem  # an ordinary file can't be asked


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every device")
def test_a_camera_without_permission_says_so(tmp_path: Path) -> None:
    root = machines.raspberry_pi_5(tmp_path)
    (root / "dev/video0").chmod(0)
    assert hardware.cameras(root)[0].problem == os.strerror(errno.EACCES)


def test_jetson_orin_nano(tmp_path: Path) -> None:
    root = machines.jetson_orin_nano(tmp_path)
    board = hardware.board(root)
    assert (board.l4t, board.jetpack) == ("36.4.3", "6.2")
    assert board.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert hardware.processor(root).model == "Cortex-A78AE"
    assert (hardware.processor(root).logical_cores, hardware.processor(root).allowed_cores) == (6, 4)
    (gpu,) = hardware.gpus(root)
    assert (gpu.name, gpu.compute_capability, gpu.memory_mb) == ("Orin, integrated", "8.7", None)


def test_power_mode_and_clocks_of_a_jetson(tmp_path: Path) -> None:
    root = machines.jetson_orin_nano(tmp_path)
    assert clocks.power_mode(root) == "25W (1 of 15W, 25W, MAXN_SUPER, 7W)"
    found = clocks.clocks(root)
    assert found.processor == clocks.Clock(now_mhz=729, least_mhz=729, most_mhz=1344, able_mhz=1728)
    assert found.gpu == clocks.Clock(now_mhz=306, least_mhz=306, most_mhz=918, able_mhz=1020)
    assert not found.locked
    for file in ("sys/class/devfreq/17000000.gpu/min_freq", "sys/class/devfreq/17000000.gpu/cur_freq"):
        (root / file).write_text("918000000\n")
    (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq").write_text("1344000\n")
    assert clocks.clocks(root).locked
    (root / "etc/nvpmodel.conf").unlink()
    assert clocks.power_mode(root) == "1"


def test_clocks_that_cant_be_read(tmp_path: Path) -> None:
    assert clocks.clocks(tmp_path) == clocks.Clocks(processor=None, gpu=None)
    assert not clocks.clocks(tmp_path).locked and clocks.power_mode(tmp_path) is None
    thor = tmp_path / "sys/class/devfreq/gpu-gpc-0"
    thor.mkdir(parents=True)
    (thor / "max_freq").write_text("1575000000")
    assert clocks.clocks(tmp_path).gpu == clocks.Clock(now_mhz=None, least_mhz=None, most_mhz=1575)


@pytest.mark.parametrize(
    ("machine", "l4t", "jetpack", "sm", "served"),
    [
        (machines.jetson_orin_nano, "36.4.3", "6.2", "8.7", (12,)),
        (machines.jetson_thor, "38.2.0", "7.0", "11.0", (13, 12)),
        (machines.jetson_agx_orin, "39.2.1", "7.2.1", "8.7", (13, 12)),
    ],
)
def test_jetson_linux_36_38_and_39(
    machine: Callable[[Path], Path], l4t: str, jetpack: str, sm: str, served: tuple[int, ...], tmp_path: Path
) -> None:
    root = machine(tmp_path)
    board, gpus = hardware.board(root), hardware.gpus(root)
    assert (board.l4t, board.jetpack) == (l4t, jetpack)
    assert [gpu.compute_capability for gpu in gpus] == [sm]
    assert cuda.served(gpus, board) == served


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("R36 (release), REVISION: 4.3", "36.4.3", "6.2"),
        ("R36 (release), REVISION: 4.7", "36.4.7", "6"),  # not in the list
        ("R36 (release), REVISION: 5.0", "36.5.0", "6.2.2"),
        ("R38 (release), REVISION: 4.0", "38.4.0", "7.1"),
        ("R39 (release), REVISION: 2.0", "39.2.0", "7.2"),
        ("R39 (release), REVISION: 9.0", "39.9.0", "7"),
        ("R99 (release), REVISION: 1.0", "99.1.0", None),
    ],
)
def test_jetpack_from_l4t_where_its_package_is_not_installed(
    release: str, l4t: str, jetpack: str | None, tmp_path: Path
) -> None:
    root = machines.jetson_orin_nano(tmp_path)
    (root / "var/lib/dpkg/status").unlink()
    (root / "etc/nv_tegra_release").write_text(f"# {release}, GCID: 1\n")
    assert (hardware.board(root).l4t, hardware.board(root).jetpack) == (l4t, jetpack)


@pytest.mark.parametrize(
    ("driver", "served"),
    [
        ("580.65.06", (13, 12)),
        ("595.1", (13, 12)),
        ("579.99", (12,)),
        ("535.54", (12,)),
        ("525.6", ()),
        (None, None),
    ],
)
def test_which_cuda_a_driver_serves(driver: str | None, served: tuple[int, ...] | None, tmp_path: Path) -> None:
    gpu = hardware.Gpu(name="RTX", compute_capability="8.9", memory_mb=None, driver=driver)
    assert cuda.served([gpu], hardware.board(tmp_path)) == served
    assert cuda.served([], hardware.board(tmp_path)) is None


def test_intel_n100(tmp_path: Path) -> None:
    root = machines.intel_n100(tmp_path)
    processor = hardware.processor(root)
    assert (processor.model, processor.architecture) == ("Intel(R) N100", "x86_64")
    assert processor.isa == ("avx2", "avx_vnni")
    assert (processor.governor, processor.max_mhz) == ("powersave", 3400)
    assert hardware.board(root).model == "Beelink MINI S12"


def test_a_container_limits_cores_and_memory(tmp_path: Path) -> None:
    root = machines.epyc_in_a_container(tmp_path)
    processor = hardware.processor(root)
    assert processor.model == "AMD EPYC 9354P 32-Core"
    assert processor.isa == ("avx2", "avx512_vnni", "avx512_bf16")
    assert (processor.logical_cores, processor.physical_cores, processor.allowed_cores) == (8, 4, 3)
    assert processor.quota_cores == 1.5
    memory = hardware.memory(root)
    assert (memory.total_mb, memory.available_mb, memory.limited) == (2048, 1024 + 256, True)
    assert hardware.board(root).model is None  # fillers aren't a name


def test_control_groups_version_2(tmp_path: Path) -> None:
    root = machines.raspberry_pi_5(tmp_path)
    scope = root / "sys/fs/cgroup/user.slice"
    (scope / "cpu.max").write_text("50000 100000\n")
    (scope / "memory.max").write_text(f"{1 << 30}\n")
    (scope / "memory.current").write_text(f"{1 << 29}\n")
    assert hardware.processor(root).quota_cores == 0.5
    assert hardware.memory(root) == hardware.Memory(total_mb=1024, available_mb=512, swap_mb=511, limited=True)


def test_nothing_readable_is_unknown_everywhere(tmp_path: Path) -> None:
    processor = hardware.processor(tmp_path)
    assert (processor.model, processor.isa, processor.physical_cores, processor.quota_cores) == (None,) * 4
    assert hardware.memory(tmp_path) == hardware.Memory(total_mb=None, available_mb=None, swap_mb=None, limited=False)
    assert hardware.board(tmp_path) == hardware.Board(model=None, os=None, kernel=None, l4t=None, jetpack=None)
    assert (hardware.gpus(tmp_path), hardware.cameras(tmp_path)) == ([], [])


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(["cpuinfo", "meminfo", "self/status", "self/cgroup"]), st.binary(max_size=200)))
def test_no_content_raises(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    root = tmp_path_factory.mktemp("root")
    for name, content in files.items():
        (root / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "proc" / name).write_bytes(content)
    hardware.processor(root), hardware.memory(root), hardware.board(root), hardware.gpus(root)


def test_a_control_group_path_cannot_leave_its_tree(tmp_path: Path) -> None:
    root = machines.write(
        tmp_path / "root",
        {"proc/self/cgroup": "0::/../../outside\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
    )
    machines.write(tmp_path, {"root/sys/outside/cpu.max": "1000 100000\n"})
    assert hardware.processor(root).quota_cores is None


def test_nvidia_smi() -> None:
    table = "NVIDIA H200, 9.0, 143771, 580.65.06\nOrin (nvgpu), 8.7, [N/A], 540.4.0\nbroken line\n, , ,\n"
    discrete, integrated = hardware.parse_nvidia_smi(table)
    assert discrete == hardware.Gpu(name="NVIDIA H200", compute_capability="9.0", memory_mb=143771, driver="580.65.06")
    assert (integrated.name, integrated.memory_mb) == ("Orin (nvgpu)", None)


def test_a_failing_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert hardware.gpus() == []
    tool.write_text("#!/bin/sh\necho 'NVIDIA RTX A2000, 8.6, 6138, 550.1'\n")
    assert [gpu.name for gpu in hardware.gpus()] == ["NVIDIA RTX A2000"]


def test_this_machine_is_known() -> None:
    processor = hardware.processor()
    assert processor.logical_cores and processor.allowed_cores and processor.architecture
    assert hardware.memory().total_mb
