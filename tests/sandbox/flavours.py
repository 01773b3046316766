"""Registries other than Docker Hub, as far as their ways to authenticate a pull differ.

Each is a stand-in that behaves as its documentation and its answers to docker, skopeo and others
tell; none was asked by these tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import parse_qs

from tests.sandbox.access import Target
from tests.sandbox.faults import JSON_HEADERS
from tests.sandbox.hub import Hub, Rules
from tests.sandbox.registry import Registry
from tests.sandbox.tokens import asked_repositories, login
from tests.sandbox.wire import Request, Response


@dataclass(frozen=True, slots=True)
class Flavour:
    """How one kind of registry authenticates."""

    host: str
    """`host[:port]` of the registry."""
    realm: str = ""
    """The URL of its token server; empty: it has none, and wants the password itself."""
    service: str = ""
    basic: str = ""
    """A Basic challenge that it sends, alone or beside that for a token."""
    scope: str = ""
    """What it names as scope where nothing in particular was asked for."""
    fields: tuple[str, ...] = ("token", "access_token", "expires_in")
    """What its token server answers."""
    denies: Literal["registry", "token"] = "registry"
    """Who refuses a repository that is not there or not for the asker."""
    denial: int = 401
    """How; 404: it does not tell that there is one."""
    wrong: int = 401
    """How the token server answers a wrong password."""


class FlavouredRegistry(Hub):
    """A registry of a flavour; `access` has what its token server was asked, too."""

    def __init__(
        self,
        registry: Registry,
        flavour: Flavour,
        accounts: Mapping[str, str],
        private: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.flavour = flavour
        rules = Rules(
            accounts=accounts,
            private=private,
            auth="token" if flavour.realm else "basic",
            blobs="direct",
            unknown_repository=401 if flavour.realm else 404,
        )
        super().__init__(registry, rules)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names under which it is asked: its own and its token server's."""
        return tuple({_bare(self.flavour.host), _bare(self.token_host)} - {""})

    @property
    def token_host(self) -> str:
        return self.flavour.realm.partition("://")[2].partition("/")[0]

    def record(self, request: Request, status: int, account: str = "") -> None:
        if self._is_for_token(request):
            request = replace(request, target=f"/token?{request.query}")
        super().record(request, status, account)

    def respond(self, request: Request) -> Response:
        return self._issue(request) if self._is_for_token(request) else super().respond(request)

    def _is_for_token(self, request: Request) -> bool:
        return f"{request.scheme}://{request.host}{request.path}" == self.flavour.realm

    def _issue(self, request: Request) -> Response:
        """Answer as the token server."""
        flavour = self.flavour
        if parse_qs(request.query).get("service", [""]) != [flavour.service]:
            return _refusal(400, "UNSUPPORTED")
        account = login(request, self.rules.accounts)
        if account is None:
            return _refusal(flavour.wrong, "DENIED" if flavour.wrong == 403 else "UNAUTHORIZED")
        asked = asked_repositories(request)
        covered = [name for name in asked if self._may_read(account, name)]
        if flavour.denies == "token" and covered != asked:
            return _refusal(flavour.denial, "DENIED")
        told = json.loads(self.tokens.issue(account, covered, self.rules.token_seconds))
        body = json.dumps({field: told[field] for field in flavour.fields}).encode()
        return Response(200, JSON_HEADERS, body, account=account)

    def _challenge(self, request: Request, target: Target) -> Response:
        flavour = self.flavour
        known = self.tokens.read(request) if flavour.realm else login(request, self.rules.accounts)
        if known and (flavour.denial != 401 or not flavour.realm):
            hidden = flavour.denial == 404
            return _refusal(404, "NAME_UNKNOWN") if hidden else _refusal(403, "DENIED")
        ways = [f'Basic realm="{flavour.basic}"'] if flavour.basic else []
        if flavour.realm:
            bearer = f'Bearer realm="{flavour.realm}"'
            bearer += f',service="{flavour.service}"' if flavour.service else ""
            named = target.repository and f"repository:{target.repository}:pull"
            scope = named or flavour.scope
            ways.append(bearer + (f',scope="{scope}"' if scope else ""))
        return _refusal(401, "UNAUTHORIZED", {"WWW-Authenticate": ", ".join(ways)})


def _bare(host: str) -> str:
    return host.partition(":")[0]


def _refusal(status: int, code: str, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps({"errors": [{"code": code, "message": "requested access is denied"}]})
    return Response(status, {**JSON_HEADERS, **(headers or {})}, body.encode())
