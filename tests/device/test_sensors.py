"""The sensors on copies of other machines' trees: what's read, and that what can't be read stays unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarking.fakes import Clock
from vitedge.device import nvml, power
from vitedge.device.nvml import open_nvml
from vitedge.device.power import RaspberryPmic, pmic_watts
from vitedge.device.sensors import Sensors, raspberry_throttled, resident_bytes

INTEL = {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2900000",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "800000",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "7",
    "sys/class/thermal/thermal_zone0/type": "acpitz",
    "sys/class/thermal/thermal_zone0/temp": "27800",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone1/temp": "61000",
    "sys/class/hwmon/hwmon2/name": "coretemp",
    "sys/class/hwmon/hwmon2/temp1_input": "63000",
    "sys/class/hwmon/hwmon3/name": "nvme",
    "sys/class/hwmon/hwmon3/temp1_input": "99000",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000000",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "5",
    "sys/class/powercap/intel-rapl:1/name": "psys",
    "sys/class/powercap/intel-rapl:1/energy_uj": "77",
}
JETSON = {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48250",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "47500",
    "sys/class/devfreq/17000000.gpu/cur_freq": "624750000",
    "sys/class/hwmon/hwmon1/name": "soctherm_oc",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "0",
    "sys/class/hwmon/hwmon1/oc3_event_cnt": "12",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in1_label": "VDD_IN",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in1_input": "4920",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr1_input": "1500",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in2_input": "4920",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr2_input": "400",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in7_label": "Sum of shunt voltages",
}
RASPBERRY = {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "82300",
    "sys/devices/platform/soc@107c000000/soc:firmware/get_throttled": "50005",
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_intel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(power, "time", clock)
    found = Sensors(tree(tmp_path, INTEL))
    assert found.power_of == ("processor packages (RAPL)",)
    read = found.read
    first = read()
    assert (first.clock_mhz, first.temperature_c) == (2900, 63)
    assert first.power_w is None  # an energy counter says nothing before its second reading
    assert first.throttle_events == {"core_throttle_count": 3, "package_throttle_count": 7}
    clock.now += 2 * 10**9
    tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "31000000"})
    assert read().power_w == pytest.approx(15, rel=1e-6)  # 30 J in 2 s; the core domain lies inside the package's
    clock.now += 10**9
    tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "4000000"})
    assert read().power_w == pytest.approx(262143328850 / 1e6 - 27, rel=1e-6)  # the counter has wrapped


def test_jetson(tmp_path: Path) -> None:
    reading = Sensors(tree(tmp_path, JETSON)).read()
    assert (reading.clock_mhz, reading.temperature_c) == (1510.4, 48.25)
    assert (reading.gpu_clock_mhz, reading.gpu_temperature_c) == (624.75, 47.5)
    thor = tree(
        tmp_path / "thor", {f"sys/class/devfreq/{name}/cur_freq": "1575000000" for name in ("bwmgr", "gpu-gpc-0")}
    )
    assert Sensors(thor).read().gpu_clock_mhz == 1575
    assert Sensors(tmp_path).power_of == ("module (VDD_IN)",)
    assert reading.power_w == pytest.approx(4.92 * 1.5)  # the input rail alone: it feeds the others
    assert reading.throttle_events == {"soctherm/oc1_event_cnt": 0, "soctherm/oc3_event_cnt": 12}
    for label in (tmp_path / "sys/bus/i2c/devices").glob("*/hwmon/*/in1_*"):
        label.unlink()
    assert Sensors(tmp_path).read().power_w == pytest.approx(4.92 * 0.4)
    (tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr2_input").write_text("N/A\n")
    assert Sensors(tmp_path).read().power_w is None


def test_raspberry(tmp_path: Path) -> None:
    reading = Sensors(tree(tmp_path, RASPBERRY)).read()
    assert reading.throttle_live == {
        "under_voltage": True,
        "frequency_capped": False,
        "throttled": True,
        "soft_temperature_limit": False,
    }
    assert reading.throttle_events["under_voltage_since_boot"] == 1
    assert reading.throttle_events["frequency_capped_since_boot"] == 0
    assert reading.power_w is None


def test_jetson_without_a_whole_rail_adds_its_rails(tmp_path: Path) -> None:
    rails = {1: ("VDD_GPU_SOC", 2), 2: ("VDD_CPU_CV", 1), 3: ("VIN_SYS_5V0", 3)}
    rails_behind = {1: ("NC", 9), 2: ("VDDQ_VDD2_1V8AO", 1)}
    for address, found in (("1-0040", rails), ("1-0041", rails_behind)):
        for number, (name, amps) in found.items():
            at = f"sys/bus/i2c/devices/{address}/hwmon/hwmon{address[-1]}"
            tree(tmp_path, {f"{at}/in{number}_label": name, f"{at}/in{number}_input": "5000"})
            tree(tmp_path, {f"{at}/curr{number}_input": str(amps * 1000)})
    found = Sensors(tmp_path)
    assert found.read().power_w == pytest.approx(5.0 * (2 + 1 + 3))
    assert found.power_of == ("module (VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0)",)


ADC = """     3V7_WL_SW_A current(0)=0.00195192A
       VDD_CORE_A current(7)=1.65920000A
     3V7_WL_SW_V volt(8)=3.68757600V
       VDD_CORE_V volt(15)=0.72062740V
          EXT5V_V volt(24)=5.10000000V
