"""Carries one HTTP request to a registry and its answer back: pools, TLS, proxies, timeouts.

Nothing here knows what a registry is asked for; `client` decides that, and what is tried again.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import unquote, urlsplit, urlunsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as UrllibTimeoutError

from prewarm import __version__
from prewarm.core.errors import RegistryError, UsageError
from prewarm.core.net import proxy_for
from prewarm.core.text import url_words
from prewarm.registry.destinations import Kind, allowed, kind_of, written_kind
from prewarm.registry.errors import Role, role_code
from prewarm.registry.timeouts import Connections, CutError, TimeLimit

log = logging.getLogger("prewarm")

# At its lower levels urllib3 logs whole URLs, and a signed URL is a secret.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 30.0
BLOB_TIMEOUT = 60.0
"""Seconds between two pieces of a blob."""
LEAST_RATE = 8 * 1024
"""Bytes a second: a blob that comes more slowly for LEAST_FOR seconds is given up."""
LEAST_FOR = 60.0

_POOLS: Final = 32
"""Hosts to which connections are kept: the registry, its token server, its blob stores."""
_CHUNK: Final = 256 * 1024


class Bucket:
    """A token bucket of requests: a burst up to `per_minute` is not slowed."""

    def __init__(self, per_minute: int) -> None:
        self._size = float(per_minute)
        self._left = self._size
        self._filled = time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take one; return the seconds until it is there."""
        with self._lock:
            now = time.monotonic()
            rate = self._size / 60
            self._left = min(self._size, self._left + (now - self._filled) * rate) - 1
            self._filled = now
            return max(0.0, -self._left / rate)


class TimeOverError(RegistryError):
    """A server kept sending, and its answer was not complete in time: no reason to ask again."""


