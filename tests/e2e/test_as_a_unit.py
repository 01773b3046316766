"""prewarm as its units start it: command line, credentials, folders, filters and user."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import hear, wait_until
from tests.sandbox import Sandbox
from tests.sandbox.gitlab import TOKEN, Gitlab
from tests.support.process import write_config
from tests.support.units import Service

SYNC, RUN = "prewarm.service", "prewarm-run.service"
IMAGES = "/etc/prewarm/images.yml"


def service(name: str, root: Path) -> Service:
    """Return a unit whose `prewarm` is that of this checkout."""
    return Service(name, root, Path(sys.executable).parent)


def configure(unit: Service, box: Sandbox, images: list[str], **keys: Any) -> None:
    """Write the unit's images.yml, without a state: the unit gives its folder."""
    write_config(unit.here("/etc/prewarm"), box, images, state=None, **keys)


@pytest.fixture
def root(box: Sandbox, tmp_path: Path) -> Path:
    for name in ("one", "two"):
        box.push(f"library/{name}", "1")
    return tmp_path


def test_sync_with_every_credential_uses_them(root: Path, box: Sandbox) -> None:
    unit = service(SYNC, root)
    unit.give("/etc/prewarm/auth.json", box.authfile().read_text(), 0o600)
    unit.give("/etc/prewarm/gitlab-token", f"{TOKEN}\n", 0o600)
    metrics = unit.offer("/var/lib/node_exporter/textfile") / "prewarm.prom"
    with Gitlab() as site:
        project = site.add_project("team/app", "build:\n  image: two:1\n  script: [make]\n")
        site.add_job(project, "build")
        configure(unit, box, ["one:1"], gitlab={"url": site.url}, metrics=str(metrics))
        done = unit.run()
    assert (done.returncode, unit.failed(done.returncode)) == (0, False), done.stderr
    assert {entry.account for entry in box.hub.access.gets()} == {"acme"}
    assert box.mirrors[0].catalog() == ["library/one", "library/two"]
    assert "prewarm_actions_total" in metrics.read_text()
    # node_exporter is another user.
    assert metrics.stat().st_mode & 0o777 == 0o644
    assert unit.state == root / "var/lib/prewarm"
    assert unit.state.stat().st_mode & 0o777 == 0o700
    assert (unit.state / "prewarm.db").is_file()
    assert sorted(file.name for file in unit.credentials.iterdir()) == [
        "auth.json",
        "gitlab-token",
        "pgpass",
    ]
    said = done.stdout + done.stderr
    assert not [secret for secret in (TOKEN, "sesame") if secret in said]


def test_sync_without_any_credential_is_anonymous(root: Path, box: Sandbox) -> None:
    unit = service(SYNC, root)
    configure(unit, box, ["one:1"])
    done = unit.run()
    assert (done.returncode, unit.failed(done.returncode)) == (0, False), done.stderr
    assert {entry.account for entry in box.hub.access.gets()} == {""}
    assert {file.name: file.read_text() for file in unit.credentials.iterdir()} == {
        "auth.json": "{}",
        "gitlab-token": "\n",
        "pgpass": "\n",
    }


def test_sync_without_a_gitlab_token_is_told_which_is_missing(root: Path, box: Sandbox) -> None:
    unit = service(SYNC, root)
    with Gitlab() as site:
        configure(unit, box, ["one:1"], gitlab={"url": site.url})
        done = unit.run()
    assert (done.returncode, unit.failed(done.returncode)) == (1, True)
    assert "token" in done.stdout
    assert box.mirrors[0].tags("library/one") == ["1"]


def test_sync_beside_another_is_no_failure(root: Path, box: Sandbox) -> None:
    unit = service(SYNC, root)
    configure(unit, box, ["one:1"])
    box.hub.cdn.latency = 20
    with unit.start() as first:
        try:
            wait_until(lambda: bool(box.hub.access.gets()), "GET")
            second = unit.run()
            assert (second.returncode, unit.failed(second.returncode)) == (75, False)
            first.send_signal(signal.SIGTERM)
            first.communicate(timeout=30)
        finally:
            first.kill()
    assert (first.returncode, unit.failed(first.returncode)) == (143, False)


def test_sync_with_a_wrong_file_is_a_failure(root: Path, box: Sandbox) -> None:
    unit = service(SYNC, root)
    unit.give(IMAGES, "version: 1\nmirors: []\n")
    done = unit.run()
    assert (done.returncode, unit.failed(done.returncode)) == (2, True)


def test_run_is_ready_reloads_and_ends(root: Path, box: Sandbox, supervisor: socket.socket) -> None:
    unit = service(RUN, root)
    configure(unit, box, ["one:1"])
    env = {"NOTIFY_SOCKET": supervisor.getsockname().decode().replace("\0", "@")}
    with unit.start(env) as process:
        try:
            hear(supervisor, "READY=1")
            hear(supervisor, "STATUS=next sync")
            assert box.mirrors[0].tags("library/one") == ["1"]
            with unit.spawn(unit.one("ExecReload"), {"MAINPID": str(process.pid)}) as reload:
                assert reload.communicate(timeout=20) == ("", "")
            hear(supervisor, "RELOADING=1")
            hear(supervisor, "READY=1")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, unit.failed(process.returncode)) == (143, False)


TRIES = """
import mmap, os, socket
def attempt(name, *args):
    try:
        name(*args)
    except OSError as error:
        print(error.errno)
    else:
        print(0)
attempt(socket.socket, socket.AF_INET)
attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
attempt(mmap.mmap, -1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
attempt(mmap.mmap, -1, 4096, mmap.MAP_PRIVATE, mmap.PROT_WRITE | mmap.PROT_EXEC)
attempt(os.nice, 1)
attempt(os.chmod, os.environ["STATE_DIRECTORY"], 0o700)
attempt(os.chmod, os.environ["STATE_DIRECTORY"], 0o2700)
attempt(os.mkdir, os.environ["STATE_DIRECTORY"] + "/new")
attempt(os.mkdir, OUTSIDE)
attempt(os.stat, f"/proc/{os.getppid()}")
attempt(os.chown, os.environ["STATE_DIRECTORY"], os.getuid(), -1)
"""


@pytest.mark.parametrize("name", [SYNC, RUN])
def test_unit_really_shuts_in(name: str, root: Path) -> None:
    """Else the tests above prove nothing."""
    unit = service(name, root)
    outside = root / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    file = unit.give("/etc/prewarm/tries.py", TRIES.replace("OUTSIDE", repr(f"{outside}/new")))
    with unit.spawn(f"python {file}") as process:
        said, words = process.communicate(timeout=30)
    read_only, hidden = ("30", "2") if os.geteuid() == 0 else ("0", "0")
    assert said.split() == ["0", "97", "0", "1", "1", "0", "1", "0", read_only, hidden, "1"], words
