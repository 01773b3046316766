"""A server that answers by a function: registries, token servers and blob stores as no real one is.

It speaks real HTTP on loopback, keeps what it was sent, and can hang, cut and reset through the
faults of the sandbox.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self
from urllib.parse import parse_qs

from tests.sandbox.server import Server, Site
from tests.sandbox.wire import Request, Response

Script = Callable[[Request], Response]


class Scripted(Site):
    """A site and its server; `requests` holds what came, in order."""

    def __init__(
        self, script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self._script = script
        self._lock = threading.Lock()
        self._server = Server(self, host=host, tls=tls)
        self.url = self._server.url
        self.port = self._server.port

    def respond(self, request: Request) -> Response:
        with self._lock:
            self.requests.append(request)
        return self._script(request)

    def paths(self, method: str = "") -> list[str]:
        """Return the paths asked for, perhaps by one method alone, without /v2/ itself."""
        return [
            request.path
            for request in list(self.requests)
            if method in ("", request.method) and request.path != "/v2/"
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()


def reply(status: int = 200, body: bytes | str = b"", **headers: str) -> Response:
    """Return an answer; `www_authenticate` and the like name headers."""
    content = body.encode() if isinstance(body, str) else body
    return Response(
        status, {name.replace("_", "-"): text for name, text in headers.items()}, content
    )


def error(status: int, code: str, message: str = "", **headers: str) -> Response:
    """Return an error in the form of the distribution specification."""
    body = json.dumps({"errors": [{"code": code, "message": message}]})
    return reply(status, body, content_type="application/json", **headers)


def token(value: str = "T0KEN", **more: Any) -> Response:
    return reply(200, json.dumps({"token": value, "expires_in": 300, **more}))


def bearer(realm: str, service: str = "registry") -> str:
    return f'Bearer realm="{realm}",service="{service}"'


def query(request: Request) -> Mapping[str, list[str]]:
    return parse_qs(request.query)