class Transport:
    """One request, one answer: pools of kept connections, TLS, proxies and timeouts."""

    def __init__(
        self,
        role: Role,
        ca: Path | None,
        environ: Mapping[str, str],
        connections: int,
        timeouts: tuple[float, float],
        *,
        origin: str | None = None,
    ) -> None:
        """`origin` is what is asked at first: it decides which addresses others may have.

        Paths of other URLs are not logged: they may be signed.
        """
        self.role = role
        self._shown = origin
        self._peers = _Peers(role, urlsplit(origin).hostname if origin else None)
        self._ca = ca
        self._environ = environ
        self._connections = connections
        self._timeouts = timeouts
        self._pools: dict[tuple[str | None, bool, bool, bool], urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._wires = Connections()
        self._limits: weakref.WeakKeyDictionary[urllib3.BaseHTTPResponse, TimeLimit] = (
            weakref.WeakKeyDictionary()
        )
        if ca is not None:
            _ = self._tls  # a file that cannot be read is told at once

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
        *,
        where: str,
        streamed: bool,
        total: float,
        foreign: bool = False,
        patience: float = 0.0,
    ) -> urllib3.BaseHTTPResponse:
        """Send once and return the answer with its body unread; RegistryError if there is none.

        All of it, the reading of the body by `read` included, may take `total` seconds. `foreign`:
        a server named the URL, not images.yml. Its address is then checked before anything is sent.
        `patience`: so many seconds more than usual may pass without a byte.
        """
        connect, read = self._timeouts
        limit = TimeLimit(total)
        with Failures(self.role, url, where, self._wires, limit), self._wires.within(limit):
            self._wires.check()
            response = self._pool(url, streamed, foreign).request(
                method,
                url,
                body=body,
                headers={"User-Agent": f"prewarm/{__version__}", **headers},
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(
                    connect=connect,
                    read=(max(read, BLOB_TIMEOUT) if streamed else read) + patience,
                ),
            )
            if limit.expired:
                dispose(response)  # its headers may be cut off
        self._limits[response] = limit
        own = self._shown is not None and url.startswith(f"{self._shown}/")
        log.debug("%s %s: %d", method, url_words(url, path=own), response.status)
        return response

    def reader(self, response: urllib3.BaseHTTPResponse, url: str, where: str) -> Reader:
        """Return what reads the body of an answer."""
        limit = self._limits[response]
        return Reader(response, limit, Failures(self.role, url, where, self._wires, limit))

    def cut(self) -> None:
        """Break off what is under way, and send nothing any more: all of it is `interrupted`."""
        self._wires.cut()

    def pause(self, seconds: float) -> None:
        """Wait, but not after a cut."""
        self._wires.ended.wait(seconds)

    def close(self) -> None:
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.clear()

    def _pool(self, url: str, streamed: bool, foreign: bool) -> urllib3.PoolManager:
        """Return the pool for the URL's proxy.

        Blobs have their own, that never blocks: who streams one may ask for a manifest meanwhile.
        So have foreign URLs, whose connections are checked.
        """
        proxy = proxy_for(url, self._environ)
        if proxy is not None and foreign:
            # The proxy resolves names; an address that is written there can be checked here.
            self._peers.check_written(urlsplit(url).hostname or "")
        # Reading the system's CAs costs time, and a mirror on plain HTTP needs none.
        secure = "https:" in (url[:6], (proxy or "")[:6])
        with self._lock:
            key = (proxy, streamed, secure, foreign)
            if key not in self._pools:
                tls = self._tls if secure else None
                self._pools[key] = self._new_pool(proxy, tls, block=not streamed, foreign=foreign)
            return self._pools[key]

    def _new_pool(
        self, proxy: str | None, tls: ssl.SSLContext | None, *, block: bool, foreign: bool
    ) -> urllib3.PoolManager:
        if proxy is None:
            pools = urllib3.PoolManager(
                _POOLS, maxsize=self._connections, block=block, ssl_context=tls
            )
            return self._wires.held(pools, _ForeignPeers(self._peers) if foreign else self._peers)
        parts = urlsplit(proxy)
        if parts.scheme not in {"http", "https"}:
            raise RegistryError(
                role_code(self.role, "proxy"),
                f"the proxy {parts.hostname} is of the kind {parts.scheme}, which is not known",
                "give an http:// proxy in HTTPS_PROXY, or exclude the host in NO_PROXY",
                answered=False,
            )
        headers = {}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers = urllib3.make_headers(proxy_basic_auth=user)
        bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))
        return self._wires.held(
            urllib3.ProxyManager(
                bare,
                _POOLS,
                proxy_headers=headers,
                proxy_ssl_context=tls,
                maxsize=self._connections,
                block=block,
                ssl_context=tls,
            )
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """The CAs of the system, or those that the environment names instead, and our own one."""
        names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
        named = [(name, self._environ[name]) for name in names if self._environ.get(name)]
        context = ssl.create_default_context() if not named else _bare_context()
        if self._ca is not None:
            named.append(("ca", str(self._ca)))
        for name, path in named:
            try:
                if Path(path).is_dir():
                    context.load_verify_locations(capath=path)
                else:
                    context.load_verify_locations(cafile=path)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it holds no certificate"
                raise UsageError(
                    "ca", f"{name}: {path}: {reason}", "name a readable file of PEM certificates"
                ) from None
        return context


def _bare_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class _AddressError(ValueError):
    """A server led to an address that is not for it to lead to."""


class _Peers:
    """Learns the network of a registry, which decides where it may lead (see `destinations`)."""

    def __init__(self, role: Role, host: str | None) -> None:
        self._role = role
        self._host = host
        self._own = written_kind(host) if host else None

    def check(self, opened: socket.socket) -> None:
        """Let every peer be: images.yml names the host."""

    def note(self, host: str, opened: socket.socket) -> None:
        """Learn the registry's own network; one seen to be public stays so."""
        if host == self._host and self._own != "public":
            self._own = kind_of(opened.getpeername()[0])

    def check_written(self, host: str) -> None:
        """Raise where a host is an address to which the registry may not lead."""
        if (kind := written_kind(host)) is not None:
            self.check_kind(kind)

    def check_kind(self, kind: Kind) -> None:
        """Raise where the registry may not lead to such a network."""
        if kind not in allowed(self._role, self._own):
            raise _AddressError(kind)


class _ForeignPeers:
    """Checks the peers of connections to hosts that a registry named."""

    def __init__(self, peers: _Peers) -> None:
        self._peers = peers

    def check(self, opened: socket.socket) -> None:
        self._peers.check_kind(kind_of(opened.getpeername()[0]))

    def note(self, host: str, opened: socket.socket) -> None:
        """Learn nothing: the host is not the registry's."""


class Failures:
    """Turns what urllib3 raises into a RegistryError that names host, cause and cure."""

    def __init__(
        self, role: Role, url: str, where: str, wires: Connections, limit: TimeLimit
    ) -> None:
        self._role = role
        self._where = where
        self._wires = wires
        self._limit = limit
        parts = urlsplit(url)
        self._host = parts.netloc.rpartition("@")[2]
        self._plain = parts.scheme == "http"

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None:
            if self._limit.expired:
                # What was read up to there may look like an end.
                raise self.timeout()
            return
        if not isinstance(error, HTTPError | OSError | ValueError):
            return
        sent = not isinstance(error, CutError)
        self._limit.stop()
        if self._wires.ended.is_set():
            # It says nothing about the registry, so it has no code of the registry's own.
            text = f"{self._where}: {self._host} was not waited for: the run ends"
            raise RegistryError(
                "interrupted", text, "run it again", answered=sent and self._told(error)[3]
            ) from None
        if self._limit.expired:
            raise self.timeout(sent=sent) from None
        code, text, cure, sent = self._told(error)
        # The cause may hold a URL or a proxy's password: it goes no further.
        raise RegistryError(
            role_code(self._role, code), f"{self._where}: {self._host} {text}", cure, answered=sent
        ) from None

    def timeout(self, why: str = "", *, sent: bool = True) -> TimeOverError:
        """Return the failure of an answer that took too long."""
        self._limit.stop()
        if not why and self._limit.seconds > 0:
            why = f"no complete answer within {self._limit.seconds:.3g} s"
        why = why or "its share of the run's time is over"
        return TimeOverError(
            role_code(self._role, "timeout"),
            f"{self._where}: {self._host} timed out: {why}",
            "check the network and the load of the registry, then try again",
            answered=sent,
        )

    def _told(self, error: BaseException) -> tuple[str, str, str, bool]:
        """Return code, text, cure, and whether the request may have reached the server."""
        down = "check the address, the network and that the registry runs"
        match error:
            case ProxyError():
                status = re.search(r"Tunnel connection failed: ([0-9]{3})", str(error))
                answered = f"answered {status[1]}" if status else "cannot be reached"
                return (
                    "proxy",
                    f"is behind a proxy that {answered}",
                    "check HTTPS_PROXY, or exclude the host in NO_PROXY",
                    False,
                )
            case _AddressError():
                return (
                    "bad-redirect",
                    f"is at a {error} address, to which the registry may not lead",
                    "check where it redirects, and the realm it names",
                    False,
                )
            case NameResolutionError():
                return "unreachable", "has no address: its name is not known", down, False
            case NewConnectionError():
                return "unreachable", _reason(error), down, False
            case ConnectTimeoutError():
                return "unreachable", "does not answer: connecting timed out", down, False
            case SSLError():
                return self._tls(error)
            case ReadTimeoutError() | UrllibTimeoutError():
                return "timeout", "was asked and did not answer in time", "try later", True
            case ProtocolError():
                return self._broken(error)
            case _:
                return "bad-answer", "cannot be asked or does not speak HTTP", down, True

    def _tls(self, error: SSLError) -> tuple[str, str, str, bool]:
        inner = next((arg for arg in error.args if isinstance(arg, ssl.SSLError)), None)
        if isinstance(inner, ssl.SSLCertVerificationError):
            return (
                "tls",
                f"shows a certificate that is not trusted: {inner.verify_message}",
                "name its CA with ca:, or ask it by the name in its certificate",
                False,
            )
        if re.search(r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|UNKNOWN_PROTOCOL", str(error)):
            return (
                "plain-http",
                "does not speak TLS on this port",
                "write http:// there if plain HTTP is wanted, or give the TLS port",
                False,
            )
        reason = getattr(inner, "reason", None) or "the connection ended"
        return "tls", f"failed to speak TLS: {reason}", "check the TLS of the registry", True

    def _broken(self, error: ProtocolError) -> tuple[str, str, str, bool]:
        inner = error.args[1] if len(error.args) > 1 else None
        if isinstance(inner, TimeoutError):
            return "timeout", "was asked and did not answer in time", "try later", True
        if self._plain and "BadStatusLine" in repr(inner):
            return "bad-answer", "does not speak HTTP", "check the address and port", True
        return "reset", "broke the connection off", "try later, or look at its own log", True


def _reason(error: NewConnectionError) -> str:
    cause = error.__cause__
    if isinstance(cause, ConnectionRefusedError):
        return "refuses connections"
    if isinstance(cause, OSError) and not isinstance(cause, socket.gaierror) and cause.strerror:
        return f"cannot be reached: {cause.strerror.lower()}"
    return "cannot be reached"


class Reader:
    """Reads the body of an answer, within the time that its request may take."""

    def __init__(
        self, response: urllib3.BaseHTTPResponse, limit: TimeLimit, failures: Failures
    ) -> None:
        self.response = response
        self.limit = limit
        self.failures = failures

    def read(self, amount: int = _CHUNK) -> bytes:
        """Return what has come of the body, at least a byte; nothing at its end."""
        # read1 came with urllib3 2.1; read waits until all of `amount` is there.
        with self.failures:
            read = getattr(self.response, "read1", self.response.read)
            return bytes(read(amount, decode_content=False) or b"")

    def close(self) -> None:
        """Give the connection back, or end it where the body was not read to its end."""
        self.limit.stop()
        dispose(self.response)


class Blob:
    """A blob as it comes: `size` bytes of it in all, the rest from `start` on to be read.

    Reading raises RegistryError, also where less than `LEAST_RATE` comes for `LEAST_FOR` seconds
    of waiting; the digest is for the reader to check.
    """

    def __init__(self, reader: Reader, size: int | None, skip: int = 0) -> None:
        self._reader = reader
        self._waited = 0.0
        self._came = 0
        self.size = size
        """Bytes of the whole blob, also where reading began later; None if the server hides it."""
        while skip > 0 and (piece := self.read(min(skip, _CHUNK))):
            skip -= len(piece)

    def read(self, amount: int = _CHUNK) -> bytes:
        """Return what has come, at least one byte and at most `amount`; nothing at the end."""
        began = time.monotonic()
        # How long the reader takes to use a piece is none of the registry's time.
        self._reader.limit.restart(BLOB_TIMEOUT)
        piece = self._reader.read(amount)
        self._reader.limit.stop()
        self._came += len(piece)
        self._waited += time.monotonic() - began
        if self._waited >= LEAST_FOR:
            if self._came < LEAST_RATE * self._waited:
                slow = f"{self._came} bytes of the blob in {self._waited:.0f} s"
                raise self._reader.failures.timeout(slow)
            self._waited, self._came = 0.0, 0
        return piece

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read():
            yield piece

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back, or end it where the blob was not read to its end."""
        self._reader.close()


def dispose(response: urllib3.BaseHTTPResponse) -> None:
    """Give the connection back, or end it where the body was not read to its end."""
    response.close()
    response.release_conn()
