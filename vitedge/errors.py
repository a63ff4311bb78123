"""Every error that vitedge raises on purpose, and the exit code of each.

::

    VitedgeError                    1   a bug of ours if it is raised itself
    ├── UsageError                  2   unknown name, existing output, unsupported combination, bad configuration file
    ├── InputError                  3   something from outside cannot be used
    │   ├── ModelError              3   a model, checkpoint or ONNX file
    │   ├── ArtifactError           3   an artifact, or a result
    │   └── ImageError              3   a picture or an image set
    ├── StreamError                 4   a stream source
    ├── ResourceError               5   disk, memory, lock, permission
    ├── InvalidResultError          7   ran, but the result is invalid or misses its budget
    └── NotInstalledError           8   a runtime or an extra
    KeyboardInterrupt
    └── Interrupted                 130 or 143, by the signal

A stop isn't a fault: it's outside ``Exception``, so that no handler around foreign code takes it for one.

Every error says what was asked for (``action``), why that can't be done (``reason``) and what to do (``hint``), a line
each. Text that comes from outside (file names, labels, other libraries' messages) is made printable first.
"""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Callable, Iterable
from typing import TypeVar

from vitedge.installation import install_command

E = TypeVar("E", bound=BaseException)

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_BEFORE_AT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{1,2})(\S+)@")  # with one slash a Path has had it

_IPV6 = re.compile(r"\[[0-9A-Fa-f:.%]*\]")


def printable(text: object) -> str:
    """``str(text)`` with control characters, escape sequences and direction marks written out as ``\\xNN``.

    So are the bytes of a file name that aren't UTF-8, which Python keeps as lone surrogates.
    """
    return _UNPRINTABLE.sub(_written_out, str(text))


def _written_out(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code:02x}"


def without_passwords(text: str) -> str:
    """Return ``text`` with ``***`` for the part before the last ``@`` of each URL in it, if it may be a password.

    A password may hold ``/``, ``?`` and ``#``, so with a colon before it this goes beyond where the host should end.
    """
    return _BEFORE_AT.sub(lambda match: f"{match[1]}***@" if may_be_secret(match[2]) else match[0], text)


def may_be_secret(before_at: str) -> bool:
    """Whether the part before an ``@`` of a URL may hold a user name or a password, not only a host and a path."""
    text = _IPV6.sub("", before_at)
    return ":" in text or not any(sign in text for sign in "/?#")


class _Explained(BaseException):
    """Three lines and an exit code. Passwords in URLs are removed from the text, wherever they come from."""

    exit_code: int = 1

    def __init__(self, action: str, reason: str, hint: str) -> None:
        self.action, self.reason, self.hint = (
            printable(without_passwords(part)).replace("\n", " ") for part in (action, reason, hint)
        )
        super().__init__(self.action, self.reason, self.hint)

    def __str__(self) -> str:
        return f"{self.action}\n       {self.reason}\n       {self.hint}"


class VitedgeError(_Explained, Exception):
    """Base of all errors.

    Args:
        action: what was asked for, as a phrase: ``export to target 'jetson'``.
        reason: why that can't be done, as a clause: ``no target has this name; the nearest is 'jetson-thor'``.
        hint: what to do, as an instruction: ``run: vitedge targets``.
    """


class UsageError(VitedgeError):
    """Usage or configuration: unknown name, existing output, unsupported combination."""

    exit_code = 2


class InputError(VitedgeError):
    """Something that came from outside cannot be used."""

    exit_code = 3


class ModelError(InputError):
    """A model folder, a checkpoint or an ONNX file."""


class ArtifactError(InputError):
    """An artifact folder or a result file."""


class ImageError(InputError):
    """A picture, or a set of pictures."""


class StreamError(VitedgeError):
    """A stream source."""

    exit_code = 4


class ResourceError(VitedgeError):
    """Disk, memory, lock or permission."""

    exit_code = 5


class InvalidResultError(VitedgeError):
    """It ran, but the result is invalid or misses its budget."""

    exit_code = 7


class NotInstalledError(VitedgeError):
    """A package that an extra brings is not installed."""

    exit_code = 8

    @classmethod
    def for_extra(cls, action: str, package: str, extra: str) -> NotInstalledError:
        """Return the error for a missing ``package`` that ``vitedge[extra]`` brings."""
        return cls(action, f"the package '{package}' is not installed", f"run: {install_command(extra)}")


class Interrupted(_Explained, KeyboardInterrupt):
    """Stopped by a signal; what was written is whole, resumable, or marked partial.

    Args:
        action: what was stopped, as a phrase.
        reason: the signal, and what is left.
        hint: how to go on.
        signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, action: str, reason: str, hint: str, *, signal_number: int = signal.SIGINT) -> None:
        super().__init__(action, reason, hint)
        self.exit_code = 128 + signal_number


def signal_of(stop: KeyboardInterrupt) -> signal.Signals:
    """Return the signal that raised it; Python's own is SIGINT's."""
    return signal.Signals(stop.exit_code - 128) if isinstance(stop, Interrupted) else signal.SIGINT


def behind(error: BaseException | None, kind: type[E]) -> E | None:
    """Return the first error of a kind among an error, its cause, that one's cause and so on."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def nearest(name: str, candidates: Iterable[str], *, show: Callable[[str], str] = str) -> str:
    """Return ``"; the nearest is 'x'"`` when one of ``candidates`` resembles ``name``, else an empty string.

    ``show``: a candidate as the reader types it.
    """
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.55)
    return f"; the nearest is '{show(matches[0])}'" if matches else ""
