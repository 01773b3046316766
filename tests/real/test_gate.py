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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from prewarm import gate as gate_module
from prewarm import loopback, skopeo
from prewarm import registry as module
from prewarm.causes import cause_of
from prewarm.credentials import authfile_in_memory
from prewarm.errors import RegistryError
from prewarm.gate import BlobSource, Gate, Offer
from prewarm.login import Login
from prewarm.manifest import Manifest
from prewarm.registry import Registry
from prewarm.transport import Blob
from tests.e2e.host import wait_until
from tests.real.scripted import Scripted, reply
from tests.sandbox import Fault, Image, Layer, Sandbox
from tests.sandbox.authority import Authority
from tests.sandbox.images import digest_of
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
    """A skopeo that copies from the gate to a mirror."""

    def __init__(self, folder: Path, mirror: str, gate: Gate) -> None:
        authfile = authfile_in_memory({})
        self.login = authfile_in_memory({gate.host: gate.login})
        self.program = skopeo.find(os.environ)
        self.environment = skopeo.child_environment(os.environ, folder, folder / "data")
        self.destination = skopeo.Destination(mirror.removeprefix("http://"), True, None, authfile)

    def copy(self, source: str, digest: str, stop: threading.Event | None = None) -> skopeo.Result:
        command = skopeo.copy_command(
            self.program, source, self.login, self.destination, REPOSITORY, digest, 30
        )
        return self.run(command, stop)

    def run(self, command: tuple[str, ...], stop: threading.Event | None = None) -> skopeo.Result:
        inherited = (self.login, self.destination.authfile)
        return skopeo.run(command, self.environment, 30, stop or threading.Event(), inherited)

    def close(self) -> None:
        os.close(self.login)
        os.close(self.destination.authfile)


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
    result = copier.copy(gate.offer(offer), image.digest)
    assert result.returncode == 0, result.stderr[-2000:]
    found = box.mirrors[0].manifest(REPOSITORY, image.digest)
    assert found == (image.media_type, image.content, image.digest)
    assert [entry for entry in box.hub.access if entry.kind == "manifest"] == []
    assert sorted(entry.reference for entry in box.hub.access.of("blob")) == sorted(
        map(digest_of, image.blobs)
    )
    assert offer.sent == sum(map(len, image.blobs))
    assert offer.failure is None
    assert box.hub.cdn.leaks == []


def test_copy_through_the_gate_takes_a_layer_of_another_repository_from_the_mirror(
    box: Sandbox, gate: Gate, hub: Registry, copier: Skopeo
) -> None:
    """The cache of blobs is skopeo's own, in the folder that it is given, as root too."""
    base = [Layer("base", 300_000)]
    first = box.push(REPOSITORY, "1", layers=base, single=True, name="first")
    second = box.push(REPOSITORY, "2", layers=base, single=True, name="second")
    assert copier.copy(gate.offer(offer_of(first, hub)), first.digest).returncode == 0
    offer = offer_of(second, hub)
    command = skopeo.copy_command(
        copier.program,
        gate.offer(offer),
        copier.login,
        copier.destination,
        "elsewhere/app",
        second.digest,
        30,
    )
    result = copier.run(command)
    assert result.returncode == 0
    assert offer.sent < 300_000
    assert (Path(copier.environment["XDG_DATA_HOME"]) / "containers/cache").is_dir()


def test_copy_of_a_broken_blob_fails_and_leaves_no_manifest(
    box: Sandbox, gate: Gate, hub: Registry, copier: Skopeo
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    file = box.upstream.storage.blob_file(digest_of(image.blobs[1]))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = copier.copy(gate.offer(offer_of(image, hub)), image.digest)
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
    result = copier.copy(gate.offer(offer_of(image, hub)), image.digest, stop)
    assert result.stopped
    assert result.returncode != 0
    assert time.monotonic() - started < 5


def test_copy_onto_a_mirror_that_breaks_off_tells_the_upload_to_cancel(
    box: Sandbox, gate: Gate, hub: Registry, copier: Skopeo
) -> None:
    image = box.push(REPOSITORY, "1", single=True)
    box.taps[0].faults.add(Fault("PATCH", "*/uploads/*", count=None, reset=True))
    result = copier.copy(gate.offer(offer_of(image, hub)), image.digest)
    assert cause_of(result.stderr, "http://mirror").error.code == "mirror-reset"
    uploads = skopeo.open_uploads(result.stderr)
    assert uploads
    with Registry(box.taps[0].url, box.taps[0].url, role="mirror", environ={}) as mirror:
        mirror.cancel_uploads(uploads)
    left = list(box.mirrors[0].storage.folder.glob("**/_uploads/*/startedat"))
    assert left == []


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
        assert ask(gate, first, f"blobs/{own}", method=method)[0] == 501
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
            address = gate.offer(offer_of(image, client))
            assert copier.copy(address, image.digest).returncode == 0
        assert len(store.requests) == len(blobs)
        for request in (*store.requests, *upstream.requests):
            shown = f"{request.target} {dict(request.headers)}"
            assert address.split("/")[1] not in shown
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

CROWD = """
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(300)]
print("connected", flush=True)
ended = 0
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
        result = copier.copy(gate.offer(offer_of(image, hub)), image.digest)
        assert result.returncode == 0, result.stderr[-2000:]
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == "300\n"
        wait_until(lambda: threading.active_count() <= before + 10, "end of the threads")


def test_unknown_clients_without_the_password_hold_few_connections(
    box: Sandbox, gate: Gate, hub: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "peer_uid", lambda _: None)
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
    assert gate_module._Handler.timeout == loopback.PATIENCE
    monkeypatch.setattr(gate_module._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", int(port_of(gate))), 20) as client:
        client.sendall(b"GET /v2/ HTTP/1.1\r\nX: ")
        assert client.recv(1) == b""


def test_peer_uid_is_the_user_who_opened_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()):
            accepted = server.accept()[0]
            with accepted:
                assert loopback.peer_uid(accepted) == os.geteuid()
        with socket.create_connection(server.getsockname()) as client:
            accepted = server.accept()[0]
            client.close()
            with accepted:
                assert loopback.peer_uid(accepted) is None
