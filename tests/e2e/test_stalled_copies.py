"""A copy that stalls ends after a bounded time, is not tried a second time, and holds no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, digest_of
from tests.sandbox import Fault, Sandbox
from tests.support.process import private_env

SCALED = """
import prewarm.sync.executor, prewarm.registry.transport
from prewarm.cli.main import main
prewarm.sync.executor.STALLED = 3.0
prewarm.registry.transport.LEAST_FOR = prewarm.registry.transport.BLOB_TIMEOUT = 2.0
main()
"""
"""prewarm with time limits for the patience of a test."""


def sync(host: Host) -> Any:
    command = [sys.executable, "-c", SCALED, "--config", str(host.config), "sync", "--json"]
    ended = subprocess.run(
        command, env=private_env(host.folder), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    host = Host(tmp_path, box)
    for number in range(3):
        box.push(f"library/app{number}", "1", single=True)
    host.configure([f"app{number}:1" for number in range(3)], limits={"parallel": 1})
    return host


def outcomes(report: Any) -> dict[str, str]:
    return {one["image"][-6:]: one["code"] for one in report["images"] if one["action"] == "fail"}


def test_upload_that_the_mirror_never_takes_is_given_up_after_one_try(host: Host) -> None:
    tap = host.box.taps[0]
    tap.faults.add(Fault("PATCH", "*/app1/blobs/uploads/*", hang=120, count=None))
    report = sync(host)
    assert outcomes(report) == {"app1:1": "timeout"}
    assert report["summary"]["copied"] == 2
    assert "the copy stalled after" in json.dumps(report["problems"])


def test_blob_that_stalls_is_opened_twice_and_given_up(host: Host) -> None:
    box = host.box
    layer = digest_of(box.push("library/app1", "1", single=True, name="other").blobs[1])
    box.hub.cdn.faults.add(Fault("GET", f"*{layer[7:]}*", hang=120, count=None))
    report = sync(host)
    assert outcomes(report) == {"app1:1": "timeout"}
    assert report["summary"]["copied"] == 2
    asked = [entry for entry in box.hub.cdn.access if layer[7:] in entry.path]
    assert len(asked) <= 4
