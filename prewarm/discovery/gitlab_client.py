"""Asks GitLab's REST API through python-gitlab: counted, paced, retried, its errors translated.

The only module that imports python-gitlab and requests. Any number of threads may share a client,
each has a connection of its own. python-gitlab's own waiting is switched off: it cannot be
interrupted, knows nothing of the other threads, and trusts whatever `Retry-After` says.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qsl, quote, urlsplit

import gitlab
import requests
from gitlab.exceptions import GitlabAuthenticationError, GitlabError
from requests.adapters import HTTPAdapter

from prewarm import __version__
from prewarm.core.errors import PrewarmError
from prewarm.core.net import is_loopback, proxy_for
from prewarm.core.settings import Gitlab
from prewarm.core.text import duration_words, size_words, url_words
from prewarm.registry.headers import http_date
from prewarm.registry.timeouts import Connections, TimeLimit

log = logging.getLogger("prewarm")

AT_ONCE: Final = 8
"""Requests at once, in all."""
TIMEOUT: Final = 60.0
"""Seconds without an answer; lint of a large definition takes many."""
RETRIES: Final = 3
ANSWER_MAX: Final = 16 << 20
"""Bytes of one answer, decompressed."""
ANSWER_TIME: Final = 300.0
"""Seconds that one answer may take to arrive."""
_CHUNK: Final = 8 << 10
_BACKOFF: Final = 0.3
"""Seconds before the first retry, doubled for each further one."""
WAIT_MAX: Final = 900.0
"""Seconds that one `Retry-After` may ask for."""
_LIMITED_MAX: Final = 10
"""How often in a row one request may be told to wait."""


@dataclass(frozen=True, slots=True)
class TimeBounds:
    """How long a scan may take, in seconds."""

    total: float
    silence: float
    """Seconds without a good answer after which GitLab counts as down."""

    def within(self, longest: float) -> TimeBounds:
        """Return the bounds, shortened to fit into so many seconds."""
        return TimeBounds(min(self.total, longest), min(self.silence, longest))


ALONE: Final = TimeBounds(4 * 3600.0, WAIT_MAX)
"""For `prewarm scan`."""
IN_A_SYNC: Final = TimeBounds(600.0, 180.0)
"""For a sync, whose copies wait: the next goes on where the scan stopped."""
DOWN_AFTER: Final = 20
"""Requests in a row that fail for good before GitLab as a whole counts as down."""
_TRANSIENT: Final = frozenset({500, 502, 503, 504, *range(520, 531)})
_PAGES_MAX: Final = 100_000
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,1024}")
_HALF: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")

_CURE: Final = (
    "make a token with the scope read_api and put it into gitlab.token_file, "
    "$CREDENTIALS_DIRECTORY/gitlab-token or $PREWARM_GITLAB_TOKEN"
)


class Token:
    """A secret that no repr, log or pickle shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret, for the one header that it is meant for."""
        return self._value

    def __repr__(self) -> str:
        return "Token(***)"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a token is not to be written down")


def find_token(settings: Gitlab, environ: Mapping[str, str]) -> Token | None:
    """Return the token: of `token_file`, else of systemd's credentials, else of the environment.

    An empty one is none. PrewarmError for a `token_file` that cannot be read, a text that no
    token can be, and a token that would go over plain http to another machine.
    """
    text, place = _token_text(settings, environ)
    if not text:
        return None
    if not _TOKEN.fullmatch(text):
        raise PrewarmError(
            "gitlab-token",
            f"{place} holds what no token is: several lines, spaces or other characters",
            "put the token there, alone",
        )
    parts = urlsplit(settings.url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise PrewarmError(
            "gitlab-token",
            f"{settings.url}: a token never goes over plain http",
            "write https:// in gitlab.url",
        )
    return Token(text)


def token_place(settings: Gitlab, environ: Mapping[str, str]) -> str:
    """Return where find_token has the token from, for people."""
    return _token_text(settings, environ)[1]


def _token_text(settings: Gitlab, environ: Mapping[str, str]) -> tuple[str, str]:
    if settings.token_file is not None:
        try:
            return _read_token(settings.token_file), f"gitlab.token_file {settings.token_file}"
        except OSError as error:
            raise PrewarmError(
                "gitlab-token",
                f"gitlab.token_file {settings.token_file}: {error.strerror}",
                "correct the path, or let prewarm's user read it",
            ) from None
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        given = Path(folder, "gitlab-token")
        try:
            if text := _read_token(given):
                return text, str(given)
        except OSError:
            pass
    return environ.get("PREWARM_GITLAB_TOKEN", "").strip(), "$PREWARM_GITLAB_TOKEN"


def _read_token(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(1 << 14).decode("utf-8", "replace").strip()


class GitlabRefusal(PrewarmError):  # noqa: N818 - the name says what it is
    """GitLab did not answer a request as it should.

    `whole`: it concerns every request, not this one alone. `status` is None without an answer.
    """

    def __init__(
        self, code: str, text: str, cure: str, *, status: int | None = None, whole: bool = False
    ) -> None:
        super().__init__(code, text, cure)
        self.status = status
        self.whole = whole


class _TooMuch(requests.RequestException):
    """An answer is larger than ANSWER_MAX."""


class _TooSlow(requests.RequestException):
    """An answer took longer than ANSWER_TIME to arrive."""


class Stopped(Exception):  # noqa: N818 - the name says what happened
    """The run is to end; nothing more is asked."""


class Client:
    """A GitLab instance; see the module. Close it, or use it with `with`."""

    def __init__(
        self,
        settings: Gitlab,
        token: Token | None,
        environ: Mapping[str, str],
        stop: threading.Event,
        *,
        timeout: float = TIMEOUT,
        bounds: TimeBounds = ALONE,
    ) -> None:
        self.url = settings.url.rstrip("/")
        self._token = token
        self._timeout = timeout
        self._verify = _authorities(settings.ca, environ)
        self._pace = _Pace(stop, bounds, self.url)
        self._connections = Connections(stop)
        proxy = proxy_for(self.url, environ)
        self._proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._local = threading.local()
        self._lock = threading.Lock()
        self._sessions: list[requests.Session] = []
        self.date: float | None = None
        """GitLab's own time at its last good answer, in seconds since the epoch, where it told."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()

    @property
    def sent(self) -> int:
        """How many requests were sent so far, retries included."""
        return self._pace.sent

    def get(self, path: str, *, need: str = "", **query: object) -> Any:
        """Return the JSON of one answer; `need` is the right that a 403 means, for people."""
        return _json(self._ask("get", path, need, query), path)

    def post(self, path: str, data: Mapping[str, Any], *, need: str = "") -> Any:
        """Return the JSON of the answer to a POST that changes nothing at GitLab."""
        return _json(self._ask("post", path, need, {}, data), path)

    def pages(self, path: str, *, need: str = "", **query: object) -> Iterator[list[Any]]:
        """Yield the pages of a list, asked for one by one: stop early and the rest is not asked.

        Only the query of a `Link` is believed, never its host; where a proxy has dropped it,
        `X-Next-Page` tells.
        """
        asked: dict[str, object] = {"per_page": 100, **query}
        for _ in range(_PAGES_MAX):
            response = self._ask("get", path, need, asked)
            rows = _json(response, path)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise _rubbish(path)
            yield rows
            following = _following(response, asked)
            if not rows or following is None:
                return
            if following == asked:
                raise _rubbish(path)
            asked = following

    def head(self, path: str, length: int, *, need: str = "", **query: object) -> bytes:
        """Return the first bytes of an answer; the rest is not downloaded."""
        response = self._ask("get", path, need, query, streamed=True)
        found = bytearray()
        deadline = time.monotonic() + ANSWER_TIME
        try:
            for chunk in response.iter_content(min(length, _CHUNK)):
                found += chunk
                if len(found) >= length or time.monotonic() > deadline:
                    break
        except requests.RequestException as error:
            if not found:
                raise self._translated(error, path, need) from None
        finally:
            response.close()
        return bytes(found[:length])

    def _ask(
        self,
        verb: str,
        path: str,
        need: str,
        query: Mapping[str, object],
        data: Mapping[str, Any] | None = None,
        *,
        streamed: bool = False,
    ) -> requests.Response:
        """Send a request, again where that may help; raises GitlabRefusal, or Stopped."""
        try:
            response = self._connection().http_request(
                verb,
                path,
                query_data=dict(query),
                post_data=dict(data) if data is not None else None,
                streamed=streamed,
                obey_rate_limit=False,
                retry_transient_errors=False,
            )
        except (GitlabError, requests.RequestException, OSError) as error:
            refusal = self._translated(error, path, need)
            self._pace.failed(refusal)
            raise refusal from None
        self._pace.worked()
        self.date = http_date(response.headers.get("Date", ""))
        return response

    def _connection(self) -> gitlab.Gitlab:
        found: gitlab.Gitlab | None = getattr(self._local, "gitlab", None)
        if found is None:
            session = _Session(self._pace, _origin(self.url), self._connections)
            session.proxies = dict(self._proxies)
            with self._lock:
                self._sessions.append(session)
            found = self._local.gitlab = gitlab.Gitlab(
                self.url,
                private_token=self._token.reveal() if self._token else None,
                ssl_verify=self._verify,
                timeout=self._timeout,
                user_agent=f"prewarm/{__version__}",
                session=session,
            )
        return found

    def _translated(self, error: Exception, path: str, need: str) -> GitlabRefusal:
        """Return the error for people: nothing that requests or GitLab said of headers is in it."""
        if isinstance(error, GitlabError):
            return self._refused(error, path, need)
        for kind, code, text, cure in _BROKEN:
            if isinstance(error, kind):
                whole = code == "gitlab-tls"
                return GitlabRefusal(code, f"{self.url} {text}", cure, whole=whole)
        text = f"{self.url} cannot be asked ({type(error).__name__})"
        return GitlabRefusal("gitlab-unreachable", text, "check gitlab.url and gitlab.ca")

    def _refused(self, error: GitlabError, path: str, need: str) -> GitlabRefusal:
        status = error.response_code
        said = _said(error)
        if isinstance(error, GitlabAuthenticationError) or status == 401:
            text = f"{self.url} refused the token" if self._token else f"{self.url} wants a token"
            why = " (it is expired)" if b"expired" in (error.response_body or b"") else ""
            return GitlabRefusal("gitlab-token", text + why, _CURE, status=401, whole=True)
        if status == 403 and "insufficient_scope" in said:
            post = need == NEED_API
            scope, use = ("api", f", which lint at {path} needs") if post else ("read_api", "")
            text = f"{self.url}: the token lacks the scope {scope}{use}"
            cure = f"give a token {NEED_API}, or let traces tell" if post else _CURE
            return GitlabRefusal("gitlab-rights", text, cure, status=403, whole=not post)
        if status == 403:
            text = f"{path}: the token may not {'post to' if need == NEED_API else 'read'} it"
            cure = f"give the token's user {need}" if need else "give the token's user the right"
            return GitlabRefusal("gitlab-rights", text, cure, status=403)
        if status == 404:
            text = f"{path}: GitLab knows no such thing, or hides it from the token"
            return GitlabRefusal("gitlab-not-found", text, "check the name", status=404)
        if status == 429:
            text = f"{self.url} asks to wait longer than prewarm does"
            cure = "run it later, or let an administrator raise the token user's rate limit"
            return GitlabRefusal("gitlab-rate-limit", text, cure, status=429, whole=True)
        text = f"{path}: GitLab answered {status or 'nonsense'}" + (f" ({said})" if said else "")
        return GitlabRefusal("gitlab-error", text, "look at GitLab's log", status=status)


