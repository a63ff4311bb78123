"""What a command does where its process lacks something: files, threads, a folder, a home, a locale, a stdout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import fails, vitedge

PYTHON = [sys.executable, "-m", "vitedge"]
#: Another user without a name, who may read what root may; limits of processes hold for it.
NOBODY = (
    "exec setpriv --reuid 12345 --clear-groups --inh-caps=-all,+dac_read_search"
    " --ambient-caps=-all,+dac_read_search --bounding-set=-sys_resource,-sys_admin"
)
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becoming another user takes root and setpriv"
)


def shell(script: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``vitedge ARGUMENTS`` as ``"$@"`` of a shell's script."""
    command = ["bash", "-c", script, "bash", *PYTHON, *map(str, arguments)]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, **{"capture_output": True, "text": True, "timeout": 120, "check": False, **options}
    )


def refused(done: subprocess.CompletedProcess[str], code: int) -> list[str]:
    """The three lines of a refusal, which is all that stderr has."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, (done.returncode, done.stdout[-500:], done.stderr[-1500:])
    assert len(lines) == 3 and lines[0].startswith("error: "), done.stderr
    return [lines[0].removeprefix("error: "), *(line.strip() for line in lines[1:])]


@pytest.fixture(scope="module")
def artifact(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "fp32"
    done = vitedge("export", small_model, "--target", "onnxruntime", "--precision", "fp32", "--out", out)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def picture(small_data: Path) -> Path:
    return small_data / "ant" / "0.png"


@pytest.fixture
def public(small_model: Path, small_data: Path, artifact: Path) -> Iterator[Path]:
    """A folder that every user may enter: ``model``, ``data``, ``artifact``, and ``out`` for everybody's files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for source, copy in ((small_model, "model"), (small_data, "data"), (artifact, "artifact")):
            shutil.copytree(source, folder / copy)
        for place in folder.rglob("*"):
            place.chmod(0o755 if place.is_dir() else 0o644)
        (folder / "out").mkdir()
        (folder / "out").chmod(0o777)
        (folder / "read-only").mkdir(mode=0o555)
        yield folder


# --- files, threads, folders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [6, 8, 24, 63])
def test_too_few_descriptors_are_refused_with_a_limit_that_works(limit: int, artifact: Path, picture: Path) -> None:
    _, reason, hint = refused(shell(f'ulimit -n {limit}; exec "$@"', "classify", artifact, picture), 5)
    assert reason == f"this process may have {limit} files open at once; 64 are needed"
    assert hint.startswith("run: ulimit -n 1024")


def test_as_many_descriptors_as_are_asked_for_suffice(artifact: Path, picture: Path, tmp_path: Path) -> None:
    script = 'ulimit -n 64; exec "$@"'
    assert shell(script, "classify", artifact, picture).returncode == 0
    bench = shell(script, "bench", artifact, "--duration", "0.2", "--warmup", "0.1", "--out", tmp_path / "r.json")
    assert bench.returncode == 0, bench.stderr
    streams = shell(script, "stream", artifact, "test://", "a=test://", "--duration", "3", "--headless")
    assert streams.returncode == 0 and "Traceback" not in streams.stderr, streams.stderr


def test_a_soft_limit_is_raised(artifact: Path, picture: Path) -> None:
    assert shell('ulimit -S -n 8; exec "$@"', "classify", artifact, picture).returncode == 0


@as_root
def test_no_threads_left(artifact: Path, picture: Path) -> None:
    done = shell(f'{NOBODY} prlimit --nproc=1 "$@"', "classify", artifact, picture)
    _, reason, hint = refused(done, 5)
    assert reason.startswith("only 0 more threads or processes can be started") and "ulimit -u" in hint


def test_a_deleted_working_directory(artifact: Path, picture: Path, tmp_path: Path) -> None:
    script = f'mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; exec "$@"'
    _, reason, hint = refused(shell(script, "classify", artifact, picture), 2)
    assert reason == "the working directory has been deleted" and hint.startswith("run: cd")


@as_root
def test_nobody_at_home(public: Path) -> None:
    """No HOME, no entry in /etc/passwd: everything works, and nothing is kept for the next time."""
    options = ("--target", "onnxruntime", "--precision", "int8", "--data", public / "data", "--num-samples", 8)
    script = f'unset HOME VITEDGE_CACHE XDG_CONFIG_HOME XDG_CACHE_HOME; {NOBODY} "$@"'
    done = shell(script, "export", public / "model", *options, "--out", public / "out" / "a")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("$VITEDGE_CACHE") == 1
    assert (public / "out" / "a" / "manifest.json").is_file()
    assert shell(script, "targets").returncode == 0


@as_root
def test_a_cache_that_cannot_be_written_stops_no_export(public: Path) -> None:
    options = ("--target", "onnxruntime", "--precision", "int8", "--data", public / "data", "--num-samples", 8)
    script, out = f'export VITEDGE_CACHE={public}/read-only; {NOBODY} "$@"', public / "out" / "a"
    done = shell(script, "export", public / "model", *options, "--with-candidates", "--out", out)
    assert done.returncode == 0 and done.stderr.count("$VITEDGE_CACHE") == 1, done.stderr
    # What is nothing but an entry of the cache is refused before it's measured.
    _, reason, _ = refused(shell(script, "build", out, "--duration", "60"), 5)
    assert reason.startswith(f"Permission denied ({public}/read-only")


