"""Every file in ``targets/`` loads, and means something to the runtime it names."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from vitedge import runtimes
from vitedge.core import paths
from vitedge.errors import UsageError
from vitedge.formats.target import Target, load_target

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "targets").glob("*.toml"))
DEVICES = {
    "onnxruntime": {"cpu"},
    "openvino": {"CPU", "GPU", "NPU"},
    "tensorrt": {"cuda:0"},
    "tensorrt_rtx": {"cuda:0"},
}


def test_the_promised_targets_are_there() -> None:
    promised = "onnxruntime openvino openvino-arm tensorrt tensorrt-rtx jetson-orin-nano jetson-agx-orin jetson-thor"
    assert {*promised.split(), "intel-cpu", "intel-n100", "raspberry-pi-5", "x86-server"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_target_fits_its_runtime(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.runtime in runtimes.names()
    assert {candidate.variant for candidate in target.candidate} <= set(
        runtimes.part(target.runtime, "lowering").VARIANTS
    )
    assert target.device in DEVICES[target.runtime]
    assert not {candidate.precision for candidate in target.candidate} & target.refused.keys()
    assert callable(runtimes.part(target.runtime, "preflight").check)
    arm = target.isa in ("neon", "dotprod", "i8mm")
    assert target.isa == "any" or target.arch == ("aarch64" if arm else "x86_64")


def test_every_target_offers_float32() -> None:
    assert [name for name in SHIPPED if not load_target(name).candidates("fp32")] == []


def test_a_refused_precision_says_why() -> None:
    with pytest.raises(UsageError) as refused:
        load_target("tensorrt-rtx").candidates("int8")
    assert str(refused.value) == (
        "precision int8 on target 'tensorrt-rtx'\n"
        "       TensorRT-RTX stores INT8 weights but multiplies in FP16: nothing is gained over fp16; "
        "this target runs fp16, fp32\n"
        "       choose one of them: --precision fp16"
    )
    with pytest.raises(UsageError, match="this target runs int8, fp16, fp32"):
        load_target("jetson-orin-nano").candidates("fp8")
    with pytest.raises(UsageError, match="this target runs fp16, int8, fp8, fp32"):
        load_target("tensorrt").candidates("bf16")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('sm = "sm87"', "sm"),
        ('runtime_min = "ten"', "runtime_min"),
        ('isa = "avx9"', "avx9"),
        ('refusd = "x"', "unknown key 'refusd'"),
        ("memory_mb = 0", "memory_mb"),
    ],
)
def test_a_bad_file_is_refused_with_its_key(tmp_path: Path, line: str, text: str) -> None:
    key = line.split(" =")[0]
    good = (ROOT / "targets" / "jetson-orin-nano.toml").read_text()
    kept = [old for old in good.splitlines() if not old.startswith(f"{key} =")]
    kept.insert(next(index for index, old in enumerate(kept) if old.startswith("runtime =")), line)
    path = tmp_path / "board.toml"
    path.write_text("\n".join(kept))
    with pytest.raises(UsageError, match=re.escape(text)):
        load_target(path)


def test_a_file_in_the_users_folder_is_found_by_name() -> None:
    folder = paths.user_folder("targets")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my-board.toml").write_text((ROOT / "targets" / "raspberry-pi-5.toml").read_text())
    try:
        assert load_target("my-board") == replace(load_target("raspberry-pi-5"), name="my-board")
        with pytest.raises(UsageError, match="the nearest is 'my-board'"):
            load_target("my-bord")
    finally:
        (folder / "my-board.toml").unlink()


START, END = "<!-- table: generated from targets/*.toml -->\n", "<!-- end of table -->\n"


def targets_table() -> str:
    """Every target as a Markdown table, the preferred precision first; it stands in ``docs/targets.md``."""
    rows = [
        "| target | device | runtime | CPU | precisions | GPU | memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in paths.names("targets"):
        target = load_target(name)
        cpu = target.arch if target.isa == "any" else f"{target.arch}, {target.isa}"
        precisions = ", ".join(dict.fromkeys(candidate.precision for candidate in target.candidate))
        gpu = ", ".join(f"SM {sm}" for sm in ([target.sm] if target.sm else target.sms))
        memory = f"{target.memory_mb / 1024:g} GB" if target.memory_mb else ""
        runtime = f"{target.runtime} ≥ {target.runtime_min}"
        cells = (f"`{name}`", target.summary, runtime, cpu, precisions, gpu, memory)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def test_the_documented_table_is_current() -> None:
    page = ROOT / "docs" / "targets.md"
    before, rest = page.read_text().split(START)
    table, after = rest.split(END)
    if os.environ.get("VITEDGE_WRITE_DOCS"):
        page.write_text(before + START + targets_table() + END + after)
        return
    assert table == targets_table(), "run: VITEDGE_WRITE_DOCS=1 pytest tests/formats/test_targets.py"


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "targets.md").read_text()
    documented = set(re.findall(r"^\| `\[*(\w+)\]*` \|", page, re.MULTILINE))
    assert documented >= set(Target.__struct_fields__) - {"name"}


def test_every_form_is_documented() -> None:
    page = (ROOT / "docs" / "targets.md").read_text()
    for runtime in DEVICES:
        variants = ", ".join(f"`{variant}`" for variant in runtimes.part(runtime, "lowering").VARIANTS)
        assert f"| `{runtime}` | {variants} |" in page
