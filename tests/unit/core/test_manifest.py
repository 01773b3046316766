"""Manifests: what is read from them, which entries platforms need, and the reduced index."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    UPSTREAM_DIGEST,
    Descriptor,
    Manifest,
    ManifestError,
    covers,
    digest_of,
    index_for,
    refuse_unsafe,
    stand_in,
    upstream_digest,
    valid_digest,
    wanted_children,
)
from prewarm.core.platforms import ALL, Platform, parse_platform

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
AMD64 = parse_platform("linux/amd64")
ARM64 = parse_platform("linux/arm64")
ARMV7 = parse_platform("linux/arm/v7")
WINDOWS = parse_platform("windows/amd64")


def sha(name: str) -> str:
    """Return a digest that stands for the name."""
    return digest_of(name.encode())


def entry(name: str, platform: str | None = None, **more: object) -> dict[str, Any]:
    """Return an entry of an index; the platform as it is written there, not normalised."""
    found: dict[str, Any] = {
        "mediaType": OCI_MANIFEST, "digest": sha(name), "size": len(name), **more
    }  # fmt: skip
    if platform is not None:
        found["platform"] = dict(zip(("os", "architecture", "variant"), platform.split("/")))  # noqa: B905
    return found


def index(*entries: object, media_type: str = OCI_INDEX, **more: object) -> Manifest:
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries, **more}
    return Manifest(media_type, json.dumps(document).encode())


def image(document: object, media_type: str = OCI_MANIFEST) -> Manifest:
    return Manifest(media_type, json.dumps(document).encode())


ATTESTATION = entry("attestation", "unknown/unknown")
GOLANG = index(
    entry("amd64", "linux/amd64"),
    entry("armv7", "linux/arm/v7"),
    entry("arm64", "linux/arm64/v8"),
    entry("win2019", "windows/amd64"),
    entry("win2022", "windows/amd64"),
    ATTESTATION,
)


def names(manifest: Manifest) -> list[str]:
    """Return the digests of the entries, in their order."""
    return [child.descriptor.digest for child in manifest.children]


def test_digest_of_bytes_is_their_sha256() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest_of(b"") == f"sha256:{empty}"
    assert Manifest(OCI_MANIFEST, b"").descriptor == Descriptor(OCI_MANIFEST, digest_of(b""), 0)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("sha256:" + "0" * 64, True),
        ("sha512:" + "f" * 128, True),
        ("sha256:" + "0" * 63, False),
        ("sha256:" + "0" * 65, False),
        ("sha256:" + "A" * 64, False),
        ("sha256:" + "../" * 21 + "a", False),
        ("md5:" + "0" * 32, False),
        ("0" * 64, False),
        ("", False),
        (":", False),
    ],
)
def test_valid_digest_text_is_told(text: str, valid: bool) -> None:
    assert valid_digest(text) is valid


def test_children_of_an_index_stand_in_its_order_with_normal_platforms() -> None:
    assert [child.platform for child in GOLANG.children] == [
        AMD64, ARMV7, ARM64, WINDOWS, WINDOWS, None
    ]  # fmt: skip
    assert GOLANG.children[0].descriptor == Descriptor(OCI_MANIFEST, sha("amd64"), 5)
    assert GOLANG.blobs == ()


@pytest.mark.parametrize(
    "platform",
    [
        None, "linux", {}, [], {"os": "linux"}, {"os": "", "architecture": "amd64"},
        {"os": "unknown", "architecture": "unknown"}, {"os": "linux", "architecture": "unknown"},
        {"os": 1, "architecture": "amd64"}, {"os": "linux/amd64", "architecture": "v8"},
        {"os": "linux\x1b[2J", "architecture": "amd64"}, {"os": "a,b", "architecture": "c"},
        {"os": "linux", "architecture": "arm", "variant": 7},
    ],
)  # fmt: skip
def test_children_without_a_usable_platform_have_none(platform: object) -> None:
    assert index(entry("x") | {"platform": platform}).children[0].platform is None


def test_blobs_of_an_image_are_config_and_layers_without_foreign_ones() -> None:
    layer = entry("layer")
    foreign = entry("base") | {"urls": ["https://example.org/base"], "mediaType": FOREIGN}
    layer = {**layer, "urls": ["https://example.org/layer"]}
    manifest = image(
        {"schemaVersion": 2, "config": entry("config"), "layers": [layer, foreign, layer]}
    )
    assert [blob.digest for blob in manifest.blobs] == [sha("config"), sha("layer"), sha("layer")]
    assert manifest.blob_bytes == len("config") + len("layer")
    assert manifest.children == ()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schemaVersion": 1}', b"{}", b"[" * 100_000,
        b'{"schemaVersion": 2, "layers": NaN}', b'{"schemaVersion": 2, "x": ' + b"9" * 5000 + b"}",
        b'{"schemaVersion": 2}', b'{"schemaVersion": 2, "manifests": {}, "layers": {}}',
        b'{"schemaVersion": 2, "manifests": [1], "layers": [1], "config": 1}',
        b'{"schemaVersion": 2, "manifests": [{}], "layers": []}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST])
def test_manifest_bytes_that_are_none_are_refused(content: bytes, media_type: str) -> None:
    manifest = Manifest(media_type, content)
    with pytest.raises(ManifestError, match="sha256:"):
        _ = manifest.children, manifest.blobs


@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": "latest"}, {"digest": None}, {"size": -1}, {"size": "1"}, {"size": True},
        {"size": 1.5}, {"size": None}, {"size": 2**63}, {"size": 10**400},
    ],
)  # fmt: skip
def test_children_entry_without_valid_digest_or_size_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="valid digest and size"):
        _ = index(entry("x") | wrong).children


def test_blobs_of_more_bytes_than_a_program_counts_are_refused() -> None:
    half = entry("x") | {"size": 2**62}
    two = {"schemaVersion": 2, "config": half, "layers": [half, half]}
    with pytest.raises(ManifestError, match="bytes of blobs"):
        _ = image(two).blobs


# What two programs may read in two ways

CONFIG, LAYER = entry("config"), entry("layer")
EVIL = {"urls": ["http://169.254.169.254/"]}


@pytest.mark.parametrize(
    "content",
    [
        {"config": CONFIG, "layers": [LAYER], "Config": EVIL},
        {"config": CONFIG, "layers": [LAYER], "LAYERS": [LAYER | EVIL]},
        {"config": CONFIG | {"Urls": EVIL["urls"]}, "layers": [LAYER]},
        {"config": CONFIG | {"url\u017f": EVIL["urls"]}, "layers": [LAYER]},
        {"config": CONFIG, "layers": [LAYER | {"URLS": EVIL["urls"]}]},
        {"config": CONFIG, "layers": [LAYER | {"dige\u017ft": sha("other")}]},
        {"config": CONFIG, "layers": [LAYER], "manifests": []},
        {"config": CONFIG, "layers": [LAYER], "MediaType": OCI_INDEX},
    ],
)
def test_manifest_that_two_programs_may_read_in_two_ways_is_refused(
    content: dict[str, Any],
) -> None:
    with pytest.raises(ManifestError, match="ambiguous"):
        _ = image({"schemaVersion": 2, **content}).blobs


@pytest.mark.parametrize("key", ["config", "urls", "digest"])
def test_manifest_with_a_key_twice_is_refused(key: str) -> None:
    config = json.dumps(CONFIG | {"urls": []})
    text = json.dumps({"schemaVersion": 2, "layers": []})[:-1] + f', "config": {config}}}'
    twice = text.replace(f'"{key}":', f'"{key}": null, "{key}":')
    assert twice != text
    with pytest.raises(ManifestError, match="ambiguous: a key is there twice"):
        _ = Manifest(OCI_MANIFEST, twice.encode()).blobs


@pytest.mark.parametrize(
    "more",
    [
        {"manifests": [entry("x") | {"Platform": {}}]},
        {"manifests": [entry("x") | {"platform": {"OS": "linux"}}]},
        {"layers": []},
        {"config": CONFIG},
    ],
)
def test_index_that_two_programs_may_read_in_two_ways_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="ambiguous"):
        _ = index(**more).children


def test_manifest_whose_annotations_are_named_like_fields_is_read() -> None:
    named = {"Config": "x", "URLs": "y", "size": "z"}
    content = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER], "annotations": named}
    assert image(content).is_readable
    assert index(entry("x", annotations=named), annotations=named).is_readable


# What skopeo is given


def docker(*layers: object) -> Manifest:
    return image({"schemaVersion": 2, "config": CONFIG, "layers": layers}, DOCKER_MANIFEST)


@pytest.mark.parametrize("end", ["", ".gzip"])
def test_stand_in_of_what_skopeo_copies_is_the_manifest_itself(end: str) -> None:
    plain = docker(LAYER | {"mediaType": f"application/vnd.docker.image.rootfs.diff.tar{end}"})
    odd = image({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER | {"mediaType": "x/odd"}]})
    assert stand_in(plain) is plain
    assert stand_in(odd) is odd


@pytest.mark.parametrize("change", [EVIL, {"mediaType": "x/zstd"}, {"mediaType": None}])
def test_stand_in_has_all_blobs_and_no_url(change: dict[str, Any]) -> None:
    foreign = entry("foreign") | EVIL | {"mediaType": FOREIGN}
    odd = docker(LAYER | {"mediaType": FOREIGN.replace("foreign.", "")} | change, foreign)
    found = stand_in(odd)
    assert found.media_type == OCI_MANIFEST
    assert [blob.digest for blob in found.blobs] == [sha("config"), sha("layer")]
    assert b"urls" not in found.content
    assert stand_in(found) is found
    assert stand_in(odd) == found


@pytest.mark.parametrize("urls", [["http://127.0.0.1/"], "http://127.0.0.1/", {}, 7, [""]])
def test_refuse_unsafe_refuses_a_config_with_urls(urls: object) -> None:
    unsafe = image({"schemaVersion": 2, "config": CONFIG | {"urls": urls}, "layers": []})
    with pytest.raises(ManifestError, match="config with urls"):
        refuse_unsafe(unsafe)
    refuse_unsafe(docker(LAYER | EVIL))
    refuse_unsafe(GOLANG)


@pytest.mark.parametrize("declared", [OCI_MANIFEST, DOCKER_LIST, 1, ["x"]])
def test_manifest_that_declares_another_type_is_refused(declared: object) -> None:
    with pytest.raises(ManifestError, match="another type"):
        _ = index(mediaType=declared).children


@pytest.mark.parametrize("declared", [{}, {"mediaType": ""}, {"mediaType": OCI_INDEX}])
def test_manifest_that_declares_no_type_or_its_own_is_read(declared: dict[str, Any]) -> None:
    manifest = image({"schemaVersion": 2, "manifests": [entry("x")]} | declared, OCI_INDEX)
    assert names(manifest) == [sha("x")]


def test_annotations_of_another_form_are_left_out() -> None:
    assert index(annotations={"a": "b", "c": 1}).annotations == {"a": "b"}
    assert index(annotations=["a"]).annotations == {}


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ((AMD64,), ["amd64"]),
        ((ARM64,), ["arm64"]),
        ((ARM64, AMD64), ["amd64", "arm64"]),
        ((parse_platform("linux/s390x"),), []),
        ((parse_platform("linux/s390x"), ARMV7), ["armv7"]),
        ((WINDOWS,), ["win2019", "win2022"]),
        ((), []),
        (ALL, ["amd64", "armv7", "arm64", "win2019", "win2022", "attestation"]),
    ],
)
def test_wanted_children_of_platforms_are_their_entries(wanted: Any, chosen: list[str]) -> None:
    found = wanted_children(GOLANG, wanted)
    assert [child.descriptor.digest for child in found] == [sha(name) for name in chosen]


def test_wanted_children_of_a_platform_named_twice_is_the_first() -> None:
    twice = index(entry("first", "linux/amd64"), entry("second", "linux/amd64"))
    assert [child.descriptor.digest for child in wanted_children(twice, (AMD64,))] == [sha("first")]


def test_wanted_children_that_share_a_digest_come_once() -> None:
    shared = index(entry("one", "linux/amd64"), entry("one", "linux/arm64"))
    assert len(wanted_children(shared, ALL)) == len(wanted_children(shared, (AMD64, ARM64))) == 1


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_index_for_some_platforms_keeps_their_entries_as_they_stand(media_type: str) -> None:
    kept = entry("amd64", "linux/amd64", annotations={"note": "\u00e4"}, other=[1, 2.5])
    original = index(
        kept, entry("arm64", "linux/arm64"), media_type=media_type, annotations={"vendor": "x"}
    )
    reduced = index_for(original, (AMD64,))
    assert reduced.media_type == reduced.document["mediaType"] == media_type
    assert reduced.document["manifests"] == [kept]
    assert reduced.annotations["vendor"] == "x"
    assert reduced.annotations[UPSTREAM_DIGEST] == original.digest
    assert upstream_digest(reduced) == original.digest != reduced.digest


def test_index_for_the_same_input_gives_the_same_bytes() -> None:
    one = index_for(GOLANG, (AMD64, ARM64))
    assert one.content == index_for(GOLANG, (ARM64, AMD64)).content
    assert one.content != index_for(GOLANG, (AMD64,)).content


def test_index_for_all_or_every_entry_is_the_original_byte_for_byte() -> None:
    assert index_for(GOLANG, ALL) is GOLANG
    two = index(entry("amd64", "linux/amd64"), entry("arm64", "linux/arm64"))
    assert index_for(two, (AMD64, ARM64, ARMV7)) is two


def test_index_for_platforms_that_share_a_digest_keeps_both_entries() -> None:
    shared = [entry("one", "linux/amd64"), entry("one", "linux/arm64")]
    reduced = index_for(index(*shared, entry("armv7", "linux/arm/v7")), (AMD64, ARM64))
    assert reduced.document["manifests"] == shared


@pytest.mark.parametrize("odd", ['"\\ud800"', "1e999", "[" * 900 + "]" * 900])
def test_index_for_hostile_entries_is_json_or_refused(odd: str) -> None:
    hostile = entry("amd64", "linux/amd64") | {"odd": "ODD"}
    content = index(hostile, ATTESTATION).content.replace(b'"ODD"', odd.encode())
    try:
        reduced = index_for(Manifest(OCI_INDEX, content), (AMD64,))
    except ManifestError:
        assert odd != '"\\ud800"'
    else:
        assert names(reduced) == [sha("amd64")]
        assert b"Infinity" not in reduced.content


def test_upstream_digest_of_what_is_not_reduced_is_its_own() -> None:
    note = {UPSTREAM_DIGEST: sha("other")}
    single = image({"schemaVersion": 2, "layers": [], "annotations": note})
    assert upstream_digest(single) == single.digest
    assert upstream_digest(GOLANG) == GOLANG.digest
    wrong = index(annotations={UPSTREAM_DIGEST: "sha256:../../etc"})
    assert upstream_digest(wrong) == wrong.digest


S390X = parse_platform("linux/s390x")


@pytest.mark.parametrize(
    ("made_for", "asked", "enough"),
    [
        ((AMD64,), (AMD64,), True),
        ((AMD64,), (ARM64,), False),
        ((AMD64,), (AMD64, ARM64), False),
        ((AMD64, ARM64), (ARM64,), True),
        ((AMD64, S390X), (S390X,), True),  # looked for and not there
        ((AMD64,), ALL, False),
        (ALL, ALL, True),
        (ALL, (S390X,), True),
    ],
)
def test_covers_reduced_index_is_enough_for_what_was_looked_for(
    made_for: Any, asked: Any, enough: bool
) -> None:
    assert covers(index_for(GOLANG, made_for), asked) is enough


def test_covers_single_manifest_whatever_it_claims() -> None:
    note = {UPSTREAM_DIGEST: sha("other")}
    single = image({"schemaVersion": 2, "layers": [], "annotations": note})
    assert covers(single, (AMD64,))
    assert covers(single, ALL)


platforms = st.sampled_from(
    ["linux/amd64", "linux/arm64", "linux/arm64/v8", "linux/arm/v7", "windows/amd64", None]
)
indexes = st.lists(st.tuples(st.sampled_from("abcd"), platforms), max_size=6).map(
    lambda rows: index(*(entry(name, platform) for name, platform in rows))
)
wants: st.SearchStrategy[Any] = st.lists(
    st.sampled_from([AMD64, ARM64, ARMV7, WINDOWS]), max_size=3, unique=True
).map(tuple)


@given(indexes, wants)
def test_index_for_any_platforms_serves_what_the_original_serves(
    original: Manifest, wanted: tuple[Platform, ...]
) -> None:
    mirrored = index_for(original, wanted)
    chosen = [child.descriptor.digest for child in wanted_children(original, wanted)]
    assert [child.descriptor.digest for child in wanted_children(mirrored, wanted)] == chosen
    assert {*names(mirrored)} == {*chosen}
    assert upstream_digest(mirrored) == original.digest
    assert covers(mirrored, wanted)
    for platform in wanted:
        assert wanted_children(mirrored, (platform,)) == wanted_children(original, (platform,))


@given(indexes, wants)
def test_index_for_its_own_result_changes_no_entry(
    original: Manifest, wanted: tuple[Platform, ...]
) -> None:
    once = index_for(original, wanted)
    assert index_for(once, wanted).document["manifests"] == once.document["manifests"]
