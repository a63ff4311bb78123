"""The sensors on copies of other machines' trees: what's read, and that what can't be read stays unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.fakes import Clock
from vitedge.harness import sensors
from vitedge.harness.sensors import Sensors, raspberry_throttled, resident_bytes

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
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "5",
}
JETSON = {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48250",
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
    monkeypatch.setattr(sensors, "time", clock)
    read = Sensors(tree(tmp_path, INTEL)).read
    first = read(0)
    assert (first.clock_mhz, first.temperature_c) == (2900, 63)
    assert first.power_w is None  # an energy counter says nothing before its second reading
    assert first.throttle_events == {"cpu0/core_throttle_count": 3, "cpu0/package_throttle_count": 7}
    clock.now += 2 * 10**9
    tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "31000000"})
    assert read(0).power_w == pytest.approx(15, rel=1e-6)  # 30 J in 2 s; the core domain lies inside the package's
    clock.now += 10**9
    tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "4000000"})
    assert read(0).power_w == pytest.approx(262143328850 / 1e6 - 27, rel=1e-6)  # the counter has wrapped


def test_jetson(tmp_path: Path) -> None:
    reading = Sensors(tree(tmp_path, JETSON)).read(0)
    assert (reading.clock_mhz, reading.temperature_c) == (1510.4, 48.25)
    assert reading.power_w == pytest.approx(4.92 * 1.5)  # the input rail alone: it feeds the others
    assert reading.throttle_events == {"soctherm/oc1_event_cnt": 0, "soctherm/oc3_event_cnt": 12}
    for label in (tmp_path / "sys/bus/i2c/devices").glob("*/hwmon/*/in1_*"):
        label.unlink()
    assert Sensors(tmp_path).read(0).power_w == pytest.approx(4.92 * 0.4)
    (tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr2_input").write_text("N/A\n")
    assert Sensors(tmp_path).read(0).power_w is None


def test_raspberry(tmp_path: Path) -> None:
    reading = Sensors(tree(tmp_path, RASPBERRY)).read(0)
    assert reading.throttle_live == {
        "under_voltage": True,
        "frequency_capped": False,
        "throttled": True,
        "soft_temperature_limit": False,
    }
    assert reading.throttle_events["under_voltage_since_boot"] == 1
    assert reading.throttle_events["frequency_capped_since_boot"] == 0
    assert reading.power_w is None


def test_words_of_the_raspberrys_firmware() -> None:
    assert raspberry_throttled("throttled=0x80000")[1]["soft_temperature_limit_since_boot"] == 1
    assert not any(raspberry_throttled("0")[0].values())
    assert raspberry_throttled("no such command") == ({}, {})


def test_nothing_to_read_is_unknown_not_zero(tmp_path: Path) -> None:
    reading = Sensors(tmp_path).read(0)
    assert (reading.clock_mhz, reading.temperature_c, reading.power_w) == (None, None, None)
    assert reading.throttle_events == {} and reading.throttle_live == {}
    assert resident_bytes(tmp_path) == (None, None)


def test_files_that_turn_unreadable_are_left_out(tmp_path: Path) -> None:
    read = Sensors(tree(tmp_path, INTEL)).read
    for file in tmp_path.glob("sys/devices/system/cpu/*/cpufreq/*"):
        file.unlink()
    tree(tmp_path, {"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "garbage"})
    reading = read(0)
    assert reading.clock_mhz is None and "cpu0/core_throttle_count" not in reading.throttle_events


def test_resident_set_of_this_process() -> None:
    now, peak = resident_bytes()
    assert now is not None and peak is not None and 10**6 < now <= peak
