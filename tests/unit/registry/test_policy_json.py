"""containers-policy.json(5): which requirements speak of an image, and what lets it in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.errors import PrewarmError
from prewarm.core.reference import parse
from prewarm.registry.policy_json import Policy, read_policy

FILE = Path("/etc/containers/policy.json")
ACCEPT = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
SIGNED = [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/key"}]
DIGEST = "sha256:" + "a" * 64


def allowed(document: dict[str, Any], image: str) -> bool:
    return Policy(FILE, document).refusal(parse(image)) is None


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({"default": ACCEPT}, True),
        ({"default": REJECT}, False),
        ({"default": SIGNED}, False),
        # All of the requirements must be met.
        ({"default": [*ACCEPT, *SIGNED]}, False),
        ({"default": [*ACCEPT, *ACCEPT]}, True),
        ({"default": [{"type": "sigstoreSigned"}]}, False),
        ({"default": [{"type": "new-in-2030"}]}, False),
        # skopeo refuses these files as a whole.
        ({"default": []}, False),
        ({"default": "insecureAcceptAnything"}, False),
        ({"default": [None]}, False),
        ({}, False),
        # Other transports are not asked.
        ({"default": ACCEPT, "transports": {"atomic": {"": REJECT}}}, True),
        ({"default": ACCEPT, "transports": {"docker": None}}, True),
        ({"default": ACCEPT, "transports": []}, True),
        ({"default": REJECT, "transports": {"docker": {"": ACCEPT}}}, True),
        ({"default": ACCEPT, "transports": {"docker": {"": []}}}, False),
        ({"default": ACCEPT, "transports": {"docker": {"docker.io": {}}}}, False),
    ],
)
def test_refusal_by_the_requirements_of_a_document(document: dict[str, Any], wanted: bool) -> None:
    assert allowed(document, "golang:1") == wanted


@pytest.mark.parametrize(
    ("scope", "image", "wanted"),
    [
        ("docker.io/library/golang:1", "golang:1", True),
        ("docker.io/library/golang:1", "golang:2", False),
        (f"docker.io/library/golang@{DIGEST}", f"golang@{DIGEST}", True),
        ("docker.io/library/golang", "golang:1", True),
        ("docker.io/library/golang", f"golang@{DIGEST}", True),
        ("docker.io/library", "golang:1", True),
        ("docker.io", "golang:1", True),
        ("docker.io/library/go", "golang:1", False),
        ("docker.io/lib", "golang:1", False),
        ("golang", "golang:1", False),
        ("*.io", "golang:1", True),
        ("*.docker.io", "golang:1", False),
        ("r.example.org:5000/a", "r.example.org:5000/a/b:1", True),
        ("r.example.org:5000", "r.example.org:5000/a/b:1", True),
        ("r.example.org", "r.example.org:5000/a/b:1", False),
        # A port is no part of a wildcarded host.
        ("*.example.org", "r.example.org:5000/a/b:1", True),
        ("*.org", "r.example.org:5000/a/b:1", True),
        ("*.example.org:5000", "r.example.org:5000/a/b:1", False),
        ("*", "golang:1", False),
        ("", "golang:1", True),
    ],
)
def test_refusal_asks_the_scopes_that_speak_of_the_image(
    scope: str, image: str, wanted: bool
) -> None:
    accepting = {"default": REJECT, "transports": {"docker": {scope: ACCEPT}}}
    rejecting = {"default": ACCEPT, "transports": {"docker": {scope: REJECT}}}
    assert allowed(accepting, image) == wanted
    assert allowed(rejecting, image) != wanted


@pytest.mark.parametrize(
    "scopes",
    [
        ["docker.io/library/golang:1", "docker.io/library/golang"],
        ["docker.io/library/golang", "docker.io/library"],
        ["docker.io/library", "docker.io"],
        ["docker.io", "*.io"],
        ["*.io", ""],
    ],
)
def test_refusal_by_the_most_specific_scope_alone(scopes: list[str]) -> None:
    narrow, wide = scopes
    for first, second in ((ACCEPT, REJECT), (REJECT, ACCEPT)):
        document = {"default": second, "transports": {"docker": {wide: second, narrow: first}}}
        assert allowed(document, "golang:1") == (first is ACCEPT)


@pytest.mark.parametrize(
    ("requirement", "words"), [(REJECT, "rejects it"), (SIGNED, "demands a signature (signedBy)")]
)
def test_refusal_names_image_file_and_cure(requirement: Any, words: str) -> None:
    refusal = Policy(FILE, {"default": requirement}).refusal(parse("golang:1"))
    assert refusal is not None
    assert refusal.code == "policy"
    assert "docker.io/library/golang" in refusal.text
    assert words in refusal.text
    assert str(FILE) in refusal.cure


# Where it is read


def write(file: Path, document: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def test_read_policy_of_the_home_goes_before_the_systems(tmp_path: Path) -> None:
    system = write(tmp_path / "etc/policy.json", {"default": REJECT})
    home = tmp_path / "home"
    assert read_policy(home, system).refusal(parse("golang:1")) is not None
    write(home / ".config/containers/policy.json", {"default": ACCEPT})
    assert read_policy(home, system).refusal(parse("golang:1")) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000, "\x00"])
def test_read_policy_that_is_none_names_the_file(tmp_path: Path, text: str) -> None:
    system = write(tmp_path / "policy.json", text)
    with pytest.raises(PrewarmError) as caught:
        read_policy(tmp_path, system)
    assert caught.value.code == "policy"
    assert str(system) in caught.value.text


def test_read_policy_where_there_is_none_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(PrewarmError) as caught:
        read_policy(tmp_path, tmp_path / "policy.json")
    assert caught.value.code == "policy-missing"
    assert "golang-github-containers-common" in caught.value.cure
