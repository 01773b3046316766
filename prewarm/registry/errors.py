"""What it means when a registry answers with an error: a code, a cause and a cure.

Nothing of a server's own words reaches the texts but the error code of the distribution
specification: a message may echo what was sent, and that may be a secret.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Role = Literal["upstream", "mirror"]
Request = Literal["head", "manifest", "tags", "blob", "put", "upload", "delete"]

_SHARED: Final = frozenset({"not-found", "bad-digest", "invalid-name"})
"""Codes that say the same of an upstream and of a mirror."""
_NO_SPACE = re.compile(
    rb'no space left|disk quota exceeded|"Err"\s*:\s*(?:28|122)\b', re.IGNORECASE
)
_READ_ONLY = re.compile(rb'read-only file system|"Err"\s*:\s*30\b', re.IGNORECASE)
_NO_RIGHT = re.compile(rb'permission denied|"Err"\s*:\s*(?:1|13)\b', re.IGNORECASE)
BAD_UPLOAD: Final = (
    "check the network, and a proxy before the mirror, for what alters uploads; run again"
)
_QUOTA = re.compile(rb"pull rate limit|TOOMANYREQUESTS", re.IGNORECASE)
_TLS_PORT = re.compile(rb"HTTP request (?:was sent )?to an? HTTPS (?:server|port)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Code without the role's prefix, text without the thing it is about, and the cure."""

    code: str
    text: str
    cure: str


def role_code(role: Role, code: str) -> str:
    """Return the code as it is reported: a mirror's own failures are told from an upstream's."""
    return code if role == "upstream" or code in _SHARED else f"mirror-{code}"


def login_cure(host: str, authfile: Path | None = None) -> str:
    """Return how a person stores credentials for the host, in the authfile that is in use."""
    option = f"--authfile {shlex.quote(str(authfile))} " if authfile else ""
    return f"log in: skopeo login {option}{host}"


def error_code(body: bytes) -> str:
    """Return the first error code of the body (distribution-spec, error codes), or nothing."""
    try:
        code = json.loads(body)["errors"][0]["code"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return code if isinstance(code, str) and re.fullmatch(r"[A-Z_]{1,40}", code) else ""


def refusal(
    role: Role,
    request: Request,
    status: int,
    body: bytes,
    *,
    host: str,
    user: str | None,
    basic: bool = False,
    login: str | None = None,
) -> Refusal:
    """Return what the answer means; `user` is who asked, None when anonymous.

    `basic` says that it came with a challenge for a password: it is then about the user and not
    about the repository. `login` is the cure where a login is lacking.
    """
    login = login or login_cure(host)
    if _TLS_PORT.search(body) and status == 400:
        return Refusal("tls", "speaks TLS, but was asked over plain http", "write https:// there")
    if status == 404 and request == "blob":
        text = "blob not found, though the manifest names it"
        return Refusal("not-found", text, "push the image there again, or pin another tag of it")
    if status == 404 and role == "mirror" and request in {"put", "upload"}:
        # Nothing has to exist for a write: it is the mirror that is wrong, never the image.
        return Refusal(
            "bad-answer",
            "answered 404 to a write",
            "pass /v2/ on in the proxy before it; replicas need one storage and one http.secret",
        )
    if status == 404:
        return Refusal("not-found", "does not exist", "check the name and the tag")
    if status in {401, 403}:
        if basic and role == "upstream" and status == 401:
            refused = "wants credentials" if user is None else f"refused the password of {user}"
            return Refusal("unauthorized", refused, login)
        return _forbidden(role, request, status, login, user)
    if status == 429:
        return _too_many(request, body)
    if role == "mirror" and (found := _mirror(request, status, body)):
        return found
    noted = f" ({error_code(body)})" if error_code(body) else ""
    if status >= 500:
        return Refusal(
            "server-error", f"answered {status}{noted}", f"try later, or look at {host}'s own log"
        )
    return Refusal("bad-answer", f"answered {status}{noted}", f"check what {host} is and its log")


def _forbidden(role: Role, request: Request, status: int, login: str, user: str | None) -> Refusal:
    if role == "mirror":
        writes = request in {"put", "upload", "delete"}
        if status == 403 and writes:
            who = user or "an anonymous client"
            return Refusal(
                "denied", f"denied: {who} may not push there (403)", "give it the right to push"
            )
        if user is None:
            return Refusal("unauthorized", "wants credentials", login)
        what = "may not be written" if writes else "may not be read"
        return Refusal(
            "unauthorized",
            f"{what} by {user} ({status})",
            f"give it the right, or {login}",
        )
    # Docker Hub answers so for a repository that does not exist as for one that is not shown.
    if user is None:
        return Refusal(
            "not-found",
            "no such repository, or it is private",
            f"check the name, or {login}",
        )
    return Refusal(
        "not-found",
        f"no such repository, or it is private and {user} may not pull it",
        f"check the name, or let {user} pull it",
    )


def _too_many(request: Request, body: bytes) -> Refusal:
    if request == "manifest" and _QUOTA.search(body):
        return Refusal(
            "upstream-quota",
            "the pull rate limit is reached (429)",
            "wait for the window, log in, or lower the budget and raise its reserve",
        )
    return Refusal(
        "abuse-limit", "too many requests (429)", "lower limits.checks or limits.heads_per_minute"
    )


def _mirror(request: Request, status: int, body: bytes) -> Refusal | None:
    """Return what registry:2 says about its storage and its mode (measured on 2.8.2)."""
    if status == 507 or (status >= 500 and _NO_SPACE.search(body)):
        cure = "free or add disk on it; broken uploads lie in the _uploads folders of its storage"
        return Refusal("full", "has no space left", cure)
    if request == "manifest" and status >= 500 and _QUOTA.search(body):
        # A pull-through cache hides the 429 that it met (measured on 2.8.2).
        return _too_many(request, body)
    if status >= 500 and _READ_ONLY.search(body):
        return Refusal(
            "read-only", "its file system is read-only", "remount it; the disk may be failing"
        )
    if request == "upload" and status >= 500 and _NO_RIGHT.search(body):
        return Refusal(
            "denied",
            "permission denied: it cannot write to this folder of its storage",
            "chown the folder to the user it runs as (garbage-collect as root leaves such folders)",
        )
    if request == "upload" and status == 400 and error_code(body) == "DIGEST_INVALID":
        text = "received other bytes than were sent (digest invalid)"
        return Refusal("bad-upload", text, BAD_UPLOAD)
    if status == 405 and error_code(body) == "UNSUPPORTED":
        if request == "delete":
            return Refusal(
                "delete-disabled",
                "deletes nothing",
                "set storage.delete.enabled: true in the registry's configuration, or "
                "REGISTRY_STORAGE_DELETE_ENABLED=true, and restart it",
            )
        return Refusal(
            "proxy",
            "is a pull-through proxy and takes no push",
            "use a registry without proxy: for a mirror",
        )
    if status == 405:
        return Refusal(
            "read-only",
            "is in read-only mode",
            "end storage.maintenance.readonly in its configuration",
        )
    if request == "put" and error_code(body) == "MANIFEST_BLOB_UNKNOWN":
        return Refusal(
            "incomplete",
            "refused a manifest of which it lacks parts",
            "copy the image again: prewarm verify --repair",
        )
    return None
