"""The clients whose pulls are counted: Debian's dockerd, BuildKit, containerd, podman and buildah.

Each reads what `prewarm client-config` printed for it, at the place that the print names, and has a
store of its own. What it got is told by the diff_ids of the layers: of one platform of one image.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Final, Protocol

from tests.clients.machine import Machine
from tests.support.process import Finished

_STORAGE: Final = (
    '[storage]\ndriver = "vfs"\nrunroot = "/run/c"\ngraphroot = "/var/lib/containers"\n'
)
_ACCEPT_ANY: Final = '{"default": [{"type": "insecureAcceptAnything"}]}\n'
# No container is run: the machine of a test may have neither cgroups nor AppArmor to give.
_CONTAINERD: Final = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  disable_apparmor = true
  disable_cgroup = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
"""


class PullError(Exception):
    """The client did not get the image; the text is what it said."""


class Program(Protocol):
    """A client on its machine."""

    kind: str
    """What `prewarm client-config` calls it."""
    home: str
    """Where the files for it go: what `--output` names on its machine."""

    def start(self, machine: Machine) -> None:
        """Bring the machine up, whose files for the client are in place."""

    def pull(self, machine: Machine, image: str) -> tuple[str, ...]:
        """Get an image and return the diff_ids of its layers; PullError where that fails."""


class Dockerd:
    """`docker pull`."""

    kind, home = "dockerd", "/etc/docker"

    def start(self, machine: Machine) -> None:
        options = ("--storage-driver=vfs", "--bridge=none", "--iptables=false", "--ip6tables=false")
        machine.start(["dockerd", *options], ["docker", "version"])

    def pull(self, machine: Machine, image: str) -> tuple[str, ...]:
        _want(machine.run("docker", "pull", "--quiet", image))
        return _docker_layers(machine, image)


class BuildKit(Dockerd):
    """`docker build`, by the BuildKit inside dockerd: FROM the image and COPY."""

    def pull(self, machine: Machine, image: str) -> tuple[str, ...]:
        _write_context(machine, image)
        switch = {"DOCKER_BUILDKIT": "1"}
        _want(machine.run("docker", "build", "--quiet", "--tag=built", "context", env=switch))
        return _docker_layers(machine, "built")[:-1]


def _docker_layers(machine: Machine, image: str) -> tuple[str, ...]:
    shown = machine.run("docker", "image", "inspect", "--format={{json .RootFS.Layers}}", image)
    return tuple(json.loads(_want(shown)))


class Ctr:
    """`ctr images pull` with containerd."""

    kind, home = "containerd", "/etc/containerd"

    def start(self, machine: Machine) -> None:
        machine.write("/etc/containerd/config.toml", _CONTAINERD)
        machine.start(["containerd"], ["ctr", "version"])

    def pull(self, machine: Machine, image: str) -> tuple[str, ...]:
        # A namespace of its own shows what came with this image alone.
        space = f"--namespace={secrets.token_hex(8)}"
        hosts = ("--snapshotter=native", "--hosts-dir=/etc/containerd/certs.d")
        _want(machine.run("ctr", space, "images", "pull", *hosts, image))
        held = _want(machine.run("ctr", space, "content", "list", "--quiet")).split()
        blobs = [machine.run("ctr", space, "content", "get", digest).stdout for digest in held]
        (config,) = (blob for blob in blobs if '"diff_ids"' in blob)
        return tuple(json.loads(config)["rootfs"]["diff_ids"])


class Cri(Ctr):
    """`PullImage` on containerd's CRI socket, which is what kubelet calls."""

    def pull(self, machine: Machine, image: str) -> tuple[str, ...]:
        # message PullImageRequest { ImageSpec image = 1 { string image = 1 } }
        answer = _call(machine, "ImageService/PullImage", _field(_field(image.encode())))
        # message PullImageResponse { string image_ref = 1 }: the digest of the image's config.
        config = answer[2:].decode()
        got = machine.run("ctr", "--namespace=k8s.io", "content", "get", config)
        return tuple(json.loads(_want(got))["rootfs"]["diff_ids"])


def _field(content: bytes) -> bytes:
    """Return a protobuf message of one field, number 1, whose length fits a byte."""
    assert len(content) < 128
    return bytes([0x0A, len(content)]) + content


def _call(machine: Machine, method: str, request: bytes) -> bytes:
    """Return the answer to a gRPC call of the CRI; HTTP/2 over the socket is curl's."""
    done = machine.run(
        *("curl", "--silent", "--show-error", "--http2-prior-knowledge", "--noproxy", "*"),
        *("--header", "content-type: application/grpc", "--header", "te: trailers"),
        *("--dump-header", "headers", "--output", "answer", "--data-binary", "@-"),
        *("--unix-socket", "/run/containerd/containerd.sock"),
        f"http://localhost/runtime.v1.{method}",
        stdin=b"\0" + len(request).to_bytes(4, "big") + request,
    )
    _want(done)
    told = (machine.folder / "headers").read_text().lower()
    if "grpc-status: 0" not in told:
        raise PullError(told)
    return (machine.folder / "answer").read_bytes()[5:]


class Podman:
    """`podman pull`."""

    kind, home = "podman", "/etc/containers"

    def start(self, machine: Machine) -> None:
        machine.write("/etc/containers/storage.conf", _STORAGE)
        machine.write("/etc/containers/policy.json", _ACCEPT_ANY)
        machine.write("/etc/containers/registries.conf", "")

    def pull(self, machine: Machine, image: str) -> tuple[str, ...]:
        got = _want(machine.run("podman", "pull", "--quiet", image)).strip()
        shown = machine.run("podman", "image", "inspect", "--format={{json .RootFS.Layers}}", got)
        return tuple(json.loads(_want(shown)))


class Buildah(Podman):
    """`buildah bud`: FROM the image and COPY."""

    def pull(self, machine: Machine, image: str) -> tuple[str, ...]:
        _write_context(machine, image)
        _want(machine.run("buildah", "bud", "--quiet", "--isolation=chroot", "--tag=x", "context"))
        shown = json.loads(_want(machine.run("buildah", "inspect", "--type=image", "x")))
        return tuple(shown["OCIv1"]["rootfs"]["diff_ids"][:-1])


def _write_context(machine: Machine, image: str) -> None:
    folder = machine.folder / "context"
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(f"FROM {image}\nCOPY Dockerfile /copied\n")


def _want(finished: Finished) -> str:
    if finished.returncode != 0:
        raise PullError(finished.stderr or finished.stdout)
    return finished.stdout


PROGRAMS: Final[Mapping[str, Program]] = {
    "dockerd": Dockerd(),
    "BuildKit": BuildKit(),
    "ctr": Ctr(),
    "containerd (CRI)": Cri(),
    "podman": Podman(),
    "buildah": Buildah(),
}
"""Each client by its name in the docs."""
