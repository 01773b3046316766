"""The gate: what it answers and from where, with a real skopeo and the stand-in for the Hub."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import threading
import time
import tracemalloc
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from prewarm.core import local_http
from prewarm.core.errors import RegistryError
from prewarm.core.manifest import Manifest
from prewarm.registry import client as module
from prewarm.registry.client import Registry
from prewarm.registry.credentials import authfile_in_memory
from prewarm.registry.login import Login
from prewarm.registry.transport import Blob
from prewarm.sync import gate as gate_module
from prewarm.sync import skopeo
from prewarm.sync.causes import cause_of
from prewarm.sync.gate import BlobSource, Gate, Offer
from prewarm.sync.relay import Relay
from tests.e2e.host import wait_until
from tests.real.scripted import Scripted, bearer, error, query, reply, token
from tests.sandbox import Fault, Image, Layer, Sandbox
from tests.sandbox.access import read_path
from tests.sandbox.authority import Authority
from tests.sandbox.images import digest_of
from tests.sandbox.server import Server, Site
from tests.sandbox.tap import Tap
from tests.sandbox.tokens import login as account_of
from tests.sandbox.wire import Request, Response
from tests.support.stranger import needs_root, stranger

REPOSITORY = "library/app"


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as running:
        yield running


@pytest.fixture
def hub(box: Sandbox) -> Iterator[Registry]:
    with Registry("docker.io", box.hub.url, environ={}, connections=32) as client:
        yield client


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without pauses that a test would notice."""
    monkeypatch.setattr(module, "_BACKOFF", (0.005, 0.02))


def offer_of(image: Image, *sources: BlobSource) -> Offer:
    manifest = Manifest(image.media_type, image.content)
    return Offer(manifest, [(source, REPOSITORY) for source in sources], lambda _: None)


def authorization(login: Login) -> dict[str, str]:
    pair = f"{login.username}:{login.secret}".encode()
    return {"Authorization": "Basic " + b64encode(pair).decode()}


