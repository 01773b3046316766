"""The small server of `prewarm run --listen`: /metrics and /healthz, on loopback alone."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Final

from prewarm.core.errors import PrewarmError, UsageError
from prewarm.core.local_http import PATIENCE, LoopbackServer
from prewarm.core.net import is_loopback
from prewarm.daemon.prometheus import CONTENT_TYPE

log = logging.getLogger("prewarm")

_TEXT: Final = "text/plain; charset=utf-8"
_AT_ONCE: Final = 16
"""Connections: whoever opens one after the other takes neither threads nor files from a sync."""


def address_of(text: str) -> tuple[str, int]:
    """Return host and port of `127.0.0.1:9464`, `[::1]:9464` or `localhost:9464`; 0: any free port.

    UsageError for anything else: nobody is asked for a password here.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or not host:
        raise UsageError("usage", f"--listen {text}: no address", "write 127.0.0.1:9464")
    if (":" in host) != (host[0] == "[" and host[-1] == "]"):
        raise UsageError("usage", f"--listen {text}: no address", "write [::1]:9464")
    if not is_loopback(host):
        raise UsageError(
            "usage",
            f"--listen {text}: {host} is not loopback, and nobody is asked for a password there",
            "write 127.0.0.1:9464 and put a proxy before it, or use metrics: with node_exporter",
        )
    return host.strip("[]"), int(port)


class Scrape:
    """The server; use as a context manager for the length of the daemon."""

    def __init__(
        self, address: tuple[str, int], metrics: Callable[[], bytes], ill: Callable[[], str]
    ) -> None:
        """`metrics` makes the text of /metrics; `ill` tells what is wrong, '' where all is well."""
        host, port = address

        class Server(_Server):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        class Handler(_Handler):
            pages = staticmethod(_Pages(metrics, ill))

        try:
            self._server = Server(address, Handler)
        except OSError as error:
            raise UsageError(
                "usage",
                f"--listen {host}:{port}: {error.strerror or error}",
                "choose another port, or end what listens there",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="scrape")

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Scrape:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Pages:
    def __init__(self, metrics: Callable[[], bytes], ill: Callable[[], str]) -> None:
        self._metrics = metrics
        self._ill = ill
        self._lock = threading.Lock()

    def __call__(self, path: str, host: str | None) -> tuple[int, str, bytes]:
        """Return status, type and body."""
        if host is not None and not is_loopback(_without_port(host)):
            # A page of another site, whose name its owner lets mean this machine, reads nothing.
            return 421, _TEXT, b"ask by 127.0.0.1 or localhost: no other Host is answered\n"
        path = path.partition("?")[0]
        if path == "/metrics":
            try:
                # The state is read anew each time, by one at a time.
                with self._lock:
                    return 200, CONTENT_TYPE, self._metrics()
            except PrewarmError as error:
                return 500, _TEXT, f"{error}\n".encode()
            except Exception:
                log.exception("a bug met /metrics")
                return 500, _TEXT, b"this is a bug of prewarm: see its log\n"
        if path == "/healthz":
            ill = self._ill()
            return (503 if ill else 200), _TEXT, f"{ill or 'ok'}\n".encode()
        return 404, _TEXT, b"there are /metrics and /healthz\n"


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if port.isdecimal() and name else host


class _Server(LoopbackServer):
    what = "--listen"
    at_once = _AT_ONCE


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE
    server_version = "prewarm"
    sys_version = ""
    pages: Callable[[str, str | None], tuple[int, str, bytes]]

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Keep silent: somebody asks every few seconds."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        status, kind, body = self.pages(self.path, self.headers.get("Host"))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)
