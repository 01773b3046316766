"""What clients are given: read by the parser of each format, the values that matter checked."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prewarm.cli import main
from prewarm.clients import output
from prewarm.clients.config_files import KINDS, client_config
from prewarm.clients.files import File, quoted, remarks
from prewarm.config import reader as config
from prewarm.core.errors import ConfigError, UsageError
from prewarm.core.platforms import ALL, DEFAULT
from prewarm.core.records import Known
from prewarm.core.reference import parse
from prewarm.core.settings import Limits, Mirror, Pin, Settings, Upstream
from tests.support.kubernetes import assert_manifest_is_valid
from tests.support.stranger import UID, needs_root
from tests.support.units import read_unit

HUB = Upstream("docker.io", "https://registry-1.docker.io")
QUAY = Upstream("quay.io", "https://quay.io")
PORTED = Upstream("registry.example.org:5000", "https://registry.example.org:5000")
CA = Path("/etc/ssl/mirror ca.pem")
SECURE = Mirror("http://127.0.0.1:5001", "https://mirror.example.org", ca=CA)
PLAIN = Mirror("http://10.0.0.5:5000", "http://10.0.0.5:5000")
LOCAL = Mirror("http://127.0.0.1:5000", "http://127.0.0.1:5000")
PROXY = Mirror("https://proxy.example.org", "https://proxy.example.org", "pull-through")
DISTANT = Mirror("https://far.example.org", "https://far.example.org", role="source")
FAR = ("docker-machine", "kubernetes", "kaniko", "gitlab-runner")
NEAR = ("dockerd", "containerd", "buildkitd", "podman", "registry")


def settings(*mirrors: Mirror, registries: tuple[Upstream, ...] = (HUB,), **more: Any) -> Settings:
    return Settings(Path("/etc/prewarm/images.yml"), mirrors or (SECURE,), registries, **more)


def one(files: tuple[File, ...]) -> File:
    (file,) = files
    return file


def names(files: Sequence[File]) -> list[str]:
    return [file.name for file in files]


def comments(file: File) -> str:
    """What the file says for people, as one line."""
    lines = re.findall(r"^# (.*)$", file.text, re.MULTILINE)
    return " ".join([*lines, *file.comment.splitlines()])


def code_of(kind: str, found: Settings, *, ask_upstream: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        client_config(kind, found, ask_upstream=ask_upstream)
    assert caught.value.cure
    assert "\n" not in str(caught.value)
    return caught.value.code


# --- every kind ---


def test_kinds_are_those_of_the_command_line() -> None:
    assert tuple(KINDS) == main._CLIENTS


@pytest.mark.parametrize("kind", KINDS)
def test_client_config_has_no_loopback_where_client_url_is_written(kind: str) -> None:
    told = [
        file.text for file in client_config(kind, settings(SECURE)) if file.name[:8] != "prewarm-"
    ]
    assert not [text for text in told if "127.0.0.1" in text]


@pytest.mark.parametrize("kind", FAR)
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:5000", "http://localhost:5000", "http://[::1]:5"]
)
def test_client_config_of_loopback_for_another_host_is_an_error_with_cure(
    kind: str, url: str
) -> None:
    with pytest.raises(UsageError) as caught:
        client_config(kind, settings(SECURE, Mirror(url, url)))
    assert caught.value.code == "client-url"
    assert caught.value.exit_code == 2
    assert url in caught.value.text
    assert "client_url:" in caught.value.cure


@pytest.mark.parametrize("kind", NEAR)
def test_client_config_of_loopback_for_this_host_says_so_in_a_comment(kind: str) -> None:
    told = " ".join(comments(file) for file in client_config(kind, settings(LOCAL)))
    assert f"{LOCAL.url}, which is on loopback" in told or f"{LOCAL.url} is on loopback" in told


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("registry", "kubernetes")])
def test_client_config_of_two_mirrors_names_both_in_order(kind: str) -> None:
    for file in client_config(kind, settings(PLAIN, SECURE)):
        bare = re.sub(r"^#.*\n", "", file.text, flags=re.MULTILINE)
        if "10.0.0.5" in bare:
            assert bare.index("10.0.0.5:5000") < bare.index("mirror.example.org")


@pytest.mark.parametrize("kind", KINDS)
def test_client_config_leaves_the_mirror_of_another_site_out(kind: str) -> None:
    assert client_config(kind, settings(SECURE, DISTANT)) == client_config(kind, settings(SECURE))
    assert code_of(kind, settings(DISTANT)) == "no-mirror"


@pytest.mark.parametrize("kind", KINDS)
def test_client_config_of_a_private_ca_tells_where_it_goes(kind: str) -> None:
    told = " ".join(comments(file) for file in client_config(kind, settings(SECURE)))
    assert "CA" in told
    if kind != "registry":
        assert str(CA) in told


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "containerd"])
def test_client_config_asks_upstream_for_containerd_only(kind: str) -> None:
    assert code_of(kind, settings(SECURE, platforms=ALL), ask_upstream=True) == "usage"


@pytest.mark.parametrize("kind", ["dockerd", "docker-machine", "gitlab-runner"])
def test_client_config_of_dockerd_without_the_hub_is_an_error(kind: str) -> None:
    assert code_of(kind, settings(SECURE, registries=(QUAY,))) == "registry"


@pytest.mark.parametrize("kind", ["containerd", "buildkitd", "podman", "kaniko"])
def test_client_config_of_a_pull_through_mirror_serves_the_hub_alone(kind: str) -> None:
    files = client_config(kind, settings(PROXY, registries=(HUB, QUAY)))
    assert "proxy.example.org" in files[0].text
    assert not any("proxy.example.org/v2/quay.io" in file.text for file in files)
    assert not any("proxy.example.org/quay.io" in file.text for file in files)
    assert code_of(kind, settings(PROXY, registries=(QUAY,))) == "registry"


def test_client_config_of_hostile_urls_never_begins(tmp_path: Path) -> None:
    """What could end a string of JSON, TOML, YAML or CEL does not get past the configuration."""
    for text in ('https://a"b', "https://a'b", "https://a]b", "https://a\\b", "https://a b/"):
        file = tmp_path / "images.yml"
        file.write_text(
            "version: 1\n"
            f"mirrors: [{{url: http://127.0.0.1:5000, client_url: {json.dumps(text)}}}]\n"
        )
        with pytest.raises(ConfigError):
            config.load(file)
    file.write_text('version: 1\nmirrors: [{url: http://a, ca: "/x\\n[evil]"}]\n')
    with pytest.raises(ConfigError):
        config.load(file)


@given(st.text())
def test_quoted_text_is_the_same_to_every_parser(text: str) -> None:
    text = text.encode("utf-8", "replace").decode().replace("\x7f", "")
    assert json.loads(quoted(text)) == text
    if text.isprintable():
        assert tomllib.loads(f"x = {quoted(text)}") == {"x": text}
        assert yaml.safe_load(f"x: {quoted(text)}") == {"x": text}


@given(st.text())
def test_remarks_are_comments_whatever_the_text(text: str) -> None:
    assert all(line.startswith("# ") for line in remarks(text).splitlines())


# --- dockerd, docker-machine ---


def test_dockerd_is_json_with_root_urls_and_plain_http_named() -> None:
    file = one(client_config("dockerd", settings(SECURE, PLAIN)))
    assert file.name == "daemon.json"
    assert json.loads(file.text) == {
        "registry-mirrors": ["https://mirror.example.org", "http://10.0.0.5:5000"],
        "insecure-registries": ["http://10.0.0.5:5000"],
    }
    assert "/etc/docker/certs.d/mirror.example.org/ca.crt" in file.comment
    assert "without a login" in file.comment


def test_dockerd_of_loopback_needs_no_insecure_registry() -> None:
    file = one(client_config("dockerd", settings(LOCAL)))
    assert json.loads(file.text) == {"registry-mirrors": ["http://127.0.0.1:5000"]}


def test_docker_machine_passes_options_to_its_engines() -> None:
    file = one(client_config("docker-machine", settings(SECURE, PLAIN)))
    (runner,) = tomllib.loads(file.text)["runners"]
    assert runner == {
        "executor": "docker+machine",
        "machine": {
            "MachineOptions": [
                "engine-registry-mirror=https://mirror.example.org",
                "engine-registry-mirror=http://10.0.0.5:5000",
                "engine-insecure-registry=http://10.0.0.5:5000",
            ]
        },
    }


# --- containerd, BuildKit, podman ---


def test_containerd_has_one_file_for_each_registry_with_its_own_path() -> None:
    files = client_config("containerd", settings(SECURE, PLAIN, registries=(HUB, QUAY, PORTED)))
    assert names(files) == [
        "certs.d/docker.io/hosts.toml",
        "certs.d/quay.io/hosts.toml",
        "certs.d/registry.example.org_5000_/hosts.toml",
    ]
    read = [tomllib.loads(file.text) for file in files]
    assert [toml["server"] for toml in read] == [
        "https://registry-1.docker.io",
        "https://quay.io",
        "https://registry.example.org:5000",
    ]
    assert [list(toml["host"]) for toml in read] == [
        ["https://mirror.example.org/v2", "http://10.0.0.5:5000/v2"],
        ["https://mirror.example.org/v2/quay.io", "http://10.0.0.5:5000/v2/quay.io"],
        [
            "https://mirror.example.org/v2/registry.example.org_5000",
            "http://10.0.0.5:5000/v2/registry.example.org_5000",
        ],
    ]
    for toml in read:
        secure, plain = toml["host"].values()
        assert plain == {
            "capabilities": ["pull", "resolve"],
            "override_path": True,
            "dial_timeout": "2s",
        }
        assert secure == {**plain, "ca": "../mirror.example.org.crt"}


@pytest.mark.parametrize("reference", ["golang", "quay.io/a/b", "registry.example.org:5000/x/y"])
def test_containerd_path_is_where_prewarm_puts_the_image(reference: str) -> None:
    image = parse(reference)
    upstream = Upstream(image.registry, f"https://{image.registry}")
    file = one(client_config("containerd", settings(SECURE, registries=(upstream,))))
    (url,) = tomllib.loads(file.text)["host"]
    assert f"{url}/{image.repository}" == (
        f"https://mirror.example.org/v2/{image.mirror_repository}"
    )


def test_containerd_falls_back_to_the_public_name_not_to_the_endpoint() -> None:
    """prewarm may read by a way of its own; runners had none before, and need none now."""
    hub = replace(HUB, endpoint="https://harbor.example.org/dockerhub")
    file = one(client_config("containerd", settings(SECURE, registries=(hub,))))
    assert tomllib.loads(file.text)["server"] == "https://registry-1.docker.io"


@pytest.mark.parametrize(
    ("general", "own", "pin", "whole"),
    [
        (ALL, None, None, True),
        (DEFAULT, ALL, None, True),
        (None, None, None, False),
        (ALL, DEFAULT, None, False),
        (DEFAULT, None, None, False),
        (ALL, None, DEFAULT, False),
    ],
)
def test_containerd_asks_upstream_only_where_indexes_are_whole(
    general: Any, own: Any, pin: Any, whole: bool
) -> None:
    found = settings(
        SECURE,
        registries=(replace(HUB, platforms=own),),
        platforms=general,
        pins=(Pin(parse("golang"), platforms=pin),),
    )
    tags = one(client_config("containerd", found))
    assert ("--ask-upstream" in comments(tags)) is whole
    if not whole:
        assert code_of("containerd", found, ask_upstream=True) == "usage"
        return
    heads = one(client_config("containerd", found, ask_upstream=True))
    assert tomllib.loads(heads.text)["host"]["https://mirror.example.org/v2"]["capabilities"] == [
        "pull"
    ]


def test_containerd_asks_upstream_for_the_registries_that_are_whole() -> None:
    found = settings(SECURE, registries=(HUB, replace(QUAY, platforms=ALL)))
    files = client_config("containerd", found, ask_upstream=True)
    read = [tomllib.loads(file.text)["host"].popitem()[1]["capabilities"] for file in files]
    assert read == [["pull", "resolve"], ["pull"]]


def test_buildkitd_has_paths_for_registries_and_tls_for_mirrors() -> None:
    file = one(client_config("buildkitd", settings(SECURE, PLAIN, registries=(HUB, PORTED))))
    assert file.name == "buildkitd.toml"
    assert tomllib.loads(file.text) == {
        "registry": {
            "docker.io": {"mirrors": ["mirror.example.org", "10.0.0.5:5000"]},
            "registry.example.org:5000": {
                "mirrors": [
                    "mirror.example.org/registry.example.org_5000",
                    "10.0.0.5:5000/registry.example.org_5000",
                ]
            },
            "mirror.example.org": {"ca": ["/etc/buildkit/certs/mirror.example.org.crt"]},
            "10.0.0.5:5000": {"http": True},
        }
    }


def test_podman_is_a_drop_in_with_mirrors_below_their_registry() -> None:
    file = one(client_config("podman", settings(SECURE, PLAIN, registries=(HUB, QUAY))))
    assert file.name == "registries.conf.d/50-prewarm.conf"
    assert tomllib.loads(file.text) == {
        "registry": [
            {
                "prefix": "docker.io",
                "location": "docker.io",
                "mirror": [
                    {"location": "mirror.example.org"},
                    {"location": "10.0.0.5:5000", "insecure": True},
                ],
            },
            {
                "prefix": "quay.io",
                "location": "quay.io",
                "mirror": [
                    {"location": "mirror.example.org/quay.io"},
                    {"location": "10.0.0.5:5000/quay.io", "insecure": True},
                ],
            },
        ]
    }


# --- kaniko, GitLab Runner ---


def test_kaniko_is_a_hidden_job_with_its_flags() -> None:
    file = one(client_config("kaniko", settings(SECURE, PLAIN, registries=(HUB, QUAY))))
    job = yaml.safe_load(file.text)[".prewarm-kaniko"]
    assert job["variables"]["PREWARM_KANIKO"].split() == [
        "--registry-mirror=mirror.example.org",
        "--registry-mirror=10.0.0.5:5000",
        "--registry-map=quay.io=mirror.example.org/quay.io",
        "--registry-map=quay.io=10.0.0.5:5000/quay.io",
        "--registry-certificate=mirror.example.org=/kaniko/ssl/certs/mirror.example.org.crt",
        "--insecure-registry=10.0.0.5:5000",
    ]


def test_gitlab_runner_has_parts_for_each_executor_and_for_dind() -> None:
    files = {file.name: file for file in client_config("gitlab-runner", settings(SECURE, PLAIN))}
    assert list(files) == [
        "docker.toml",
        "docker-autoscaler.toml",
        "kubernetes.toml",
        "dind-daemon.json",
        "dind-configmap.yaml",
    ]
    daemon = json.loads(files["dind-daemon.json"].text)
    assert daemon == json.loads(one(client_config("dockerd", settings(SECURE, PLAIN))).text)
    for executor in ("docker", "docker-autoscaler"):
        (runner,) = tomllib.loads(files[f"{executor}.toml"].text)["runners"]
        assert runner == {
            "executor": executor,
            "docker": {
                "pull_policy": ["always", "if-not-present"],
                "volumes": [
                    "/cache",
                    "/etc/gitlab-runner/dind-daemon.json:/etc/docker/daemon.json:ro",
                    "/etc/docker/certs.d:/etc/docker/certs.d:ro",
                ],
            },
        }
    (runner,) = tomllib.loads(files["kubernetes.toml"].text)["runners"]
    (volume,) = runner["kubernetes"]["volumes"]["config_map"]
    configmap = yaml.safe_load(files["dind-configmap.yaml"].text)
    assert_manifest_is_valid(configmap)
    assert volume["name"] == configmap["metadata"]["name"]
    assert volume["mount_path"] == "/etc/docker/daemon.json"
    assert json.loads(configmap["data"][volume["sub_path"]]) == daemon


# --- Kubernetes ---


def known(image: str, mirror: Mirror, state: str = "fresh") -> Known:
    return Known(image, mirror.url, state, None, 0.0)


def policy(found: Settings, *states: Known) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = yaml.safe_load_all(one(client_config("kubernetes", found, states)).text)
    return first, second


def variables(document: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["expression"] for one in document["spec"]["variables"]}


def test_kubernetes_is_a_policy_of_v1_and_its_binding() -> None:
    document, binding = policy(settings(SECURE))
    version = "admissionregistration.k8s.io/v1"
    assert (document["apiVersion"], document["kind"]) == (version, "MutatingAdmissionPolicy")
    assert (binding["apiVersion"], binding["kind"]) == (version, "MutatingAdmissionPolicyBinding")
    assert binding["spec"]["policyName"] == document["metadata"]["name"]
    spec = document["spec"]
    assert (spec["failurePolicy"], spec["reinvocationPolicy"]) == ("Ignore", "IfNeeded")
    rules = [
        (rule["operations"], rule["resources"])
        for rule in spec["matchConstraints"]["resourceRules"]
    ]
    assert rules == [(["CREATE"], ["pods"]), (["UPDATE"], ["pods/ephemeralcontainers"])]
    expressions = [one["jsonPatch"]["expression"] for one in spec["mutations"]]
    lists = ("containers", "initContainers", "ephemeralContainers")
    for expression, containers in zip(expressions, lists, strict=True):
        assert f"path: '/spec/{containers}/' + string(i) + '/image'" in expression
    assert [one["patchType"] for one in spec["mutations"]] == ["JSONPatch"] * 3


def test_kubernetes_policy_and_binding_are_of_the_api() -> None:
    for document in policy(settings(SECURE), known("docker.io/library/golang:1", SECURE)):
        assert_manifest_is_valid(document)


def test_kubernetes_lists_what_mirrors_serve_each_at_the_first_that_has_it() -> None:
    found = settings(SECURE, replace(PLAIN, client_url="https://two.example.org"))
    first, second = found.mirrors
    document, _ = policy(
        found,
        known("docker.io/library/golang:1", first),
        known("docker.io/library/golang:1", second),
        known("docker.io/acme/old:1", first, "stale"),
        known("docker.io/acme/gone:1", first, "missing"),
        known("docker.io/acme/who:1", first, "unknown"),
        known("docker.io/acme/gone:1", second),
        known("docker.io/library/golang:1", DISTANT),
        known("docker.io/acme/evil:1') ? 'x", first),
        known("docker.io/evil.example.org/x:1", first),
    )
    read = variables(document)
    assert json.loads(read["mirror1_1"]) == ["docker.io/library/golang:1", "docker.io/acme/old:1"]
    assert json.loads(read["mirror2_1"]) == ["docker.io/acme/gone:1"]
    assert "evil" not in yaml.safe_dump(document)
    for mutation in document["spec"]["mutations"]:
        text = mutation["jsonPatch"]["expression"]
        assert text.index('"mirror.example.org/"') < text.index('"two.example.org/"')


def test_kubernetes_without_a_known_image_rewrites_nothing_and_says_so() -> None:
    file = one(client_config("kubernetes", settings(SECURE)))
    document, _ = yaml.safe_load_all(file.text)
    assert "prewarm sync first" in comments(file)
    assert all("(false)" in one["jsonPatch"]["expression"] for one in document["spec"]["mutations"])


def test_kubernetes_of_very_many_images_stays_below_the_limit_of_an_expression() -> None:
    images = [f"docker.io/team{number}/{'long' * 20}:{number}" for number in range(2000)]
    document, _ = policy(settings(SECURE), *(known(image, SECURE) for image in images))
    read = variables(document)
    assert max(map(len, read.values())) < 100_000
    held = [json.loads(text) for name, text in read.items() if name.startswith("mirror")]
    assert len(held) > 1
    assert [image for part in held for image in part] == images


# --- registry ---


def registry_files(found: Settings) -> dict[str, File]:
    return {file.name: file for file in client_config("registry", found)}


def test_registry_is_a_writer_on_loopback_and_a_reader_by_tls_over_one_storage() -> None:
    mirror = replace(SECURE, storage=Path("/srv/mirror"))
    files = registry_files(settings(mirror, limits=Limits(run_time=7 * 3600)))
    writer = yaml.safe_load(files["prewarm-writer.yml"].text)
    reader = yaml.safe_load(files["prewarm-reader.yml"].text)
    assert writer["http"] == {"addr": "127.0.0.1:5001", "relativeurls": True}
    assert writer["storage"] == {
        "filesystem": {"rootdirectory": "/srv/mirror"},
        "delete": {"enabled": True},
        "maintenance": {
            "uploadpurging": {"enabled": True, "age": "8h", "interval": "1h", "dryrun": False}
        },
    }
    assert reader["http"]["addr"] == ":443"
    assert reader["http"]["tls"]["minimumtls"] == "tls1.2"
    assert reader["storage"]["filesystem"] == writer["storage"]["filesystem"]
    assert reader["storage"]["delete"] == {"enabled": False}
    assert reader["storage"]["maintenance"] == {
        "readonly": {"enabled": True},
        "uploadpurging": {"enabled": False},
    }
    for document in (writer, reader):
        assert "auth" not in document
        assert "cache" not in document["storage"]


@pytest.mark.parametrize(
    ("url", "client_url", "writer", "reader", "tls"),
    [
        ("http://127.0.0.1:5001", "https://m.example.org", "127.0.0.1:5001", ":443", True),
        ("http://localhost:5001", "https://m.example.org:5000", "localhost:5001", ":5000", True),
        ("http://127.0.0.1:5001", "http://m.example.org:5000", "127.0.0.1:5001", ":5000", False),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000", "127.0.0.1:5000", ":443", True),
        ("https://m.example.org", "https://m.example.org", "127.0.0.1:5001", ":443", True),
        (
            "https://m.example.org:5001",
            "https://m.example.org:5001",
            "127.0.0.1:5002",
            ":5001",
            True,
        ),
        ("http://[::1]:5001", "http://m.example.org", "[::1]:5001", ":80", False),
    ],
)
def test_registry_listens_where_images_yml_asks(
    url: str, client_url: str, writer: str, reader: str, tls: bool
) -> None:
    files = registry_files(settings(Mirror(url, client_url)))
    assert yaml.safe_load(files["prewarm-writer.yml"].text)["http"]["addr"] == writer
    http = yaml.safe_load(files["prewarm-reader.yml"].text)["http"]
    assert (http["addr"], "tls" in http) == (reader, tls)


def test_registry_of_one_port_for_both_is_an_error_with_cure() -> None:
    mirror = Mirror("http://127.0.0.1:5000", "http://m.example.org:5000")
    assert code_of("registry", settings(mirror)) == "client-url"


def test_registry_through_another_host_tells_how_images_yml_would_be() -> None:
    mirror = Mirror("https://m.example.org", "https://m.example.org")
    told = comments(registry_files(settings(mirror))["prewarm-writer.yml"])
    assert "url: http://127.0.0.1:5001 and client_url: https://m.example.org" in told


def test_registry_has_a_pull_through_of_the_hub_with_a_storage_of_its_own() -> None:
    files = registry_files(settings(SECURE, PROXY))
    proxy = yaml.safe_load(files["prewarm-proxy.yml"].text)
    writer = yaml.safe_load(files["prewarm-writer.yml"].text)
    assert proxy["proxy"] == {"remoteurl": "https://registry-1.docker.io"}
    assert proxy["http"]["addr"] == ":443"
    assert proxy["storage"]["filesystem"] != writer["storage"]["filesystem"]
    assert "cache" not in proxy["storage"]


def test_registry_of_a_pull_through_mirror_alone_has_no_push_files() -> None:
    assert list(registry_files(settings(PROXY))) == [
        "prewarm-proxy.yml",
        "prewarm-registry-proxy.service",
    ]


def test_registry_collects_garbage_with_only_the_writer_stopped() -> None:
    files = registry_files(settings(replace(SECURE, storage=Path('/srv/a "b" 100%'))))
    service = read_unit(files["prewarm-registry-gc.service"].text)
    assert service["ExecStartPre"] == ["+/usr/bin/systemctl stop prewarm-registry-writer.service"]
    assert service["ExecStopPost"] == ["+/usr/bin/systemctl start prewarm-registry-writer.service"]
    assert service["ExecStart"][0].split()[1:] == [
        "garbage-collect",
        "/etc/docker/registry/prewarm-writer.yml",
    ]
    assert service["ReadWritePaths"] == [r'"/srv/a \"b\" 100%%"']
    timer = read_unit(files["prewarm-registry-gc.timer"].text)
    assert timer["OnCalendar"][0].startswith("Sun ")


def test_registry_units_may_write_only_where_they_must() -> None:
    files = registry_files(settings(SECURE))
    reader = read_unit(files["prewarm-registry-reader.service"].text)
    writer = read_unit(files["prewarm-registry-writer.service"].text)
    assert "ReadWritePaths" not in reader
    assert writer["ReadWritePaths"] == ['"/var/lib/docker-registry"']
    assert reader["AmbientCapabilities"] == ["CAP_NET_BIND_SERVICE"]
    assert "AmbientCapabilities" not in writer


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_write_where_another_thing_has_the_name_is_refused_at_once(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "a" / "file"
    path.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="is there with other content"):
        output.write((File("a/file", "text\n"),), tmp_path)


@needs_root
def test_write_into_a_folder_that_is_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "out").symlink_to("own")
    os.lchown(tmp_path / "out", UID, UID)
    with pytest.raises(UsageError, match=r"symbolic link .* of nobody is not followed"):
        output.write((File("a/file", "text\n"),), tmp_path / "out")
    assert list((tmp_path / "own").iterdir()) == []