"""


def firmware(root: Path, script: str) -> Path:
    """A root whose vcgencmd is a shell script."""
    command = tree(root, {"usr/bin/vcgencmd": f"#!/bin/sh\n{script}"}) / "usr/bin/vcgencmd"
    command.chmod(0o755)
    return root


def test_raspberry_5_asks_its_firmware(tmp_path: Path) -> None:
    script = f'case "$1" in get_throttled) echo throttled=0x40004;; *) cat <<E\n{ADC}E\n;; esac'
    found = Sensors(firmware(tmp_path, script))
    reading = found.read()
    assert reading.power_w == pytest.approx(0.00195192 * 3.687576 + 1.6592 * 0.7206274)
    assert found.power_of == ("board's PMIC rails",)
    assert reading.throttle_live["throttled"] and not reading.throttle_live["under_voltage"]
    assert reading.throttle_events["throttled_since_boot"] == 1


@pytest.mark.parametrize("script", ["exit 1", "echo VCHI initialization failed", "sleep 9; exit 1"])
def test_a_firmware_that_does_not_answer_is_unknown(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = power.subprocess.run
    monkeypatch.setattr(power.subprocess, "run", lambda *args, **more: run(*args, **{**more, "timeout": 0.2}))
    assert not RaspberryPmic(firmware(tmp_path, script)).readable
    reading = Sensors(tmp_path).read()
    assert reading.power_w is None and reading.throttle_live == {}


def test_pmic_rails_need_both_lines() -> None:
    assert pmic_watts("EXT5V_V volt(24)=5.1V\nVDD_A current(1)=2.0A\n") is None
    assert pmic_watts("") is None


class FakeNvml:
    """The part of pynvml that is called."""

    class NVMLError(Exception):
        pass

    def __init__(self, bits: int = 0, energy_mj: int | None = 0, **answers: object) -> None:
        self.bits, self.energy_mj, self.answers, self.action = bits, energy_mj, answers, []

    def nvmlInit(self) -> None:
        if self.answers.get("broken"):
            raise self.NVMLError("no driver")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.action.append(index)
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        self.action.append(name)
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return 1755

    def nvmlDeviceGetTemperature(self, handle: str, kind: int) -> int:
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 70_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if self.energy_mj is None:
            raise self.NVMLError("not supported")
        return self.energy_mj

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self.bits

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> object:
        return type("Memory", (), {"used": 123})


@pytest.mark.parametrize(
    ("bits", "throttled", "capped"),
    [
        (0, "", False),
        (0x1, "", False),  # idle
        (0x4, "", True),
        (0x8, "gpu_hw_slowdown", False),
        (0x24, "gpu_sw_thermal_slowdown", True),
        (0x40, "gpu_hw_thermal_slowdown", False),
        (0x80, "gpu_hw_power_brake", False),
    ],
)
def test_reasons_of_a_gpu(tmp_path: Path, bits: int, throttled: str, capped: bool) -> None:
    found = Sensors(tmp_path, open_nvml(FakeNvml(bits), {}))
    reading = found.read()
    assert [name for name, is_set in reading.throttle_live.items() if is_set] == ([throttled] if throttled else [])
    assert reading.power_capped is capped
    assert (reading.gpu_clock_mhz, reading.gpu_temperature_c) == (1755, 61)
    assert found.power_of == ("GPU (NVML)",)


def test_power_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, package = Clock(), FakeNvml()
    monkeypatch.setattr(nvml, "time", clock)
    gpu = open_nvml(package, {})
    assert gpu is not None and gpu.watts() is None and gpu.memory_used() == 123
    clock.now += 2 * 10**9
    package.energy_mj = 100_000
    assert gpu.watts() == pytest.approx(50, rel=1e-6)
    package.energy_mj = 5  # counted anew
    assert gpu.watts() is None
    without = open_nvml(FakeNvml(energy_mj=None), {})
    assert without is not None and without.watts() == 70.0


def test_power_is_the_sum_of_all_meters_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, package = Clock(), FakeNvml()
    monkeypatch.setattr(power, "time", clock)
    monkeypatch.setattr(nvml, "time", clock)
    found = Sensors(tree(tmp_path, INTEL), open_nvml(package, {}))
    assert found.power_of == ("processor packages (RAPL)", "GPU (NVML)") and found.read().power_w is None
    clock.now += 10**9
    package.energy_mj = 40_000
    tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "16000000"})
    assert found.read().power_w == pytest.approx(55, rel=1e-6)
    clock.now += 10**9
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert found.read().power_w is None  # the GPU's alone would pass for the whole


def test_which_gpu_is_read() -> None:
    for visible, expected in (("", "0"), ("2,1", 2), ("GPU-8f6d", "GPU-8f6d")):
        package = FakeNvml()
        open_nvml(package, {"CUDA_VISIBLE_DEVICES": visible} if visible else {})
        assert package.action == [int(expected) if str(expected).isdigit() else expected]
    assert open_nvml(FakeNvml(broken=True), {}) is None


def test_words_of_the_raspberrys_firmware() -> None:
    assert raspberry_throttled("throttled=0x80000")[1]["soft_temperature_limit_since_boot"] == 1
    assert not any(raspberry_throttled("0")[0].values())
    assert raspberry_throttled("no such command") == ({}, {})


def test_nothing_to_read_is_unknown_not_zero(tmp_path: Path) -> None:
    reading = Sensors(tmp_path).read()
    assert (reading.clock_mhz, reading.temperature_c, reading.power_w) == (None, None, None)
    assert reading.throttle_events == {} and reading.throttle_live == {}
    assert resident_bytes(tmp_path) == (None, None)


def test_files_that_turn_unreadable_are_left_out(tmp_path: Path) -> None:
    read = Sensors(tree(tmp_path, INTEL)).read
    for file in tmp_path.glob("sys/devices/system/cpu/*/cpufreq/*"):
        file.unlink()
    tree(tmp_path, {"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "garbage"})
    reading = read()
    assert reading.clock_mhz is None and "core_throttle_count" not in reading.throttle_events


def test_resident_set_of_this_process() -> None:
    now, peak = resident_bytes()
    assert now is not None and peak is not None and 10**6 < now <= peak
