"""A server that answers byte by byte, or never to the end: slow as only an adversary is."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from typing import Self

Pieces = Iterable[bytes]
"""What is sent after a request, piece by piece; the connection is closed at its end."""


class Dripping:
    """Listens on loopback; answers each request with pieces, a pause between two of them.

    `script` is given the request line and headers. A client that waits for longer than `longest`
    seconds gets the connection closed: the test's own bound.
    """

    def __init__(
        self, script: Callable[[str], Pieces], *, pause: float = 0.1, longest: float = 15.0
    ) -> None:
        self._script = script
        self._pause = pause
        self._longest = longest
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._threads: list[threading.Thread] = []
        self.requests: list[str] = []
        self.ran_out = False
        """Whether a client waited until the test's own bound."""
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(0.2)
            while not self._over.is_set():
                asked = self._request(connection)
                if not asked:
                    return
                self.requests.append(asked.partition("\r\n")[0])
                waited = 0.0
                pieces = self._script(asked)
                for piece in pieces:
                    connection.sendall(piece)
                    if isinstance(pieces, tuple):
                        continue  # complete at once, and the connection is kept
                    waited += self._pause
                    if self._over.wait(self._pause):
                        return
                    if waited > self._longest:
                        self.ran_out = True
                        return
                if not isinstance(pieces, tuple):
                    return

    def _request(self, connection: socket.socket) -> str:
        """Return the head of a request; its body, if any, is read and dropped."""
        found = b""
        while b"\r\n\r\n" not in found and not self._over.is_set():
            with suppress(TimeoutError):
                piece = connection.recv(65536)
                if not piece:
                    return ""
                found += piece
        return found.partition(b"\r\n\r\n")[0].decode("latin-1")


def at_once(status: str = "200 OK", body: bytes = b"", **headers: str) -> Pieces:
    """Return a complete answer."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status}", *lines, f"Content-Length: {len(body)}", "", ""])
    return (head.encode() + body,)


def headers() -> Iterator[bytes]:
    """A header that never ends."""
    return chain([b"HTTP/1.1 200 OK\r\nX-Slow: "], repeat(b"a"))


def status_line() -> Iterator[bytes]:
    """A reason in the status line that never ends."""
    return chain([b"HTTP/1.1 200 "], repeat(b"O"))


def going_on() -> Iterator[bytes]:
    """`100 Continue` without end."""
    return repeat(b"HTTP/1.1 100 Continue\r\n\r\n")


def body() -> Iterator[bytes]:
    """A body of a million bytes, one at a time."""
    return chain([b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"], repeat(b"{"))


def unsized_body() -> Iterator[bytes]:
    """A body that ends with the connection."""
    return chain([b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"], repeat(b"{"))


def chunk_size() -> Iterator[bytes]:
    """The size of a chunk, with an extension that never ends."""
    return chain([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x="], repeat(b"a"))


def trailers() -> Iterator[bytes]:
    """Trailers without end after a complete body."""
    return chain(
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"],
        repeat(b"X-More: 1\r\n"),
    )


HEADS = (headers, status_line, going_on)
BODIES = (body, unsized_body, chunk_size, trailers)
