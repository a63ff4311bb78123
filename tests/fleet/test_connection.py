"""Connections: OpenSSH's configuration and known hosts are honoured, refusals say what gets past them."""

from __future__ import annotations

import asyncio
import re
import subprocess
from typing import Any

import pytest

from tests.fleet.boards import Desk
from tests.fleet.faults import until_true
from vitedge.errors import ResourceError
from vitedge.fleet.connection import Link
from vitedge.fleet.inventory import read_inventory


def opened(name: str, **options: Any) -> dict[str, Any]:
    """What a board says of itself."""

    async def work() -> dict[str, Any]:
        link = Link(next(board for board in read_inventory("fleet.toml") if board.name == name), **options)
        try:
            await link.open()
            return link.facts
        finally:
            await link.close()

    return asyncio.run(work())


def refusal(name: str) -> ResourceError:
    with pytest.raises(ResourceError) as caught:
        opened(name)
    return caught.value


def test_an_unknown_host_key_is_refused_with_the_command_that_adds_it(desk: Desk) -> None:
    board = desk.add("nuc", known=False)
    error = refusal("nuc")
    shown = subprocess.run(
        ["ssh-keygen", "-lf", board.host_key], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert shown in error.reason and "which known_hosts doesn't list for it" in error.reason
    command = re.search(r"run: (ssh-keyscan .+?) \(where", error.hint)
    assert command
    subprocess.run(command[1], shell=True, check=True, stderr=subprocess.DEVNULL)
    assert opened("nuc")["folder"] == f"{board.home}/fleet"


def test_a_changed_host_key_is_refused(desk: Desk) -> None:
    nuc, other = desk.add("nuc", known=False), desk.add("other", known=False)
    line = other.known_host().replace(str(other.port), str(nuc.port))
    (desk.laptop / ".ssh" / "known_hosts").write_text(line)
    error = refusal("nuc")
    assert "known_hosts doesn't list for it" in error.reason
    assert f"ssh-keygen -R '[127.0.0.1]:{nuc.port}'" in error.hint


def test_known_hosts_set_to_none_does_not_mean_any_key(desk: Desk) -> None:
    desk.add("nuc", known=False)
    (desk.laptop / ".ssh" / "config").write_text("Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
    assert "known_hosts doesn't list for it" in refusal("nuc").reason


def test_an_alias_of_the_ssh_configuration_is_enough(desk: Desk) -> None:
    """Host name, port, user, key and jump host come from there."""
    gateway, board = desk.add("gateway"), desk.add("nuc")
    moved = desk.laptop / "elsewhere"
    (desk.laptop / ".ssh" / "id_ed25519").rename(moved)
    (desk.laptop / ".ssh" / "config").write_text(
        f"Host gate\n  HostName 127.0.0.1\n  Port {gateway.port}\n  IdentityFile {moved}\n"
        f"Host desk-nuc\n  HostName 127.0.0.1\n  Port {board.port}\n  IdentityFile {moved}\n  ProxyJump gate\n"
    )
    desk.inventory.write_text(
        f'[boards.nuc]\nhost = "desk-nuc"\npython = "{board.python}"\nfolder = "{board.home}/fleet"\n'
    )
    assert opened("nuc")["folder"] == f"{board.home}/fleet"
    assert "Accepted publickey" in (gateway.home / "sshd.log").read_text(), "through the jump host"
    until_true(lambda: not gateway.sessions())  # its process ends a little later
    gateway.stop_server()
    assert refusal("nuc").action == "reach nuc"


def test_a_key_that_the_board_does_not_take(desk: Desk) -> None:
    board = desk.add("nuc")
    (board.home / "authorized_keys").write_text("")
    error = refusal("nuc")
    assert error.reason == "the board accepts no key of ~/.ssh or of the SSH agent"
    assert error.hint.startswith(f"run: ssh-copy-id -p {board.port} ")


def test_a_board_without_this_python(desk: Desk) -> None:
    desk.add("nuc", python="/nowhere/python3", venv=None)
    error = refusal("nuc")
    assert error.action == "start Python on nuc" and "/nowhere/python3" in error.reason
    assert '[boards.nuc] python = "python3.11"' in error.hint


def test_what_a_shell_prints_at_login_is_skipped(desk: Desk) -> None:
    board = desk.add("nuc")
    with (board.home / "sshd_config").open("a") as stream:
        stream.write('ForceCommand echo Welcome; echo to the board; eval "$SSH_ORIGINAL_COMMAND"\n')
    board.stop_server()
    board.start()
    assert opened("nuc")["folder"] == f"{board.home}/fleet"


def test_a_lost_connection_is_opened_again_and_said(desk: Desk) -> None:
    board = desk.add("nuc")
    events: list[str] = []

    async def work() -> tuple[str, str]:
        link = Link(read_inventory("fleet.toml")[0], patience_s=20, event=events.append)
        await link.open()
        board.drop()
        first = (await link.ask("holder", lock=link.board.lock))["holder"]
        board.stop_server()
        asyncio.get_running_loop().call_later(1, board.start)
        second = (await link.ask("holder", lock=link.board.lock))["holder"]
        await link.close()
        return first, second

    assert asyncio.run(work()) == ({}, {})
    assert len(events) == 2 and all(event.startswith("connection lost: ") for event in events)


def test_patience_ends(desk: Desk) -> None:
    board = desk.add("nuc")

    async def work() -> None:
        link = Link(read_inventory("fleet.toml")[0], patience_s=0.3)
        await link.open()
        board.stop_server()
        try:
            await link.ask("holder", lock=link.board.lock)
        finally:
            await link.close()

    with pytest.raises(ResourceError, match="reach nuc"):
        asyncio.run(work())


def test_what_is_wrong_on_the_board_is_said(desk: Desk) -> None:
    desk.add("nuc")

    async def work() -> None:
        link = Link(read_inventory("fleet.toml")[0])
        try:
            await link.ask("read", name="../../etc/passwd", offset=0, length=1)
        finally:
            await link.close()

    with pytest.raises(ResourceError, match="lies outside the folder"):
        asyncio.run(work())
