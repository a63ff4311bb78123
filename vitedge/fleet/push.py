"""Send folders to boards by the digests of their files: only missing files are sent."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.core.files import resource_errors, sha256, sha256_file
from vitedge.core.schema import Record
from vitedge.errors import ResourceError, UsageError
from vitedge.fleet.agent import PIECE
from vitedge.fleet.connection import ANSWER_S, Channel, Link
from vitedge.formats.artifact import MANIFEST, MANIFEST_DIGEST, Artifact
from vitedge.formats.engines import SUFFIX

IN_FLIGHT = 8  # pieces that are sent before the first one's answer is waited for
COMPANIONS = (SUFFIX, ".choices")
TRIES = 3  # of a file that arrives damaged
RESERVE = 16 << 20  # bytes that stay free on the board's disk
#: Called with how many bytes have been sent, and how many are to be.
Arrived = Callable[[int, int], None]


@dataclass(frozen=True)
class File:
    """A file to send."""

    source: Path
    sha256: str
    size: int


@dataclass(frozen=True, eq=False)
class Package:
    """A folder to send: an artifact, or data.

    ``within`` is what an argument names inside the folder: empty for the folder itself.
    """

    name: str
    digest: str
    files: Mapping[str, File]
    target: str = ""  # of an artifact
    within: str = ""


class Pushed(Record):
    """The outcome of sending one folder to one board."""

    board: str
    name: str
    digest: str
    sent_bytes: int  # by this push, for all folders of the board together
    total_bytes: int  # of this folder
    fresh: bool  # it wasn't there before
    path: str  # on the board


def artifact_package(path: str | Path) -> Package:
    """Package an artifact, after checking it.

    Raises:
        UsageError, ArtifactError: as :meth:`vitedge.formats.artifact.Artifact.open`.
    """
    artifact = Artifact.open(path)
    digests = dict(artifact.manifest.files)
    digests |= {name: sha256_file(artifact.path / name) for name in (MANIFEST, MANIFEST_DIGEST)}
    files = {
        name: File(artifact.path / name, digest, (artifact.path / name).stat().st_size)
        for name, digest in digests.items()
    }
    return Package(_plain(artifact.path.resolve().name), artifact.digest, files, artifact.manifest.target.name)


def companions(path: str | Path, digest: str) -> list[Package]:
    """Package the engines and choices beside an artifact, each in a folder ``ARTIFACT.ENDING``."""
    path = Path(path).resolve()
    beside = [(path.with_name(path.name + ending), ending) for ending in COMPANIONS]
    return [
        Package(_plain(folder.name), f"{digest}{ending}", data_package(folder).files)
        for folder, ending in beside
        if folder.is_dir() and any(folder.iterdir())
    ]


def data_package(path: str | Path) -> Package:
    """Package a folder or a file of data, by its content.

    Raises:
        UsageError: there is nothing in it.
        ResourceError: it can't be read.
    """
    path, action = Path(path), "send data to the boards"
    with resource_errors(action):
        single = path.is_file()
        sources = [path] if single else sorted(each for each in path.rglob("*") if each.is_file())
        if not sources:
            raise UsageError(action, f"there is no file in {path}", "name a folder with one sub-folder for each class")
        files = {
            source.relative_to(path.parent if single else path).as_posix(): File(
                source, sha256_file(source), source.stat().st_size
            )
            for source in sources
        }
    listing = "\n".join(f"{file.sha256} {name}" for name, file in files.items())
    return Package(_plain(path.resolve().name), sha256(listing.encode()), files, within=path.name if single else "")


def _plain(name: str) -> str:
    """Return a name that any file system accepts."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "unnamed"


def named_apart(packages: Sequence[Package]) -> None:
    """Refuse different folders of one name: the name points to the last one pushed.

    Raises:
        UsageError: there are two.
    """
    digests: dict[str, str] = {}
    for package in packages:
        if digests.setdefault(package.name, package.digest) != package.digest:
            raise UsageError(
                "push to the boards", f"two different folders are called '{package.name}'", "rename one of them"
            )


