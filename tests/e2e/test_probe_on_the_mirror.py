"""The probe of `doctor --client` on a mirror: it goes with its doctor, and nobody counts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prewarm.clients.probe_image import make_probe
from prewarm.core.platforms import Platform
from prewarm.core.reference import PROBE_REPOSITORY
from prewarm.registry.client import Registry
from tests.e2e.host import Host, wait_until
from tests.sandbox import Sandbox
from tests.support.process import start_prewarm


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    """A machine that synced two images and wants one no more, with a probe left on the mirror."""
    box.push("library/alpine", "3.19")
    box.push("library/old", "1")
    host = Host(tmp_path, box)
    host.configure(["alpine:3.19", "old:1"])
    host.sync()
    host.configure(["alpine:3.19"])
    with host.sql() as sql, sql:
        sql.execute("UPDATE written SET wanted = wanted - 90 * 86400")
        sql.execute("UPDATE pushed SET since = since - 90 * 86400")
    return host


def prune(host: Host, *args: str) -> Any:
    finished = host.run("prune", "--json", "--force", *args)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (mirror,) = finished.json["mirrors"]
    return mirror


def test_prune_neither_counts_nor_removes_a_probe_that_was_left(host: Host) -> None:
    before = prune(host, "--dry-run")
    probe = make_probe("t0ken", Platform("linux", "amd64"))
    mirror = host.box.mirrors[0]
    with Registry(mirror.url, mirror.url, role="mirror", environ={}) as own:
        for blob in (probe.config, probe.layer):
            own.put_blob(PROBE_REPOSITORY, blob)
        own.put_manifest(PROBE_REPOSITORY, "t0ken", probe.manifest)
    assert prune(host, "--dry-run") == before
    assert [one["image"] for one in prune(host)["removed"]] == ["docker.io/library/old:1"]
    assert mirror.tags(PROBE_REPOSITORY) == ["t0ken"]
    verified = host.run("verify", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert PROBE_REPOSITORY not in verified.stdout


def test_doctor_client_that_is_terminated_takes_the_probe_away_and_ends_the_client(
    box: Sandbox, tmp_path: Path
) -> None:
    host = Host(tmp_path, box)
    host.configure(["alpine:3.19"])
    (tmp_path / "bin").mkdir()
    # An engine whose pull takes longer than anybody waits.
    docker, pulling = tmp_path / "bin/docker", tmp_path / "pulling"
    docker.write_text(f'#!/bin/sh\n[ "$1" != pull ] || {{ touch {pulling}; sleep 600; }}\n')
    docker.chmod(0o755)
    env = {"PATH": f"{docker.parent}:/usr/bin:/bin"}
    doctor = ["doctor", "--client", "dockerd"]
    with start_prewarm(doctor, tmp_path, config=host.config, env=env) as running:
        wait_until(pulling.exists, "pull")
        assert len(box.mirrors[0].tags(PROBE_REPOSITORY)) == 1
        running.terminate()
        running.communicate(timeout=30)
    assert running.returncode == 143
    assert box.mirrors[0].tags(PROBE_REPOSITORY) == []
