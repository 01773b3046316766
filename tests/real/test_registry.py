"""The registry client against real registries, and against servers that misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prewarm import __version__
from prewarm.core.errors import RegistryError, UsageError
from prewarm.core.manifest import ACCEPT, DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, Manifest, digest_of
from prewarm.registry import client as module
from prewarm.registry.client import Registry
from prewarm.registry.login import Login
from prewarm.registry.transport import Blob
from tests.real.scripted import Script, Scripted, bearer, error, query, reply, token
from tests.sandbox import Fault, Image, Quota, Sandbox, build_image, push
from tests.sandbox import Registry as RealRegistry
from tests.sandbox.authority import Authority
from tests.sandbox.wire import Request, Response

SECRET = "s3cr3t-pass"
LOGIN = Login("acme", SECRET)
MANIFEST = build_image(single=True).content
DIGEST = digest_of(MANIFEST)
ABSENT = f"sha256:{'0' * 64}"


def client(url: str, name: str = "", **options: Any) -> Registry:
    return Registry(name or url, url, **{"environ": {}, **options})


def served(
    script: Script, *, challenge: str = "", token_body: Callable[[Request], Response] | None = None
) -> Script:
    """Return a script that answers /v2/ and /token, and leaves all else to the given one."""

    def answer(request: Request) -> Response:
        if request.path == "/v2/":
            return reply(401, www_authenticate=challenge) if challenge else reply(200)
        if request.path == "/token":
            return token_body(request) if token_body else token()
        return script(request)

    return answer


def manifest_reply(request: Request) -> Response:
    return reply(
        200,
        MANIFEST,
        content_type=OCI_MANIFEST,
        docker_content_digest=DIGEST,
        ratelimit_limit="100;w=21600",
        ratelimit_remaining="76;w=21600",
        docker_ratelimit_source="192.0.2.7",
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without pauses that a test would notice."""
    monkeypatch.setattr(module, "_BACKOFF", (0.005, 0.02))
    monkeypatch.setattr(module, "_LIMITED_BACKOFF", (0.005, 0.02))


@pytest.fixture
def image(registry: RealRegistry) -> Image:
    return push(
        registry,
        "library/app",
        build_image(platforms=("linux/amd64", "linux/arm64")),
        "1",
        "latest",
    )


@pytest.fixture
def real(registry: RealRegistry) -> Iterator[Registry]:
    with client(registry.url, role="mirror") as opened:
        yield opened


def failure(call: Callable[[], object]) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        call()
    shown = f"{caught.value} {caught.value.text} {caught.value.cure} {caught.value.__cause__!r}"
    assert SECRET not in shown
    assert "T0KEN" not in shown
    return caught.value


# Real registries


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_head_of_an_index_tells_its_descriptor(
    registry: RealRegistry, real: Registry, media: Any
) -> None:
    pushed = push(registry, "library/app", build_image(media=media), "1")
    head = real.head("library/app", "1")
    assert head.descriptor.media_type == (OCI_INDEX if media == "oci" else DOCKER_LIST)
    assert (head.descriptor.digest, head.descriptor.size) == (pushed.digest, len(pushed.content))
    assert head.limit is None


def test_manifest_by_tag_and_digest_is_byte_for_byte(real: Registry, image: Image) -> None:
    for selector in ("1", image.digest):
        manifest, limit = real.manifest("library/app", selector)
        assert manifest == Manifest(OCI_INDEX, image.content)
        assert limit is None


def test_head_of_what_is_not_there_is_not_found(real: Registry, image: Image) -> None:
    for repository, selector in (("library/app", "2"), ("no/such", "1"), ("library/app", ABSENT)):
        found = failure(lambda r=repository, s=selector: real.head(r, s))  # type: ignore[misc]
        assert (found.code, found.status, found.answered) == ("not-found", 404, True)
        assert f"{repository}" in found.text
        assert selector in found.text


def test_tags_of_a_repository_are_listed(real: Registry, image: Image) -> None:
    assert set(real.tags("library/app")) == {"1", "latest"}
    assert failure(lambda: real.tags("no/such")).code == "not-found"


def test_put_manifest_under_a_new_tag_keeps_the_bytes(
    registry: RealRegistry, real: Registry, image: Image
) -> None:
    real.put_manifest("library/app", "new", Manifest(OCI_INDEX, image.content))
    assert registry.manifest("library/app", "new") == (OCI_INDEX, image.content, image.digest)


def test_put_manifest_with_missing_children_is_incomplete(real: Registry) -> None:
    absent = build_image("absent")
    manifest = Manifest(OCI_INDEX, absent.content)
    found = failure(lambda: real.put_manifest("library/app", "1", manifest))
    assert (found.code, found.status) == ("mirror-incomplete", 400)


def test_delete_manifest_takes_the_tags_with_it(
    registry: RealRegistry, real: Registry, image: Image
) -> None:
    real.delete_manifest("library/app", image.digest)
    assert registry.tags("library/app") == []
    assert failure(lambda: real.delete_manifest("library/app", image.digest)).code == "not-found"


def test_delete_manifest_where_deletion_is_off_says_how_to_enable_it(tmp_path: Path) -> None:
    with RealRegistry(tmp_path, delete=False) as running, client(running.url, role="mirror") as own:
        pushed = push(running, "app", build_image(), "1")
        found = failure(lambda: own.delete_manifest("app", pushed.digest))
    assert found.code == "mirror-delete-disabled"
    assert "storage.delete.enabled" in found.cure


def test_probe_upload_of_a_writable_mirror_leaves_nothing(
    registry: RealRegistry, real: Registry
) -> None:
    real.probe_upload("library/app")
    # registry:2 leaves the folder of a cancelled upload; a started one holds `startedat`.
    assert list(registry.storage.folder.glob("**/_uploads/*/*")) != []
    assert list(registry.storage.folder.glob("**/_uploads/*/startedat")) == []
    assert registry.catalog() == []


