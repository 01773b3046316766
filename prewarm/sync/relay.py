"""The relay: what skopeo writes to the gate goes to the mirror through prewarm's own client.

So the mirror's realms, redirects and Locations meet the one rule (`destinations`); TLS, timeouts
and logins are handled in one place; and what it really answered is known: `Relay.failure`. skopeo
gets neither the mirror's address nor its login. It may look for and write the blobs of one
manifest, and that manifest under its digest, in one repository.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from typing import Final, Protocol
from urllib.parse import parse_qs

from prewarm.core.errors import RegistryError
from prewarm.core.manifest import MANIFEST_LIMIT, Descriptor, Manifest

_CHUNK: Final = 1 << 20
_TRIES: Final = 2
"""Of each request: a copy that fails is tried again as well."""


class BlobTarget(Protocol):
    """A registry that blobs and manifests are written to."""

    @property
    def name(self) -> str: ...

    def blob_size(self, repository: str, digest: str, tries: int) -> int | None: ...
    def begin_upload(self, repository: str, tries: int) -> str: ...
    def send_upload(
        self, repository: str, upload: str, body: Iterable[bytes], size: int
    ) -> str: ...
    def end_upload(self, repository: str, upload: str, digest: str, size: int) -> None: ...
    def cancel_upload(self, repository: str, upload: str) -> None: ...
    def put_manifest(
        self, repository: str, selector: str, manifest: Manifest, tries: int
    ) -> None: ...


class BrokenBodyError(Exception):
    """skopeo broke off in the middle of what it sent: the mirror has no part in that."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What skopeo is answered."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Upload:
    """An upload at the mirror, and the bytes that were sent to it."""

    url: str
    size: int = 0


@dataclass
class Relay:
    """What one copy may write."""

    target: BlobTarget
    repository: str
    manifest: Manifest
    on_blob: Callable[[str], None] = lambda digest: None  # noqa: ARG005
    """Called with the digest of each blob that the mirror has stored."""
    failure: RegistryError | None = None
    """The mirror's own first refusal."""
    _wanted: dict[str, Descriptor] = field(init=False)
    """The blobs of the manifest, by digest."""
    _damaged: set[str] = field(default_factory=set)
    """Those that the mirror has with another size."""
    _uploads: dict[str, _Upload] = field(default_factory=dict)
    _numbers: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._wanted = {blob.digest: blob for blob in self.manifest.blobs}

    def answer(self, method: str, path: str, query: str, body: BufferedIOBase, size: int) -> Reply:
        """Answer a request for a path below the repository; BrokenBodyError if it broke off."""
        try:
            return self._answer(method, path, query, body, size)
        except RegistryError as error:
            with self._lock:
                self.failure = self.failure or error
            return Reply(_status(error))

    def cancel(self) -> None:
        """Cancel the uploads that are still open: their bytes would fill the mirror's disk."""
        with self._lock:
            uploads = list(self._uploads.values())
            self._uploads.clear()
        for upload in uploads:
            self.target.cancel_upload(self.repository, upload.url)

    def _answer(self, method: str, path: str, query: str, body: BufferedIOBase, size: int) -> Reply:
        kind, _, name = path.partition("/")
        if kind == "manifests" and method == "PUT" and name == self.manifest.digest:
            return self._put_manifest(body, size)
        if kind != "blobs":
            return Reply(404)
        if method == "HEAD":
            return self._look_for(name)
        if method == "POST" and name == "uploads/":
            return self._begin()
        found = re.fullmatch(r"uploads/(\d+)", name)
        upload = self._uploads.get(found[1]) if found else None
        if found is None or upload is None:
            return Reply(404)
        if method == "PATCH":
            upload.url = self.target.send_upload(
                self.repository, upload.url, _pieces(body, size), size
            )
            upload.size += size
            return self._under_way(202, found[1], upload)
        if method == "PUT" and size == 0:
            return self._end(found[1], upload, parse_qs(query).get("digest", [""])[0])
        if method == "DELETE":
            del self._uploads[found[1]]
            self.target.cancel_upload(self.repository, upload.url)
            return Reply(204)
        return Reply(405)

    def _look_for(self, digest: str) -> Reply:
        if not self._is_wanted(digest):
            return Reply(404)
        size = self.target.blob_size(self.repository, digest, _TRIES)
        if size is None:
            return Reply(404)
        if size != self._wanted[digest].size:
            self._damaged.add(digest)
            return Reply(404)
        return Reply(200, {"Content-Length": str(size), "Docker-Content-Digest": digest})

    def _begin(self) -> Reply:
        upload = _Upload(self.target.begin_upload(self.repository, _TRIES))
        with self._lock:
            self._numbers += 1
            number = str(self._numbers)
            self._uploads[number] = upload
        return self._under_way(202, number, upload)

    def _under_way(self, status: int, number: str, upload: _Upload) -> Reply:
        last = max(0, upload.size - 1)
        return Reply(status, {"Location": f"blobs/uploads/{number}", "Range": f"0-{last}"})

    def _end(self, number: str, upload: _Upload, digest: str) -> Reply:
        if not self._is_wanted(digest):
            return Reply(400)
        self.target.end_upload(self.repository, upload.url, digest, upload.size)
        with self._lock:
            self._uploads.pop(number, None)
        if digest in self._damaged:
            # registry:2 keeps what it has under a digest, whatever is uploaded (measured on 2.8.2).
            size = self.target.blob_size(self.repository, digest, _TRIES)
            if size != self._wanted[digest].size:
                where = f"{self.target.name}/{self.repository}"
                raise damaged_blob(where, self._wanted[digest], size or 0)
        self.on_blob(digest)
        return Reply(201, {"Location": f"blobs/{digest}", "Docker-Content-Digest": digest})

    def _put_manifest(self, body: BufferedIOBase, size: int) -> Reply:
        if size > MANIFEST_LIMIT or b"".join(map(bytes, _pieces(body, size))) != (
            self.manifest.content
        ):
            return Reply(400)
        self.target.put_manifest(self.repository, self.manifest.digest, self.manifest, _TRIES)
        return Reply(201, {"Docker-Content-Digest": self.manifest.digest})

    def _is_wanted(self, digest: str) -> bool:
        return digest in self._wanted


def damaged_blob(where: str, blob: Descriptor, size: int) -> RegistryError:
    """Return the failure of a blob that a mirror has with another size than its manifest names."""
    return RegistryError(
        "mirror-damaged-blob",
        f"{where}: blob {blob.digest} has {size} bytes there, not {blob.size}",
        "delete the blob's folder in the mirror's storage and check its disk, then run "
        "prewarm verify --repair",
    )


def _status(error: RegistryError) -> int:
    """Return the status by which skopeo learns of a failure: one that it does not try again for."""
    if error.status is None or error.status < 400 or error.status == 429:
        return 502
    return 403 if error.status == 401 else error.status


def _pieces(body: BufferedIOBase, size: int) -> Iterator[bytes]:
    """Yield what comes of a body, each piece valid until the next is asked for."""
    buffer = memoryview(bytearray(min(_CHUNK, size)))
    while size > 0:
        try:
            amount = body.readinto1(buffer[: min(len(buffer), size)])
        except OSError as error:
            raise BrokenBodyError from error
        if not amount:
            raise BrokenBodyError
        size -= amount
        yield buffer[:amount]  # type: ignore[misc]  # as good as bytes to a socket