def ask(
    gate: Gate,
    address: str,
    rest: str = "",
    *,
    method: str = "GET",
    path: str = "",
    login: Login | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Ask below a repository that `Gate.offer` returned, or for another path; read it all."""
    headers = authorization(login or gate.login)
    host, _, repository = address.partition("/")
    with closing(http.client.HTTPConnection(host, timeout=20)) as connection:
        connection.request(method, path or f"/v2/{repository}/{rest}", headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


class Skopeo:
    """A skopeo that copies from the gate, through it, to a mirror."""

    def __init__(self, folder: Path, mirror: str, gate: Gate) -> None:
        self.login = authfile_in_memory({gate.host: gate.login})
        self.program = skopeo.find(os.environ)
        self.environment = skopeo.child_environment(os.environ, folder)
        self.gate = gate
        self.mirror = Registry(mirror, mirror, role="mirror", environ={})
        self.stored: list[str] = []

    def relay(self, offer: Offer, repository: str = REPOSITORY) -> Relay:
        relay = Relay(self.mirror, repository, offer.manifest, self.stored.append)
        offer.relay = relay
        return relay

    def copy(self, offer: Offer, stop: threading.Event | None = None) -> skopeo.Result:
        if offer.relay is None:
            self.relay(offer)
        source = self.gate.offer(offer)
        command = skopeo.copy_command(self.program, source, self.login, offer.manifest.digest, 30)
        return skopeo.run(command, self.environment, 30, stop or threading.Event(), (self.login,))

    def close(self) -> None:
        os.close(self.login)
        self.mirror.close()


@pytest.fixture
def copier(box: Sandbox, tmp_path: Path, gate: Gate) -> Iterator[Skopeo]:
    with closing(Skopeo(tmp_path, box.taps[0].url, gate)) as made:
        yield made


# Copies with a real skopeo


@pytest.mark.parametrize("blobs", ["redirect", "direct"])
@pytest.mark.parametrize("media", ["oci", "docker"])
def test_copy_through_the_gate_asks_upstream_for_blobs_alone(
    box: Sandbox, gate: Gate, hub: Registry, copier: Skopeo, blobs: str, media: str
) -> None:
    box.hub.rules.blobs = blobs  # type: ignore[assignment]
    layers = [Layer("base", 300_000), Layer("two", 20)]
    image = box.push(REPOSITORY, "1", layers=layers, single=True, media=media)
    offer = offer_of(image, hub)
    result = copier.copy(offer)
    assert result.returncode == 0, result.stderr[-2000:]
    assert sorted(copier.stored) == sorted(map(digest_of, image.blobs))
    found = box.mirrors[0].manifest(REPOSITORY, image.digest)
    assert found == (image.media_type, image.content, image.digest)
    assert [entry for entry in box.hub.access if entry.kind == "manifest"] == []
    assert sorted(entry.reference for entry in box.hub.access.of("blob")) == sorted(
        map(digest_of, image.blobs)
    )
    assert offer.sent == sum(map(len, image.blobs))
    assert offer.failure is None
    assert box.hub.cdn.leaks == []


def test_copy_of_a_broken_blob_fails_and_leaves_no_manifest(
    box: Sandbox, gate: Gate, hub: Registry, copier: Skopeo
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    file = box.upstream.storage.blob_file(digest_of(image.blobs[1]))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = copier.copy(offer_of(image, hub))
    assert cause_of(result.stderr, "http://mirror").error.code == "bad-digest"
    assert box.mirrors[0].manifest(REPOSITORY, image.digest) is None


def test_copy_that_is_stopped_ends_at_once(
    box: Sandbox, gate: Gate, hub: Registry, copier: Skopeo
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    box.hub.cdn.faults.add(Fault("GET", "*", count=None, hang=30))
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    started = time.monotonic()
    result = copier.copy(offer_of(image, hub), stop)
    assert result.stopped
    assert result.returncode != 0
    assert time.monotonic() - started < 5


def open_uploads(box: Sandbox) -> list[Path]:
    return list(box.mirrors[0].storage.folder.glob("**/_uploads/*/startedat"))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("PATCH", "*/uploads/*", count=None, reset=True), "mirror-reset"),
        (Fault("PATCH", "*/uploads/*", count=None, status=500), "mirror-server-error"),
        (Fault("PUT", "*/uploads/*", count=None, status=502), "mirror-server-error"),
        (Fault("PUT", "*/manifests/*", count=None, status=403), "mirror-denied"),
        (Fault("POST", "*/uploads/*", count=None, status=405), "mirror-read-only"),
    ],
)
def test_copy_onto_a_mirror_that_refuses_keeps_what_it_said_and_cancels_uploads(
    box: Sandbox, gate: Gate, hub: Registry, copier: Skopeo, quick: None, fault: Fault, code: str
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    box.taps[0].faults.add(fault)
    offer = offer_of(image, hub)
    relay = copier.relay(offer)
    result = copier.copy(offer)
    assert result.returncode != 0
    assert relay.failure is not None
    found = cause_of(result.stderr, "http://mirror", mirror=relay.failure)
    assert (found.error.code, found.side) == (code, "mirror")
    relay.cancel()
    assert open_uploads(box) == []
    assert box.mirrors[0].manifest(REPOSITORY, image.digest) is None


def test_copy_whose_source_breaks_off_is_no_failure_of_the_mirror(
    box: Sandbox, gate: Gate, hub: Registry, copier: Skopeo, quick: None
) -> None:
    image = box.push(REPOSITORY, "1", single=True, size=3_000_000)
    box.hub.cdn.faults.add(Fault("GET", "*", count=None, cut=100_000))
    offer = offer_of(image, hub)
    relay = copier.relay(offer)
    assert copier.copy(offer).returncode != 0
    assert offer.failure is not None
    assert relay.failure is None
    relay.cancel()
    assert box.mirrors[0].manifest(REPOSITORY, image.digest) is None


@pytest.mark.parametrize("login", [None, Login("pusher", "sesame")])
def test_mirror_that_sends_uploads_elsewhere_gets_no_request_sent_there(
    box: Sandbox, gate: Gate, hub: Registry, tmp_path: Path, login: Login | None
) -> None:
    """skopeo would PATCH there, with the mirror's login."""
    image = box.push(REPOSITORY, "1", single=True)
    with Scripted(lambda _: reply(202, location="/x")) as inner:
        away = f"http://localhost:{inner.port}/v2/{REPOSITORY}/blobs/uploads/1"

        def script(request: Request) -> Response:
            if login is not None and "authorization" not in request.headers:
                return reply(401, www_authenticate='Basic realm="r"')
            if request.method == "HEAD":
                return reply(404)
            return reply(202, location=away)

        with Scripted(script) as mirror, closing(Skopeo(tmp_path, mirror.url, gate)) as copier:
            copier.mirror = Registry(
                mirror.url, mirror.url, role="mirror", environ={}, credentials=lambda _: login
            )
            offer = offer_of(image, hub)
            relay = copier.relay(offer)
            assert copier.copy(offer).returncode != 0
            assert relay.failure is not None
            assert relay.failure.code == "mirror-bad-redirect"
    assert inner.requests == []


@pytest.mark.parametrize("trusted", [True, False])
def test_mirror_in_tls_is_written_to_where_its_authority_is_trusted(
    box: Sandbox, gate: Gate, hub: Registry, tmp_path: Path, quick: None, trusted: bool
) -> None:
    """skopeo speaks with the gate alone, so it needs no certificate of the mirror."""
    image = box.push(REPOSITORY, "1", single=True)
    authority = Authority(tmp_path / "ca")
    with (
        Server(box.taps[0], tls=authority.server_context(["127.0.0.1"])) as mirror,
        closing(Skopeo(tmp_path, mirror.url, gate)) as copier,
    ):
        ca = authority.ca if trusted else None
        copier.mirror = Registry(mirror.url, mirror.url, role="mirror", ca=ca, environ={})
        offer = offer_of(image, hub)
        relay = copier.relay(offer)
        result = copier.copy(offer)
    if trusted:
        assert result.returncode == 0, result.stderr[-2000:]
        assert box.mirrors[0].manifest(REPOSITORY, image.digest) is not None
        return
    assert result.returncode != 0
    assert relay.failure is not None
    assert relay.failure.code == "mirror-tls"
    assert box.taps[0].access == []


class TokenMirror(Site):
    """A mirror that answers to tokens alone, each for what its scope names."""

    def __init__(self, mirror: Tap, login: Login) -> None:
        super().__init__()
        self.mirror = mirror
        self.accounts = {login.username: login.secret}
        self.scopes: dict[str, str] = {}
        """Of the tokens that were issued."""

    def respond(self, request: Request) -> Response:
        if request.path == "/token":
            if not account_of(request, self.accounts):
                return error(401, "UNAUTHORIZED")
            name = f"t{len(self.scopes)}"
            self.scopes[name] = query(request)["scope"][0]
            return token(name)
        repository = read_path(request.path).repository
        actions = "pull" if request.method in {"GET", "HEAD"} else "pull,push"
        wanted = f"repository:{repository}:{actions}"
        held = self.scopes.get(request.headers.get("authorization", "").removeprefix("Bearer "), "")
        if held != wanted and held != f"repository:{repository}:pull,push":
            challenge = bearer(f"{request.scheme}://{request.host}/token") + f',scope="{wanted}"'
            return error(401, "UNAUTHORIZED", www_authenticate=challenge)
        return self.mirror.respond(request)


@pytest.mark.parametrize("known", [True, False])
def test_mirror_with_tokens_is_written_to_with_those_of_its_login(
    box: Sandbox, gate: Gate, hub: Registry, tmp_path: Path, quick: None, known: bool
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    login = Login("pusher", "sesame")
    site = TokenMirror(box.taps[0], login)
    with Server(site) as mirror, closing(Skopeo(tmp_path, mirror.url, gate)) as copier:
        copier.mirror = Registry(
            mirror.url,
            mirror.url,
            role="mirror",
            environ={},
            credentials=lambda _: login if known else None,
        )
        offer = offer_of(image, hub)
        relay = copier.relay(offer)
        result = copier.copy(offer)
    assert "Bearer" not in result.stderr
    if known:
        assert result.returncode == 0, result.stderr[-2000:]
        assert box.mirrors[0].manifest(REPOSITORY, image.digest) is not None
        assert f"repository:{REPOSITORY}:pull,push" in site.scopes.values()
        return
    assert result.returncode != 0
    assert relay.failure is not None
    assert relay.failure.code == "mirror-unauthorized"
    assert site.scopes == {}
    assert box.mirrors[0].manifest(REPOSITORY, image.digest) is None


# What may be written


class Kept:
    """A mirror in memory."""

    name = "http://mirror"

    def __init__(self, size: int = 7) -> None:
        self.size = size
        """Of each blob."""
        self.asked: list[tuple[str, ...]] = []
        self.bodies: list[bytes] = []

    def blob_size(self, repository: str, digest: str, tries: int) -> int | None:
        self.asked.append(("HEAD", repository, digest))
        return self.size

    def begin_upload(self, repository: str, tries: int) -> str:
        self.asked.append(("POST", repository))
        return "http://mirror/u"

    def send_upload(self, repository: str, upload: str, body: Iterable[bytes], size: int) -> str:
        self.bodies.append(b"".join(map(bytes, body)))
        self.asked.append(("PATCH", repository, upload))
        return f"{upload}?s"

    def end_upload(self, repository: str, upload: str, digest: str, size: int) -> None:
        self.asked.append(("PUT", repository, upload, digest, str(size)))

    def cancel_upload(self, repository: str, upload: str) -> None:
        self.asked.append(("DELETE", repository, upload))

    def put_manifest(self, repository: str, selector: str, manifest: Manifest, tries: int) -> None:
        self.asked.append(("PUT", repository, selector))


def write(
    gate: Gate, method: str, path: str, body: bytes = b"", login: Login | None = None
) -> tuple[int, str]:
    """Send a request to the gate; return the status and the Location."""
    with closing(http.client.HTTPConnection(gate.host, timeout=20)) as connection:
        connection.request(method, path, body, authorization(login or gate.login))
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("Location", "")


def test_relay_writes_the_blobs_of_one_manifest_and_the_manifest(
    box: Sandbox, gate: Gate, hub: Registry
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    other = box.push(REPOSITORY, "2", single=True, revision=2)
    offer, target = offer_of(image, hub), Kept(len(image.blobs[1]))
    stored: list[str] = []
    offer.relay = Relay(target, "team/app", offer.manifest, stored.append)
    to = "/v2/" + gate.offer(offer).partition("/")[2] + "/to"
    blob, foreign = digest_of(image.blobs[1]), digest_of(other.blobs[1])

    assert write(gate, "HEAD", f"{to}/blobs/{blob}")[0] == 200
    status, upload = write(gate, "POST", f"{to}/blobs/uploads/")
    assert (status, upload) == (202, f"{to}/blobs/uploads/1")
    assert write(gate, "PATCH", upload, b"x" * 3_000_000) == (202, upload)
    assert write(gate, "PUT", f"{upload}?digest={foreign}")[0] == 400
    assert write(gate, "PUT", f"{upload}?digest={blob}")[0] == 201
    assert write(gate, "PUT", f"{upload}?digest={blob}")[0] == 404
    assert write(gate, "PUT", f"{to}/manifests/{image.digest}", image.content)[0] == 201
    assert stored == [blob]
    assert target.bodies == [b"x" * 3_000_000]
    assert target.asked == [
        ("HEAD", "team/app", blob),
        ("POST", "team/app"),
        ("PATCH", "team/app", "http://mirror/u"),
        ("PUT", "team/app", "http://mirror/u?s", blob, "3000000"),
        ("PUT", "team/app", image.digest),
    ]

    target.asked.clear()
    refused = [
        ("HEAD", f"{to}/blobs/{foreign}", b""),
        ("PUT", f"{to}/manifests/{other.digest}", other.content),
        ("PUT", f"{to}/manifests/{image.digest}", image.content + b" "),
        ("PUT", f"{to}/manifests/latest", image.content),
        ("DELETE", f"{to}/manifests/{image.digest}", b""),
        ("DELETE", f"{to}/blobs/{blob}", b""),
        ("PATCH", f"{to}/blobs/uploads/9", b"x"),
        ("POST", f"{to}/../blobs/uploads/", b""),
        ("POST", f"{to}/x/blobs/uploads/", b""),
        ("POST", f"{to.removesuffix('/to')}/blobs/uploads/", b""),
        ("POST", "/v2/team/app/blobs/uploads/", b""),
        ("PUT", "/", b""),
    ]
    for method, path, body in refused:
        assert write(gate, method, path, body)[0] in {400, 404, 405}, (method, path)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        wrong = Login("gate", "wrong")
        assert write(gate, method, f"{to}/blobs/uploads/", b"x", wrong)[0] == 401
    assert target.asked == []


def test_relay_cancels_what_is_left_open(box: Sandbox, gate: Gate, hub: Registry) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    offer, target = offer_of(image, hub), Kept()
    offer.relay = Relay(target, "team/app", offer.manifest)
    to = "/v2/" + gate.offer(offer).partition("/")[2] + "/to"
    _, upload = write(gate, "POST", f"{to}/blobs/uploads/")
    with closing(http.client.HTTPConnection(gate.host, timeout=20)) as connection:
        headers = authorization(gate.login) | {"Content-Length": "100"}
        connection.request("PATCH", upload, b"x" * 10, headers)
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(http.client.RemoteDisconnected):
            connection.getresponse()
    assert offer.relay.failure is None
    offer.relay.cancel()
    offer.relay.cancel()
    assert target.asked[1:] == [("DELETE", "team/app", "http://mirror/u")]


# What is answered


def test_manifest_is_answered_from_bytes_without_asking_anyone(
    box: Sandbox, gate: Gate, hub: Registry
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    address = gate.offer(offer_of(image, hub))
    for method, body in (("GET", image.content), ("HEAD", b"")):
        status, headers, content = ask(gate, address, f"manifests/{image.digest}", method=method)
        assert (status, content) == (200, body)
        assert headers["Content-Type"] == image.media_type
        assert headers["Content-Length"] == str(len(image.content))
    assert box.hub.access == []


def test_only_what_was_offered_is_answered(box: Sandbox, gate: Gate, hub: Registry) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    other = box.push(REPOSITORY, "2", single=True, revision=2)
    first, second = gate.offer(offer_of(image, hub)), gate.offer(offer_of(other, hub))
    own, foreign = digest_of(image.blobs[1]), digest_of(other.blobs[1])
    assert ask(gate, first, f"blobs/{own}")[0] == 200
    refused = [
        "/v2/n1/manifests/1",
        f"/v2/n1/manifests/{other.digest}",
        f"/v2/n1/blobs/{foreign}",
        f"/v2/n1/blobs/{own}/",
        "/v2/n1/blobs/uploads/",
        "/v2/n1/tags/list",
        f"/v2/n9/manifests/{image.digest}",
        f"/v2/x/../n1/manifests/{image.digest}",
        f"/v2/{REPOSITORY}/manifests/{image.digest}",
        "/v2/n1",
        "/v2/_catalog",
        "/",
    ]
    before = len(box.hub.access)
    for path in refused:
        for method in ("GET", "HEAD"):
            assert ask(gate, first, method=method, path=path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE"):
        assert ask(gate, first, f"blobs/{own}", method=method)[0] == 404
    assert len(box.hub.access) == before
    gate.withdraw(first)
    assert ask(gate, first, f"manifests/{image.digest}")[0] == 404
    assert ask(gate, first, f"blobs/{own}")[0] == 404
    assert ask(gate, second, f"manifests/{other.digest}")[0] == 200


@pytest.mark.parametrize("rest", ["manifests", "blobs"])
def test_gate_answers_only_who_knows_the_password_of_the_run(
    box: Sandbox, gate: Gate, hub: Registry, rest: str
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    address = gate.offer(offer_of(image, hub))
    assert re.fullmatch(r"127\.0\.0\.1:\d+/n1", address)
    digest = image.digest if rest == "manifests" else digest_of(image.blobs[0])
    with Gate() as another:
        for wrong in (another.login, Login("gate", ""), Login("", gate.login.secret)):
            status, headers, _ = ask(gate, address, f"{rest}/{digest}", login=wrong)
            assert (status, headers["WWW-Authenticate"]) == (401, 'Basic realm="prewarm"')
        assert another.login.secret != gate.login.secret
    assert box.hub.access == []
    assert ask(gate, address, f"{rest}/{digest}")[0] == 200


def test_gate_that_was_left_answers_no_more(box: Sandbox, hub: Registry) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    with Gate() as left:
        address = left.offer(offer_of(image, hub))
    with pytest.raises(ConnectionRefusedError):
        ask(left, address, f"manifests/{image.digest}")


# Blobs


def wait_for_success(offer: Offer) -> None:
    """The gate notes that a blob came whole a moment after its client has it."""
    deadline = time.monotonic() + 5
    while offer.failure is not None:
        assert time.monotonic() < deadline, offer.failure
        time.sleep(0.005)


def largest(image: Image) -> tuple[str, bytes]:
    content = max(image.blobs, key=len)
    return digest_of(content), content


def test_blob_that_is_interrupted_goes_on_where_it_broke(
    box: Sandbox, gate: Gate, hub: Registry
) -> None:
    image = box.push(REPOSITORY, "1", single=True, size=500_000)
    digest, content = largest(image)
    box.hub.cdn.faults.add(Fault("GET", "*", nth=1, cut=100_000))
    box.hub.cdn.faults.add(Fault("GET", "*", nth=1, cut=200_000))
    offer = offer_of(image, hub)
    assert ask(gate, gate.offer(offer), f"blobs/{digest}")[2] == content
    assert [entry.status for entry in box.hub.cdn.access] == [200, 206, 206]
    assert offer.sent == len(content)
    wait_for_success(offer)


@pytest.mark.parametrize("missing", [True, False])
def test_blob_comes_from_the_next_source_where_the_first_fails(
    box: Sandbox, gate: Gate, hub: Registry, quick: None, missing: bool
) -> None:
    """The first may lack the blob, or break off again and again."""
    image = box.push(REPOSITORY, "1", single=True, size=300_000)
    digest, content = largest(image)
    if not missing:
        box.mirrors[0].storage.store_blob(REPOSITORY, content)
        box.taps[0].faults.add(Fault("GET", "*/blobs/*", count=None, cut=100_000))
    with Registry(box.taps[0].url, box.taps[0].url, role="mirror", environ={}) as near:
        offer = offer_of(image, near, hub)
        assert ask(gate, gate.offer(offer), f"blobs/{digest}")[2] == content
    assert [entry.status for entry in box.hub.cdn.access] == [200 if missing else 206]
    assert len(box.taps[0].access.of("blob")) == 1
    wait_for_success(offer)


def test_blob_that_never_comes_whole_is_cut_and_its_cause_kept(
    box: Sandbox, gate: Gate, hub: Registry
) -> None:
    image = box.push(REPOSITORY, "1", single=True, size=300_000)
    digest, _ = largest(image)
    box.hub.cdn.faults.add(Fault("GET", "*", count=None, cut=1000))
    offer = offer_of(image, hub)
    with pytest.raises(http.client.IncompleteRead):
        ask(gate, gate.offer(offer), f"blobs/{digest}")
    assert offer.failure is not None
    assert offer.failure.code == "reset"
    # Four tries, no more.
    assert len(box.hub.cdn.access) == 4


def test_blob_that_nobody_has_is_a_bad_gateway_with_its_cause(
    box: Sandbox, gate: Gate, hub: Registry
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    digest, _ = largest(image)
    box.upstream.storage.blob_file(digest).unlink()
    offer = offer_of(image, hub)
    assert ask(gate, gate.offer(offer), f"blobs/{digest}")[0] == 502
    assert offer.failure is not None
    assert offer.failure.code == "not-found"


def test_blob_longer_than_its_manifest_says_is_not_passed_on(
    box: Sandbox, gate: Gate, hub: Registry
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    digest, content = largest(image)
    box.upstream.storage.blob_file(digest).write_bytes(content + b"more" * 10_000)
    status, headers, body = ask(gate, gate.offer(offer_of(image, hub)), f"blobs/{digest}")
    assert (status, headers["Content-Length"], body) == (200, str(len(content)), content)


def elsewhere(target: str) -> Scripted:
    """Return an upstream that sends every blob to another host, as the Hub does."""

    def answer(request: Request) -> Response:
        if request.path == "/v2/":
            return reply(200)
        return reply(307, location=f"{target}/store/{request.path.rpartition('/')[2]}?sign=S1GN")

    return Scripted(answer)


@pytest.mark.parametrize("trusted", [True, False])
def test_blob_by_redirect_needs_a_certificate_that_is_trusted(
    box: Sandbox, gate: Gate, tmp_path: Path, quick: None, trusted: bool
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    digest, content = largest(image)
    authority = Authority(tmp_path / "ca")
    store = Scripted(lambda _: reply(200, content), tls=authority.server_context(["127.0.0.1"]))
    with store, elsewhere(store.url) as upstream:
        ca = authority.ca if trusted else None
        with Registry("docker.io", upstream.url, ca=ca, environ={}) as client:
            offer = offer_of(image, client)
            status, _, body = ask(gate, gate.offer(offer), f"blobs/{digest}")
        if trusted:
            assert (status, body) == (200, content)
            return
        assert status == 502
        assert content not in body
        assert store.requests == []
        assert offer.failure is not None
        assert offer.failure.code == "tls"


def test_nothing_of_the_gate_and_no_credentials_reach_the_store(
    box: Sandbox, gate: Gate, copier: Skopeo
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    blobs = {digest_of(content): content for content in image.blobs}
    store = Scripted(lambda request: reply(200, blobs[request.path.rpartition("/")[2]]))
    with store, elsewhere(store.url) as upstream:
        with Registry("docker.io", upstream.url, environ={}) as client:
            assert copier.copy(offer_of(image, client)).returncode == 0
        assert len(store.requests) == len(blobs)
        for request in (*store.requests, *upstream.requests):
            shown = f"{request.target} {dict(request.headers)}"
            assert "n1" not in shown.split("/")
            assert not {"referer", "authorization", "cookie"} & set(request.headers)


def test_32_blobs_at_once_come_whole(box: Sandbox, gate: Gate, hub: Registry) -> None:
    layers = [Layer(f"layer-{n}", 100_000) for n in range(32)]
    image = box.push(REPOSITORY, "1", layers=layers, single=True)
    # All are under way at once: each answer waits a little.
    box.hub.cdn.latency = 0.3
    offer = offer_of(image, hub)
    address = gate.offer(offer)
    started = time.monotonic()
    with ThreadPoolExecutor(len(image.blobs)) as pool:
        found = list(
            pool.map(lambda b: ask(gate, address, f"blobs/{digest_of(b)}")[2], image.blobs)
        )
    assert found == list(image.blobs)
    assert offer.sent == sum(map(len, image.blobs))
    assert time.monotonic() - started < 0.3 * len(image.blobs) / 4


def test_large_blob_passes_without_being_held_in_memory(
    box: Sandbox, gate: Gate, hub: Registry
) -> None:
    size = 48 << 20
    image = box.push(REPOSITORY, "1", single=True, size=size)
    digest = digest_of(image.blobs[1])
    address = gate.offer(offer_of(image, hub))
    host, _, repository = address.partition("/")
    del image
    tracemalloc.start()
    try:
        with closing(http.client.HTTPConnection(host, timeout=20)) as connection:
            headers = authorization(gate.login)
            connection.request("GET", f"/v2/{repository}/blobs/{digest}", headers=headers)
            answer = connection.getresponse()
            found = hashlib.sha256()
            while chunk := answer.read(1 << 16):
                found.update(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert f"sha256:{found.hexdigest()}" == digest
    assert peak < size / 8


class Slow:
    """A source that fails in a way of its own."""

    def __init__(self, codes: Sequence[str]) -> None:
        self.codes = list(codes)

    def open_blob(self, repository: str, digest: str, start: int = 0) -> Blob:
        raise RegistryError(self.codes.pop(0), f"{repository} cannot be read", "try later")


def test_failure_of_an_offer_is_that_of_its_last_source(
    box: Sandbox, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    offer = offer_of(image, Slow(["mirror-reset"]), Slow(["abuse-limit"]))
    assert ask(gate, gate.offer(offer), f"blobs/{largest(image)[0]}")[0] == 502
    assert offer.failure is not None
    assert offer.failure.code == "abuse-limit"
    assert caplog.records == []


def test_bug_while_answering_is_told_in_the_log(
    box: Sandbox, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    offer = offer_of(image, Slow([]))
    with caplog.at_level("ERROR", "prewarm"), pytest.raises(http.client.RemoteDisconnected):
        ask(gate, gate.offer(offer), f"blobs/{largest(image)[0]}")
    deadline = time.monotonic() + 5
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "IndexError" in caplog.text


# Other users of the machine

# A reset may come before connect(2) has returned: then it is that which fails.
CROWD = """
held, ended = [], 0
for _ in range(300):
    try:
        held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20))
    except ConnectionResetError:
        ended += 1
print("connected", flush=True)
for one in held:
    one.settimeout(20)
    try:
        ended += one.recv(1) == b""
    except ConnectionResetError:
        ended += 1
print(ended, flush=True)
time.sleep(60)
"""


def port_of(gate: Gate) -> str:
    return gate.host.rpartition(":")[2]


@needs_root
def test_connections_of_another_user_are_reset(
    box: Sandbox, gate: Gate, hub: Registry, copier: Skopeo
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    before = threading.active_count()
    with stranger(CROWD, port_of(gate)) as crowd:
        result = copier.copy(offer_of(image, hub))
        assert result.returncode == 0, result.stderr[-2000:]
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == "300\n"
        wait_until(lambda: threading.active_count() <= before + 10, "end of the threads")


def test_unknown_clients_without_the_password_hold_few_connections(
    box: Sandbox, gate: Gate, hub: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_http, "peer_uid", lambda _: None)
    image = box.push(REPOSITORY, "1", single=True)
    address = gate.offer(offer_of(image, hub))
    before = threading.active_count()
    path = f"/v2/{address.partition('/')[2]}/manifests/{image.digest}"
    with ExitStack() as stack:
        kept = http.client.HTTPConnection(gate.host, timeout=20)
        stack.enter_context(closing(kept))
        kept.request("GET", path, headers=authorization(gate.login))
        assert kept.getresponse().read() == image.content
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", int(port_of(gate))), 20))
        assert ask(gate, address, f"manifests/{image.digest}")[2] == image.content
        wait_until(lambda: threading.active_count() <= before + 70, "end of the oldest")
        # Who has shown the password is no stranger.
        assert kept.sock is not None
        kept.request("GET", path, headers=authorization(gate.login))
        assert kept.getresponse().read() == image.content


def test_client_that_sends_no_request_is_closed(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gate_module._Handler.timeout == local_http.PATIENCE
    monkeypatch.setattr(gate_module._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", int(port_of(gate))), 20) as client:
        client.sendall(b"GET /v2/ HTTP/1.1\r\nX: ")
        assert client.recv(1) == b""


def test_peer_uid_is_the_user_who_opened_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()):
            accepted = server.accept()[0]
            with accepted:
                assert local_http.peer_uid(accepted) == os.geteuid()
        with socket.create_connection(server.getsockname()) as client:
            accepted = server.accept()[0]
            client.close()
            with accepted:
                assert local_http.peer_uid(accepted) is None
