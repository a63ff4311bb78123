"""The boards of an inventory, and the operations on all of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vitedge.core.files import resource_errors, write_atomic
from vitedge.core.progress import Progress, silent
from vitedge.errors import Interrupted, UsageError, VitedgeError, signal_of, without_passwords
from vitedge.fleet.connection import Link
from vitedge.fleet.doctor import BoardState, examine, versions_of, vitedge_doctor
from vitedge.fleet.install import Installed, install, machine_of
from vitedge.fleet.inventory import Board, read_inventory
from vitedge.fleet.jobs import CHOICES, ENGINES, Jobs, Work, missing
from vitedge.fleet.ledger import LEDGER, UNKNOWN, Ledger, Outcome, open_ledger
from vitedge.fleet.options import Keeping, Selection
from vitedge.fleet.push import Package, Pushed, artifact_package, companions, named_apart, push
from vitedge.fleet.wheels import Machine, own_wheel, resolve
from vitedge.formats.artifact import Artifact
from vitedge.formats.engines import SUFFIX, merge

T = TypeVar("T")
#: Boards on which something couldn't be done, with the reason.
Refused = dict[str, VitedgeError]
#: Called with a sentence about a board.
Say = Callable[[str, str], None]


class Fleet:
    """Boards that work at the same time; each call connects, works and disconnects.

    Args:
        selection: which boards.
        password: called with a board's name for its password; None: keys and agents alone.
        say: called with a board's name and what happens there.

    Raises:
        UsageError: as :func:`vitedge.fleet.inventory.read_inventory`.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        password: Callable[[str], str] | None = None,
        say: Say = lambda board, text: None,
    ) -> None:
        self.boards = read_inventory(selection.inventory, selection.on)
        self.patience_s, self.say = selection.patience_s, say
        self._passwords = {board.name: password(board.name) for board in self.boards} if password else {}

    def doctor(self) -> list[BoardState]:
        """Examine each board's hardware, runtimes and free space; a board that can't be reached has the reason."""
        return list(_answers(self._on_each(examine)).values())

    def push(self, artifacts: Sequence[str | Path], progress: Progress = silent) -> tuple[list[Pushed], Refused]:
        """Bring artifacts to the boards that are for their targets; only what is missing there is sent.

        Args:
            artifacts: artifact folders.
            progress: called with (board, bytes sent, bytes to send).

        Returns:
            A row for each folder and board, and the boards that failed, with the reason.

        Raises:
            UsageError, ArtifactError: no such artifact, or a damaged one.
        """
        packages = [artifact_package(path) for path in artifacts]
        named_apart(packages)
        beside = {package: companions(path, package.digest) for package, path in zip(packages, artifacts, strict=True)}

        async def work(link: Link) -> list[Pushed]:
            await link.open()
            name = link.board.name
            mine = [each for package in self._for(link.board, packages) for each in (package, *beside[package])]
            return await push(link, mine, lambda done, total: progress(name, done, total))

        answers = self._on_each(work)
        return [row for rows in _answers(answers).values() for row in rows], _refused(answers)

    def install(self, wheel: str | Path | None = None) -> tuple[list[Installed], Refused]:
        """Install this vitedge on the boards, which need no internet: wheels are downloaded here and sent.

        Args:
            wheel: vitedge's own wheel; None: that of the checkout that runs here, or of this version.

        Returns:
            A row for each board, and the boards that failed, with the reason.

        Raises:
            UsageError: a board starts vitedge by a command of its own; no such wheel.
            ResourceError: a wheel can't be had.
        """
        for board in self.boards:
            if board.command is not None:
                reason = "its entry in the inventory starts vitedge by a 'command', not from an environment"
                raise UsageError(
                    f"install on {board.name}", reason, "leave the board out with --on, or remove 'command'"
                )
        machines = self._on_each(machine_of)
        with tempfile.TemporaryDirectory(prefix="vitedge-wheels-") as temporary:
            own = own_wheel(Path(temporary), None if wheel is None else str(wheel))
            folders = self._wheels(own, _answers(machines), Path(temporary))

            async def work(link: Link) -> Installed:
                found = machines[link.board.name]
                if isinstance(found, VitedgeError):
                    raise found
                await link.open()
                return await install(
                    link, found, folders[link.board.name], lambda text: self.say(link.board.name, text)
                )

            answers = self._on_each(work)
            return list(_answers(answers).values()), _refused(answers)

    def _wheels(self, own: Path, machines: Mapping[str, Machine], folder: Path) -> dict[str, Path]:
        """Return a folder of wheels for each board; boards with the same needs share it."""
        folders: dict[tuple[Machine, tuple[str, ...]], Path] = {}
        for board in self.boards:
            if board.name not in machines:
                continue
            key = machines[board.name], board.extras
            if key not in folders:
                folders[key] = folder / f"wheels-{len(folders)}"
                folders[key].mkdir()
                self.say(board.name, f"wheels for {key[0].arch}, Python {key[0].python} are fetched")
                for path in resolve(own, board.extras, machines[board.name], folders[key]):
                    if path == own:
                        shutil.copyfile(own, folders[key] / own.name)
        return {
            board.name: folders[machines[board.name], board.extras] for board in self.boards if board.name in machines
        }

    def work(
        self,
        verb: str,
        artifacts: Sequence[str | Path],
        arguments: Sequence[str] = (),
        keeping: Keeping | None = None,
        *,
        uploads: Mapping[str, Package] | None = None,
        together: bool = False,
        progress: Progress = silent,
    ) -> tuple[list[Outcome], Refused]:
        """Run a verb with each artifact on each board that is for its target, one job at a time on a board.

        Args:
            verb: ``bench``, ``eval``, ``verify``, ``build``, ``compare``; ``run``: the arguments are the command line.
            artifacts: artifact folders; they are pushed first.
            arguments: the verb's options, as on the command line.
            keeping: where results go, and what becomes of work that was begun before.
            uploads: data by the argument that names it; it's pushed as well.
            together: one job for all artifacts.
            progress: called with (board, jobs done, jobs).

        Returns:
            The outcomes, and the boards on which the work couldn't go on, with the reason.

        Raises:
            UsageError, ArtifactError: no such artifact, or a damaged one; a password in an argument.
            ResourceError: the results' folder can't be written.
            Interrupted: what runs on the boards goes on.
        """
        keeping, uploads = keeping or Keeping(), uploads or {}
        _refuse_passwords(verb, arguments)
        packages = [artifact_package(path) for path in artifacts]
        named_apart(packages)
        beside = {package: companions(path, package.digest) for package, path in zip(packages, artifacts, strict=True)}
        folder, action = Path(keeping.out), f"{verb} on the boards"
        with resource_errors(action, folder):
            folder.mkdir(parents=True, exist_ok=True)
        with open_ledger(folder, action) as ledger, _explained_stop():

            async def work(link: Link) -> list[Outcome]:
                await link.open()
                name = link.board.name
                mine = self._for(link.board, packages)
                groups = (
                    [tuple(mine)] if together or keeping.together or not packages else [(package,) for package in mine]
                )
                works = {
                    each.subject: each for each in (Work(verb, group, tuple(arguments), uploads) for group in groups)
                }
                versions = await _versions(link)
                planned = [each.planned(name, versions) for each in works.values()]
                todo = missing(planned, ledger, keeping, name)
                travelling = [each for package in mine for each in (package, *beside[package])]
                pushed = await push(link, [*travelling, *uploads.values()]) if todo else []
                places = {row.digest: row.path for row in pushed}
                jobs = Jobs(link, ledger, folder, lambda text: self.say(name, text))
                for number, row in enumerate(todo):
                    progress(name, number, len(todo))
                    argv = works[row.subject].argv(places)
                    if verb == "build" and row.generation:  # the board keeps what it measured before
                        argv.append("--overwrite")
                    await jobs.do(row, argv, wait=keeping.wait or keeping.detach, detach=keeping.detach)
                progress(name, len(todo), len(todo))
                return [found for row in planned if (found := ledger.find(row))]

            answers = self._on_each(work, ledger)
            for name, error in _refused(answers).items():
                ledger.note(name, "", f"{error.action}: {error.reason}")
            known = [row for row in ledger.rows() if row.verb == verb and row.board in _refused(answers)]
            return [row for rows in _answers(answers).values() for row in rows] + known, _refused(answers)

    def build(
        self,
        artifacts: Sequence[str | Path],
        arguments: Sequence[str] = (),
        keeping: Keeping | None = None,
        **how: Any,
    ) -> tuple[list[Outcome], Refused]:
        """Build on one board of each kind first; the others of the kind take its engines and its choice.

        Boards are of one kind when the artifacts' runtimes have equal versions there, and what engines and choices
        depend on is equal: the GPUs, for candidates the processor and its instruction sets, too. Both are kept here in
        ``ARTIFACT.engines`` and ``ARTIFACT.choices``, which travel with the artifact from then on.

        Args, returns and errors are those of :meth:`work`.
        """
        opened, first = [Artifact.open(path) for path in artifacts], dict[object, str]()
        for state in self.doctor():
            first.setdefault(_kind(state, opened), state.name)
        outcomes, refused = self._some(first.values()).work("build", artifacts, arguments, keeping, **how)
        for artifact in opened:
            _share(artifact, Path((keeping or Keeping()).out))
        others = [board.name for board in self.boards if board.name not in first.values()]
        if others:
            more, failed = self._some(others).work("build", artifacts, arguments, keeping, **how)
            outcomes, refused = outcomes + more, refused | failed
        return outcomes, refused

    def _some(self, names: Iterable[str]) -> Fleet:
        """Return a fleet of some of the boards."""
        fleet, chosen = copy.copy(self), set(names)
        fleet.boards = [board for board in self.boards if board.name in chosen]
        return fleet

    def collect(self, out: str | Path) -> tuple[list[Outcome], Refused]:
        """Bring back the results of jobs that were started before and have ended since.

        Args:
            out: the folder with the ledger.

        Returns:
            Everything in the ledger of these boards, and the boards that can't be reached.

        Raises:
            UsageError: there is no ledger.
        """
        folder, names = _existing(out), {board.name for board in self.boards}
        with open_ledger(folder, "collect from the boards") as ledger:
            open_rows = [row for row in ledger.rows() if row.state in UNKNOWN]

            async def work(link: Link) -> None:
                mine = [row for row in open_rows if row.board == link.board.name]
                if mine:
                    await link.open()
                jobs = Jobs(link, ledger, folder, lambda text: self.say(link.board.name, text))
                for row in mine:
                    await jobs.collect(row)

            refused = _refused(self._on_each(work, ledger))
            return [row for row in ledger.rows() if row.board in names], refused

    def _for(self, board: Board, packages: Sequence[Package]) -> list[Package]:
        """Return the artifacts that are for a board's target.

        Raises:
            UsageError: there are artifacts, but none for it.
        """
        mine = [package for package in packages if board.target in (None, package.target)]
        if packages and not mine:
            targets = ", ".join(sorted({package.target for package in packages}))
            raise UsageError(
                f"choose artifacts for {board.name}",
                f"the board's target is {board.target}; these artifacts are for {targets}",
                f"leave the board out with --on, or run: vitedge export MODEL --target {board.target} --out ARTIFACT",
            )
        return mine

    def _on_each(
        self, work: Callable[[Link], Awaitable[T]], ledger: Ledger | None = None
    ) -> dict[str, T | VitedgeError]:
        """Return the result of ``work`` on each board, or the error that ended it there."""

        async def one(board: Board) -> T | VitedgeError:
            def event(text: str) -> None:
                self.say(board.name, text)
                if ledger is not None:
                    ledger.note(board.name, "", text)

            link = Link(board, self._passwords.get(board.name), self.patience_s, event)
            try:
                return await work(link)
            except VitedgeError as error:
                return error
            finally:
                await link.close()

        async def all_of_them() -> list[T | VitedgeError]:
            return await asyncio.gather(*(one(board) for board in self.boards))

        return dict(zip((board.name for board in self.boards), asyncio.run(all_of_them()), strict=True))


