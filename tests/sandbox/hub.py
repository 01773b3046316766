"""A stand-in for Docker Hub before a real registry: tokens, quota, 429s, private repositories.

What it imitates: docs.docker.com/docker-hub/usage/pulls, the token protocol of the distribution
project (spec/auth/token.md) and what was seen at the Hub itself, as far as clients depend on it.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal, Self
from urllib.parse import parse_qs

from tests.sandbox.access import Target, read_path
from tests.sandbox.cdn import Cdn, blob_response
from tests.sandbox.client import Answer
from tests.sandbox.faults import JSON_HEADERS
from tests.sandbox.images import digest_of
from tests.sandbox.quota import Quota, Spending
from tests.sandbox.registry import Registry
from tests.sandbox.server import Server, Site
from tests.sandbox.tokens import Tokens, asked_repositories, login
from tests.sandbox.wire import Request, Response

PULL_LIMIT: Final = (
    "You have reached your pull rate limit. You may increase the limit by authenticating and "
    "upgrading: https://www.docker.com/increase-rate-limit"
)
_PASSED: Final = ("content-type", "docker-content-digest", "etag")


@dataclass(slots=True)
class Rules:
    """How the Hub behaves; every field may be changed while it runs."""

    accounts: Mapping[str, str] = field(default_factory=lambda: {"acme": "sesame"})
    """Accounts and their passwords."""
    private: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Globs of private repositories and the accounts that may read them."""
    quota: Quota | None = None
    """For each address and, unless `quotas` says otherwise, each account; None: no limit."""
    quotas: Mapping[str, Quota | None] = field(default_factory=dict)
    addresses: Sequence[str] = ()
    """Where anonymous requests for manifests seem to come from, in turn; empty: where they do."""
    report_quota: bool = True
    """Whether the ratelimit headers are sent."""
    unmetered: Collection[str] = ()
    """Globs of repositories whose pulls do not count and carry no headers (sponsored images)."""
    abuse: int | None = None
    """Requests per minute and address, HEADs and tokens too, above which all get a plain 429."""
    retry_after: int | None = None
    """Seconds, on every 429."""
    auth: Literal["token", "basic", "none"] = "token"
    realm: str | None = None
    """The URL of the token server, where it is not this Hub's own."""
    token_seconds: float = 300
    max_scopes: int | None = None
    """How many repositories one token can cover; further ones are left out."""
    blobs: Literal["redirect", "direct"] = "redirect"
    unknown_repository: Literal[401, 404] = 401
    page_size: int | None = None
    """Most tags in one answer."""


