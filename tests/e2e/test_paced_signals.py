"""A signal while HEADs wait for `limits.heads_per_minute`: the run ends, and asks no more."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.host import Host, wait_until
from tests.sandbox import Sandbox


@pytest.mark.parametrize("args", [("sync",), ("sync", "--dry-run")])
def test_command_terminated_while_heads_are_paced_ends_soon(
    box: Sandbox, tmp_path: Path, args: tuple[str, ...]
) -> None:
    host = Host(tmp_path, box)
    for number in range(4):
        box.push(f"library/app{number}", "1", single=True)
    pins = [f"app{number}:1" for number in range(4)]
    limits = {"heads_per_minute": 1}
    host.configure(pins, limits=limits, authfile=str(box.authfile()))
    with host.start(*args) as process:
        try:
            wait_until(lambda: len(box.hub.access) > 0, "request")
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 143, stderr
    assert "Traceback" not in stderr
    assert len(box.hub.access.heads()) < len(pins)
