"""A small threaded HTTP/1.1 server for stand-ins: keep-alive, TLS, CONNECT, faults and a log.

A `Site` answers requests; a `Server` brings them to it. They are two, so that one site can be
reached on its own port and under its real name through a proxy.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Self

from tests.sandbox.access import Access, AccessLog, read_path
from tests.sandbox.faults import Fault, Faults
from tests.sandbox.wire import Request, Response, read_request, send


class Site:
    """Something that answers requests, with its latency (seconds), its faults and its log."""

    def __init__(self, latency: float = 0.0) -> None:
        self.latency = latency
        self.faults = Faults()
        self.access = AccessLog()

    def respond(self, request: Request) -> Response:
        raise NotImplementedError

    def record(self, request: Request, status: int, account: str = "") -> None:
        """Write the request to the log."""
        target = read_path(request.path)
        secret = request.headers.get("authorization", "")
        self.access.append(
            Access(
                time=time.time(),
                method=request.method,
                path=request.target,
                status=status,
                kind=target.kind,
                repository=target.repository,
                reference=target.reference,
                host=request.host,
                client=request.client,
                account=account,
                user_agent=request.headers.get("user-agent", ""),
                authorization=secret.partition(" ")[0],
                cookie="cookie" in request.headers,
                secret=secret,
            )
        )


class Server:
    """Listens on a loopback port of its own until closed, one thread for each connection.

    `tls` wraps every connection; `tunnel` makes it a proxy whose CONNECTs all end here, in TLS.
    """

    def __init__(
        self,
        route: Site | Callable[[Request], Site],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        tunnel: ssl.SSLContext | None = None,
    ) -> None:
        self._route = (lambda _: route) if isinstance(route, Site) else route
        self._tls, self._tunnel = tls, tunnel
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, socket.socket] = {}
        self._listener = socket.create_server((host, port), backlog=256)
        self.host, self.port = host, int(self._listener.getsockname()[1])
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, cut every connection and wait for the threads."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(5)
        with self._lock:
            connections = dict(self._open)
        for connection in connections.values():
            with contextlib.suppress(OSError):
                # Not SSLSocket's own: it pulls the TLS state from under the reading thread.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in connections:
            thread.join(5)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, address = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(
                target=self._serve, args=(connection, address[0]), daemon=True
            )
            with self._lock:
                self._open[thread] = connection
            thread.start()

    def _serve(self, connection: socket.socket, client: str) -> None:
        current = threading.current_thread()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                connection = self._wrap(connection, self._tls)
            if self._tunnel:
                self._accept_tunnel(connection)
                connection = self._wrap(connection, self._tunnel)
            scheme = "https" if isinstance(connection, ssl.SSLSocket) else "http"
            with connection.makefile("rb", 1 << 16) as reader:
                while request := read_request(reader, connection, client, scheme):
                    if not self._answer(connection, request):
                        break
        except (OSError, ValueError):
            pass  # the client went away, or does not speak HTTP
        finally:
            connection.close()
            with self._lock:
                self._open.pop(current, None)

    def _wrap(self, connection: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._open[threading.current_thread()] = wrapped
        try:
            wrapped.do_handshake()
        except OSError:
            wrapped.close()
            raise
        return wrapped

    @staticmethod
    def _accept_tunnel(connection: socket.socket) -> None:
        with connection.makefile("rb", 0) as reader:
            request = read_request(reader, connection, "", "http")
        if request is None or request.method != "CONNECT":
            connection.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            raise ValueError("a proxy for CONNECT only")
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")

    def _answer(self, connection: socket.socket, request: Request) -> bool:
        """Answer one request; return whether the connection can serve another."""
        site = self._route(request)
        fault = site.faults.match(request.method, request.path)
        self._pause(site.latency)
        if fault is not None and fault.reset:
            site.record(request, 0)
            self._pause(fault.hang)
            return _reset(connection)
        response = _respond(site, request, fault)
        lost = fault is not None and fault.drop
        site.record(request, 0 if lost else response.status, response.account)
        if fault is not None:
            self._pause(fault.hang)
        if lost:
            return _reset(connection)
        send(connection, request, response, None if fault is None else fault.cut)
        if fault is not None and fault.cut is not None:
            return False
        return request.headers.get("connection", "").lower() != "close"

    def _pause(self, seconds: float) -> None:
        if seconds and self._closing.wait(seconds):
            raise ConnectionAbortedError("the server closes")


def _respond(site: Site, request: Request, fault: Fault | None) -> Response:
    if fault is not None and fault.status is not None:
        return Response(fault.status, fault.headers, fault.body)
    try:
        return site.respond(request)
    except Exception:
        # A bug of the stand-in: the test that meets it should see where.
        text = traceback.format_exc()
        print(text, file=sys.stderr)
        return Response(500, {"Content-Type": "text/plain"}, text.encode())


def _reset(connection: socket.socket) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False
