"""Answer the challenges of HTTP and RTSP servers: Basic (RFC 7617) and Digest (RFC 2617, RFC 7616)."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Mapping

from vitedge.streaming.address import Credentials

_SCHEME = re.compile(r"(?i)(?:^|,)\s*(basic|digest)(?:\s+|$)")
_FIELD = re.compile(r'([A-Za-z0-9-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
#: Weakest first.
_HASHES: dict[str, Callable[[bytes], str]] = {
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
    "SHA-512-256": lambda data: hashlib.new("sha512_256", data).hexdigest(),
}


class Authenticator:
    """One name and password, as a server asks for them; Digest is preferred to Basic.

    Args:
        credentials: whom they're for is the caller's to know.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._basic = False
        self._digest: Mapping[str, str] | None = None
        self._uses = 0  # of the digest's nonce

    def challenge(self, headers: Iterable[str]) -> bool:
        """Read a server's ``WWW-Authenticate`` headers; False: no challenge among them can be answered."""
        self._basic, self._digest, self._uses = False, None, 0
        for scheme, fields in _challenges(headers):
            if scheme == "basic":
                self._basic = True
            elif _strength(fields) > _strength(self._digest or {}):
                self._digest = fields
        return self._basic or self._digest is not None

    def header(self, method: str, uri: str) -> str | None:
        """Return the value of ``Authorization`` for a request; None before a challenge.

        Args:
            method: of the request.
            uri: as the request's first line has it.
        """
        if self._digest is not None:
            self._uses += 1
            return _digest(self._digest, self._credentials, method, uri, self._uses)
        if self._basic:
            pair = f"{self._credentials.user}:{self._credentials.password}"
            return f"Basic {base64.b64encode(pair.encode()).decode()}"
        return None


def _challenges(headers: Iterable[str]) -> Iterable[tuple[str, dict[str, str]]]:
    """Yield (scheme, fields) of each challenge; one header may hold several."""
    for header in headers:
        starts = [*_SCHEME.finditer(header)]
        ends = [start.start() for start in starts[1:]] + [len(header)]
        for start, end in zip(starts, ends, strict=False):
            found = _FIELD.finditer(header[start.end() : end])
            fields = {
                each[1].lower(): re.sub(r"\\(.)", r"\1", each[2]) if each[3] is None else each[3] for each in found
            }
            yield start[1].lower(), fields


def _hash_name(fields: Mapping[str, str]) -> str:
    return fields.get("algorithm", "MD5").upper().removesuffix("-SESS")


def _strength(fields: Mapping[str, str]) -> int:
    """Rank a challenge; 0: it can't be answered."""
    qop = fields.get("qop", "auth").lower().replace(" ", "").split(",")
    if "nonce" not in fields or "auth" not in qop or _hash_name(fields) not in _HASHES:
        return 0
    return 1 + list(_HASHES).index(_hash_name(fields))


def _digest(fields: Mapping[str, str], credentials: Credentials, method: str, uri: str, uses: int) -> str:
    """Compute RFC 7616, 3.4: with a quality of protection where the server offers one, else as in RFC 2069."""

    def hashed(*parts: str) -> str:
        return _HASHES[_hash_name(fields)](":".join(parts).encode())

    realm, nonce = fields.get("realm", ""), fields["nonce"]
    count, own_nonce = f"{uses:08x}", secrets.token_hex(8)
    identity = hashed(credentials.user, realm, credentials.password)
    if fields.get("algorithm", "").upper().endswith("-SESS"):
        identity = hashed(identity, nonce, own_nonce)
    request = hashed(method, uri)
    middle = (nonce, count, own_nonce, "auth") if "qop" in fields else (nonce,)
    answer = {"username": credentials.user, "realm": realm, "nonce": nonce, "uri": uri}
    answer["response"] = hashed(identity, *middle, request)
    plain = {"algorithm": fields["algorithm"]} if "algorithm" in fields else {}
    if "opaque" in fields:
        answer["opaque"] = fields["opaque"]
    if "qop" in fields or fields.get("algorithm", "").upper().endswith("-SESS"):
        answer["cnonce"] = own_nonce
    if "qop" in fields:
        plain |= {"qop": "auth", "nc": count}
    words = [f'{name}="{_escaped(value)}"' for name, value in answer.items()]
    return "Digest " + ", ".join([*words, *(f"{name}={value}" for name, value in plain.items())])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
