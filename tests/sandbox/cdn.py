"""The Hub's content network: another host that serves blobs to whoever holds a signed URL."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Self
from urllib.parse import parse_qs

from tests.sandbox.access import Access
from tests.sandbox.registry import Registry
from tests.sandbox.server import Server, Site
from tests.sandbox.wire import Request, Response

_PATH = re.compile(r"/registry-v2/docker/registry/v2/blobs/sha256/../([0-9a-f]{64})/data")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Cdn(Site):
    """Serves the blobs of a registry from its disk, ranges too, on a loopback address of its own.

    It wants no credentials; those that come are in `leaks`.
    """

    def __init__(
        self, registry: Registry, *, host: str = "127.0.0.2", latency: float = 0.0
    ) -> None:
        super().__init__(latency)
        self._registry = registry
        self._key = secrets.token_bytes(16)
        self._server = Server(self, host=host)
        self.url = self._server.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()

    @property
    def leaks(self) -> list[Access]:
        """The requests that carried credentials or cookies."""
        return [entry for entry in list(self.access) if entry.secret or entry.cookie]

    def signed(self, digest: str) -> str:
        """Return path and query under which the blob may be fetched."""
        value = digest.removeprefix("sha256:")
        path = f"/registry-v2/docker/registry/v2/blobs/sha256/{value[:2]}/{value}/data"
        return f"{path}?verify={self._signature(path)}"

    def respond(self, request: Request) -> Response:
        found = _PATH.fullmatch(request.path)
        given = parse_qs(request.query).get("verify", [""])[0]
        if not hmac.compare_digest(given, self._signature(request.path)):
            return Response(403, {"Content-Type": "text/plain"}, b"invalid signature")
        if found is None or request.method not in ("GET", "HEAD"):
            return Response(404)
        return blob_response(self._registry, "sha256:" + found[1], request)

    def _signature(self, path: str) -> str:
        return hmac.new(self._key, path.encode(), hashlib.sha256).hexdigest()


def blob_response(registry: Registry, digest: str, request: Request) -> Response:
    """Return the blob, or the range of it that was asked for, from the registry's disk."""
    file = registry.storage.blob_file(digest)
    if not file.is_file():
        return Response(404, {"Content-Type": "text/plain"}, b"no such blob")
    size = file.stat().st_size
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        "Docker-Content-Digest": digest,
    }
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or not any(asked.groups()):
        return Response(200, headers, file)
    first, last = asked.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size or end < start:
        return Response(416, {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Response(206, headers, file, start, end - start + 1)
