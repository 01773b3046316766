"""The home folder of the user who runs prewarm, where there is one."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path


def home_folder(environ: Mapping[str, str]) -> Path | None:
    """Return the home folder: `$HOME`, else that of the user's entry in passwd.

    None where there is neither, as for a container's user that is only a number.
    """
    if home := environ.get("HOME"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None
