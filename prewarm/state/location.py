"""The state's place and owner, and the locks that keep two syncs apart.

Locks die with the process that holds them, however it ends: nothing has to be cleaned up.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shlex
import socket
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from prewarm.core.budget import Moment
from prewarm.core.errors import AlreadyRunningError, PrewarmError, UsageError
from prewarm.core.ownership import ForeignLinkError, entry_of, is_ours, user_name
from prewarm.core.settings import Settings
from prewarm.state.tenant import Site, canonical, site_of

FILE: Final = "prewarm.db"
_SYSTEM_CONFIG: Final = Path("/etc/prewarm/images.yml")
_SYSTEM_STATE: Final = Path("/var/lib/prewarm")
_POLL_SECONDS: Final = 0.2
_BESIDE: Final = ("-journal", "-wal", "-shm")
"""What SQLite reads beside its file, and believes."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A state on a PostgreSQL server; `folder` is where this host keeps what is its own."""

    url: str
    """Without a password."""
    folder: Path

    def __str__(self) -> str:
        return self.url


StatePlace = Path | Shared
"""Where the state lies: a SQLite file, or a server."""


def place_of(
    written: str | None, config: Path | None, environ: Mapping[str, str], home: Path | None
) -> StatePlace:
    """Return where the state lies (contract, 2): as written, else by the rules.

    The rules: $STATE_DIRECTORY (systemd may list several, the first counts), /var/lib/prewarm for
    the system's configuration, the XDG state folder. UsageError where a `home` is needed and there
    is none.
    """
    if written is None:
        return _by_the_rules(config, environ, home)
    if "://" in written:
        return Shared(written, _by_the_rules(config, environ, home).parent)
    return Path(written)


def _by_the_rules(config: Path | None, environ: Mapping[str, str], home: Path | None) -> Path:
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given) / FILE
    if config == _SYSTEM_CONFIG:
        return _SYSTEM_STATE / FILE
    xdg = environ.get("XDG_STATE_HOME", "")
    if xdg.startswith("/"):
        return Path(xdg) / "prewarm" / FILE
    if home is None:
        raise UsageError(
            "state",
            "there is no place for the state: this user has no home folder",
            "write state: with a path in images.yml, or set HOME",
        )
    return home / ".local" / "state" / "prewarm" / FILE


def host_of(settings: Settings) -> str:
    """Return what this host is called in notices, and in a state that several share."""
    return settings.host or socket.gethostname()


def site_here(settings: Settings) -> Site:
    """Return this host's part of a state that several share."""
    return site_of(settings, host_of(settings))


def check_owner(path: Path, user: int, argv: Sequence[str] = ("prewarm", "…")) -> None:
    """Raise UsageError with the command to type where the state belongs to another user.

    `user` is the effective user's id. Before the state exists its folder tells, for root alone:
    root may write anywhere, and its files would then lock the service's user out. A link to a
    state is followed, if it is not another user's: what counts is whose file it is.
    """
    _refuse_links(path)
    place, owner = _owned(path)
    if owner is None and user == 0:
        place, owner = _owned(path.parent)
    if owner == user and user and place != path:
        raise _unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    if owner is None or owner == user:
        return
    name = user_name(owner)
    command = shlex.join(["sudo", *(["-u", name] if owner else [])])
    whose = "belongs" if place in (path, path.parent) else f"lies in {place}, which belongs"
    raise UsageError(
        "state-owner",
        f"state {path} {whose} to {name}",
        f"run: {command} {' '.join(word if word == '…' else shlex.quote(word) for word in argv)}",
    )


def prepare(path: Path, user: int, argv: Sequence[str] = ("prewarm", "…")) -> None:
    """Make the place of the state ready: folder 0700 and file 0600 if missing, owner checked.

    UsageError where it belongs to another user or cannot be written.
    """
    check_owner(path, user, argv)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _unwritable(path, error) from error
    for suffix in _BESIDE:
        _refuse_others(Path(os.path.realpath(path) + suffix))


def prepare_folder(folder: Path, user: int, argv: Sequence[str] = ("prewarm", "…")) -> None:
    """Make a folder of this host's own ready; UsageError as for `prepare`."""
    check_owner(folder, user, argv)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _refuse_links(path: Path) -> None:
    """Raise UsageError where the path leads over a symbolic link of another user."""
    try:
        with entry_of(path) as entry:
            status = entry.status
    except ForeignLinkError as error:
        raise _planted(path, str(error.strerror)) from error
    except OSError:
        return  # what cannot be looked at cannot be used either, which is said then
    if status is not None and stat.S_ISLNK(status.st_mode) and not is_ours(status.st_uid):
        raise _planted(path, f"is a symbolic link of {user_name(status.st_uid)}")


