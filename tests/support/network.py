"""Addresses of this machine that are not loopback addresses."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

OURS: set[str] = set()
"""The addresses that tests have given to this machine."""


@contextmanager
def far_address() -> Iterator[str]:
    """An address of this machine that is no loopback address: nothing sent to it leaves."""
    address = f"198.18.{os.getpid() % 256}.{random.randint(1, 254)}"
    change = ["ip", "address", "add", f"{address}/32", "dev", "lo"]
    subprocess.run(change, check=True, capture_output=True)
    OURS.add(address)
    try:
        yield address
    finally:
        OURS.discard(address)
        change[2] = "delete"
        subprocess.run(change, check=True, capture_output=True)
