"""The gate: a registry on loopback from which skopeo reads what this run decided to copy.

It is the one door to an upstream (DESIGN.md, 3). Manifests are answered from bytes that were
fetched under a reservation, so no manifest GET can leave without one; blobs are streamed through,
with redirects followed here: TLS is then verified to the last hop (skopeo told to do without TLS
towards the gate would do without it towards the CDN as well), interrupted blobs resume, and every
byte is counted. Nothing but the digests of this run is answered, and only to who knows a password
of this run: skopeo has it from a file, since everyone can read its command line. Connections of
other users are reset, and those that have not shown the password are few and short: a local user
who opens them by the thousand takes nothing from skopeo.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Final, Protocol

from prewarm.core.errors import RegistryError
from prewarm.core.local_http import PATIENCE, LoopbackServer
from prewarm.core.manifest import Manifest
from prewarm.registry.login import Login
from prewarm.sync.relay import BrokenBodyError, Relay, Reply

log = logging.getLogger("prewarm")

CHUNK: Final = 256 * 1024
_TRIES: Final = 4
_SLOW_TRIES: Final = 2
"""How often a blob may come too slowly: each took a minute."""


class Stream(Protocol):
    """A blob being read."""

    def read(self, amount: int) -> bytes: ...
    def close(self) -> None: ...


class BlobSource(Protocol):
    """A registry that blobs are read from."""

    def open_blob(self, repository: str, digest: str, start: int = 0) -> Stream: ...


@dataclass
class Offer:
    """One manifest that the gate answers, and where its blobs come from, best first."""

    manifest: Manifest
    sources: Sequence[tuple[BlobSource, str]]
    """Registries with the repository there."""
    on_bytes: Callable[[int], None]
    relay: Relay | None = None
    """Where skopeo may write it to."""
    known: Mapping[str, bytes] = field(default_factory=dict)
    """Blobs that were read before, by digest."""
    sent: int = 0
    """Bytes of blobs read, to be handed on."""
    failures: dict[str, RegistryError] = field(default_factory=dict)
    """By blob: what its sources said last, where the gate could not mend it."""
    sizes: dict[str, int] = field(init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.sizes = {blob.digest: blob.size for blob in self.manifest.blobs}

    @property
    def failure(self) -> RegistryError | None:
        """Why the sources did not give all that was asked for, if they did not."""
        # Threads of the gate may still be writing to it.
        return next(iter(list(self.failures.values())), None)

    def count(self, amount: int) -> None:
        with self.lock:
            self.sent += amount
        self.on_bytes(amount)


class Gate:
    """The server; use as a context manager for the length of a run."""

    def __init__(self) -> None:
        self.login = Login("gate", secrets.token_hex(16))
        """Who may ask: this run's skopeo."""
        self._offers: dict[str, Offer] = {}
        self._numbers = 0
        self._lock = threading.Lock()
        gate = self

        class Handler(_Handler):
            offers = gate._offers
            expected = _basic(gate.login)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="gate"
        )

    def __enter__(self) -> Gate:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def offer(self, offer: Offer) -> str:
        """Answer the offer's manifest and blobs from now on; return its repository on the gate.

        Below that, as `to`, is the repository that the offer's relay writes to.
        """
        with self._lock:
            self._numbers += 1
            name = f"n{self._numbers}"
            self._offers[name] = offer
        return f"{self.host}/{name}"

    def withdraw(self, repository: str) -> None:
        """Answer no more for a repository that `offer` returned."""
        self._offers.pop(repository.rpartition("/")[2], None)


def _basic(login: Login) -> str:
    return "Basic " + b64encode(f"{login.username}:{login.secret}".encode()).decode()


