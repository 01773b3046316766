"""Delivers a notice: as the standard input of a command, or by POST to a webhook."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from prewarm.errors import PrewarmError, RegistryError
from prewarm.transport import Transport, dispose

log = logging.getLogger("prewarm")

TIMEOUT: Final = 30.0
"""Seconds that a command or a webhook may take."""
_OUTPUT_MAX: Final = 4096
"""Bytes of a command's output that are logged."""
_PASSED_ON: Final = frozenset(
    name
    for base in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    for name in (base, base.lower())
) | {
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
}


def run_command(
    command: Sequence[str], text: bytes, environ: Mapping[str, str], timeout: float = TIMEOUT
) -> None:
    """Start the command, without a shell, with the text as its standard input.

    Of the environment it gets paths, language, proxies and CAs, no token. PrewarmError where it
    does not start, fails, or takes longer than `timeout` seconds; then its processes are killed.
    """
    name = command[0]
    env = {key: value for key, value in environ.items() if key in _PASSED_ON}
    # Files, not pipes: a command that reads nothing, or leaves a child behind, holds nobody up.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write(text)
        given.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=given, stdout=said, stderr=said, env=env, start_new_session=True
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it has a null byte"
            raise _failed(f"command {name} does not start: {reason}") from error
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise _failed(f"command {name} was ended after {timeout:g} s") from error
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            said.seek(0)
            output = said.read(_OUTPUT_MAX).decode(errors="replace")
            for line in filter(None, map(_printable, output.splitlines())):
                log.debug("%s: %s", name, line)
    if code != 0:
        how = f"exit {code}" if code > 0 else f"signal {-code}"
        raise _failed(f"command {name} failed ({how})")


def post(url: str, text: bytes, environ: Mapping[str, str], timeout: float = TIMEOUT) -> None:
    """POST the JSON. PrewarmError without the URL's path, which may be a secret.

    TLS is verified, a proxy is that of the environment, a redirect is not followed.
    """
    host = urlsplit(url).netloc
    transport = Transport("upstream", None, environ, 1, (10.0, timeout))
    # The timeouts of the transport bound each wait; this bounds them all.
    cut = threading.Timer(timeout, transport.cut)
    cut.daemon = True
    cut.start()
    try:
        headers = {"Content-Type": "application/json", "Accept": "*/*"}
        response = transport.send("POST", url, headers, text, where="webhook", streamed=False)
        status = response.status
        dispose(response)
    except RegistryError as error:
        if error.code == "interrupted":
            raise _failed(f"webhook: {host} gave no answer within {timeout:g} s") from None
        raise _failed(error.text) from None
    finally:
        cut.cancel()
        transport.close()
    if not 200 <= status < 300:
        moved = "; a redirect is not followed" if 300 <= status < 400 else ""
        raise _failed(f"webhook: {host} answered {status}{moved}")


def _failed(text: str) -> PrewarmError:
    return PrewarmError("notify", f"notify.{text}", "try what notify: names by hand")


def _printable(line: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", line).strip()
