"""Prints files for clients, or writes them to a folder, where other content stays."""

from __future__ import annotations

import os
from pathlib import Path

from prewarm.clientfile import File
from prewarm.errors import UsageError


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
        if path.read_bytes() == text.encode():
            return True
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
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
            parent.mkdir(exist_ok=True)
            parent.chmod(0o755)  # whatever the umask: clients run as other users
        with path.open("x", encoding="utf-8", newline="\n") as out:
            os.fchmod(out.fileno(), 0o644)
            try:
                out.write(file.text)
                out.flush()
            except OSError:
                path.unlink()  # half a file would count as another content
                raise
    except OSError as error:
        raise UsageError("write", f"{path}: {error.strerror}", "name another folder") from error