def outcomes(out: str | Path) -> tuple[list[Outcome], list[tuple[str, str, str]]]:
    """Read the ledger of a folder of results, without asking any board.

    Returns:
        The outcomes, and the events as (board, job, event).

    Raises:
        UsageError: there is no ledger.
    """
    with open_ledger(_existing(out), "read the ledger") as ledger:
        return ledger.rows(), ledger.events()


def _existing(out: str | Path) -> Path:
    folder = Path(out)
    if not (folder / LEDGER).is_file():
        raise UsageError(
            "read the ledger", f"there is no {folder / LEDGER}", "name the folder of results: --out FOLDER"
        )
    return folder


def _refuse_passwords(verb: str, arguments: Sequence[str]) -> None:
    """Raises: UsageError: an argument may hold a password, which the ledger and the boards' processes would show."""
    for word in arguments:
        if without_passwords(word) != word:
            reason = f"{word} has a user name or password in it, which the ledger and the boards' processes would show"
            hint = "leave it out, and let vitedge read it on the board, from a file or a variable: --credentials FILE"
            raise UsageError(f"{verb} on the boards", reason, hint)


def _kind(state: BoardState, artifacts: Sequence[Artifact]) -> object:
    """Return a value that is equal on boards that share engines and choices; unusable boards share nothing."""
    if state.problem is not None:
        return state.name

    def needs(artifact: Artifact) -> object:
        target, chooses = artifact.manifest.target, any(each.folder for each in artifact.manifest.candidates)
        by_gpu = target.device.startswith("cuda") and not chooses
        return state.gpus if by_gpu else state.kind, state.versions.get(target.runtime)

    return state.versions["vitedge"], *map(needs, artifacts)


