"""Another user of this machine, who does what a test says: only root can play one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

UID = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


# All is imported first: this Python may lie in a folder that only root may enter.
_BECOME = f"""
import encodings.idna, hashlib, os, pathlib, shutil, socket, sys, time
os.setgroups([]); os.setresgid({UID}, {UID}, {UID}); os.setresuid({UID}, {UID}, {UID})
"""


@contextmanager
def stranger(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code as user and group 65534 until the end of the block.

    The block starts once the code has printed a line.
    """
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", _BECOME + code, *arguments],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline(), f"the stranger's code ended with {child.wait()}"
        yield child
    finally:
        child.kill()
        child.communicate()
