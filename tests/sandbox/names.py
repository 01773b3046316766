"""The real names on loopback: a CONNECT proxy behind which stand-ins answer as docker.io.

Whatever host a client asks the proxy for, it talks TLS with a certificate of our own authority, and
the Host header decides which stand-in answers.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, Self

from tests.sandbox.authority import Authority
from tests.sandbox.hub import Hub
from tests.sandbox.server import Server, Site
from tests.sandbox.wire import Request, Response

DOCKER_HUB: Final = (
    "registry-1.docker.io",
    "auth.docker.io",
    "index.docker.io",
    "docker.io",
)
CDN: Final = "production.cloudflare.docker.com"
OTHERS: Final = ("quay.io", "ghcr.io", "registry.gitlab.com", "gcr.io", "registry.k8s.io")


class Names:
    """The proxy; `hub` answers for Docker Hub's names, `others` under their own names.

    So does `private`, by certificates that only `private_ca` proves: the variables of `env` do not.
    """

    def __init__(
        self,
        folder: Path,
        hub: Hub,
        others: Mapping[str, Site] | None = None,
        private: Mapping[str, Site] | None = None,
    ) -> None:
        self.authority = Authority(folder)
        self.ca = self.authority.ca
        self._sites: dict[str, Site] = dict.fromkeys(DOCKER_HUB, hub)
        self._sites |= {CDN: hub.cdn, **(others or {})}
        self.nobody = Nobody()
        names = [*self._sites, *OTHERS, "localhost", "127.0.0.1"]
        context = self.authority.server_context(list(dict.fromkeys(names)))
        self._sites |= private or {}
        hidden = Authority(folder / "private")
        self.private_ca = hidden.ca
        if private:
            _answer_otherwise(context, private, hidden)
        self._server = Server(self._route, tunnel=context)
        self.url = self._server.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names that have a stand-in."""
        return tuple(self._sites)

    def env(self) -> dict[str, str]:
        """Return the variables by which Go and Python programs take the proxy and trust it."""
        return {
            "HTTPS_PROXY": self.url,
            "https_proxy": self.url,
            "NO_PROXY": "localhost,127.0.0.0/8",
            "no_proxy": "localhost,127.0.0.0/8",
            "SSL_CERT_FILE": str(self.ca),
            "REQUESTS_CA_BUNDLE": str(self.ca),
            "CURL_CA_BUNDLE": str(self.ca),
        }

    def _route(self, request: Request) -> Site:
        return self._sites.get(request.host.partition(":")[0], self.nobody)


def _answer_otherwise(
    context: ssl.SSLContext, names: Collection[str], authority: Authority
) -> None:
    """Let clients that ask for one of the names (by SNI) see a certificate of the authority."""
    hidden = authority.server_context(list(names))

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name in names:
            connection.context = hidden

    context.sni_callback = choose


class Nobody(Site):
    """Answers for hosts that have no stand-in; `access` shows who was asked for."""

    def respond(self, request: Request) -> Response:
        return Response(502, {"Content-Type": "text/plain"}, b"no stand-in for this host")
