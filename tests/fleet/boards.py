"""Boards for tests: OpenSSH servers on loopback, each with its own host key, home folder, lock and Python."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"

#: What makes the clock of a board's Pythons jump: seconds in a file beside it.
CLOCK = """
import os, time
_shift_file, _time, _time_ns = os.path.join(os.path.dirname(__file__), "shift"), time.time, time.time_ns
def _shift():
    try:
        return float(open(_shift_file).read() or 0)
    except OSError:
        return 0.0
time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + int(_shift() * 1e9)
"""


def require() -> None:
    """Skip where there is no OpenSSH server or no asyncssh."""
    pytest.importorskip("asyncssh", reason="the extra fleet isn't installed")
    if not os.access(SSHD, os.X_OK) or shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH's server isn't installed (Debian: apt-get install openssh-server)")


class FakeBoard:
    """One board: an ``sshd`` with a home folder, in which everything of it lies."""

    def __init__(self, home: Path, name: str, key: Path, python: str = sys.executable) -> None:
        self.home, self.name, self.python = home, name, python
        home.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.host_key = home / "host_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.host_key], check=True)
        (home / "authorized_keys").write_bytes(key.with_suffix(".pub").read_bytes())
        (home / "clock").mkdir()
        (home / "clock" / "sitecustomize.py").write_text(CLOCK)
        environment = {"HOME": home, "PYTHONPATH": home / "clock", "VITEDGE_CACHE": home / "cache"}
        (home / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.host_key}\nPidFile {home}/sshd.pid\n"
            f"AuthorizedKeysFile {home}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            "Subsystem sftp internal-sftp\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nMaxStartups 100\nUseDNS no\n"
            "SetEnv " + " ".join(f"{name}={value}" for name, value in environment.items()) + "\n"
        )
        self.server: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Switch it on."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        log = (self.home / "sshd.log").open("ab")
        with log:
            self.server = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", self.home / "sshd_config"], stderr=log, stdin=subprocess.DEVNULL
            )
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError((self.home / "sshd.log").read_text())

    def processes(self) -> list[int]:
        """Every process of the board but its server, by the home folder that each inherits."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"HOME={self.home}" in (place / "environ").read_text(errors="replace").split("\0"):
                    found.append(int(place.name))
        return found

    def sessions(self) -> list[int]:
        """The server's processes that serve one connection each."""
        assert self.server is not None
        done = subprocess.run(["pgrep", "-P", str(self.server.pid)], capture_output=True, text=True, check=False)
        return [int(line) for line in done.stdout.split()]

    def drop(self) -> None:
        """End every connection, not what runs on the board."""
        _signal(self.sessions(), signal.SIGKILL)

    def cut_power(self) -> None:
        """End the server and everything that runs on the board, at once."""
        self.stop_server()
        _signal(self.processes(), signal.SIGKILL)

    def stop_server(self) -> None:
        if self.server is not None:
            self.drop()
            self.server.kill()
            self.server.wait()
            self.server = None

    def known_host(self) -> str:
        """Its line of a file of known hosts."""
        kind, key, *_ = (self.host_key.with_suffix(".pub")).read_text().split()
        return f"[127.0.0.1]:{self.port} {kind} {key}\n"

    def entry(self, **more: object) -> str:
        """Its table of an inventory."""
        values = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "python": self.python,
            "lock": f"{self.home}/lock",
            "folder": f"{self.home}/fleet",
            "venv": sys.prefix,
            **more,
        }
        lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
        return f"[boards.{self.name}]\n" + "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return str(value) if isinstance(value, (int, float)) else f'"{value}"'


def _signal(processes: list[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


class Desk:
    """The boards on a desk, and the laptop in front of them: its home folder has a key and the known hosts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.boards = folder, dict[str, FakeBoard]()
        self.laptop = folder / "laptop"
        (self.laptop / ".ssh").mkdir(parents=True)
        self.key = self.laptop / ".ssh" / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)

    @property
    def inventory(self) -> Path:
        return self.laptop / "fleet.toml"

    def add(self, name: str, *, python: str = sys.executable, known: bool = True, **entry: object) -> FakeBoard:
        """Another board, entered in the inventory and, where it's known, in the known hosts."""
        board = FakeBoard(self.folder / name, name, self.key, python)
        self.boards[name] = board
        with self.inventory.open("a") as stream:
            stream.write(board.entry(**entry))
        if known:
            with (self.laptop / ".ssh" / "known_hosts").open("a") as stream:
                stream.write(board.known_host())
        return board

    def close(self) -> None:
        for board in self.boards.values():
            board.cut_power()