def _refuse_others(path: Path) -> None:
    """Raise UsageError where another user made what SQLite would take for its own."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not is_ours(status.st_uid):
            raise _planted(path, f"belongs to {user_name(status.st_uid)}")


def _planted(path: Path, cause: str) -> UsageError:
    return UsageError(
        "state-owner",
        f"state {path}: {cause}",
        f"remove it, or write state: with a path in a folder where only this user may write "
        f"(ls -la {path.parent})",
    )


def _owned(path: Path) -> tuple[Path, int | None]:
    """Return whose the path is, or the nearest folder above it that we may look at; else None."""
    for place in (path, *path.parents):
        try:
            owner = place.stat().st_uid
        except PermissionError:
            continue
        except FileNotFoundError:
            return place, None
        except OSError as error:
            raise _unwritable(path, error) from error
        return place, owner
    return path, None


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        "state",
        f"state {path} cannot be written: {error.strerror}",
        "write state: with a path that you may write to in images.yml, or run as the owner of "
        f"{path.parent}",
    )


class Lock(Protocol):
    """Something that one process holds at a time."""

    def try_acquire(self, since: float) -> bool:
        """Take it if it is free; `since` (epoch seconds) is told to whoever finds it held."""

    def release(self) -> None:
        """Give it back; nothing if it is not held."""

    def holder(self) -> str:
        """Name what is held and, where known, by which process and since when."""


class StateLock:
    """The lock of a SQLite state: flock on `<state>.lock`, which names its holder.

    The file stays: removing it would let two processes lock two files of one name.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._path = state.with_name(state.name + ".lock")
        self._descriptor: int | None = None

    def try_acquire(self, since: float) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        _refuse_others(self._path)
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {since:.0f}\n".encode(), 0)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            os.close(descriptor)
            raise _unwritable(self._path, error) from error
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> str:
        try:
            pid, since = (int(word) for word in self._path.read_text("ascii")[:64].split())
            when = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        except (OSError, ValueError, OverflowError):
            return f"state {self._state} is held by another prewarm"
        return f"state {self._state} is held by another prewarm, process {pid} since {when}"


class MirrorLock:
    """The lock of a mirror, for the whole host whatever the state: a bound abstract unix socket.

    It has no file, so that states that share nothing but the mirror exclude each other; it is seen
    within one network namespace. Any user could bind it: a holder who is neither this user nor root
    is an error, not another sync to wait for.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        name = hashlib.sha256(canonical(url).encode()).hexdigest()
        self._address = f"\0prewarm:{name}"
        self._socket: socket.socket | None = None
        self._known = False

    def try_acquire(self, since: float) -> bool:  # noqa: ARG002 - a socket cannot tell it
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.bind(self._address)
            # Who asks for the holder is never accepted, and counts until this sync ends.
            bound.listen(4096)
        except OSError as error:
            bound.close()
            if error.errno == errno.EADDRINUSE:
                self._refuse_intruder()
                return False
            raise
        self._socket = bound
        return True

    def release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def holder(self) -> str:
        text = f"mirror {self._url} is held by another prewarm"
        peer = self._peer()
        return f"{text}, process {peer[0]}" if peer and peer[0] else text

    def intruder(self) -> PrewarmError | None:
        """Return the error that another user holds the lock; None where nobody does, or a sync."""
        peer = self._peer()
        if peer is not None:
            if is_ours(peer[1]):
                return None
            by = f"{user_name(peer[1])} (uid {peer[1]}, process {peer[0]})"
        elif f"@{self._address[1:]}\n" in Path("/proc/self/net/unix").read_text("utf-8", "replace"):
            by = "a program that is not prewarm"
        else:
            return None
        return PrewarmError(
            "lock-owner",
            f"the lock of mirror {self._url} is held by {by}",
            "end that program; if it is a sync, run all syncs of one mirror as one user",
        )

    def _refuse_intruder(self) -> None:
        """Raise where another user holds the lock; a sync that binds it now is given a second."""
        if self._known:
            return
        for left in range(19, -1, -1):
            error = self.intruder()
            if error is None:
                self._known = True
                return
            if not left:
                raise error
            time.sleep(0.05)

    def _peer(self) -> tuple[int, int] | None:
        """Return process and user of the holder; None where nobody listens."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.setblocking(False)
            try:
                asking.connect(self._address)
                size = struct.calcsize("3i")
                peer = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            except OSError:
                return None
        process, user, _ = struct.unpack("iIi", peer)
        return process, user


def locks_for(state: Path | None, mirrors: Iterable[str]) -> tuple[Lock, ...]:
    """Return the locks of a sync: its state's, where that is a file, and each mirror's once."""
    urls = {canonical(url): url for url in mirrors}
    own: tuple[Lock, ...] = (StateLock(state),) if state is not None else ()
    return (*own, *(MirrorLock(urls[name]) for name in sorted(urls)))


def folder_of(state: StatePlace, mirrors: Iterable[str]) -> Path:
    """Return the folder in which a sync of these mirrors keeps what is of this host alone.

    Beside a file, under its lock. With a server the locks of the mirrors keep two syncs apart.
    """
    if isinstance(state, Path):
        return state.parent
    told = "\n".join(sorted(map(canonical, mirrors)))
    return state.folder / f"shared-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


@contextmanager
def exclusive(locks: Iterable[Lock], now: Moment, wait: float = 0.0) -> Iterator[None]:
    """Hold all of the locks, or none: waiting for one while holding another could never end.

    Waits up to `wait` seconds; then AlreadyRunningError (exit 75) names the holder.
    """
    wanted = tuple(locks)
    started = time.monotonic()
    while True:
        waited = time.monotonic() - started
        with ExitStack() as held:
            busy = _acquire(wanted, now.wall + waited, held)
            if busy is None:
                yield
                return
        left = wait - waited
        if left <= 0:
            raise AlreadyRunningError(
                "already-running", busy.holder(), "run again later; prewarm sync can wait: --wait"
            )
        time.sleep(min(_POLL_SECONDS, left))


def _acquire(wanted: tuple[Lock, ...], since: float, held: ExitStack) -> Lock | None:
    """Take each lock; the first that is not free, if any, is returned."""
    for lock in wanted:
        if not lock.try_acquire(since):
            return lock
        held.callback(lock.release)
    return None