NEED_API: Final = "the scope api and the role Developer"
"""What lint of a given text needs."""

_BROKEN: Final = (
    (
        _TooMuch,
        "gitlab-answer",
        f"sent an answer larger than {size_words(ANSWER_MAX)}",
        "check that gitlab.url is a GitLab",
    ),
    (
        _TooSlow,
        "gitlab-unreachable",
        f"took more than {duration_words(int(ANSWER_TIME))} to send an answer",
        "check GitLab and the network",
    ),
    (
        requests.exceptions.SSLError,
        "gitlab-tls",
        "has a certificate that is not trusted, or speaks no TLS",
        "name the CA with gitlab.ca",
    ),
    (
        requests.exceptions.ProxyError,
        "gitlab-unreachable",
        "is not reached: the HTTP proxy on the way failed",
        "check HTTPS_PROXY and NO_PROXY",
    ),
    (
        requests.exceptions.Timeout,
        "gitlab-unreachable",
        "gave no answer in time",
        "look at GitLab and the network",
    ),
    (
        requests.exceptions.ConnectionError,
        "gitlab-unreachable",
        "is not reached, or broke the connection",
        "check gitlab.url, GitLab and the network",
    ),
)


class _Pace:
    """What all threads share: the count, the moment before which nobody asks, and the end."""

    def __init__(self, stop: threading.Event, bounds: TimeBounds, url: str) -> None:
        self._stop = stop
        self._bounds = bounds
        self._url = url
        self._ends = time.monotonic() + bounds.total
        self._worked = time.monotonic()
        self._lock = threading.Lock()
        self._until = 0.0
        self._failures = 0
        self._down: GitlabRefusal | None = None
        self.sent = 0

    def count(self) -> None:
        with self._lock:
            self.sent += 1

    def wait(self) -> None:
        """Wait until asking is allowed; raises what is wrong with GitLab as a whole."""
        while True:
            with self._lock:
                if self._down is not None:
                    down = self._down
                    raise GitlabRefusal(
                        down.code, down.text, down.cure, status=down.status, whole=True
                    )
                left = self._until - time.monotonic()
            if self.left <= 0:
                raise _too_slow(self._url, self._bounds.total)
            if left <= 0 and not self._stop.is_set():
                return
            self.sleep(max(0.0, left))

    @property
    def left(self) -> float:
        """Seconds until the scan is over."""
        return self._ends - time.monotonic()

    def sleep(self, seconds: float) -> None:
        if self._stop.wait(max(0.0, min(seconds, self.left))):
            raise Stopped

    def waits_for(self, seconds: float) -> bool:
        """Whether so many more seconds without a good answer are waited for."""
        return time.monotonic() + seconds - self._worked <= self._bounds.silence

    def hold(self, seconds: float) -> None:
        """Let nobody ask for so long: the limit is the token's, not a connection's."""
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)

    def worked(self) -> None:
        with self._lock:
            self._failures = 0
            self._worked = time.monotonic()

    def failed(self, refusal: GitlabRefusal) -> None:
        """Note a request that failed for good; after too many in a row nothing more is asked."""
        answered = refusal.status is not None and refusal.status < 500
        with self._lock:
            self._failures = 0 if answered else self._failures + 1
            silent = refusal.status is None and not self.waits_for(0)
            if refusal.whole or silent or self._failures >= DOWN_AFTER:
                self._down = self._down or refusal


