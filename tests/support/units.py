"""systemd's own judgement on unit files."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path


def assert_units_are_valid(folder: Path, names: Iterable[str]) -> None:
    """systemd knows every key and value; its exit code alone would pass an unknown one."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(f"./{name}" for name in names)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout + done.stderr
    assert [line for line in said.splitlines() if "prewarm" in line] == []
    assert done.returncode == 0, said
