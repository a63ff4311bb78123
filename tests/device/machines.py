"""Trees of /proc, /sys, /dev and /etc as they lie on several machines."""

from __future__ import annotations

from pathlib import Path

_ARM_CPU = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: {part}
CPU revision\t: 1
"""

_X86_CPU = """processor\t: {number}
vendor_id\t: {vendor}
cpu family\t: 6
model name\t: {model}
physical id\t: 0
flags\t\t: {flags}
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def _cores(siblings: list[str], **files: str) -> dict[str, str]:
    """One CPU an entry of ``siblings``, its thread_siblings_list."""
    cpus = "sys/devices/system/cpu"
    found = {f"{cpus}/online": f"0-{len(siblings) - 1}\n"}
    for number, text in enumerate(siblings):
        found[f"{cpus}/cpu{number}/topology/thread_siblings_list"] = f"{text}\n"
        found.update({f"{cpus}/cpu{number}/cpufreq/{name}": f"{value}\n" for name, value in files.items()})
    return found


def _memory(total_kb: int, available_kb: int, swap_kb: int = 0) -> str:
    return (
        f"MemTotal:       {total_kb} kB\nMemFree:  1 kB\nMemAvailable:   {available_kb} kB\nSwapTotal: {swap_kb} kB\n"
    )


def raspberry_pi_5(root: Path) -> Path:
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    tree = write(
        root,
        {
            "proc/cpuinfo": "\n".join(_ARM_CPU.format(number=n, features=features, part="0xd0b") for n in range(4))
            + "\nRevision\t: c04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
            "proc/meminfo": _memory(4153968, 3600000, 524272),
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
            "proc/sys/kernel/osrelease": "6.12.34+rpt-rpi-2712\n",
            "proc/self/status": "Name:\tpython3\nCpus_allowed_list:\t0-3\n",
            "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\n',
            "sys/class/video4linux/video0/name": "rp1-cfe-csi2_ch0\n",
            "sys/class/video4linux/video19/name": "rpi-hevc-dec\n",
            "dev/video0": "",
            "dev/video19": "",
            **_cores(["0", "1", "2", "3"], scaling_governor="ondemand", cpuinfo_max_freq="2400000"),
        },
    )
    (tree / "dev/v4l/by-id").mkdir(parents=True)
    (tree / "dev/v4l/by-id/usb-046d_HD_Webcam-video-index0").symlink_to("../../video0")
    return tree


def jetson_orin_nano(root: Path) -> Path:
    features = (
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat "
        "ilrcpc flagm paca pacg"
    )
    return write(
        root,
        {
            "proc/cpuinfo": "\n".join(_ARM_CPU.format(number=n, features=features, part="0xd42") for n in range(6)),
            "proc/meminfo": _memory(7802456, 5210000, 3901228),
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
            "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
            "proc/self/status": "Cpus_allowed_list:\t0-3\n",
            "proc/self/cgroup": "0::/\n",
            "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
            "etc/nvpmodel.conf": "".join(
                f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1\n\n"
                for number, name in enumerate(["15W", "25W", "MAXN_SUPER", "7W"])
            ),
            "var/lib/nvpmodel/status": "pmode:0001",
            "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
            "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
            "sys/class/devfreq/17000000.gpu/max_freq": "918000000\n",
            "sys/class/devfreq/17000000.gpu/available_frequencies": "306000000 612000000 918000000 1020000000\n",
            "var/lib/dpkg/status": "Package: bash\nVersion: 5.1\n\nPackage: nvidia-jetpack\nVersion: 6.2+b77\n\n",
            **_cores(
                [str(number) for number in range(6)],
                scaling_governor="schedutil",
                cpuinfo_max_freq="1728000",
                scaling_cur_freq="729600",
                scaling_min_freq="729600",
                scaling_max_freq="1344000",
            ),
        },
    )


