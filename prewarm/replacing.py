"""Files that are replaced as a whole: who reads one sees the old text or the new, never a part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def replace_file(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file beside the path and put it in its place; OSError where that cannot be done.

    Without a mode it is as the umask says. What a link points to is replaced, not the link; what is
    no file, as /dev/stdout, is written to.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as out:
            out.write(content)
        return
    target = Path(os.path.realpath(path))  # Path.resolve takes a loop of links for a bug
    made = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        with made.open("xb") as file:
            file.write(content)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
        made.replace(target)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
