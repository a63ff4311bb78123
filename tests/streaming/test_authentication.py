"""Answers to challenges, against the RFCs' own examples and a server's check."""

from __future__ import annotations

import re
from hashlib import md5, sha256

import pytest

from tests.streaming.challenges import Gate
from vitedge.streaming.address import Credentials
from vitedge.streaming.authentication import Authenticator


def answer(credentials: Credentials, *challenges: str, method: str = "GET", uri: str = "/dir/index.html") -> str | None:
    authenticator = Authenticator(credentials)
    assert authenticator.header(method, uri) is None  # nothing is said before somebody asks
    assert authenticator.challenge(challenges) is bool(authenticator.header(method, uri))
    return authenticator.header(method, uri)


def test_the_answer_of_old_cameras() -> None:
    """RFC 2069's: without a quality of protection."""
    challenge = 'Digest realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"'
    url = "rtsp://cam/live"
    header = answer(Credentials("Mufasa", "Circle Of Life"), challenge, method="DESCRIBE", uri=url)
    secret = md5(b"Mufasa:testrealm@host.com:Circle Of Life").hexdigest()
    request = md5(f"DESCRIBE:{url}".encode()).hexdigest()
    expected = md5(f"{secret}:dcd98b7102dd2f0e8b11d0f600bfb0c093:{request}".encode()).hexdigest()
    assert header and f'response="{expected}"' in header and f'uri="{url}"' in header and "cnonce" not in header


def test_the_example_of_rfc_7616() -> None:
    """Section 3.9.1: both challenges, of which the stronger is answered."""
    common = (
        'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={}, '
        'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
    )
    header = answer(Credentials("Mufasa", "Circle of Life"), common.format("MD5"), common.format("SHA-256"))
    assert header and "algorithm=SHA-256" in header and "qop=auth," in header + ","
    own_nonce, count = re.findall(r'cnonce="(\w+)"|nc=(\w+)', header)[0][0], "00000002"
    secret = sha256(b"Mufasa:http-auth@example.org:Circle of Life").hexdigest()
    request = sha256(b"GET:/dir/index.html").hexdigest()
    nonce = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
    expected = sha256(f"{secret}:{nonce}:{count}:{own_nonce}:auth:{request}".encode()).hexdigest()
    assert f'response="{expected}"' in header and f"nc={count}" in header


@pytest.mark.parametrize("scheme", ["basic", "digest", "digest-MD5", "digest-MD5-sess", "digest-SHA-256"])
def test_a_server_accepts_what_it_asked_for(scheme: str) -> None:
    gate = Gate(scheme, 'the "gate"', "hush:/@#ü") if scheme == "basic" else Gate(scheme, "gate", "hush:/@#ü")
    right = Credentials('the "gate"' if scheme == "basic" else "gate", "hush:/@#ü")
    for credentials in (right, Credentials(right.user, "wrong")):
        header = answer(credentials, gate.challenge, uri="/a?b=c,d")
        assert gate.admits(f"GET /a?b=c,d HTTP/1.1\r\nAuthorization: {header}\r\n") is (credentials is right)


@pytest.mark.parametrize(
    ("challenges", "kind"),
    [
        (['Basic realm="a, digest b", Digest realm="x", nonce="y"'], "Digest"),
        (['Digest realm="x", nonce="y", algorithm=SHA-1', "Basic realm=x"], "Basic"),
        (['Digest realm="x", nonce="y", qop="auth-int"'], None),
        (['Digest realm="x"'], None),
        (["Negotiate", "Bearer realm=x", "", "digest", 'NTLM="'], None),
        (["basic"], "Basic"),
    ],
)
def test_the_strongest_that_is_understood_is_answered(challenges: list[str], kind: str | None) -> None:
    header = answer(Credentials("me", "hush"), *challenges)
    assert (header and header.split()[0]) == kind and "hush" not in (header or "")
