"""Makes images, the same from the same arguments, and puts them into a registry.

Layers are gzip tars of incompressible bytes that a container engine can unpack.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from tests.sandbox.registry import Registry

Family = Literal["oci", "docker"]

_MIB: Final = 2**20
_OCI: Final = "application/vnd.oci.image."
_DOCKER: Final = "application/vnd.docker."
_TYPES: Final[Mapping[Family, Mapping[str, str]]] = {
    "oci": {
        "index": _OCI + "index.v1+json",
        "manifest": _OCI + "manifest.v1+json",
        "config": _OCI + "config.v1+json",
        "layer": _OCI + "layer.v1.tar+gzip",
    },
    "docker": {
        "index": _DOCKER + "distribution.manifest.list.v2+json",
        "manifest": _DOCKER + "distribution.manifest.v2+json",
        "config": _DOCKER + "container.image.v1+json",
        "layer": _DOCKER + "image.rootfs.diff.tar.gzip",
    },
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: images with the same seed and size share its blob, on each platform its own."""

    seed: str
    size: int = 1000
    """Bytes of the one file in it; the blob is about 500 bytes larger."""


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest or an index with all that is below it."""

    media_type: str
    content: bytes
    children: tuple[Image, ...] = ()
    """The entries of an index, in its order."""
    blobs: tuple[bytes, ...] = ()
    """Config and layers of a manifest."""
    platform: str = ""
    """`linux/arm64/v8` as the index says it; empty for an index, `unknown/unknown` for
    attestations."""

    @property
    def digest(self) -> str:
        return digest_of(self.content)

    def child(self, platform: str) -> Image:
        """Return the entry for a platform; StopIteration where there is none."""
        return next(child for child in self.children if child.platform == platform)


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def build_image(
    name: str = "app",
    *,
    platforms: Sequence[str] = ("linux/amd64",),
    layers: Sequence[Layer] = (),
    size: int = 1000,
    attestations: bool = False,
    media: Family = "oci",
    single: bool = False,
    annotations: Mapping[str, str] | None = None,
    revision: int = 1,
) -> Image:
    """Return an image of the given base layers and one layer of its own of `size` bytes.

    `single` gives the manifest of the only platform without an index. Another `revision` is what
    upstream's next build would be: the same base, another digest.
    """
    own = Layer(f"{name}#{revision}", size)
    manifests = [_manifest((*layers, own), platform, media) for platform in platforms]
    if single:
        (manifest,) = manifests
        return manifest
    if attestations:
        manifests += [_attestation(manifest) for manifest in manifests]
    entries: list[dict[str, Any]] = []
    for manifest in manifests:
        entry = _describe(manifest.media_type, manifest.content)
        entry["platform"] = _platform(manifest.platform)
        if manifest.platform == "unknown/unknown":
            subject = manifests[len(entries) - len(platforms)].digest
            entry["annotations"] = {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": subject,
            }
        entries.append(entry)
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": _TYPES[media]["index"],
        "manifests": entries,
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return Image(_TYPES[media]["index"], _json(document), tuple(manifests))


def push(registry: Registry, repository: str, image: Image, *tags: str) -> Image:
    """Put the image with all that is below it under each tag, or without tag; return it.

    Written straight into the registry's storage, as registry:2 lays it out: five times as fast as
    uploads, and what no registry would accept can be put there too.
    """
    for child in image.children:
        push(registry, repository, child)
    for blob in image.blobs:
        registry.storage.store_blob(repository, blob)
    registry.storage.store_manifest(repository, image.content, tags)
    return image


def _manifest(layers: Sequence[Layer], platform: str, media: Family) -> Image:
    built = [_layer(layer.seed, layer.size, platform) for layer in layers]
    config = _json(
        {
            "created": "2024-01-01T00:00:00Z",
            **_platform(platform),
            "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in built]},
        }
    )
    types = _TYPES[media]
    blobs = [content for content, _ in built]
    document = {
        "schemaVersion": 2,
        "mediaType": types["manifest"],
        "config": _describe(types["config"], config),
        "layers": [_describe(types["layer"], blob) for blob in blobs],
    }
    return Image(types["manifest"], _json(document), (), (config, *blobs), platform)


def _attestation(subject: Image) -> Image:
    """Return what BuildKit adds for each platform: a small OCI manifest of an in-toto file."""
    statement = _json({"_type": "https://in-toto.io/Statement/v0.1", "subject": subject.digest})
    config = _json({"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers"}})
    types = _TYPES["oci"]
    document = {
        "schemaVersion": 2,
        "mediaType": types["manifest"],
        "config": _describe(types["config"], config),
        "layers": [_describe("application/vnd.in-toto+json", statement)],
    }
    content = _json(document)
    return Image(types["manifest"], content, (), (config, statement), "unknown/unknown")


@lru_cache(maxsize=256)
def _layer(seed: str, size: int, platform: str) -> tuple[bytes, str]:
    """Return the compressed layer and the digest of the tar in it (its diff_id)."""
    stream = random.Random(f"{seed} {platform}")
    content = b"".join(stream.randbytes(min(_MIB, size - at)) for at in range(0, size, _MIB))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo(f"data/{hashlib.sha256(seed.encode()).hexdigest()[:12]}")
        entry.size = size
        tar.addfile(entry, io.BytesIO(content))
    tarred = buffer.getvalue()
    # The tar's padding shrinks, the content cannot: large layers are stored as they are.
    level = 1 if size < _MIB else 0
    return gzip.compress(tarred, compresslevel=level, mtime=0), digest_of(tarred)


def _platform(text: str) -> dict[str, str]:
    os, architecture, *variant = text.split("/")
    named = {"architecture": architecture, "os": os}
    return {**named, "variant": variant[0]} if variant else named


def _describe(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
