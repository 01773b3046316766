"""The container engines of this host: pulls an image as they are set up, and removes it again.

Nothing is passed to them but the reference: whatever mirror they ask, their own settings say so.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import IO, Any, Final

from prewarm.core.child_env import inherited
from prewarm.core.errors import PrewarmError
from prewarm.core.settings import DOCKER_HUB

_ANSWER: Final = 20.0
"""Seconds for a command that asks no registry."""
_PULL: Final = 90.0
"""Seconds for a pull of a kilobyte: dockerd gives a host that does not answer 15, and then asks
the registry itself; others are slower, and that is a failure here."""
_GRACE: Final = 5.0
_LOOK: Final = 0.1
_KEPT: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    ok: bool
    stdout: str
    words: str
    """The last line that it said; for one that did not end, that."""


Command = tuple[str, ...]
Ask = Callable[[Command], Result]


@dataclass(frozen=True, slots=True)
class Ways:
    """How an engine is told to do it."""

    name: str
    """The engine for people, with what it was asked by."""
    pull: Command
    """The reference comes behind it."""
    remove: tuple[Command, ...]
    """What leaves nothing of the reference that stands for `{}`."""


@dataclass(frozen=True)
class Engine:
    """An engine that is there and answers."""

    kind: str
    """As `prewarm client-config` names it."""
    ways: Ways
    environ: Mapping[str, str]
    stop: Event

    def pull(self, reference: str) -> Result:
        """Pull the image; what failed is told, never raised."""
        return _run((*self.ways.pull, reference), _PULL, self.environ, self.stop)

    def remove(self, reference: str) -> None:
        """Remove the image, and nothing else of the engine; also when all is to end."""
        for command in self.ways.remove:
            named = tuple(part.replace("{}", reference) for part in command)
            _run(named, _ANSWER, self.environ, Event())


def find_engine(kind: str, environ: Mapping[str, str], stop: Event, token: str) -> Engine:
    """Return the engine of that kind; PrewarmError where it is not there or does not answer.

    `token` names what is kept apart in it while it is asked.
    """
    environ = inherited(environ)
    ways = _FINDERS[kind](lambda command: _run(command, _ANSWER, environ, stop), token)
    return Engine(kind, ways, environ, stop)


# -- each engine ------------------------------------------------------------------------------


def _dockerd(ask: Ask, _: str) -> Ways:
    _want(
        ask(("docker", "version", "--format={{.Server.Version}}")),
        "dockerd",
        "install docker.io, start docker.service, and be root or in the group docker",
    )
    return Ways("dockerd", ("docker", "pull", "--quiet"), (("docker", "image", "rm", "{}"),))


def _podman(ask: Ask, _: str) -> Ways:
    _want(
        ask(("podman", "version", "--format={{.Client.Version}}")),
        "podman",
        "install podman; its settings and storage are those of the user who asks",
    )
    return Ways("podman", ("podman", "pull", "--quiet"), (("podman", "image", "rm", "{}"),))


def _containerd(ask: Ask, token: str) -> Ways:
    """Return containerd by `ctr`, which is told the folder where kubelet's pulls look.

    `content fetch` unpacks nothing, so that any snapshotter will do; a namespace of its own keeps
    it from what others hold.
    """
    _want(
        ask(("ctr", "--connect-timeout=5s", "version")),
        "containerd",
        "install containerd, start it, and be root; another socket: CONTAINERD_ADDRESS",
    )
    told = _want(
        ask(("containerd", "config", "dump")), "containerd", "mend /etc/containerd/config.toml"
    )
    folder = hosts_folder(told)
    if not folder:
        raise PrewarmError(
            "client",
            "containerd: config_path is not set, so that it looks for no hosts.toml",
            'write config_path = "/etc/containerd/certs.d" into /etc/containerd/config.toml, where '
            "the files of prewarm client-config containerd say, and restart containerd",
        )
    space = f"prewarm-{token}"
    ctr = ("ctr", f"--namespace={space}")
    return Ways(
        f"containerd by {folder}",
        (*ctr, "content", "fetch", f"--hosts-dir={folder}"),
        ((*ctr, "images", "rm", "--sync", "{}"), ("ctr", "namespaces", "rm", space)),
    )


def hosts_folder(dump: str) -> str:
    """Return where containerd's CRI looks for hosts.toml, by `containerd config dump`.

    Nothing where it does not look. Of several folders, the first that has one for Docker Hub.
    """
    try:
        plugins = tomllib.loads(dump).get("plugins", {})
    except (ValueError, RecursionError):
        return ""
    for plugin in ("io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"):
        path = _text_at(plugins, plugin, "registry", "config_path")
        folders = [folder for folder in path.split(os.pathsep) if folder.startswith("/")]
        if folders:
            having = (one for one in folders if Path(one, DOCKER_HUB, "hosts.toml").exists())
            return next(having, folders[0])
    return ""


def _text_at(document: Any, *keys: str) -> str:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, str) else ""


_FINDERS: Final[Mapping[str, Callable[[Ask, str], Ways]]] = {
    "dockerd": _dockerd,
    "containerd": _containerd,
    "podman": _podman,
}


def _want(result: Result, kind: str, cure: str) -> str:
    if not result.ok:
        raise PrewarmError("client", f"{kind} cannot be asked: {result.words}", cure)
    return result.stdout


# -- children ---------------------------------------------------------------------------------


def _run(command: Command, timeout: float, environ: Mapping[str, str], stop: Event) -> Result:
    """Run a command to its end, its timeout, or until `stop`, in a process group of its own."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as words:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=words,
                env=dict(environ),
                start_new_session=True,
            )
        except OSError as error:
            return Result(False, "", f"{command[0]} does not start: {error.strerror}")
        with process:
            ended = _wait(process, timeout, stop)
        told = _read(words) or _read(out)
        if ended:
            return Result(process.returncode == 0, _read(out), last_words(told))
        why = "it was ended" if stop.is_set() else f"no answer in {timeout:.0f} s"
        return Result(False, "", f"{command[0]}: {why}")


def _wait(process: subprocess.Popen[bytes], timeout: float, stop: Event) -> bool:
    """Return whether the process came to its end by itself; else end it."""
    deadline = time.monotonic() + timeout
    while not stop.is_set() and time.monotonic() < deadline:
        try:
            process.wait(_LOOK)
        except subprocess.TimeoutExpired:
            continue
        return True
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(_GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        break
    return False


def _read(file: IO[bytes]) -> str:
    """Return the end of what a child wrote."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _KEPT) if size > _KEPT else 0)
    return file.read().decode(errors="replace")


def last_words(told: str) -> str:
    """Return an engine's error, in one line and without what may hold a password or a token.

    It is what stands from the last line on that begins as errors of docker, podman and ctr do.
    """
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    if not lines:
        return "without a word"
    begins = [n for n, line in enumerate(lines) if line.startswith(("Error", "ctr: "))]
    words = " ".join(lines[begins[-1] if begins else -1 :])
    bare = re.sub(r"(://[^\s\"\\?]*)\?[^\s\"\\]*", r"\1?…", words)
    return re.sub(r"://[^\s/@\"]*@", "://…@", bare)[:400]
