"""A real registry:2 (`docker-registry serve`) on a loopback port, and a look at it from outside."""

from __future__ import annotations

import atexit
import base64
import contextlib
import ctypes
import http.client
import json
import os
import random
import secrets
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from tests.sandbox.client import Answer, Pool
from tests.sandbox.storage import Storage

MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
# Below the kernel's ephemeral range: a restart must find its port free.
_PORTS = range(12000, 32000)


class Registry:
    """A registry:2 process with its storage in `folder`; runs from construction to `close`.

    `proxy` makes it a pull-through cache of that URL, `users` demands Basic auth (htpasswd),
    `readonly` is its maintenance mode, `tls` is a certificate file and its key file, which
    `ca` proves; `user` is the number of a user that it runs as, who then owns its storage (for root
    alone). RuntimeError where the program is missing or does not come up.
    """

    def __init__(
        self,
        folder: Path,
        *,
        delete: bool = True,
        proxy: str | None = None,
        users: Mapping[str, str] | None = None,
        readonly: bool = False,
        tls: tuple[Path, Path] | None = None,
        ca: Path | None = None,
        storage: Path | None = None,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        program = shutil.which("docker-registry")
        if program is None:
            raise RuntimeError("docker-registry is not installed; apt-get install docker-registry")
        self._program = program
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.storage = Storage(storage or folder / "storage")
        self.delete_enabled, self.proxy, self.readonly = delete, proxy, readonly
        self._users, self._tls, self._env = dict(users or {}), tls, dict(env or {})
        self._user = user
        if user is not None:
            os.chown(self.storage.folder, user, user)
        self._mark = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._context = ssl.create_default_context(cafile=ca) if ca else None
        self._start_on_a_free_port()
        atexit.register(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.stop()
        atexit.unregister(self.stop)

    def stop(self) -> None:
        """Kill the process; its port and its storage stay."""
        self.pool.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def start(self) -> None:
        """Start the process again, on the same port."""
        config = self.folder / f"registry-{self.port}.yml"
        config.write_text(json.dumps(self._config()))
        command = [self._program, "serve", str(config)]
        if threading.current_thread() is threading.main_thread() and shutil.which("setpriv"):
            # It then dies with us even when we are killed. (The kernel means the thread.)
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        if self._user is not None:
            ids = [f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]
            command = ["setpriv", *ids, *command]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REGISTRY_")}
        with (self.folder / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**inherited, **self._env},
            )
        self._wait_until_ready()

    def restart(self, *, readonly: bool | None = None) -> None:
        """Stop and start, perhaps in or out of maintenance mode."""
        self.stop()
        if readonly is not None:
            self.readonly = readonly
        self.start()

    def _start_on_a_free_port(self) -> None:
        for attempt in range(5):
            self.port = free_port()
            scheme = "https" if self._tls else "http"
            self.url = f"{scheme}://127.0.0.1:{self.port}"
            self.pool = Pool(self.url, self._context)
            try:
                return self.start()
            except RuntimeError:
                if attempt == 4 or b"address already in use" not in self._log():
                    raise
        return None

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                # The mark tells this process from another's on the same port.
                if self.request("GET", "/v2/").headers.get("x-sandbox") == self._mark:
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.005)
        self.stop()
        tail = self._log()[-2000:].decode(errors="replace")
        raise RuntimeError(f"docker-registry did not start; see {self.folder}/registry.log: {tail}")

    def _log(self) -> bytes:
        return (self.folder / "registry.log").read_bytes()

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage.folder)},
                "delete": {"enabled": self.delete_enabled},
                "maintenance": {
                    "uploadpurging": {"enabled": False},
                    "readonly": {"enabled": self.readonly},
                },
            },
            "http": {
                "addr": f"127.0.0.1:{self.port}",
                "relativeurls": True,
                "headers": {"X-Sandbox": [self._mark]},
            },
        }
        if self.proxy:
            config["proxy"] = {"remoteurl": self.proxy}
        if self._tls:
            config["http"]["tls"] = {"certificate": str(self._tls[0]), "key": str(self._tls[1])}
        if self._users:
            htpasswd = self.folder / "htpasswd"
            lines = [f"{name}:{_bcrypt(word)}\n" for name, word in self._users.items()]
            htpasswd.write_text("".join(lines))
            config["auth"] = {"htpasswd": {"realm": "sandbox", "path": str(htpasswd)}}
        return config

    # --- a look from outside ---

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Ask the registry itself, with its credentials where it wants some."""
        extra = {}
        for name, word in list(self._users.items())[:1]:
            token = base64.b64encode(f"{name}:{word}".encode()).decode()
            extra["Authorization"] = f"Basic {token}"
        return self.pool.request(method, path, {**extra, **(headers or {})}, body)

    def tags(self, repository: str) -> list[str]:
        """Return the tags in order; none for a repository that is not there."""
        answer = self.request("GET", f"/v2/{repository}/tags/list")
        return sorted(json.loads(answer.body)["tags"] or ()) if answer.status == 200 else []

    def catalog(self) -> list[str]:
        """Return the repositories in order (the first thousand), without prewarm's own."""
        answer = self.request("GET", "/v2/_catalog?n=1000")
        names = json.loads(answer.body)["repositories"] or ()
        return sorted(name for name in names if name != "prewarm/indexes")

    def manifest(self, repository: str, reference: str) -> tuple[str, bytes, str] | None:
        """Return media type, bytes and digest of what a tag or digest names, or None."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        answer = self.request("GET", f"/v2/{repository}/manifests/{reference}", headers)
        if answer.status != 200:
            return None
        return (
            answer.headers["content-type"],
            answer.body,
            answer.headers["docker-content-digest"],
        )

    def delete(self, repository: str, digest: str) -> bool:
        """Delete a manifest and so the tags on it; return whether it was there."""
        return self.request("DELETE", f"/v2/{repository}/manifests/{digest}").status == 202

    def retag(self, repository: str, source: str, tag: str) -> str:
        """Let `tag` name what the tag or digest `source` names; return the digest."""
        found = self.manifest(repository, source)
        if found is None:
            raise LookupError(f"{repository} has no {source}")
        media_type, content, digest = found
        self.put_manifest(repository, tag, media_type, content)
        return digest

    def put_manifest(
        self, repository: str, reference: str, media_type: str, content: bytes
    ) -> None:
        """Put the bytes under a tag or digest; RuntimeError where the registry refuses them."""
        path = f"/v2/{repository}/manifests/{reference}"
        answer = self.request("PUT", path, {"Content-Type": media_type}, content)
        if answer.status != 201:
            raise RuntimeError(f"PUT {path}: {answer.status} {answer.body.decode()}")


def free_port() -> int:
    """Return a port of loopback that nobody has now."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _bcrypt(password: str) -> str:
    """Return the bcrypt hash, the only one registry:2 takes; Python has none of its own."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    salt = "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=21)) + "e"
    hashed = crypt(password.encode(), f"$2b$04${salt}".encode())
    assert isinstance(hashed, bytes)
    return hashed.decode()
