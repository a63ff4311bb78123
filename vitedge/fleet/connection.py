"""A connection to a board: OpenSSH's configuration, keys, agents and known hosts, by way of asyncssh."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge.errors import NotInstalledError, ResourceError, UsageError, VitedgeError, printable
from vitedge.fleet import agent
from vitedge.fleet.inventory import Board

if TYPE_CHECKING:
    import asyncssh

CONNECT_S, ANSWER_S = 20.0, 30.0
START_S = 60.0  # a small or busy board may take this long to start Python
CONFIGURATIONS = ("~/.ssh/config", "/etc/ssh/ssh_config")
KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")
MOST_NOISE = 1 << 16  # bytes that a board's shell may print before the agent greets
#: Read from standard input, so that nothing of it is visible in the board's list of processes.
_BOOTSTRAP = (
    "import sys; exec(compile(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())), 'agent', 'exec'),"
    " {'__name__': 'vitedge_fleet_agent'})"
)


class ConnectionEnded(Exception):
    """A connection that ended or no longer answers; it may be opened again."""


class Channel:
    """An open connection with an agent at its other end, for one caller at a time."""

    def __init__(self, connection: asyncssh.SSHClientConnection, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._connection, self._process = connection, process

    async def send(self, do: str, payload: bytes = b"", **arguments: Any) -> None:
        """Send a request.

        Raises:
            ConnectionEnded: it can't be sent.
        """
        import asyncssh

        head = json.dumps({"do": do, "bytes": len(payload), **arguments}).encode() + b"\n"
        try:
            self._process.stdin.write(head)
            if payload:
                self._process.stdin.write(payload)
            await asyncio.wait_for(self._process.stdin.drain(), ANSWER_S)
        except (OSError, asyncssh.Error, asyncio.TimeoutError) as error:
            raise ConnectionEnded(_said(error)) from error

    async def receive(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the answer to the oldest request without one; raw bytes are in ``content``.

        Raises:
            ConnectionEnded: none comes.
        """
        import asyncssh

        try:
            return await asyncio.wait_for(self._receive(), timeout_s)
        except (OSError, EOFError, ValueError, asyncssh.Error, asyncio.TimeoutError) as error:
            raise ConnectionEnded(_said(error)) from error

    async def _receive(self) -> dict[str, Any]:
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the connection ended")
        answer: dict[str, Any] = json.loads(line)
        if "bytes" in answer:
            answer["content"] = await self._process.stdout.readexactly(answer.pop("bytes"))
        return answer

    async def close(self) -> None:
        """End the connection; jobs on the board go on."""
        self._connection.abort()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._connection.wait_closed(), 5)


