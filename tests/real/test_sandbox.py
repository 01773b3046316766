"""The sandbox behaves as the Hub and its registries do: proved with a real skopeo and by HTTP."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import io
import json
import os
import pwd
import socket
import ssl
import tarfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox import (
    Fault,
    Layer,
    Quota,
    Registry,
    Sandbox,
    build_image,
    disk_full,
    push,
)
from tests.sandbox.authority import Authority
from tests.sandbox.client import Answer, Pool
from tests.sandbox.hub import account_id
from tests.sandbox.registry import MANIFEST_TYPES
from tests.support.process import private_env, run_prewarm, run_skopeo, write_config

ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}
PLATFORMS = ("linux/amd64", "linux/arm64")


def ask(
    url: str, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> Answer:
    pool = Pool(url)
    try:
        return pool.request(method, path, headers, body or None)
    finally:
        pool.close()


def bearer(box: Sandbox, *repositories: str, account: str = "") -> dict[str, str]:
    query = "&".join(f"scope=repository:{name}:pull" for name in repositories)
    headers = basic(account, "sesame") if account else {}
    answer = ask(box.hub.url, "GET", f"/token?service=registry.docker.io&{query}", headers)
    assert answer.status == 200
    return {"Authorization": f"Bearer {json.loads(answer.body)['token']}", **ACCEPT}


def basic(account: str, password: str) -> dict[str, str]:
    encoded = base64.b64encode(f"{account}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


def copy(box: Sandbox, folder: Path, source: str, *options: str) -> Any:
    host = box.hub.url.removeprefix("http://")
    target = box.taps[0].url.removeprefix("http://")
    return run_skopeo(
        [
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            *options,
            f"docker://{host}/{source}",
            f"docker://{target}/{source}",
        ],
        folder,
    )


# --- with skopeo ---


def test_copy_one_platform_of_an_index_is_two_gets_and_one_pull(tmp_path: Path) -> None:
    with Sandbox(quota=Quota(10)) as box:
        box.push("library/alpine", "3.19", platforms=PLATFORMS, attestations=True)
        done = copy(box, tmp_path, "library/alpine:3.19", "--override-arch=arm64")
        assert done.returncode == 0, done.stderr
        assert [entry.status for entry in box.hub.access.gets()] == [200, 200]
        assert box.hub.remaining() == 9
        assert box.mirrors[0].tags("library/alpine") == ["3.19"]
        assert box.taps[0].access.writes()


def test_copy_all_of_an_index_keeps_its_digest(box: Sandbox, tmp_path: Path) -> None:
    image = box.push("library/golang", "1", platforms=PLATFORMS, attestations=True, media="docker")
    done = copy(box, tmp_path, "library/golang:1", "--all", "--preserve-digests")
    assert done.returncode == 0, done.stderr
    found = box.mirrors[0].manifest("library/golang", "1")
    assert found == (image.media_type, image.content, image.digest)
    assert len(box.hub.access.gets()) == 5


def test_copy_blobs_come_from_the_cdn_without_credentials(tmp_path: Path) -> None:
    with Sandbox(private={"acme/*": ["acme"]}) as box:
        box.push("acme/app", "1", single=True, size=100_000)
        done = copy(box, tmp_path, "acme/app:1", f"--src-authfile={box.authfile()}")
        assert done.returncode == 0, done.stderr
        assert {entry.status for entry in box.hub.access.of("blob")} == {307}
        assert len(box.hub.cdn.access) == 2
        assert box.hub.cdn.leaks == []
        assert {entry.account for entry in box.hub.access.gets()} == {"acme"}
        assert all(e.authorization == "Bearer" for e in box.hub.access.gets() if e.status == 200)


def test_copy_over_quota_makes_skopeo_ask_five_times(tmp_path: Path) -> None:
    with Sandbox(quota=Quota(100), retry_after=0) as box:
        box.push("library/alpine", "3.19")
        box.hub.spend(103)
        done = copy(box, tmp_path, "library/alpine:3.19")
        assert done.returncode == 1
        assert "toomanyrequests: You have reached your pull rate limit" in done.stderr
        assert [entry.status for entry in box.hub.access.gets()] == [429] * 5
        assert box.hub.remaining() == -3


def test_copy_with_a_wrong_password_is_unauthorized(box: Sandbox, tmp_path: Path) -> None:
    box.push("library/alpine", "3.19")
    authfile = box.authfile(password="wrong")
    done = copy(box, tmp_path, "library/alpine:3.19", f"--src-authfile={authfile}")
    assert done.returncode == 1
    assert "incorrect username or password" in done.stderr
    assert box.hub.access.gets() == []
    assert [entry.status for entry in box.hub.access.of("token")] == [401]


def test_copy_of_a_private_repository_by_another_is_unauthorized(tmp_path: Path) -> None:
    with Sandbox(private={"acme/*": ["acme"]}, accounts={"acme": "x", "eve": "y"}) as box:
        box.push("acme/app", "1")
        authfile = box.authfile("eve", "y")
        done = copy(box, tmp_path, "acme/app:1", f"--src-authfile={authfile}")
        assert done.returncode == 1
        assert "unauthorized" in done.stderr or "denied" in done.stderr
        assert {entry.status for entry in box.hub.access.gets()} == {401}


def test_copy_onto_a_full_mirror_fails_as_a_full_disk_does(box: Sandbox, tmp_path: Path) -> None:
    box.push("library/alpine", "3.19")
    box.taps[0].faults.add(disk_full())
    done = copy(box, tmp_path, "library/alpine:3.19")
    assert done.returncode == 1
    assert "received unexpected HTTP status: 500" in done.stderr
    assert box.mirrors[0].tags("library/alpine") == []
    assert box.taps[0].access.statuses()[500] >= 1


def test_inspect_under_the_real_name_asks_the_stand_in(tmp_path: Path) -> None:
    with Sandbox(names=True) as box:
        image = box.push("library/alpine", "3.19", platforms=PLATFORMS)
        done = run_skopeo(
            ["inspect", "docker://docker.io/library/alpine:3.19"], tmp_path, env=box.names.env()
        )
        assert done.returncode == 0, done.stderr
        assert done.json["Digest"] == image.digest
        assert Counter(entry.host for entry in box.hub.access)["auth.docker.io"] >= 1
        assert {e.host for e in box.hub.access.gets()} == {"registry-1.docker.io"}
        assert {e.host for e in box.hub.cdn.access} == {"production.cloudflare.docker.com"}
        assert box.hub.cdn.leaks == []


def test_pull_through_mirror_of_a_stand_in_serves_its_images(tmp_path: Path) -> None:
    with Sandbox(mirrors=0) as box:
        image = box.push("library/alpine", "3.19")
        proxy = box.registry("proxy", proxy=box.hub.url)
        found = proxy.manifest("library/alpine", "3.19")
        assert found is not None
        assert found[2] == image.digest
        assert len(box.hub.access.gets()) == 1
        with pytest.raises(RuntimeError, match="405"):
            proxy.put_manifest("library/alpine", "x", image.media_type, image.content)


# --- tokens ---


def test_hub_without_a_token_challenges_with_the_scope(box: Sandbox) -> None:
    answer = ask(box.hub.url, "HEAD", "/v2/library/alpine/manifests/1")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == (
        f'Bearer realm="{box.hub.url}/token",service="registry.docker.io",'
        'scope="repository:library/alpine:pull"'
    )


def test_hub_token_covers_the_repositories_that_it_was_asked_for(box: Sandbox) -> None:
    for name in "abc":
        box.push(f"library/{name}", "1")
    headers = bearer(box, "library/a", "library/b", "library/nosuch")
    statuses = [
        ask(box.hub.url, "HEAD", f"/v2/library/{name}/manifests/1", headers).status
        for name in ("a", "b", "c", "nosuch")
    ]
    assert statuses == [200, 200, 401, 401]
    box.hub.rules.max_scopes = 1
    headers = bearer(box, "library/a", "library/b")
    assert ask(box.hub.url, "HEAD", "/v2/library/b/manifests/1", headers).status == 401


def test_hub_token_that_expired_is_refused(box: Sandbox) -> None:
    box.push("library/a", "1")
    headers = bearer(box, "library/a")
    assert ask(box.hub.url, "HEAD", "/v2/library/a/manifests/1", headers).status == 200
    box.hub.tokens.expire()
    answer = ask(box.hub.url, "HEAD", "/v2/library/a/manifests/1", headers)
    assert answer.status == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    box.hub.rules.token_seconds = 0
    headers = bearer(box, "library/a")
    assert ask(box.hub.url, "HEAD", "/v2/library/a/manifests/1", headers).status == 401


def test_hub_with_basic_auth_only_takes_the_password(tmp_path: Path) -> None:
    with Sandbox(auth="basic") as box:
        box.push("library/a", "1")
        path = "/v2/library/a/manifests/1"
        right = basic("acme", "sesame") | ACCEPT
        assert ask(box.hub.url, "HEAD", path, right).status == 200
        wrong = ask(box.hub.url, "HEAD", path, basic("acme", "x") | ACCEPT)
        assert (wrong.status, wrong.headers["www-authenticate"][:5]) == (401, "Basic")


def test_hub_with_a_token_server_elsewhere_names_it_and_logs_what_reaches_it(
    tmp_path: Path,
) -> None:
    with Sandbox(token_host="127.0.0.3") as box:
        box.push("library/alpine", "3.19")
        done = copy(box, tmp_path, "library/alpine:3.19", f"--src-authfile={box.authfile()}")
        assert done.returncode == 0, done.stderr
        (token,) = {entry.host.partition(":")[0] for entry in box.hub.access.of("token")}
        assert token == "127.0.0.3"
        # skopeo sends the password there: what prewarm must not do is thus visible here.
        seen = box.hub.access.of("token")[0]
        assert seen.secret == basic("acme", "sesame")["Authorization"]
        assert seen.secret not in repr(seen)


def test_hub_unknown_tag_is_a_404_and_unknown_repository_a_401_or_404(box: Sandbox) -> None:
    box.push("library/a", "1")
    headers = bearer(box, "library/a")
    answer = ask(box.hub.url, "GET", "/v2/library/a/manifests/2", headers)
    assert answer.status == 404
    assert json.loads(answer.body)["errors"][0]["code"] == "MANIFEST_UNKNOWN"
    path = "/v2/no/such/manifests/1"
    assert ask(box.hub.url, "GET", path, bearer(box, "no/such")).status == 401
    box.hub.rules.unknown_repository = 404
    assert ask(box.hub.url, "GET", path, bearer(box, "no/such")).status == 404


# --- quota ---


@pytest.mark.parametrize(
    ("count", "fetched", "left"),
    [
        ("pulls", ["index"], 9),
        ("pulls", ["index", "a"], 9),
        ("pulls", ["index", "a", "b"], 8),
        ("pulls", ["a"], 9),
        ("pulls", ["index", "index", "a", "b"], 8),
        ("gets", ["index", "a", "b"], 7),
    ],
)
def test_hub_counts_what_the_quota_says(count: Any, fetched: list[str], left: int) -> None:
    with Sandbox(mirrors=0, quota=Quota(10, count=count)) as box:
        image = box.push("library/a", "1", platforms=PLATFORMS)
        named = {"index": "1", "a": image.children[0].digest, "b": image.children[1].digest}
        headers = bearer(box, "library/a")
        for name in fetched:
            path = f"/v2/library/a/manifests/{named[name]}"
            assert ask(box.hub.url, "HEAD", path, headers).status == 200
            assert ask(box.hub.url, "GET", path, headers).status == 200
        answer = ask(box.hub.url, "HEAD", "/v2/library/a/manifests/1", headers)
        assert answer.headers["ratelimit-limit"] == "10;w=21600"
        assert answer.headers["ratelimit-remaining"] == f"{left};w=21600"
        assert answer.headers["docker-ratelimit-source"] == "127.0.0.1"
        assert len(box.hub.access.gets("library/a")) == len(fetched)


def test_hub_over_quota_refuses_gets_and_answers_heads() -> None:
    with Sandbox(mirrors=0, quota=Quota(1), retry_after=7) as box:
        image = box.push("library/a", "1", platforms=PLATFORMS)
        headers = bearer(box, "library/a")
        path = "/v2/library/a/manifests/"
        assert ask(box.hub.url, "GET", path + "1", headers).status == 200
        child = image.children[0].digest
        assert ask(box.hub.url, "GET", path + child, headers).status == 200
        refused = ask(box.hub.url, "GET", path + child, headers)
        assert (refused.status, refused.headers["retry-after"]) == (429, "7")
        assert json.loads(refused.body)["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert ask(box.hub.url, "HEAD", path + "1", headers).status == 200


def test_hub_counts_each_account_and_address_for_itself() -> None:
    with Sandbox(mirrors=0, quota=Quota(10), quotas={"paid": None}) as box:
        box.hub.rules.accounts = {"acme": "sesame", "paid": "sesame"}
        box.push("library/a", "1")
        box.hub.spend(4, account="acme")
        path = "/v2/library/a/manifests/1"
        anonymous = ask(box.hub.url, "GET", path, bearer(box, "library/a"))
        acme = ask(box.hub.url, "GET", path, bearer(box, "library/a", account="acme"))
        paid = ask(box.hub.url, "GET", path, bearer(box, "library/a", account="paid"))
        assert anonymous.headers["ratelimit-remaining"] == "9;w=21600"
        assert acme.headers["ratelimit-remaining"] == "5;w=21600"
        assert acme.headers["docker-ratelimit-source"] == account_id("acme")
        assert "ratelimit-limit" not in paid.headers


def test_hub_window_that_has_passed_gives_the_pulls_back() -> None:
    with Sandbox(mirrors=0, quota=Quota(3, window_seconds=1)) as box:
        box.hub.spend(3)
        assert box.hub.remaining() == 0
        time.sleep(1.05)
        assert box.hub.remaining() == 3


def test_hub_unmetered_or_silent_sends_no_headers() -> None:
    with Sandbox(mirrors=0, quota=Quota(3), unmetered=["library/free"]) as box:
        for name in ("library/free", "library/a"):
            box.push(name, "1")
        free = ask(box.hub.url, "GET", "/v2/library/free/manifests/1", bearer(box, "library/free"))
        assert (free.status, "ratelimit-limit" in free.headers) == (200, False)
        assert box.hub.remaining() == 3
        box.hub.rules.report_quota = False
        counted = ask(box.hub.url, "GET", "/v2/library/a/manifests/1", bearer(box, "library/a"))
        assert "ratelimit-limit" not in counted.headers
        assert box.hub.remaining() == 2


def test_hub_abuse_limit_refuses_heads_with_a_plain_body(box: Sandbox) -> None:
    box.push("library/a", "1")
    headers = bearer(box, "library/a")
    path = "/v2/library/a/manifests/1"
    box.hub.rules.abuse = 1
    assert ask(box.hub.url, "HEAD", path, headers).status == 200
    assert ask(box.hub.url, "HEAD", path, headers).status == 429
    assert ask(box.hub.url, "GET", path, headers).body == b"Too Many Requests"


# --- content ---


def test_hub_moved_tag_shows_the_new_digest(box: Sandbox) -> None:
    old = box.push("library/a", "1", "1.0")
    headers = bearer(box, "library/a")

    def digest(tag: str) -> str:
        answer = ask(box.hub.url, "HEAD", f"/v2/library/a/manifests/{tag}", headers)
        return answer.headers["docker-content-digest"]

    assert digest("1") == old.digest
    new = box.push("library/a", "1", revision=2)
    assert (digest("1"), digest("1.0")) == (new.digest, old.digest)
    box.upstream.retag("library/a", "1.0", "1")
    assert digest("1") == old.digest
    assert box.upstream.delete("library/a", old.digest)
    assert ask(box.hub.url, "HEAD", "/v2/library/a/manifests/1", headers).status == 404


def test_hub_pages_of_tags_lead_to_all_of_them(box: Sandbox) -> None:
    box.push("library/a", *(f"1.{n}" for n in range(5)))
    box.hub.rules.page_size = 2
    headers = bearer(box, "library/a")
    path, found, pages = "/v2/library/a/tags/list", [], 0
    while path:
        answer = ask(box.hub.url, "GET", path, headers)
        found += json.loads(answer.body)["tags"]
        path = answer.headers.get("link", "").partition(">")[0].removeprefix("<")
        pages += 1
    assert (found, pages) == ([f"1.{n}" for n in range(5)], 3)


def test_cdn_serves_ranges_and_refuses_unsigned_urls(box: Sandbox) -> None:
    image = box.push("library/a", "1", single=True, size=5000)
    blob = image.blobs[1]
    digest = json.loads(image.content)["layers"][0]["digest"]
    answer = ask(box.hub.url, "GET", f"/v2/library/a/blobs/{digest}", bearer(box, "library/a"))
    assert answer.status == 307
    base, _, path = answer.headers["location"].removeprefix("http://").partition("/")
    part = ask(f"http://{base}", "GET", f"/{path}", {"Range": "bytes=1000-"})
    assert (part.status, part.body) == (206, blob[1000:])
    assert part.headers["content-range"] == f"bytes 1000-{len(blob) - 1}/{len(blob)}"
    part = ask(f"http://{base}", "GET", f"/{path}", {"Range": "bytes=10-19"})
    assert part.body == blob[10:20]
    assert ask(f"http://{base}", "GET", f"/{path}", {"Range": "bytes=99999-"}).status == 416
    assert ask(f"http://{base}", "GET", f"/{path}x").status == 403
    assert box.hub.cdn.leaks == []
    ask(f"http://{base}", "GET", f"/{path}", {"Cookie": "a=b"})
    assert len(box.hub.cdn.leaks) == 1


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_build_image_gives_layers_that_unpack_and_share_their_base(media: Any) -> None:
    base = [Layer("debian", 3000)]
    one = build_image("one", layers=base, media=media, platforms=PLATFORMS)
    two = build_image("two", layers=base, media=media, platforms=PLATFORMS)
    assert one == build_image("one", layers=base, media=media, platforms=PLATFORMS)
    assert one.digest != build_image("one", layers=base, media=media, revision=2).digest
    for ours, theirs in zip(one.children, two.children, strict=True):
        config, *layers = ours.blobs
        assert set(ours.blobs) & set(theirs.blobs) == {layers[0]}
        assert len(layers[0]) > 3000
        diff_ids = json.loads(config)["rootfs"]["diff_ids"]
        for diff_id, layer in zip(diff_ids, layers, strict=True):
            tarred = gzip.decompress(layer)
            with tarfile.open(fileobj=io.BytesIO(tarred)) as tar:
                assert len(tar.getnames()) == 1
            assert "sha256:" + hashlib.sha256(tarred).hexdigest() == diff_id


# --- faults ---


def test_fault_hits_the_nth_request_so_often_and_can_be_removed(box: Sandbox) -> None:
    faults = box.hub.faults
    rule = faults.add(Fault("GET", "/v2/*", nth=2, count=2, status=503, body=b"x"))
    statuses = [ask(box.hub.url, "GET", "/v2/").status for _ in range(4)]
    assert statuses == [401, 503, 503, 401]
    faults.remove(rule)
    faults.add(Fault(count=None, status=500))
    assert ask(box.hub.url, "GET", "/token").status == 500
    faults.clear()
    assert ask(box.hub.url, "GET", "/token").status == 200


def test_fault_reset_drop_and_cut_break_the_connection(box: Sandbox) -> None:
    box.push("library/a", "1")
    box.hub.rules.quota = Quota(10)
    headers = bearer(box, "library/a")
    path = "/v2/library/a/manifests/1"
    box.hub.faults.add(Fault(path=path, reset=True))
    with pytest.raises(ConnectionResetError):
        ask(box.hub.url, "GET", path, headers)
    assert box.hub.remaining() == 10
    box.hub.faults.add(Fault(path=path, drop=True))
    with pytest.raises(ConnectionResetError):
        ask(box.hub.url, "GET", path, headers)
    assert box.hub.remaining() == 9
    box.hub.faults.add(Fault(path=path, cut=10))
    with pytest.raises(http.client.IncompleteRead) as cut:
        ask(box.hub.url, "GET", path, headers)
    assert len(cut.value.partial) == 10
    assert [entry.status for entry in box.hub.access.gets()] == [0, 0, 200]


def test_fault_hang_and_latency_delay_the_answer(box: Sandbox) -> None:
    box.hub.latency = 0.05
    box.hub.faults.add(Fault(path="/v2/", hang=0.1))
    started = time.monotonic()
    assert ask(box.hub.url, "GET", "/v2/").status == 401
    assert time.monotonic() - started >= 0.15


def test_close_does_not_wait_for_a_hanging_answer() -> None:
    box = Sandbox(mirrors=0)
    box.hub.faults.add(Fault(hang=60))

    def client() -> None:
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(box.hub.url, "GET", "/v2/")

    asking = threading.Thread(target=client)
    asking.start()
    while not box.hub.access:
        time.sleep(0.01)
    started = time.monotonic()
    box.close()
    asking.join(5)
    assert not asking.is_alive()
    assert time.monotonic() - started < 5


# --- registries ---


def test_registry_restarted_keeps_its_port_and_images(registry: Registry) -> None:
    image = push(registry, "library/a", build_image(), "1", "2")
    registry.restart(readonly=True)
    assert registry.tags("library/a") == ["1", "2"]
    assert registry.catalog() == ["library/a"]
    with pytest.raises(RuntimeError, match="405"):
        registry.put_manifest("library/a", "3", image.media_type, image.content)
    registry.restart(readonly=False)
    registry.put_manifest("library/a", "3", image.media_type, image.content)
    assert registry.delete("library/a", image.digest)
    assert registry.tags("library/a") == []
    assert registry.manifest("library/a", "1") is None
    assert not registry.delete("library/a", image.digest)


def test_registry_with_users_and_tls_refuses_strangers(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with Registry(
        tmp_path / "r",
        users={"ci": "push"},
        tls=authority.issue(["127.0.0.1"]),
        ca=authority.ca,
    ) as registry:
        push(registry, "library/a", build_image(), "1")
        assert registry.tags("library/a") == ["1"]
        stranger = Pool(registry.url, ssl.create_default_context(cafile=authority.ca))
        assert stranger.request("GET", "/v2/").status == 401
        stranger.close()


def test_registry_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        Registry(tmp_path / "a", proxy="http://127.0.0.1:9")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="not installed"):
        Registry(tmp_path / "b")


def test_tap_shows_what_was_written(box: Sandbox) -> None:
    tap, mirror = box.taps[0], box.mirrors[0]
    image = push(mirror, "library/a", build_image(), "1")
    head = ask(tap.url, "HEAD", "/v2/library/a/manifests/1", ACCEPT)
    assert head.headers["content-length"] == str(len(image.content))
    started = ask(tap.url, "POST", "/v2/library/a/blobs/uploads/")
    assert started.status == 202
    assert ask(tap.url, "DELETE", started.headers["location"]).status == 204
    assert tap.access.writes() == []
    path = "/v2/library/a/manifests/2"
    put = ask(tap.url, "PUT", path, {"Content-Type": image.media_type}, image.content)
    assert put.status == 201
    assert [entry.path for entry in tap.access.writes()] == [path]


# --- what tests run behind ---


def test_guards_refuse_other_machines_and_the_real_home(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as outside, pytest.raises(AssertionError, match="stay on loopback"):
        outside.connect(("192.0.2.1", 80))
    with pytest.raises(AssertionError, match="stay on loopback"):
        urllib.request.urlopen("http://registry-1.docker.io/v2/", timeout=1)
    assert list(Path.home().iterdir()) == []
    assert str(Path.home()) != pwd.getpwuid(os.getuid()).pw_dir
    assert not [name for name in os.environ if name.startswith(("PREWARM_", "XDG_"))]


def test_private_env_inherits_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREWARM_CONFIG", "/nowhere")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/nowhere")
    env = private_env(tmp_path, {"EXTRA": "1"})
    assert env["EXTRA"] == "1"
    assert not [name for name, value in env.items() if value == "/nowhere"]
    assert all(env[n].startswith(str(tmp_path)) for n in ("HOME", "XDG_STATE_HOME"))


def test_write_config_names_the_hub_and_the_taps(box: Sandbox, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    file = write_config(tmp_path, box, ["alpine:3.10"], recheck="1h", platforms=None)
    document = yaml.safe_load(file.read_text())
    assert document["registries"] == {"docker.io": {"endpoint": box.hub.url}}
    assert document["mirrors"] == [box.taps[0].url]
    assert (document["images"], document["recheck"]) == (["alpine:3.10"], "1h")
    assert "platforms" not in document


def test_run_prewarm_returns_what_the_process_said(tmp_path: Path) -> None:
    done = run_prewarm(["--no-such-option"], tmp_path, config="version: 1\n")
    assert done.returncode != 0
    assert done.stderr
    assert (tmp_path / "images.yml").read_text() == "version: 1\n"
