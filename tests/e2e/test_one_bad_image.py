"""One bad image, or what lies damaged under its tag on a mirror, never stops the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.host import Host
from tests.sandbox import Fault, Sandbox

ODD = b'{"schemaVersion":2,"mediaType":"application/vnd.odd+json","config":{}}'
SCHEMA_1 = b'{"schemaVersion":1,"name":"library/odd","tag":"1","fsLayers":[],"history":[]}'


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


def push_three(box: Sandbox) -> list[str]:
    for name in ("odd", "one", "two"):
        box.push(f"library/{name}", "1", single=True)
    return ["odd:1", "one:1", "two:1"]


@pytest.mark.parametrize("content", [ODD, b""])
def test_sync_tag_that_the_mirror_cannot_read_leaves_the_others_alone(
    host: Host, box: Sandbox, content: bytes
) -> None:
    """registry:2 answers 500 for it, every time, and serves all else."""
    host.configure(push_three(box))
    box.mirrors[0].storage.store_manifest("library/odd", content, ["1"])
    assert box.mirrors[0].request("HEAD", "/v2/library/odd/manifests/1").status == 500
    first = host.sync(code=1)
    assert first.actions == [("odd:1", "fail"), ("one:1", "copy"), ("two:1", "copy")]
    assert first.image("odd:1")["code"] == "mirror-server-error"
    again = host.sync(code=1)
    assert again.named("fresh") == ["one:1", "two:1"]
    assert again.gets == ()


def test_sync_tag_of_no_image_on_the_mirror_is_put_right(host: Host, box: Sandbox) -> None:
    host.configure(push_three(box))
    box.mirrors[0].storage.store_manifest("library/odd", SCHEMA_1, ["1"])
    assert box.mirrors[0].request("HEAD", "/v2/library/odd/manifests/1").status == 200
    assert host.sync().named("copy") == ["odd:1", "one:1", "two:1"]
    assert host.sync().named("fresh") == ["odd:1", "one:1", "two:1"]


def test_sync_mirror_that_breaks_as_a_source_is_not_the_others_fault(tmp_path: Path) -> None:
    with Sandbox(mirrors=2) as box:
        host = Host(tmp_path, box)
        pins = push_three(box)
        host.configure(pins, mirrors=[box.taps[0].url])
        host.sync()
        host.configure(pins)
        box.taps[0].faults.add(Fault("GET", "*/library/odd/blobs/*", count=None, cut=10))
        # What the first mirror does not give upstream does.
        assert host.sync().named("tag") == pins
        assert host.sync().named("fresh") == pins
        box.mirrors[1].storage.folder.rename(tmp_path / "lost")
        box.mirrors[1].restart()
        box.hub.cdn.faults.add(Fault("GET", "*", count=None, cut=10))
        # Where upstream does not either, it is that image's failure and no mirror's.
        done = host.sync(code=1)
        assert done.actions == [("odd:1", "fail"), ("one:1", "tag"), ("two:1", "tag")]
        assert done.image("odd:1")["code"] == "reset"
        assert [one["where"] for one in done.report["problems"]] == ["images.yml:11"]


def test_sync_without_the_list_of_tags_forgets_no_image(host: Host, box: Sandbox) -> None:
    """That a list cannot be had tonight does not mean that its images are not wanted."""
    box.push("library/app", "1.0", "1.1")
    pins = push_three(box)
    host.configure([{"image": "app", "tags": {"match": "1.*", "newest": 2}}, *pins])
    host.sync()
    box.hub.faults.add(Fault("GET", "*/tags/list", count=None, status=403))
    assert host.sync(code=1).named("fresh") == pins
    assert host.run("status", "--json").json["images"]["tracked"] == 5
    # Once it is known that they are not, they are forgotten.
    host.configure(pins)
    host.sync()
    assert host.run("status", "--json").json["images"]["tracked"] == 3