@as_root
def test_an_output_that_cannot_be_written_is_refused_before_any_work(public: Path) -> None:
    for option in ("--out", "--json"):
        bench = ("bench", public / "artifact", "--duration", "600", option, public / "read-only" / "r.json")
        assert refused(shell(f'{NOBODY} "$@"', *bench), 5)[1].startswith(f"Permission denied ({public}/read-only")


@pytest.mark.parametrize("name", ["x/..", "x/../..", "/"])
def test_an_output_needs_a_name(name: str, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, reason, _ = fails(2, "export", small_model, "-t", "onnxruntime", "-p", "fp32", "--overwrite", "--out", name)
    assert reason == f"{name} names nothing new"
    assert list(tmp_path.iterdir()) == []


# --- standard streams ------------------------------------------------------------------------------------------------


def test_a_closed_stdout_is_refused_before_any_work(small_model: Path, tmp_path: Path) -> None:
    export = ("export", small_model, "-t", "onnxruntime", "-p", "fp32", "--out", tmp_path / "a")
    _, reason, hint = refused(shell('exec "$@" >&-', *export), 5)
    assert reason.startswith("it's closed") and hint == "add: >/dev/null"
    assert not (tmp_path / "a").exists()
    assert shell('exec "$@" >/dev/null', *export).returncode == 0


def test_closed_stdin_and_stderr_change_nothing(artifact: Path, picture: Path) -> None:
    done = shell('exec "$@" <&- 2>&-', "classify", artifact, picture, "--json", "-")
    assert done.returncode == 0 and json.loads(done.stdout)
    assert shell('exec "$@" 2>&-', "classify", artifact, "nowhere.png").returncode == 2


@pytest.mark.parametrize("verb", ["targets", "classify"])
def test_a_reader_that_has_ended(verb: str, artifact: Path, picture: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = ["targets"] if verb == "targets" else ["classify", artifact, picture, "--json", "-"]
    done = shell('exec "$@"', *arguments, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert refused(done, 5)[:2] == ["write to standard output", "its reader has ended"]


@pytest.mark.parametrize("verb", ["targets", "recipes", "--version", "doctor"])
def test_a_full_stdout(verb: str) -> None:
    assert refused(shell('exec "$@" >/dev/full', verb), 5)[:2] == [
        "write to standard output",
        "No space left on device",
    ]


@pytest.mark.parametrize("more", ["", "PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "PYTHONIOENCODING=ascii PYTHONUTF8=0"])
def test_the_c_locale_changes_no_output(more: str, artifact: Path) -> None:
    ours = shell('exec "$@"', "inspect", artifact)
    script = f'unset PYTHONIOENCODING LANG; export LC_ALL=C {more}; exec "$@"'
    done = shell(script, "inspect", artifact, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "×" in done.stdout and done.stdout == ours.stdout


# --- names that aren't UTF-8 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(small_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name isn't UTF-8, with the model and the pictures, one of which has such a name too."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path_factory.mktemp("latin")) + b"/caf\xe9"))
    shutil.copytree(small_model, folder / "model")
    shutil.copytree(small_data, folder / "data")
    (folder / "data" / "ant" / "0.png").rename(folder / "data" / "ant" / "\udce9.png")
    return folder


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_names_that_are_not_utf8_work_everywhere(target: str, elsewhere: Path) -> None:
    artifact, data = elsewhere / target, elsewhere / "data"
    export = ("--target", target, "--precision", "int8", "--data", data, "--num-samples", 8)
    picture = data / "ant" / "\udce9.png"
    for arguments in (
        ("export", elsewhere / "model", *export, "--out", artifact, "--json", "-"),
        ("verify", artifact, "--json", elsewhere / "verified.json"),
        ("classify", artifact, picture, "--json", "-"),
        ("inspect", artifact, "--json", "-"),
        ("bench", artifact, "--duration", "0.2", "--warmup", "0.1", "--out", elsewhere / f"{target}.json"),
        ("stream", artifact, picture, "--headless", "--json", "-"),
        ("report", elsewhere / f"{target}.json", "--out", elsewhere / f"{target}.html"),
    ):
        done = vitedge(*arguments)
        assert done.code == 0, (arguments, done.err)
        if "-" in arguments:
            assert (
                [json.loads(line) for line in done.out.splitlines()]
                if arguments[0] == "stream"
                else json.loads(done.out)
            )


def test_a_video_whose_name_is_not_utf8(artifact: Path, elsewhere: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(elsewhere.parent / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    video = (elsewhere.parent / "v.mp4").rename(elsewhere / "\udcff.mp4")
    done = vitedge("stream", artifact, video, "--headless", "--json", "-")
    assert done.code == 0, done.err
    assert {json.loads(line)["source"] for line in done.out.splitlines()} == {"\\xff.mp4"}


def test_a_name_that_is_not_utf8_is_shown_by_its_bytes(artifact: Path) -> None:
    assert "caf\\xe9.png" in fails(2, "classify", artifact, "caf\udce9.png")[1]
