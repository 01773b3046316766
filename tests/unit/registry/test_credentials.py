"""Where logins are found, which one counts, and that they stay secret."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.errors import RegistryError, UsageError
from prewarm.registry.credentials import AuthConfig, authfile_in_memory, load
from prewarm.registry.login import Login

SECRET = "s3cr3t:with:colons"


def encode(user: str, secret: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


def write(path: Path, document: Any, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)
    return path


def auths(**entries: str) -> dict[str, Any]:
    return {"auths": {key: encode(user) for key, user in entries.items()}}


def found(tmp_path: Path, document: Any, **environ: str) -> AuthConfig:
    """Return what an explicit file with the document yields, in a home without any other."""
    return load(write(tmp_path / "auth.json", document), {"HOME": str(tmp_path), **environ})


@pytest.fixture
def helpers(tmp_path: Path) -> Mapping[str, str]:
    """Return an environment with `docker-credential-NAME` programs on its PATH."""
    scripts = {
        "good": f'echo "$server" >> {tmp_path}/asked; '
        'echo "{\\"Username\\": \\"kim\\", \\"Secret\\": \\"$server-key\\"}"',
        "token": 'echo \'{"Username": "<token>", "Secret": "identity"}\'',
        "empty": "echo credentials not found in native keychain; exit 1",
        "broken": f"echo {SECRET}; echo {SECRET} >&2; exit 3",
        "wordy": f"echo {SECRET}",
        "slow": "exec sleep 60",
    }
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in scripts.items():
        program = programs / f"docker-credential-{name}"
        program.write_text(f'#!/bin/sh\n[ "$1" = get ] || exit 9\nread -r server\n{script}\n')
        program.chmod(0o755)
    return {"PATH": f"{programs}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("repository", "user"),
    [
        ("team/app/api", "api"),
        ("team/app/api/deep", "api"),
        ("team/app", "team"),
        ("team/application", "team"),
        ("teams/app", "host"),
        ("other", "host"),
        ("", "host"),
    ],
)
def test_login_by_a_path_is_the_most_specific(tmp_path: Path, repository: str, user: str) -> None:
    entries = {"r.org": "host", "r.org/team": "team", "r.org/team/app/api": "api"}
    config = found(tmp_path, auths(**entries))
    assert config.login("r.org", repository) == Login(user, SECRET)


@pytest.mark.parametrize(
    "registry", ["r.org:5000", "other.org", "r.org.evil.net", "evil.net/r.org", "org"]
)
def test_login_for_another_host_or_port_is_none(tmp_path: Path, registry: str) -> None:
    assert found(tmp_path, auths(**{"r.org": "host"})).login(registry, "app") is None


@pytest.mark.parametrize(
    "key",
    [
        "docker.io",
        "index.docker.io",
        "registry-1.docker.io",
        "https://index.docker.io/v1/",
        "https://index.docker.io/v2/",
        "index.docker.io/v1/",
    ],
)
def test_login_for_docker_hub_is_found_under_all_its_names(tmp_path: Path, key: str) -> None:
    config = found(tmp_path, auths(**{key: "acme"}))
    for registry in ("docker.io", "index.docker.io", "registry-1.docker.io"):
        assert config.login(registry, "library/golang") == Login("acme", SECRET)
        assert config.account(registry) == "acme"


def test_login_for_docker_hub_prefers_the_plain_key(tmp_path: Path) -> None:
    entries = {"https://index.docker.io/v1/": "old", "docker.io": "new", "docker.io/acme": "team"}
    config = found(tmp_path, auths(**entries))
    assert config.account("docker.io") == "new"
    assert config.login("docker.io", "acme/app") == Login("team", SECRET)


@pytest.mark.parametrize("key", ["https://r.org", "http://r.org/", "https://r.org/v2/", "R.ORG"])
def test_login_by_a_url_of_old_docker_is_found(tmp_path: Path, key: str) -> None:
    assert found(tmp_path, auths(**{key: "kim"})).login("r.org", "app") == Login("kim", SECRET)


def test_login_by_username_and_password_fields_is_found(tmp_path: Path) -> None:
    document = {"auths": {"r.org": {"username": "kim", "password": SECRET}, "empty.org": {}}}
    config = found(tmp_path, document)
    assert config.login("r.org", "app") == Login("kim", SECRET)
    assert config.login("empty.org", "app") is None


def test_login_with_an_identity_token_keeps_the_account_by_name(tmp_path: Path) -> None:
    document = {"auths": {"r.org": {**encode("kim", ""), "identitytoken": "refresh"}}}
    config = found(tmp_path, document)
    assert config.login("r.org", "app") == Login("<token>", "refresh")
    assert config.account("r.org") == "kim"


def test_load_asks_the_files_in_skopeos_order(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environ = {
        "HOME": str(home),
        "CREDENTIALS_DIRECTORY": str(tmp_path / "systemd"),
        "REGISTRY_AUTH_FILE": str(tmp_path / "env.json"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
    }
    explicit = tmp_path / "explicit.json"
    files = {
        "explicit": explicit,
        "systemd": tmp_path / "systemd" / "auth.json",
        "environ": tmp_path / "env.json",
        "config": tmp_path / "config" / "containers" / "auth.json",
        "docker": tmp_path / "docker" / "config.json",
    }
    for user, path in files.items():
        write(path, auths(**{"r.org": user}))
    write(home / ".dockercfg", {"r.org": encode("legacy")})
    for user, path in files.items():
        config = load(explicit if user == "explicit" else None, environ)
        assert config.account("r.org") == user
        path.unlink()
    assert load(None, environ).account("r.org") == "legacy"


def test_load_asks_the_runtime_folder_only_where_no_file_is_named(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    write(tmp_path / "run" / "containers" / "auth.json", auths(**{"r.org": "runtime"}))
    write(tmp_path / ".docker" / "config.json", auths(**{"r.org": "docker", "d.org": "docker"}))
    config = load(None, environ)
    assert (config.account("r.org"), config.account("d.org")) == ("runtime", "docker")
    named = write(tmp_path / "named.json", auths(**{"n.org": "named"}))
    for other in (load(named, environ), load(None, {**environ, "REGISTRY_AUTH_FILE": str(named)})):
        assert (other.account("n.org"), other.account("r.org")) == ("named", "docker")


def test_load_of_an_empty_file_in_the_credentials_directory_is_as_of_none(tmp_path: Path) -> None:
    write(tmp_path / "systemd" / "auth.json", "")
    write(tmp_path / "run" / "containers" / "auth.json", auths(**{"r.org": "runtime"}))
    config = load(
        None,
        {
            "HOME": str(tmp_path),
            "CREDENTIALS_DIRECTORY": str(tmp_path / "systemd"),
            "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        },
    )
    assert config.account("r.org") == "runtime"
    assert config.problems == ()


BROKEN = {
    "is not JSON": "{" + SECRET,
    "holds no JSON object": "[]",
    "are no JSON object": '{"auths": []}',
    "is no JSON object": '{"auths": {"r.org": "x"}}',
    "not base64": json.dumps({"auths": {"r.org": {"auth": f"*{SECRET}*"}}}),
    "not USER:PASSWORD": json.dumps(
        {"auths": {"r.org": {"auth": base64.b64encode(b"s3cr3t").decode()}}}
    ),
    "no plain name": '{"credHelpers": {"r.org": "../../bin/sh"}}',
    "larger than 1 MiB": " " * 2**20 + "{}",
}


@pytest.mark.parametrize("text", BROKEN)
def test_load_of_a_broken_file_tells_what_is_wrong_and_no_secret(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / ".docker" / "config.json", BROKEN[text])
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    with pytest.raises(UsageError) as caught:
        load(path, environ)
    (problem,) = load(None, environ).problems
    assert (problem.severity, problem.code, problem.where) == ("warning", "authfile", str(path))
    for told in (str(caught.value), f"{problem}"):
        assert text in told
        assert str(path) in told
        assert "s3cr3t" not in told
    assert caught.value.__cause__ is None


def test_load_of_an_explicit_file_that_is_missing_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "absent.json"
    with pytest.raises(UsageError, match="skopeo login --authfile") as caught:
        load(path, {"HOME": str(tmp_path)})
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="no regular file"):
        load(tmp_path, {"HOME": str(tmp_path)})


def test_load_of_a_missing_file_that_the_environment_names_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "absent.json"
    environ = {"HOME": str(tmp_path), "REGISTRY_AUTH_FILE": str(path)}
    (problem,) = load(None, environ).problems
    assert (problem.severity, problem.code, problem.where) == ("warning", "authfile", str(path))
    assert "REGISTRY_AUTH_FILE" in problem.problem
    assert f"skopeo login --authfile {path} " in problem.cure
    assert load(None, {"HOME": str(tmp_path), "CREDENTIALS_DIRECTORY": str(path)}).problems == ()


def test_login_cure_names_the_file_that_is_asked_first(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert load(None, environ).login_cure("r.org") == "log in: skopeo login r.org"
    named = write(tmp_path / "a b.json", {})
    told = f"log in: skopeo login --authfile '{named}' r.org"
    by_variable = {**environ, "REGISTRY_AUTH_FILE": str(named)}
    assert load(named, environ).login_cure("r.org") == told
    assert load(None, by_variable).login_cure("r.org") == told
    # systemd's copy is for reading only.
    write(tmp_path / "systemd" / "auth.json", auths(**{"r.org": "kim"}))
    by_systemd = {**by_variable, "CREDENTIALS_DIRECTORY": str(tmp_path / "systemd")}
    cure = load(None, by_systemd).login_cure("r.org")
    assert "LoadCredential=" in cure
    assert str(tmp_path) not in cure
    assert load(named, by_systemd).login_cure("r.org") == told


def test_load_without_a_home_folder_asks_the_other_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)
    assert load(None, {}).problems == ()
    write(tmp_path / "containers" / "auth.json", auths(**{"r.org": "kim"}))
    assert load(None, {"XDG_CONFIG_HOME": str(tmp_path)}).account("r.org") == "kim"


@pytest.mark.parametrize(("mode", "problems"), [(0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1)])
def test_load_of_a_file_that_others_may_read_is_a_problem(
    tmp_path: Path, mode: int, problems: int
) -> None:
    path = write(tmp_path / "auth.json", auths(**{"r.org": "kim"}), mode)
    config = load(path, {"HOME": str(tmp_path)})
    assert [problem.cure for problem in config.problems] == [f"chmod 600 {path}"] * problems
    assert config.account("r.org") == "kim"


def test_login_by_a_helper_is_asked_for_this_registry_once(
    tmp_path: Path, helpers: Mapping[str, str]
) -> None:
    document = {
        **auths(**{"r.org": "file", "o.org": "file"}),
        "credHelpers": {"r.org": "good", "x.org": "broken"},
    }
    config = found(tmp_path, document, **helpers)
    with ThreadPoolExecutor(8) as threads:
        logins = set(threads.map(lambda number: config.login("r.org", f"app{number}"), range(16)))
    assert logins == {Login("kim", "r.org-key")}
    assert config.account("o.org") == "file"
    assert (tmp_path / "asked").read_text() == "r.org\n"


@pytest.mark.parametrize(
    ("key", "server"),
    [("docker.io", "docker.io"), ("https://index.docker.io/v1/", "https://index.docker.io/v1/")],
)
def test_login_by_a_helper_for_docker_hub_is_asked_as_the_file_names_it(
    tmp_path: Path, helpers: Mapping[str, str], key: str, server: str
) -> None:
    config = found(tmp_path, {"credHelpers": {key: "good"}}, **helpers)
    assert config.login("docker.io", "library/golang") == Login("kim", f"{server}-key")


def test_login_by_the_store_is_asked_after_the_entries_of_the_file(
    tmp_path: Path, helpers: Mapping[str, str]
) -> None:
    document = {"auths": {"r.org": encode("file"), "docker.io": {}}, "credsStore": "good"}
    config = found(tmp_path, document, **helpers)
    assert config.login("r.org", "app") == Login("file", SECRET)
    assert config.login("docker.io", "a/b") == Login("kim", "https://index.docker.io/v1/-key")
    assert config.login("s.org:5000", "app") == Login("kim", "s.org:5000-key")


def test_login_by_a_helper_with_an_identity_token_is_marked(
    tmp_path: Path, helpers: Mapping[str, str]
) -> None:
    login = found(tmp_path, {"credsStore": "token"}, **helpers).login("r.org", "app")
    assert login is not None
    assert login.is_identity_token


def test_login_by_a_helper_that_knows_nothing_goes_on_to_the_next_file(
    tmp_path: Path, helpers: Mapping[str, str]
) -> None:
    write(tmp_path / ".docker" / "config.json", auths(**{"r.org": "docker"}))
    for document in ({"credHelpers": {"r.org": "empty"}}, {"credsStore": "empty"}):
        assert found(tmp_path, document, **helpers).account("r.org") == "docker"


@pytest.mark.parametrize(
    ("helper", "text"),
    [
        ("broken", "failed (exit 3)"),
        ("wordy", "answered no Username and Secret"),
        ("slow", "gave no answer in time"),
        ("absent", "is not installed"),
    ],
)
def test_login_by_a_helper_that_fails_is_an_error_without_its_words(
    tmp_path: Path,
    helpers: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    helper: str,
    text: str,
) -> None:
    if helper == "slow":
        monkeypatch.setattr("prewarm.registry.credentials.HELPER_TIMEOUT", 0.1)
    config = found(tmp_path, {"credHelpers": {"r.org": helper}}, **helpers)
    for _ in range(2):
        with pytest.raises(RegistryError) as caught:
            config.login("r.org", "app")
        assert (caught.value.code, caught.value.answered) == ("credentials", False)
        assert f"docker-credential-{helper} {text}" in caught.value.text
        assert "s3cr3t" not in f"{caught.value}{caught.value.__cause__!r}"
    assert config.login("other.org", "app") is None


def test_authfile_in_memory_is_read_by_children_and_lies_on_no_disk(tmp_path: Path) -> None:
    entries = {
        "127.0.0.1:5000": Login("kim", SECRET),
        "r.org/team": Login("team", "ünicode"),
        "t.org": Login("<token>", "identity"),
    }
    descriptor = authfile_in_memory(entries)
    try:
        assert os.fstat(descriptor).st_nlink == 0
        assert not os.get_inheritable(descriptor)
        told = subprocess.run(
            ["cat", f"/proc/self/fd/{descriptor}"],
            pass_fds=(descriptor,),
            capture_output=True,
            check=True,
        ).stdout
    finally:
        os.close(descriptor)
    path = tmp_path / "auth.json"
    path.write_bytes(told)
    path.chmod(0o600)
    config = load(path, {"HOME": str(tmp_path)})
    assert config.problems == ()
    assert config.login("127.0.0.1:5000", "app") == Login("kim", SECRET)
    assert config.login("r.org", "team/app") == Login("team", "ünicode")
    assert config.login("t.org", "app") == Login("<token>", "identity")


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    config = found(tmp_path, auths(**{"r.org": "kim"}))
    shown = repr((config, config._files, config.login("r.org", "app")))
    assert "kim" in shown
    assert "s3cr3t" not in shown
