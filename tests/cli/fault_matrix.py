"""Every verb under every fault of its process, its disk and its files: exit code and outcome of each.

``VITEDGE_UPDATE=1 python -m pytest -m slow tests/cli/test_fault_matrix.py`` writes docs/faults.md anew (as root).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.cli.command import vitedge
from tests.site.readers import mirrored

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "faults.md"
STOPPED_DEMO = "works (stopped after its first artifact)"
#: Another user without a name, who may read what root may, but write only what is everybody's.
NOBODY = (
    "exec setpriv --reuid 12345 --clear-groups --inh-caps=-all,+dac_read_search"
    " --ambient-caps=-all,+dac_read_search --bounding-set=-sys_resource,-sys_admin"
)
#: {lab} has the inputs, {out} is an empty folder.
VERBS = {
    "new": "{out}/garden",
    "run": "--file {lab}/vitedge.toml",
    "train": "{lab}/data --model vit_nano_patch4_32 --epochs 1 --out {out}/model",
    "import": "{lab}/source.onnx --out {out}/model",
    "label": "{lab}/named --labels {lab}/data",
    "shrink": "{lab}/model -t onnxruntime --macs 0.7 --data {lab}/data --num-samples 24 --out {out}/small",
    "export": "{lab}/model -t onnxruntime -p int8 --data {lab}/data --num-samples 8 --out {out}/artifact",
    "verify": "{lab}/artifact",
    "bench": "{lab}/artifact --duration 0.2 --warmup 0.1 --out {out}/result.json",
    "eval": "{lab}/artifact --data {lab}/data",
    "build": "{lab}/candidates --duration 0.1",
    "classify": "{lab}/artifact {lab}/data/ant/1.png",
    "explain-picture": "{lab}/model {lab}/data/ant/1.png --out {out}/map.png",
    "stream": "{lab}/artifact {lab}/data/ant --headless",
    "compare": "{lab}/artifact {lab}/candidates --duration 0.2",
    "report": "{lab}/result.json --out {out}/report.html",
    "inspect": "{lab}/artifact",
    "demo": "--out {out}/demo --duration 0.1",
    "doctor": "",
    "targets": "",
}


class Fault(NamedTuple):
    """One row."""

    name: str
    script: str = 'exec "$@"'  # a shell's script around the command; {out} and {cache} stand for folders
    prepare: Callable[[Path], Path] = lambda lab: lab  # from the sound inputs to those of this row


def _renamed(lab: Path) -> Path:
    folder = Path(os.fsdecode(os.fsencode(lab.parent) + b"/lab\xff"))
    if not folder.exists():
        shutil.copytree(lab, folder)
    return folder


def _damaged(lab: Path) -> Path:
    """A byte in the middle of every file is another one."""
    folder = lab.parent / "damaged"
    if not folder.exists():
        shutil.copytree(lab, folder)
        for path in folder.rglob("*"):
            if path.is_file():
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 0x55
                path.write_bytes(data)
    return folder


FAULTS = (
    Fault("nothing"),
    Fault("6 file descriptors", 'ulimit -n 6; exec "$@"'),
    Fault("24 file descriptors", 'ulimit -n 24; exec "$@"'),
    Fault("64 file descriptors", 'ulimit -n 64; exec "$@"'),
    Fault("no further thread or process", f'{NOBODY} prlimit --nproc=1 "$@"'),
    Fault("working directory deleted", 'mkdir {out}/gone; cd {out}/gone; rmdir {out}/gone; exec "$@"'),
    Fault("no HOME, unknown user", f'unset HOME VITEDGE_CACHE XDG_CONFIG_HOME XDG_CACHE_HOME; {NOBODY} "$@"'),
    Fault("cache read-only", f'mkdir -m 555 {{cache}}; {NOBODY} "$@"'),
    Fault("output read-only", f'chmod 555 {{out}}; mkdir -m 777 {{cache}}; {NOBODY} "$@"'),
    Fault("no /dev/shm", 'exec unshare -m bash -c \'mount -t tmpfs -o ro,size=4k none /dev/shm; exec "$@"\' bash "$@"'),
    Fault("disk full", 'exec unshare -m bash -c \'mount -t tmpfs -o size=16k none {out}; exec "$@"\' bash "$@"'),
    Fault("files of at most 16 KiB", 'ulimit -f 16; exec "$@"'),
    Fault("stdout closed", 'exec "$@" >&-'),
    Fault("stdout full", 'exec "$@" >/dev/full'),
    Fault("stdout without a reader", 'exec "$@" > >(exec true)'),
    Fault("C locale", 'unset PYTHONIOENCODING LANG; export LC_ALL=C; exec "$@"'),
    Fault("ASCII alone", 'unset PYTHONIOENCODING LANG; export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0; exec "$@"'),
    Fault("names that aren't UTF-8", prepare=_renamed),
    Fault("inputs damaged", prepare=_damaged),
    Fault("inputs missing", prepare=lambda lab: lab.parent / "nowhere"),
)
ROOT_ONLY = ("setpriv", "unshare")


class Cell(NamedTuple):
    """What came of it."""

    code: int
    reason: str  # of the error; empty where there's none
    stderr: str


def make_lab(folder: Path, model: Path, data: Path) -> Path:
    """The sound inputs of all verbs, for every user to read."""
    lab = folder / "lab"
    lab.mkdir()
    shutil.copytree(model, lab / "model")
    shutil.copytree(model, lab / "named")
    shutil.copy(model / "model.onnx", lab / "source.onnx")
    shutil.copytree(data, lab / "data")
    export = ("export", lab / "model", "-t", "onnxruntime", "--out")
    # pictures to calibrate with that aren't those to evaluate on: their mirror images
    calibrated = (
        "-p",
        "int8",
        "--data",
        mirrored(data, folder / "calibration"),
        "--num-samples",
        8,
        "--with-candidates",
    )
    for arguments in (
        (*export, lab / "artifact", "-p", "fp32"),
        (*export, lab / "candidates", *calibrated),
        ("bench", lab / "artifact", "--duration", "0.2", "--warmup", "0.1", "--out", lab / "result.json"),
    ):
        done = vitedge(*arguments)
        assert done.code == 0, done.err
    (lab / "vitedge.toml").write_text('[steps]\nlook = "vitedge inspect artifact"\n')
    for path in (folder, *lab.rglob("*"), lab):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for place in (lab, lab / "named"):
        place.chmod(0o777)  # what is labelled is written in place, beside a lock
    return lab


def run(fault: Fault, verb: str, lab: Path, folder: Path) -> Cell:
    """One cell, in a real process."""
    out, cache = folder / "out", folder / "cache"
    out.mkdir(parents=True)
    for place in (folder, out):
        place.chmod(0o777)
    inputs = fault.prepare(lab)
    arguments = [part.format(lab=inputs, out=out) for part in VERBS[verb].split()]
    script = fault.script.replace("{out}", str(out)).replace("{cache}", str(cache))
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", sys.executable, "-m", "vitedge", verb, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=folder,
        env={**os.environ, "VITEDGE_CACHE": str(cache)},
    )
    assert process.stderr is not None
    lines, steps = list[str](), 0
    for line in process.stderr:
        lines.append(line)
        steps += line.startswith("· export")
        if verb == "demo" and steps == 2:
            process.terminate()
    process.wait(timeout=300)
    process.stderr.close()
    text = "".join(lines)
    block = re.search(r"^error: .*\n +(.*)\n", text, re.MULTILINE)
    reason = "" if block is None else _plain(block.group(1), inputs, out, folder)
    if verb == "demo" and steps == 2 and process.returncode == 143:
        return Cell(0, "", text)
    return Cell(process.returncode, reason, text)


def _plain(reason: str, inputs: Path, out: Path, folder: Path) -> str:
    """Without what differs from run to run."""
    from vitedge.errors import printable

    for path, name in ((inputs, "INPUTS"), (out, "OUT"), (folder, "FOLDER")):
        reason = reason.replace(printable(path), name)
    return re.sub(r"(\btmp|\.building-|json\.|html\.)[a-z0-9_]{8}\b", r"\1…", reason)


def document(cells: dict[tuple[str, str], Cell]) -> str:
    """The page."""
    faults = list(dict.fromkeys(fault for fault, _ in cells))
    head = f"| fault | {' | '.join(VERBS)} |\n| --- |{' --- |' * len(VERBS)}\n"
    rows = "".join(f"| {fault} | {' | '.join(_cell(cells[fault, verb]) for verb in VERBS)} |\n" for fault in faults)
    return f"{HEAD}\n{head}{rows}\n## The reasons\n\n{''.join(_said(fault, cells) for fault in faults)}"


OUTCOMES = {0: "works", 2: "usage", 3: "input", 4: "source", 5: "resource", 7: "invalid", 8: "not installed"}
HEAD = """# Faults and what every verb does

