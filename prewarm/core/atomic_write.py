"""Files that are replaced as a whole: who reads one sees the old text or the new, never a part."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from prewarm.core.ownership import Entry, entry_of, is_ours, user_name


def replace_file(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file beside the path and put it in its place; OSError where that cannot be done.

    Without a mode an own file keeps its mode, and a new one has what the umask leaves. The target
    of a link is replaced, not the link, if the link belongs to this user or to root; a link of
    another user is replaced itself. What is no file, as /dev/stdout, is written to.
    """
    with entry_of(path) as entry:
        if entry.descriptor is not None:
            with os.fdopen(entry.descriptor, "wb", closefd=False) as out:
                out.write(content)
        elif entry.status is None or stat.S_IFMT(entry.status.st_mode) in (stat.S_IFREG, _LINK):
            _replace(entry, content, mode)
        else:
            _write_to(entry, content)


_LINK = stat.S_IFLNK


def _replace(entry: Entry, content: bytes, mode: int | None) -> None:
    folder, before = entry.folder, entry.status
    if mode is None and before and stat.S_ISREG(before.st_mode) and before.st_uid == os.geteuid():
        mode = stat.S_IMODE(before.st_mode)
    made = f".{entry.name[:200]}.{secrets.token_hex(4)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(made, flags, 0o666 if mode is None else mode & 0o666, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if mode is not None:
                os.fchmod(descriptor, mode)
        os.replace(made, entry.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(made, dir_fd=folder)
        raise


def _write_to(entry: Entry, content: bytes) -> None:
    """Write to a device, or to a pipe of this user or of root, whoever reads it."""
    there = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry.folder)
    try:
        status = os.fstat(there)
        if not stat.S_ISCHR(status.st_mode) and not is_ours(status.st_uid):
            text = f"it is no file, and belongs to {user_name(status.st_uid)}"
            raise PermissionError(errno.EPERM, text)
        with Path(f"/proc/self/fd/{there}").open("wb") as out:
            out.write(content)
    finally:
        os.close(there)