class _Server(LoopbackServer):
    what = "the gate"
    at_once = 64
    own_user_only = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server: _Server
    offers: dict[str, Offer]
    expected: str

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Keep silent: skopeo's first try in TLS is no news."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self._relay()

    def do_PATCH(self) -> None:
        self._relay()

    def do_PUT(self) -> None:
        self._relay()

    def do_DELETE(self) -> None:
        self._relay()

    def _relay(self) -> None:
        """Answer what only the other side of an offer can be asked: see `relay`."""
        if (found := self._known()) is not None:
            self._pass_to_mirror(*found)

    def _pass_to_mirror(self, offer: Offer, rest: str) -> None:
        side, _, below = rest.partition("/")
        path, _, query = below.partition("?")
        length = self.headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdigit() else 0
        if offer.relay is None or side != "to" or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            return self._send(Reply(404))
        try:
            reply = offer.relay.answer(self.command, path, query, self.rfile, size)
        except BrokenBodyError:
            self.close_connection = True
            return None
        # What is left of a body that was not read would be taken for the next request.
        self.close_connection = self.close_connection or (reply.status >= 400 and size > 0)
        return self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        headers = {"Content-Length": "0", **reply.headers}
        if "Location" in headers:
            name = self.path.split("/")[2]
            headers["Location"] = f"/v2/{name}/to/{headers['Location']}"
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()

    def _answer(self, *, body: bool) -> None:
        if (found := self._known(body=body)) is None:
            return None
        offer, rest = found
        kind, _, digest = rest.partition("/")
        if kind == "to" and not body:
            return self._pass_to_mirror(offer, rest)
        if kind == "manifests" and digest == offer.manifest.digest:
            manifest = offer.manifest
            return self._reply(200, manifest.media_type, manifest.content, body=body)
        if kind == "blobs" and digest in offer.sizes:
            return self._blob(offer, digest, body=body)
        return self._reply(404, "text/plain", b"", body=body)

    def _known(self, *, body: bool = True) -> tuple[Offer, str] | None:
        """Return the offer that is asked for and the rest of the path; else answer, and None."""
        given = self.headers.get("Authorization", "")
        if not secrets.compare_digest(given.encode(), self.expected.encode()):
            self.close_connection = self.close_connection or self.command not in {"GET", "HEAD"}
            self._reply(401, "text/plain", b"", body=body)
            return None
        self.server.prove(self.connection)
        # skopeo reads no faster than its mirror takes.
        self.connection.settimeout(None)
        if self.path == "/v2/":
            self._reply(200, "application/json", b"{}", body=body)
            return None
        name, _, rest = self.path.removeprefix("/v2/").partition("/")
        offer = self.offers.get(name)
        if offer is None:
            self.close_connection = self.close_connection or self.command not in {"GET", "HEAD"}
            self._reply(404, "text/plain", b"", body=body)
            return None
        return offer, rest

    def _reply(self, status: int, media_type: str, content: bytes, *, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="prewarm"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _blob(self, offer: Offer, digest: str, *, body: bool) -> None:
        if digest in offer.known:
            return self._reply(200, "application/octet-stream", offer.known[digest], body=body)
        size = offer.sizes[digest]
        stream = _open(offer, digest, 0) if body else None
        if body and stream is None:
            return self._reply(502, "text/plain", b"", body=True)
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if stream is None:
            return None
        sent, tries, slow = 0, 1, 0
        while stream is not None:
            try:
                sent = self._pass_on(offer, stream, sent, size)
                if sent >= size:
                    offer.failures.pop(digest, None)
                    return None
                offer.failures[digest] = RegistryError(
                    "reset", f"blob {digest} ended after {sent} of {size} bytes", "run again"
                )
            except _BrokenError as broken:
                sent, offer.failures[digest] = broken.sent, broken.cause
                # A connection may stall where another does not; that was time enough.
                slow += broken.cause.code.endswith("timeout")
            finally:
                stream.close()
            # The next source first: this one may break off at the same place again.
            again = tries < _TRIES and slow < _SLOW_TRIES
            stream = _open(offer, digest, sent, tries) if again else None
            tries += 1
        # Nothing more can be had: a cut connection tells skopeo that the blob is not whole.
        self.close_connection = True
        return None

    def _pass_on(self, offer: Offer, stream: Stream, sent: int, size: int) -> int:
        while sent < size:
            try:
                chunk = stream.read(min(CHUNK, size - sent))
            except RegistryError as error:
                raise _BrokenError(sent, error) from error
            if not chunk:
                break
            # Counted first: who has read all of a blob finds all of it counted.
            offer.count(len(chunk))
            self.wfile.write(chunk)
            sent += len(chunk)
        return sent


class _BrokenError(Exception):
    """A source broke off after `sent` bytes of a blob."""

    def __init__(self, sent: int, cause: RegistryError) -> None:
        super().__init__()
        self.sent = sent
        self.cause = cause


def _open(offer: Offer, digest: str, start: int, skipped: int = 0) -> Stream | None:
    """Open the blob at the first source that has it, those skipped last."""
    first = skipped % len(offer.sources)
    for source, repository in (*offer.sources[first:], *offer.sources[:first]):
        try:
            return source.open_blob(repository, digest, start)
        except RegistryError as error:
            offer.failures[digest] = error
    return None