A test runs every verb under every fault, each in a process of its own, and compares the outcome with this page
(`tests/cli/fault_matrix.py`). [errors.md](errors.md) has the meaning of the codes: 0 it works, 2 usage, 3 an input, 4 a
stream's source, 5 a resource. `demo` is stopped once its first artifact is verified.
"""


def _cell(cell: Cell) -> str:
    return f"{cell.code} {OUTCOMES.get(cell.code, 'BUG')}"


def _said(fault: str, cells: dict[tuple[str, str], Cell]) -> str:
    """The reasons of a row, and the verbs that give each."""
    reasons: dict[str, list[str]] = {}
    for verb in VERBS:
        if reason := cells[fault, verb].reason:
            reasons.setdefault(reason, []).append(verb)
    if not reasons:
        return ""
    lines = "".join(f"- {', '.join(verbs)}: {_markdown(reason)}\n" for reason, verbs in reasons.items())
    return f"**{fault}**\n\n{lines}\n"


def _markdown(reason: str) -> str:
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", reason)


def codes(page: str) -> dict[str, list[str]]:
    """The table of a page: the codes by fault."""
    rows = re.findall(r"^\| ([^|]+?) \| (\d.*) \|$", page, re.MULTILINE)
    return {fault: [cell.split()[0] for cell in cells.split(" | ")] for fault, cells in rows}


def sound(cell: Cell) -> bool:
    """Whether an outcome is one that is meant: no bug, no traceback, no signal."""
    told = "Traceback" in cell.stderr or "bug in vitedge" in cell.stderr or "Exception ignored" in cell.stderr
    return cell.code in OUTCOMES and not told and (cell.code == 0 or bool(cell.reason) or "Usage:" in cell.stderr)


def faults_here(names: Sequence[str] = ()) -> list[Fault]:
    """Those that can be brought about here."""
    able = os.geteuid() == 0 and all(shutil.which(tool) for tool in ROOT_ONLY)
    wanted = [fault for fault in FAULTS if not names or fault.name in names]
    return [fault for fault in wanted if able or not any(tool in fault.script for tool in ROOT_ONLY)]
