"""What clients need so that they ask the mirror first, as files with comments.

What each client does with its settings was measured on Debian 12; docs/clients.md has the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from prewarm.clients.files import (
    ClientMirror,
    File,
    client_mirrors,
    insecure,
    listed,
    mirrors_of,
    on_loopback,
    quoted,
    reachable,
    remarks,
)
from prewarm.clients.kubernetes import kubernetes
from prewarm.clients.registry_units import registry
from prewarm.core.errors import UsageError
from prewarm.core.platforms import ALL
from prewarm.core.records import Known
from prewarm.core.settings import DOCKER_HUB, DOCKER_HUB_ENDPOINT, Settings, Upstream

_OTHERS: Final = "dockerd asks a mirror for Docker Hub's images alone; others it pulls directly."
_READS: Final = (
    "The mirror must answer reads without a login: dockerd never sends one to a mirror, and a 401 "
    "or 403 breaks builds with an older BuildKit."
)


def client_config(
    kind: str, settings: Settings, known: tuple[Known, ...] = (), *, ask_upstream: bool = False
) -> tuple[File, ...]:
    """Return the files for a kind of client (a key of KINDS).

    `known` is what the state knows of the mirrors (for kubernetes). `ask_upstream` lets containerd
    ask the registry itself, by HEAD, what a tag is. Raises UsageError where the configuration
    serves no such client.
    """
    if kind == "containerd":
        return containerd(settings, ask_upstream=ask_upstream)
    if ask_upstream:
        raise UsageError(
            "usage", f"--ask-upstream is for containerd, not for {kind}", "leave it out"
        )
    if kind == "kubernetes":
        return kubernetes(settings, known)
    return KINDS[kind](settings)


# -- dockerd ----------------------------------------------------------------------------------


def dockerd(settings: Settings) -> tuple[File, ...]:
    """Return daemon.json for dockerd and the BuildKit inside it."""
    _want_hub(settings, "dockerd")
    found = client_mirrors(settings)
    comment = (
        "Copy it to /etc/docker/daemon.json, or add its keys to the one that is there; then "
        "`systemctl reload docker`. What the mirror lacks comes from Docker Hub.",
        _OTHERS,
        _READS,
        "dockerd warns of http:// in insecure-registries; its BuildKit would use TLS without it."
        if insecure(found)
        else "",
        _ca_of_docker(found),
        on_loopback(found, "For others write client_url: in images.yml."),
    )
    return (File("daemon.json", _daemon_json(found), "\n".join(filter(None, comment))),)


def _daemon_json(found: tuple[ClientMirror, ...]) -> str:
    keys: dict[str, list[str]] = {"registry-mirrors": [one.url for one in found]}
    if plain := insecure(found):
        keys["insecure-registries"] = list(plain)
    return json.dumps(keys, indent=2, ensure_ascii=False) + "\n"


def _ca_of_docker(found: tuple[ClientMirror, ...], more: str = "") -> str:
    return _ca(found, lambda one: f"/etc/docker/certs.d/{one.host}/ca.crt", more)


def _ca(
    found: tuple[ClientMirror, ...], place: Callable[[ClientMirror], str], more: str = ""
) -> str:
    """Return where the CA of each mirror goes on the client; nothing where none is private."""
    told = [f"copy {one.settings.ca} to {place(one)}" for one in found if one.private]
    return f"The CA of the mirror: {'; '.join(told)}. {more}".strip() if told else ""


def _want_hub(settings: Settings, kind: str) -> None:
    if all(upstream.name != DOCKER_HUB for upstream in settings.registries):
        raise UsageError(
            "registry",
            f"{kind} asks mirrors for docker.io alone, which is not under registries:",
            "add it there, or use a client that knows other mirrors, such as containerd or podman",
        )


def docker_machine(settings: Settings) -> tuple[File, ...]:
    """Return the options by which docker-machine gives its machines the mirror."""
    _want_hub(settings, "docker-machine")
    found = reachable(settings, "docker-machine", "there each machine finds only itself")
    options = [f"engine-registry-mirror={one.url}" for one in found]
    options += [f"engine-insecure-registry={url}" for url in insecure(found)]
    head = remarks(
        "Part of /etc/gitlab-runner/config.toml: add the options to the MachineOptions of your "
        "docker+machine runner. Machines that run keep what they were made with.",
        _OTHERS,
        _READS,
        _ca_of_docker(found, "In the image that the machines start."),
    )
    rows = "".join(f"      {quoted(option)},\n" for option in options)
    text = (
        '[[runners]]\n  executor = "docker+machine"\n\n'
        f"  [runners.machine]\n    MachineOptions = [\n{rows}    ]\n"
    )
    return (File("docker-machine.toml", head + text),)


# -- containerd, BuildKit, podman -------------------------------------------------------------


def containerd(settings: Settings, *, ask_upstream: bool = False) -> tuple[File, ...]:
    """Return one hosts.toml for each registry, for containerd's certs.d."""
    served = _served("containerd", settings, client_mirrors(settings))
    whole = [upstream for upstream, _ in served if _is_whole(settings, upstream)]
    if ask_upstream and not whole:
        raise UsageError(
            "usage",
            "--ask-upstream needs platforms: all: of a reduced index the registry tells another "
            "digest, so that each pull would fetch the index from there",
            "write platforms: all, or leave --ask-upstream out",
        )
    return tuple(
        _hosts_toml(upstream, among, upstream in whole, ask_upstream and upstream in whole)
        for upstream, among in served
    )


