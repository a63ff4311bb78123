"""What happens when things go wrong: the text, the exit code, and that what existed before is untouched."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.command import fails, vitedge
from vitedge.core.paths import shipped_folder
from vitedge.data import embedded
from vitedge.importing.entry import import_model
from vitedge.installation import install_command, upgrade_hint


def export_arguments(
    model: Path, out: Path, *more: object, target: str = "onnxruntime", precision: str = "int8"
) -> list[object]:
    return ["export", model, "--target", target, "--precision", precision, "--out", out, *more]


@pytest.fixture(scope="module")
def artifact(small_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "int8"
    done = vitedge(*export_arguments(small_model, out, "--data", small_data, "--num-samples", 16))
    assert done.code == 0, done.err
    return out


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- names and settings ----------------------------------------------------------------------------------------------


def test_unknown_target_names_the_nearest(small_model: Path, tmp_path: Path) -> None:
    action, reason, hint = fails(2, *export_arguments(small_model, tmp_path / "a", target="jetson-orin-nan"))
    assert action == "target 'jetson-orin-nan'"
    assert reason == "no target has this name; the nearest is 'jetson-orin-nano'"
    assert hint == "run: vitedge targets"


def test_unknown_recipe_names_the_nearest(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    _, reason, hint = fails(
        2, *export_arguments(small_model, tmp_path / "a", "--recipe", "thorogh", "--data", small_data)
    )
    assert reason == "no recipe has this name; the nearest is 'thorough'"
    assert hint == "run: vitedge recipes"


def test_precision_that_the_target_has_not(small_model: Path, tmp_path: Path) -> None:
    action, reason, _ = fails(2, *export_arguments(small_model, tmp_path / "a", precision="fp16"))
    assert action == "precision fp16 on target 'onnxruntime'"
    assert "fp32" in reason and "int8" in reason


def test_precision_that_does_not_exist(small_model: Path, tmp_path: Path) -> None:
    assert "the nearest is 'int8'" in fails(2, *export_arguments(small_model, tmp_path / "a", precision="int9"))[1]


def test_unknown_key_in_a_target_is_named_with_its_line(small_model: Path, tmp_path: Path) -> None:
    text = (shipped_folder("targets") / "onnxruntime.toml").read_text()
    board = tmp_path / "board.toml"
    board.write_text(text.replace("warmup_s", "warmup_z"))
    line = next(number for number, words in enumerate(board.read_text().splitlines(), 1) if "warmup_z" in words)
    _, reason, _ = fails(2, *export_arguments(small_model, tmp_path / "a", target=str(board), precision="fp32"))
    assert f"unknown key 'warmup_z' in [bench] (line {line}); the nearest is 'warmup_s'" in reason


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_mutated_target_files_are_refused_or_fine(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    from vitedge.errors import UsageError
    from vitedge.formats.target import load_target

    draw = random.Random(seed)
    path = draw.choice(sorted(shipped_folder("targets").glob("*.toml")))
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    mutated = tmp_path_factory.getbasetemp() / "mutated.toml"
    mutated.write_bytes(data)
    with contextlib.suppress(UsageError):
        load_target(mutated)


def test_existing_output_is_refused_before_any_work(small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    out.mkdir()
    assert fails(2, *export_arguments(small_model, out, precision="fp32"))[1] == f"{out} already exists"


def test_overwrite_spares_folders_that_vitedge_did_not_write(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    _, reason, _ = fails(2, *export_arguments(small_model, tmp_path, "--overwrite", precision="fp32"))
    assert reason == f"{tmp_path} isn't an artifact; --overwrite replaces nothing else"
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_overwrite_replaces_only_what_is_of_the_same_kind(small_model: Path, tmp_path: Path) -> None:
    model, artifact = tmp_path / "model", tmp_path / "artifact"
    shutil.copytree(small_model, model)
    assert vitedge(*export_arguments(model, artifact, precision="fp32")).code == 0
    commands = {
        model: export_arguments(model, model, "--overwrite", precision="fp32"),
        artifact: ["import", "embedded", "--out", artifact, "--overwrite"],
    }
    for out, command in commands.items():
        before = snapshot(out)
        _, reason, hint = fails(2, *command)
        assert reason.startswith(f"{out} isn't a") and reason.endswith("; --overwrite replaces nothing else")
        assert hint == "name another --out" and snapshot(out) == before
    for out in (model, artifact):
        _, reason, _ = fails(2, "demo", "--out", out, "--overwrite")
        assert reason == f"{out} isn't a demo folder; --overwrite replaces nothing else"
    assert vitedge(*export_arguments(model, artifact, "--overwrite", precision="fp32")).code == 0


@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        (["bench", "ARTIFACT"], "a result"),
        (["eval", "ARTIFACT", "--data", "DATA"], "a result"),
        (["compare", "ARTIFACT", "ARTIFACT"], "a result"),
        (["report", "RESULTS", "--format", "html"], "an HTML page"),
        (["report", "RESULTS", "--format", "md"], "a report"),
        (["report", "RESULTS", "--format", "csv"], "a table of results"),
    ],
    ids=lambda value: value[0] + value[-1] if isinstance(value, list) else "",
)
def test_overwrite_spares_files_of_another_kind(
    verb: list[str], kind: str, artifact: Path, small_data: Path, tmp_path: Path
) -> None:
    names = {"ARTIFACT": artifact, "DATA": small_data, "RESULTS": tmp_path}
    for content in (b"# My readme\n", b'{"model": 1}', b"a,b\n1,2\n", bytes(range(256))):
        mine = tmp_path / "mine"
        mine.write_bytes(content)
        _, reason, _ = fails(2, *(names.get(word, word) for word in verb), "--out", mine, "--overwrite")
        assert reason == f"{mine} isn't {kind}; --overwrite replaces nothing else"
        assert mine.read_bytes() == content


def test_json_goes_into_no_file_of_another_kind(artifact: Path, tmp_path: Path) -> None:
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    assert fails(2, "inspect", artifact, "--json", mine)[1] == f"{mine} isn't JSON; --overwrite replaces nothing else"
    assert mine.read_text() == "mine"
    for _ in range(2):
        assert vitedge("inspect", artifact, "--json", tmp_path / "facts.json").code == 0


def test_calibration_images_are_the_users_to_name(small_model: Path, tmp_path: Path) -> None:
    _, reason, hint = fails(2, *export_arguments(small_model, tmp_path / "a"))
    assert "the embedded pictures suit the embedded model only" in reason
    assert "--data" in hint


def test_the_embedded_model_s_test_pictures_are_for_display_alone(small_model: Path, tmp_path: Path) -> None:
    """The refusal speaks of the embedded model, and names the pictures; other models take them as any others."""
    model = import_model("embedded", tmp_path / "model").path
    _, reason, hint = fails(2, *export_arguments(model, tmp_path / "a", "--data", "display"))
    assert "test pictures of the embedded model" in reason and re.search(r": \w+/\w+\.\w+, .* and \d+ more$", reason)
    assert "leave out --data" in hint
    _, reason, _ = fails(2, *export_arguments(model, tmp_path / "a", "--held-out", "display", "--dry-run"))
    assert "embedded for display alone" in reason
    images, others = embedded.pictures("display"), tmp_path / "others"
    for index in range(100):
        path = others / str(images.records[index].folder) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.read(index).save(path)
    for option in (("--data", others, "--num-samples", 64), ("--held-out", others)):
        assert "embedded for display alone" in fails(2, *export_arguments(model, tmp_path / "a", *option))[1]
    shrinking = ("shrink", model, "--target", "onnxruntime", "--macs", 0.9, "--out", tmp_path / "s", "--data", others)
    said, reason, _ = fails(2, *shrinking, "--num-samples", 32)
    assert said.startswith("shrink vit_edge") and "embedded for display alone" in reason
    done = vitedge(*export_arguments(small_model, tmp_path / "b", "--data", "display", "--num-samples", 8))
    assert done.code == 0, done.err


def test_too_few_images_for_any_recipe(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    _, reason, hint = fails(2, *export_arguments(small_model, tmp_path / "a", "--data", small_data / "ant"))
    assert reason.endswith(
        "/ant has 8 pictures; the recipe observes at least 16 and holds 4 others out to measure the loss on"
    )
    assert hint == "add pictures, or observe fewer all the same: --num-samples 4"


# --- damaged files ---------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_found_and_named(artifact: Path, tmp_path: Path) -> None:
    draw = random.Random(1)
    for name in snapshot(artifact):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(artifact, copy)
        data = bytearray((copy / name).read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (copy / name).write_bytes(data)
        action, reason, hint = fails(3, "verify", copy)
        assert action == f"open the artifact {copy}"
        assert name.split("/")[-1] in reason or "manifest" in reason
        assert hint == "copy the artifact again, or export it again"


def test_artifact_of_a_newer_version_says_which_opens_it(artifact: Path, tmp_path: Path) -> None:
    from vitedge.core.files import sha256

    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest.update(schema_version=99, vitedge_version="7.1.0", invented="key")
    data = json.dumps(manifest).encode()
    (copy / "manifest.json").write_bytes(data)
    (copy / "manifest.sha256").write_text(f"{sha256(data)}  manifest.json\n")
    _, reason, hint = fails(3, "verify", copy)
    assert reason == "manifest.json has schema version 99; this vitedge reads up to 3"
    assert hint == upgrade_hint("7.1.0")


def test_model_with_a_changed_graph_is_refused(small_model: Path, tmp_path: Path) -> None:
    shutil.copytree(small_model, tmp_path / "model")
    with (tmp_path / "model" / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    _, reason, _ = fails(3, *export_arguments(tmp_path / "model", tmp_path / "a", precision="fp32"))
    assert "model.onnx isn't what was written" in reason


def test_weights_that_give_no_finite_logits_are_not_published(small_model: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    from vitedge.formats.model_folder import Model, write_model
    from vitedge.graph.surgery import to_bytes

    graph = onnx.load(small_model / "model.onnx")
    head = next(tensor for tensor in graph.graph.initializer if tensor.name == "head.weight")
    head.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(head), np.inf), head.name))
    write_model(tmp_path / "model", Model.open(small_model).record, {"model.onnx": to_bytes(graph)})
    _, reason, _ = fails(7, *export_arguments(tmp_path / "model", tmp_path / "a", precision="fp32"))
    assert "aren't finite" in reason
    assert not (tmp_path / "a").exists()


def test_checkpoints_with_more_than_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"\x80\x04cos\nsystem\n")
    _, reason, hint = fails(3, "import", tmp_path / "weights.pt", "--out", tmp_path / "model")
    assert "'os.system'" in reason
    assert "safetensors" in hint


# --- pictures --------------------------------------------------------------------------------------------------------


def test_unreadable_calibration_images_are_replaced_and_named(
    small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    broken = {"ant/0.png", "bee/3.png", "cat/5.png", "cat/6.png", "cat/7.png", "dog/1.png"}
    for name in broken:
        (data / name).write_bytes((data / name).read_bytes()[:200])
    out = tmp_path / "a"
    done = vitedge(*export_arguments(small_model, out, "--data", data, "--num-samples", 30))
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["calibration"]["count"] == 30
    assert manifest["calibration"]["skipped"] and set(manifest["calibration"]["skipped"]) <= broken
    assert manifest["fidelity"]["pictures"] == 4
    _, reason, hint = fails(3, *export_arguments(small_model, tmp_path / "b", "--data", data, "--num-samples", 36))
    assert "has 34 readable images of the 36 asked for" in reason and "ant/0.png" in reason
    assert hint == "replace them, or remove them and ask for fewer: --num-samples"


def test_eval_stops_above_one_percent_of_unreadable_images(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    artifact, data = tmp_path / "float", tmp_path / "data"
    assert vitedge(*export_arguments(small_model, artifact, precision="fp32")).code == 0
    shutil.copytree(small_data, data)
    (data / "dog" / "0.png").write_bytes(b"no picture")
    _, reason, _ = fails(3, "eval", artifact, "--data", data)
    assert "dog/0.png" in reason


def test_eval_refuses_the_calibration_images(artifact: Path, small_data: Path) -> None:
    action, reason, _ = fails(2, "eval", artifact, "--data", small_data)
    assert "calibrat" in f"{action} {reason}"


def test_decompression_bombs_are_refused(artifact: Path, tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)))
    _, reason, hint = fails(3, "classify", artifact, bomb)
    assert "more than 178,956,970 pixels" in reason
    assert hint == "shrink it"


@pytest.mark.parametrize(("layout", "code"), [("empty", 2), ("flat", 2), ("other classes", 2), ("missing", 2)])
def test_eval_says_what_a_data_folder_looks_like(
    artifact: Path, small_data: Path, tmp_path: Path, layout: str, code: int
) -> None:
    data = tmp_path / "data"
    if layout != "missing":
        data.mkdir()
    picture = small_data / "ant" / "0.png"
    if layout == "flat":
        shutil.copy(picture, data / "0.png")
    if layout == "other classes":
        (data / "zebra").mkdir()
        shutil.copy(picture, data / "zebra" / "0.png")
    lines = fails(code, "eval", artifact, "--data", data)
    assert "sub-folder a class" in lines[2] or "zebra" in lines[1]


def test_hostile_names_are_printed_harmlessly(artifact: Path, small_data: Path, tmp_path: Path) -> None:
    name = "\x1b[31m<b>;rm -rf $(x)[bold].png"
    shutil.copy(small_data / "ant" / "0.png", tmp_path / name)
    done = vitedge("classify", artifact, tmp_path / name)
    assert done.code == 0, done.err
    assert "\x1b[31m" not in done.out
    (tmp_path / name).write_bytes(b"broken")
    assert "\x1b[31m" not in vitedge("classify", artifact, tmp_path / name).err


# --- resources and signals -------------------------------------------------------------------------------------------


def test_missing_runtime_names_the_extra(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitedge.runtimes.openvino import detect

    monkeypatch.setattr(detect, "installed", lambda: None)
    action, reason, hint = fails(8, *export_arguments(small_model, tmp_path / "a", target="openvino", precision="fp32"))
    assert "openvino" in action
    assert reason == "the package 'openvino' is not installed"
    assert hint == f"run: {install_command('openvino')}"


def _spawn(*arguments: object, limit: int | None = None) -> subprocess.Popen[str]:
    code = "from vitedge.cli import main; main()"
    if limit is not None:
        code = (
            "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); {code}"
        )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_file_size_limit_leaves_the_old_artifact(artifact: Path, small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    shutil.copytree(artifact, out)
    before = snapshot(out)
    process = _spawn(*export_arguments(small_model, out, "--overwrite", precision="fp32"), limit=40_000)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 5, err
    assert "nothing was changed" in err and "Traceback" not in err
    assert snapshot(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output(small_model: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        fails(5, *export_arguments(small_model, tmp_path / "a", precision="fp32"))
    finally:
        tmp_path.chmod(0o700)


def test_two_exports_to_one_folder(small_model: Path, tmp_path: Path) -> None:
    from vitedge.core.files import FolderKind, new_folder

    out = tmp_path / "a"
    with new_folder(out, FolderKind("any", ("manifest.json",)), overwrite=False, action="export"):
        _, reason, _ = fails(5, *export_arguments(small_model, out, precision="fp32"))
        assert reason == f"another process is writing {out}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_export_leaves_the_old_artifact(
    artifact: Path, small_model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "a"
    shutil.copytree(artifact, out)
    before = snapshot(out)
    process = _spawn(*export_arguments(small_model, out, "--overwrite", precision="fp32"))
    deadline = time.monotonic() + 60
    while not (tmp_path / ".a.lock").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it was quicker than the signal: then everything is new
        assert json.loads((out / "manifest.json").read_text())["precision"] == "fp32"
        return
    assert process.returncode == code, err
    assert "Traceback" not in err
    after = snapshot(out)
    assert after == before or json.loads(after["manifest.json"])["precision"] == "fp32"
    assert vitedge("verify", out).code == 0
    done = vitedge(*export_arguments(small_model, out, "--overwrite", precision="fp32"))  # cleans up what was left
    assert done.code == 0, done.err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