def test_probe_upload_of_a_pull_through_mirror_is_a_proxy(
    registry: RealRegistry, tmp_path: Path
) -> None:
    with (
        RealRegistry(tmp_path / "proxy", proxy=registry.url) as running,
        client(running.url, role="mirror") as own,
    ):
        found = failure(lambda: own.probe_upload("app"))
    assert (found.code, found.status) == ("mirror-proxy", 405)
    assert "pull-through" in found.text


def test_probe_upload_of_a_mirror_in_maintenance_is_read_only(tmp_path: Path) -> None:
    with (
        RealRegistry(tmp_path, readonly=True) as running,
        client(running.url, role="mirror") as own,
    ):
        assert failure(lambda: own.probe_upload("app")).code == "mirror-read-only"


def test_registry_with_htpasswd_is_asked_with_basic_auth(tmp_path: Path) -> None:
    with RealRegistry(tmp_path, users={"acme": SECRET}) as running:
        pushed = push(running, "app", build_image(), "1")
        with client(running.url, role="mirror", credentials=lambda _: LOGIN) as own:
            assert own.head("app", "1").descriptor.digest == pushed.digest
            own.probe_upload("app")
        with client(running.url, role="mirror", credentials=lambda _: Login("acme", "no")) as own:
            found = failure(lambda: own.head("app", "1"))
            assert (found.code, found.status) == ("mirror-unauthorized", 401)
            assert "acme" in found.text
        with client(running.url, role="mirror") as own:
            found = failure(lambda: own.probe_upload("app"))
            assert found.code == "mirror-unauthorized"
            assert f"skopeo login 127.0.0.1:{running.port}" in found.cure


def test_registry_with_its_own_ca_is_trusted_by_ca_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    tls = authority.issue(["127.0.0.1"])
    with RealRegistry(tmp_path / "r", tls=tls, ca=authority.ca) as running:
        pushed = push(running, "app", build_image(), "1")
        with client(running.url, ca=authority.ca) as own:
            assert own.head("app", "1").descriptor.digest == pushed.digest
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            with client(running.url, environ={name: str(authority.ca)}) as own:
                assert own.head("app", "1").descriptor.digest == pushed.digest
        with client(running.url, role="mirror") as own:
            found = failure(lambda: own.head("app", "1"))
            assert (found.code, found.answered) == ("mirror-tls", False)
            assert "ca:" in found.cure


