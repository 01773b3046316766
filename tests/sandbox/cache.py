"""A pull-through cache before a stand-in for Docker Hub, and time passing for it."""

from __future__ import annotations

import json
import re
from typing import Self

from tests.sandbox.registry import Registry
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.tap import Tap

_MANIFEST = re.compile(r".*/repositories/(.+)/_manifests/revisions/sha256/([0-9a-f]{64})/link")
_BLOB = re.compile(r".*/repositories/(.+)/_layers/sha256/([0-9a-f]{64})/link")


class Cache:
    """registry:2 with `proxy:` behind a tap; `remote` is another upstream than the box's Hub."""

    def __init__(self, box: Sandbox, name: str = "cache", remote: str | None = None) -> None:
        self.registry: Registry = box.registry(name, proxy=remote or box.hub.url)
        self.tap = Tap(self.registry)
        self.url = self.tap.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tap.close()

    @property
    def mirror(self) -> dict[str, str]:
        """It, as images.yml names it."""
        return {"url": self.url, "mode": "pull-through"}

    def entries(self) -> dict[str, int]:
        """Return what it has: `repository@digest`, and 1 for a manifest or 0 for a blob."""
        found = {}
        for file in self.registry.storage.folder.rglob("link"):
            for number, pattern in enumerate((_BLOB, _MANIFEST)):
                if named := pattern.fullmatch(str(file)):
                    found[f"{named[1]}@sha256:{named[2]}"] = number
        return found

    def forget_all(self) -> None:
        """Let the time come at which all that it has expires (its scheduler's own file tells)."""
        old = self.entries()
        self.registry.stop()
        past = "2020-01-01T00:00:00Z"
        state = {
            key: {"Key": key, "ExpiryData": past, "EntryType": kind} for key, kind in old.items()
        }
        (self.registry.storage.folder / "scheduler-state.json").write_text(json.dumps(state))
        self.registry.start()
