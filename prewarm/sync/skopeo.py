"""skopeo, the program that copies: its command line, its run, the uploads that it left open.

skopeo reads each image from our own gate on loopback (`gate`), so it holds no credentials of an
upstream and sends no manifest request to one, whatever it retries.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prewarm.core.child_env import chosen
from prewarm.core.errors import PrewarmError

OLDEST: Final = (1, 9)
"""Debian 12's; `--preserve-digests` and pushing by digest are as tested from here on."""

_INSTALL: Final = "install skopeo 1.9 or newer (Debian 12: apt install skopeo)"
_GRACE = 5.0
_LOOK = 0.2
"""Seconds between two looks whether the run is to end."""
_KEPT_STDERR = 1 << 20


@dataclass(frozen=True, slots=True)
class Result:
    """How a run of skopeo ended."""

    returncode: int
    stderr: str
    stopped: bool = False
    """We ended it: a stop was asked for."""


def copy_command(
    program: str,
    source: str,
    authfile: int,
    digest: str,
    timeout: float,
) -> tuple[str, ...]:
    """Return the command that copies one manifest with its blobs, by digest, under no tag.

    `source` is the repository on the gate, and what is below it as `to` leads to the mirror;
    `authfile` is the descriptor of the login there. Signatures are neither read nor written, since
    the mirror has nowhere to keep them.
    """
    return (
        program,
        "--insecure-policy",
        f"--command-timeout={max(1, round(timeout))}s",
        "copy",
        "--preserve-digests",
        "--remove-signatures",
        "--src-tls-verify=false",
        f"--src-authfile={_inherited(authfile)}",
        "--dest-tls-verify=false",
        f"--dest-authfile={_inherited(authfile)}",
        f"docker://{source}@{digest}",
        f"docker://{source}/to@{digest}",
    )


def _inherited(descriptor: int) -> str:
    """The path by which a child reads a descriptor that it inherits."""
    return f"/proc/self/fd/{descriptor}"


def child_environment(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the environment of skopeo: a private home, and nothing else of ours.

    It asks the gate alone, so it needs neither proxies nor CAs. Which blob lies where prewarm knows
    better: without a folder for data skopeo remembers it for the length of a copy only.
    """
    return {
        **chosen(environ, {"LANG"}),
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "XDG_DATA_HOME": os.devnull,
        # As root skopeo would use the host's own cache of blobs and never look at XDG_DATA_HOME
        # (containers/image, pkg/blobinfocache).
        "_CONTAINERS_ROOTLESS_UID": "65534",
        "TMPDIR": str(home),
    }


def find(environ: Mapping[str, str]) -> str:
    """Return the path of a skopeo that is new enough, or raise with what to install."""
    return find_version(environ)[0]


def find_version(environ: Mapping[str, str]) -> tuple[str, tuple[int, int]]:
    """Return path and version of a skopeo that is new enough, or raise with what to install."""
    program = shutil.which("skopeo", path=environ.get("PATH"))
    if program is None:
        raise PrewarmError("skopeo-missing", "skopeo is not on PATH", _INSTALL)
    found = _version(program, environ)
    if found < OLDEST:
        told = ".".join(map(str, found))
        raise PrewarmError("skopeo-old", f"{program} is version {told}, which is too old", _INSTALL)
    return program, found


def _version(program: str, environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the version of a skopeo, or raise where it does not start or tell it."""
    try:
        told = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            env=chosen(environ),
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PrewarmError("skopeo-missing", f"{program} does not start", _INSTALL) from error
    found = re.search(r"version v?(\d+)\.(\d+)", told)
    if found is None:
        raise PrewarmError("skopeo-missing", f"{program} does not tell its version", _INSTALL)
    return int(found[1]), int(found[2])


def run(
    command: tuple[str, ...],
    environment: Mapping[str, str],
    timeout: float,
    stop: threading.Event,
    descriptors: tuple[int, ...] = (),
    is_too_slow: Callable[[], bool] = lambda: False,
) -> Result:
    """Run skopeo to its end, its timeout or until `stop` is set, in a process group of its own.

    It inherits the `descriptors`, and no other but its standard ones. `is_too_slow` is asked again
    and again, and ends it, too.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
            pass_fds=descriptors,
        )
    except OSError as error:
        raise PrewarmError(
            "skopeo-missing",
            f"{command[0]} does not start: {error.strerror}",
            "run again; if it stays so, install skopeo anew",
        ) from error
    assert process.stderr is not None
    lines = bytearray()
    deadline = time.monotonic() + timeout + _GRACE
    stopped = False
    # The end of its stderr is the end of skopeo, and told at once, where wait() would look for it
    # in steps. skopeo has its own timeout; ours is the second line, should it not keep to that.
    with process.stderr as pipe:
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        while process.poll() is None or ready.poll(0):
            if ready.poll(_LOOK * 1000):
                chunk = os.read(pipe.fileno(), 65536)
                if not chunk:
                    break
                lines += chunk
                if len(lines) > _KEPT_STDERR:
                    del lines[: -_KEPT_STDERR // 2]
            if stop.is_set() or time.monotonic() > deadline or is_too_slow():
                stopped = stop.is_set()
                _end(process)
                # Its last words tell which uploads it leaves open.
                while ready.poll(0) and (chunk := os.read(pipe.fileno(), 65536)):
                    lines += chunk
                break
    return Result(process.wait(), lines.decode(errors="replace"), stopped)


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(_GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return