class Hub(Site):
    """Docker Hub on loopback, reading from `registry`; blobs come from `cdn`.

    Its token server is reached at `token_url`: the Hub itself or, with `token_host`, another
    loopback address. `access` has the requests to both.
    """

    def __init__(
        self,
        registry: Registry,
        rules: Rules | None = None,
        *,
        latency: float = 0.0,
        host: str = "127.0.0.1",
        cdn_host: str = "127.0.0.2",
        token_host: str | None = None,
    ) -> None:
        super().__init__(latency)
        self.registry = registry
        self.rules = rules or Rules()
        self.spending = Spending()
        self.tokens = Tokens()
        self._requests = Spending()
        self._turns = itertools.count()
        self._answers: dict[tuple[str, str, str], tuple[Answer, str | None]] = {}
        self.cdn = Cdn(registry, host=cdn_host)
        self._server = Server(self, host=host)
        self._token_server = Server(self, host=token_host) if token_host else None
        self.url = self._server.url
        self.token_url = (self._token_server or self._server).url + "/token"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()
        if self._token_server:
            self._token_server.close()
        self.cdn.close()

    def spend(self, pulls: int, account: str = "", address: str = "127.0.0.1") -> None:
        """Let other clients of the account, or of the address, use up pulls."""
        self.spending.spend(account or address, pulls)

    def remaining(self, account: str = "", address: str = "127.0.0.1") -> int | None:
        """Return the pulls that the Hub would grant now; None without a quota."""
        quota = self._quota(account)
        return None if quota is None else self.spending.remaining(account or address, quota)

    def respond(self, request: Request) -> Response:
        if self.rules.abuse is not None and not self._requests.get(
            request.client, Quota(self.rules.abuse, 60, "gets"), "", ()
        ):
            return Response(
                429, {"Content-Type": "text/plain", **self._wait()}, b"Too Many Requests"
            )
        target = read_path(request.path)
        if target.kind == "token":
            return self._token(request)
        account = self._account(request, target)
        if account is None:
            return self._challenge(request, target)
        if request.method not in ("GET", "HEAD") or target.kind == "upload":
            return _error(401, "DENIED", "requested access to the resource is denied", account)
        match target.kind:
            case "v2":
                return Response(200, JSON_HEADERS, b"{}", account=account)
            case "manifest":
                return self._manifest(request, target, account)
            case "blob":
                return self._blob(request, target, account)
            case "tags":
                return self._tags(request, target, account)
            case _:
                return _error(404, "UNSUPPORTED", "not a path of the Hub", account)

    # --- who may what ---

    def _token(self, request: Request) -> Response:
        account = login(request, self.rules.accounts)
        if account is None:
            return _error(401, "UNAUTHORIZED", "incorrect username or password")
        asked = asked_repositories(request)[: self.rules.max_scopes]
        covered = [name for name in asked if self._may_read(account, name)]
        body = self.tokens.issue(account, covered, self.rules.token_seconds)
        return Response(200, JSON_HEADERS, body, account=account)

    def _may_read(self, account: str, repository: str) -> bool:
        for pattern, accounts in self.rules.private.items():
            if fnmatchcase(repository, pattern):
                return account in accounts
        return self.rules.unknown_repository == 404 or self.registry.storage.has_repository(
            repository
        )

    def _account(self, request: Request, target: Target) -> str | None:
        """Return who asks (empty: anonymous), or None where they may not ask this."""
        if self.rules.auth == "token":
            grant = self.tokens.read(request)
            if grant is None:
                return None
            covered = not target.repository or target.repository in grant.repositories
            return grant.account if covered else None
        account = login(request, self.rules.accounts)
        if account is None or (self.rules.auth == "basic" and not account):
            return None
        allowed = not target.repository or self._may_read(account, target.repository)
        return account if allowed else None

    def _challenge(self, request: Request, target: Target) -> Response:
        if self.rules.auth == "basic":
            challenge = 'Basic realm="sandbox"'
        else:
            challenge = f'Bearer realm="{self._realm(request)}",service="registry.docker.io"'
            if target.repository:
                challenge += f',scope="repository:{target.repository}:pull"'
            if self.tokens.read(request) is not None:
                challenge += ',error="insufficient_scope"'
            elif request.headers.get("authorization"):
                challenge += ',error="invalid_token"'
        body = _error_body("UNAUTHORIZED", "authentication required")
        return Response(401, {**JSON_HEADERS, "WWW-Authenticate": challenge}, body)

    def _realm(self, request: Request) -> str:
        if self.rules.realm:
            return self.rules.realm
        if request.scheme == "http":
            return self.token_url
        if request.host.endswith("docker.io"):
            return "https://auth.docker.io/token"
        return f"https://{request.host}/token"

    # --- content ---

    def _manifest(self, request: Request, target: Target, account: str) -> Response:
        answer = self._ask(target, request.headers.get("accept", "*/*"))
        source = account or self._address(request)
        quota = self._quota(account)
        if any(fnmatchcase(target.repository, pattern) for pattern in self.rules.unmetered):
            quota = None
        if quota is not None and request.method == "GET":
            found = answer.status == 200
            granted = (
                self.spending.get(source, quota, *_identity(answer.body))
                if found
                else self.spending.remaining(source, quota) > 0
            )
            if not granted:
                headers = {**JSON_HEADERS, **self._ratelimit(source, quota), **self._wait()}
                body = _error_body("TOOMANYREQUESTS", PULL_LIMIT)
                return Response(429, headers, body, account=account)
        headers = {name.title(): answer.headers[name] for name in _PASSED if name in answer.headers}
        headers |= self._ratelimit(source, quota)
        return Response(answer.status, headers, answer.body, account=account)

    def _address(self, request: Request) -> str:
        addresses = self.rules.addresses
        return addresses[next(self._turns) % len(addresses)] if addresses else request.client

    def _ask(self, target: Target, accept: str) -> Answer:
        """Return the registry's answer, remembered while the tag or digest names the same."""
        repository, reference = target.repository, target.reference
        digest = self.registry.storage.digest(repository, reference)
        key = (repository, reference, accept)
        answer, was = self._answers.get(key, (None, None))
        if answer is None or digest is None or digest != was:
            path = f"/v2/{repository}/manifests/{reference}"
            answer = self.registry.request("GET", path, {"Accept": accept})
            self._answers[key] = (answer, digest)
        return answer

    def _blob(self, request: Request, target: Target, account: str) -> Response:
        if not self.registry.storage.blob_file(target.reference).is_file():
            return _error(404, "BLOB_UNKNOWN", "blob unknown to registry", account)
        if self.rules.blobs == "direct":
            return blob_response(self.registry, target.reference, request)
        base = self.cdn.url
        if request.scheme == "https":
            base = "https://production.cloudflare.docker.com"
        headers = {"Location": base + self.cdn.signed(target.reference)}
        return Response(307, headers, b"", account=account)

    def _tags(self, request: Request, target: Target, account: str) -> Response:
        if not self.registry.storage.has_repository(target.repository):
            return _error(404, "NAME_UNKNOWN", "repository name not known to registry", account)
        query = parse_qs(request.query)
        last = query.get("last", [""])[0]
        size = int(query["n"][0]) if "n" in query else self.rules.page_size
        if size is not None and self.rules.page_size is not None:
            size = min(size, self.rules.page_size)
        tags = [tag for tag in self.registry.tags(target.repository) if tag > last]
        page = tags[:size]
        headers = dict(JSON_HEADERS)
        if page and len(page) < len(tags):
            headers["Link"] = f'<{request.path}?last={page[-1]}&n={size}>; rel="next"'
        body = json.dumps({"name": target.repository, "tags": page}).encode()
        return Response(200, headers, body, account=account)

    # --- limits ---

    def _quota(self, account: str) -> Quota | None:
        return self.rules.quotas.get(account, self.rules.quota) if account else self.rules.quota

    def _ratelimit(self, source: str, quota: Quota | None) -> dict[str, str]:
        if quota is None or not self.rules.report_quota:
            return {}
        window = f";w={quota.window_seconds}"
        # The Hub names an anonymous client by its address and an account by its id.
        known = source in self.rules.accounts
        return {
            "ratelimit-limit": f"{quota.limit}{window}",
            "ratelimit-remaining": f"{self.spending.remaining(source, quota)}{window}",
            "docker-ratelimit-source": account_id(source) if known else source,
        }

    def _wait(self) -> dict[str, str]:
        after = self.rules.retry_after
        return {} if after is None else {"Retry-After": str(after)}


def account_id(account: str) -> str:
    """Return the id by which the Hub names an account in `docker-ratelimit-source`."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, account))


def _identity(content: bytes) -> tuple[str, list[str]]:
    """Return the digest of a manifest and the digests that it lists, if it is an index."""
    document = json.loads(content)
    return digest_of(content), [entry["digest"] for entry in document.get("manifests", ())]


def _error(status: int, code: str, message: str, account: str = "") -> Response:
    return Response(status, JSON_HEADERS, _error_body(code, message), account=account)


def _error_body(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode()
