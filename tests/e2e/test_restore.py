"""What was lost, by a kill, on the mirror or with the state, comes back for what it must cost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.host import Host, blobs_of, digest_of, wait_until
from tests.sandbox import Fault, Image, Layer, Sandbox

AMD, ARM, S390 = "linux/amd64", "linux/arm64", "linux/s390x"
THREE = [AMD, ARM, S390]


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


def own_layer(image: Image) -> str:
    """The digest of a manifest's last layer."""
    return digest_of(image.blobs[-1])


def on_mirror(box: Sandbox, repository: str, image: Image) -> list[str]:
    """The platforms of the index whose manifests the mirror holds."""
    held = (
        child for child in image.children if box.mirrors[0].storage.digest(repository, child.digest)
    )
    return [child.platform for child in held]


# --- kill -9 ---


def kill_while_hanging(host: Host, *faults: Fault) -> None:
    """Start a sync, kill it once a request hangs in each fault, and let the next ones pass."""
    with host.start("sync", "--json") as process:
        wait_until(lambda: all(fault.seen for fault in faults), "hanging request")
        process.kill()
        process.communicate(timeout=20)
        assert process.returncode == -9
    host.box.hub.faults.clear()
    host.box.hub.cdn.faults.clear()


@pytest.mark.parametrize("state", ["kept", "deleted"])
def test_sync_killed_while_copying_fetches_only_what_is_missing(
    host: Host, box: Sandbox, state: str
) -> None:
    done, broken, later = (
        box.push(f"library/{name}", "1", platforms=THREE) for name in ("done", "broken", "later")
    )
    pins = [{"image": f"{name}:1", "platforms": THREE} for name in ("done", "broken", "later")]
    host.configure(pins, limits={"parallel": 1})
    layer = own_layer(broken.child(ARM))
    hung = box.hub.cdn.faults.add(Fault("GET", f"*{layer[7:]}*", hang=60, count=None))
    kill_while_hanging(host, hung)

    before = [entry.reference for entry in box.hub.access.gets()]
    bought = [image.digest for one in (done, broken) for image in (one, *one.children)]
    assert sorted(before) == sorted(bought)
    assert host.charged() == 6
    assert box.mirrors[0].tags("library/done") == ["1"]
    assert box.mirrors[0].tags("library/broken") == []
    assert on_mirror(box, "library/broken", broken) == [AMD]

    if state == "deleted":
        host.forget_state()
    again = host.sync()
    assert again.actions[0] == ("done:1", "fresh")
    rest = [later.digest, *(child.digest for child in later.children)]
    if state == "kept":
        # All that was bought is remembered: no digest is ever asked for twice.
        assert sorted(again.digests()) == sorted(rest)
        assert host.charged() == 9
    else:
        lost = [broken.digest, broken.child(ARM).digest, broken.child(S390).digest]
        assert sorted(again.digests()) == sorted([*lost, *rest])
    # A blob that the mirror has does not cross the network again.
    assert not {digest_of(blob) for blob in broken.child(AMD).blobs} & set(again.blobs)
    for name, image in (("done", done), ("broken", broken), ("later", later)):
        for platform in THREE:
            got = host.pulled(f"library/{name}", ":1", platform)
            assert got == image.child(platform).digest
    assert host.sync().summary["fresh"] == 3


def test_sync_killed_while_buying_asks_again_only_for_the_unanswered(
    host: Host, box: Sandbox
) -> None:
    image = box.push("library/app", "1", platforms=THREE)
    host.configure([{"image": "app:1", "platforms": THREE}])
    slow = image.child(ARM).digest
    hung = box.hub.faults.add(Fault("GET", f"*/manifests/{slow}", hang=60))
    kill_while_hanging(host, hung)
    wait_until(lambda: len(box.hub.access.gets()) == 3, "third GET")
    # It died with its reservation in flight, which counts as spent.
    assert host.ledger() == [("library/app", 3, 4)]
    assert box.mirrors[0].catalog() == []

    again = host.sync()
    assert again.digests() == [slow, image.child(S390).digest]
    assert again.image("app:1")["pulls"] == 2
    assert host.charged() == 5
    assert host.sync().named("fresh") == ["app:1"]


