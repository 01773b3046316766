"""Guards that every test runs behind, and the fixtures that many share."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.sandbox import Registry, Sandbox
from tests.support import network
from tests.support.postgres import Postgres

_SETTINGS = (
    "REGISTRY_AUTH_FILE",
    "STATE_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)

# On a busy machine the time of one example says nothing of the code.
hypothesis.settings.register_profile("prewarm", deadline=None)
hypothesis.settings.load_profile("prewarm")

# Under nohup SIGHUP is ignored, and every program that a test starts would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _is_local(host: object) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    # Nobody is reached at 0.0.0.0; it is what a server binds to.
    return address.is_loopback or address.is_unspecified


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of this process speaks with another machine, or asks a name server."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    getaddrinfo = socket.getaddrinfo

    def check(host: object) -> None:
        if not _is_local(host) and host not in network.OURS:
            raise AssertionError(f"a test tried to reach {host!r}; tests stay on loopback")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        check(host)
        return getaddrinfo(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)


@pytest.fixture(autouse=True)
def _private_home(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test reads the home, credentials or settings of whoever runs it, or leaves traces."""
    for name in list(os.environ):
        upper = name.upper()
        if upper in _SETTINGS or upper.startswith(("PREWARM_", "XDG_", "REGISTRY_", "PG")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def box() -> Iterator[Sandbox]:
    """An upstream, a Hub without quota and one mirror."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """An empty registry:2."""
    with Registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that is not stopped; each test makes databases of its own in it."""
    with Postgres() as server:
        yield server
