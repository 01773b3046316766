"""A machine for one client, so that the files printed for it lie where they say they go.

A mount namespace, no container: some folders are its own, programs and network are the tester's. It
takes root with CAP_SYS_ADMIN, which dockerd and containerd want for themselves too.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from tests.support.process import Finished

_PRIVATE: Final = (
    "/etc/containerd",
    "/etc/containers",
    "/etc/docker",
    "/opt",
    "/run",
    "/var/lib",
)
_NOBODY: Final = "192.0.2.1"  # TEST-NET-1, RFC 5737
# Debian's programs, whatever others of the same name come earlier on the tester's PATH.
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
# dockerd does not start without cgroups, which nobody mounts where neither systemd nor Docker runs.
_ENTER: Final = """
while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit; shift 2; done; shift
grep -q ' /sys/fs/cgroup' /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup || exit
exec "$@"
"""


def may_mount() -> bool:
    """Whether this user may have a machine; some containers let not even root mount."""
    asked = ["unshare", "--mount", "--propagation", "private", "true"]
    return subprocess.run(asked, capture_output=True, timeout=20).returncode == 0


class Machine:
    """What a client sees below `folder`; `env` is the environment of its programs.

    It knows the addresses of `hosts` and of no others; nobody is reached there, but by a proxy. Its
    daemons run until `close`. RuntimeError where this user may not mount.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], hosts: Sequence[str]) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._mounts: list[str] = []
        for place in _PRIVATE:
            self.path(place).mkdir(parents=True)
            self._mounts += [str(self.path(place)), place]
        # dockerd looks up each registry, to see whether its address is one without TLS.
        self.write("/etc/hosts", "".join(f"{_NOBODY} {host}\n" for host in hosts))
        self._mounts += [str(self.path("/etc/hosts")), "/etc/hosts"]
        (folder / "home").mkdir()
        self._env = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": str(folder / "home"), **env}
        entered = self.run("true")
        if entered.returncode != 0:
            raise RuntimeError(f"the tests of clients cannot mount here: {entered.stderr}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def end(self) -> None:
        """Tell the daemons to end, which takes dockerd a second; `close` waits for them."""
        for daemon in self._daemons:
            daemon.terminate()

    def close(self) -> None:
        """End the daemons, and so what they started: nobody writes to `folder` any more."""
        self.end()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()

    def path(self, place: str) -> Path:
        """Return where a file of the machine (`/etc/docker/daemon.json`) lies for the test."""
        return self.folder / place.lstrip("/")

    def write(self, place: str, text: str) -> None:
        """Write a file of the machine."""
        file = self.path(place)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> Finished:
        """Run a program there to its end; RuntimeError where it is not installed."""
        done = subprocess.run(
            self._command(command),
            input=stdin,
            capture_output=True,
            env={**self._env, **(env or {})},
            cwd=self.folder,
            timeout=120,
        )
        stdout, stderr = (one.decode(errors="replace") for one in (done.stdout, done.stderr))
        return Finished(done.returncode, stdout, stderr)

    def start(self, daemon: Sequence[str], ready: Sequence[str]) -> None:
        """Start the daemon and wait until the command `ready`, a client of it, succeeds.

        RuntimeError, with the end of its log, where it does not come up.
        """
        file = self.folder / f"{daemon[0]}.log"
        with file.open("ab") as log:
            started = subprocess.Popen(
                # It dies with the test, even when that is killed.
                ["setpriv", "--pdeathsig", "KILL", *self._command(daemon)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                cwd=self.folder,
            )
        self._daemons.append(started)
        deadline = time.monotonic() + 60
        while self.run(*ready).returncode != 0:
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{daemon[0]} did not start: {file.read_text()[-2000:]}")
            time.sleep(0.02)

    def _command(self, command: Sequence[str]) -> list[str]:
        if shutil.which(command[0], path=_PATH) is None:
            raise RuntimeError(f"{command[0]} is not installed; make clients")
        entered = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        return [*entered, *self._mounts, "--", *command]
