"""Addresses that hold secrets: read from the environment where asked, and shown without their secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote, unquote

from vitedge.core.environment import secret
from vitedge.errors import UsageError, may_be_secret, printable, without_passwords

ESCAPES = "write / ? # of a user name or password as %2F %3F %23, and an @ behind the host as %40"
IN_PATH = re.compile(r"(?i)((?:pass|passwd|password|pwd|token|secret|key)=)[^&/;]*")  # some cameras have it there
_BEGIN = re.compile(r"(?:[A-Za-z0-9_-]{1,64}=)?(?:[A-Za-z][A-Za-z0-9+.-]*:/+)?")


@dataclass(frozen=True)
class Credentials:
    """A user name and a password. Its text forms show neither."""

    user: str = field(repr=False)
    password: str = field(repr=False)

    def in_url(self, url: str) -> str:
        """Return the URL with user and password before its host."""
        scheme, rest = url.split("://", 1)
        return f"{scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{rest}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every spelling that must never be shown."""
        spellings = {self.password, quote(self.password, safe=""), quote(self.password)}
        return tuple(sorted((text for text in spellings if text), key=len, reverse=True))


class Address(NamedTuple):
    """A URL in the parts of RFC 3986 that matter here."""

    scheme: str
    host: str  # with its port
    path: str  # with query and fragment
    credentials: Credentials | None

    @property
    def url(self) -> str:
        """The URL without credentials."""
        return f"{self.scheme}://{self.host}{self.path}"


def split_url(url: str, action: str, hint: str = ESCAPES) -> Address:
    """Split a URL into its parts.

    RFC 3986 ends the host at the first ``/``, ``?`` or ``#``. Where an ``@`` comes later and a colon before it, these
    signs may belong to a password, which then would be looked up, opened and shown as a host or a path: refused.

    Args:
        url: as it was typed.
        action: for the error text; it doesn't hold the URL.
        hint: likewise.

    Raises:
        UsageError: see above; the password isn't shown.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    suspect = rest.rpartition("@")[0]
    if len(suspect) > len(authority) and may_be_secret(suspect):
        raise UsageError(action, "the address has an @ after /, ? or #, which may belong to a password", hint)
    user_info, _, host = authority.rpartition("@")
    user, _, password = user_info.partition(":")
    credentials = Credentials(unquote(user), unquote(password)) if user_info else None
    return Address(scheme, host, rest[len(authority) :], credentials)


def shown(argument: str) -> str:
    """Return an address that a user typed, however misspelt, in a form that may be shown."""
    before, _, after = argument.rpartition("@")
    begin = _BEGIN.match(argument)
    return redact(f"{begin[0] if begin else ''}***@{after}" if ":" in before else argument)


def redact(text: object, secrets: Iterable[str] = ()) -> str:
    """Return ``text``, printable, without any of the ``secrets``, and without passwords in any URL that it holds."""
    redacted = str(text)
    for each in secrets:
        redacted = redacted.replace(each, "***")
    return printable(IN_PATH.sub(r"\1…", without_passwords(redacted)))


def from_environment(text: str, action: str) -> str:
    """Return the text, or the content of the environment variable that ``env:NAME`` names.

    Raises:
        UsageError: the variable isn't set.
    """
    if not text.startswith("env:"):
        return text
    return secret(text.removeprefix("env:"), action, "set it").strip()