def _served(
    kind: str, settings: Settings, found: tuple[ClientMirror, ...]
) -> tuple[tuple[Upstream, tuple[ClientMirror, ...]], ...]:
    """Return each registry with the mirrors that can hold its images; UsageError for none."""
    served = tuple(
        (upstream, among)
        for upstream in settings.registries
        if (among := mirrors_of(upstream.name, found))
    )
    if not served:
        raise UsageError(
            "registry",
            f"{kind}: a pull-through mirror has docker.io alone, which is not under registries:",
            "add it there, or a push mirror under mirrors:",
        )
    return served


def _is_whole(settings: Settings, upstream: Upstream) -> bool:
    """Whether the registry's indexes are kept whole, so that their digests are upstream's."""
    return (upstream.platforms or settings.platforms) == ALL and not any(
        pin.platforms not in (None, ALL)
        for pin in settings.pins
        if pin.reference.registry == upstream.name
    )


def _hosts_toml(
    upstream: Upstream, found: tuple[ClientMirror, ...], whole: bool, ask_upstream: bool
) -> File:
    folder = f"certs.d/{_containerd_folder(upstream.name)}"
    server = _fallback(upstream.name)
    head = remarks(
        f"/etc/containerd/{folder}/hosts.toml: {upstream.name} from the mirror first, then from "
        f"{server}. It counts at the next pull, without a restart, once config_path is "
        '"/etc/containerd/certs.d" in /etc/containerd/config.toml: under '
        '[plugins."io.containerd.grpc.v1.cri".registry] (1.x) or '
        '[plugins."io.containerd.cri.v1.images".registry] (2.x); ctr wants --hosts-dir.',
        "One file for each registry, each with its own path on the mirror: a _default would answer "
        "ghcr.io/acme/tool with Docker Hub's acme/tool. override_path: the path is complete.",
        _tags(upstream.name, whole, ask_upstream),
        "dial_timeout (newer containerd; older ones pass over it): a mirror whose host is "
        "gone costs 2 s for each request, not 30 s.",
        _ca(
            found,
            lambda one: f"/etc/containerd/certs.d/{one.host}.crt",
            "Do it first: without the file each pull fails.",
        ),
        on_loopback(found, "For others write client_url: in images.yml."),
    )
    text = f"\nserver = {quoted(server)}\n"
    for one in found:
        text += _host_table(one, upstream.name, ask_upstream)
    return File(f"{folder}/hosts.toml", head + text)


def _host_table(one: ClientMirror, registry: str, ask_upstream: bool) -> str:
    rows = [
        f"\n[host.{quoted(f'{one.url}/v2{one.path_of(registry)}')}]",
        f"  capabilities = {listed(('pull',) if ask_upstream else ('pull', 'resolve'))}",
        "  override_path = true",
        '  dial_timeout = "2s"',
    ]
    if one.private:
        rows.append(f"  ca = {quoted(f'../{one.host}.crt')}")
    return "\n".join(rows) + "\n"


def _tags(registry: str, whole: bool, ask_upstream: bool) -> str:
    if ask_upstream:
        return (
            f'No "resolve": what a tag is {registry} is asked by HEAD, which costs no pull; '
            "the content comes from the mirror. Pulls fail while it is down or answers 429."
        )
    return '"resolve": the mirror says what a tag is, also while the registry is down. ' + (
        f"To ask {registry} by HEAD instead: prewarm client-config containerd --ask-upstream."
        if whole
        else "Keep it: the mirror has indexes of chosen platforms, whose digests the registry does "
        "not tell, so that without it each pull would cost one there."
    )


def _containerd_folder(registry: str) -> str:
    """Return the folder where containerd looks first: `host_port_` where there is a port."""
    host, colon, port = registry.partition(":")
    return f"{host}_{port}_" if colon else host


