"""A registry's disk, as registry:2 lays it out (distribution: registry/storage/paths.go)."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from pathlib import Path

_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*")


class Storage:
    """What lies in the storage folder of a registry, running or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = folder / "docker/registry/v2"
        folder.mkdir(parents=True, exist_ok=True)

    def has_repository(self, repository: str) -> bool:
        """Whether anything was ever pushed there."""
        if not _REPOSITORY.fullmatch(repository):
            return False
        return (self._root / "repositories" / repository / "_manifests").is_dir()

    def digest(self, repository: str, reference: str) -> str | None:
        """Return what a tag or a digest names in a repository, or None where it is not there."""
        manifests = self._root / "repositories" / repository / "_manifests"
        try:
            if not reference.startswith("sha256:"):
                reference = (manifests / f"tags/{reference}/current/link").read_text()
            return (manifests / f"revisions/sha256/{reference[7:]}/link").read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def blob_file(self, digest: str) -> Path:
        """Return where the bytes of a blob or manifest lie, if they do."""
        value = digest.removeprefix("sha256:")
        return self._root / f"blobs/sha256/{value[:2]}/{value}/data"

    def store_blob(self, repository: str, content: bytes) -> None:
        """Put a blob into a repository without asking the registry."""
        digest = self._store(content)
        self._link(repository, f"_layers/sha256/{digest[7:]}", digest)

    def store_manifest(self, repository: str, content: bytes, tags: Sequence[str] = ()) -> None:
        """Put a manifest into a repository and let the tags name it, without any check."""
        digest = self._store(content)
        self._link(repository, f"_manifests/revisions/sha256/{digest[7:]}", digest)
        for tag in tags:
            self._link(repository, f"_manifests/tags/{tag}/index/sha256/{digest[7:]}", digest)
            self._link(repository, f"_manifests/tags/{tag}/current", digest)

    def _store(self, content: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        file = self.blob_file(digest)
        if not file.exists():
            _write(file, content)
        return digest

    def _link(self, repository: str, place: str, digest: str) -> None:
        file = self._root / "repositories" / repository / place / "link"
        # A link names its own digest, except a tag's.
        if place.endswith("/current") or not file.exists():
            _write(file, digest.encode())


def _write(file: Path, content: bytes) -> None:
    """Write the file whole or not at all: the registry may read it at any time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{threading.get_ident()}")
    partial.write_bytes(content)
    partial.rename(file)
