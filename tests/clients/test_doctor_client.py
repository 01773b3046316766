"""`prewarm doctor --client` with real clients: who is set up proves it, who is not is told how."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.clients.stage import Setting, Stage
from tests.sandbox import Fault

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="dockerd and containerd are started as root: sudo make check"
)
PROBE = "prewarm/probe"
CLIENTS = ("dockerd", "ctr", "podman")
ASKED = {"dockerd": ["docker.io"], "ctr": ["docker.io", "quay.io"], "podman": ["docker.io"] * 2}
CURES = {
    "dockerd": "put what prewarm client-config dockerd prints into /etc/docker/daemon.json, "
    "then systemctl reload docker",
    "ctr": "prewarm client-config containerd --output /etc/containerd",
    "podman": "prewarm client-config podman --output /etc/containers",
}


@pytest.fixture
def clean(stage: Stage) -> Iterator[Stage]:
    """The stage with empty logs; whatever doctor does, the mirror keeps no probe."""
    for site in (stage.hub, stage.quay, stage.tap, stage.names.nobody):
        site.access.clear()
    yield stage
    stage.tap.faults.clear()
    for repository in (PROBE, f"quay.io/{PROBE}"):
        assert stage.tap.registry.tags(repository) == []
    assert stage.names.nobody.access == []


def gets(stage: Stage) -> list[int]:
    """Return the statuses of the manifest GETs that Docker Hub and quay.io saw."""
    return [one.status for site in (stage.hub, stage.quay) for one in site.access.gets(PROBE)]


def kept(stage: Stage, client: str, setting: Setting) -> str:
    """Return what the client still has of the probe."""
    machine = stage.machine(client, setting)
    if client == "ctr":
        return machine.run("ctr", "namespaces", "list").stdout
    program = "docker" if client == "dockerd" else "podman"
    return machine.run(program, "image", "list", "--all").stdout


@pytest.mark.parametrize("setting", ["loopback", "http", "tls"])
@pytest.mark.parametrize("client", CLIENTS)
def test_doctor_client_with_the_printed_settings_is_ok_and_asks_no_registry(
    clean: Stage, client: str, setting: Setting
) -> None:
    checks = clean.doctor(client, setting)
    assert [one["state"] for one in checks] == ["ok"] * len(ASKED[client])
    assert all(clean.client_url(setting) in one["text"] for one in checks)
    assert clean.hub.access.of("manifest", repository=PROBE) == []
    assert clean.quay.access.of("manifest", repository=PROBE) == []
    assert len(clean.tap.access.of("blob", "GET")) >= 2 * len(checks)
    assert "prewarm" not in kept(clean, client, setting)


@pytest.mark.parametrize(
    ("client", "statuses"), [("dockerd", [401]), ("ctr", []), ("podman", [401] * 4)]
)
def test_doctor_client_without_settings_fails_with_its_cure(
    clean: Stage, client: str, statuses: list[int]
) -> None:
    checks = clean.doctor(client, "unset")
    assert [one["state"] for one in checks] == ["failed"] * len(ASKED[client])
    assert all(one["cure"].startswith(CURES[client]) for one in checks)
    assert all("denied" in one["text"] for one in checks)
    # podman asks twice for each of two registries; docs/doctor.md names these numbers.
    assert gets(clean) == statuses
    assert "prewarm" not in kept(clean, client, "unset")


def test_doctor_client_that_asks_upstream_for_tags_proves_the_content(clean: Stage) -> None:
    hub, quay = clean.doctor("ctr", "ask-upstream")
    assert (hub["state"], quay["state"]) == ("ok", "ok")
    assert "what a tag is" not in hub["text"]
    assert "what a tag is, it asks quay.io itself" in quay["text"]
    assert gets(clean) == []


def test_doctor_client_containerd_without_config_path_fails(clean: Stage) -> None:
    machine = clean.machine("ctr", "unset")
    file = machine.path("/etc/containerd/config.toml")
    written = file.read_text()
    file.write_text("version = 2\n")
    try:
        (check,) = clean.doctor("ctr", "unset")
    finally:
        file.write_text(written)
    assert check["state"] == "failed"
    assert "config_path is not set" in check["text"]
    assert 'config_path = "/etc/containerd/certs.d"' in check["cure"]
    assert clean.tap.access == []


@pytest.mark.parametrize("client", CLIENTS)
def test_doctor_client_whose_daemon_is_elsewhere_fails_and_nothing_is_written(
    clean: Stage, client: str
) -> None:
    """podman has no daemon: there it is a storage that cannot be used."""
    elsewhere = {
        "dockerd": {"DOCKER_HOST": "unix:///run/none.sock"},
        "ctr": {"CONTAINERD_ADDRESS": "/run/none.sock"},
        "podman": {"CONTAINERS_STORAGE_CONF": "/none.conf"},
    }
    (check,) = clean.doctor(client, "loopback", env=elsewhere[client])
    assert check["state"] == "failed"
    assert "cannot be asked: " in check["text"]
    assert clean.tap.access == []


def test_doctor_client_where_the_readers_address_is_dead_fails_and_asks_no_client(
    clean: Stage,
) -> None:
    clean.machine("dockerd", "loopback")
    clean.shut_door()
    try:
        (check,) = clean.doctor("dockerd", "loopback")
    finally:
        clean.open_door()
    assert check["state"] == "failed"
    assert f"{clean.client_url('loopback')}/{PROBE}" in check["text"]
    assert clean.hub.access.of("manifest", repository=PROBE) == []


def test_doctor_client_dockerd_where_reads_want_a_login_fails_and_asks_no_client(
    clean: Stage,
) -> None:
    login = {"WWW-Authenticate": 'Basic realm="mirror"'}
    clean.tap.faults.add(Fault(status=401, headers=login, count=None))
    (check,) = clean.doctor("dockerd", "loopback")
    assert check["state"] == "failed"
    assert "wants credentials" in check["text"]
    assert clean.hub.access.of("manifest", repository=PROBE) == []


def test_doctor_client_where_the_mirror_deletes_nothing_says_that_the_probe_stays(
    clean: Stage,
) -> None:
    mirror = clean.tap.registry
    try:
        mirror.delete_enabled = False
        mirror.restart()
        (check,) = clean.doctor("dockerd", "loopback")
        assert check["state"] == "ok"
        assert "the probe stays there" in check["text"]
        (tag,) = mirror.tags(PROBE)
    finally:
        mirror.delete_enabled = True
        mirror.restart()
    found = mirror.manifest(PROBE, tag)
    assert found is not None
    assert mirror.request("DELETE", f"/v2/{PROBE}/manifests/{found[2]}").status == 202


def test_doctor_client_of_a_pull_through_mirror_is_a_warning_and_asks_nobody(clean: Stage) -> None:
    mirror = {"url": clean.tap.registry.url, "mode": "pull-through"}
    (check,) = clean.doctor("podman", "loopback", mirrors=[mirror])
    assert check["state"] == "warning"
    assert "pull-through" in check["text"]
    assert gets(clean) == []


def test_doctor_client_dockerd_without_docker_hub_fails(clean: Stage) -> None:
    (check,) = clean.doctor("dockerd", "loopback", registries={"quay.io": {}})
    assert check["state"] == "failed"
    assert "dockerd asks mirrors for docker.io alone" in check["text"]