def _fallback(registry: str) -> str:
    """Return where the client asks without a mirror: not where prewarm does, by `endpoint`."""
    return DOCKER_HUB_ENDPOINT if registry == DOCKER_HUB else f"https://{registry}"


def buildkitd(settings: Settings) -> tuple[File, ...]:
    """Return buildkitd.toml for a BuildKit of its own, as buildx starts it."""
    found = client_mirrors(settings)
    head = remarks(
        "/etc/buildkit/buildkitd.toml, or by `docker buildx create --buildkitd-config FILE`. The "
        "BuildKit inside dockerd reads daemon.json instead: prewarm client-config dockerd.",
        "What the mirror lacks comes from the registry itself. Registries other than Docker Hub "
        "have a path of their own on the mirror, which old versions of BuildKit cannot ask for.",
        _READS,
        _ca(found, _buildkit_ca, "Do it first; buildx takes it into its builder."),
        on_loopback(found, "A builder in a container needs --driver-opt network=host."),
    )
    text = "".join(
        f"\n[registry.{quoted(upstream.name)}]\n"
        f"  mirrors = {listed(tuple(one.host + one.path_of(upstream.name) for one in among))}\n"
        for upstream, among in _served("buildkitd", settings, found)
    )
    for one in found:
        if one.plain:
            text += f"\n[registry.{quoted(one.host)}]\n  http = true\n"
        elif one.private:
            text += f"\n[registry.{quoted(one.host)}]\n  ca = {listed((_buildkit_ca(one),))}\n"
    return (File("buildkitd.toml", head + text),)


def _buildkit_ca(one: ClientMirror) -> str:
    return f"/etc/buildkit/certs/{one.host}.crt"


def podman(settings: Settings) -> tuple[File, ...]:
    """Return the drop-in of registries.conf that podman, buildah, CRI-O and skopeo read."""
    found = client_mirrors(settings)
    head = remarks(
        "/etc/containers/registries.conf.d/50-prewarm.conf: for podman, buildah, CRI-O and skopeo. "
        "It counts at the next pull; CRI-O wants `systemctl reload crio`.",
        "What the mirror lacks comes from the registry itself; but a mirror that has a manifest "
        "and lacks one of its layers fails the pull: prewarm verify finds that.",
        "pull-from-mirror stays at all: digest-only would ask the registry for each tag by GET, "
        "and so cost a pull. insecure: plain HTTP, as images.yml says.",
        _ca(
            found,
            lambda one: f"/etc/containers/certs.d/{one.host}/ca.crt",
            "Without it pulls go to the registry, and nothing tells.",
        ),
        on_loopback(found, "For others write client_url: in images.yml."),
    )
    text = ""
    for upstream, among in _served("podman", settings, found):
        name = quoted(upstream.name)
        text += f"\n[[registry]]\nprefix = {name}\nlocation = {name}\n"
        for one in among:
            place = one.host + one.path_of(upstream.name)
            text += f"\n[[registry.mirror]]\nlocation = {quoted(place)}\n"
            text += "insecure = true\n" * one.plain
    return (File("registries.conf.d/50-prewarm.conf", head + text),)


# -- CI: kaniko, GitLab Runner ----------------------------------------------------------------


def kaniko(settings: Settings) -> tuple[File, ...]:
    """Return a hidden job for .gitlab-ci.yml with kaniko's options, which has no file for them."""
    found = reachable(settings, "kaniko", "there each job finds only itself")
    flags: list[str] = []
    for upstream, among in _served("kaniko", settings, found):
        for one in among:
            if upstream.name == DOCKER_HUB:
                flags.append(f"--registry-mirror={one.host}")
            else:
                place = one.host + one.path_of(upstream.name)
                flags.append(f"--registry-map={upstream.name}={place}")
    for one in found:
        if one.plain:
            flags.append(f"--insecure-registry={one.host}")
        elif one.private:
            flags.append(f"--registry-certificate={one.host}={_kaniko_ca(one)}")
    head = remarks(
        "For .gitlab-ci.yml or a file that it includes. A job that builds says extends: "
        ".prewarm-kaniko and calls /kaniko/executor $PREWARM_KANIKO with its own options.",
        "What the mirror lacks comes from the registry itself: never add "
        "--skip-default-registry-fallback. --registry-map with a path needs kaniko 1.23 or later.",
        _ca(found, _kaniko_ca, "By volumes of the runner, or in your kaniko image."),
    )
    text = f"\n.prewarm-kaniko:\n  variables:\n    PREWARM_KANIKO: {quoted(' '.join(flags))}\n"
    return (File("kaniko.gitlab-ci.yml", head + text),)


