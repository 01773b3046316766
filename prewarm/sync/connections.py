"""The connections of a run: clients of upstreams and mirrors, skopeo and its private folders.

Built here from the settings, once, and handed down; nothing below looks for them itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from prewarm.core.errors import PrewarmError, Problem, RegistryError
from prewarm.core.net import is_loopback
from prewarm.core.reference import is_registry
from prewarm.core.settings import Mirror, Settings, Upstream
from prewarm.registry.client import RETRY_FOR, Registry
from prewarm.registry.credentials import AuthConfig
from prewarm.registry.credentials import load as load_credentials
from prewarm.registry.errors import login_cure
from prewarm.registry.login import Login
from prewarm.registry.policy_json import read_policy
from prewarm.registry.transport import CONNECT_TIMEOUT, READ_TIMEOUT
from prewarm.sync import skopeo
from prewarm.sync.executor import Tools
from prewarm.sync.inspect import MirrorSite, UpstreamSite
from prewarm.sync.workspace import private_folder


@dataclass(frozen=True)
class Edges:
    """Everything outside this process that a run speaks to, but for the state."""

    upstreams: dict[str, UpstreamSite]
    """By name, as in references."""
    mirrors: tuple[MirrorSite, ...]
    problems: tuple[Problem, ...]
    """What is wrong with the credentials' files."""
    auth: AuthConfig

    def cut(self) -> None:
        """Break off all that registries are asked, for a run that has to end."""
        for upstream in self.upstreams.values():
            for client in (upstream.registry, upstream.public):
                if client is not None:
                    client.cut()
        for site in self.mirrors:
            site.registry.cut()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long registries are waited for, in seconds."""

    connect: float = CONNECT_TIMEOUT
    read: float = READ_TIMEOUT
    retry: float = RETRY_FOR
    """After this no further try is started."""


AT_A_TERMINAL: Final = Patience(3.0, 10.0, 1.0)
"""For a person who waits for an answer about one image."""


@contextmanager
def open_edges(
    settings: Settings, environ: Mapping[str, str], patience: Patience | None = None
) -> Iterator[Edges]:
    """Build the clients; they are closed at the end. UsageError for a broken explicit authfile."""
    auth = load_credentials(settings.authfile, environ)
    patience = patience or Patience()
    with ExitStack() as stack:
        upstreams = {
            upstream.name: UpstreamSite(
                upstream,
                stack.enter_context(_upstream_client(upstream, settings, auth, environ, patience)),
                _own_account(auth, upstream),
                stack.enter_context(_upstream_client(upstream, settings, None, environ, patience)),
                account_of=partial(_account, auth, upstream),
            )
            for upstream in settings.registries
        }
        mirrors = tuple(
            MirrorSite(mirror, stack.enter_context(_mirror_client(mirror, auth, environ, patience)))
            for mirror in settings.mirrors
        )
        yield Edges(upstreams, mirrors, auth.problems, auth)


def _keys(upstream: Upstream) -> tuple[tuple[str, str], ...]:
    """The registries whose logins the endpoint is entitled to, each with a prefix of the path.

    Where the endpoint is another host (a Harbor that stands for docker.io), it is shown what is
    kept for that host, never Docker Hub's login; on this machine itself either will do.
    """
    parts = urlsplit(upstream.endpoint)
    host = parts.hostname or ""
    own = ((upstream.name, ""),)
    if is_registry(parts.netloc, upstream.name):
        return own
    there = ((parts.netloc, parts.path.strip("/")),)
    return (*there, *own) if is_loopback(host) else there


def _login(auth: AuthConfig, upstream: Upstream, repository: str) -> Login | None:
    for registry, prefix in _keys(upstream):
        found = auth.login(registry, f"{prefix}/{repository}".strip("/"))
        if found is not None:
            return found
    return None


def _account(auth: AuthConfig, upstream: Upstream, repository: str) -> str | None:
    """Return the user of the login that `_login` returns: whose quota the repository spends."""
    for registry, prefix in _keys(upstream):
        found = auth.account(registry, f"{prefix}/{repository}".strip("/"))
        if found is not None:
            return found
    return None


def _own_account(auth: AuthConfig, upstream: Upstream) -> str | None:
    """Return the user of the registry as a whole; a failed helper is reported when it is asked."""
    try:
        return _account(auth, upstream, "")
    except RegistryError:
        return None


def _upstream_client(
    upstream: Upstream,
    settings: Settings,
    auth: AuthConfig | None,
    environ: Mapping[str, str],
    patience: Patience,
) -> Registry:
    """The client of an upstream; without `auth` one that has no credentials."""
    limits = settings.limits
    return Registry(
        upstream.name,
        upstream.endpoint,
        ca=upstream.ca,
        realm=upstream.realm,
        credentials=lambda repository: _login(auth, upstream, repository) if auth else None,
        login_cure=auth.login_cure if auth else login_cure,
        connections=max(limits.checks, limits.parallel),
        heads_per_minute=limits.heads_per_minute,
        environ=environ,
        connect_timeout=patience.connect,
        read_timeout=patience.read,
        retry_for=patience.retry,
    )


def _mirror_client(
    mirror: Mirror, auth: AuthConfig, environ: Mapping[str, str], patience: Patience
) -> Registry:
    host = urlsplit(mirror.url).netloc
    return Registry(
        mirror.url,
        mirror.url,
        role="mirror",
        ca=mirror.ca,
        costly=mirror.through,
        credentials=lambda repository: auth.login(host, repository),
        login_cure=auth.login_cure,
        connections=32,
        environ=environ,
        connect_timeout=patience.connect,
        read_timeout=patience.read,
        retry_for=patience.retry,
    )


@contextmanager
def open_tools(
    folder: Path, environ: Mapping[str, str], home: Path | None
) -> Iterator[Tools | PrewarmError]:
    """Find skopeo and make its private folder; the error where it cannot be used.

    `folder` is this host's own beside the state, under its lock.
    """
    with ExitStack() as stack:
        private = stack.enter_context(private_folder(folder))
        try:
            program = skopeo.find(environ)
            policy = read_policy(home)
        except PrewarmError as error:
            yield error
            return
        yield Tools(program, skopeo.child_environment(environ, private), policy)
