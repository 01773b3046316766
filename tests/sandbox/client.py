"""Plain HTTP to one server over kept-alive connections: for stand-ins and for looking from outside.

Deliberately not the product's own client: what proves it must not share its mistakes.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

_STALE: Final = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, whole; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Pool:
    """Connections to one server that many threads share."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        self._parts = urlsplit(url)
        self._context = context
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Ask and return the answer; OSError or HTTPException where there is none."""
        while True:
            with self._lock:
                kept = self._idle.popleft() if self._idle else None
            connection = kept or self._connect()
            try:
                connection.request(method, path, body=body, headers=dict(headers or {}))
                response = connection.getresponse()
                content = response.read()
            except BaseException as error:
                connection.close()
                # The server may have closed a kept connection, by a restart for instance.
                if kept is not None and isinstance(error, _STALE):
                    continue
                raise
            with self._lock:
                self._idle.appendleft(connection)
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, content)

    def close(self) -> None:
        """Close the connections that are idle."""
        with self._lock, contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _connect(self) -> http.client.HTTPConnection:
        options: dict[str, Any] = {"timeout": 60}
        assert self._parts.hostname is not None
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(
                self._parts.hostname, self._parts.port, context=self._context, **options
            )
        return http.client.HTTPConnection(self._parts.hostname, self._parts.port, **options)
