"""The error for an unknown host key: its fingerprint, and the command that adds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncssh

from vitedge.errors import ResourceError
from vitedge.fleet.inventory import Board

if TYPE_CHECKING:
    from asyncssh import SSHKey

DEFAULT_PORT = 22
KINDS = {"ssh-ed25519": "ed25519", "ssh-rsa": "rsa"}  # as ssh-keyscan calls them


class KeyWatcher(asyncssh.SSHClient):
    """Remembers the key that a host showed, and refuses unknown keys."""

    def __init__(self) -> None:
        self.host, self.port, self.key = "", 0, None

    host: str
    port: int
    key: SSHKey | None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: SSHKey) -> bool:
        """Refuse a key that no file of known hosts has, after remembering it."""
        self.host, self.port, self.key = host, port, key
        return False


def refuse_host_key(board: Board, seen: KeyWatcher, said: str) -> ResourceError:
    """Return the error for a host key that is unknown, or isn't the known one."""
    action = f"reach {board.name}"
    if seen.key is None:  # revoked, a certificate, or a jump host's
        return ResourceError(action, said, f"see what OpenSSH says: ssh {board.host} true")
    name = seen.host if seen.port == DEFAULT_PORT else f"[{seen.host}]:{seen.port}"
    kind = KINDS.get(seen.key.get_algorithm(), "ecdsa")
    shown = f"{name} showed the {kind} key {seen.key.get_fingerprint()}"
    port = "" if seen.port == DEFAULT_PORT else f"-p {seen.port} "
    return ResourceError(
        action,
        f"{shown}, which known_hosts doesn't list for it",
        f"compare it with the board's own (ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub), then run: "
        f"ssh-keyscan {port}-t {kind} {seen.host} >> ~/.ssh/known_hosts"
        f" (where an older key is known, first: ssh-keygen -R '{name}')",
    )
