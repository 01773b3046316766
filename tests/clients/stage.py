"""The stage of the clients: registries under their real names, and a mirror that a sync filled."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Literal, Self

import yaml

from tests.clients.machine import Machine
from tests.clients.programs import PROGRAMS
from tests.sandbox import Hub, Rules, Sandbox
from tests.sandbox.registry import free_port
from tests.sandbox.server import Server
from tests.support.process import run_prewarm

_NAME: Final = "mirror.example.org"
Setting = Literal["loopback", "http", "tls", "ask-upstream", "unset"]
"""How a client is set up: the mirror on its own host, elsewhere by plain HTTP, or elsewhere by TLS;
or on its host, with containerd's other choice for tags; or with no settings for a mirror."""


class Stage:
    """Docker Hub and quay.io behind `hub` and `quay`, a mirror behind `tap`, a machine per client.

    Clients reach the mirror at a port of loopback, whose door can be shut, or by a proxy under a
    name, by plain HTTP or by TLS with a private CA.
    """

    def __init__(self) -> None:
        with ExitStack() as stack:
            self._box = stack.enter_context(Sandbox())
            self.hub, self.tap = self._box.hub, self._box.taps[0]
            quay = self._box.registry("quay")
            self.quay = stack.enter_context(Hub(quay, Rules(blobs="direct")))
            self.names = self._box.under_real_names(
                {"quay.io": self.quay}, private={_NAME: self.tap}
            )
            plain = stack.enter_context(Server(self.tap))
            self._env = {**self.names.env(), "HTTP_PROXY": plain.url, "http_proxy": plain.url}
            self._port = free_port()
            self.open_door()
            stack.callback(self.shut_door)
            self._machines: dict[tuple[str, Setting], Machine] = {}
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self._machines.values():
            machine.end()
        self._stack.close()

    def open_door(self) -> None:
        """Let clients reach the mirror at its port."""
        self._door = Server(self.tap, port=self._port)

    def shut_door(self) -> None:
        """Refuse connections to the mirror's port."""
        self._door.close()

    def sync(self, images: Sequence[str | dict[str, Any]], platform: str) -> dict[str, str]:
        """Fill the mirror by `prewarm sync`; return what it did with each image."""
        finished = run_prewarm(
            ["sync", "--json"],
            self._box.path / "prewarm",
            config=self._config("loopback", platforms=[platform], images=list(images)),
            env=self.names.env(),
        )
        assert finished.returncode in (0, 1), finished.stderr
        return {one["image"]: one["action"] for one in finished.json["images"]}

    def machine(self, client: str, setting: Setting) -> Machine:
        """Return the running machine of a client, with the files that prewarm prints for it."""
        found = self._machines.get((client, setting))
        if found is None:
            folder = Path(tempfile.mkdtemp(prefix="machine-", dir=self._box.path))
            found = self._stack.enter_context(Machine(folder, self._env, self.names.hosts))
            program = PROGRAMS[client]
            if setting != "unset":
                self._set_up(found, program.kind, program.home, setting)
            program.start(found)
            self._machines[client, setting] = found
        return found

    def doctor(
        self, client: str, setting: Setting, env: Mapping[str, str] | None = None, **keys: Any
    ) -> list[dict[str, str]]:
        """Return what `prewarm doctor --client` on the client's machine says of the client.

        `keys` are written in images.yml in place of the stage's own.
        """
        machine = self.machine(client, setting)
        config = machine.folder / "doctor.yml"
        config.write_text(self._config(setting, **keys))
        finished = machine.run(
            *(sys.executable, "-m", "prewarm", "--config", str(config)),
            *("doctor", "--json", "--client", PROGRAMS[client].kind),
            env=env,
        )
        assert finished.stderr == ""
        return [one for one in finished.json["checks"] if one["check"] == "client"]

    def client_url(self, setting: Setting) -> str:
        """Return where clients reach the mirror."""
        named = {"http": f"http://{_NAME}:5000", "tls": f"https://{_NAME}"}
        return named.get(setting, f"http://127.0.0.1:{self._port}")

    def _set_up(self, machine: Machine, kind: str, home: str, setting: Setting) -> None:
        """Do as a person does with the print: files by --output, the CA where it says."""
        options = ["--ask-upstream"] if setting == "ask-upstream" else []
        finished = run_prewarm(
            ["client-config", kind, *options, "--output", str(machine.path(home))],
            machine.folder / "prewarm",
            config=self._config(setting),
        )
        assert finished.returncode == 0, finished.stderr
        files = [path for path in sorted(machine.path(home).rglob("*")) if path.is_file()]
        said = finished.stderr + "".join(path.read_text() for path in files)
        told = " ".join(said.replace("\n#", "").split())
        copies = set(re.findall(r"copy (\S+) to (\S+\.crt)\b", told))
        assert len(copies) == (setting == "tls"), said
        for source, place in copies:
            machine.write(place, Path(source).read_text())

    def _config(self, setting: Setting, **keys: Any) -> str:
        mirror = {"url": self._box.mirrors[0].url, "client_url": self.client_url(setting)}
        if setting == "tls":
            mirror["ca"] = str(self.names.private_ca)
        # Docker Hub's indexes are reduced to this architecture, the other registry's kept whole.
        registries: dict[str, Any] = {"docker.io": {}, "quay.io": {"platforms": "all"}}
        document = {"version": 1, "mirrors": [mirror], "registries": registries, **keys}
        return yaml.safe_dump(document)