class Link:
    """A board that stays reachable across lost connections.

    Args:
        board: of the inventory.
        password: None: keys and agents alone.
        patience_s: how long to try again when a connection has ended.
        event: called with what happens to the connection.
    """

    def __init__(
        self,
        board: Board,
        password: str | None = None,
        patience_s: float = 60.0,
        event: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.board, self.facts = board, dict[str, Any]()
        self._password, self._patience_s, self._event = password, patience_s, event
        self._channel: Channel | None = None

    def argv(self) -> list[str]:
        """The command that starts vitedge on the board, before its verb; known once the link is open."""
        return self.board.argv(self.facts["home"])

    async def open(self) -> None:
        """Connect, so that :attr:`facts` are known.

        Raises:
            VitedgeError: the board can't be reached, or doesn't let us in.
        """

        async def nothing(_: Channel) -> None:
            return

        await self.lasting(nothing)

    async def _opened(self) -> Channel:
        """Return the open channel, or open a new one.

        Raises:
            ConnectionEnded: the board can't be reached now.
            ResourceError, UsageError: it doesn't let us in.
        """
        if self._channel is None:
            channel = await _connect(self.board, self._password)
            try:
                asked_s = time.time()
                await channel.send("open", folder=self.board.folder)
                self.facts = _checked(await channel.receive(), self.board, "open its folder")
                self.facts["clock_s"] = self.facts["clock_ns"] / 1e9 - (asked_s + time.time()) / 2
            except BaseException:
                await channel.close()
                raise
            self._channel = channel
        return self._channel

    async def close(self) -> None:
        """End the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def lasting(self, work: Callable[[Channel], Any]) -> Any:
        """Return the result of ``work`` for an open channel; call it again with a new one if the connection ended.

        Raises:
            ResourceError: the board can't be reached, and patience is over.
        """
        clock = asyncio.get_running_loop().time
        until: float | None = None
        while True:
            try:
                done = await work(await self._opened())
            except ConnectionEnded as error:
                await self.close()
                if not self.facts:  # it was never there
                    raise _unreachable(self.board, str(error)) from error
                if until is None:
                    self._event(f"connection lost: {error}")
                    until = clock() + self._patience_s
                if clock() >= until:
                    raise _unreachable(self.board, str(error)) from error
                await asyncio.sleep(min(0.5, max(0.0, until - clock())))
            else:
                return done

    async def ask(self, do: str, timeout_s: float = ANSWER_S, **arguments: Any) -> dict[str, Any]:
        """Return the answer to one request, which may be sent twice if the connection ends.

        Raises:
            ResourceError: the board can't be reached, or its disk is full, or it refuses.
        """

        async def once(channel: Channel) -> dict[str, Any]:
            await channel.send(do, **arguments)
            return await channel.receive(timeout_s)

        return _checked(await self.lasting(once), self.board, do)

    async def fetch(self, name: str) -> bytes:
        """Return the content of a file in the board's folder, checked.

        Raises:
            ResourceError: as :meth:`ask`; it isn't there, or arrives damaged.
        """
        from vitedge.core.files import sha256

        first = await self.ask("read", 120, name=name, offset=0, length=agent.PIECE)
        pieces, arrived = [first["content"]], len(first["content"])
        while arrived < first["size"]:
            piece = (await self.ask("read", name=name, offset=arrived, length=agent.PIECE))["content"]
            if not piece:
                break
            pieces.append(piece)
            arrived += len(piece)
        content = b"".join(pieces)
        if sha256(content) != first["digest"]:
            raise ResourceError(
                f"fetch {name} from {self.board.name}", "the file arrived damaged", "repeat the command"
            )
        return content


def _checked(answer: dict[str, Any], board: Board, what: str) -> dict[str, Any]:
    """Return an answer that isn't an error.

    Raises:
        ResourceError: it is one.
    """
    if "error" not in answer:
        return answer
    hint = f"free space there, or name another 'folder' for {board.name} in the inventory"
    raise ResourceError(
        f"{what} on {board.name}",
        answer["error"],
        hint if answer["full"] else f"look on the board: ssh {address(board)}",
    )


def address(board: Board) -> str:
    """Return a board's address as ``ssh`` takes it."""
    user = f"{board.user}@" if board.user else ""
    port = f"-p {board.port} " if board.port else ""
    jump = f"-J {board.jump} " if board.jump else ""
    return f"{jump}{port}{user}{board.host}"


def _unreachable(board: Board, reason: str) -> ResourceError:
    return ResourceError(
        f"reach {board.name}", printable(reason), f"check whether this works: ssh {address(board)} true"
    )


def _said(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__


def command_line(board: Board) -> str:
    """Return the command that starts the agent: with the Python of vitedge's environment, else the board's own."""
    choice = f"p={_shell_path(board.python)}"
    if board.command is None:
        choice = f'p={_shell_path(f"{board.environment}/bin/python")}; [ -x "$p" ] || {choice}'
    return f"{choice}; exec $p -u -c {shlex.quote(_BOOTSTRAP)}"


def _shell_path(path: str) -> str:
    """Quote a path, or a command with arguments, for the board's shell; ``~`` is the home folder."""
    return '"$HOME"' + shlex.quote(path[1:]) if path.startswith("~/") else shlex.quote(path)


async def _connect(board: Board, password: str | None) -> Channel:
    """Open a connection and start the agent.

    Raises:
        ConnectionEnded: the board can't be reached now.
        ResourceError: unknown host key, no permission, no Python there.
        UsageError: OpenSSH's configuration is wrong.
        NotInstalledError: asyncssh is missing.
    """
    try:
        import asyncssh
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra("reach boards by SSH", "asyncssh", "fleet") from error
    from vitedge.fleet.host_keys import KeyWatcher, refuse_host_key

    watcher = KeyWatcher()
    try:
        options = _options(board, password, watcher)
        opening = asyncssh.connect(
            board.host, options=options, known_hosts=_known_hosts(options), encryption_algs=_ciphers(options)
        )
        connection = await asyncio.wait_for(opening, CONNECT_S)
    except asyncssh.HostKeyNotVerifiable as error:
        raise refuse_host_key(board, watcher, str(error)) from error
    except asyncssh.PermissionDenied as error:
        raise _refused(board, asked=password is not None) from error
    except (asyncssh.KeyImportError, asyncssh.ConfigParseError, ValueError) as error:
        raise UsageError(
            f"reach {board.name}", _said(error), "correct ~/.ssh/config, or the board's entry in the inventory"
        ) from error
    except (OSError, asyncssh.Error, asyncio.TimeoutError) as error:
        raise ConnectionEnded(_said(error)) from error
    try:
        return await _start_agent(board, connection)
    except BaseException:
        connection.abort()
        raise


def _options(board: Board, password: str | None, watcher: Any) -> asyncssh.SSHClientConnectionOptions:
    import asyncssh

    given = {"port": board.port, "username": board.user, "tunnel": board.jump, "password": password}
    return asyncssh.SSHClientConnectionOptions(
        host=board.host,
        config=[path for name in CONFIGURATIONS if (path := Path(name).expanduser()).is_file()],
        client_factory=lambda: watcher,
        connect_timeout=CONNECT_S,
        login_timeout=CONNECT_S,
        **{name: value for name, value in given.items() if value is not None},
    )


def _ciphers(options: asyncssh.SSHClientConnectionOptions) -> Any:
    """Return OpenSSH's configured ciphers; without any, AES-GCM first, for which processors have instructions."""
    if options.config.get("Ciphers") is not None:
        return ()
    return sorted((name.decode() for name in options.encryption_algs), key=lambda name: "-gcm" not in name)


def _known_hosts(options: asyncssh.SSHClientConnectionOptions) -> Any:
    """Return the files of known hosts: none with "UserKnownHostsFile none", with which asyncssh would take any key."""
    files: Any = options.known_hosts or KNOWN_HOSTS
    return [str(path) for name in files if (path := Path(str(name)).expanduser()).is_file()] or b""


def _refused(board: Board, *, asked: bool) -> ResourceError:
    reason = "the board accepts no key of ~/.ssh or of the SSH agent" + (", nor the password" if asked else "")
    hint = f"run: ssh-copy-id {address(board)}" + ("" if asked else "; or ssh-add, or add: --ask-password")
    return ResourceError(f"log in on {board.name}", reason, hint)


async def _start_agent(board: Board, connection: asyncssh.SSHClientConnection) -> Channel:
    import asyncssh

    source = Path(agent.__file__).read_bytes()
    try:
        process = await asyncio.wait_for(connection.create_process(command_line(board), encoding=None), START_S)
        process.stdin.write(f"{len(source)}\n".encode() + source)
        noise = 0
        while (line := await asyncio.wait_for(process.stdout.readline(), START_S)) != agent.GREETING:
            noise += len(line)
            if not line or noise > MOST_NOISE:
                said = await asyncio.wait_for(process.stderr.read(2000), START_S)
                raise _no_python(board, said.decode(errors="replace").strip())
    except (OSError, asyncssh.Error, asyncio.TimeoutError) as error:
        raise ConnectionEnded(_said(error)) from error
    return Channel(connection, process)


def _no_python(board: Board, said: str) -> VitedgeError:
    last = said.splitlines()[-1] if said else "the command printed something unexpected"
    hint = f'name the board\'s Python in the inventory: [boards.{board.name}] python = "python3.11"'
    return ResourceError(f"start Python on {board.name}", last, hint)
