"""Registries that send prewarm to services of the inside: none of them gets a request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from prewarm.core.errors import RegistryError
from prewarm.core.manifest import digest_of
from prewarm.registry.client import Registry
from tests.real.scripted import Scripted, bearer, error, reply, token
from tests.sandbox.wire import Request, Response
from tests.support.network import far_address

DIGEST = digest_of(b"x")
BODY = b'{"token": "internal"}'


class Inner(Scripted):
    """A service of the inside, which answers everything with what looks like a token."""

    def __init__(self) -> None:
        super().__init__(lambda _: reply(200, BODY))


@contextmanager
def asking(url: str, role: Any, **options: Any) -> Iterator[Registry]:
    options = {"environ": {}, **options}
    with Registry("r", url, role=role, **options) as registry:
        yield registry


ASK: dict[str, Callable[[Registry], object]] = {
    "head": lambda registry: registry.head("app", "1"),
    "manifest": lambda registry: registry.manifest("app", DIGEST),
    "tags": lambda registry: registry.tags("app"),
    "blob size": lambda registry: registry.blob_size("app", DIGEST),
    "blob": lambda registry: registry.open_blob("app", DIGEST),
    "upload": lambda registry: registry.put_blob("app", b"x"),
}
REQUESTS = [name for name in ASK if name != "upload"]


def refusal(registry: Registry, request: str) -> str:
    """Ask in one way; return the code without the role's prefix."""
    with pytest.raises(RegistryError) as caught:
        ASK[request](registry)
    return caught.value.code.removeprefix("mirror-")


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.9.9.9"])
def test_mirror_does_not_redirect_to_another_service_of_this_machine(
    request_: str, host: str
) -> None:
    with Inner() as inner:
        script = moved(f"http://{host}:{inner.port}/secret")
        with Scripted(script) as site, asking(site.url, "mirror") as own:
            assert refusal(own, request_) == "bad-redirect"
    assert inner.requests == []


def moved(location: str) -> Any:
    def script(request: Request) -> Response:
        return reply() if request.path == "/v2/" else reply(307, location=location)

    return script


@pytest.mark.parametrize("challenged", ["/v2/", "/v2/app"])
def test_mirror_does_not_name_a_service_of_this_machine_as_its_token_server(
    challenged: str,
) -> None:
    with Inner() as inner:
        realm = f"http://127.0.0.1:{inner.port}/latest/credentials"

        def script(request: Request) -> Response:
            if request.path.startswith(challenged):
                return error(401, "UNAUTHORIZED", www_authenticate=bearer(realm))
            return reply()

        with Scripted(script) as site, asking(site.url, "mirror") as own:
            for request in (*REQUESTS, "upload"):
                assert refusal(own, request) == "bad-answer"
    assert inner.requests == []
    assert not [one for one in site.requests if "authorization" in one.headers]


def test_mirror_does_not_begin_an_upload_elsewhere() -> None:
    with Inner() as inner:

        def script(request: Request) -> Response:
            if request.method == "POST":
                return reply(202, location=f"http://localhost:{inner.port}/v2/app/blobs/uploads/1")
            return reply()

        with Scripted(script) as site, asking(site.url, "mirror") as own:
            assert refusal(own, "upload") == "bad-redirect"
    assert inner.requests == []


SPELLINGS = [
    *("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0.0.0.0"),
    *("[::ffff:127.0.0.1]", "localhost.", "cdn.example.org"),
]


@pytest.fixture
def rebound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of a public host that resolves to this machine, and numbers as libc reads them."""
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in {"cdn.example.org", "localhost."}:
            host = "127.0.0.1"
        elif str(host)[0].isdigit():
            host = socket.inet_ntoa(socket.inet_aton(host))
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.usefixtures("rebound")
@pytest.mark.parametrize("role", ["upstream", "mirror"])
@pytest.mark.parametrize("host", SPELLINGS)
def test_registry_on_a_network_does_not_redirect_to_this_machine(role: Any, host: str) -> None:
    with far_address() as address, Inner() as inner:
        script = moved(f"http://{host}:{inner.port}/secret")
        with (
            Scripted(script, host=address) as site,
            asking(site.url, role) as own,
        ):
            for request in REQUESTS:
                assert refusal(own, request) == "bad-redirect"
    assert inner.requests == []


@pytest.mark.usefixtures("rebound")
def test_registry_on_a_network_sends_no_byte_of_tls_to_this_machine() -> None:
    got: list[bytes] = []

    def serve() -> None:
        with suppress_os():
            while True:
                peer, _ = listening.accept()
                with peer:
                    got.append(peer.recv(100))

    with far_address() as address, socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        port = listening.getsockname()[1]
        script = moved(f"https://cdn.example.org:{port}/blob")
        with Scripted(script, host=address) as site, asking(site.url, "mirror") as own:
            assert refusal(own, "blob") == "bad-redirect"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert set(got) <= {b""}


@contextmanager
def suppress_os() -> Iterator[None]:
    try:
        yield
    except OSError:
        return


def test_registry_on_a_network_may_redirect_to_its_storage_there() -> None:
    with far_address() as address, Scripted(lambda _: reply(200, b"x"), host=address) as storage:
        script = moved(f"{storage.url}/blob")
        with (
            Scripted(script, host=address) as site,
            asking(site.url, "upstream") as own,
            own.open_blob("app", DIGEST) as blob,
        ):
            assert b"".join(blob) == b"x"


def test_upstream_over_plain_http_does_not_name_another_host_as_its_token_server() -> None:
    with far_address() as address, Inner() as inner:
        realm = f"http://localhost:{inner.port}/latest/credentials"
        script = refused(realm)
        with Scripted(script, host=address) as site, asking(site.url, "upstream") as own:
            for request in REQUESTS:
                assert refusal(own, request) == "bad-answer"
    assert inner.requests == []


def refused(realm: str) -> Any:
    return lambda _: error(401, "UNAUTHORIZED", www_authenticate=bearer(realm))


def test_token_server_does_not_redirect_to_this_machine() -> None:
    with far_address() as address, Inner() as inner:

        def script(request: Request) -> Response:
            if request.path == "/token":
                return reply(302, location=f"http://127.0.0.1:{inner.port}/secret")
            realm = f"http://{request.headers['host']}/token"
            return error(401, "UNAUTHORIZED", www_authenticate=bearer(realm))

        with Scripted(script, host=address) as site, asking(site.url, "upstream") as own:
            assert refusal(own, "head") == "bad-redirect"
    assert inner.requests == []


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "2852039166", "10.0.0.1", "[fd00::1]", "100.64.0.1", "0"]
)
def test_address_behind_a_proxy_is_refused_as_it_is_written(host: str) -> None:
    def script(request: Request) -> Response:
        if request.headers["host"] != "r.example.org":
            return token()
        return reply() if request.path == "/v2/" else reply(307, location=f"http://{host}/x")

    with (
        Scripted(script) as proxy,
        asking("http://r.example.org", "upstream", environ={"HTTP_PROXY": proxy.url}) as own,
    ):
        for request in REQUESTS:
            assert refusal(own, request) == "bad-redirect"
        assert {request.headers["host"] for request in proxy.requests} == {"r.example.org"}
