"""Passwords appear nowhere: not in arguments, environments of children, the ledger, logs, reports, or on the boards."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import fails, vitedge
from tests.fleet.boards import Desk
from tests.fleet.test_work import QUICK

SECRET = "Qx7-hunter2-9Zk"


#: An SSH server that takes the password on its first line of input, and runs what it's told; it prints port and key.
#: OpenSSH's own would need an account of the system with this password.
SERVER = """
import asyncio, sys
import asyncssh

SECRET = sys.stdin.readline().strip()

class Server(asyncssh.SSHServer):
    def begin_auth(self, username):
        return True

    def password_auth_supported(self):
        return True

    def validate_password(self, username, password):
        return password == SECRET

async def run(process):
    child = await asyncio.create_subprocess_shell(process.command, stdin=-1, stdout=-1, stderr=-1)
    await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
    process.exit(await child.wait())

async def serve():
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Server, process_factory=run, encoding=None, server_host_keys=[key]
    )
    print(server.get_port(), key.export_public_key().decode().strip(), flush=True)
    await asyncio.sleep(600)

asyncio.run(serve())
"""


@contextlib.contextmanager
def password_server(desk: Desk) -> Iterator[int]:
    """A server that takes one password and nothing else; its port."""
    environment = {**os.environ, "HOME": str(desk.folder / "nuc")}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdin and server.stdout
        server.stdin.write(f"{SECRET}\n")
        server.stdin.flush()
        port, key = server.stdout.readline().strip().split(" ", 1)
        (desk.laptop / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n")
        try:
            yield int(port)
        finally:
            server.kill()


def everything_visible() -> bytes:
    """Arguments and environments of all processes, as the system shows them."""
    shown = []
    for place in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                shown.append((place / name).read_bytes())
    return b"\0".join(shown)


def test_a_password_is_asked_for_and_appears_nowhere(
    desk: Desk, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")
    board = desk.add("nuc")
    desk.key.unlink()
    asked, seen = list[str](), list[bytes]()
    monkeypatch.setattr(getpass, "getpass", lambda prompt: asked.append(prompt) or SECRET)
    with password_server(desk) as port:
        desk.inventory.write_text(board.entry(port=port))
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.1):
                seen.append(everything_visible())

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            done = vitedge("fleet", "--ask-password", "bench", artifacts / "one", *QUICK)
        finally:
            over.set()
            watcher.join()
        assert done.code == 0, done.err
        reported = vitedge("fleet", "report", "--page", "report.html")
        assert reported.code == 0, reported.err
        refused = vitedge("fleet", "bench", artifacts / "one", "--out", "other")
    assert asked == ["password for nuc: "]
    assert refused.code == 5 and "accepts no key of ~/.ssh" in refused.err and "--ask-password" in refused.err
    job = f"{board.home}/fleet/artifacts/".encode()
    assert len(seen) > 3 and any(job in each for each in seen), "it was looked for while the job ran"
    assert not any(SECRET.encode() in each for each in seen)
    assert not any(SECRET in each.out + each.err for each in (done, reported, refused))
    files = [path for path in desk.folder.rglob("*") if path.is_file()]
    assert {"ledger.db", "status", "report.html"} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("address", ["rtsp://me:{}@camera/", "s3://{}@bucket/val.tar"])
def test_a_password_in_an_argument_goes_nowhere(desk: Desk, address: str) -> None:
    """The ledger keeps a job's arguments, and every user of a board sees those of its processes."""
    desk.add("nuc").stop_server()
    given = address.format(SECRET)
    for verb in (("run", "--", "stream", "int8/", given), ("run", "--", "eval", "int8/", f"--data={given}")):
        action, reason, _ = fails(2, "fleet", verb[0], "-q", *verb[1:])
        assert action == "run on the boards" and "***@" in reason and SECRET not in reason
    assert not Path("fleet-results").exists()
