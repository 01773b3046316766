"""HTTP/1.1 messages: read from and written to a connection.

Bodies are kept in memory, except for answers from a file.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Reader(Protocol):
    """The reading side of a connection."""

    def readline(self, size: int, /) -> bytes: ...
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Request:
    """A request, whole; header names are lower-case, repeated ones are joined by commas."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    client: str
    scheme: str

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def host(self) -> str:
        return self.headers.get("host", "")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; a Path as body is sent from the file, `start` and `length` say which part."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Path = b""
    start: int = 0
    length: int | None = None
    account: str = ""
    """For the log: who the server took the client for."""

    @property
    def size(self) -> int:
        if self.length is not None:
            return self.length
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)


def read_request(
    reader: Reader, connection: socket.socket, client: str, scheme: str
) -> Request | None:
    """Return the next request, or None where the client is done; ValueError: not HTTP."""
    line = reader.readline(1 << 16)
    if not line.strip():
        return None
    method, target, _ = line.decode("latin-1").split()
    headers: dict[str, str] = {}
    while (line := reader.readline(1 << 16)) not in (b"\r\n", b"\n"):
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            raise ValueError("not a header")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "://" in target:
        parts = urlsplit(target)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
    return Request(method, target, headers, _read_body(reader, headers), client, scheme)


def _read_body(reader: Reader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        length = int(headers.get("content-length", "0"))
        return _exactly(reader, length) if length else b""
    chunks = []
    while size := int(reader.readline(1 << 16).split(b";")[0], 16):
        chunks.append(_exactly(reader, size))
        reader.readline(1 << 16)
    while reader.readline(1 << 16).strip():
        pass  # trailers
    return b"".join(chunks)


def _exactly(reader: Reader, length: int) -> bytes:
    content = reader.read(length)
    if len(content) != length:
        raise ValueError("the client broke off")
    return content


def send(connection: socket.socket, request: Request, response: Response, cut: int | None) -> None:
    length = response.size
    lines = [f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if response.status != 204 and "Content-Length" not in response.headers:
        lines.append(f"Content-Length: {length}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if request.method == "HEAD":
        connection.sendall(head)
        return
    if cut is not None:
        length = min(cut, length)
    if isinstance(response.body, bytes):
        connection.sendall(head + response.body[response.start : response.start + length])
        return
    connection.sendall(head)
    if length:
        with response.body.open("rb") as file:
            connection.sendfile(file, response.start, length)
