"""The Hub's tokens: who asked for one, which repositories it covers, until when."""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

from tests.sandbox.wire import Request

_SCOPE = re.compile(r"repository(?:\([^)]*\))?:(?P<repository>.+):(?P<actions>[a-z*,]+)")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token stands for."""

    account: str
    """Empty for anonymous."""
    repositories: frozenset[str]
    expires: float
    """On the monotonic clock."""


class Tokens:
    """The tokens that one Hub gave out."""

    def __init__(self) -> None:
        self._grants: dict[str, Grant] = {}
        self._lock = threading.Lock()

    def issue(self, account: str, repositories: Collection[str], seconds: float) -> bytes:
        """Return the JSON answer of a token server."""
        token = secrets.token_urlsafe(24)
        grant = Grant(account, frozenset(repositories), time.monotonic() + seconds)
        with self._lock:
            self._grants[token] = grant
        answer = {"token": token, "access_token": token, "expires_in": int(seconds)}
        return json.dumps(answer).encode()

    def read(self, request: Request) -> Grant | None:
        """Return the grant of the request's Bearer token, or None where none is valid."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        grant = self._grants.get(token.strip()) if scheme.lower() == "bearer" else None
        return grant if grant is not None and grant.expires > time.monotonic() else None

    def expire(self) -> None:
        """Let every token be too old now."""
        with self._lock:
            self._grants.clear()


def asked_repositories(request: Request) -> list[str]:
    """Return the repositories whose pulling a token request asks for, in its order."""
    text = request.body.decode("latin-1") if request.method == "POST" else request.query
    scopes = " ".join(parse_qs(text).get("scope", [])).split()
    found = (_SCOPE.fullmatch(scope) for scope in scopes)
    return [scope["repository"] for scope in found if scope and "pull" in scope["actions"]]


def login(request: Request, accounts: Mapping[str, str]) -> str | None:
    """Return the account of a Basic header or a password form, empty without; None: wrong."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, word = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
    elif scheme:
        return None
    elif request.method == "POST":
        form = parse_qs(request.body.decode("latin-1"))
        name, word = form.get("username", [""])[0], form.get("password", [""])[0]
        if not name and form.get("grant_type") != ["refresh_token"]:
            return ""
    else:
        return ""
    return name if name and accounts.get(name) == word else None
