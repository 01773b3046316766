"""Fixtures that the end-to-end tests share."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest


@pytest.fixture
def supervisor() -> Iterator[socket.socket]:
    """An abstract socket, as systemd's may be."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0prewarm-test-{time.monotonic_ns()}")
        sock.settimeout(20)
        yield sock
