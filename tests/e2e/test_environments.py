"""prewarm where a shell, a container or a full disk gives it less than usual."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.host import Host
from tests.sandbox import Sandbox
from tests.support.process import Finished, private_env

NUMBER = "2999999"
"""A user that is in no passwd."""


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    box.push("library/app", "1", single=True)
    host = Host(tmp_path, box)
    host.configure(["app:1"])
    return host


def in_shell(host: Host, redirected: str, *args: str) -> Finished:
    """Run prewarm as a shell starts it with the redirections; what they leave open is read."""
    prewarm = [sys.executable, "-m", "prewarm", "-q", "--config", str(host.config), *args]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirected}', "sh", *prewarm],
        cwd=host.folder,
        env=private_env(host.folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["sync"], 0),
        (["sync", "nope:1"], 1),
        (["status", "--json"], 0),
        (["explain", "app:1"], 1),
        (["sync", "--nonsense"], 2),
    ],
    ids=["sync", "sync-fails", "status", "explain", "usage"],
)
def test_command_with_a_closed_stream_does_its_work(
    host: Host, closed: str, args: list[str], code: int
) -> None:
    finished = in_shell(host, closed, *args)
    assert finished.returncode == code, finished.stderr
    assert "Traceback" not in finished.stderr
    if args == ["sync"]:
        assert host.charged() == 1
        assert host.box.mirrors[0].tags("library/app") == ["1"]


def test_sync_with_every_stream_closed_writes_nothing_into_its_files(host: Host) -> None:
    """A file that is opened later must not get the number of a closed stream."""
    in_shell(host, "<&- >&- 2>&-", "-v", "sync", "--json")
    with host.sql() as sql:
        assert sql.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    lock = host.state.with_name("prewarm.db.lock").read_text()
    assert [word.isdigit() for word in lock.split()] == [True, True]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["sync"], 1),
        (["sync", "--json"], 1),
        (["check"], 1),
        (["--help"], 1),
        (["sync", "--nonsense"], 2),
    ],
)
def test_command_with_stdout_on_a_full_disk_says_so_in_one_line(
    host: Host, args: list[str], code: int
) -> None:
    finished = in_shell(host, ">/dev/full", *args)
    assert finished.returncode == code
    assert "Traceback" not in finished.stderr
    if code == 1:
        (line,) = finished.stderr.splitlines()
        assert line.startswith("prewarm: stdout cannot be written: No space left on device; ")
    if args[0] == "sync" and code == 1:
        # The work was done all the same, and is known.
        assert host.run("status", "--json").json["last_sync"]["copied"] == 1


def test_sync_with_stderr_on_a_full_disk_keeps_its_exit_code(host: Host) -> None:
    assert in_shell(host, "2>/dev/full", "-v", "sync").returncode == 0
    assert in_shell(host, "2>/dev/full", "-v", "sync", "nope:1").returncode == 1
    assert in_shell(host, "2>/dev/full", "--nonsense").returncode == 2


def test_output_in_a_charset_without_the_letter_is_escaped(host: Host) -> None:
    folder = host.folder / "ž"
    folder.mkdir()
    (folder / "images.yml").write_text(host.config.read_text())
    done = subprocess.run(
        [sys.executable, "-m", "prewarm", "--config", str(folder / "images.yml"), "status"],
        cwd=host.folder,
        env=private_env(host.folder, {"PYTHONIOENCODING": "latin-1"}),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u017e/images.yml" in done.stdout


def as_a_number(host: Host, *args: str) -> Finished:
    """Run prewarm as a user without passwd entry, HOME and XDG folders, as containers do.

    It may read this checkout wherever that lies: permissions are not what is looked at.
    """
    user = [f"--reuid={NUMBER}", f"--regid={NUMBER}", "--clear-groups"]
    rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    done = subprocess.run(
        ["setpriv", *user, *rights, sys.executable, "-m", "prewarm", *args],
        cwd=host.folder,
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_sync_of_a_user_without_a_home_needs_none(host: Host) -> None:
    finished = as_a_number(host, "--config", str(host.config), "sync", "--json")
    assert finished.returncode == 0, finished.stderr
    assert finished.json["summary"]["copied"] == 1
    for command in (["status"], ["verify"], ["explain", "app:1"], ["check"]):
        finished = as_a_number(host, "--config", str(host.config), *command)
        assert finished.returncode == 0, finished.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_sync_of_a_user_without_a_home_for_the_state_says_what_to_write(host: Host) -> None:
    host.configure(["app:1"], state=None)
    for command in (["sync"], ["status"]):
        finished = as_a_number(host, "--config", str(host.config), *command)
        assert (finished.returncode, finished.stdout) == (2, "")
        (line,) = finished.stderr.splitlines()
        assert "no home folder; write state: " in line