def test_registry_with_a_certificate_of_another_name_is_not_trusted(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    tls = authority.server_context(["mirror.example.org"])
    with (
        Scripted(served(manifest_reply), tls=tls) as site,
        client(site.url, ca=authority.ca) as own,
    ):
        found = failure(lambda: own.manifest("app", "1"))
    assert (found.code, found.answered) == ("tls", False)
    assert site.requests == []


def test_registry_of_an_unreadable_ca_is_a_usage_error(tmp_path: Path) -> None:
    bad = tmp_path / "ca.pem"
    bad.write_text("nothing")
    for path in (bad, tmp_path / "absent.pem"):
        with pytest.raises(UsageError, match=str(path)):
            client("https://127.0.0.1:1", ca=path)


def test_registry_asked_by_tls_on_a_plain_port_says_so(registry: RealRegistry) -> None:
    with client(f"https://127.0.0.1:{registry.port}") as own:
        found = failure(lambda: own.manifest("app", "1"))
    assert (found.code, found.answered) == ("plain-http", False)


def test_registry_asked_plainly_on_a_tls_port_says_so(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    tls = authority.issue(["127.0.0.1"])
    with (
        RealRegistry(tmp_path / "r", tls=tls, ca=authority.ca) as running,
        client(f"http://127.0.0.1:{running.port}", role="mirror") as own,
    ):
        found = failure(lambda: own.head("app", "1"))
    assert found.code == "mirror-tls"
    assert "https://" in found.cure


def test_endpoint_with_a_path_prefixes_every_repository(registry: RealRegistry) -> None:
    pushed = push(registry, "dockerhub/library/app", build_image(), "1")
    with client(f"{registry.url}/dockerhub/", "docker.io") as own:
        assert own.head("library/app", "1").descriptor.digest == pushed.digest
        assert own.tags("library/app") == ("1",)
        assert "docker.io/library/app:2" in failure(lambda: own.head("library/app", "2")).text


def test_open_blob_streams_it_from_the_byte_wanted(registry: RealRegistry, real: Registry) -> None:
    pushed = push(registry, "app", build_image(single=True, size=600_000), "1")
    content = max(pushed.blobs, key=len)
    digest = digest_of(content)
    assert real.blob_size("app", digest) == len(content)
    assert real.blob_size("app", ABSENT) is None
    for start in (0, 1, 500_000):
        with real.open_blob("app", digest, start) as blob:
            assert blob.size == len(content)
            assert b"".join(blob) == content[start:]
    assert failure(lambda: real.open_blob("app", ABSENT)).code == "not-found"


def test_requests_of_64_threads_share_few_connections(registry: RealRegistry) -> None:
    pushed = push(registry, "app", build_image(), "1")
    with client(registry.url, connections=8) as own, ThreadPoolExecutor(64) as threads:
        heads = list(threads.map(lambda _: own.head("app", "1"), range(200)))
    assert {head.descriptor.digest for head in heads} == {pushed.digest}


# Manifests


def test_manifest_reports_the_limit_and_sends_what_is_specified() -> None:
    with Scripted(served(manifest_reply)) as site, client(site.url) as own:
        manifest, limit = own.manifest("library/app", DIGEST)
    assert manifest.digest == DIGEST
    assert limit is not None
    assert (limit.limit, limit.window, limit.remaining) == (100, 21600, 76)
    assert limit.source == "192.0.2.7"
    sent = site.requests[-1].headers
    assert sent["accept"] == ", ".join(ACCEPT)
    assert sent["user-agent"] == f"prewarm/{__version__}"
    assert "cookie" not in sent


@pytest.mark.parametrize("status", [500, 502, 503, 504, 404, 403, 429])
def test_manifest_upstream_that_fails_is_never_asked_again(status: int, quick: None) -> None:
    with Scripted(served(lambda _: reply(status))) as site, client(site.url) as own:
        found = failure(lambda: own.manifest("app", "1"))
    assert site.paths() == ["/v2/app/manifests/1"]
    assert (found.status, found.answered) == (status, status != 429)


@pytest.mark.parametrize("fault", [{"reset": True}, {"drop": True}, {"cut": 10}])
def test_manifest_upstream_that_breaks_off_may_have_been_counted(
    fault: dict[str, Any], quick: None
) -> None:
    with Scripted(served(manifest_reply)) as site, client(site.url) as own:
        site.faults.add(Fault(path="*/manifests/*", count=None, **fault))
        found = failure(lambda: own.manifest("app", "1"))
        assert (found.code, found.answered) == ("reset", True)
        assert len(site.access.gets()) == 1


def test_manifest_of_a_mirror_that_breaks_off_is_asked_again(quick: None) -> None:
    with Scripted(served(manifest_reply)) as site, client(site.url, role="mirror") as own:
        site.faults.add(Fault(path="*/manifests/*", count=2, reset=True))
        manifest, _ = own.manifest("app", "1")
    assert manifest.digest == DIGEST


def test_manifest_over_a_connection_that_the_server_closed_is_asked_anew() -> None:
    with Scripted(served(manifest_reply)) as site, client(site.url) as own:
        own.head("app", "1")
        for connection in list(site._server._open.values()):
            connection.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: not site._server._open)
        assert own.manifest("app", "1")[0].digest == DIGEST
        assert len(site.access.gets()) == 1


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_manifest_that_does_not_come_in_time_may_have_been_counted() -> None:
    with Scripted(served(manifest_reply)) as site, client(site.url, read_timeout=0.1) as own:
        site.faults.add(Fault(path="*/manifests/*", hang=5))
        found = failure(lambda: own.manifest("app", "1"))
    assert (found.code, found.answered, found.status) == ("timeout", True, None)


def test_requests_that_cannot_connect_were_not_counted(quick: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with client(f"http://127.0.0.1:{port}", "docker.io") as own:
        for call in (own.head, own.manifest):
            found = failure(lambda c=call: c("app", "1"))  # type: ignore[misc]
            assert (found.code, found.answered) == ("unreachable", False)
            assert "docker.io/app:1" in found.text
            assert "refuses" in found.text
    with client(f"http://127.0.0.1:{port}", role="mirror") as own:
        assert failure(lambda: own.probe_upload("app")).code == "mirror-unreachable"


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"{}", {}, "bad-manifest"),
        (b"<html>", {}, "bad-manifest"),
        (b"[" * 9000, {}, "bad-manifest"),
        (MANIFEST, {"content_type": "text/html"}, "ok"),
        (MANIFEST, {"content_type": OCI_INDEX}, "bad-manifest"),
        (
            b'{"schemaVersion": 1}',
            {"content_type": "application/vnd.docker.distribution.manifest.v1+prettyjws"},
            "unsupported-manifest",
        ),
        (b'{"schemaVersion": 2}', {"content_type": "application/json"}, "unsupported-manifest"),
        (MANIFEST, {"docker_content_digest": ABSENT}, "bad-digest"),
        (b" " * (4 * 2**20 + 1), {}, "bad-manifest"),
    ],
)
def test_manifest_that_is_not_what_it_says_is_refused(
    body: bytes, headers: dict[str, str], code: str
) -> None:
    answer = reply(200, body, **{"content_type": OCI_MANIFEST, **headers})
    with Scripted(served(lambda _: answer)) as site, client(site.url) as own:
        if code == "ok":
            assert own.manifest("app", "1")[0].media_type == OCI_MANIFEST
        else:
            found = failure(lambda: own.manifest("app", "1"))
            assert (found.code, found.answered) == (code, True)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_manifest_by_a_digest_that_its_bytes_have_not_is_refused(algorithm: str) -> None:
    answer = reply(200, MANIFEST, content_type=OCI_MANIFEST)
    right = f"{algorithm}:{hashlib.new(algorithm, MANIFEST).hexdigest()}"
    wrong = f"{algorithm}:{hashlib.new(algorithm, b'other').hexdigest()}"
    with Scripted(served(lambda _: answer)) as site, client(site.url) as own:
        assert own.manifest("app", right)[0].content == MANIFEST
        assert failure(lambda: own.manifest("app", wrong)).code == "bad-digest"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content_type": OCI_MANIFEST}, "bad-answer"),
        ({"docker_content_digest": "sha256:x", "content_type": OCI_MANIFEST}, "bad-answer"),
        ({"docker_content_digest": DIGEST, "content_type": "text/html"}, "unsupported-manifest"),
    ],
)
def test_head_without_digest_or_media_type_is_refused(headers: dict[str, str], code: str) -> None:
    with Scripted(served(lambda _: reply(200, **headers))) as site, client(site.url) as own:
        assert failure(lambda: own.head("app", "1")).code == code


@pytest.mark.parametrize(
    ("repository", "selector"),
    [("../x", "1"), ("App", "1"), ("app/", "1"), ("a b", "1"), ("app", "1/../2"), ("app", "x?y")],
)
def test_requests_for_a_name_that_is_none_are_not_sent(repository: str, selector: str) -> None:
    with Scripted(served(manifest_reply)) as site, client(site.url) as own:
        found = failure(lambda: own.manifest(repository, selector))
    assert (found.code, found.answered) == ("invalid-name", False)
    assert site.paths() == []