def test_sync_killed_again_and_again_never_overdraws_nor_asks_twice(
    host: Host, box: Sandbox
) -> None:
    images = [box.push(f"library/app{n}", "1", platforms=[AMD, ARM]) for n in range(8)]
    layers = [own_layer(image.child(AMD)) for image in images[:2]]
    pins = [f"app{number}:1" for number in range(8)]
    budget = {"pulls": 6, "window": "6h", "reserve": 0}
    registries = {"docker.io": {"endpoint": box.hub.url, "budget": budget}}
    host.configure(pins, registries=registries, limits={"parallel": 2})
    for _ in range(2):
        # Two copies hang in their layers; the manifests of both are bought by then.
        faults = [Fault("GET", f"*{layer[7:]}*", hang=60, count=None) for layer in layers]
        kill_while_hanging(host, *map(box.hub.cdn.faults.add, faults))
        assert len(box.hub.access.gets()) == 4
    host.forget_requests()
    done = host.sync()
    assert done.named("copy") == pins[:6]
    assert done.named("defer") == pins[6:]
    assert len(done.gets) == 8
    assert host.charged() == 6


# --- lost on the mirror ---


@pytest.mark.parametrize("platforms", [[AMD], "all"])
@pytest.mark.parametrize(("state", "gets"), [("kept", 0), ("deleted", 1)])
def test_sync_deleted_tag_is_restored(
    host: Host, box: Sandbox, platforms: object, state: str, gets: int
) -> None:
    image = box.push("library/app", "1", platforms=[AMD, ARM])
    host.configure([{"image": "app:1", "platforms": platforms}])
    host.sync()
    mirror = box.mirrors[0]
    was = mirror.manifest("library/app", "1")
    assert was is not None
    assert mirror.delete("library/app", was[2])
    assert mirror.tags("library/app") == []
    if state == "deleted":
        host.forget_state()

    done = host.sync()
    assert done.digests() == [image.digest][:gets]
    assert done.image("app:1")["action"] == ("copy" if gets else "tag")
    assert done.blobs == ()
    assert mirror.manifest("library/app", "1") == was
    assert host.pulled("library/app", ":1", AMD) == image.child(AMD).digest


@pytest.mark.parametrize("platforms", [[AMD, ARM], "all"])
@pytest.mark.parametrize(("state", "gets"), [("kept", 0), ("deleted", 1)])
def test_sync_deleted_child_is_restored(
    host: Host, box: Sandbox, platforms: object, state: str, gets: int
) -> None:
    image = box.push("library/app", "1", platforms=THREE)
    host.configure([{"image": "app:1", "platforms": platforms}])
    host.sync()
    child = image.child(ARM)
    assert box.mirrors[0].delete("library/app", child.digest)
    # The index still answers: only asking for the child shows the loss.
    assert box.mirrors[0].manifest("library/app", "1") is not None
    if state == "deleted":
        host.forget_state()

    done = host.sync()
    assert done.digests() == [child.digest][:gets]
    assert done.image("app:1")["code"] in ("parts", "digest-there")
    assert host.pulled("library/app", ":1", ARM) == child.digest
    assert host.sync().writes == ((),)


@pytest.mark.parametrize(("state", "gets"), [("kept", 0), ("deleted", 1)])
def test_sync_deleted_single_manifest_is_restored(
    host: Host, box: Sandbox, state: str, gets: int
) -> None:
    image = box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    host.sync()
    assert box.mirrors[0].delete("library/app", image.digest)
    if state == "deleted":
        host.forget_state()
    done = host.sync()
    assert done.digests() == [image.digest][:gets]
    assert host.pulled("library/app", ":1", AMD) == image.digest


def test_sync_everything_lost_on_the_mirror_costs_no_pull(host: Host, box: Sandbox) -> None:
    image = box.push("library/app", "1", platforms=[AMD, ARM])
    host.configure(["app:1"])
    host.sync()
    mirror = box.mirrors[0]
    mirror.stop()
    mirror.storage.folder.rename(host.folder / "old-disk")
    mirror.storage.folder.mkdir()
    mirror.start()
    done = host.sync()
    assert done.gets == ()
    assert sorted(done.blobs) == sorted(digest_of(blob) for blob in image.child(AMD).blobs)
    assert host.pulled("library/app", ":1", AMD) == image.child(AMD).digest


