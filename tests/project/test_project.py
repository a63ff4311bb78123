"""A new project, and its steps: each file is read by what it's for, and the steps run as they stand there."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image

from tests.cli.command import fails, vitedge
from vitedge.cli.application import application
from vitedge.core.schema import load_toml
from vitedge.project.steps import Project


@pytest.fixture
def garden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    done = vitedge("new", "my garden")
    assert done.code == 0 and done.out == "my garden\n", done.err
    assert done.err.endswith("then: cd 'my garden' && vitedge run\n")
    return tmp_path / "my garden"


def parsed(line: str) -> None:
    """Fails where vitedge doesn't take this command line."""
    program, verb, *words = shlex.split(line)
    assert program == "vitedge"
    group: Any = typer.main.get_command(application())
    group.commands[verb].make_context(verb, words)


def unit(garden: Path) -> configparser.ConfigParser:
    read = configparser.ConfigParser(strict=False, interpolation=None)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    assert read.read(garden / "my-garden.service")
    return read


def test_every_step_is_a_command(garden: Path) -> None:
    steps = load_toml(garden / "vitedge.toml", Project, "test").steps
    assert list(steps) == ["train", "export", "verify", "bench", "report"]
    for line in steps.values():
        parsed(line)


def test_the_unit_streams_with_the_settings(garden: Path) -> None:
    service = unit(garden)["Service"]
    assert service["WorkingDirectory"] == "/opt/my-garden"
    parsed(service["ExecStart"].removeprefix("/opt/my-garden/.venv/bin/"))


def test_systemd_takes_the_unit(garden: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd isn't installed")
    text = (garden / "my-garden.service").read_text().replace("/opt/my-garden/.venv/bin/vitedge", "/bin/true")
    (garden / "my-garden.service").write_text(text)
    done = subprocess.run([analyze, "verify", garden / "my-garden.service"], capture_output=True, text=True)
    assert "my-garden.service" not in done.stderr, done.stderr


def test_the_workflow_runs_the_steps(garden: Path) -> None:
    lines = (garden / ".github/workflows/vitedge.yml").read_text().splitlines()
    commands = [line.split("- run: ")[1] for line in lines if "- run: " in line]
    assert len(commands) == 2 and commands[0].startswith("pip install ")
    parsed(commands[1])


def test_no_placeholder_is_left(garden: Path) -> None:
    files = [path for path in garden.rglob("*") if path.is_file()]
    assert len(files) == 7
    assert not [path for path in files if "PROJECT" in path.read_text() or "REQUIREMENT" in path.read_text()]


def test_a_folder_that_exists_is_left_alone(garden: Path) -> None:
    before = (garden / "vitedge.toml").read_bytes()
    _, reason, _ = fails(2, "new", garden)
    assert reason.endswith("exists already") and (garden / "vitedge.toml").read_bytes() == before


# --- vitedge run -----------------------------------------------------------------------------------------------------


def project(folder: Path, **steps: str) -> Path:
    file = folder / "vitedge.toml"
    file.write_text("[steps]\n" + "".join(f"{name} = '''{line}'''\n" for name, line in steps.items()))
    return file


def ran(*arguments: object) -> tuple[int, list[str], str]:
    """Exit code, names of the steps that were begun, and stderr; steps are processes, so this is one, too."""
    command = [sys.executable, "-m", "vitedge", "run", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    begun = [line.split(": ")[0].split(", ")[1] for line in done.stderr.splitlines() if line.startswith("· step ")]
    return done.returncode, begun, done.stderr


def test_steps_run_in_order_where_their_file_lies(tmp_path: Path) -> None:
    file = project(tmp_path, one="vitedge recipes --json 1.json", two="vitedge targets --json 2.json")
    code, begun, err = ran("--file", file)
    assert code == 0 and begun == ["one", "two"] and err.count("next: ") == 1
    assert (tmp_path / "1.json").stat().st_mtime_ns <= (tmp_path / "2.json").stat().st_mtime_ns


def test_a_step_that_fails_ends_the_run_with_its_code(tmp_path: Path) -> None:
    file = project(tmp_path, one="vitedge recipes --json 1.json", two="vitedge verify nothing", three="vitedge recipes")
    code, begun, err = ran("--from", "two", "--file", file)
    assert code == vitedge("verify", "nothing").code != 0
    assert begun == ["two"] and not (tmp_path / "1.json").exists()
    assert err.rstrip().endswith(f"run: vitedge run --file {file} --from two")


@pytest.mark.parametrize(
    ("line", "words", "reason"),
    [
        ("vitedge recipes", ["tow"], "there is no step 'tow'; the nearest is 'two'"),
        ("vitedge recipes", ["--from", "x"], "there is no step 'x'"),
        ("rm -rf /", [], "the step 'two' isn't a vitedge command: rm -rf /"),
        ("vitedge run", [], "the step 'two' would run all steps again"),
        ("vitedge 'recipes", [], "the step 'two' can't be read: No closing quotation"),
    ],
)
def test_what_cannot_run_is_refused_before_any_step(line: str, words: list[str], reason: str, tmp_path: Path) -> None:
    file = project(tmp_path, one="vitedge recipes --json 1.json", two=line)
    assert fails(2, "run", *words, "--file", file)[1] == reason
    assert not (tmp_path / "1.json").exists()


def test_without_a_project_the_hint_starts_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fails(2, "run")[2] == "change into the project's folder, or run: vitedge new PROJECT"


def test_a_stop_reaches_the_step(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    """SIGTERM to the run alone: the step ends too, and its own report of the stop stands above the run's."""
    done = vitedge("export", small_model, "-t", "onnxruntime", "-p", "fp32", "--out", tmp_path / "artifact")
    assert done.code == 0, done.err
    file = project(tmp_path, wait="vitedge bench artifact/ --duration 600", more="vitedge recipes --json 1.json")
    command = [sys.executable, "-m", "vitedge", "run", "--file", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (child := children.read_text().split()):
            time.sleep(0.05)
        assert process.stderr is not None
        while not Path(f"/proc/{child[0]}/task").exists() or len(list(Path(f"/proc/{child[0]}/task").iterdir())) < 2:
            time.sleep(0.05)  # its signals are handled from then on
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert err.rstrip().endswith("--from wait") and "received SIGTERM; the step was stopped" in err
    assert not Path(f"/proc/{child[0]}").exists() and not (tmp_path / "1.json").exists()


@pytest.mark.slow
def test_a_project_from_pictures_to_a_report(garden: Path, small_data: Path) -> None:
    """Its own commands as they stand in its files, but for one epoch instead of many, and the unit's for a while."""
    shutil.copytree(small_data, garden / "data", dirs_exist_ok=True)
    file = garden / "vitedge.toml"
    file.write_text(file.read_text().replace("--init-from embedded", "--init-from embedded --epochs 1"))
    code, begun, err = ran("--file", file)
    assert code == 0 and len(begun) == 5, err
    assert (garden / "report.html").is_file()
    words = shlex.split(unit(garden)["Service"]["ExecStart"])[1:]
    command = [sys.executable, "-m", "vitedge", *words, "--duration", "15"]
    done = subprocess.run(command, cwd=garden, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    Image.new("RGB", (40, 30)).save(garden / "one.png")
    assert vitedge("classify", garden / "artifact", garden / "one.png").code == 0