def _too_slow(url: str, seconds: float) -> GitlabRefusal:
    return GitlabRefusal(
        "gitlab-slow",
        f"{url}: timed out: the scan is not complete after {duration_words(int(seconds))}, "
        "what was read is kept",
        "the next scan goes on from here; run prewarm scan, which has more time, "
        "and check GitLab's load",
        whole=True,
    )


class _Adapter(HTTPAdapter):
    """Reads each answer within a limit of bytes and time; requests alone reads without end."""

    def __init__(self, connections: Connections, pace: _Pace) -> None:
        self._connections = connections
        self._pace = pace
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Have the connections known, so that they can be shut down."""
        super().init_poolmanager(*args, **options)
        self.poolmanager = self._connections.held(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Have the connections through a proxy known, too."""
        return self._connections.held(super().proxy_manager_for(proxy, **options))

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, *args: Any, **options: Any
    ) -> requests.Response:
        """Send one request; an answer that nobody streams is read here."""
        limit = TimeLimit(min(ANSWER_TIME, self._pace.left))
        try:
            with self._connections.within(limit):
                response = super().send(request, stream, *args, **options)
            if not stream or response.is_redirect:
                response._content = _read(response)  # what `content` returns from now on
        except (requests.RequestException, OSError):
            if limit.expired:
                raise _TooSlow from None
            raise
        if limit.expired:  # what was read until then may look complete
            response.close()
            raise _TooSlow
        if not stream:
            limit.stop()
        return response