@pytest.mark.parametrize(
    ("method", "body", "code"),
    [
        ("manifest", '{"errors":[{"code":"TOOMANYREQUESTS","message":"x"}]}', "upstream-quota"),
        ("manifest", "You have reached your pull rate limit.", "upstream-quota"),
        ("manifest", "Too Many Requests", "abuse-limit"),
        ("head", "You have reached your pull rate limit.", "abuse-limit"),
    ],
)
def test_answer_429_is_told_quota_from_abuse(
    method: str, body: str, code: str, quick: None
) -> None:
    answer = reply(429, body, retry_after="3600")
    with Scripted(served(lambda _: answer)) as site, client(site.url) as own:
        found = failure(lambda: getattr(own, method)("app", "1"))
        assert (found.code, found.answered, found.retry_after) == (code, False, 3600.0)
        assert len(site.paths()) == 1


# Retries


@pytest.mark.parametrize("status", [429, 500, 503])
def test_head_is_asked_again_after_a_passing_failure(status: int, quick: None) -> None:
    with Scripted(served(manifest_reply)) as site, client(site.url) as own:
        site.faults.add(Fault(path="*/manifests/*", count=2, status=status))
        assert own.head("app", "1").descriptor.digest == DIGEST
        assert site.access.statuses() == {200: 2, status: 2}


def test_head_of_a_server_that_stays_broken_ends_after_six_tries(quick: None) -> None:
    with Scripted(served(lambda _: reply(503))) as site, client(site.url) as own:
        assert failure(lambda: own.head("app", "1")).code == "server-error"
        assert len(site.paths()) == 6


def test_head_that_times_out_is_sent_three_times(quick: None) -> None:
    with Scripted(served(manifest_reply)) as site, client(site.url, read_timeout=0.1) as own:
        site.faults.add(Fault(path="*/manifests/*", count=None, hang=10))
        assert failure(lambda: own.head("app", "1")).code == "timeout"
    assert len(site.paths()) == 3


def test_head_waits_as_long_as_retry_after_says() -> None:
    with Scripted(served(manifest_reply)) as site, client(site.url) as own:
        site.faults.add(Fault(path="*/manifests/*", status=429, headers={"Retry-After": "1"}))
        began = time.monotonic()
        own.head("app", "1")
        assert 0.95 <= time.monotonic() - began < 5


def test_probe_upload_of_a_full_mirror_is_not_tried_again(quick: None) -> None:
    body = '{"errors":[{"code":"UNKNOWN","detail":{"Enclosed":{"Op":"mkdir","Err":28}}}]}'
    with (
        Scripted(served(lambda _: reply(500, body))) as site,
        client(site.url, role="mirror") as own,
    ):
        assert failure(lambda: own.probe_upload("app")).code == "mirror-full"
        assert len(site.paths()) == 1


def test_threads_that_wait_for_a_server_that_is_down_share_its_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_TRIES", 1)
    with Scripted(served(manifest_reply)) as site, client(site.url, read_timeout=0.3) as own:
        site.faults.add(Fault(path="/v2/", count=None, hang=10))
        gate = threading.Barrier(8)

        def ask(_: int) -> str:
            gate.wait()
            return failure(lambda: own.manifest("app", "1")).code

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(ask, range(8))) == {"timeout"}
        assert len(site.access.of("v2")) < 8


def test_heads_per_minute_lets_a_burst_pass_and_slows_what_follows() -> None:
    with Scripted(served(manifest_reply)) as site, client(site.url, heads_per_minute=240) as own:
        own._bucket._left = 2  # type: ignore[union-attr]
        began = time.monotonic()
        for _ in range(3):
            own.head("app", "1")
        # The third waits for a quarter of a second less what the first two took.
        assert 0.2 < time.monotonic() - began < 2


# Tokens


def hub(realm_path: str = "/token", **options: Any) -> Script:
    """Return a registry that takes the bearer `T0KEN`, with its token server beside it."""

    def script(request: Request) -> Response:
        if request.headers.get("authorization") != "Bearer T0KEN":
            return error(401, "UNAUTHORIZED")
        return manifest_reply(request)

    def answer(request: Request) -> Response:
        challenge = bearer(f"http://{request.host}{realm_path}")
        return served(script, challenge=challenge, **options)(request)

    return answer


def test_token_is_fetched_before_the_manifest_get() -> None:
    with Scripted(hub()) as site, client(site.url) as own:
        own.manifest("library/app", "1")
    assert site.paths() == ["/token", "/v2/library/app/manifests/1"]
    asked = query(site.requests[1])
    assert asked == {"service": ["registry"], "scope": ["repository:library/app:pull"]}
    assert "authorization" not in site.requests[1].headers


def test_token_is_asked_once_by_many_threads() -> None:
    with Scripted(hub()) as site, client(site.url) as own, ThreadPoolExecutor(32) as threads:
        site.latency = 0.02
        list(threads.map(lambda _: own.head("app", "1"), range(64)))
        assert site.paths().count("/token") == 1
        assert len(site.access.of("v2")) == 1


def test_token_that_was_revoked_is_renewed_once() -> None:
    issued = iter(("old", "new"))

    def script(request: Request) -> Response:
        good = request.headers.get("authorization") == f"Bearer {wanted}"
        return manifest_reply(request) if good else error(401, "UNAUTHORIZED")

    def answer(request: Request) -> Response:
        challenge = bearer(f"http://{request.host}/token")
        return served(script, challenge=challenge, token_body=lambda _: token(next(issued)))(
            request
        )

    wanted = "old"
    with Scripted(answer) as site, client(site.url) as own:
        own.manifest("app", "1")
        wanted = "new"
        own.manifest("app", "1")
        wanted = "none"
        with pytest.raises(StopIteration):
            next(issued)
        assert site.access.statuses()[401] == 2  # /v2/, and the GET with the old token
    assert site.paths().count("/v2/app/manifests/1") == 3