def _share(artifact: Artifact, out: Path) -> None:
    """Put the engines and choices that boards made of an artifact beside it.

    Args:
        artifact: here.
        out: the folder of results, with the choices by artifact, and the engines by artifact and board.

    Raises:
        ResourceError: it can't be written there.
    """
    whole, action = artifact.path.resolve(), f"keep what the boards built of {artifact.path}"
    for choice in sorted((out / CHOICES / artifact.digest).glob("*.json")):
        write_atomic(whole.with_name(f"{whole.name}.{CHOICES}") / choice.name, choice.read_bytes(), action)
    for engines in sorted((out / ENGINES).glob("*/*")):
        merge(engines, whole.with_name(whole.name + SUFFIX), set(artifact.manifest.files.values()), action)


async def _versions(link: Link) -> str:
    """Return the versions of vitedge and its runtimes on a board, in one line, as a key of results."""
    found: Mapping[str, str] = link.facts["versions"]
    if link.board.command is not None or "vitedge" not in found:
        found = versions_of(await vitedge_doctor(link))
    return " ".join(f"{name}={version}" for name, version in sorted(found.items()))


@contextlib.contextmanager
def _explained_stop() -> Iterator[None]:
    """Turn a stop inside the context into an error that says that the boards' jobs go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(
            "stop",
            f"received {signal_of(stop).name}; jobs on the boards go on",
            "bring their results back with: vitedge fleet collect; do the rest with --resume",
            signal_number=signal_of(stop),
        ) from stop


def _answers(answers: Mapping[str, T | VitedgeError]) -> dict[str, T]:
    return {name: answer for name, answer in answers.items() if not isinstance(answer, VitedgeError)}


def _refused(answers: Mapping[str, object]) -> Refused:
    return {name: answer for name, answer in answers.items() if isinstance(answer, VitedgeError)}
