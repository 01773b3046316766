"""Paths that another user of the machine may prepare or change: whose links and files count."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LINKS_MAX: Final = 40  # as in the kernel
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class ForeignLinkError(PermissionError):
    """A symbolic link of another user that stands in the way."""

    def __init__(self, path: Path, owner: int) -> None:
        super().__init__(
            errno.EPERM, f"the symbolic link {path} of {user_name(owner)} is not followed"
        )


def is_ours(user: int) -> bool:
    """Whether a user id is that of this process or of root: what they prepare is believed."""
    return user in (0, os.geteuid())


def user_name(user: int) -> str:
    """Return the name of a user, or `#1000` where the id has none."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"


def changed_by_others(path: Path) -> str | None:
    """Return why users other than this one and root can change a file; None where they cannot.

    They can if it, its folder or a link to it is theirs, or lets them write. OSError where it
    cannot be looked at.
    """
    try:
        with entry_of(path) as entry:
            file, folders = entry.status, [path.parent.stat(), os.fstat(entry.folder)]
    except ForeignLinkError as error:
        return str(error.strerror)
    if file is None:
        return None
    if not is_ours(file.st_uid):
        return f"it belongs to {user_name(file.st_uid)}"
    if stat.S_ISREG(file.st_mode) and (writer := _writer(file)):
        return f"{writer} may write to it"
    for folder in folders:
        if not is_ours(folder.st_uid):
            return f"its folder belongs to {user_name(folder.st_uid)}"
        if not folder.st_mode & stat.S_ISVTX and (writer := _writer(folder)):
            return f"{writer} may write to its folder"
    return None


def _writer(status: os.stat_result) -> str | None:
    """Return who may write besides the owner, if anybody.

    A group of this user alone is no one else: with umask 002 it may write what a user makes.
    """
    if status.st_mode & stat.S_IWOTH:
        return "every user"
    if not status.st_mode & stat.S_IWGRP or status.st_gid == 0:
        return None
    try:
        group = grp.getgrgid(status.st_gid)
        user = pwd.getpwuid(os.geteuid())
    except KeyError:
        return f"group #{status.st_gid}"
    private = (group.gr_name, group.gr_gid) == (user.pw_name, user.pw_gid)
    if private and set(group.gr_mem) <= {user.pw_name}:
        return None
    return f"group {group.gr_name}"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a path leads to: a name in a folder that is open."""

    folder: int
    name: str
    status: os.stat_result | None
    """None where nothing is there. That of a link where it is not followed: see `entry_of`."""
    descriptor: int | None
    """The descriptor of this process that the path names, as /dev/stdout does."""


@contextmanager
def entry_of(path: Path) -> Iterator[Entry]:
    """Follow the links of this user and of root, and no others; the folder is closed at the end.

    A link of another user, or in a loop, is not followed where it is the last part of the path,
    and is ForeignLinkError before. Each step starts from an open folder, so that nobody can
    exchange one after it was checked. OSError where a folder is missing or closed to this user.
    """
    walk = _Walk(path)
    try:
        yield walk.end()
    finally:
        os.close(walk.folder)


class _Walk:
    def __init__(self, path: Path) -> None:
        self.at, self.folder = Path("/"), os.open("/", _FOLDER)
        self.todo = list(reversed((Path.cwd() / path).parts[1:])) or ["."]
        self.links = 0

    def end(self) -> Entry:
        while True:
            name = self.todo.pop()
            status, target = self._look(name)
            if status is not None and target is not None:
                if is_ours(status.st_uid) and name.isdecimal() and self._among_descriptors():
                    return Entry(self.folder, name, status, int(name))
                if is_ours(status.st_uid) and self.links < _LINKS_MAX:
                    self._follow(target)
                    continue
                if self.todo:
                    raise ForeignLinkError(self.at / name, status.st_uid)
            if not self.todo:
                return Entry(self.folder, name, status, None)
            self._enter(name)

    def _look(self, name: str) -> tuple[os.stat_result | None, str | None]:
        """Return what has the name in the folder, and where it leads if it is a link."""
        try:
            found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder)
        except FileNotFoundError:
            return None, None
        try:
            status = os.fstat(found)
            link = stat.S_ISLNK(status.st_mode)
            return status, os.readlink("", dir_fd=found) if link else None
        finally:
            os.close(found)

    def _among_descriptors(self) -> bool:
        return os.path.samestat(os.fstat(self.folder), Path("/proc/self/fd").stat())

    def _follow(self, target: str) -> None:
        self.links += 1
        self.todo += [part for part in reversed(target.split("/")) if part] or ["."]
        if target.startswith("/"):
            self._enter("/")

    def _enter(self, name: str) -> None:
        folder = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self.folder)
        os.close(self.folder)
        self.at, self.folder = self.at / name, folder