def megabytes(size: int) -> str:
    """Format bytes as megabytes (10⁶)."""
    return f"{size / 1e6:,.1f}"


async def push(link: Link, packages: Sequence[Package], arrived: Arrived = lambda done, total: None) -> list[Pushed]:
    """Send folders to a board; each is complete there, or as it was before.

    Raises:
        ResourceError: no room on the board, files that arrive damaged again and again, a board out of reach.
    """
    files = {file.sha256: file for package in packages for file in package.files.values()}
    sender = _Sender(files, arrived, link.board.name)
    for _ in range(TRIES):
        if await link.lasting(sender.send_missing):
            break
    else:
        raise ResourceError(
            f"push to {link.board.name}", f"files arrived damaged {TRIES} times", "check the board's disk and network"
        )
    return [await _publish(link, package, sender.sent) for package in packages]


async def _publish(link: Link, package: Package, sent: int) -> Pushed:
    digests = {name: file.sha256 for name, file in package.files.items()}
    answer = await link.ask("publish", 120, digest=package.digest, name=package.name, files=digests)
    return Pushed(
        board=link.board.name,
        name=package.name,
        digest=package.digest,
        sent_bytes=sent,
        total_bytes=sum(file.size for file in package.files.values()),
        fresh=answer["fresh"],
        path=answer["path"],
    )


class _Sender:
    """Sends the files that a board lacks, from the point where the last connection ended."""

    def __init__(self, files: Mapping[str, File], arrived: Arrived, board: str) -> None:
        self.files, self.arrived, self.board, self.sent = files, arrived, board, 0

    async def send_missing(self, channel: Channel) -> bool:
        """Send missing files; return whether all are there then, undamaged."""
        await channel.send("missing", files={sha: file.size for sha, file in self.files.items()})
        answer = await channel.receive(120)
        wanted: dict[str, int] = answer.get("missing", {})
        left = sum(self.files[sha].size - have for sha, have in wanted.items())
        if "error" in answer or left + RESERVE > answer["free"] > 0 or (left and not answer["free"]):
            raise self._no_room(left, answer)
        total, sound, waiting = self.sent + left, True, deque[str]()
        for sha, have in wanted.items():
            with self.files[sha].source.open("rb") as stream:
                stream.seek(have)
                offset = have
                while (piece := stream.read(PIECE)) or offset == have:
                    await channel.send("put", piece, sha=sha, offset=offset, size=self.files[sha].size)
                    offset += len(piece)
                    self.sent += len(piece)
                    self.arrived(self.sent, total)
                    waiting.append(sha)
                    if len(waiting) > IN_FLIGHT:
                        sound &= await self._answered(channel, waiting)
                    if not piece:
                        break
        while waiting:
            sound &= await self._answered(channel, waiting)
        return sound

    async def _answered(self, channel: Channel, waiting: deque[str]) -> bool:
        answer = await channel.receive(2 * ANSWER_S)
        waiting.popleft()
        if "error" in answer:
            raise self._no_room(0, answer)
        return not answer.get("damaged")

    def _no_room(self, wanted: int, answer: Mapping[str, Any]) -> ResourceError:
        reason = answer.get("error") or (
            f"{megabytes(wanted)} MB have to be sent and {megabytes(RESERVE)} MB have to stay free, but"
            f" {megabytes(answer['free'])} MB are free there"
        )
        hint = "free space there, or name another 'folder' in the inventory; files that arrived aren't sent again"
        return ResourceError(f"push to {self.board}", reason, hint)


def uploads(names: Iterable[str]) -> dict[str, Package]:
    """Package those of some words that name artifacts, folders or files here.

    Raises:
        UsageError, ArtifactError, ResourceError: one of them can't be read.
    """
    found = {}
    for name in names:
        if (Path(name) / MANIFEST).is_file():
            found[name] = artifact_package(name)
        elif Path(name).exists():
            found[name] = data_package(name)
    return found
