"""The real names on loopback: a CONNECT proxy behind which stand-ins answer as docker.io.

Whatever host a client asks the proxy for, it talks TLS with a certificate of our own authority, and
the Host header decides which stand-in answers.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """The proxy; `hub` answers for Docker Hub's names, `others` under their own names."""

    def __init__(self, folder: Path, hub: Hub, others: Mapping[str, Site] | None = None) -> None:
        self.authority = Authority(folder)
        self.ca = self.authority.ca
        self._sites: dict[str, Site] = dict.fromkeys(DOCKER_HUB, hub)
        self._sites |= {CDN: hub.cdn, **(others or {})}
        self.nobody = Nobody()
        names = [*self._sites, *OTHERS, "localhost", "127.0.0.1"]
        context = self.authority.server_context(list(dict.fromkeys(names)))
        self._server = Server(self._route, tunnel=context)
        self.url = self._server.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()

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


class Nobody(Site):
    """Answers for hosts that have no stand-in; `access` shows who was asked for."""

    def respond(self, request: Request) -> Response:
        return Response(502, {"Content-Type": "text/plain"}, b"no stand-in for this host")
