"""Delivers a notice: as the standard input of a command, or by POST to a webhook."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Final
from urllib.parse import urlsplit

from prewarm.core.child_env import CERTIFICATES, PROXIES, chosen
from prewarm.core.errors import PrewarmError, RegistryError
from prewarm.registry.transport import Transport, dispose

log = logging.getLogger("prewarm")

TIMEOUT: Final = 30.0
"""Seconds that a command or a webhook may take."""
_OUTPUT_MAX: Final = 4096
"""Bytes of a command's output that are logged."""
_SLICE: Final = 0.1
"""Seconds after which it is looked whether the run is to end."""
_RUN_ENDS: Final = "was not waited for: the run ends"
_PASSED_ON: Final = PROXIES | CERTIFICATES | {"HOME", "USER", "LOGNAME", "LANG", "LC_ALL"}


def run_command(
    command: Sequence[str],
    text: bytes,
    environ: Mapping[str, str],
    stop: threading.Event,
    timeout: float = TIMEOUT,
) -> None:
    """Start the command, without a shell, with the text as its standard input.

    Of the environment it gets paths, language, proxies and CAs, no token. PrewarmError where it
    does not start, fails, takes longer than `timeout` seconds, or is at work when the run is to
    end (`stop`); then its processes are killed.
    """
    name = command[0]
    try:
        # In memory: a full disk is what a notice may be about.
        given = os.memfd_create("notice")
        with os.fdopen(given, "w+b") as stdin:
            stdin.write(text)
            stdin.seek(0)
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=chosen(environ, _PASSED_ON),
                start_new_session=True,
            )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it has a null byte"
        raise _failed(f"command {name} does not start: {reason}") from error
    said = bytearray()
    reader = threading.Thread(target=_read, args=(process.stdout, said), name="said", daemon=True)
    reader.start()
    try:
        code = _waited_for(process, name, stop, timeout)
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(_SLICE)  # not longer: a child that was left behind may have its output still
        for line in filter(None, map(_printable, said.decode(errors="replace").splitlines())):
            log.debug("%s: %s", name, line)
    if code != 0:
        how = f"exit {code}" if code > 0 else f"signal {-code}"
        raise _failed(f"command {name} failed ({how})")


def _waited_for(
    process: subprocess.Popen[bytes], name: str, stop: threading.Event, timeout: float
) -> int:
    until = time.monotonic() + timeout
    while True:
        try:
            return process.wait(_SLICE)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                raise _failed(f"command {name} {_RUN_ENDS}") from None
            if time.monotonic() >= until:
                raise _failed(f"command {name} was ended after {timeout:g} s") from None


def _read(output: IO[bytes], said: bytearray) -> None:
    """Read all of the output, so that nobody waits for it to be read, and keep its beginning."""
    with output:
        while piece := os.read(output.fileno(), 65536):
            said.extend(piece[: _OUTPUT_MAX - len(said)])


def post(
    url: str,
    text: bytes,
    environ: Mapping[str, str],
    stop: threading.Event,
    timeout: float = TIMEOUT,
) -> None:
    """POST the JSON. PrewarmError without the URL's path and query, which may be a secret.

    TLS is verified, a proxy is that of the environment, a redirect is not followed. It is broken
    off when the run is to end (`stop`).
    """
    host = urlsplit(url).netloc
    transport = Transport("upstream", None, environ, 1, (10.0, timeout))
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SLICE):
            if stop.is_set():
                transport.cut()
                return

    watcher = threading.Thread(target=watch, name="webhook", daemon=True)
    watcher.start()
    try:
        headers = {"Content-Type": "application/json", "Accept": "*/*"}
        response = transport.send(
            "POST", url, headers, text, where="webhook", streamed=False, total=timeout
        )
        status = response.status
        dispose(response)
    except RegistryError as error:
        if error.code != "interrupted":
            raise _failed(error.text) from None
        raise _failed(f"webhook: {host} {_RUN_ENDS}") from None
    finally:
        over.set()
        watcher.join()
        transport.close()
    if not 200 <= status < 300:
        moved = "; a redirect is not followed" if 300 <= status < 400 else ""
        raise _failed(f"webhook: {host} answered {status}{moved}")


def _failed(text: str) -> PrewarmError:
    return PrewarmError("notify", f"notify.{text}", "try what notify: names by hand")


def _printable(line: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", line).strip()
