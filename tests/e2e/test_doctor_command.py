"""`prewarm doctor` before real registries and a GitLab: failures with their cures, and no pull."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host
from tests.sandbox import Fault, Quota, Sandbox, Tap
from tests.sandbox.authority import Authority
from tests.sandbox.ci_load import Runner
from tests.sandbox.gitlab import TOKEN, Gitlab, Token

AMD, ARM = "linux/amd64", "linux/arm64"


@pytest.fixture
def site() -> Iterator[Gitlab]:
    with Gitlab() as running:
        yield running


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Iterator[Host]:
    """A machine where all is well; whatever doctor does there, it spends and writes nothing."""
    box.hub.rules.quota = Quota(200)
    box.push("library/alpine", "3.19", platforms=[AMD, ARM])
    host = Host(tmp_path, box)
    host.configure(["alpine:3.19"], authfile=str(box.authfile()))
    yield host
    assert box.hub.access.gets() == []
    assert box.hub.remaining("acme") == 200
    for tap in box.taps:
        assert [one for one in tap.access.writes() if one.status < 300] == []
        assert tap.access.gets() == tap.access.heads() == []


def doctor(host: Host, code: int, **env: str) -> dict[str, list[dict[str, str]]]:
    """Return the checks by name, of a run that ended with `code`."""
    done = host.run("doctor", "--json", env=env or None)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    document = done.json
    assert document["version"] == 1
    assert document["ok"] == (code == 0)
    found: dict[str, list[dict[str, str]]] = {}
    for check in document["checks"]:
        assert set(check) == {"check", "state", "text", "cure"}
        assert bool(check["cure"]) == (check["state"] != "ok"), check
        found.setdefault(check["check"], []).append(check)
    return found


def only(checks: dict[str, list[dict[str, str]]], name: str, state: str) -> dict[str, str]:
    """Return the one check of that name, after a look that all others are well."""
    wrong = [one for ones in checks.values() for one in ones if one["state"] != "ok"]
    assert [(one["check"], one["state"]) for one in wrong] == [(name, state)], wrong
    return wrong[0]


def with_gitlab(
    host: Host, site: Gitlab, scope: dict[str, list[str]] | None = None, **keys: Any
) -> None:
    token = host.folder / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    gitlab = {"url": site.url, "token_file": str(token), **(scope or {})}
    authfile = str(host.box.authfile())
    host.configure(["alpine:3.19"], gitlab=gitlab, authfile=authfile, **keys)


def test_doctor_where_all_is_well_exits_with_0(host: Host, site: Gitlab) -> None:
    with_gitlab(host, site)
    checks = doctor(host, 0)
    assert {one["state"] for ones in checks.values() for one in ones} == {"ok"}
    (upstream,) = checks["upstream"]
    assert "acme, reports 200 of 200 pulls left in 6h" in upstream["text"]
    assert "may read_api until 2099-12-31" in checks["gitlab"][0]["text"]
    assert len(host.box.hub.access.heads("library/alpine")) == 1
    assert not host.state.exists()


def test_doctor_for_people_prints_a_line_for_each_check_and_the_cure_below(host: Host) -> None:
    host.box.mirrors[0].restart(readonly=True)
    done = host.run("doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    (place,) = [n for n, line in enumerate(lines) if line.startswith("failed ")]
    assert "is in read-only mode" in lines[place]
    assert lines[place + 1].startswith("         end storage.maintenance.readonly")
    assert lines[-1].endswith("checks: 1 failed, 0 warnings")


def test_doctor_mirror_read_only_fails(host: Host) -> None:
    host.box.mirrors[0].restart(readonly=True)
    failed = only(doctor(host, 1), "mirror", "failed")
    assert "is in read-only mode" in failed["text"]


def test_doctor_mirror_that_is_a_proxy_fails_unless_written_so(host: Host) -> None:
    proxy = host.box.registry("proxy", proxy=host.box.hub.url)
    with Tap(proxy) as tap:
        host.configure(["alpine:3.19"], authfile=str(host.box.authfile()), mirrors=[tap.url])
        failed = only(doctor(host, 1), "mirror", "failed")
        assert "is a pull-through proxy" in failed["text"]
        mirrors = [{"url": tap.url, "mode": "pull-through"}]
        host.configure(["alpine:3.19"], authfile=str(host.box.authfile()), mirrors=mirrors)
        (found,) = doctor(host, 0)["mirror"]
        assert "as written" in found["text"]
        mirrors = [{"url": host.box.taps[0].url, "mode": "pull-through"}]
        host.configure(["alpine:3.19"], authfile=str(host.box.authfile()), mirrors=mirrors)
        assert "so it is no proxy" in only(doctor(host, 1), "mirror", "failed")["text"]
        assert tap.access.of("manifest") == []


def test_doctor_mirror_that_deletes_nothing_is_a_warning(host: Host) -> None:
    mirror = host.box.mirrors[0]
    mirror.delete_enabled = False
    mirror.restart()
    warned = only(doctor(host, 0), "mirror-delete", "warning")
    assert "storage.delete.enabled: true" in warned["cure"]
    assert "pruned" in warned["cure"]


def test_doctor_mirror_with_too_little_space_fails(host: Host) -> None:
    mirror = {"url": host.box.taps[0].url, "storage": str(host.folder), "min_free": "1000000TiB"}
    host.configure(["alpine:3.19"], authfile=str(host.box.authfile()), mirrors=[mirror])
    assert "below min_free" in only(doctor(host, 1), "mirror-space", "failed")["text"]


def test_doctor_mirror_with_space_for_less_than_an_image_is_a_warning(host: Host) -> None:
    mirror = {"url": host.box.taps[0].url, "storage": str(host.folder)}
    keys = {"authfile": str(host.box.authfile()), "mirrors": [mirror]}
    host.configure(["alpine:3.19"], limits={"image_size": "1000000TiB"}, **keys)
    warned = only(doctor(host, 0), "mirror-space", "warning")
    assert "limits.image_size" in warned["text"]
    host.configure(["alpine:3.19"], limits={"image_size": "1MB"}, **keys)
    assert doctor(host, 0)["mirror-space"][0]["text"].endswith(" free")


def test_doctor_mirror_whose_clients_read_by_plain_http_is_a_warning(host: Host) -> None:
    mirror = {"url": host.box.taps[0].url, "client_url": "http://mirror.example.org:5000"}
    host.configure(["alpine:3.19"], authfile=str(host.box.authfile()), mirrors=[mirror])
    warned = only(doctor(host, 0), "mirror-tls", "warning")
    assert "http://mirror.example.org:5000 is plain http" in warned["text"]


def test_doctor_mirror_with_a_certificate_of_an_unknown_ca_fails(
    host: Host, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    options = {"tls": authority.issue(["127.0.0.1"]), "ca": authority.ca}
    mirror = {"url": host.box.registry("tls", **options).url}
    authfile = str(host.box.authfile())
    host.configure(["alpine:3.19"], authfile=authfile, mirrors=[mirror])
    failed = only(doctor(host, 1), "mirror", "failed")
    assert "certificate" in failed["text"]
    mirror["ca"] = str(authority.ca)
    host.configure(["alpine:3.19"], authfile=authfile, mirrors=[mirror])
    assert doctor(host, 0)["mirror-tls"][0]["text"].endswith("is asked over TLS")


def test_doctor_mirror_that_is_down_does_not_hide_the_next(host: Host) -> None:
    host.box.mirrors[0].stop()
    other = host.box.registry("other")
    mirrors = ["http://127.0.0.1:1", other.url]
    host.configure(["alpine:3.19"], authfile=str(host.box.authfile()), mirrors=mirrors)
    checks = doctor(host, 1)
    assert [one["state"] for one in checks["mirror"]] == ["failed", "ok"]
    assert other.catalog() == []


def test_doctor_source_mirror_is_only_read(host: Host) -> None:
    mirror = {"url": host.box.taps[0].url, "role": "source"}
    own = host.box.registry("own")
    authfile = str(host.box.authfile())
    host.configure(["alpine:3.19"], authfile=authfile, mirrors=[own.url, mirror])
    assert [one["state"] for one in doctor(host, 0)["mirror"]] == ["ok", "ok"]
    assert {one.method for one in host.box.taps[0].access} <= {"GET", "HEAD"}


@pytest.mark.parametrize(
    ("days", "state", "words"),
    [(-1, "failed", "it is expired"), (5, "warning", "in 5 days"), (40, None, "")],
)
def test_doctor_gitlab_token_by_its_expiry(
    host: Host, site: Gitlab, days: int, state: str | None, words: str
) -> None:
    expires = (datetime.now(UTC) + timedelta(days=days)).date().isoformat()
    site.tokens[TOKEN] = Token(expires=expires)
    with_gitlab(host, site)
    checks = doctor(host, 1 if state == "failed" else 0)
    if state is not None:
        assert words in only(checks, "gitlab", state)["text"]
    assert TOKEN not in json.dumps(checks)


def test_doctor_gitlab_token_without_read_api_fails(host: Host, site: Gitlab) -> None:
    site.tokens[TOKEN] = Token(scopes=("read_user",))
    with_gitlab(host, site)
    assert "lacks the scope read_api" in only(doctor(host, 1), "gitlab", "failed")["text"]


def test_doctor_gitlab_that_tells_nothing_of_the_token_is_a_warning(
    host: Host, site: Gitlab
) -> None:
    site.faults.add(Fault(path="*/personal_access_tokens/self", status=404, count=None))
    with_gitlab(host, site)
    assert "does not tell its scopes" in only(doctor(host, 0), "gitlab", "warning")["text"]


def test_doctor_gitlab_token_that_everybody_may_read_is_a_warning(host: Host, site: Gitlab) -> None:
    with_gitlab(host, site)
    (host.folder / "token").chmod(0o644)
    assert "chmod" in only(doctor(host, 0), "gitlab", "warning")["cure"]


@pytest.mark.parametrize(
    ("scope", "state"), [({"groups": ["nosuch"]}, "failed"), ({"projects": ["a/b"]}, "warning")]
)
def test_doctor_gitlab_group_or_project_that_the_token_does_not_see_is_told(
    host: Host, site: Gitlab, scope: dict[str, list[str]], state: str
) -> None:
    site.add_project("team/app", "build:\n  script: [make]\n")
    good = {"groups": ["team"], "projects": ["team/app"]}
    with_gitlab(host, site, scope=good)
    assert {one["state"] for one in doctor(host, 0)["gitlab"]} == {"ok"}
    with_gitlab(host, site, scope=scope)
    found = only(doctor(host, 1 if state == "failed" else 0), "gitlab", state)
    assert "hides it from the token" in found["text"]


def test_doctor_gitlab_without_a_token_is_a_warning(host: Host, site: Gitlab) -> None:
    host.configure(["alpine:3.19"], gitlab={"url": site.url}, authfile=str(host.box.authfile()))
    site.faults.add(Fault(path="/api/v4/projects", status=200, body=b"[]", count=None))
    warned = only(doctor(host, 0), "gitlab", "warning")
    assert "without a token" in warned["text"]
    assert "read_api" in warned["cure"]


def test_doctor_gitlab_that_is_down_fails(host: Host, site: Gitlab) -> None:
    with_gitlab(host, site)
    site.close()
    failed = only(doctor(host, 1), "gitlab", "failed")
    assert "is not reached" in failed["text"]


def test_doctor_authfile_that_others_may_read_is_a_warning(host: Host) -> None:
    authfile = host.box.path / "auth.json"
    authfile.chmod(0o644)
    assert only(doctor(host, 0), "authfile", "warning")["cure"] == f"chmod 600 {authfile}"


def test_doctor_authfile_that_is_broken_fails_and_the_rest_is_checked(host: Host) -> None:
    (host.box.path / "auth.json").write_text("{")
    failed = only(doctor(host, 1), "authfile", "failed")
    assert "is not JSON" in failed["text"]


def test_doctor_credentials_that_are_refused_fail(host: Host) -> None:
    host.box.authfile(password="wrong")
    failed = only(doctor(host, 1), "upstream", "failed")
    assert "refused" in failed["text"]
    assert "skopeo login" in failed["cure"]


def test_doctor_image_that_upstream_lacks_is_a_warning(host: Host) -> None:
    host.configure(["nosuch:1"], authfile=str(host.box.authfile()))
    assert "answers, but not" in only(doctor(host, 0), "upstream", "warning")["text"]


def test_doctor_pattern_is_asked_by_a_tag_that_is_listed(host: Host) -> None:
    pin = {"image": "alpine", "tags": {"match": "3.*", "newest": 1}}
    host.configure([pin], authfile=str(host.box.authfile()))
    (upstream,) = doctor(host, 0)["upstream"]
    assert "200 of 200" in upstream["text"]


def test_doctor_quota_that_only_covers_the_reserve_is_a_warning(
    box: Sandbox, tmp_path: Path
) -> None:
    box.hub.rules.quota = Quota(200)
    box.push("library/alpine", "3.19")
    box.hub.spend(165, "acme")
    host = Host(tmp_path, box)
    host.configure(["alpine:3.19"], authfile=str(box.authfile()))
    assert "reports 35 of 200" in only(doctor(host, 0), "upstream", "warning")["text"]


def test_doctor_platform_of_runners_that_is_not_mirrored_fails(host: Host, site: Gitlab) -> None:
    site.runners[2] = Runner(2, architecture="arm64")
    with_gitlab(host, site)
    project = site.add_project("team/app", "build:\n  image: alpine:3.19\n  script: [make]\n")
    for _ in range(4):
        site.add_job(project, "build", runner=2)
    assert host.run("scan").returncode == 0
    failed = only(doctor(host, 1), "platforms", "failed")
    assert "linux/arm64" in failed["text"]
    assert failed["cure"] == "add linux/arm64 to platforms: in images.yml"


def test_doctor_platform_that_few_uses_lack_is_a_warning(host: Host, site: Gitlab) -> None:
    site.runners[2] = Runner(2, architecture="arm64")
    with_gitlab(host, site)
    project = site.add_project("team/app", "build:\n  image: alpine:3.19\n  script: [make]\n")
    for n in range(40):
        site.add_job(project, "build", runner=2 if n == 0 else 1)
    assert host.run("scan").returncode == 0
    assert "linux/arm64" in only(doctor(host, 0), "platforms", "warning")["text"]


def test_doctor_clock_apart_from_a_mirrors_is_a_warning(host: Host) -> None:
    late = format_datetime(datetime.now(UTC) - timedelta(minutes=5), usegmt=True)
    fault = Fault(path="/v2/", status=200, body=b"{}", headers={"Date": late}, count=None)
    host.box.taps[0].faults.add(fault)
    assert "behind this host's clock" in only(doctor(host, 0), "clock", "warning")["text"]


def test_doctor_clock_apart_from_docker_hubs_is_a_warning(host: Host) -> None:
    late = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    fault = Fault("GET", "/v2/", status=200, body=b"{}", headers={"Date": late}, count=None)
    host.box.hub.faults.add(fault)
    text = only(doctor(host, 0), "clock", "warning")["text"]
    assert text.startswith("docker.io is ")
    assert text.endswith("ahead of this host's clock")


def test_doctor_clock_apart_from_gitlabs_is_a_warning(host: Host, site: Gitlab) -> None:
    late = format_datetime(datetime.now(UTC) - timedelta(minutes=5), usegmt=True)
    told = {"active": True, "scopes": ["read_api"], "expires_at": None}
    site.faults.add(
        Fault(
            path="*/personal_access_tokens/self",
            status=200,
            body=json.dumps(told).encode(),
            headers={"Date": late, "Content-Type": "application/json"},
            count=None,
        )
    )
    with_gitlab(host, site)
    assert only(doctor(host, 0), "clock", "warning")["text"].startswith(f"{site.url} is ")


def test_doctor_registries_conf_that_redirects_is_a_warning(host: Host) -> None:
    folder = host.folder / "home/config/containers"
    folder.mkdir(parents=True)
    target = host.box.taps[0].url.removeprefix("http://")
    text = f'[[registry]]\nlocation="docker.io"\n[[registry.mirror]]\nlocation="{target}"\n'
    (folder / "registries.conf").write_text(text)
    warned = only(doctor(host, 0), "registries.conf", "warning")
    assert "a mirror of ours" in warned["text"]


def test_doctor_state_after_a_sync_tells_its_schema(box: Sandbox, tmp_path: Path) -> None:
    box.push("library/alpine", "3.19")
    host = Host(tmp_path, box)
    host.configure(["alpine:3.19"])
    host.sync()
    host.forget_requests()
    (state,) = doctor(host, 0)["state"]
    assert "opens: schema " in state["text"]
    assert box.hub.access.gets() == []


def test_doctor_policy_that_refuses_a_pin_fails(host: Host) -> None:
    policy = host.folder / "home/.config/containers/policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text('{"default": [{"type": "reject"}]}')
    failed = only(doctor(host, 1), "policy", "failed")
    assert failed["text"] == f"docker.io/library/alpine: {policy} rejects it"


def test_doctor_policy_that_refuses_what_ci_alone_uses_is_a_warning(
    host: Host, site: Gitlab
) -> None:
    with_gitlab(host, site)
    project = site.add_project("team/app", "build:\n  image: golang:1\n  script: [make]\n")
    site.add_job(project, "build")
    assert host.run("scan").returncode == 0
    policy = host.folder / "home/.config/containers/policy.json"
    policy.parent.mkdir(parents=True)
    reject = {"docker": {"docker.io/library/golang": [{"type": "reject"}]}}
    accept = [{"type": "insecureAcceptAnything"}]
    policy.write_text(json.dumps({"default": accept, "transports": reject}))
    assert "golang" in only(doctor(host, 0), "policy", "warning")["text"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_doctor_state_of_another_owner_fails_with_the_command_to_type(host: Host) -> None:
    host.state.parent.mkdir()
    host.state.touch()
    os.chown(host.state, 12345, -1)
    failed = only(doctor(host, 1), "state", "failed")
    assert failed["cure"].startswith("run: sudo -u '#12345' ")
    assert failed["cure"].endswith("doctor --json")


def test_doctor_state_that_is_damaged_fails(host: Host) -> None:
    host.state.parent.mkdir()
    host.state.write_bytes(b"no database" * 100)
    assert "damaged" in only(doctor(host, 1), "state", "failed")["text"]


def test_doctor_state_of_a_newer_prewarm_fails(host: Host) -> None:
    host.configure([], authfile=str(host.box.authfile()))
    assert host.run("sync", "--no-scan").returncode == 0
    with host.sql() as sql, sql:
        sql.execute("INSERT INTO schema_version (version) VALUES (9999)")
    host.configure(["alpine:3.19"], authfile=str(host.box.authfile()))
    host.forget_requests()
    assert "newer" in only(doctor(host, 1), "state", "failed")["text"]


def test_doctor_skopeo_that_is_too_old_fails(host: Host, tmp_path: Path) -> None:
    old = tmp_path / "bin/skopeo"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho skopeo version 1.4.1\n")
    old.chmod(0o755)
    failed = only(doctor(host, 1, PATH=str(old.parent)), "skopeo", "failed")
    assert "1.4" in failed["text"]
    assert "install skopeo" in failed["cure"]


def test_doctor_while_a_sync_holds_the_locks_does_not_wait(box: Sandbox, tmp_path: Path) -> None:
    host = Host(tmp_path, box)
    host.configure(["slow:1"])
    fault = box.hub.faults.add(Fault("HEAD", "*/slow/*", status=404, hang=3, count=1))
    with host.start("sync") as running:
        while not fault.seen:
            assert running.poll() is None
        doctor(host, 0)
        assert running.poll() is None
        running.terminate()
        running.communicate(timeout=30)
