"""The probe on real mirrors, and engines as real programs: nothing is left of either."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from prewarm.clients.engines import find_engine
from prewarm.clients.probe_image import make_probe
from prewarm.core.errors import PrewarmError, RegistryError
from prewarm.core.manifest import digest_of
from prewarm.core.platforms import Platform
from prewarm.registry.client import Registry
from tests.e2e.host import wait_until
from tests.real.scripted import Scripted, error, reply
from tests.sandbox import Registry as RealRegistry
from tests.sandbox.wire import Request, Response
from tests.support.process import run_skopeo

AMD = Platform("linux", "amd64")
CONTENT = b"a few bytes"


def mirror(url: str) -> Registry:
    return Registry(url, url, role="mirror", environ={})


def test_probe_that_was_put_is_an_image_that_skopeo_copies_whole(
    registry: RealRegistry, tmp_path: Path
) -> None:
    probe = make_probe("t0ken", AMD)
    with mirror(registry.url) as own:
        for blob in (probe.config, probe.layer):
            own.put_blob("prewarm/probe", blob)
        own.put_manifest("prewarm/probe", "t0ken", probe.manifest)
    source = f"docker://{registry.url.removeprefix('http://')}/prewarm/probe:t0ken"
    copied = run_skopeo(
        ["copy", "--src-tls-verify=false", source, f"dir:{tmp_path / 'd'}"], tmp_path
    )
    assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "d/manifest.json").read_bytes() == probe.manifest.content
    for blob in (probe.config, probe.layer):
        assert (tmp_path / "d" / digest_of(blob).removeprefix("sha256:")).read_bytes() == blob


def test_put_blob_that_is_refused_cancels_its_upload_at_our_own_origin() -> None:
    def script(request: Request) -> Response:
        if request.method == "POST":
            # As a registry behind a proxy that ends TLS names itself.
            return reply(202, location="http://127.0.0.1:1/v2/app/blobs/uploads/u?_state=s")
        return error(500, "UNKNOWN") if request.method == "PUT" else reply(204)

    with Scripted(lambda one: reply() if one.path == "/v2/" else script(one)) as site:
        with mirror(site.url) as own, pytest.raises(RegistryError):
            own.put_blob("app", CONTENT)
        upload = "/v2/app/blobs/uploads/u?_state=s"
        digest = digest_of(CONTENT).replace(":", "%3A")
        assert [(one.method, one.target) for one in site.requests if one.path != "/v2/"] == [
            ("POST", "/v2/app/blobs/uploads/"),
            ("PUT", f"{upload}&digest={digest}"),
            ("DELETE", upload),
        ]


@pytest.mark.parametrize("ignores", [False, True], ids=["obeys", "ignores SIGTERM"])
def test_find_engine_that_hangs_ends_with_all_its_children_at_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignores: bool
) -> None:
    monkeypatch.setattr("prewarm.clients.engines._GRACE", 0.2)
    alive = tmp_path / "alive"
    program = tmp_path / "podman"
    trap = "trap '' TERM\n" if ignores else ""
    begun = f"sleep 600 &\necho $! >{alive}.new\nmv {alive}.new {alive}\n"
    program.write_text(f"#!/bin/sh\n{trap}{begun}wait\n")
    program.chmod(0o755)
    stop = threading.Event()

    def end_soon() -> None:
        wait_until(alive.exists, "program")
        stop.set()

    watcher = threading.Thread(target=end_soon)
    watcher.start()
    with pytest.raises(PrewarmError, match="it was ended"):
        find_engine("podman", {"PATH": f"{tmp_path}:/usr/bin:/bin"}, stop, "0")
    watcher.join()
    wait_until(lambda: is_over(alive.read_text().strip()), "end of its child")


def is_over(process: str) -> bool:
    """Whether it has ended, be it that nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
