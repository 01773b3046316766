"""The probe: an image that one mirror alone has, so that who gets it was served there.

It is never run. Its layer holds the random token, so that no client has any part of it yet.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import dataclass
from typing import Final

from prewarm.core.manifest import DOCKER_MANIFEST, Manifest, digest_of
from prewarm.core.platforms import Platform

_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_CREATED: Final = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Probe:
    """An image of one platform, about a kilobyte."""

    manifest: Manifest
    config: bytes
    layer: bytes


def make_probe(token: str, platform: Platform) -> Probe:
    """Return the image of a token: Docker's schema 2, which every client takes."""
    tar = _tar("prewarm-probe", f"{token}\n".encode())
    layer = gzip.compress(tar, mtime=0)
    variant = {"variant": platform.variant} if platform.variant else {}
    config = _json(
        {
            "architecture": platform.architecture,
            "os": platform.os,
            **variant,
            "created": _CREATED,
            "config": {},
            "history": [{"created": _CREATED, "created_by": "prewarm doctor --client"}],
            "rootfs": {"type": "layers", "diff_ids": [digest_of(tar)]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": _descriptor(_CONFIG, config),
        "layers": [_descriptor(_LAYER, layer)],
    }
    return Probe(Manifest(DOCKER_MANIFEST, _json(manifest)), config, layer)


def _tar(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "size": len(content), "digest": digest_of(content)}


def _json(document: dict[str, object]) -> bytes:
    return json.dumps(document, indent=2).encode()