def test_fresh_token_that_is_refused_is_not_renewed() -> None:
    with Scripted(hub(token_body=lambda _: token("other"))) as site, client(site.url) as own:
        found = failure(lambda: own.manifest("app", "1"))
    assert (found.code, found.status) == ("not-found", 401)
    assert "no such repository, or it is private" in found.text
    assert site.paths() == ["/token", "/v2/app/manifests/1"]


def test_token_is_kept_until_shortly_before_it_expires() -> None:
    with Scripted(hub(token_body=lambda _: token(expires_in=0.3))) as site, client(site.url) as own:
        own.head("app", "1")
        own.head("app", "1")
        assert site.paths().count("/token") == 1
        time.sleep(0.3)
        own.head("app", "1")
        assert site.paths().count("/token") == 2


def test_token_for_a_login_is_asked_with_basic_auth() -> None:
    with Scripted(hub()) as site, client(site.url, credentials=lambda _: LOGIN) as own:
        own.head("app", "1")
    sent = site.requests[1].headers["authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")).decode() == f"acme:{SECRET}"


def test_token_for_an_identity_token_is_asked_by_oauth2() -> None:
    login = Login("<token>", SECRET)
    with (
        Scripted(hub(token_body=lambda _: reply(200, '{"access_token": "T0KEN"}'))) as site,
        client(site.url, credentials=lambda _: login) as own,
    ):
        own.head("app", "1")
    asked = site.requests[1]
    assert asked.method == "POST"
    assert f"refresh_token={SECRET}".encode() in asked.body
    assert SECRET not in asked.target


def test_token_for_writing_is_asked_with_push_and_for_deleting_with_all() -> None:
    scopes: list[str] = []

    def issue(request: Request) -> Response:
        scopes.extend(query(request)["scope"])
        return token()

    with Scripted(hub(token_body=issue)) as site, client(site.url, role="mirror") as own:
        own.manifest("app", "1")
        own.put_manifest("app", "1", Manifest(OCI_MANIFEST, MANIFEST))
        own.delete_manifest("app", DIGEST)
    assert scopes == ["repository:app:pull", "repository:app:pull,push", "repository:app:*"]


def test_credentials_that_are_refused_are_not_shown_for_each_repository() -> None:
    with (
        Scripted(hub(token_body=lambda _: error(401, "UNAUTHORIZED"))) as site,
        client(
            site.url, "docker.io", credentials=lambda _: LOGIN, login_cure="store {}".format
        ) as own,
    ):
        for repository in ("a", "b"):
            found = failure(lambda r=repository: own.manifest(r, "1"))  # type: ignore[misc]
            assert (found.code, found.answered) == ("unauthorized", False)
            assert "the credentials for docker.io were refused" in found.text
            assert found.cure == "store docker.io"
    # For the first repository, and once for none, whose refusal can only mean the login.
    asked = [query(request) for request in site.requests if request.path == "/token"]
    assert [("scope" in one) for one in asked] == [True, False]


def test_repository_that_a_login_may_not_pull_is_not_found() -> None:
    refuse = served(lambda _: error(403, "DENIED"))

    def answer(request: Request) -> Response:
        if request.path == "/v2/":
            return reply(401, www_authenticate=bearer(f"http://{request.host}/token"))
        return refuse(request)

    with Scripted(answer) as site, client(site.url, credentials=lambda _: LOGIN) as own:
        found = failure(lambda: own.head("app", "1"))
    assert (found.code, found.status) == ("not-found", 403)
    assert "acme" in found.text


def test_authorize_fetches_one_token_for_twenty_repositories() -> None:
    names = [f"library/app{number}" for number in range(25)]
    with Scripted(hub()) as site, client(site.url) as own:
        own.authorize(names)
        for name in names:
            own.head(name, "1")
    asked = [query(request)["scope"] for request in site.requests if request.path == "/token"]
    wanted = [f"repository:{name}:pull" for name in names]
    # Both are fetched at once, in any order.
    assert sorted(asked, key=len) == [wanted[20:], wanted[:20]]


@pytest.mark.parametrize("refusal", ["the token", "the request"])
def test_authorize_where_a_server_knows_one_scope_falls_back(refusal: str) -> None:
    def issue(request: Request) -> Response:
        shared = len(query(request)["scope"]) > 1
        if shared and refusal == "the token":
            return error(400, "UNSUPPORTED")
        return token("partial" if shared else "T0KEN")

    with Scripted(hub(token_body=issue)) as site, client(site.url) as own:
        own.authorize(["a", "b"])
        assert own.manifest("a", "1")[0].digest == DIGEST
        assert own.head("b", "1").descriptor.digest == DIGEST


@pytest.mark.parametrize(
    ("options", "shown"),
    [({}, False), ({"realm": "localhost"}, True), ({"realm": "localhost:PORT"}, True)],
)
def test_credentials_are_shown_to_another_host_only_where_it_is_named(
    options: dict[str, str], shown: bool
) -> None:
    # The registry is 127.0.0.1, its token server localhost.
    with Scripted(served(manifest_reply)) as tokens:
        realm = f"http://localhost:{tokens.port}/token"
        script = served(lambda _: error(401, "UNAUTHORIZED"), challenge=bearer(realm))
        named = {key: text.replace("PORT", str(tokens.port)) for key, text in options.items()}
        with (
            Scripted(script) as site,
            client(site.url, credentials=lambda _: LOGIN, **named) as own,
        ):
            found = failure(lambda: own.manifest("app", "1"))
        assert [("authorization" in sent.headers) for sent in tokens.requests] == [shown]
        assert (f"realm: localhost:{tokens.port}" in found.cure) is not shown


