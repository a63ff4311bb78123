"""Read HTTP addresses: redirects, passwords and kept connections. In the reader's process only."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from urllib.parse import quote, urljoin, urlsplit

from vitedge._version import __version__
from vitedge.streaming.address import Credentials
from vitedge.streaming.authentication import Authenticator
from vitedge.streaming.causes import UNAUTHORIZED, Failure, Unavailable, refuse_elsewhere, same_server
from vitedge.streaming.task import Task

MOST_REDIRECTS = 5
_IN_PATH = "%/:=&?~+!$,;'@()*[]"  # characters of an address that are sent unescaped
_MOST_REST = 1 << 16  # bytes of an answer that are read to keep its connection


class Answer:
    """A server's answer; its body is read from it."""

    def __init__(self, client: Client, url: str, connection: http.client.HTTPConnection) -> None:
        self._client, self._connection = client, connection
        self._body = connection.getresponse()
        self._closed = False
        self.url, self.status = url, self._body.status
        self.content_type = self._body.getheader("Content-Type", "").partition(";")[0].strip().lower()
        self.length = self._body.length  # bytes to come; None: until it ends
        self.seekable = self.status == 206 or self._body.getheader("Accept-Ranges", "").lower() == "bytes"
        self.challenges = self._body.headers.get_all("WWW-Authenticate", [])
        location = self._body.getheader("Location") if 300 <= self.status < 400 else None
        self.location = location and urljoin(url, location)
        if connection.sock is not None:
            connection.sock.settimeout(client.stall_s)

    def read(self, most: int) -> bytes:
        """Read at most so many bytes, as soon as there are any; none at the end, or once it's closed.

        Raises:
            Unavailable: nothing comes, or the connection breaks.
        """
        try:
            return self._body.read1(most)
        except TimeoutError:
            raise Unavailable(f"silent for {self._client.stall_s:g} s") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unavailable(_text(error)) from None

    def close(self) -> None:
        """Release it, and keep its connection where that costs little."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._body.will_close and self.length is not None and self.length <= _MOST_REST:
                self._body.read()
            if self._body.isclosed() and not self._body.will_close:
                self._client.keep(self.url, self._connection)
                return
        except (OSError, ValueError, http.client.HTTPException):
            pass
        self._body.close()
        self._connection.close()


class Client:
    """GETs addresses of one host. Only its server gets the password; other hosts are used only if allowed.

    Args:
        url: of the source, without credentials.
        credentials: for its server (the same scheme, host and port, or https in place of http).
        other_hosts: whether redirects and playlists may lead to other hosts.
        connect_s: time limit until an answer begins.
        stall_s: time limit for each further piece of it.
    """

    def __init__(
        self, url: str, credentials: Credentials | None, *, other_hosts: bool, connect_s: float, stall_s: float
    ) -> None:
        self._named, self._other_hosts = url, other_hosts
        self._authenticator = None if credentials is None else Authenticator(credentials)
        self._connect_s, self.stall_s = connect_s, stall_s
        self._kept: dict[tuple[str, str, int | None], http.client.HTTPConnection] = {}

    def get(self, url: str, part: str | None = None) -> Answer:
        """GET an address, and follow its redirects.

        Args:
            url: without credentials.
            part: the value of ``Range``, for a part of it.

        Raises:
            Unavailable: it can't be reached, or answers with an error.
            Failure: it wants another password, or leads elsewhere.
        """
        refuse_elsewhere(self._named, url, other_hosts=self._other_hosts)
        for _ in range(MOST_REDIRECTS):
            answer = self._ask(url, {} if part is None else {"Range": part})
            if answer.location is None:
                return self._checked(answer)
            answer.close()
            refuse_elsewhere(url, answer.location, other_hosts=self._other_hosts)
            url = answer.location
        raise Failure("it redirects too many times")

    def keep(self, url: str, connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next request."""
        before = self._kept.pop(_server(url), None)
        if before is not None:
            before.close()
        self._kept[_server(url)] = connection

    def close(self) -> None:
        """Close the kept connections."""
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()

    def _checked(self, answer: Answer) -> Answer:
        if answer.status in (200, 206):
            return answer
        answer.close()
        reason = http.client.responses.get(answer.status, "")
        if answer.status == 401 and self._authenticator and not same_server(self._named, answer.url):
            raise Failure(
                f"it redirects to {_server(answer.url)[1]}, which asks for a password; this one isn't sent there"
            )
        if answer.status == 401:
            raise Failure(UNAUTHORIZED)
        raise Unavailable(f"it answers {answer.status} {reason}".rstrip())

    def _ask(self, url: str, headers: Mapping[str, str]) -> Answer:
        """Return one server's answer, after sending the password if it asks for it and may have it."""
        authenticator = self._authenticator if same_server(self._named, url) else None
        answer = self._send(url, headers, authenticator)
        if answer.status == 401 and authenticator is not None and authenticator.challenge(answer.challenges):
            answer.close()
            answer = self._send(url, headers, authenticator)
        return answer

    def _send(self, url: str, headers: Mapping[str, str], authenticator: Authenticator | None) -> Answer:
        kept, fresh = self._kept.pop(_server(url), None), self._connection(url)
        failure: Exception | None = None
        for connection in (fresh,) if kept is None else (kept, fresh):  # the server may have closed the kept one
            try:
                return self._request(connection, url, headers, authenticator)
            except TimeoutError:
                connection.close()
                raise Unavailable(f"no answer within {self._connect_s:g} s") from None
            except (OSError, ValueError, http.client.HTTPException) as error:
                connection.close()
                failure = error
        assert failure is not None
        raise Unavailable(_text(failure))

    def _connection(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        if parts.scheme == "https":
            # Cameras sign their certificates themselves, so none is verified, as FFmpeg does.
            context = ssl._create_unverified_context()
            return http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=self._connect_s, context=context
            )
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=self._connect_s)

    def _request(
        self,
        connection: http.client.HTTPConnection,
        url: str,
        headers: Mapping[str, str],
        authenticator: Authenticator | None,
    ) -> Answer:
        parts = urlsplit(url)
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_IN_PATH)
        sent = {"User-Agent": f"vitedge/{__version__}", "Accept": "*/*", **headers}
        if authenticator is not None and (authorization := authenticator.header("GET", path)):
            sent["Authorization"] = authorization
        if connection.sock is not None:
            connection.sock.settimeout(self._connect_s)
        connection.request("GET", path, headers=sent)
        return Answer(self, url, connection)


def task_client(task: Task, url: str) -> Client:
    """Return the client of a source, with its password and time limits."""
    return Client(url, task.credentials, other_hosts=task.other_hosts, connect_s=task.connect_s, stall_s=task.stall_s)


def _server(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _text(error: Exception) -> str:
    if isinstance(error, (http.client.RemoteDisconnected, http.client.IncompleteRead)):
        return "it hung up"
    if isinstance(error, (ValueError, http.client.HTTPException)):
        return "it doesn't answer as a web server does"
    return getattr(error, "strerror", None) or type(error).__name__
