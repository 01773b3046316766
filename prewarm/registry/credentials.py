"""Finds logins for registries where skopeo finds them, and where docker keeps them.

containers-auth.json(5) is the format; the order and the keys are those of containers/image
(pkg/docker/config), which skopeo uses. What it lacks and docker has, `credsStore`, is asked last
within a file.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prewarm.core.child_env import inherited
from prewarm.core.errors import Problem, RegistryError, UsageError
from prewarm.core.home_dir import home_folder
from prewarm.registry.errors import login_cure
from prewarm.registry.login import IDENTITY_TOKEN, Login

HELPER_TIMEOUT: Final = 20.0
"""Seconds that a credential helper may take; some ask a cloud."""
_SIZE_LIMIT: Final = 2**20
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DOCKER_HUB: Final = "docker.io"
_DOCKER_HUB_URL: Final = "https://index.docker.io/v1/"
"""The key under which docker stores its login for Docker Hub."""
_DOCKER_HUB_HOSTS: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_NOT_FOUND: Final = "credentials not found in native keychain"


_KEY: Final = "authfile"
_SYSTEMD: Final = "CREDENTIALS_DIRECTORY"
_VARIABLE: Final = "REGISTRY_AUTH_FILE"


@dataclass(frozen=True, slots=True)
class _Place:
    """A file in which logins may lie."""

    path: Path
    given_by: str = ""
    """The key or the variable that says so; empty for the usual places."""
    legacy: bool = False
    """It is of the format of ~/.dockercfg."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A login as a file holds it; `account` is the user also where an identity token stands."""

    login: Login
    account: str


@dataclass(frozen=True, slots=True)
class _File:
    """What one file says, each entry checked; the secrets stay out of the repr."""

    path: Path
    entries: Mapping[str, _Entry] = field(repr=False)
    helpers: Mapping[str, str] = field(default_factory=dict)
    """Registry -> suffix of the program that keeps its login (`credHelpers`)."""
    store: str | None = None
    """Suffix of the program that keeps all logins (`credsStore`)."""


class AuthConfig:
    """The logins of all the files that were found, the first file first; for many threads.

    `problems` names what is wrong with a file that nobody named, or with its rights.
    """

    def __init__(
        self,
        files: tuple[_File, ...],
        environ: Mapping[str, str],
        problems: tuple[Problem, ...],
        named: _Place | None = None,
    ) -> None:
        self.problems = problems
        self._named = named
        self.paths = tuple(file.path for file in files)
        """The files that were read, in the order in which they are asked."""
        self._files = files
        self._environ = environ
        self._asked: dict[tuple[str, str], _Entry | RegistryError | None] = {}
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        return f"AuthConfig({', '.join(map(str, self.paths))})"

    def login(self, registry: str, repository: str) -> Login | None:
        """Return the login for a repository of a registry (`host[:port]`), None for anonymous.

        The most specific key counts first: `host/namespace/repository`, `host/namespace`, `host`.
        RegistryError `credentials` where a helper fails.
        """
        entry = self._find(registry, repository)
        return entry.login if entry else None

    def login_cure(self, host: str) -> str:
        """Return how a person stores a login for the host where it is found."""
        if self._named is None:
            return login_cure(host)
        if self._named.given_by == _SYSTEMD:
            return f"log in to {host} in the file that LoadCredential= gives as auth.json"
        return login_cure(host, self._named.path)

    def account(self, registry: str, repository: str = "") -> str | None:
        """Return the user of the login for a repository, or for the registry; None: anonymous."""
        entry = self._find(registry, repository)
        return entry.account if entry else None

    def scopes(self, registry: str) -> dict[str, str]:
        """Return the accounts of logins for a part of the registry, by their keys with a path."""
        host = _host(registry)
        return {
            key: entry.account
            for file in reversed(self._files)
            for key, entry in file.entries.items()
            if key.startswith(f"{host}/")
        }

    def _find(self, registry: str, repository: str) -> _Entry | None:
        registry = _host(registry)
        for file in self._files:
            found = self._find_in(file, registry, repository)
            if found is not None:
                return found
        return None

    def _find_in(self, file: _File, registry: str, repository: str) -> _Entry | None:
        for key in sorted(file.helpers, key=_exactness):
            if _host(key) == registry:
                return self._ask(file.helpers[key], key)
        for key in _keys(registry, repository):
            if key in file.entries:
                return file.entries[key]
        if file.store is None:
            return None
        return self._ask(file.store, _DOCKER_HUB_URL if registry == _DOCKER_HUB else registry)

    def _ask(self, helper: str, server: str) -> _Entry | None:
        """Return what a helper knows of a server; asked once, its failure is remembered too."""
        key = (helper, server)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._asked:
                try:
                    self._asked[key] = _run_helper(helper, server, self._environ)
                except RegistryError as error:
                    self._asked[key] = error
            found = self._asked[key]
        if isinstance(found, RegistryError):
            raise RegistryError(found.code, found.text, found.cure, answered=False)
        return found


