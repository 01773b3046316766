"""Requests end in time however slowly a server answers, and a blob that only trickles is given up.

Each of these servers sends something more often than any single wait for bytes is allowed to take.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from prewarm.core.errors import RegistryError
from prewarm.core.manifest import OCI_MANIFEST, Manifest, digest_of
from prewarm.registry import transport
from prewarm.registry.client import Registry
from prewarm.registry.transport import Transport
from tests.real import dripping
from tests.real.dripping import Dripping, Pieces, at_once
from tests.sandbox import build_image

MANIFEST = Manifest(OCI_MANIFEST, build_image(single=True).content)
DIGEST = digest_of(b"layer")
Drip = Callable[[], Iterator[bytes]]


def client(url: str) -> Registry:
    """A client that waits for a third of a second for bytes, and for 1.2 s for an answer."""
    return Registry(
        url, url, environ={}, connect_timeout=0.3, read_timeout=0.3, retry_for=0.0, costly=False
    )


def blob(own: Registry) -> None:
    with own.open_blob("app", DIGEST) as found:
        for _ in found:
            pass


QUESTIONS: dict[str, tuple[Callable[[Registry], object], tuple[Drip, ...]]] = {
    "head": (lambda own: own.head("app", "1"), dripping.HEADS),
    "manifest": (lambda own: own.manifest("app", "1"), dripping.HEADS + dripping.BODIES),
    "tags": (lambda own: own.tags("app"), dripping.HEADS + dripping.BODIES),
    "put manifest": (
        lambda own: own.put_manifest("app", "1", MANIFEST),
        dripping.HEADS + dripping.BODIES,
    ),
    "begin an upload": (lambda own: own.probe_upload("app"), dripping.HEADS + dripping.BODIES),
    "delete": (lambda own: own.delete_manifest("app", DIGEST), dripping.HEADS),
    "blob size": (lambda own: own.blob_size("app", DIGEST), dripping.HEADS),
    "blob": (blob, dripping.HEADS),
    "date": (lambda own: own.date(), dripping.HEADS),
}
CASES = [
    pytest.param(ask, drip, id=f"{name}: {drip.__name__}")
    for name, (ask, drips) in QUESTIONS.items()
    for drip in drips
]


@pytest.mark.parametrize(("ask", "drip"), CASES)
def test_request_that_is_answered_byte_by_byte_times_out(
    ask: Callable[[Registry], object], drip: Drip
) -> None:
    def script(asked: str) -> Pieces:
        is_base = asked.startswith("GET /v2/ ") and ask is not QUESTIONS["date"][0]
        return at_once() if is_base else drip()

    with Dripping(script) as site, client(site.url) as own:
        with pytest.raises(RegistryError) as caught:
            ask(own)
        assert not site.ran_out
    assert (caught.value.code, caught.value.answered) == ("timeout", True)
    assert "timed out: no complete answer within" in caught.value.text


@pytest.mark.parametrize("drip", dripping.HEADS + dripping.BODIES)
def test_token_server_that_answers_byte_by_byte_times_out_before_the_pull(drip: Drip) -> None:
    def script(asked: str) -> Pieces:
        if asked.startswith("GET /v2/ "):
            challenge = f'Bearer realm="{site.url}/token",service="s"'
            return at_once("401 Unauthorized", www_authenticate=challenge)
        return drip()

    with Dripping(script) as site, client(site.url) as own:
        with pytest.raises(RegistryError) as caught:
            own.manifest("app", "1")
        assert not site.ran_out
    assert (caught.value.code, caught.value.answered) == ("timeout", False)


def test_redirects_share_the_time_of_their_request() -> None:
    def script(asked: str) -> Pieces:
        if asked.startswith("GET /v2/ "):
            return at_once()
        fields = f"Location: {site.url}/x\r\nContent-Length: 0\r\nConnection: close"
        return iter([bytes([letter]) for letter in f"HTTP/1.1 307 T\r\n{fields}\r\n\r\n".encode()])

    # A second for each redirect; together they would take six.
    with Dripping(script, pause=1 / 100) as site, client(site.url) as own:
        began = time.monotonic()
        with pytest.raises(RegistryError) as caught:
            own.manifest("app", "1")
        assert time.monotonic() - began < 4
    assert caught.value.code == "timeout"


@pytest.mark.parametrize("drip", [dripping.body, dripping.unsized_body])
def test_blob_that_trickles_is_given_up(drip: Drip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LEAST_FOR", 1.0)
    with (
        Dripping(lambda asked: at_once() if " /v2/ " in asked else drip()) as site,
        client(site.url) as own,
    ):
        with pytest.raises(RegistryError, match=r"timed out: \d+ bytes of the blob in 1 s") as told:
            blob(own)
        assert not site.ran_out
    assert told.value.code == "timeout"


@pytest.mark.parametrize("drip", [dripping.chunk_size, dripping.trailers])
def test_blob_that_sends_everything_but_its_bytes_is_given_up(
    drip: Drip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "BLOB_TIMEOUT", 1.0)
    with (
        Dripping(lambda asked: at_once() if " /v2/ " in asked else drip()) as site,
        client(site.url) as own,
    ):
        with pytest.raises(RegistryError) as caught:
            blob(own)
        assert not site.ran_out
    assert caught.value.code == "timeout"


def test_blob_of_which_the_reader_takes_its_time_is_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "LEAST_FOR", 0.2)
    monkeypatch.setattr(transport, "BLOB_TIMEOUT", 0.5)
    content = bytes(600)
    with Dripping(lambda _: at_once(body=content)) as site, client(site.url) as own:
        found = own.open_blob("app", DIGEST)
        read = b""
        while piece := found.read(200):
            time.sleep(0.4)
            read += piece
        found.close()
    assert read == content


def test_registry_whose_time_is_over_is_cut_at_once_and_not_asked_again() -> None:
    """Its own time limits would let it take seconds more."""

    def script(asked: str) -> Pieces:
        return at_once() if asked.startswith("GET /v2/ ") else dripping.headers()

    with Dripping(script) as site, Registry(site.url, site.url, environ={}) as own:
        own.until = time.monotonic() + 0.5
        with pytest.raises(RegistryError) as first:
            own.head("app", "1")
        asked = len(site.requests)
        with pytest.raises(RegistryError) as second:
            own.head("app", "2")
        assert not site.ran_out
        assert len(site.requests) == asked
    assert (first.value.code, first.value.answered) == ("timeout", True)
    assert (second.value.code, second.value.answered) == ("timeout", False)


def test_connections_that_are_kept_outlive_the_limit_of_an_earlier_request() -> None:
    with (
        Dripping(lambda _: at_once(body=b"{}")) as site,
        closing(Transport("upstream", None, {}, 1, (1.0, 1.0))) as own,
    ):
        for _ in range(3):
            answer = own.send("GET", site.url, {}, None, where="x", streamed=False, total=0.3)
            reader = own.reader(answer, site.url, "x")
            assert reader.read() == b"{}"
            reader.close()
            time.sleep(0.5)  # the limit of the last request would be over now
        assert len(site.requests) == 3


def test_thread_that_watches_ends_when_nothing_is_asked() -> None:
    def watching() -> int:
        return sum(thread.name == "timeouts" for thread in threading.enumerate())

    with Dripping(lambda _: at_once()) as site, client(site.url) as own:
        own.date()
        deadline = time.monotonic() + 20
        while watching():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        own.date()
        assert watching()
