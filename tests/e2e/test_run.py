"""`prewarm run` for real: systemd's socket, reloads, and every way to end it."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.e2e.host import Host, hear, wait_until
from tests.sandbox import Sandbox
from tests.support.process import start_prewarm


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


def test_run_tells_systemd_reloads_and_ends(host: Host, supervisor: socket.socket) -> None:
    for name in ("one", "two"):
        host.box.push(f"library/{name}", "1")
    host.configure(["one:1"], schedule="every 6h")
    address = supervisor.getsockname().decode().replace("\0", "@")
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
    mirror = host.box.mirrors[0]
    with start_prewarm(["run"], host.folder, config=host.config, env=env) as process:
        try:
            assert hear(supervisor, "READY=1") == "READY=1"
            hear(supervisor, "STATUS=next sync")
            assert mirror.tags("library/one") == ["1"]
            hear(supervisor, "WATCHDOG=1")

            good = host.config.read_text()
            host.config.write_text("version: 1\nmirors: []\n")
            process.send_signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in hear(supervisor, "RELOADING=1")
            hear(supervisor, "READY=1")
            assert "kept the old images.yml" in hear(supervisor, "STATUS=")

            # The new timetable counts from the sync before.
            good = good.replace("- one:1", "- one:1\n- two:1")
            host.config.write_text(good.replace("every 6h", "every 1m"))
            process.send_signal(signal.SIGHUP)
            hear(supervisor, "RELOADING=1")
            wait_until(lambda: "library/two" in mirror.catalog(), "second run", seconds=75)
            hear(supervisor, "STATUS=next sync")

            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=20)
            assert process.returncode == 143
            assert "\nimages.yml:2: mirors: " in stderr
            hear(supervisor, "STOPPING=1")
        finally:
            process.kill()
    assert host.charged() == 2


def test_run_reload_without_the_file_looks_for_no_other(
    host: Host, supervisor: socket.socket
) -> None:
    host.configure([])
    address = supervisor.getsockname().decode().replace("\0", "@")
    with start_prewarm(["run"], host.folder, env={"NOTIFY_SOCKET": address}) as process:
        try:
            hear(supervisor, "STATUS=next sync")
            host.config.unlink()
            process.send_signal(signal.SIGHUP)
            hear(supervisor, "RELOADING=1")
            told = hear(supervisor, "kept the old images.yml")
            assert f"{host.config}: no such file" in told
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        finally:
            process.kill()


def test_run_after_a_sync_of_a_named_image_does_the_rest_at_once(host: Host) -> None:
    for name in ("one", "two"):
        host.box.push(f"library/{name}", "1")
    host.configure(["one:1", "two:1"])
    host.sync("one:1")
    mirror = host.box.mirrors[0]
    with start_prewarm(["run"], host.folder, config=host.config) as process:
        try:
            wait_until(lambda: "library/two" in mirror.catalog(), "the other image")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 143
    assert host.charged() == 2


def test_run_after_a_whole_sync_waits_for_the_timetable(
    host: Host, supervisor: socket.socket
) -> None:
    host.box.push("library/one", "1")
    host.configure(["one:1"])
    host.sync()
    host.forget_requests()
    address = supervisor.getsockname().decode().replace("\0", "@")
    with start_prewarm(
        ["run"], host.folder, config=host.config, env={"NOTIFY_SOCKET": address}
    ) as process:
        try:
            hear(supervisor, "STATUS=next sync")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        finally:
            process.kill()
    assert list(host.box.hub.access) == []