def load(authfile: Path | None, environ: Mapping[str, str]) -> AuthConfig:
    """Return the logins of the explicit file and of all the usual places.

    UsageError where the explicit file is missing or broken; a broken one elsewhere is a problem.
    """
    files: list[_File] = []
    problems: list[Problem] = []
    places = tuple(_places(authfile, environ))
    for place in places:
        path = place.path
        try:
            found = _read(path, legacy=place.legacy)
        except FileNotFoundError:
            if place.given_by == _KEY:
                raise UsageError(
                    "authfile",
                    f"authfile: {path} does not exist",
                    login_cure(_DOCKER_HUB, path),
                ) from None
            if place.given_by == _VARIABLE:
                text = f"does not exist, though {_VARIABLE} names it"
                cure = f"correct {_VARIABLE}, or {login_cure(_DOCKER_HUB, path)}"
                problems.append(Problem("warning", "authfile", str(path), text, cure))
            continue
        except _BrokenFileError as error:
            if place.given_by == _KEY:
                raise UsageError("authfile", f"authfile: {path} {error}", error.cure) from None
            problems.append(Problem("warning", "authfile", str(path), str(error), error.cure))
            continue
        files.append(found)
        if (problem := _open_to_others(path, environ)) is not None:
            problems.append(problem)
    named = next((place for place in places if place.given_by), None)
    return AuthConfig(tuple(files), environ, tuple(problems), named)


def authfile_in_memory(entries: Mapping[str, Login]) -> int:
    """Return the descriptor of an authfile for children of ours that is on no disk.

    Nothing is left of it when the last process that has it dies, however that happens. Keys are
    `host[:port]`, perhaps with a path. The caller closes it.
    """
    auths: dict[str, dict[str, str]] = {}
    for key, login in entries.items():
        if login.is_identity_token:
            auths[key] = {"auth": _encode(IDENTITY_TOKEN, ""), "identitytoken": login.secret}
        else:
            auths[key] = {"auth": _encode(login.username, login.secret)}
    descriptor = os.memfd_create("authfile")
    os.write(descriptor, json.dumps({"auths": auths}).encode())
    return descriptor


def _places(authfile: Path | None, environ: Mapping[str, str]) -> Iterator[_Place]:
    """Yield where logins are looked for, first the places that were named.

    As with skopeo, a named file takes the place of the one in the runtime folder, and all others
    are still asked for registries that it does not hold. A user without a home has none there.
    """
    home = home_folder(environ)
    named = False
    if authfile is not None:
        named = True
        yield _Place(authfile, _KEY)
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        given = Path(folder, "auth.json")
        filled = False
        with suppress(OSError):
            filled = given.stat().st_size > 0
        named = named or filled
        yield _Place(given, _SYSTEMD if filled else "")
    if file := environ.get(_VARIABLE):
        named = True
        yield _Place(Path(file), _VARIABLE)
    if not named:
        runtime = environ.get("XDG_RUNTIME_DIR")
        # Without it containers/image knows /run/containers, not /run/user.
        own = Path(runtime, "containers") if runtime else Path(f"/run/containers/{os.getuid()}")
        yield _Place(own / "auth.json")
    config = environ.get("XDG_CONFIG_HOME") or (home / ".config" if home else None)
    if config is not None:
        yield _Place(Path(config, "containers", "auth.json"))
    docker = environ.get("DOCKER_CONFIG") or (home / ".docker" if home else None)
    if docker is not None:
        yield _Place(Path(docker, "config.json"))
    if home is not None:
        yield _Place(home / ".dockercfg", legacy=True)


class _BrokenFileError(Exception):
    """A file that cannot be used, and what to do."""

    def __init__(self, text: str, cure: str) -> None:
        super().__init__(text)
        self.cure = cure