def test_verify_names_a_lost_blob_and_repair_brings_it_back(host: Host, box: Sandbox) -> None:
    base = Layer("base", 20_000)
    app, other = (
        box.push(f"library/{name}", "1", layers=[base], platforms=[AMD, ARM])
        for name in ("app", "other")
    )
    sound = box.push("library/sound", "1")
    host.configure(["app:1", "other:1", "sound:1"])
    host.sync()
    assert host.run("verify").returncode == 0
    shared = digest_of(app.child(AMD).blobs[1])
    mirror = box.mirrors[0]
    mirror.storage.blob_file(shared).unlink()

    host.forget_requests()
    found = host.run("verify", "--json")
    assert found.returncode == 1
    broken = found.json["broken"]
    assert [one["image"] for one in broken] == [
        "docker.io/library/app:1",
        "docker.io/library/other:1",
    ]
    assert all(shared in one["problem"] for one in broken)
    assert found.json["checked"] == 3
    assert box.taps[0].access.writes() == []
    assert len(box.hub.access) == 0

    mended = host.run("verify", "--repair", "--json")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert box.hub.access.gets() == []
    # skopeo reads a config anew for each copy; of the layers only the lost one is moved, once.
    moved = [shared, *(digest_of(image.child(AMD).blobs[0]) for image in (app, other))]
    assert sorted(blobs_of(box)) == sorted(moved)
    assert mirror.storage.blob_file(shared).read_bytes() == app.child(AMD).blobs[1]
    for name, image in (("app", app), ("other", other), ("sound", sound)):
        assert host.pulled(f"library/{name}", ":1", AMD) == image.child(AMD).digest
    again = host.run("verify", "--json")
    assert (again.returncode, again.json["broken"]) == (0, [])


def test_verify_repair_spends_within_the_budget(host: Host, box: Sandbox) -> None:
    image = box.push("library/app", "1", platforms=[AMD, ARM])
    registries = {"docker.io": {"endpoint": box.hub.url, "budget": {"pulls": 1, "window": "6h"}}}
    host.configure(["app:1"], registries=registries)
    host.sync()
    assert box.mirrors[0].delete("library/app", image.child(AMD).digest)
    with host.sql() as sql, sql:
        sql.execute("DELETE FROM manifests WHERE digest = ?", (image.child(AMD).digest,))
    host.forget_requests()

    refused = host.run("verify", "--repair", "--json")
    assert refused.returncode == 1
    assert box.hub.access.gets() == []
    (waiting,) = refused.json["repair"]["images"]
    assert (waiting["action"], waiting["code"]) == ("defer", "budget")

    host.let_time_pass(6 * 3600)
    assert host.run("verify", "--repair").returncode == 0
    assert [entry.reference for entry in box.hub.access.gets()] == [image.child(AMD).digest]


def test_sync_broken_connections_to_the_network_are_mended_without_a_get(
    host: Host, box: Sandbox
) -> None:
    image = box.push("library/app", "1", platforms=[AMD, ARM], size=600_000)
    host.configure(["app:1"])
    layer = own_layer(image.child(AMD))
    box.hub.cdn.faults.add(Fault("GET", f"*{layer[7:]}*", cut=200_000, count=2))
    done = host.sync()
    assert Counter(done.digests()) == {image.digest: 1, image.child(AMD).digest: 1}
    assert done.blobs.count(layer) == 3
    assert host.pulled("library/app", ":1", AMD) == image.child(AMD).digest


def test_sync_reset_during_a_manifest_get_stays_charged(host: Host, box: Sandbox) -> None:
    image = box.push("library/app", "1", platforms=[AMD, ARM])
    box.push("library/other", "1")
    host.configure(["app:1", "other:1"])
    box.hub.faults.add(Fault("GET", f"*/manifests/{image.child(AMD).digest}", drop=True))
    broken = host.sync()
    assert broken.actions == [("app:1", "copy"), ("other:1", "copy")]
    assert Counter(broken.digests())[image.child(AMD).digest] == 2
    assert broken.image("app:1")["pulls"] == 2
    assert host.sync().digests() == []
    assert host.charged() == 3


def test_sync_index_is_tagged_only_when_all_of_it_is_there(host: Host, box: Sandbox) -> None:
    image = box.push("library/app", "1", platforms=THREE)
    host.configure([{"image": "app:1", "platforms": THREE}])
    host.sync()
    puts = [
        entry.reference for entry in box.taps[0].access.of("manifest", "PUT") if entry.status == 201
    ]
    assert sorted(puts[:-1]) == sorted(child.digest for child in image.children)
    assert puts[-1] == "1"
    index = box.mirrors[0].manifest("library/app", "1")
    assert index is not None
    assert len(json.loads(index[1])["manifests"]) == 3
