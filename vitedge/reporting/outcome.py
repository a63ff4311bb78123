"""Deliver a result: to a file, to stdout as JSON, as a table; also when it was interrupted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitedge.comparison.compare import Comparison
    from vitedge.formats.result import Result


@contextlib.contextmanager
def result_to(
    out: Path | None, json: str | None, *, overwrite: bool, action: str, resumes: bool = False
) -> Iterator[Callable[[Result], None]]:
    """Refuse existing files first; yield the function that delivers a result; deliver an interrupted result, too.

    Args:
        out: the option ``--out``.
        json: the option ``--json``.
        overwrite: permit replacing files.
        action: for error texts.
        resumes: whether the command has ``--resume``.

    Raises:
        UsageError: a file exists.
        ResourceError: it can't be written.
    """
    from vitedge.formats.result import Stopped, encode_result, write_result
    from vitedge.reporting import measured

    files = [path for path in (out, Path(json) if json not in (None, "-") else None) if path is not None]
    refuse_existing(files, overwrite=overwrite, action=action)

    def deliver(result: Result) -> None:
        for path in files:
            write_result(result, path)
        if json == "-":
            sys.stdout.write(encode_result(result).decode())
        else:
            measured.show_result(result)

    try:
        yield deliver
    except Stopped as stop:
        deliver(stop.result)
        if files:
            stop.hint = f"run the same command with {'--resume' if resumes and out else '--overwrite'}"
        raise


def refuse_existing(files: Sequence[Path | None], *, overwrite: bool, action: str) -> None:
    """Refuse to replace files that aren't results, and results without ``overwrite``; None among the files is ignored.

    Raises:
        UsageError: one of them exists.
    """
    from vitedge.core import files as outputs
    from vitedge.formats.result import RESULT

    for path in files:
        if path is not None:
            outputs.refuse_existing(path, RESULT, overwrite=overwrite, action=action)


def resumable(out: Path | None, *, wanted: bool, action: str) -> Result | None:
    """Return the result to resume with ``--resume``; None when there is none yet.

    Raises:
        UsageError: no ``--out``.
        ArtifactError: not a result.
    """
    from vitedge.errors import UsageError
    from vitedge.formats.result import read_result

    if not wanted:
        return None
    if out is None:
        raise UsageError(action, "--resume continues from the file of --out", "add: --out result.json")
    if not out.exists():
        return None
    return read_result(out)


def keeper(out: Path | None) -> Callable[[Result], None] | None:
    """Return a function that keeps a partial result in ``--out`` while measuring; None without one."""
    from vitedge.formats.result import write_result

    return None if out is None else lambda result: write_result(result, out)


def refuse_invalid(result: Result) -> None:
    """Turn the first row that isn't valid into an error.

    Raises:
        InvalidResultError: what stands against it.
    """
    from vitedge.benchmarking.validity import assess
    from vitedge.errors import InvalidResultError

    for row in result.rows:
        verdict = assess(row)
        if not verdict.valid:
            raise InvalidResultError(
                f"measure {row.subject.name} strictly", "; ".join(verdict.reasons), "measure again on a quiet machine"
            )


def refuse_unreadable(names: Sequence[str], unreadable: int, pictures: int) -> None:
    """Turn unreadable pictures into an error, after the others were shown.

    Args:
        names: of some of them, at least three where there are so many.
        unreadable: how many there are.
        pictures: all of them.

    Raises:
        ImageError: which.
    """
    from vitedge.errors import ImageError

    if unreadable:
        shown = ", ".join(names[:3]) + (", …" if unreadable > 3 else "")
        raise ImageError(
            f"classify {pictures:,} pictures",
            f"{unreadable:,} can't be read: {shown}",
            "replace or remove them; the others were classified",
        )


def refuse_worse(comparisons: Sequence[Comparison], *, strict: bool) -> None:
    """Turn a candidate that isn't allowed into an error; with ``strict`` also one with an undecided comparison.

    Raises:
        InvalidResultError: what stands against it.
    """
    from vitedge.errors import InvalidResultError

    for each in comparisons:
        against = each.failures + (each.undecided + each.cautions if strict else ())
        if against:
            raise InvalidResultError(
                f"compare {each.candidate} with {each.baseline}",
                "; ".join(against),
                "don't deploy it, or permit it: --max-slowdown PERCENT --max-drop POINTS"
                if each.failures
                else "measure longer, on more images, on a quiet machine; or leave --strict out",
            )
