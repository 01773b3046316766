"""The probe is a whole image that says the truth of itself."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile

import pytest

from prewarm.clients.probe_image import make_probe
from prewarm.core.manifest import DOCKER_MANIFEST, digest_of
from prewarm.core.platforms import Platform

ARM = Platform("linux", "arm", "v7")


def test_probe_names_its_blobs_by_digest_and_size() -> None:
    probe = make_probe("t0ken", ARM)
    assert probe.manifest.media_type == DOCKER_MANIFEST
    assert [(one.digest, one.size) for one in probe.manifest.blobs] == [
        (digest_of(content), len(content)) for content in (probe.config, probe.layer)
    ]


def test_probe_of_a_platform_has_one_layer_with_the_token() -> None:
    probe = make_probe("t0ken", ARM)
    config = json.loads(probe.config)
    assert (config["os"], config["architecture"], config["variant"]) == ("linux", "arm", "v7")
    tar = gzip.decompress(probe.layer)
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(tar).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        (entry,) = archive.getmembers()
        content = archive.extractfile(entry)
        assert content is not None
        assert content.read() == b"t0ken\n"


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_probe_shares_no_part_with_another(part: str) -> None:
    one, same, other = (make_probe(token, ARM) for token in ("1", "1", "2"))
    assert getattr(one, part) == getattr(same, part)
    assert getattr(one, part) != getattr(other, part)
