"""What servers of tests ask of their visitors, and whether an answer is right (RFC 7617, RFC 2617, RFC 7616)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable

HASHES: dict[str, Callable[[bytes], str]] = {
    "MD5": lambda data: hashlib.md5(data).hexdigest(),
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
}
NONCE, OPAQUE = "0123456789abcdef", "fedcba9876543210"


class Gate:
    """Lets in whoever knows the password, if there is one.

    Args:
        scheme: "basic"; "digest", as RFC 2069 has it and old cameras do; "digest-MD5", "digest-MD5-sess" or
            "digest-SHA-256", with a quality of protection.
    """

    def __init__(self, scheme: str, user: str, password: str) -> None:
        self._scheme, self._user, self._password = scheme, user, password

    @property
    def challenge(self) -> str:
        """The header ``WWW-Authenticate``."""
        kind, _, algorithm = self._scheme.partition("-")
        if kind == "basic":
            return 'Basic realm="a camera"'
        qop = f', qop="auth,auth-int", opaque="{OPAQUE}", algorithm={algorithm}' if algorithm else ""
        return f'Digest realm="a camera", nonce="{NONCE}"{qop}'

    def admits(self, request: str) -> bool:
        """Whether a request's head has the right answer."""
        if not self._password:
            return True
        authorization = re.search(r"(?im)^authorization:\s*(\w+) (.*?)\r?$", request)
        if authorization is None or authorization[1].lower() != self._scheme.partition("-")[0]:
            return False
        if authorization[1].lower() == "basic":
            return base64.b64decode(authorization[2]).decode() == f"{self._user}:{self._password}"
        pairs = re.findall(r'(\w+)=(?:"([^"]*)"|([^,\s]+))', authorization[2])
        fields = {name: quoted or bare for name, quoted, bare in pairs}
        method, uri = request.split()[:2]
        return fields["uri"] == uri and fields["username"] == self._user and self._right(fields, method)

    def _right(self, fields: dict[str, str], method: str) -> bool:
        algorithm = self._scheme.partition("-")[2]
        digest = HASHES[algorithm.removesuffix("-sess") or "MD5"]
        secret = digest(f"{self._user}:a camera:{self._password}".encode())
        if algorithm.endswith("-sess"):
            secret = digest(f"{secret}:{NONCE}:{fields['cnonce']}".encode())
        request = digest(f"{method}:{fields['uri']}".encode())
        if not algorithm:
            return fields["response"] == digest(f"{secret}:{NONCE}:{request}".encode())
        middle = f"{NONCE}:{fields['nc']}:{fields['cnonce']}:{fields['qop']}"
        return fields["opaque"] == OPAQUE and fields["response"] == digest(f"{secret}:{middle}:{request}".encode())
