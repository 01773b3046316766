"""The unit files: what they say, systemd's own judgement on them, and services without systemd."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support import confined
from tests.support.process import Finished, finish

UNITS: Final = Path(__file__).parents[2] / "systemd"
USER: Final = 2999998
"""Who a service runs as where the tests are root; is in no passwd."""
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
"""Where systemd looks for a program, and what a service gets as its PATH."""
_NAMESPACES: Final = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000)
"""CLONE_NEW…, with 0x40000000 of the network below."""
_WX: Final = mmap.PROT_WRITE | mmap.PROT_EXEC
_BITS: Final = stat.S_ISUID | stat.S_ISGID


def assert_units_are_valid(folder: Path, names: Iterable[str]) -> None:
    """systemd knows every key and value; its exit code alone would pass an unknown one."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(f"./{name}" for name in names)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout + done.stderr
    assert [line for line in said.splitlines() if "prewarm" in line] == []
    assert done.returncode == 0, said


def read_unit(text: str) -> dict[str, list[str]]:
    """Return the values of each key of a unit file, whatever its section; an empty one clears."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith(("#", ";", "[")) or not line.strip():
            continue
        key, _, value = line.partition("=")
        found[key] = [*found.get(key, ()), value] if value else []
    return found


class Service:
    """A service unit on a host whose folders lie in `root`, started as systemd would start it.

    Its ExecStart=, environment, state folder, credentials, read-only mounts, system-call filters
    and user are those of the unit; the folders of its file that lie in /etc, /var and /run are
    taken in `root`. Without root's rights user and mounts stay as they are.
    """

    def __init__(
        self, name: str, root: Path, programs: Path | None = None, units: Path = UNITS
    ) -> None:
        """`programs` is a folder that stands for the first in which systemd looks for a program."""
        self.name = name
        self.keys = read_unit((units / name).read_text())
        self.root = root
        self.user = USER if os.geteuid() == 0 else os.geteuid()
        self._path = PATH if programs is None else f"{programs}:{PATH}"
        self.state = self._state_folder()
        self.credentials = root / "run/credentials" / name

    def here(self, path: str) -> Path:
        """Return where a path of the host lies in `root`."""
        return self.root / path.removeprefix("/")

    def give(self, path: str, content: str, mode: int = 0o644) -> Path:
        """Write a file of the host, which is root's, and return where it lies."""
        file = self.here(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)
        return file

    def offer(self, path: str) -> Path:
        """Make a folder of the host that is the user's, and return where it lies."""
        folder = self.here(path)
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, self.user, -1)
        return folder

    def start(self, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start ExecStart=; the caller waits for it (`with` closes its pipes)."""
        return self.spawn(self.one("ExecStart"), env)

    def run(self, env: Mapping[str, str] | None = None, timeout: float = 120) -> Finished:
        """Run ExecStart= to its end."""
        with self.start(env) as process:
            return finish(process, timeout)

    def spawn(self, line: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command line of a unit file as this service."""
        environment = {**self._environment(), **(env or {})}
        walls = json.dumps(self.walls([*self._writable()]))
        return subprocess.Popen(
            [sys.executable, confined.__file__, walls, *self._command(line)],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=int(self.keys.get("UMask", ["0022"])[-1], 8),
        )

    def failed(self, returncode: int) -> bool:
        """Whether systemd calls the unit failed, and starts what OnFailure= names."""
        return str(returncode) not in ["0", *" ".join(self.keys["SuccessExitStatus"]).split()]

    def one(self, key: str) -> str:
        (value,) = self.keys[key]
        return value

    def walls(self, writable: Sequence[Path]) -> dict[str, Any]:
        """Return what `confined` makes of the unit's restrictions."""
        return {
            "user": self.user,
            "writable": list(map(str, writable)),
            "proc": ",".join(_proc_options(self.keys)),
            "allowed": sorted(_allowed(self.keys["SystemCallFilter"])),
            "errno": getattr(errno, self.one("SystemCallErrorNumber")),
            "refused": list(_refused(self.keys)),
        }

    def _command(self, line: str) -> list[str]:
        program, *arguments = shlex.split(line)
        folders = [Path(folder) for folder in self._path.split(":")]
        found = [folder / program for folder in folders if (folder / program).is_file()]
        there = re.compile(r"/(etc|var)/")
        return [
            str(found[0]),
            *(str(self.here(one)) if there.match(one) else one for one in arguments),
        ]

    def _state_folder(self) -> Path | None:
        if "StateDirectory" not in self.keys:
            return None
        folder = self.offer(f"/var/lib/{self.one('StateDirectory')}")
        folder.chmod(int(self.one("StateDirectoryMode"), 8))
        return folder

    def _writable(self) -> Iterator[Path]:
        yield self.offer("/tmp")  # for PrivateTmp=: the machine's own holds the tests' folders
        if self.state is not None:
            yield self.state
        for value in self.keys.get("ReadWritePaths", ()):
            folder = self.here(value.removeprefix("-").strip('"'))
            assert folder.exists() or value.startswith("-"), f"{self.name} would not start"
            if folder.exists():
                yield folder

    def _environment(self) -> dict[str, str]:
        environment = {"PATH": self._path, "LANG": "C.UTF-8", "TMPDIR": str(self.offer("/tmp"))}
        if self.state is not None:
            environment |= {"HOME": str(self.state), "STATE_DIRECTORY": str(self.state)}
        if "LoadCredential" in self.keys:
            self._load_credentials()
            environment["CREDENTIALS_DIRECTORY"] = str(self.credentials)
        return environment

    def _load_credentials(self) -> None:
        """Write the credentials as systemd does; SetCredential= stands for a missing file."""
        otherwise = dict(value.split(":", 1) for value in self.keys["SetCredential"])
        self.credentials.mkdir(parents=True, exist_ok=True)
        self.credentials.chmod(0o700)
        for value in self.keys["LoadCredential"]:
            name, path = value.split(":", 1)
            file = self.credentials / name
            file.unlink(missing_ok=True)
            source = self.here(path)
            content = source.read_text() if source.exists() else otherwise[name]
            file.write_text(content if source.exists() else content.replace(r"\n", "\n"))
            # From systemd 254 on it is root's, and others may seem to read it: the group bits of a
            # file with an ACL are those of the ACL's mask.
            file.chmod(0o440)
            os.chown(file, self.user, -1)
        os.chown(self.credentials, self.user, -1)
        self.credentials.chmod(0o500)


def _allowed(values: Iterable[str]) -> set[str]:
    """Return the system calls that lines of SystemCallFilter= leave; the first allows."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout
    groups: dict[str, list[str]] = {}
    for line in listed.splitlines():
        if line.startswith("@"):
            members = groups[line] = []
        elif line.startswith("    ") and not line.startswith("    #"):
            members.append(line.strip())

    def calls(words: Iterable[str]) -> Iterator[str]:
        for word in words:
            yield from calls(groups[word]) if word.startswith("@") else (word,)

    first, *rest = values
    found = {*calls(first.split()), *calls(["@default"])}
    for value in rest:
        assert value.startswith("~")
        found -= {*calls(value[1:].split())}
    return found


def _proc_options(keys: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the options with which systemd mounts /proc for the unit."""
    yield f"hidepid={keys['ProtectProc'][-1]}"
    if keys.get("ProcSubset", ["all"])[-1] == "pid":
        yield "subset=pid"


def _refused(keys: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Sequence[int], int]]:
    """Yield what a unit's other restrictions refuse: call, argument with mask and value, errno."""

    def on(key: str) -> bool:
        return keys.get(key, ["false"])[-1] == "true"

    families = {int(getattr(socket, name)) for name in keys["RestrictAddressFamilies"][-1].split()}
    for family in range(1, 46):
        if family not in families:
            yield "socket", (0, 0xFFFFFFFF, family), errno.EAFNOSUPPORT
    if on("MemoryDenyWriteExecute"):
        yield "mmap", (2, _WX, _WX), errno.EPERM
        for name in ("mprotect", "pkey_mprotect"):
            yield name, (2, mmap.PROT_EXEC, mmap.PROT_EXEC), errno.EPERM
    if on("RestrictNamespaces"):
        for flag in (*_NAMESPACES, 0x40000000):
            yield "clone", (0, flag, flag), errno.EPERM
            yield "unshare", (0, flag, flag), errno.EPERM
        yield "setns", (), errno.EPERM
        yield "clone3", (), errno.ENOSYS
    if on("RestrictSUIDSGID"):
        for bit in (stat.S_ISUID, stat.S_ISGID):
            for name, argument in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdirat", 2)):
                yield name, (argument, bit, bit), errno.EPERM
