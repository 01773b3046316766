"""What a run keeps beside the state: a private folder for its length.

The folder of the state may be a home folder: nothing is removed there that does not carry our mark.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Final

from prewarm.core.errors import UsageError

log = logging.getLogger("prewarm")

_PREFIX: Final = ".prewarm-run-"
_MARK: Final = "made-by-prewarm"
_MARK_TEXT: Final = b"A private folder of a run of prewarm; it is removed at its end.\n"


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """Make a folder that only this user may enter, and remove it at the end.

    What runs that were killed left in `parent` is removed first: real folders of this user with our
    mark, which no living process has locked. UsageError where none can be made.
    """
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(parent)
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = _marked(path)
    except OSError as error:
        raise UsageError(
            "state",
            f"no private folder can be made in {parent}: {error.strerror}",
            "make room there, or let this user write to it",
        ) from error
    try:
        yield path
    finally:
        rmtree(path, ignore_errors=True)
        os.close(lock)


def _marked(path: Path) -> int:
    """Lock a new mark in the folder, and only then write it: an empty one is never believed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with ExitStack() as undo:
        undo.callback(rmtree, path, ignore_errors=True)
        lock = os.open(path / _MARK, flags, 0o600)
        undo.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, _MARK_TEXT)
        undo.pop_all()
    return lock


def _sweep(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if _is_own_folder(path) and _is_left(path):
                rmtree(path, ignore_errors=True)  # follows no links


def _is_own_folder(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _is_left(path: Path) -> bool:
    """Whether the folder carries our mark, and the process that made it is gone."""
    mark = os.open(path / _MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.read(mark, len(_MARK_TEXT) + 1) == _MARK_TEXT
    finally:
        os.close(mark)
