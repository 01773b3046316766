"""Container engines: where they look, what they say, who is missing, what they are told of us."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from prewarm.clients.engines import find_engine, hosts_folder, last_words
from prewarm.core.errors import PrewarmError

CRI_1 = '[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "{}"\n'
CRI_2 = '[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "{}"\n'


@pytest.mark.parametrize(
    ("dump", "expected"),
    [
        (CRI_1.format("/etc/containerd/certs.d"), "/etc/containerd/certs.d"),
        (CRI_2.format("/etc/containerd/certs.d"), "/etc/containerd/certs.d"),
        (CRI_2.format("/none/a:/none/b"), "/none/a"),
        (CRI_1.format(""), ""),
        (CRI_1.format("certs.d"), ""),
        ("plugins = 1\n", ""),
        ('[plugins]\n"io.containerd.grpc.v1.cri" = 1\n', ""),
        ("", ""),
        ("[[no toml", ""),
    ],
)
def test_hosts_folder_by_the_configuration_of_either_generation(dump: str, expected: str) -> None:
    assert hosts_folder(dump) == expected


def test_hosts_folder_of_several_is_the_one_that_knows_docker_hub(tmp_path: Path) -> None:
    file = tmp_path / "b/docker.io/hosts.toml"
    file.parent.mkdir(parents=True)
    file.touch()
    assert hosts_folder(CRI_2.format(f"{tmp_path}/a:{tmp_path}/b")) == f"{tmp_path}/b"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("", "without a word"),
        (" \n", "without a word"),
        ("one\ntwo\n", "two"),
        ("Error: reading x: errors:\ndenied\nunauthorized\n\n", None),
        ('time="1" level=info\nctr: failed to resolve\n', "ctr: failed to resolve"),
        ("is it running?\n", "is it running?"),
        ("Get https://r.example/v2/?token=s3cr3t&a=b: EOF", "Get https://r.example/v2/?… EOF"),
        ("proxy http://me:s3cr3t@p.example:1: EOF", "proxy http://…@p.example:1: EOF"),
    ],
)
def test_last_words_are_the_error_in_one_line_without_secrets(
    told: str, expected: str | None
) -> None:
    assert last_words(told) == (expected or "Error: reading x: errors: denied unauthorized")


def test_last_words_of_a_talker_are_short() -> None:
    assert len(last_words("Error " + "x" * 5000)) <= 400


@pytest.mark.parametrize(
    ("kind", "program"), [("dockerd", "docker"), ("containerd", "ctr"), ("podman", "podman")]
)
def test_find_engine_that_is_not_installed_tells_how_to_get_it(
    tmp_path: Path, kind: str, program: str
) -> None:
    with pytest.raises(PrewarmError) as caught:
        find_engine(kind, {"PATH": str(tmp_path)}, threading.Event(), "0")
    assert caught.value.code == "client"
    assert f"{kind} cannot be asked: {program} does not start" in caught.value.text
    assert caught.value.cure.startswith("install ")