@pytest.mark.parametrize(
    "realm",
    ["http://127.0.0.1:9/token", "ftp://127.0.0.1/token", "/token", "", "https://u:p@127.0.0.1/t"],
)
def test_realm_that_leaves_tls_or_is_none_is_refused(tmp_path: Path, realm: str) -> None:
    authority = Authority(tmp_path)
    script = served(manifest_reply, challenge=bearer(realm))
    with (
        Scripted(script, tls=authority.server_context(["127.0.0.1"])) as site,
        client(site.url, ca=authority.ca, credentials=lambda _: LOGIN) as own,
    ):
        found = failure(lambda: own.manifest("app", "1"))
    assert (found.code, found.answered) == ("bad-answer", False)
    assert site.paths() == []


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_credentials_never_go_over_plain_http_to_another_machine(scheme: str) -> None:
    # No other machine can be reached from a test: a proxy on loopback stands for it.
    def answer(request: Request) -> Response:
        if request.path == "/token":
            return error(401, "UNAUTHORIZED")
        challenge = 'Basic realm="r"' if scheme == "Basic" else bearer("http://r.example/token")
        return reply(401, www_authenticate=challenge)

    with Scripted(answer) as proxy:
        environ = {"http_proxy": f"127.0.0.1:{proxy.port}"}
        with client("http://r.example", credentials=lambda _: LOGIN, environ=environ) as own:
            found = failure(lambda: own.head("app", "1"))
    assert found.code == "plain-http-credentials"
    assert proxy.requests
    assert not any("authorization" in request.headers for request in proxy.requests)


def test_registry_open_at_v2_may_challenge_for_a_repository() -> None:
    def script(request: Request) -> Response:
        if request.headers.get("authorization") == "Bearer T0KEN":
            return manifest_reply(request)
        return reply(401, www_authenticate=bearer(f"http://{request.host}/token"))

    with Scripted(served(script)) as site, client(site.url) as own:
        assert own.manifest("app", "1")[0].digest == DIGEST
    assert site.paths("GET").count("/v2/app/manifests/1") == 2


@pytest.mark.parametrize("at_v2", [True, False])
def test_registry_that_wants_a_password_is_asked_once_without_one(at_v2: bool) -> None:
    wanted = reply(401, www_authenticate='Basic realm="r"')

    def answer(request: Request) -> Response:
        return wanted if at_v2 or request.path != "/v2/" else reply(200)

    with Scripted(answer) as site, client(site.url) as own:
        assert failure(lambda: own.manifest("app", "1")).code == "unauthorized"
    assert site.paths() == ["/v2/app/manifests/1"]


def test_registry_that_names_the_scope_otherwise_is_asked_by_it() -> None:
    def script(request: Request) -> Response:
        if request.headers.get("authorization") == "Bearer inner":
            return manifest_reply(request)
        challenge = bearer(f"http://{request.host}/token") + ',scope="repository:inner/app:pull"'
        return reply(401, www_authenticate=challenge)

    def issue(request: Request) -> Response:
        return token("inner" if query(request)["scope"] == ["repository:inner/app:pull"] else "own")

    def answer(request: Request) -> Response:
        challenge = bearer(f"http://{request.host}/token")
        return served(script, challenge=challenge, token_body=issue)(request)

    with Scripted(answer) as site, client(site.url) as own:
        assert own.head("app", "1").descriptor.digest == DIGEST


def test_docker_hub_under_its_real_names_counts_one_get_and_no_head() -> None:
    # Through a CONNECT proxy, with auth.docker.io as token server and blobs at another host.
    with Sandbox(names=True, quota=Quota(1)) as box:
        pushed = box.push("library/app", "1", single=True)
        options = {"environ": box.names.env(), "credentials": lambda _: Login("acme", "sesame")}
        with client("https://registry-1.docker.io", "docker.io", **options) as own:
            limits = [own.head("library/app", "1").limit for _ in range(3)]
            assert [found.remaining for found in limits if found] == [1, 1, 1]
            manifest, limit = own.manifest("library/app", "1")
            assert manifest.digest == pushed.digest
            assert limit is not None
            assert (limit.limit, limit.window, limit.remaining) == (1, 21600, 0)
            with own.open_blob("library/app", digest_of(pushed.blobs[-1])) as blob:
                assert b"".join(blob) == pushed.blobs[-1]
            assert failure(lambda: own.manifest("library/app", "1")).code == "upstream-quota"
        assert len(box.hub.access.gets()) == 2
        assert {entry.account for entry in box.hub.access.heads()} == {"acme"}
        assert all(not entry.secret for entry in box.hub.cdn.access)


# Redirects and blobs

BLOB = bytes(range(256)) * 400
BLOB_DIGEST = digest_of(BLOB)


def store(request: Request) -> Response:
    """Answer as a blob store does that knows ranges."""
    wanted = request.headers.get("range", "")
    if not wanted:
        return reply(200, BLOB)
    start = int(wanted.removeprefix("bytes=").rstrip("-"))
    range_ = f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"
    return reply(206, BLOB[start:], content_range=range_)


def test_open_blob_by_redirect_keeps_our_credentials_from_the_other_origin() -> None:
    with Scripted(store) as cdn:
        signed = f"{cdn.url}/blob?X-Amz-Signature=5ign3d"
        with Scripted(hub()) as site, client(site.url, credentials=lambda _: LOGIN) as own:
            own.head("app", "1")
            site.faults.add(
                Fault(path="*/blobs/*", count=None, status=307, headers={"Location": signed})
            )
            for start in (0, 1000):
                with own.open_blob("app", BLOB_DIGEST, start) as blob:
                    assert (blob.size, b"".join(blob)) == (len(BLOB), BLOB[start:])
            assert own.blob_size("app", BLOB_DIGEST) == len(BLOB)
            assert all(entry.authorization == "Bearer" for entry in site.access.of("blob"))
    assert cdn.requests
    assert not any("authorization" in request.headers for request in cdn.requests)


def test_open_blob_of_a_store_without_ranges_skips_what_is_there() -> None:
    with (
        Scripted(served(lambda _: reply(200, BLOB))) as site,
        client(site.url) as own,
        own.open_blob("app", BLOB_DIGEST, 70_000) as blob,
    ):
        assert (blob.size, b"".join(blob)) == (len(BLOB), BLOB[70_000:])


