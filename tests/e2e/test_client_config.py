"""`prewarm client-config` as people run it, and what it prints in the programs it is for."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import ssl
import stat
import subprocess
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from prewarm.state import clock
from prewarm.state.ledger import Ledger
from tests.e2e.host import wait_until
from tests.sandbox import Registry
from tests.sandbox.authority import Authority
from tests.sandbox.client import Answer, Pool
from tests.sandbox.images import build_image, push
from tests.sandbox.registry import free_port
from tests.support.process import Finished, run_prewarm, run_skopeo
from tests.support.units import assert_units_are_valid

CONFIG = """\
version: 1
mirrors:
  - {url: http://127.0.0.1:5001, client_url: https://mirror.example.org, ca: /etc/ssl/ca.pem}
registries: {docker.io: {}, quay.io: {}}
state: state/prewarm.db
"""
LOOPBACK = "version: 1\nmirrors: [http://127.0.0.1:5000]\n"


def client_config(
    folder: Path, *args: str, config: str = CONFIG, options: Sequence[str] = ()
) -> Finished:
    return run_prewarm([*options, "client-config", *args], folder, config=config)


def printed(folder: Path, *args: str, config: str = CONFIG) -> str:
    finished = client_config(folder, *args, config=config)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def registry_files(folder: Path, config: str) -> Path:
    """Return the folder with the files of the kind registry."""
    out = folder / "out"
    printed(folder, "registry", "--output", str(out), config=config)
    return out


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- output ---


def test_client_config_dockerd_stdout_is_json_and_stderr_explains(tmp_path: Path) -> None:
    finished = client_config(tmp_path, "dockerd")
    assert finished.json == {"registry-mirrors": ["https://mirror.example.org"]}
    assert "/etc/docker/daemon.json" in finished.stderr
    assert "/etc/docker/certs.d/mirror.example.org/ca.crt" in finished.stderr
    quiet = client_config(tmp_path, "dockerd", options=["--quiet"])
    assert (quiet.stdout, quiet.stderr) == (finished.stdout, "")


def test_client_config_of_several_files_names_each_before_it(tmp_path: Path) -> None:
    parts = printed(tmp_path, "containerd").split("\n\n# certs.d/")
    assert len(parts) == 2
    assert parts[0].startswith("# certs.d/docker.io/hosts.toml\n")
    assert parts[1].startswith("quay.io/hosts.toml\n")
    read = [tomllib.loads(text.partition("\n")[2]) for text in parts]
    assert [toml["server"] for toml in read] == ["https://registry-1.docker.io", "https://quay.io"]


def test_client_config_output_writes_readable_files_with_right_names(tmp_path: Path) -> None:
    out = tmp_path / "deep/out"
    shown = printed(tmp_path, "containerd")
    finished = client_config(tmp_path, "containerd", "--output", str(out))
    assert (finished.returncode, finished.stdout) == (0, "")
    files = sorted(path for path in out.rglob("*") if path.is_file())
    assert [str(path.relative_to(out)) for path in files] == [
        "certs.d/docker.io/hosts.toml",
        "certs.d/quay.io/hosts.toml",
    ]
    assert all(path.read_text() in shown for path in files)
    assert all(f"wrote {path}" in finished.stderr for path in files)
    assert {mode(path) for path in files} == {0o644}
    assert {mode(path) for path in out.rglob("*") if path.is_dir()} == {0o755}


def test_client_config_output_is_readable_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        client_config(tmp_path, "podman", "--output", str(tmp_path / "out"))
    finally:
        os.umask(before)
    assert mode(tmp_path / "out/registries.conf.d") == 0o755
    assert mode(tmp_path / "out/registries.conf.d/50-prewarm.conf") == 0o644


def test_client_config_output_twice_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert client_config(tmp_path, "podman", "--output", str(out)).returncode == 0
    (file,) = (path for path in out.rglob("*") if path.is_file())
    before = file.stat()
    again = client_config(tmp_path, "podman", "--output", str(out))
    assert (again.returncode, again.stderr) == (0, "")
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("there", ["text", "link", "folder"])
def test_client_config_output_over_another_file_writes_nothing(tmp_path: Path, there: str) -> None:
    out = tmp_path / "out"
    file = out / "certs.d/quay.io/hosts.toml"
    file.parent.mkdir(parents=True)
    if there == "text":
        file.write_text("# mine\n")
    elif there == "link":
        file.symlink_to(tmp_path / "nowhere")
    else:
        file.mkdir()
    finished = client_config(tmp_path, "containerd", "--output", str(out))
    assert finished.returncode == 2
    assert str(file) in finished.stderr
    assert "; " in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (out / "certs.d/docker.io").exists()
    assert not (tmp_path / "nowhere").exists()
    if there == "text":
        assert file.read_text() == "# mine\n"


def test_client_config_output_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    finished = client_config(tmp_path, "dockerd", "--output", str(tmp_path / "out"))
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("kind", ["docker-machine", "kubernetes", "kaniko", "gitlab-runner"])
def test_client_config_of_loopback_for_other_hosts_is_exit_2(tmp_path: Path, kind: str) -> None:
    finished = client_config(tmp_path, kind, config=LOOPBACK)
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert "http://127.0.0.1:5000" in line
    assert "client_url:" in line


def test_client_config_of_an_unknown_kind_is_exit_2_and_lists_them(tmp_path: Path) -> None:
    finished = client_config(tmp_path, "dockerdd")
    assert finished.returncode == 2
    assert "containerd" in finished.stderr


def test_client_config_of_a_url_with_a_quote_is_exit_2(tmp_path: Path) -> None:
    config = "version: 1\nmirrors: ['https://a\"]\\n[evil']\n"
    finished = client_config(tmp_path, "buildkitd", config=config)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "images.yml:2" in finished.stderr


def test_client_config_kubernetes_reads_the_state_and_makes_none(tmp_path: Path) -> None:
    state = tmp_path / "state/prewarm.db"
    empty = printed(tmp_path, "kubernetes")
    assert "run prewarm sync first" in empty.replace("\n# ", " ")
    assert not state.parent.exists()
    state.parent.mkdir(mode=0o700)
    with Ledger.open(state) as ledger:
        image = "docker.io/library/golang:1.22"
        ledger.note_state(image, "http://127.0.0.1:5001", "fresh", None, clock.now())
    policy, _ = yaml.safe_load_all(printed(tmp_path, "kubernetes"))
    held = {one["name"]: one["expression"] for one in policy["spec"]["variables"]}
    assert json.loads(held["mirror1_1"]) == ["docker.io/library/golang:1.22"]


# --- skopeo, which reads the same file as podman ---


@pytest.mark.parametrize(
    ("image", "place"),
    [
        ("golang:1.22", "library/golang"),
        ("quay.io/acme/tool:1.22", "quay.io/acme/tool"),
        ("registry.example.org:5000/team/app:1.22", "registry.example.org_5000/team/app"),
    ],
)
def test_podman_drop_in_sends_skopeo_to_the_mirror_that_has_the_image(
    tmp_path: Path, image: str, place: str
) -> None:
    """The first mirror lacks it, the second has it, and nothing else can be reached."""
    built = build_image(single=True)
    with Registry(tmp_path / "first") as first, Registry(tmp_path / "second") as second:
        push(second, place, built, "1.22")
        config = (
            f"version: 1\nmirrors: ['{first.url}', '{second.url}']\n"
            "registries: {docker.io: {}, quay.io: {}, 'registry.example.org:5000': {}}\n"
        )
        out = tmp_path / "home/.config/containers"
        client_config(tmp_path, "podman", "--output", str(out), config=config)
        closed = {"HTTPS_PROXY": f"http://127.0.0.1:{free_port()}"}
        asked = run_skopeo(["inspect", "--raw", f"docker://{image}"], tmp_path, env=closed)
        assert (asked.returncode, asked.stdout.encode()) == (0, built.content), asked.stderr
        lacked = run_skopeo(["inspect", "--raw", f"docker://{image}-no"], tmp_path, env=closed)
        assert lacked.returncode != 0
        assert "proxyconnect" in lacked.stderr  # asked the registry itself in the end


# --- registry:2 with what is printed ---


@contextlib.contextmanager
def served(config: Path, pool: Pool) -> Iterator[None]:
    """Run a registry:2 with the configuration until the end of the block."""
    with (config.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"]},
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert pool.request("GET", "/v2/").status == 200
                break
            assert process.poll() is None, config.with_suffix(".log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        pool.close()
        process.kill()
        process.wait()


def put_image(pool: Pool, repository: str, tag: str) -> str:
    """Push an image without layers by hand; return its digest."""
    blob = b"{}"
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    started = pool.request("POST", f"/v2/{repository}/blobs/uploads/")
    assert started.status == 202
    location = started.headers["location"]
    put = pool.request("PUT", f"{location}&digest={digest}", {}, blob)
    assert put.status == 201
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest,
            "size": len(blob),
        },
        "layers": [],
    }
    body = json.dumps(manifest).encode()
    path = f"/v2/{repository}/manifests/{tag}"
    answer = pool.request("PUT", path, {"Content-Type": media_type}, body)
    assert answer.status == 201, answer.body
    return answer.headers["docker-content-digest"]


def manifest(pool: Pool, repository: str, tag: str) -> Answer:
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    return pool.request("GET", f"/v2/{repository}/manifests/{tag}", accept)


def test_registry_configuration_serves_what_the_writer_took_and_takes_nothing_itself(
    tmp_path: Path,
) -> None:
    """Two processes over one storage, TLS for the reader, and its garbage collection."""
    write, read = free_port(), free_port()
    storage = tmp_path / 'the "storage" #1'
    config = (
        f"version: 1\nmirrors:\n  - url: http://127.0.0.1:{write}\n"
        f"    client_url: https://mirror.example.org:{read}\n"
        f"    storage: {json.dumps(str(storage))}\n"
    )
    out = registry_files(tmp_path, config)
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue(["127.0.0.1"])
    reader_file, writer_file = out / "prewarm-reader.yml", out / "prewarm-writer.yml"
    reader_file.write_text(
        reader_file.read_text()
        .replace("/etc/docker/registry/tls.crt", str(certificate))
        .replace("/etc/docker/registry/tls.key", str(key))
    )
    trusted = ssl.create_default_context(cafile=authority.ca)
    writer, reader = Pool(f"http://127.0.0.1:{write}"), Pool(f"https://127.0.0.1:{read}", trusted)
    with served(reader_file, reader):
        with served(writer_file, writer):
            digest = put_image(writer, "library/golang", "1.22")
            gone = put_image(writer, "library/old", "1")
            found = manifest(reader, "library/golang", "1.22")
            assert (found.status, found.headers["docker-content-digest"]) == (200, digest)
            assert reader.request("POST", "/v2/library/golang/blobs/uploads/").status == 405
            assert reader.request("DELETE", f"/v2/library/golang/manifests/{digest}").status == 405
            assert writer.request("DELETE", f"/v2/library/old/manifests/{gone}").status == 202
        collected = subprocess.run(
            ["docker-registry", "garbage-collect", str(writer_file)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert collected.returncode == 0, collected.stdout + collected.stderr
        assert manifest(reader, "library/golang", "1.22").status == 200
        assert manifest(reader, "library/old", "1").status == 404


def test_registry_pull_through_configuration_caches_its_upstream(tmp_path: Path) -> None:
    write, port = free_port(), free_port()
    config = (
        "version: 1\nmirrors:\n"
        f"  - {{url: 'http://127.0.0.1:{write}', client_url: 'https://mirror.example.org'}}\n"
        f"  - {{url: 'http://10.0.0.5:{port}', mode: pull-through, storage: {tmp_path}/cache}}\n"
        f"registries: {{docker.io: {{endpoint: 'http://127.0.0.1:{write}'}}}}\n"
    )
    out = registry_files(tmp_path, config)
    writer_file = out / "prewarm-writer.yml"
    text = writer_file.read_text().replace("/var/lib/docker-registry", str(tmp_path / "origin"))
    writer_file.write_text(text)
    writer, proxy = Pool(f"http://127.0.0.1:{write}"), Pool(f"http://127.0.0.1:{port}")
    with served(writer_file, writer):
        digest = put_image(writer, "library/golang", "1.22")
        with served(out / "prewarm-proxy.yml", proxy):
            found = manifest(proxy, "library/golang", "1.22")
            assert (found.status, found.headers["docker-content-digest"]) == (200, digest)
            assert proxy.request("POST", "/v2/library/golang/blobs/uploads/").status == 405
        kept = tmp_path / "cache/docker/registry/v2/repositories/library/golang/_manifests"
        link = kept / f"revisions/sha256/{digest.removeprefix('sha256:')}/link"
        assert link.is_file()
        # A week later: registry:2 keeps when each entry expires in a file of its own.
        key = f"library/golang@{digest}"
        expired = {"Key": key, "ExpiryData": "2020-01-01T00:00:00Z", "EntryType": 1}
        (tmp_path / "cache/scheduler-state.json").write_text(json.dumps({key: expired}))
        with served(out / "prewarm-proxy.yml", proxy):
            wait_until(lambda: not link.exists(), "end of what expired")


def test_registry_units_are_valid_to_systemd(tmp_path: Path) -> None:
    strange = json.dumps(str(tmp_path / 'a "b" 100%n $HOME'))
    config = CONFIG.replace("ca: /etc/ssl/ca.pem", f"storage: {strange}")
    out = registry_files(tmp_path, config)
    units = sorted(path.name for path in out.iterdir() if path.suffix in {".service", ".timer"})
    assert len(units) == 5
    assert_units_are_valid(out, units)
