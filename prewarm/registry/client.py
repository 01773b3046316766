"""Asks registries: manifests, tags, uploads and blobs over HTTP, with tokens, limits and retries.

The protocol is the distribution specification 1.1, tokens are those of the distribution project
(spec/auth/token). What costs a pull upstream, the GET of a manifest, is never sent again here once
it may have arrived.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Final, Generic, NoReturn, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import urllib3

from prewarm.core.budget import Limit
from prewarm.core.errors import RegistryError
from prewarm.core.manifest import (
    ACCEPT,
    MANIFEST_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    ManifestError,
    digest_of,
    valid_digest,
)
from prewarm.core.net import is_loopback
from prewarm.core.reference import is_registry
from prewarm.registry.destinations import Destinations, RefusedError, origin_of
from prewarm.registry.errors import Refusal, Request, Role, login_cure, refusal, role_code
from prewarm.registry.headers import (
    Challenge,
    content_range,
    next_link,
    parse_challenges,
    read_limit,
)
from prewarm.registry.headers import date as read_date
from prewarm.registry.headers import retry_after as read_retry_after
from prewarm.registry.login import Login
from prewarm.registry.ratelimit import RateLimit
from prewarm.registry.transport import (
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    Blob,
    Bucket,
    Reader,
    TimeOverError,
    Transport,
)

_T = TypeVar("_T")

Credentials = Callable[[str], Login | None]
"""The login for a repository of the registry, None for anonymous."""

_DOCUMENT_LIMIT: Final = 16 * 2**20
_TOKEN_LIMIT: Final = 2**20
_TRIES: Final = 6
"""Of one request, where failures come at once: a server that fails three in ten is asked enough."""
_SLOW_TRIES: Final = 3
"""Of a request that has timed out."""
_LIMITED_TRIES: Final = 3
"""Of a request that is answered 429."""
RETRY_FOR: Final = 60.0
"""Seconds after which no further try is started."""
_BACKOFF: Final = (0.2, 3.0)
_LONGEST_WAIT: Final = 30.0
LIMITED_ROW = 2
"""429s in a row that are waited for; after one more a registry is left alone for this run."""
LIMITED_FOR = 120.0
"""Seconds that a registry's 429s may make a run wait in total; then it is left alone, too."""
_LIMITED_BACKOFF: Final = (1.0, 10.0)
"""Seconds to wait after a 429 that names none."""
_ALONE: Final = frozenset({"manifest", "blob"})
"""Requests whose 429s say nothing about others: those for manifests are about the quota."""
_UPLOAD_TIME: Final = 600.0
_UPLOAD_RATE: Final = 500_000
"""Bytes a second: an upload that is slower is given up, after _UPLOAD_TIME seconds at least."""
_STORE_RATE: Final = 10_000_000
"""Bytes a second that a mirror stores at least, before it answers."""
_REDIRECTS: Final = 5
_TAG_PAGES: Final = 1000
TAGS_MAX = 200_000
"""Tags of one repository."""
TAGS_BYTES = 2 * _DOCUMENT_LIMIT
"""Bytes of all the pages of a list of tags."""
TAGS_TIME = 120.0
"""Seconds that all these pages may take."""
_TOKEN_MAX: Final = 32 * 1024
"""Characters of a token: one is kept for each repository."""
_SCOPES_PER_TOKEN: Final = 20
_TOKENS_AT_ONCE: Final = 8
_CHUNK: Final = 256 * 1024
_RETRIED_CODES: Final = frozenset({"unreachable", "timeout", "reset"})
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_REFUSALS: Final = frozenset({400, 401, 403})
"""How a token server refuses: OAuth 2 answers 400 to a refresh token that it does not know."""
_RETRIED_STATUSES: Final = frozenset({500, 502, 503, 504})
_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
_TOKEN = re.compile(rf"[\x21-\x7e]{{1,{_TOKEN_MAX}}}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def anonymous(repository: str) -> Login | None:  # noqa: ARG001 (it is a Credentials)
    """Return no login, for every repository."""
    return None


@dataclass(frozen=True, slots=True)
class Head:
    """What a HEAD of a manifest tells, for nothing."""

    descriptor: Descriptor
    limit: Limit | None
    """What the upstream reports of its quota; None where it reports none."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer that was read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    challenges: tuple[Challenge, ...]
    url: str
    moved: bool = False
    """Whether a redirect led to another origin."""


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    fetched: float
    """By the monotonic clock."""
    expires: float
    """By the monotonic clock, a margin before the server's end."""
    shared: bool
    """Asked for many repositories at once: a server may have granted only some of them."""


@dataclass(frozen=True, slots=True)
class _Authorization:
    """The value of an Authorization header, and the token in it, if one is."""

    value: str = field(repr=False)
    token: _Token | None = None


@dataclass(frozen=True, slots=True)
class _Access:
    """What a request is about: who may do it, and how its failures are told."""

    request: Request
    repository: str
    selector: str = ""
    actions: str = "pull"


class _Question(Generic[_T]):
    """A question that many threads have and one asks: those who waited share its answer or error.

    Without that, threads that wait for a server that is down would each wait for it in turn.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answer: _T | None = None
        self._error: RegistryError | None = None
        self._failed = 0.0

    def ask(self, good: Callable[[_T], bool], fetch: Callable[[], _T]) -> _T:
        """Return the kept answer if it is good, else a new one."""
        came = time.monotonic()
        with self._lock:
            if self._answer is not None and good(self._answer):
                return self._answer
            if self._error is not None and self._failed > came:
                raise _again(self._error)
            try:
                self._answer = fetch()
            except RegistryError as error:
                self._error, self._failed = error, time.monotonic()
                raise
            return self._answer

    def tell(self, answer: _T) -> None:
        """Keep an answer that was come by otherwise."""
        with self._lock:
            self._answer = answer


def _again(error: RegistryError) -> RegistryError:
    """Return the same failure for another thread: an exception object belongs to one traceback."""
    return RegistryError(
        error.code,
        error.text,
        error.cure,
        status=error.status,
        answered=error.answered,
        retry_after=error.retry_after,
        elsewhere=error.elsewhere,
    )


class Registry:
    """One registry, upstream or mirror, for many threads.

    All methods raise RegistryError; its `answered` tells whether a pull may have been counted.
    `name` is what people know it by: `docker.io`, or a mirror's URL. `costly`: a manifest GET may
    cost a pull there, so that none is sent again that may have arrived; as with an upstream unless
    said otherwise.
    """

    def __init__(
        self,
        name: str,
        endpoint: str,
        *,
        role: Role = "upstream",
        ca: Path | None = None,
        realm: str | None = None,
        costly: bool | None = None,
        credentials: Credentials = anonymous,
        login_cure: Callable[[str], str] = login_cure,
        connections: int = 16,
        heads_per_minute: int | None = None,
        environ: Mapping[str, str] | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
        retry_for: float = RETRY_FOR,
    ) -> None:
        parts = urlsplit(endpoint)
        assert parts.scheme in {"http", "https"}
        assert parts.hostname
        self.name = name
        self.role: Role = role
        self.plain = parts.scheme == "http"
        self._host = parts.hostname
        self._origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        self._destinations = Destinations(role, self._origin, realm.lower() if realm else None)
        self._costly = role == "upstream" if costly is None else costly
        self._credentials = credentials
        self._login_cure = login_cure
        self._bucket = Bucket(heads_per_minute) if heads_per_minute else None
        self._limited = RateLimit(in_a_row=LIMITED_ROW, longest=_LONGEST_WAIT, total=LIMITED_FOR)
        self.until = inf
        """By the monotonic clock: nothing is waited for after it; what is under way is cut then."""
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._retry_for = retry_for
        self._transport = Transport(
            role,
            ca,
            os.environ if environ is None else environ,
            connections,
            (connect_timeout, read_timeout),
            origin=self._origin,
        )
        self._lock = threading.Lock()
        self._challenges: _Question[tuple[Challenge, ...]] = _Question()
        self._tokens: dict[tuple[str, str], _Question[_Token]] = {}
        self._scopes: dict[tuple[str, str], str] = {}
        self._refused: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Registry({self.name!r})"

    def close(self) -> None:
        """Close the kept connections; blobs that are still open keep theirs."""
        self._transport.close()

    def cut(self) -> None:
        """Break off what is under way and ask nothing any more: from any thread, to end a run."""
        self._transport.cut()

    def pause(self, seconds: float) -> None:
        """Wait, but not after `cut`."""
        self._transport.pause(seconds)

    def ping(self) -> None:
        """Ask the registry itself, at /v2/, once: raises RegistryError where that fails, too."""
        access = _Access("tags", "")
        answer = self._base_answer(access, tries=1)
        if answer.status >= 500:
            self._refuse(answer, access)

    # Manifests

    def head(self, repository: str, selector: str) -> Head:
        """Return descriptor and quota of a tag or digest: a HEAD, which costs no pull."""
        access = _Access("head", repository, selector)
        answer = self._ask("HEAD", access, self._manifest_path(access), accept=True)
        self._expect(answer, access, 200)
        digest = answer.headers.get("docker-content-digest", "")
        if not valid_digest(digest):
            raise self._error(
                "bad-answer",
                access,
                "a HEAD tells no Docker-Content-Digest",
                "let a proxy before the registry pass this header on",
            )
        if valid_digest(selector):
            self._same_digest(access, selector, digest)
        media_type = self._media_type(access, answer.headers.get("content-type", ""))
        size = _natural(answer.headers.get("content-length")) or 0
        return Head(Descriptor(media_type, digest, size), read_limit(answer.headers))

    def manifest(self, repository: str, selector: str) -> tuple[Manifest, Limit | None]:
        """Return the manifest of a tag or digest, verified, and the quota left.

        Upstream this is what a pull is: one GET is sent, and another only where it cannot have
        arrived (the connection was refused) or was refused by a 401, which is no pull. The token is
        fetched before it.
        """
        access = _Access("manifest", repository, selector)
        answer = self._ask(
            "GET",
            access,
            self._manifest_path(access),
            accept=True,
            limit=MANIFEST_LIMIT,
        )
        self._expect(answer, access, 200)
        declared = answer.headers.get("docker-content-digest", "")
        for digest in (selector, declared):
            if valid_digest(digest):
                algorithm = digest.partition(":")[0]
                actual = f"{algorithm}:{hashlib.new(algorithm, answer.body).hexdigest()}"
                self._same_digest(access, digest, actual)
        manifest = self._read_manifest(access, answer)
        return manifest, read_limit(answer.headers)

    def put_manifest(
        self, repository: str, selector: str, manifest: Manifest, tries: int = _TRIES
    ) -> None:
        """Store the manifest's bytes under a tag or its digest."""
        access = _Access("put", repository, selector, "pull,push")
        answer = self._ask(
            "PUT",
            access,
            self._manifest_path(access),
            headers={"Content-Type": manifest.media_type},
            body=manifest.content,
            tries=tries,
        )
        self._expect(answer, access, 200, 201, 202)
        stored = answer.headers.get("docker-content-digest", "")
        if valid_digest(stored) and stored.startswith("sha256:"):
            self._same_digest(access, manifest.digest, stored)

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Delete a manifest and with it all its tags; not-found if it is not there."""
        access = _Access("delete", repository, digest, "*")
        answer = self._ask("DELETE", access, self._manifest_path(access), tries=1)
        self._expect(answer, access, 200, 202, 204)

    def date(self) -> float | None:
        """Return the registry's own time, in seconds since the epoch; None where it tells none."""
        access = _Access("tags", "")
        return read_date(self._base_answer(access).headers)

    # Tags, uploads, blobs

    def tags(self, repository: str) -> tuple[str, ...]:
        """Return the tags of the repository in the registry's order, over all pages.

        RegistryError `bad-answer` where they are more than a repository has: in number, in bytes,
        or in the time that the pages take.
        """
        access = _Access("tags", repository)
        url = f"{self._base(access)}/tags/list?n=1000"
        seen: set[str] = set()
        tags: dict[str, None] = {}
        size, end = 0, time.monotonic() + TAGS_TIME
        while url not in seen and len(seen) < _TAG_PAGES:
            seen.add(url)
            answer = self._ask("GET", access, url, limit=_DOCUMENT_LIMIT)
            self._expect(answer, access, 200)
            size += len(answer.body)
            if size > TAGS_BYTES or time.monotonic() > end:
                break
            tags.update(dict.fromkeys(self._read_tags(access, answer.body)))
            if len(tags) > TAGS_MAX:
                break
            target = next_link(answer.headers.get("link", ""))
            if target is None:
                return tuple(tags)
            with self._refusing("bad-redirect", access):
                url = self._destinations.page(url, target)
        raise self._error("bad-answer", access, "its list of tags does not end", "name the tags")

    def probe_upload(self, repository: str) -> None:
        """Start an upload and cancel it: raises what would keep a copy from being written."""
        access = _Access("upload", repository, actions="pull,push")
        start = f"{self._base(access)}/blobs/uploads/"
        answer = self._ask("POST", access, start, body=b"")
        self._expect(answer, access, 201, 202)
        self._cancel_begun(access, start, answer)

    def begin_upload(self, repository: str, tries: int = _TRIES) -> str:
        """Begin the upload of a blob; return its URL, at our own origin."""
        access = _Access("upload", repository, actions="pull,push")
        start = f"{self._base(access)}/blobs/uploads/"
        answer = self._ask("POST", access, start, body=b"", tries=tries)
        self._expect(answer, access, 201, 202)
        return self._begun(access, start, answer)

    def send_upload(self, repository: str, upload: str, body: Iterable[bytes], size: int) -> str:
        """Send `size` bytes to an upload, once; return the URL at which it goes on."""
        access = _Access("upload", repository, actions="pull,push")
        answer = self._write("PATCH", access, upload, body, size, size)
        self._expect(answer, access, 201, 202, 204)
        return self._begun(access, upload, answer)

    def end_upload(self, repository: str, upload: str, digest: str, size: int) -> None:
        """End an upload of `size` bytes in all: they are then stored under their digest."""
        access = _Access("upload", repository, actions="pull,push")
        mark = "&" if urlsplit(upload).query else "?"
        url = f"{upload}{mark}{urlencode({'digest': digest})}"
        self._expect(self._write("PUT", access, url, b"", 0, size), access, 201, 204)

    def cancel_upload(self, repository: str, upload: str) -> None:
        """Cancel an upload; nothing is raised: the registry purges what is left of it."""
        self._cancel_upload(_Access("upload", repository, actions="pull,push"), upload)

    def _write(
        self,
        method: str,
        access: _Access,
        url: str,
        body: bytes | Iterable[bytes],
        length: int,
        stored: int,
    ) -> _Answer:
        """Send a body once. The mirror may take its time to store, hash or move so many bytes."""
        authorization = self._authorization(access, None)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        if authorization is not None:
            headers["Authorization"] = authorization.value
        response = self._transport.send(
            method,
            url,
            headers,
            body,
            where=self._where(access),
            streamed=True,
            total=_UPLOAD_TIME + stored / _UPLOAD_RATE,
            patience=stored / _STORE_RATE,
        )
        return self._read(access, response, url, _TOKEN_LIMIT)

    def mount_blob(self, repository: str, digest: str, origin: str) -> bool:
        """Have a blob of another repository of this registry in this one, too; false if it cannot.

        A registry that does not mount begins an upload instead, which is cancelled.
        """
        access = _Access("upload", repository, actions="pull,push")
        start = f"{self._base(access)}/blobs/uploads/"
        query = urlencode({"mount": digest, "from": f"{self._prefix}{origin}"})
        answer = self._ask("POST", access, f"{start}?{query}", body=b"")
        self._expect(answer, access, 201, 202)
        if answer.status == 202:
            self._cancel_begun(access, start, answer)
        return answer.status == 201

    def put_blob(self, repository: str, content: bytes) -> None:
        """Store a small blob under its sha256 digest, in one request after the upload's start."""
        access = _Access("upload", repository, actions="pull,push")
        start = f"{self._base(access)}/blobs/uploads/"
        answer = self._ask("POST", access, start, body=b"")
        self._expect(answer, access, 201, 202)
        upload = self._begun(access, start, answer)
        mark = "&" if urlsplit(upload).query else "?"
        url = f"{upload}{mark}{urlencode({'digest': digest_of(content)})}"
        sent = {"Content-Type": "application/octet-stream"}
        try:
            answer = self._ask("PUT", access, url, headers=sent, body=content, tries=1)
            self._expect(answer, access, 201, 204)
        except RegistryError:
            self._cancel_upload(access, upload)
            raise

    def _begun(self, access: _Access, start: str, answer: _Answer) -> str:
        """Return the URL of an upload that was begun, at our own origin."""
        with self._refusing("bad-redirect", access):
            return self._destinations.upload(start, answer.headers.get("location", ""))

    def _cancel_begun(self, access: _Access, start: str, answer: _Answer) -> None:
        self._cancel_upload(access, self._begun(access, start, answer))

    def _cancel_upload(self, access: _Access, location: str) -> None:
        # Behind a proxy that ends TLS a registry may name the wrong scheme or port.
        parts = urlsplit(location)
        own = self._origin + urlunsplit(("", "", parts.path, parts.query, ""))
        with suppress(RegistryError):
            self._ask("DELETE", access, own, tries=1)

    def blob_size(self, repository: str, digest: str, tries: int = _TRIES) -> int | None:
        """Return the bytes of a blob, None if the repository has it not: a HEAD."""
        access = _Access("blob", repository, digest)
        answer = self._ask("HEAD", access, self._blob_path(access), tries=tries)
        if answer.status == 404:
            return None
        self._expect(answer, access, 200)
        size = _natural(answer.headers.get("content-length"))
        if size is None:
            raise self._error(
                "bad-answer", access, "a HEAD tells no Content-Length", "check the registry"
            )
        return size

    def open_blob(self, repository: str, digest: str, start: int = 0) -> Blob:
        """Return the blob from byte `start` on, streamed; redirects are followed, close it.

        Another origin is never given our credentials, and TLS is never left for plain HTTP.
        """
        access = _Access("blob", repository, digest)
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        path = self._blob_path(access)
        opened = self._authorized("GET", access, path, headers, blob=True)
        if isinstance(opened, _Answer):
            self._refuse(opened, access)
        response, url = opened
        reader = self._transport.reader(response, url, self._where(access))
        try:
            return self._blob(access, reader, start)
        except BaseException:
            reader.close()
            raise

    def _blob(self, access: _Access, reader: Reader, start: int) -> Blob:
        response = reader.response
        if response.status == 206:
            found = content_range(response.headers.get("content-range", ""))
            if found is None or found[0] != start:
                raise self._error(
                    "bad-answer", access, "it sent another part than asked", "check the registry"
                )
            return Blob(reader, found[1])
        size = _natural(response.headers.get("content-length"))
        return Blob(reader, size, skip=start)

    # Tokens

    def authorize(self, repositories: Iterable[str]) -> None:
        """Fetch tokens to pull from the repositories, up to 20 by one; never needed, only faster.

        Nothing is raised: what fails here is asked again, repository by repository, when needed.
        """
        try:
            bearer = self._challenge(_Access("head", ""), "bearer")
        except RegistryError:
            return
        if bearer is None:
            return
        by_login: dict[Login | None, list[str]] = {}
        for repository in dict.fromkeys(repositories):
            try:
                by_login.setdefault(self._login(repository), []).append(repository)
            except RegistryError:
                continue
        batches = [
            (login, group[first : first + _SCOPES_PER_TOKEN])
            for login, group in by_login.items()
            for first in range(0, len(group), _SCOPES_PER_TOKEN)
        ]
        if batches:
            with ThreadPoolExecutor(min(len(batches), _TOKENS_AT_ONCE), "token") as pool:
                list(pool.map(lambda batch: self._authorize(bearer, *batch), batches))

    def _authorize(self, bearer: Challenge, login: Login | None, repositories: list[str]) -> None:
        accesses = [_Access("head", repository) for repository in repositories]
        scopes = [self._scope(access) for access in accesses]
        try:
            token = self._fetch_token(accesses[0], bearer, login, scopes)
        except RegistryError:
            return
        for scope in scopes:
            self._kept(bearer, scope).tell(token)

    def _scope(self, access: _Access) -> str:
        """Return the scope to ask a token for: as specified, unless the registry named another."""
        own = f"repository:{self._prefix}{access.repository}:{access.actions}"
        return self._scopes.get((access.repository, access.actions), own)

    def _base_answer(self, access: _Access, tries: int = _TRIES) -> _Answer:
        """Ask /v2/ without credentials."""
        return self._attempts(
            access, tries, lambda: self._follow("GET", f"{self._origin}/v2/", {}, access)
        )

    def _challenge(self, access: _Access, scheme: str) -> Challenge | None:
        """Return how the registry wants to be authenticated to, as it says at /v2/; asked once."""

        def fetch() -> tuple[Challenge, ...]:
            answer = self._base_answer(access)
            if self._refusal(answer, access).code == "tls":
                self._refuse(answer, access)
            return answer.challenges if answer.status == 401 else ()

        challenges = self._challenges.ask(lambda _: True, fetch)
        return next((found for found in challenges if found.scheme == scheme), None)

    def _authorization(
        self, access: _Access, stale: _Authorization | None
    ) -> _Authorization | None:
        """Return how to authorize the request, None where that is not wanted.

        `stale` is what was just refused. Errors here come before the request proper: nothing was
        counted yet.
        """
        try:
            bearer = self._challenge(access, "bearer")
            if bearer is not None:
                token = self._token(access, bearer, stale.token if stale else None)
                return _Authorization(f"Bearer {token.value}", token)
            basic = self._challenge(access, "basic")
            login = self._credentials(access.repository) if basic is not None else None
            if login is None:
                return None
            if self._exposed:
                self._plain_credentials(access)
            return _Authorization(_basic(login))
        except RegistryError as error:
            error.answered = False
            raise

    def _token(self, access: _Access, bearer: Challenge, stale: _Token | None) -> _Token:
        """Return a token for the access: the kept one, or a new one that one thread fetches."""
        scope = self._scope(access)
        return self._kept(bearer, scope).ask(
            lambda kept: kept.expires > time.monotonic() and kept is not stale,
            lambda: self._fetch_token(access, bearer, self._login(access.repository), [scope]),
        )

    def _kept(self, bearer: Challenge, scope: str) -> _Question[_Token]:
        with self._lock:
            return self._tokens.setdefault((bearer.parameters.get("realm", ""), scope), _Question())

    def _login(self, repository: str) -> Login | None:
        """Return the login to fetch a token with; none where the token would go in the clear."""
        return None if self._exposed else self._credentials(repository)

    @property
    def _exposed(self) -> bool:
        return self.plain and not is_loopback(self._host)

    def _fetch_token(
        self, access: _Access, bearer: Challenge, login: Login | None, scopes: list[str]
    ) -> _Token:
        with self._refusing("bad-answer", access):
            realm = self._destinations.token_server(bearer.parameters.get("realm", ""))
        if login is not None and not self._destinations.shows_login(realm):
            login = None
        if login is not None and (realm, login.username) in self._refused:
            self._credentials_refused(access)
        began = time.monotonic()
        service = bearer.parameters.get("service", "")
        answer = self._attempts(
            access, _TRIES, lambda: self._request_token(access, realm, service, login, scopes)
        )
        if answer.status != 200:
            self._refuse_token(access, answer, realm, service, login)
        value, seconds = self._read_token(access, answer.body)
        return _Token(
            value, time.monotonic(), began + seconds - min(30.0, seconds / 6), len(scopes) > 1
        )

    def _request_token(
        self, access: _Access, realm: str, service: str, login: Login | None, scopes: list[str]
    ) -> _Answer:
        fields = [("service", service)] if service else []
        if login is not None and login.is_identity_token:
            form = [
                *fields,
                ("grant_type", "refresh_token"),
                ("client_id", "prewarm"),
                *([("scope", " ".join(scopes))] if scopes else []),
                ("refresh_token", login.secret),
            ]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return self._follow("POST", realm, headers, access, urlencode(form).encode())
        query = urlencode([*fields, *(("scope", scope) for scope in scopes)])
        url = f"{realm}{'&' if urlsplit(realm).query else '?'}{query}" if query else realm
        headers = {"Authorization": _basic(login)} if login is not None else {}
        return self._follow("GET", url, headers, access)

    def _refuse_token(
        self, access: _Access, answer: _Answer, realm: str, service: str, login: Login | None
    ) -> NoReturn:
        """Raise what the token server's refusal means; `login` is what it was shown."""
        if answer.status in _REFUSALS and login is not None:
            # Some refuse by the same words a repository and a login (ghcr.io by 403, gcr.io
            # by 401): about a token for nothing in particular they mean the login.
            plain = self._attempts(
                access, _TRIES, lambda: self._request_token(access, realm, service, login, [])
            )
            if plain.status in _REFUSALS:
                self._refused.add((realm, login.username))
                self._credentials_refused(access)
        if answer.status in {401, 403}:
            self._refuse(answer, access)
        raise self._error(
            "abuse-limit" if answer.status == 429 else "server-error",
            access,
            f"its token server {urlsplit(realm).netloc} answered {answer.status}",
            "try later, or check the realm in the registry's configuration",
            answer=answer,
        )

    def _read_token(self, access: _Access, body: bytes) -> tuple[str, float]:
        """Return the token and its seconds to live; 60 where it does not say, as specified."""
        try:
            document = json.loads(body)
            token = document.get("token") or document.get("access_token")
            seconds = document.get("expires_in")
        except (ValueError, AttributeError, RecursionError):
            token = seconds = None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise self._error(
                "bad-answer", access, "its token server sent no token", "check the realm"
            )
        lasting = isinstance(seconds, int | float) and 0 < seconds < 86400
        return token, float(seconds) if lasting else 60.0

    def _credentials_refused(self, access: _Access) -> NoReturn:
        raise self._error(
            "unauthorized",
            access,
            f"the credentials for {self._login_host} were refused",
            self.login_cure,
        )

    def _plain_credentials(self, access: _Access) -> NoReturn:
        raise self._error(
            "plain-http-credentials",
            access,
            f"{self._host} wants credentials, which never go over plain http",
            "give it TLS and write https://",
        )

    # Requests

    def _ask(
        self,
        method: str,
        access: _Access,
        url: str,
        *,
        accept: bool = False,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        limit: int = _TOKEN_LIMIT,
        tries: int = _TRIES,
    ) -> _Answer:
        """Return the answer to a request with its authorization, tried again where that is free."""
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        if accept:
            sent["Accept"] = ", ".join(ACCEPT)

        answer = self._authorized(method, access, url, sent, body, limit=limit, tries=tries)
        assert isinstance(answer, _Answer)
        return answer

    def _authorized(
        self,
        method: str,
        access: _Access,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        limit: int = _TOKEN_LIMIT,
        tries: int = _TRIES,
        blob: bool = False,
    ) -> _Answer | tuple[urllib3.BaseHTTPResponse, str]:
        """Send with its authorization; once more with a new one if a kept one was refused."""
        began = time.monotonic()
        authorization = self._authorization(access, None)
        for last in (False, True):
            sent = dict(headers)
            if authorization is not None:
                sent["Authorization"] = authorization.value
            send = partial(self._follow, method, url, sent, access, body, limit=limit)
            answer: _Answer | tuple[urllib3.BaseHTTPResponse, str]
            if blob:
                answer = self._attempts(access, tries, partial(self._open, url, sent, access))
            else:
                answer = self._attempts(access, tries, send)
            if last or not isinstance(answer, _Answer):
                break
            if not self._renewable(access, answer, authorization, began):
                break
            used, authorization = authorization, self._authorization(access, authorization)
            if authorization is None or authorization == used:
                break
        return answer

    def _renewable(
        self, access: _Access, answer: _Answer, used: _Authorization | None, began: float
    ) -> bool:
        """Whether another authorization may help where the answer refuses the one used.

        A kept token may be revoked, a shared one may not be for all; a registry that is open at
        /v2/ may challenge for some repositories, and one may name scopes in its own way.
        """
        bearer = next((found for found in answer.challenges if found.scheme == "bearer"), None)
        if used is None:
            if answer.status != 401 or not answer.challenges:
                return False
            self._challenges.tell(answer.challenges)
            return True
        if used.token is None:
            return False
        scope = bearer.parameters.get("scope", "") if bearer and answer.status == 401 else ""
        if (
            access.actions == "pull"
            and re.fullmatch(r"repository:[^\s:]{1,255}:pull", scope)
            and scope != self._scope(access)
        ):
            self._scopes[access.repository, access.actions] = scope
            return True
        kept = used.token.fetched < began
        return (answer.status == 401 and kept) or (
            answer.status in {401, 403} and used.token.shared
        )

    def _attempts(self, access: _Access, tries: int, attempt: Callable[[], _T]) -> _T:
        """Return the attempt's result; connection errors, some 5xx and 429 are tried again."""
        end = min(time.monotonic() + self._retry_for, self.until)
        for tried in range(1, tries + 1):
            if access.request not in _ALONE:
                self._wait_for_limit(end)
            if access.request == "head" and self._bucket:
                left = max(0.0, self.until - time.monotonic())
                self._transport.pause(min(self._bucket.take(), left))
            sent = time.monotonic()
            try:
                result = attempt()
            except RegistryError as error:
                wait = _backoff(tried)
                if tried == tries or time.monotonic() + wait > end:
                    raise
                if isinstance(error, TimeOverError) or not self._passes(access, error, tried):
                    raise
            else:
                asked = None
                if isinstance(result, _Answer):
                    asked = self._wait(access, result, tried, sent)
                if asked is None or tried == tries or time.monotonic() + asked > end:
                    return result
                wait = asked
            self._transport.pause(wait)
        raise AssertionError("the last try returns or raises")

    def _counts(self, access: _Access) -> bool:
        """Whether the registry may count the request as a pull once it has it."""
        return self._costly and access.request == "manifest"

    def _passes(self, access: _Access, error: RegistryError, tried: int) -> bool:
        """Whether a request without an answer is worth another try, and free to be sent again."""
        code = error.code.removeprefix("mirror-")
        if code not in _RETRIED_CODES or (self._counts(access) and error.answered):
            return False
        return code != "timeout" or tried < _SLOW_TRIES

    def _wait_for_limit(self, end: float) -> None:
        """Wait as long as the registry's 429s ask; raise where that is too long."""
        left = self._limited.left
        if self._limited.given_up or (left and time.monotonic() + left > end):
            raise RegistryError(
                role_code(self.role, "abuse-limit"),
                f"{self.name}: too many requests: it answers 429, and is left alone in this run",
                "run again later, lower limits.heads_per_minute, or log in",
                status=429,
                answered=False,
            )
        if left:
            self._transport.pause(left)

    def _wait(self, access: _Access, answer: _Answer, tried: int, sent: float) -> float | None:
        """Return the seconds after which the request is worth another try, None if it is not."""
        asked = read_retry_after(answer.headers)
        if answer.status == 429 and access.request not in _ALONE and not answer.moved:
            wait = _backoff(tried, _LIMITED_BACKOFF) if asked is None else asked
            return self._limited.left if self._limited.refused(sent, wait) else None
        self._limited.answered()
        if asked is not None and asked > _LONGEST_WAIT:
            return None
        if self._counts(access):
            return None
        if answer.status == 429:
            worth = access.request != "manifest" and tried < _LIMITED_TRIES
        else:
            worth = answer.status in _RETRIED_STATUSES
            worth = worth and self._refusal(answer, access).code == "server-error"
        if not worth:
            return None
        return _backoff(tried) if asked is None else asked

    def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        access: _Access,
        body: bytes | None = None,
        *,
        limit: int = _TOKEN_LIMIT,
    ) -> _Answer:
        """Return the answer, read, after the redirects of a GET or HEAD."""
        # As long as a few waits for bytes where there is much to send or to read.
        long = bool(body) or limit > _TOKEN_LIMIT
        total = 4 * self._read_timeout if long else self._connect_timeout + self._read_timeout
        response, last = self._redirected(method, url, headers, access, body, total=total)
        elsewhere = origin_of(last) != origin_of(url)
        with _marking(elsewhere=elsewhere):
            answer = self._read(access, response, last, limit)
        return replace(answer, moved=elsewhere)

    def _open(
        self, url: str, headers: Mapping[str, str], access: _Access
    ) -> _Answer | tuple[urllib3.BaseHTTPResponse, str]:
        """Return the unread answer to a GET and whose it is, or what was answered instead."""
        total = self._connect_timeout + 2 * self._read_timeout  # for the head of the answer
        response, url = self._redirected(
            "GET", url, headers, access, None, total=total, streamed=True
        )
        if response.status in {200, 206}:
            return response, url
        return self._read(access, response, url, _TOKEN_LIMIT)

    def _redirected(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        access: _Access,
        body: bytes | None,
        *,
        total: float,
        streamed: bool = False,
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Send, follow redirects, and return the last answer, unread, with its URL.

        The Authorization is for the first origin alone.
        """
        where, origin = self._where(access), origin_of(url)
        ends = min(time.monotonic() + total, self.until)
        bare = {name: value for name, value in headers.items() if name != "Authorization"}
        for _ in range(_REDIRECTS + 1):
            own = origin_of(url) == origin
            with _marking(elsewhere=not own):
                response = self._transport.send(
                    method,
                    url,
                    headers if own else bare,
                    body,
                    where=where,
                    streamed=streamed,
                    total=ends - time.monotonic(),
                    foreign=not self._destinations.is_named(url),
                )
                moved = response.status in _MOVED and method in {"GET", "HEAD"}
                if not moved:
                    return response, url
                self._read(access, response, url, _TOKEN_LIMIT)
            with self._refusing("bad-redirect", access):
                url = self._destinations.redirect(
                    "blob" if access.request == "blob" else "other",
                    url,
                    response.headers.get("location", ""),
                )
        raise self._error(
            "too-many-redirects", access, f"more than {_REDIRECTS} redirects", "check the registry"
        )

    def _read(
        self, access: _Access, response: urllib3.BaseHTTPResponse, url: str, limit: int
    ) -> _Answer:
        """Return the answer with its body, which may have `limit` bytes."""
        pieces: list[bytes] = []
        left = limit + 1
        reader = self._transport.reader(response, url, self._where(access))
        try:
            while left > 0 and (piece := reader.read(min(left, _CHUNK))):
                pieces.append(piece)
                left -= len(piece)
        finally:
            reader.close()
        if left <= 0 and response.status < 300:
            code = "bad-manifest" if access.request == "manifest" else "bad-answer"
            size = f"{limit // 2**20} MiB"
            raise self._error(code, access, f"it is larger than {size}", "it cannot be mirrored")
        challenges = parse_challenges(response.headers.getlist("www-authenticate"))
        headers = {name.lower(): value for name, value in response.headers.items()}
        return _Answer(response.status, headers, b"".join(pieces), challenges, url)

    # What answers mean

    def _expect(self, answer: _Answer, access: _Access, *statuses: int) -> None:
        if answer.status not in statuses:
            self._refuse(answer, access)

    def _refusal(self, answer: _Answer, access: _Access) -> Refusal:
        login = self._login(access.repository) if answer.status in {401, 403} else None
        return refusal(
            self.role,
            access.request,
            answer.status,
            answer.body,
            host=self._login_host,
            user=login.username if login else None,
            basic=any(challenge.scheme == "basic" for challenge in answer.challenges),
            login=self.login_cure,
        )

    def _refuse(self, answer: _Answer, access: _Access) -> NoReturn:
        """Raise what the answer means, which was not what was wanted."""
        if answer.status in {401, 403}:
            self._tell_withheld(access)
        found = self._refusal(answer, access)
        raise self._error(found.code, access, found.text, found.cure, answer=answer)

    def _tell_withheld(self, access: _Access) -> None:
        """Raise where there are credentials that the registry or its token server was not shown."""
        bearer = self._challenge(access, "bearer")
        if bearer is None or self._credentials(access.repository) is None:
            return
        if self._exposed:
            self._plain_credentials(access)
        realm = bearer.parameters.get("realm", "")
        host = urlsplit(realm).netloc
        if not self._destinations.shows_login(realm):
            raise self._error(
                "unauthorized",
                access,
                f"its token server {host} is another host and was not shown the credentials",
                f"write realm: {host} if it belongs to {self.name}",
            )

    def _error(
        self, code: str, access: _Access, text: str, cure: str, *, answer: _Answer | None = None
    ) -> RegistryError:
        return RegistryError(
            role_code(self.role, code),
            f"{self._where(access)}: {text}",
            cure,
            status=answer.status if answer else None,
            answered=answer is None or answer.status != 429,
            retry_after=read_retry_after(answer.headers) if answer else None,
        )

    @contextmanager
    def _refusing(self, code: str, access: _Access) -> Iterator[None]:
        """Raise what the rule of `destinations` refuses as an error about the access."""
        try:
            yield
        except RefusedError as refused:
            raise self._error(code, access, refused.text, refused.cure) from None

    def _same_digest(self, access: _Access, wanted: str, actual: str) -> None:
        if wanted != actual:
            raise self._error(
                "bad-digest",
                access,
                f"its content is {actual}, not {wanted}",
                "a proxy or the registry alters manifests; ask it directly",
            )

    def _media_type(self, access: _Access, content_type: str) -> str:
        """Return the media type, one of the four that can be mirrored."""
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type in ACCEPT:
            return media_type
        old = media_type.startswith("application/vnd.docker.distribution.manifest.v1+")
        raise self._error(
            "unsupported-manifest",
            access,
            "its manifest is of schema 1" if old else "its manifest is of no known media type",
            "build the image anew with a current tool",
        )

    def _read_manifest(self, access: _Access, answer: _Answer) -> Manifest:
        """Return the manifest, read through once, of its declared type or else the one it names.

        A manifest that names another type than it is declared as is refused (by Manifest): else
        one client would take for an index what is a manifest to another (CVE-2021-41190).
        """
        declared = answer.headers.get("content-type", "")
        known = declared.partition(";")[0].strip().lower() in ACCEPT
        if not known or self.role == "mirror":
            with suppress(ValueError, AttributeError, RecursionError):
                document = json.loads(answer.body)
                named = str(document.get("mediaType") or "")
                if self.role == "mirror" and not named:
                    # Only OCI allows that. What a mirror declares instead would be kept by digest,
                    # for every mirror.
                    declared = OCI_INDEX if "manifests" in document else OCI_MANIFEST
                elif not known:
                    declared = named or declared
        try:
            manifest = Manifest(self._media_type(access, declared), answer.body)
            _ = manifest.document, manifest.children, manifest.blobs
        except ManifestError as error:
            raise self._error("bad-manifest", access, str(error), "build the image anew") from None
        return manifest

    def _read_tags(self, access: _Access, body: bytes) -> list[str]:
        try:
            found = json.loads(body)["tags"] or []
            return [tag for tag in found if isinstance(tag, str) and _TAG.fullmatch(tag)]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise self._error(
                "bad-answer", access, "its list of tags is none", "check the registry"
            ) from None

    # Names and URLs

    @property
    def login_cure(self) -> str:
        """How a person stores credentials for the registry."""
        return self._login_cure(self._login_host)

    @property
    def _login_host(self) -> str:
        """What a person logs in to: the registry's name, or the host and port that stand for it.

        The login of a registry is not shown to another host that stands for it (see `connections`).
        """
        netloc = urlsplit(self._origin).netloc
        own = "://" not in self.name and (is_registry(netloc, self.name) or is_loopback(self._host))
        return self.name if own else netloc

    def _where(self, access: _Access) -> str:
        if not access.repository:
            return self.name
        mark = "@" if ":" in access.selector else ":"
        tail = f"{mark}{access.selector}" if access.selector else ""
        return f"{self.name.rstrip('/')}/{access.repository}{tail}"

    def _base(self, access: _Access) -> str:
        """Return the URL of the repository; names are checked, so that none leads elsewhere."""
        selector = access.selector
        named = _REPOSITORY.fullmatch(access.repository) and (
            not selector or _TAG.fullmatch(selector) or valid_digest(selector)
        )
        if not named:
            raise RegistryError(
                "invalid-name",
                f"{self.name}: {f'{access.repository}:{selector}'[:300]!r} is not an image's name",
                "check its spelling",
                answered=False,
            )
        return f"{self._origin}/v2/{quote(self._prefix)}{access.repository}"

    def _manifest_path(self, access: _Access) -> str:
        return f"{self._base(access)}/manifests/{access.selector}"

    def _blob_path(self, access: _Access) -> str:
        return f"{self._base(access)}/blobs/{access.selector}"


@contextmanager
def _marking(*, elsewhere: bool) -> Iterator[None]:
    """Mark a failure as that of another host than the one that was asked."""
    try:
        yield
    except RegistryError as error:
        if elsewhere:
            # The registry itself has answered.
            error.elsewhere = error.answered = True
        raise


def _backoff(tried: int, bounds: tuple[float, float] | None = None) -> float:
    """Return seconds to wait after the n-th try: doubled each time, with jitter."""
    shortest, longest = bounds or _BACKOFF
    doubled: float = shortest * 2 ** (tried - 1)
    return min(longest, doubled * random.uniform(1, 2))


def _basic(login: Login) -> str:
    pair = f"{login.username}:{login.secret}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _natural(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None