def _read(path: Path, *, legacy: bool) -> _File:
    """Return what the file says, an empty one nothing; FileNotFoundError, _BrokenFileError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _BrokenFileError("is no regular file", "name a file that skopeo login writes")
        with path.open("rb") as file:
            content = file.read(_SIZE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(str(path)) from None
    except OSError as error:
        reason = (error.strerror or "no reason given").lower()
        raise _BrokenFileError(
            f"cannot be read: {reason}", "let the user that runs prewarm read it"
        ) from None
    if not content.strip():
        return _File(path, {})
    if len(content) > _SIZE_LIMIT:
        raise _BrokenFileError("is larger than 1 MiB", "name a file that skopeo login writes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        # The error of json holds the text, and that is secret.
        raise _broken("is not JSON") from None
    return _parsed(path, {"auths": document} if legacy else document)


def _broken(text: str) -> _BrokenFileError:
    return _BrokenFileError(text, "write it anew with skopeo login")


def _parsed(path: Path, document: object) -> _File:
    if not isinstance(document, dict):
        raise _broken("holds no JSON object")
    auths, helpers = (
        {} if document.get(key) is None else document[key] for key in ("auths", "credHelpers")
    )
    store = document.get("credsStore") or None
    if not isinstance(auths, dict) or not isinstance(helpers, dict):
        raise _broken("has auths or credHelpers that are no JSON object")
    for helper in (*helpers.values(), *([store] if store else [])):
        if not isinstance(helper, str) or (helper and not _HELPER_NAME.fullmatch(helper)):
            raise _broken("names a credential helper that is no plain name")
    entries: dict[str, _Entry] = {}
    for key in sorted(auths, key=_exactness):
        entry = _entry(key, auths[key])
        if entry is not None:
            entries.setdefault(_normal_key(key), entry)
    return _File(path, entries, {key: value for key, value in helpers.items() if value}, store)


def _entry(key: str, value: object) -> _Entry | None:
    """Return the login of an entry of `auths`; None where it is empty, as beside a helper."""
    if not isinstance(value, dict):
        raise _broken(f"has an entry for {key} that is no JSON object")
    username, password = value.get("username"), value.get("password")
    if isinstance(value.get("auth"), str) and value["auth"]:
        try:
            pair = base64.b64decode(value["auth"], validate=True).decode()
        except (binascii.Error, ValueError):
            raise _broken(f"has an auth for {key} that is not base64") from None
        username, colon, password = pair.partition(":")
        if not colon:
            raise _broken(f"has an auth for {key} that is not USER:PASSWORD in base64")
        password = password.strip("\0")  # docker once padded it
    token = value.get("identitytoken")
    user = username if isinstance(username, str) else ""
    if isinstance(token, str) and token:
        return _Entry(Login(IDENTITY_TOKEN, token), user or IDENTITY_TOKEN)
    if not user or not isinstance(password, str):
        return None
    return _Entry(Login(user, password), user)


def _encode(username: str, secret: str) -> str:
    return base64.b64encode(f"{username}:{secret}".encode()).decode()


def _host(text: str) -> str:
    """Return the host of a key or registry; every name of Docker Hub is docker.io."""
    host = re.sub(r"^https?://", "", text.lower()).partition("/")[0]
    return _DOCKER_HUB if host in _DOCKER_HUB_HOSTS else host


def _normal_key(key: str) -> str:
    """Return a key as `host` or `host/path`: docker once wrote URLs with /v1/ or /v2/ behind."""
    bare = re.sub(r"^https?://", "", key)
    host, _, path = bare.partition("/")
    if bare != key or path.strip("/") in {"v1", "v2", ""}:
        path = ""
    return f"{_host(host)}/{path.strip('/')}" if path else _host(host)


def _exactness(key: str) -> int:
    """Sort keys so that of several for one registry the plain host's counts."""
    return 0 if _normal_key(key) == key else 1


def _keys(registry: str, repository: str) -> Iterator[str]:
    """Yield the keys that hold for the repository, the most specific first."""
    key = f"{registry}/{repository}".rstrip("/")
    while key:
        yield key
        key = key.rpartition("/")[0]


def _run_helper(helper: str, server: str, environ: Mapping[str, str]) -> _Entry | None:
    """Ask `docker-credential-HELPER get`; None where it knows nothing of the server."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=HELPER_TIMEOUT,
            env=inherited(environ),
            check=False,
        )
    except FileNotFoundError:
        raise _helper_failed(server, program, "is not installed", f"install {program}") from None
    except subprocess.TimeoutExpired:
        raise _helper_failed(
            server, program, "gave no answer in time", f"try {program} get by hand"
        ) from None
    except OSError:
        raise _helper_failed(
            server, program, "cannot be started", "check its file and rights"
        ) from None
    if done.returncode != 0:
        if _NOT_FOUND in done.stdout.decode(errors="replace"):
            return None
        # Its output is not repeated: it may hold the secret.
        raise _helper_failed(
            server, program, f"failed (exit {done.returncode})", f"try {program} get by hand"
        )
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = json.loads(done.stdout)
    match found:
        case {"Username": str(username), "Secret": str(secret)} if secret:
            return _Entry(Login(username, secret), username)
        case {"Username": str(), "Secret": str()}:
            return None
        case _:
            raise _helper_failed(
                server, program, "answered no Username and Secret", "check which program it is"
            )


def _helper_failed(server: str, program: str, text: str, cure: str) -> RegistryError:
    return RegistryError("credentials", f"{server}: {program} {text}", cure, answered=False)


def _open_to_others(path: Path, environ: Mapping[str, str]) -> Problem | None:
    """Return the problem of a file that others may read; systemd guards its own folder."""
    guarded = environ.get("CREDENTIALS_DIRECTORY")
    if guarded and path.parent == Path(guarded):
        return None
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return None
    return Problem(
        "warning",
        "authfile",
        str(path),
        f"others than its owner may use it (mode {stat.S_IMODE(mode):04o})",
        f"chmod 600 {path}",
    )
