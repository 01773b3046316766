"""Child processes: which variables they get, and that no secret is among them."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from prewarm.core.child_env import chosen, inherited
from prewarm.core.errors import RegistryError
from prewarm.registry.credentials import load
from prewarm.sync import skopeo

SECRETS = {
    "PREWARM_GITLAB_TOKEN": "glpat-s3cr3t",
    "PREWARM_CONFIG": "/s3cr3t",
    "PGPASSWORD": "s3cr3t",
    "PGPASSFILE": "/s3cr3t",
    "PGSERVICEFILE": "/s3cr3t",
    "CREDENTIALS_DIRECTORY": "/s3cr3t",
    "NOTIFY_SOCKET": "@s3cr3t",
    "CI_JOB_TOKEN": "s3cr3t",
    "CI_REGISTRY_PASSWORD": "s3cr3t",
    "GITLAB_TOKEN": "s3cr3t",
    "GITHUB_TOKEN": "s3cr3t",
    "ACTIONS_RUNTIME_TOKEN": "s3cr3t",
}


def test_inherited_is_the_users_environment_without_our_secrets() -> None:
    kept = {
        "PATH": "/bin",
        "HOME": "/root",
        "DOCKER_HOST": "tcp://x",
        "AWS_PROFILE": "ci",
        "MY_PREWARM_X": "1",
        "PGX_LEVEL": "1",
        "PAGER": "less",
    }
    assert inherited({**kept, **SECRETS}) == {k: v for k, v in kept.items() if k != "PGX_LEVEL"}


def test_chosen_is_what_was_named() -> None:
    environ = {"PATH": "/bin", "TZ": "UTC", "HOME": "/root", "LANG": "C"}
    assert chosen({**environ, **SECRETS}, {"LANG"}) == {"PATH": "/bin", "TZ": "UTC", "LANG": "C"}


def program(folder: Path, name: str, answer: str) -> None:
    """A program that writes its environment down and answers."""
    path = folder / name
    path.write_text(f"#!/bin/sh\nenv > {folder}/{name}.env\n{answer}\n")
    path.chmod(0o755)


def environment_of(folder: Path, name: str) -> str:
    return (folder / f"{name}.env").read_text()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), **SECRETS}


def test_credential_helper_gets_no_secret_of_ours(tmp_path: Path, environ: dict[str, str]) -> None:
    program(tmp_path, "docker-credential-x", "exit 3")
    file = tmp_path / "auth.json"
    file.touch(0o600)
    file.write_text('{"credsStore": "x"}')
    with pytest.raises(RegistryError):
        load(file, environ | {"AWS_PROFILE": "ci"}).login("r.org", "app")
    found = environment_of(tmp_path, "docker-credential-x")
    assert "AWS_PROFILE=ci" in found
    assert "s3cr3t" not in found


def test_skopeo_that_is_asked_for_its_version_gets_no_secret(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    program(tmp_path, "skopeo", "echo skopeo version 1.18.0")
    assert skopeo.find_version(environ)[1] == (1, 18)
    assert "s3cr3t" not in environment_of(tmp_path, "skopeo")


def test_every_child_gets_an_environment_that_was_chosen_for_it() -> None:
    bare = []
    for path in Path(skopeo.__file__).parents[1].rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            named = isinstance(call, ast.Call) and ast.unparse(call.func)
            if named in {"subprocess.run", "subprocess.Popen"}:
                assert isinstance(call, ast.Call)
                if not any(keyword.arg == "env" for keyword in call.keywords):
                    bare.append(f"{path.name}:{call.lineno}")
    assert bare == []