def _read(response: requests.Response) -> bytes:
    content = bytearray()
    try:
        for chunk in response.iter_content(_CHUNK):
            content += chunk
            if len(content) > ANSWER_MAX:
                raise _TooMuch
    except BaseException:
        response.close()
        raise
    return bytes(content)


class _Session(requests.Session):
    """Counts what is sent, tries again, and shows the token to GitLab's own host alone."""

    def __init__(self, pace: _Pace, origin: tuple[str, str, int], connections: Connections) -> None:
        super().__init__()
        self.mount("https://", _Adapter(connections, pace))
        self.mount("http://", _Adapter(connections, pace))
        self.trust_env = False  # no ~/.netrc, and proxies are chosen by `core.net`
        self._pace = pace
        self._origin = origin

    def request(self, *args: Any, **options: Any) -> requests.Response:
        broken = limited = 0
        while True:
            self._pace.wait()
            try:
                response = super().request(*args, **options)
            except (
                requests.exceptions.ConnectionError,
                requests.exceptions.ChunkedEncodingError,
                requests.exceptions.Timeout,
            ) as error:
                if isinstance(error, requests.exceptions.SSLError) or broken >= RETRIES:
                    raise
                if isinstance(error, requests.exceptions.ReadTimeout) and broken:
                    raise  # who is silent twice is silent the third time
                self._pace.sleep(_BACKOFF * 2**broken)
                broken += 1
                continue
            if response.status_code == 429 and limited < _LIMITED_MAX:
                seconds = _asked_to_wait(response.headers, 2.0**limited)
                if seconds <= WAIT_MAX and self._pace.waits_for(seconds):
                    response.close()
                    self._pace.hold(seconds)
                    limited += 1
                    continue
            elif response.status_code in _TRANSIENT and broken < RETRIES:
                response.close()
                self._pace.sleep(_BACKOFF * 2**broken)
                broken += 1
                continue
            return response

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send one request; a redirect or a link to another host gets no token."""
        self._pace.count()
        if _origin(request.url or "") != self._origin:
            request.headers.pop("PRIVATE-TOKEN", None)
        response = super().send(request, **options)
        log.debug("%s %s: %d", request.method, url_words(request.url or ""), response.status_code)
        return response


def _following(
    response: requests.Response, asked: Mapping[str, object]
) -> dict[str, object] | None:
    """Return the query of the page after this one; None where this is the last."""
    if link := response.links.get("next", {}).get("url"):
        return dict(parse_qsl(urlsplit(link).query))
    number = response.headers.get("X-Next-Page", "").strip()
    return {**asked, "page": number} if number.isascii() and number.isdigit() else None


def _asked_to_wait(headers: Mapping[str, str], otherwise: float) -> float:
    """Return the seconds that a 429 asks for: Retry-After as number or date, RateLimit-Reset."""
    after = headers.get("Retry-After", "").strip()
    if after.isascii() and after.isdigit() and len(after) < 10:
        return float(after)
    now = http_date(headers.get("Date", ""))
    until = http_date(after)
    reset = headers.get("RateLimit-Reset", "").strip()
    if until is None and reset.isascii() and reset.isdigit() and len(reset) < 12:
        until = float(reset)
    return otherwise if now is None or until is None else max(0.0, until - now)


def _json(response: requests.Response, path: str) -> Any:
    content = response.content
    try:
        found = json.loads(content)
        if _HALF.search(content):
            # Half a character in an escape: text that nothing can write down.
            found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise _rubbish(path) from None
    return found


def _rubbish(path: str) -> GitlabRefusal:
    return GitlabRefusal(
        "gitlab-answer",
        f"{path}: the answer is not what GitLab answers",
        "check that gitlab.url is a GitLab, and that no login page stands before it",
    )


def _said(error: GitlabError) -> str:
    """Return what GitLab said, for people: one short line."""
    message: object = error.error_message
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
    text = _CONTROL.sub(" ", text).strip()
    return "" if "<" in text else text[:200]


def _origin(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return "", "", 0
    return parts.scheme, (parts.hostname or "").lower(), port


def _authorities(ca: Path | None, environ: Mapping[str, str]) -> bool | str:
    """Return whose certificates are trusted: the named CA's, else the environment's, the system's.

    requests alone would trust its own list, in which a company's CA is not.
    """
    named = ca or environ.get("REQUESTS_CA_BUNDLE") or environ.get("SSL_CERT_FILE")
    if named:
        return str(named)
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def project_path(project: int | str, *parts: str) -> str:
    """Return the API's path of something in a project, by its id or its path."""
    return "/".join(("/projects", quote(str(project), safe=""), *parts))


def group_path(group: str, *parts: str) -> str:
    """Return the API's path of something in a group, by its path."""
    return "/".join(("/groups", quote(group, safe=""), *parts))