def test_open_blob_that_gets_another_range_is_refused() -> None:
    answer = reply(206, BLOB, content_range=f"bytes 0-9/{len(BLOB)}")
    with Scripted(served(lambda _: answer)) as site, client(site.url) as own:
        assert failure(lambda: own.open_blob("app", BLOB_DIGEST, 5)).code == "bad-answer"


def test_open_blob_opens_again_after_a_passing_failure(quick: None) -> None:
    with Scripted(served(store)) as site, client(site.url) as own:
        site.faults.add(Fault(path="*/blobs/*", count=1, reset=True))
        site.faults.add(Fault(path="*/blobs/*", count=1, status=502))
        with own.open_blob("app", BLOB_DIGEST) as blob:
            assert b"".join(blob) == BLOB


def test_blob_that_is_cut_raises_and_does_not_end_silently() -> None:
    def read_all(blob: Blob) -> None:
        for _ in blob:
            pass

    with Scripted(served(store)) as site, client(site.url) as own:
        site.faults.add(Fault(path="*/blobs/*", cut=5000))
        with own.open_blob("app", BLOB_DIGEST) as blob:
            assert failure(lambda: read_all(blob)).code == "reset"


def test_blob_that_says_it_is_compressed_comes_as_it_is() -> None:
    answer = reply(200, BLOB, content_encoding="gzip")
    with (
        Scripted(served(lambda _: answer)) as site,
        client(site.url) as own,
        own.open_blob("app", BLOB_DIGEST) as blob,
    ):
        assert b"".join(blob) == BLOB


def test_blobs_that_are_open_keep_no_one_from_asking() -> None:
    def script(request: Request) -> Response:
        return store(request) if "/blobs/" in request.path else manifest_reply(request)

    with (
        Scripted(served(script)) as site,
        client(site.url, connections=1) as own,
        own.open_blob("app", BLOB_DIGEST) as first,
        own.open_blob("app", BLOB_DIGEST) as other,
    ):
        assert first.read(1)
        assert own.head("app", "1").descriptor.digest == DIGEST
        assert b"".join(other) == BLOB


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://127.0.0.1:PORT/other", "bad-redirect"),
        ("ftp://127.0.0.1/x", "bad-redirect"),
        ("https://u:p@127.0.0.1/x", "bad-redirect"),
        ("http://[", "bad-redirect"),
        ("", "bad-redirect"),
        ("/v2/app/blobs/again", "too-many-redirects"),
    ],
)
def test_open_blob_by_a_redirect_that_leads_nowhere_is_refused(
    tmp_path: Path, location: str, code: str
) -> None:
    authority = Authority(tmp_path)
    with Scripted(store) as plain:
        target = location.replace("PORT", str(plain.port))
        script = served(lambda _: reply(302, location=target))
        with (
            Scripted(script, tls=authority.server_context(["127.0.0.1"])) as site,
            client(site.url, ca=authority.ca) as own,
        ):
            found = failure(lambda: own.open_blob("app", BLOB_DIGEST))
        assert found.code == code
        assert plain.requests == []
        assert len(site.paths()) <= 6


def test_manifest_by_redirect_is_followed() -> None:
    with Scripted(manifest_reply) as other:
        script = served(lambda r: reply(307, location=f"{other.url}{r.path}"))
        with Scripted(script) as site, client(site.url) as own:
            assert own.manifest("app", "1")[0].digest == DIGEST


# Tags and uploads


def test_tags_over_pages_are_joined_on_the_same_host_only() -> None:
    def pages(request: Request) -> Response:
        last = query(request).get("last", [""])[0]
        if last == "":
            link = '</v2/app/tags/list?last=b&n=2>; rel="next"'
            return reply(200, '{"tags": ["a", "b", "bad tag", 7]}', link=link)
        if last == "b":
            return reply(200, '{"tags": ["c"]}', link=elsewhere)
        return reply(200, '{"tags": null}')

    elsewhere = '<?last=c>; rel="next"'
    with Scripted(served(pages)) as site, client(site.url) as own:
        assert own.tags("app") == ("a", "b", "c")
        elsewhere = '<http://localhost:1/v2/app/tags/list?last=c>; rel="next"'
        assert failure(lambda: own.tags("app")).code == "bad-redirect"
        elsewhere = '</v2/app/tags/list?last=b&n=2>; rel="next"'
        assert failure(lambda: own.tags("app")).code == "bad-answer"