def _kaniko_ca(one: ClientMirror) -> str:
    return f"/kaniko/ssl/certs/{one.host.replace(':', '_')}.crt"


def gitlab_runner(settings: Settings) -> tuple[File, ...]:
    """Return parts of the runner's config.toml for each executor, and daemon.json for docker:dind.

    The images of jobs and services are pulled by the engine below (dockerd, containerd), which has
    a configuration of its own; only docker:dind in a job needs the runner's help.
    """
    _want_hub(settings, "gitlab-runner (docker:dind)")
    found = reachable(
        settings,
        "gitlab-runner",
        "there docker:dind and the runner's machines find only themselves",
    )
    return (
        File("docker.toml", _runner_docker(found)),
        File("docker-autoscaler.toml", _runner_autoscaler(found)),
        File("kubernetes.toml", _runner_kubernetes(found)),
        File(
            "dind-daemon.json",
            _daemon_json(found),
            "/etc/gitlab-runner/dind-daemon.json on the host where jobs run: docker:dind reads it.",
        ),
        File("dind-configmap.yaml", _runner_configmap(found)),
    )


_PULLS: Final = (
    "always: each job asks the mirror what the tag is, by HEAD, and sees new images; "
    "if-not-present: when neither mirror nor registry answers, the image that is there does."
)
_DIND: Final = "/etc/gitlab-runner/dind-daemon.json:/etc/docker/daemon.json:ro"


def _runner_docker(found: tuple[ClientMirror, ...]) -> str:
    head = remarks(
        "Part of /etc/gitlab-runner/config.toml, executor docker. Images of jobs and services are "
        "pulled by the dockerd of the host: prewarm client-config dockerd.",
        _PULLS,
        "The volume gives the mirror to docker:dind services; add it to those that are there.",
        _ca_of_docker(found, "The second volume hands it to docker:dind."),
    )
    return head + _runner("docker", found)


def _runner_autoscaler(found: tuple[ClientMirror, ...]) -> str:
    head = remarks(
        "Part of /etc/gitlab-runner/config.toml, executor docker-autoscaler. Images are pulled by "
        "the dockerd of each instance: put daemon.json (prewarm client-config dockerd) and "
        "/etc/gitlab-runner/dind-daemon.json into the image that instances start from.",
        _PULLS,
        "The volume gives the mirror to docker:dind services.",
        _ca_of_docker(found, "In that image, too."),
    )
    return head + _runner("docker-autoscaler", found)


def _runner(executor: str, found: tuple[ClientMirror, ...]) -> str:
    volumes: tuple[str, ...] = ("/cache", _DIND)
    if any(one.private for one in found):
        volumes += ("/etc/docker/certs.d:/etc/docker/certs.d:ro",)
    return (
        f"[[runners]]\n  executor = {quoted(executor)}\n\n  [runners.docker]\n"
        f'    pull_policy = ["always", "if-not-present"]\n    volumes = {listed(volumes)}\n'
    )


def _runner_kubernetes(found: tuple[ClientMirror, ...]) -> str:
    head = remarks(
        "Part of config.toml, executor kubernetes (with the Helm chart: under runners.config). "
        "Images of jobs are pulled by the nodes: prewarm client-config containerd (CRI-O: podman), "
        "or kubernetes where nodes cannot be touched.",
        _PULLS,
        "The volume gives the mirror to docker:dind services; its ConfigMap is in "
        "dind-configmap.yaml.",
        _ca_of_docker(found, "By a second ConfigMap, in docker:dind."),
    )
    return head + (
        '[[runners]]\n  executor = "kubernetes"\n\n  [runners.kubernetes]\n'
        '    pull_policy = ["always", "if-not-present"]\n\n'
        "    [[runners.kubernetes.volumes.config_map]]\n"
        '      name = "prewarm-dind"\n      mount_path = "/etc/docker/daemon.json"\n'
        '      sub_path = "daemon.json"\n'
    )


def _runner_configmap(found: tuple[ClientMirror, ...]) -> str:
    head = remarks(
        "For the namespace in which the jobs of the runner run: kubectl apply -n NAMESPACE -f FILE."
    )
    return head + (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: prewarm-dind\ndata:\n"
        f"  daemon.json: {quoted(_daemon_json(found))}\n"
    )


KINDS: Final[Mapping[str, Callable[[Settings], tuple[File, ...]]]] = {
    "dockerd": dockerd,
    "docker-machine": docker_machine,
    "containerd": containerd,
    "buildkitd": buildkitd,
    "podman": podman,
    "kaniko": kaniko,
    "gitlab-runner": gitlab_runner,
    "kubernetes": kubernetes,
    "registry": registry,
}
