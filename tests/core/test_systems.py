"""macOS and Windows, as far as Linux can show: what they lack is hidden from our modules, and all but streams works.

An ``__import__`` of our own, in this process's children too, gives modules of vitedge a standard library without the
names and modules that a system hasn't; /proc and /sys aren't there for anybody. Other packages see the system as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: What only Linux has (3.11, x86-64) of what vitedge uses or might.
NOT_ON_MACOS = {
    "os": "sched_getaffinity sched_setaffinity memfd_create MFD_CLOEXEC eventfd eventfd_read eventfd_write EFD_CLOEXEC "
    "EFD_NONBLOCK posix_fadvise pipe2 preadv pidfd_open splice copy_file_range getrandom setresuid",
}
NOT_ON_WINDOWS = {
    "os": NOT_ON_MACOS["os"]
    + " pread pwrite nice killpg getpgid getpgrp setsid fork sysconf statvfs uname getloadavg mkfifo O_CLOEXEC "
    "O_NONBLOCK O_NOFOLLOW O_DIRECTORY set_blocking getuid geteuid getgid chown fchmod sendfile openpty WIFEXITED",
    "signal": "SIGALRM SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGPIPE SIGCHLD setitimer getitimer ITIMER_REAL alarm pause "
    "pthread_sigmask pthread_kill sigwait siginterrupt",
    "select": "poll epoll",
    "time": "clock_settime pthread_getcpuclockid",
}
SYSTEMS = {
    "macos": (NOT_ON_MACOS, ""),
    "windows": (NOT_ON_WINDOWS, "fcntl resource termios pwd grp pty syslog readline"),
}

PRELUDE = """
import builtins, ctypes, os, subprocess, sys, types

names, modules, windows = {names!r}, {modules!r}.split(), {windows!r}

class Lacking(types.ModuleType):
    def __init__(self, real, names):
        super().__init__(real.__name__)
        self.__dict__.update(real=real, lacking=set(names))
    def __getattr__(self, name):
        if name in self.lacking:
            raise AttributeError(f"module '{{self.__name__}}' has no attribute '{{name}}'")
        return getattr(self.real, name)
    def __setattr__(self, name, value):
        setattr(self.real, name, value)

def without_library(name, *more, **keywords):
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    return ctypes.CDLL(name, *more, **keywords)

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **keywords):
        assert not keywords.get("pass_fds"), "pass_fds not supported on Windows."
        super().__init__(*arguments, **keywords)

stand_ins = {{name: Lacking(__import__(name), lacking.split()) for name, lacking in names.items()}}
if windows:
    stand_ins["os"].__dict__["name"] = "nt"
    for name, changed in {{"ctypes": dict(CDLL=without_library), "subprocess": dict(Popen=Popen)}}.items():
        stand_ins[name] = Lacking(__import__(name), ())
        stand_ins[name].__dict__.update(changed)
real_import = builtins.__import__

def imported(name, globals=None, locals=None, fromlist=(), level=0):
    ours = ((globals or {{}}).get("__name__") or "").split(".")[0] == "vitedge"
    if ours and name in modules:
        raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
    module = real_import(name, globals, locals, fromlist, level)
    return stand_ins.get(name, module) if ours else module

def refuse_linux(path):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", path)

def hidden(event, arguments):
    if event in ("open", "os.scandir", "os.listdir"):
        refuse_linux(arguments[0])

real_stat = os.stat

def stat(path, **keywords):
    refuse_linux(path)
    return real_stat(path, **keywords)

os.stat = stat

builtins.__import__ = imported
sys.addaudithook(hidden)

"""


def run(system: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    names, modules = SYSTEMS[system]
    site = folder / "site"
    site.mkdir(exist_ok=True)
    text = PRELUDE.format(names=names, modules=modules, windows=system == "windows")
    (site / "sitecustomize.py").write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)


def verbs(*commands: str) -> str:
    """A program that runs these commands one after the other, each to its success."""
    return f"""
import contextlib
from vitedge.cli import main
for line in {commands!r}:
    try:
        main(line.split())
    except SystemExit as end:
        assert not end.code, line
"""


def test_the_names_are_hidden(tmp_path: Path) -> None:
    """The way of hiding itself: a module of ours that reaches for what isn't there fails."""
    for statement in ("import fcntl", "import os; os.memfd_create", "open('/proc/self/stat')"):
        code = f"exec(compile({statement!r}, 'x', 'exec'), {{'__name__': 'vitedge.x'}})"
        assert run("windows", code, tmp_path).returncode == 1, statement


@pytest.mark.parametrize("system", [pytest.param("macos", marks=pytest.mark.slow), "windows"])
def test_the_pipeline_runs(system: str, small_model: Path, small_data: Path, tmp_path: Path) -> None:
    picture = small_data / "ant" / "0.png"
    code = verbs(
        f"inspect {small_model}",
        f"import {small_model}/model.onnx --size 32 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --out imported",
        f"export {small_model} -t onnxruntime --int8 --data {small_data} --num-samples 8 --out artifact",
        f"export {small_model} -t onnxruntime -p fp32 --out artifact --overwrite",
        "verify artifact",
        f"classify artifact {picture}",
        "bench artifact --duration 0.1 --warmup 0.1 --out result.json",
        f"eval artifact --data {small_data} --workers 2",
        "report result.json --format md",
        "doctor",
    )
    done = run(system, code, tmp_path)
    assert done.returncode == 0 and "error" not in done.stderr, done.stderr[-3000:]
    assert not list(tmp_path.glob(".*")), "a lock or a half-made folder is left"


@pytest.mark.slow
def test_training_runs(small_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")
    train = f"train {small_data} --model vit_nano_patch4_32 --image-size 8 --epochs 1 --threads 1 --out model"
    done = run("windows", verbs(train), tmp_path)
    assert done.returncode == 0 and (tmp_path / "model" / "model.onnx").is_file(), done.stderr[-3000:]


@pytest.mark.parametrize("system", SYSTEMS)
def test_streams_say_in_one_sentence_what_they_need(system: str, tmp_path: Path) -> None:
    done = run(system, verbs("stream artifact test://"), tmp_path)
    lines = [line for line in done.stderr.splitlines() if not line.startswith((" ", "Traceback", "Assert"))]
    assert "error: classify a stream" in lines[0], done.stderr
    assert "streams need Linux" in done.stderr and "ModuleNotFoundError" not in done.stderr


def test_two_signals_end_a_command_without_timers_and_pipes_to_select(tmp_path: Path) -> None:
    code = """
import os, signal, time
from vitedge.core.stopping import stop_on_signals
with stop_on_signals():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(9)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(9)
    print("still here")
"""
    done = run("windows", code, tmp_path)
    assert (done.returncode, done.stdout) == (130, "stopped\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_mypy_finds_no_call_that_another_system_lacks(platform: str, tmp_path: Path) -> None:
    """By typeshed's word for what each system has; streams are Linux's alone, and so is what a fleet runs on boards."""
    pytest.importorskip("mypy")
    options = ("--platform", platform, "--no-warn-unreachable", "--cache-dir", str(tmp_path), "--no-error-summary")
    command = [sys.executable, "-m", "mypy", *options, "vitedge"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    ours = [line for line in errors if not line.startswith(("vitedge/streaming/", "vitedge/fleet/agent.py"))]
    assert done.returncode in (0, 1) and not ours, "\n".join(ours)
