"""skopeo: its command, its environment, how it is run and ended, what uploads it left open."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from prewarm import skopeo
from prewarm.errors import PrewarmError
from prewarm.skopeo import (
    Destination,
    child_environment,
    copy_command,
    find,
    open_uploads,
    run,
)

MIRROR = "http://127.0.0.1:5000"
DIGEST = "sha256:" + "a" * 64
SHELL = {"PATH": "/usr/bin:/bin"}


# The command


def test_copy_command_copies_one_digest_with_logins_from_files(
    tmp_path: Path,
) -> None:
    destination = Destination("127.0.0.1:5000", True, None, 9)
    command = copy_command(
        "/usr/bin/skopeo",
        "127.0.0.1:4000/n1",
        8,
        destination,
        "library/app",
        DIGEST,
        612.3,
    )
    assert command == (
        "/usr/bin/skopeo",
        "--debug",
        "--insecure-policy",
        "--command-timeout=612s",
        "copy",
        "--preserve-digests",
        "--remove-signatures",
        "--src-tls-verify=false",
        "--src-authfile=/proc/self/fd/8",
        "--dest-authfile=/proc/self/fd/9",
        "--dest-tls-verify=false",
        f"docker://127.0.0.1:4000/n1@{DIGEST}",
        f"docker://127.0.0.1:5000/library/app@{DIGEST}",
    )


@pytest.mark.parametrize("certs", [True, False])
def test_copy_command_to_tls_verifies_it_with_the_mirrors_ca(tmp_path: Path, certs: bool) -> None:
    folder = tmp_path / "certs" if certs else None
    destination = Destination("mirror.example.org/a", False, folder, 9)
    command = copy_command("skopeo", "127.0.0.1:4000/n1", 8, destination, "x", DIGEST, 0.1)
    assert "--dest-tls-verify=true" in command
    assert (f"--dest-cert-dir={folder}" in command) == certs
    assert "--command-timeout=1s" in command
    assert "--retry-times" not in " ".join(command)
    assert command[-1] == f"docker://mirror.example.org/a/x@{DIGEST}"


def test_child_environment_passes_proxies_and_nothing_secret(tmp_path: Path) -> None:
    passed = {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://proxy:3128",
        "no_proxy": "localhost",
        "SSL_CERT_FILE": "/ca.pem",
    }
    ours = {
        "HOME": "/home/me",
        "PREWARM_GITLAB_TOKEN": "glpat-secret",
        "REGISTRY_AUTH_FILE": "/auth.json",
        "CREDENTIALS_DIRECTORY": "/run/credentials",
        "PGPASSFILE": "/pgpass",
        "XDG_DATA_HOME": "/home/me/data",
        "DOCKER_CONFIG": "/home/me/.docker",
        "LD_PRELOAD": "/evil.so",
    }
    found = child_environment({**passed, **ours}, tmp_path / "home", tmp_path / "data")
    assert {name: found[name] for name in passed} == passed
    assert found["HOME"] == found["TMPDIR"] == found["XDG_RUNTIME_DIR"] == str(tmp_path / "home")
    assert found["XDG_DATA_HOME"] == str(tmp_path / "data")
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


# Uploads left open

BASE = "http://127.0.0.1:5000/v2/library/app/blobs/uploads"


def said(*lines: str) -> str:
    return "".join(f'time="2026-11-24T07:49:30Z" level=debug msg="{line}"\n' for line in lines)


BLOB = "a" * 64
COMPLETE = f"Upload of layer sha256:{BLOB} complete"


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ([f"POST {BASE}/"], ()),
        ([f"POST {BASE}/", f"PATCH {BASE}/u1?_state=a"], (f"{BASE}/u1?_state=a",)),
        # The newest state of an upload is the one that may be cancelled.
        ([f"PATCH {BASE}/u1?_state=a", f"PATCH {BASE}/u1?_state=b"], (f"{BASE}/u1?_state=b",)),
        (
            [
                f"PATCH {BASE}/u1?_state=a",
                f"PUT {BASE}/u1?_state=b&digest=sha256%3A{BLOB}",
                COMPLETE,
            ],
            (),
        ),
        # Refused at its end, it is as open as before.
        (
            [f"PATCH {BASE}/u1?_state=a", f"PUT {BASE}/u1?_state=b&digest=sha256%3A{BLOB}"],
            (f"{BASE}/u1?_state=b&digest=sha256%3A{BLOB}",),
        ),
        (
            [
                f"PATCH {BASE}/u1?_state=a",
                f"PATCH {BASE}/u2?_state=c",
                f"PUT {BASE}/u1?_state=b&digest=sha256%3A{BLOB}",
                COMPLETE,
            ],
            (f"{BASE}/u2?_state=c",),
        ),
        # A manifest is no upload, and what somebody else says in a message is none.
        ([f"PUT http://127.0.0.1:5000/v2/library/app/manifests/{DIGEST}"], ()),
        ([f"Looking at PATCH {BASE}/u1"], ()),
    ],
)
def test_open_uploads_are_those_that_no_put_ended(lines: list[str], left: tuple[str]) -> None:
    assert open_uploads(said(*lines)) == left
