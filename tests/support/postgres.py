"""A real PostgreSQL of Debian's package, on a socket and a port of its own, in a folder of its own.

It refuses to run as root: then it is the user `postgres`, whom the package makes.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import psycopg

_PACKAGE = Path("/usr/lib/postgresql")
_SETTINGS = {
    # The tests stop it at once, never the machine.
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "16MB",
    # Another order of texts than by their bytes, as most servers have.
    "log_min_messages": "warning",
}
_NUMBERS = itertools.count()


def programs() -> Path:
    """Return the folder of the newest server that is installed; none fails the test."""
    found = sorted(_PACKAGE.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    assert found, "there is no PostgreSQL: apt-get install postgresql"
    return found[-1].parent


class Postgres:
    """A server; `database` makes an empty one in it. `stop` and `start` are real."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        # Logins over the network need a password; over the socket whoever runs the tests is in.
        self._run(
            "initdb",
            "--no-sync",
            "--username=owner",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        )
        self.start()
        atexit.register(self.close)

    def _run(self, program: str, *options: str) -> None:
        command = [str(programs() / program), f"--pgdata={self.folder / 'data'}", *options]
        subprocess.run(
            command, check=True, capture_output=True, user=self._user, cwd="/", timeout=60
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = {**_SETTINGS, "port": self.port, "unix_socket_directories": self.folder}
        command = [str(programs() / "postgres"), "-D", str(self.folder / "data")]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        if threading.current_thread() is threading.main_thread() and shutil.which("setpriv"):
            # It then dies with us even when we are killed. (The kernel means the thread.)
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        with (self.folder / "log").open("ab") as log:
            if self._user is not None:
                shutil.chown(self.folder / "log", self._user)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._user,
                cwd="/",
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL did not start in 30 s"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop it at once, as a crash would (`pg_ctl stop -m immediate`)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=30)
            self._process = None

    def url(self, database: str, user: str = "owner") -> str:
        """Return the URL of a database, over the socket."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}"

    def network_url(self, database: str, user: str) -> str:
        """Return the URL of a database, over the network: a password is needed."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"prewarm_{next(_NUMBERS)}"
        self.sql(f"CREATE DATABASE {name}", url=self.url("postgres"))
        return self.url(name)

    def sql(self, statement: str, *values: Any, url: str) -> list[Any]:
        """Run a statement, each in a transaction of its own, and return its rows."""
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """End it in order, so that nobody writes to its folder any more, and remove that."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=30)
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
