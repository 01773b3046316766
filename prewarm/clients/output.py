"""Prints files for clients, or writes them to a folder, where other content stays."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from prewarm.clients.files import File
from prewarm.core.errors import UsageError
from prewarm.core.ownership import Entry, entry_of


def show(files: tuple[File, ...]) -> str:
    """Return what goes to stdout: one file as it is, several each after a comment with its name."""
    if len(files) == 1:
        return files[0].text
    return "\n".join(f"# {file.name}\n{file.text}" for file in files)


def write(files: tuple[File, ...], folder: Path) -> tuple[Path, ...]:
    """Write the files below the folder, mode 0644, and return those that were not there yet.

    Raises UsageError, before anything is written, where a file of another content is there.
    """
    new = tuple(file for file in files if not _is_there(folder / file.name, file.text))
    for file in new:
        _write(folder, file)
    return tuple(folder / file.name for file in new)


def _is_there(path: Path, text: str) -> bool:
    """Whether the file is there and holds the text; UsageError where it holds another."""
    try:
        with entry_of(path) as entry:
            if entry.status is None and not path.is_symlink():
                return False
            if entry.status is not None and stat.S_ISREG(entry.status.st_mode):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(entry.name, flags, dir_fd=entry.folder)
                with os.fdopen(descriptor, "rb") as file:
                    if file.read(len(text.encode()) + 1) == text.encode():
                        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UsageError("write", f"{path}: {error.strerror}", "name another folder") from error
    raise UsageError(
        "exists",
        f"{path} is there with other content, and nothing is overwritten",
        "compare both, then move it away, or name another folder with --output",
    )


def _write(folder: Path, file: File) -> None:
    path = folder / file.name
    try:
        for parent in reversed([one for one in path.parents if not one.exists()]):
            _make_folder(parent)
        with entry_of(path) as entry:
            _write_new(entry, file.text.encode())
    except OSError as error:
        raise UsageError("write", f"{path}: {error.strerror}", "name another folder") from error


def _make_folder(path: Path) -> None:
    """Make a folder that everybody may enter, whatever the umask: clients run as other users."""
    with entry_of(path) as entry:
        os.mkdir(entry.name, 0o755, dir_fd=entry.folder)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        made = os.open(entry.name, flags, dir_fd=entry.folder)
        try:
            os.fchmod(made, 0o755)
        finally:
            os.close(made)


def _write_new(entry: Entry, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(entry.name, flags, 0o644, dir_fd=entry.folder)
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(out.fileno(), 0o644)
        try:
            out.write(content)
            out.flush()
        except OSError:
            # Half a file would count as another content.
            os.unlink(entry.name, dir_fd=entry.folder)
            raise