def jetson_agx_orin(root: Path) -> Path:
    """With JetPack 7.2.1, of which only the runtime's half is installed."""
    return write(
        jetson_orin_nano(root),
        {
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
            "proc/sys/kernel/osrelease": "6.8.12-tegra\n",
            "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
            "etc/nv_tegra_release": "# R39 (release), REVISION: 2.1, GCID: 45000000, BOARD: generic, EABI: aarch64\n",
            "var/lib/dpkg/status": "Package: nvidia-jetpack\nStatus: deinstall ok config-files\nVersion: 6.2+b77\n\n"
            "Package: nvidia-jetpack-runtime\nStatus: install ok installed\nVersion: 7.2.1-b35\n\n",
        },
    )


def jetson_thor(root: Path) -> Path:
    """As published by a user of JetPack 7.0, without JetPack's own package."""
    return write(
        root,
        {
            "proc/cpuinfo": "\n".join(_ARM_CPU.format(number=n, features="asimd", part="0xd83") for n in range(14)),
            "proc/meminfo": _memory(128700000, 120000000),
            "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
            "proc/sys/kernel/osrelease": "6.8.12-tegra\n",
            "proc/self/status": "Cpus_allowed_list:\t0-13\n",
            "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
            "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n",
            "var/lib/dpkg/status": "Package: bash\nStatus: install ok installed\nVersion: 5.2\n\n",
            **_cores([str(number) for number in range(14)]),
        },
    )


def intel_n100(root: Path) -> Path:
    flags = "fpu sse4_2 avx avx2 fma bmi2 sha_ni avx_vnni gfni vaes serialize"
    return write(
        root,
        {
            "proc/cpuinfo": "\n".join(
                _X86_CPU.format(number=n, vendor="GenuineIntel", model="Intel(R) N100", flags=flags) for n in range(4)
            ),
            "proc/meminfo": _memory(7998000, 6000000),
            "proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
            "proc/self/status": "Cpus_allowed_list:\t0-3\n",
            "etc/os-release": "PRETTY_NAME='x'\n",
            "sys/class/dmi/id/sys_vendor": "Beelink\n",
            "sys/class/dmi/id/product_name": "MINI S12\n",
            **_cores(["0", "1", "2", "3"], scaling_governor="powersave", cpuinfo_max_freq="3400000"),
        },
    )


def epyc_in_a_container(root: Path) -> Path:
    """Four cores with two threads each, of which a control group (version 1) grants 1.5 and 2 GiB."""
    flags = "fpu avx avx2 fma hypervisor avx512f avx512_vnni avx512_bf16"
    inside = "sys/fs/cgroup"
    return write(
        root,
        {
            "proc/cpuinfo": "\n".join(
                _X86_CPU.format(number=n, vendor="AuthenticAMD", model="AMD EPYC  9354P   32-Core", flags=flags)
                for n in range(8)
            ),
            "proc/meminfo": _memory(24684184, 22000000),
            "proc/self/status": "Cpus_allowed_list:\t0-1,4\n",
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/pods/a\n2:cpu,cpuacct:/pods/a\n0::/\n",
            f"{inside}/cpu/pods/a/cpu.cfs_quota_us": "150000\n",
            f"{inside}/cpu/pods/a/cpu.cfs_period_us": "100000\n",
            f"{inside}/cpu/pods/cpu.cfs_quota_us": "-1\n",
            f"{inside}/cpu/pods/cpu.cfs_period_us": "100000\n",
            f"{inside}/memory/pods/a/memory.limit_in_bytes": f"{2 << 30}\n",
            f"{inside}/memory/pods/a/memory.usage_in_bytes": f"{1 << 30}\n",
            f"{inside}/memory/pods/a/memory.stat": f"cache 5\ntotal_inactive_file {256 << 20}\n",
            f"{inside}/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/class/dmi/id/sys_vendor": "To Be Filled By O.E.M.\n",
            "sys/class/dmi/id/product_name": "Default string\n",
            **_cores(["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"]),
        },
    )
