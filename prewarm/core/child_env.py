"""The environment of child processes: what each kind needs, and no secret of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

PROXIES: Final = frozenset(
    name
    for base in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    for name in (base, base.lower())
)
CERTIFICATES: Final = frozenset({"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"})
_SECRET: Final = re.compile(
    r"""
    PREWARM_ | PG[A-Z]          # the tokens and passwords of prewarm and of PostgreSQL's library
    | CI_ | GITLAB_ | GITHUB_TOKEN$ | GH_TOKEN$ | ACTIONS_    # what CI gives to its jobs
    | CREDENTIALS_DIRECTORY$ | NOTIFY_SOCKET$ | WATCHDOG_ | LISTEN_     # what systemd gives to us
    """,
    re.VERBOSE,
)


def chosen(environ: Mapping[str, str], names: Iterable[str] = ()) -> dict[str, str]:
    """Return PATH, the time zone and the named variables: for a program whose needs are known."""
    wanted = {"PATH", "TZ", *names}
    return {name: value for name, value in environ.items() if name in wanted}


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the user's environment without secrets of ours.

    For programs with settings of their own, such as credential helpers (AWS_PROFILE) and engines
    (DOCKER_HOST).
    """
    return {name: value for name, value in environ.items() if not _SECRET.match(name)}
