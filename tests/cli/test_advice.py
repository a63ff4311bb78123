"""The step that an error recommends is one that gets past it: each is taken from the error's own text and tried."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.command import Done, fails, vitedge
from tests.conftest import ROOT

EXPORT = "export {model} -t onnxruntime --out {out}"
#: A command that fails with the code, where what it names lies in the lab.
PROVOKED = {
    "unknown target": (2, "export {model} -t onnxruntim -p fp32 --out {out}"),
    "unknown recipe": (2, f"{EXPORT} -p int8 --data {{data}} --recipe thorogh"),
    "too few pictures": (2, f"{EXPORT} -p int8 --data {{data}} --num-samples 50"),
    "artifact exists": (2, "export {model} -t onnxruntime -p fp32 --out {artifact}"),
    "result exists": (2, "bench {artifact} --duration 0.1 --warmup 0.1 --out {result}"),
    "result is a folder": (2, "bench {artifact} --duration 0.1 --warmup 0.1 --out {folder}"),
    "report exists": (2, "report {result} --out {page}"),
    "report without a format": (2, "report {result} --out {out}"),
    "unknown device": (2, "classify {openvino} {picture} --device CUP"),
    "evaluated on what calibrated": (2, "eval {int8} --data {data}"),
    "a video is no picture": (2, "classify {artifact} {video}"),
    "no such source": (4, "stream {artifact} nowhere.mp4 --headless"),
    "unknown zoo model": (2, "train {data} --model vit_nano_patch --out {out} --epochs 1"),
}
#: Hints that are no command: what has to be done lies outside.
OUTSIDE = {"evaluated on what calibrated"}


@pytest.fixture(scope="module")
def lab(small_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("advice")
    places = {name: folder / name for name in ("artifact", "int8", "openvino", "folder", "result.json", "page.html")}
    export = ("export", small_model, "--out")
    for arguments in (
        (*export, places["artifact"], "-t", "onnxruntime", "-p", "fp32"),
        (*export, places["openvino"], "-t", "openvino", "-p", "fp32"),
        (*export, places["int8"], "-t", "onnxruntime", "-p", "int8", "--data", small_data, "--num-samples", 8),
        ("bench", places["artifact"], "--duration", "0.1", "--warmup", "0.1", "--out", places["result.json"]),
        ("report", places["result.json"], "--out", places["page.html"]),
    ):
        done = vitedge(*arguments)
        assert done.code == 0, done.err
    places["folder"].mkdir()
    av = pytest.importorskip("av")
    with av.open(str(folder / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    more = {
        "model": small_model,
        "data": small_data,
        "picture": small_data / "ant" / "0.png",
        "video": folder / "v.mp4",
    }
    return {"result": places["result.json"], "page": places["page.html"], **places, **more}


def followed(arguments: list[str], hint: str) -> list[str]:
    """The command that a hint recommends for one that failed."""
    if command := re.search(r"(?:run|sources): vitedge (.+)$", hint):
        return shlex.split(command[1])
    if command := re.search(r"use: vitedge stream$", hint):
        return ["stream", *arguments[1:], "--headless"]
    if choice := re.search(r"choose from: (\w+)", hint):
        place = arguments.index("--model") + 1
        return [*arguments[:place], choice[1], *arguments[place + 1 :]]
    if out := re.search(r"name a file: --out (\S+)", hint):
        place = arguments.index("--out") + 1
        return [*arguments[:place], out[1], *arguments[place + 1 :]]
    options = re.findall(r"(--[a-z][a-z-]+)(?: ([\w./-]+))?", hint.split(" or add ")[-1])
    assert options, f"nothing to type in: {hint}"
    return [*arguments, *(part for part in options[-1] if part)]


@pytest.mark.parametrize("name", PROVOKED)
def test_the_recommended_step_gets_past_the_error(name: str, lab: dict[str, Path], tmp_path: Path) -> None:
    code, text = PROVOKED[name]
    arguments = [part.format(**lab, out=tmp_path / "out") for part in text.split()]
    _, reason, hint = fails(code, *arguments)
    if name in OUTSIDE:
        with pytest.raises(AssertionError, match="nothing to type"):
            followed(arguments, hint)
        return
    done = vitedge(*followed(arguments, hint))
    assert done.code == 0, (reason, hint, done.err)


def test_a_step_that_leads_nowhere_would_be_noticed(lab: dict[str, Path]) -> None:
    """The way of reading hints itself: another option than the recommended one doesn't help."""
    arguments = ["export", str(lab["model"]), "-t", "onnxruntime", "-p", "fp32", "--out", str(lab["artifact"])]
    done: Done = vitedge(*followed(arguments, "add --quiet"))
    assert done.code == 2


def test_every_command_in_a_hint_exists() -> None:
    """``run: vitedge VERB`` in any text of the source names a verb, and its options are that verb's."""
    from tests.cli import help_pages
    from vitedge.cli.application import VERBS

    pages = help_pages.sections((ROOT / "docs" / "cli.md").read_text(encoding="utf-8"))
    commands = {
        (path.name, command)
        for path in (ROOT / "vitedge").rglob("*.py")
        for command in re.findall(r"""(?:run|use|with): vitedge (\w[^"'\n]*)""", path.read_text(encoding="utf-8"))
    }
    assert len(commands) >= 5
    for file, command in commands:
        verb = re.split(r"\W", command.lstrip("{"))[0]
        assert verb in (*VERBS, "verb"), f"{file}: vitedge {command}"
        for option in re.findall(r"(--[a-z][a-z-]+)", command):
            assert option in pages.get(verb, option), f"{file}: vitedge {command}"
