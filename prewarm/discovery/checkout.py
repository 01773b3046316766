"""Reads files of a repository's working tree, and nothing outside of it.

As GitLab reads them: from the root, whatever the including file's folder is, and no symbolic link
is followed (in git such a file holds the name of its target, not its contents).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_ENTRIES_MAX: Final = 50_000
"""Files and folders looked at for one pattern."""


class Unavailable(Exception):  # noqa: N818 - the name says what the file is
    """A file of the repository that cannot be read, with the cause and the cure."""

    def __init__(self, problem: str, cure: str) -> None:
        super().__init__(f"{problem}; {cure}")
        self.problem = problem
        self.cure = cure


class Checkout:
    """The files below a folder. Paths are relative to it, with `/` between their parts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str, most: int) -> bytes:
        """Return the contents, at most one byte more than so many; raises Unavailable."""
        parts = _parts(path)
        at = self.root
        try:
            for part in parts:
                at = at / part
                if stat.S_ISLNK(at.lstat().st_mode):
                    raise Unavailable(
                        "is or lies behind a symbolic link, which GitLab does not follow",
                        "include the file it points at",
                    )
            # Not blocking: whoever opens a named pipe would wait for its writer.
            handle = os.open(at, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise Unavailable("is no regular file", "include a file")
                return file.read(most + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise Unavailable("does not exist", "correct the path or add the file") from None
        except IsADirectoryError:
            raise Unavailable("is a folder", f"include the files in it: {path}/*.yml") from None
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or "cannot be read"
            raise Unavailable(cause.lower(), "let the user who runs prewarm read it") from None

    def match(self, pattern: str) -> tuple[str, ...]:
        """Return the files that a pattern of `include: local` means, sorted.

        `*` stands for anything but `/`, `**` for anything (GitLab: search_files_by_wildcard_path).
        Raises Unavailable where the pattern leads outside or looks at too many files.
        """
        parts = _parts(pattern)
        fixed = parts[: next((n for n, part in enumerate(parts) if "*" in part), len(parts))]
        pieces = re.split(r"(\*+)", "/".join(parts))
        found: list[str] = []
        seen = 0
        start = self.root.joinpath(*fixed)
        if any(self.root.joinpath(*fixed[: n + 1]).is_symlink() for n in range(len(fixed))):
            return ()
        for folder, folders, files in os.walk(start):
            folders[:] = [name for name in folders if name != ".git"]
            seen += len(folders) + len(files)
            if seen > _ENTRIES_MAX:
                raise Unavailable(
                    f"looks through more than {_ENTRIES_MAX} files", "name the folder more exactly"
                )
            inside = Path(folder).relative_to(self.root)
            paths = ((inside / name).as_posix() for name in files)
            found += (path for path in paths if _matches(pieces, path))
        return tuple(sorted(found))


def find_root(file: Path) -> Path:
    """Return the root of the git checkout that the file lies in, else the file's folder."""
    folder = file.absolute().parent
    for candidate in (folder, *folder.parents):
        if (candidate / ".git").exists():
            return candidate
    return folder


def _parts(path: str) -> tuple[str, ...]:
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in path or not parts:
        raise Unavailable("leads out of the repository", "write the path from the root")
    if parts[0] == ".git":
        raise Unavailable("is git's own", "include a file of the repository")
    return parts


def _matches(pieces: Sequence[str], path: str) -> bool:
    """Whether the path fits, in time that no pattern can make long (as a regex could)."""
    at = {0}
    for piece in pieces:
        if "*" not in piece:
            at = {n + len(piece) for n in at if path.startswith(piece, n)}
        elif len(piece) > 1:
            at = set(range(min(at), len(path) + 1)) if at else at
        else:
            at = {end for n in at for end in range(n, _slash(path, n) + 1)}
    return len(path) in at


def _slash(path: str, start: int) -> int:
    end = path.find("/", start)
    return len(path) if end < 0 else end
