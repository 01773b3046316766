"""What registry:2 with `proxy:` does, as far as the plan of pull-through mirrors stands on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.host import wait_until
from tests.sandbox import Sandbox
from tests.sandbox.cache import Cache

AMD = "linux/amd64"


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(mirrors=0) as sandbox:
        yield sandbox


@pytest.fixture
def cache(box: Sandbox) -> Iterator[Cache]:
    with Cache(box) as running:
        yield running


def asked(box: Sandbox) -> list[str]:
    """Return the methods of the manifest requests that came to the Hub, and forget them."""
    methods = [entry.method for entry in box.hub.access.of("manifest")]
    box.hub.access.clear()
    return methods


def test_cache_asks_upstream_for_a_tag_by_head_and_for_what_it_lacks_by_one_get(
    box: Sandbox, cache: Cache
) -> None:
    image = box.push("library/app", "1", "2", platforms=[AMD, "linux/arm64"])
    costs: dict[str, list[list[str]]] = {}
    for selector in ("1", "1", "2", image.child(AMD).digest, image.child(AMD).digest):
        assert cache.registry.manifest("library/app", selector) is not None
        costs.setdefault(selector, []).append(asked(box))
    assert costs == {
        "1": [["HEAD", "GET"], ["HEAD"]],
        "2": [["HEAD"]],
        image.child(AMD).digest: [["GET"], []],
    }


def test_cache_head_of_a_cold_tag_costs_a_get(box: Sandbox, cache: Cache) -> None:
    image = box.push("library/app", "1")
    headers = {"Accept": image.media_type}
    answer = cache.registry.request("HEAD", "/v2/library/app/manifests/1", headers)
    assert answer.status == 200
    assert asked(box) == ["HEAD", "GET"]


def test_cache_asked_before_an_entry_expires_keeps_it_no_longer(box: Sandbox, cache: Cache) -> None:
    image = box.push("library/app", "1")
    assert cache.registry.manifest("library/app", "1") is not None
    key = f"library/app@{image.digest}"
    wait_until(lambda: key in cache.entries(), "entry")
    cache.registry.stop()
    soon = (datetime.now(UTC) + timedelta(seconds=4)).strftime("%Y-%m-%dT%H:%M:%SZ")
    state = {key: {"Key": key, "ExpiryData": soon, "EntryType": 1}}
    (cache.registry.storage.folder / "scheduler-state.json").write_text(json.dumps(state))
    cache.registry.start()
    asked(box)

    def is_pulled() -> bool:
        return cache.registry.manifest("library/app", "1") is not None and "GET" in asked(box)

    # Were it kept for seven days from when it was last asked for, this would never come.
    wait_until(is_pulled, "pull of what expired")