@pytest.mark.parametrize(
    ("limit", "most"), [("TAGS_MAX", 10), ("TAGS_BYTES", 99), ("TAGS_TIME", 0)]
)
def test_tags_without_end_are_bounded_in_all(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(module, limit, most)

    def answer(request: Request) -> Response:
        if request.path == "/v2/":
            return reply(200, "{}")
        last = int(query(request).get("last", ["0"])[0])
        tags = json.dumps({"tags": [f"t{last}", f"u{last}"]})
        return reply(200, tags, link=f'</v2/app/tags/list?last={last + 1}>; rel="next"')

    with Scripted(answer) as site, client(site.url) as own:
        assert failure(lambda: own.tags("app")).code == "bad-answer"
        assert len(site.paths("GET")) <= 6


def test_token_of_any_length_is_refused() -> None:
    """One is kept for each repository."""

    def answer(request: Request) -> Response:
        if request.path == "/token":
            return token("x" * 100_000)
        return error(401, "UNAUTHORIZED", www_authenticate=bearer(f"http://{request.host}/token"))

    with Scripted(answer) as site, client(site.url) as own:
        found = failure(lambda: own.head("app", "1"))
        assert (found.code, "sent no token" in found.text) == ("bad-answer", True)


def test_probe_upload_cancels_at_our_own_origin() -> None:
    def script(request: Request) -> Response:
        if request.method == "DELETE":
            return reply(204)
        # As a registry behind a proxy that ends TLS names itself.
        return reply(202, location="http://127.0.0.1:1/v2/app/blobs/uploads/u?_state=s")

    with Scripted(served(script)) as site, client(site.url, role="mirror") as own:
        own.probe_upload("app")
    assert site.requests[-1].target == "/v2/app/blobs/uploads/u?_state=s"


def test_upload_is_begun_sent_and_ended_or_cancelled(
    registry: RealRegistry, real: Registry
) -> None:
    upload = real.begin_upload("app")
    upload = real.send_upload("app", upload, iter([BLOB[:1000], BLOB[1000:]]), len(BLOB))
    real.end_upload("app", upload, BLOB_DIGEST, len(BLOB))
    assert real.blob_size("app", BLOB_DIGEST) == len(BLOB)
    real.cancel_upload("app", real.begin_upload("app"))
    assert list(registry.storage.folder.glob("**/_uploads/*/startedat")) == []


# Proxies, logs


def test_proxy_with_a_password_is_used_and_its_password_never_shown() -> None:
    url = f"http://user:{SECRET}@127.0.0.1"
    with Scripted(served(manifest_reply)) as proxy:
        environ = {"HTTP_PROXY": f"{url}:{proxy.port}"}
        with client("http://registry.example", environ=environ) as own:
            assert own.head("app", "1").descriptor.digest == DIGEST
            sent = proxy.requests[-1].headers
            assert base64.b64decode(sent["proxy-authorization"].split()[1]).decode() == (
                f"user:{SECRET}"
            )
    with client("https://registry.example", environ={"https_proxy": f"{url}:1"}) as own:
        found = failure(lambda: own.manifest("app", "1"))
        assert (found.code, found.answered) == ("proxy", False)
    with client("https://registry.example", environ={"ALL_PROXY": "socks5://127.0.0.1:1"}) as own:
        assert failure(lambda: own.head("app", "1")).code == "proxy"


def test_loopback_is_never_asked_through_a_proxy(registry: RealRegistry, image: Image) -> None:
    environ = {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
    with client(registry.url, environ=environ) as own:
        assert own.head("library/app", "1").descriptor.digest == image.digest


def test_secrets_never_reach_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Scripted(store) as cdn:
        signed = f"{cdn.url}/blob?X-Amz-Signature=5ign3d"
        with Scripted(hub()) as site, client(site.url, credentials=lambda _: LOGIN) as own:
            site.faults.add(Fault(path="*/blobs/*", status=307, headers={"Location": signed}))
            own.open_blob("app", BLOB_DIGEST).close()
            shown = repr((own, own._tokens, LOGIN)) + caplog.text
    for secret in ("5ign3d", SECRET, "T0KEN"):
        assert secret not in shown


def test_error_of_a_server_that_echoes_the_token_does_not_repeat_it() -> None:
    def echo(request: Request) -> Response:
        return error(400, "T0KEN?", request.headers.get("authorization", ""))

    def answer(request: Request) -> Response:
        return served(echo, challenge=bearer(f"http://{request.host}/token"))(request)

    with Scripted(answer) as site, client(site.url, credentials=lambda _: LOGIN) as own:
        assert failure(lambda: own.manifest("app", "1")).status == 400


def test_mount_blob_takes_it_from_another_repository_or_says_no(box: Sandbox) -> None:
    image = box.push("library/app", "1")
    blob = image.child("linux/amd64").blobs[0]
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    with client(box.upstream.url, role="mirror") as own:
        assert own.blob_size("other", digest) is None
        assert own.mount_blob("other", digest, "library/app")
        assert own.blob_size("other", digest) == len(blob)
        assert not own.mount_blob("other", "sha256:" + "0" * 64, "library/app")


# --- 429 too many requests ---


def code_of(own: Registry, repository: str) -> str:
    try:
        own.head(repository, "1")
    except RegistryError as error:
        return error.code
    return ""


def ask_all(own: Registry, images: int) -> list[str]:
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda number: code_of(own, f"app{number}"), range(images)))


@pytest.mark.parametrize("after", ["1", None], ids=["Retry-After", "no Retry-After"])
def test_registry_that_answers_429_to_every_head_is_left_alone_after_few(
    after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LIMITED_BACKOFF", (0.1, 0.5))
    headers = {"retry_after": after} if after else {}

    def script(request: Request) -> Response:
        return reply(429, b"slow down", **headers)

    with Scripted(served(script)) as site, client(site.url) as own:
        assert ask_all(own, 64) == ["abuse-limit"] * 64
        # Eight threads that ask together, three times; each image would be asked three times.
        assert len(site.paths("HEAD")) <= 24
        with pytest.raises(RegistryError, match="is left alone in this run") as caught:
            own.tags("app1")
        assert (caught.value.status, caught.value.answered) == (429, False)


def test_registry_that_answers_429_now_and_then_is_waited_for_in_total_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Good answers between them would let each image be waited for."""
    monkeypatch.setattr(module, "LIMITED_FOR", 3.0)
    seen: list[str] = []

    def script(request: Request) -> Response:
        seen.append(request.path)
        if len(seen) % 2:
            return reply(429, retry_after="1")
        return manifest_reply(request)

    with Scripted(served(script)) as site, client(site.url) as own:
        codes = [code_of(own, f"app{number}") for number in range(64)]
    assert codes[:2] == ["", ""]
    assert set(codes[4:]) == {"abuse-limit"}


def test_429_after_a_redirect_to_another_host_is_that_images_alone(quick: None) -> None:
    def script(request: Request) -> Response:
        if request.path.startswith("/v2/bad/"):
            return reply(307, location=f"{other.url}/x")
        return manifest_reply(request)

    with (
        Scripted(lambda _: reply(429, retry_after="3600")) as other,
        Scripted(served(script)) as site,
        client(site.url) as own,
    ):
        with pytest.raises(RegistryError) as caught:
            own.head("bad", "1")
        assert caught.value.code == "abuse-limit"
        assert own.head("good", "1").descriptor.digest == DIGEST
