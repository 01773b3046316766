"""A counting reverse proxy before a registry: shows what it was asked, and breaks it on demand."""

from __future__ import annotations

from typing import Self

from tests.sandbox.registry import Registry
from tests.sandbox.server import Server, Site
from tests.sandbox.wire import Request, Response

_HOP = frozenset({"connection", "host", "transfer-encoding", "content-length", "expect"})


class Tap(Site):
    """Passes every request on to a registry; `access` holds them, `faults` answers instead."""

    def __init__(self, registry: Registry, *, latency: float = 0.0) -> None:
        super().__init__(latency)
        self.registry = registry
        self._server = Server(self)
        self.url = self._server.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()

    def respond(self, request: Request) -> Response:
        passed = {name: value for name, value in request.headers.items() if name not in _HOP}
        body = request.body if request.method not in ("GET", "HEAD", "DELETE") else None
        try:
            answer = self.registry.pool.request(request.method, request.target, passed, body)
        except OSError as error:
            return Response(502, {"Content-Type": "text/plain"}, str(error).encode())
        headers = {
            name.title(): value
            for name, value in answer.headers.items()
            if name not in _HOP or (request.method == "HEAD" and name == "content-length")
        }
        return Response(answer.status, headers, answer.body)
