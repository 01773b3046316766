"""skopeo: its command, its environment, how it is run and ended."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from prewarm.core.errors import PrewarmError
from prewarm.sync import skopeo
from prewarm.sync.skopeo import child_environment, copy_command, find, run

MIRROR = "http://127.0.0.1:5000"
DIGEST = "sha256:" + "a" * 64
SHELL = {"PATH": "/usr/bin:/bin"}


# The command


def test_copy_command_copies_one_digest_from_the_gate_to_the_gate() -> None:
    command = copy_command("/usr/bin/skopeo", "127.0.0.1:4000/n1", 8, DIGEST, 612.3)
    assert command == (
        "/usr/bin/skopeo",
        "--insecure-policy",
        "--command-timeout=612s",
        "copy",
        "--preserve-digests",
        "--remove-signatures",
        "--src-tls-verify=false",
        "--src-authfile=/proc/self/fd/8",
        "--dest-tls-verify=false",
        "--dest-authfile=/proc/self/fd/8",
        f"docker://127.0.0.1:4000/n1@{DIGEST}",
        f"docker://127.0.0.1:4000/n1/to@{DIGEST}",
    )


def test_copy_command_takes_a_second_at_least() -> None:
    command = copy_command("skopeo", "127.0.0.1:4000/n1", 8, DIGEST, 0.1)
    assert "--command-timeout=1s" in command


def test_child_environment_has_no_proxy_and_nothing_secret(tmp_path: Path) -> None:
    passed = {"PATH": "/bin", "LANG": "C.UTF-8"}
    ours = {
        "HOME": "/home/me",
        "HTTPS_PROXY": "http://user:secret@proxy:3128",
        "PREWARM_GITLAB_TOKEN": "glpat-secret",
        "REGISTRY_AUTH_FILE": "/auth.json",
        "CREDENTIALS_DIRECTORY": "/run/credentials",
        "PGPASSFILE": "/pgpass",
        "XDG_DATA_HOME": "/home/me/data",
        "DOCKER_CONFIG": "/home/me/.docker",
        "LD_PRELOAD": "/evil.so",
    }
    found = child_environment({**passed, **ours}, tmp_path / "home")
    assert {name: found[name] for name in passed} == passed
    assert found["HOME"] == found["TMPDIR"] == found["XDG_RUNTIME_DIR"] == str(tmp_path / "home")
    assert not set(ours) - {"HOME", "XDG_DATA_HOME"} & set(found)
    assert not set(ours.values()) & set(found.values())


# Finding it


def script(folder: Path, text: str) -> dict[str, str]:
    file = folder / "skopeo"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return {"PATH": str(folder)}


def test_find_the_installed_one_returns_its_path() -> None:
    assert find(os.environ).endswith("/skopeo")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("echo skopeo version 1.8.0", "skopeo-old"),
        ("echo skopeo version 0.1.40", "skopeo-old"),
        ("echo skopeo version 1.9.0-dev commit: abc", ""),
        ("echo skopeo version 1.18.0", ""),
        ("echo skopeo version v2.0.1", ""),
        ("echo something else", "skopeo-missing"),
        ("exit 1", "skopeo-missing"),
    ],
)
def test_find_takes_a_version_that_is_new_enough(tmp_path: Path, text: str, code: str) -> None:
    environ = script(tmp_path, text)
    if not code:
        assert find(environ) == str(tmp_path / "skopeo")
        return
    with pytest.raises(PrewarmError) as caught:
        find(environ)
    assert caught.value.code == code
    assert "apt install skopeo" in caught.value.cure


def test_find_without_one_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(PrewarmError) as caught:
        find({"PATH": str(tmp_path)})
    assert caught.value.code == "skopeo-missing"


def test_find_of_one_that_cannot_start_says_so(tmp_path: Path) -> None:
    file = tmp_path / "skopeo"
    file.write_bytes(b"\x7fELF nonsense")
    file.chmod(0o755)
    with pytest.raises(PrewarmError) as caught:
        find({"PATH": str(tmp_path)})
    assert caught.value.code == "skopeo-missing"


# Running it


def test_run_returns_code_and_stderr() -> None:
    result = run(("sh", "-c", "echo out; echo words >&2; exit 3"), SHELL, 5, threading.Event())
    assert (result.returncode, result.stderr, result.stopped) == (3, "words\n", False)


def test_run_of_much_stderr_keeps_its_end_and_never_blocks() -> None:
    command = "i=0; while [ $i -lt 40000 ]; do echo $i-0123456789012345678901234567890; i=$((i+1)); done >&2"  # noqa: E501
    result = run(("sh", "-c", command), SHELL, 30, threading.Event())
    assert result.returncode == 0
    assert result.stderr.endswith("39999-0123456789012345678901234567890\n")
    assert len(result.stderr) <= 1 << 20


def test_run_that_is_stopped_ends_the_whole_group() -> None:
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()
    result = run(("sh", "-c", "sleep 60 & echo $! >&2; wait"), SHELL, 60, stop)
    assert result.stopped
    assert result.returncode == -15
    assert time.monotonic() - started < 4
    child = int(result.stderr)
    deadline = time.monotonic() + 3
    while Path(f"/proc/{child}/stat").exists():
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_run_beyond_its_timeout_is_ended_even_if_it_ignores_sigterm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(skopeo, "_GRACE", 0.3)
    command = ("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    started = time.monotonic()
    result = run(command, SHELL, 0.1, threading.Event())
    assert (result.returncode, result.stopped) == (-9, False)
    assert time.monotonic() - started < 4


def test_run_of_what_has_gone_is_a_failure_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(PrewarmError) as caught:
        run((str(tmp_path / "skopeo"), "copy"), SHELL, 5, threading.Event())
    assert caught.value.code == "skopeo-missing"
    assert "No such file" in caught.value.text
