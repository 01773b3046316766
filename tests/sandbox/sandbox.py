"""All that prewarm needs around it, on loopback and in a temporary folder: Hub and mirrors.

with Sandbox(mirrors=1, quota=Quota(100)) as box:
    box.push("library/alpine", "3.19", platforms=["linux/amd64", "linux/arm64"])
    ...
    assert len(box.hub.access.gets()) == 2
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.sandbox.hub import Hub, Rules
from tests.sandbox.images import Image, build_image, push
from tests.sandbox.names import Names
from tests.sandbox.registry import Registry
from tests.sandbox.server import Site
from tests.sandbox.tap import Tap


class Sandbox:
    """`upstream` behind `hub`, and `mirrors`, each behind its tap in `taps`.

    `rules` are the fields of `hub.Rules`. With `names=True` the Hub is also behind `names.env()`
    as registry-1.docker.io. Everything ends with the block.
    """

    def __init__(
        self,
        mirrors: int = 1,
        *,
        latency: float = 0.0,
        token_host: str | None = None,
        names: bool = False,
        **rules: Any,
    ) -> None:
        with ExitStack() as stack:
            self.path = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="prewarm-sandbox-"))
            )
            self._stack = stack
            self.upstream = self.registry("upstream")
            self.hub = stack.enter_context(
                Hub(self.upstream, Rules(**rules), latency=latency, token_host=token_host)
            )
            self.mirrors = [self.registry(f"mirror-{n}") for n in range(1, mirrors + 1)]
            self.taps = [stack.enter_context(Tap(mirror)) for mirror in self.mirrors]
            self._names = self.under_real_names() if names else None
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def names(self) -> Names:
        if self._names is None:
            self._names = self.under_real_names()
        return self._names

    def registry(self, name: str, **options: Any) -> Registry:
        """Start one more registry in the sandbox's folder."""
        return self._stack.enter_context(Registry(self.path / name, **options))

    def under_real_names(
        self,
        others: Mapping[str, Site] | None = None,
        private: Mapping[str, Site] | None = None,
    ) -> Names:
        """Start a proxy behind which the Hub, and others, have their real names; see Names."""
        return self._stack.enter_context(Names(self.path / "ca", self.hub, others, private))

    def push(self, repository: str, *tags: str, **options: Any) -> Image:
        """Build an image (options of `build_image`) and put it upstream under the tags.

        Its own layer is named after the repository unless `name` says otherwise.
        """
        options.setdefault("name", repository)
        return push(self.upstream, repository, build_image(**options), *tags)

    def authfile(self, account: str = "acme", password: str = "sesame") -> Path:
        """Write credentials for the Hub, as `skopeo login` would, and return the file."""
        encoded = base64.b64encode(f"{account}:{password}".encode()).decode()
        key = self.hub.url.removeprefix("http://")
        entry = {"auth": encoded}
        file = self.path / "auth.json"
        file.touch(0o600)
        file.write_text(json.dumps({"auths": {key: entry, "docker.io": entry}}))
        return file
