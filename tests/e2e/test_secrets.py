"""No secret leaks: not into argv, environments, output, log or state, and to no other host."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.host import Host
from tests.sandbox import Fault, Hub, Registry, Rules, Sandbox
from tests.sandbox.access import Access
from tests.sandbox.server import Server, Site
from tests.sandbox.wire import Request, Response
from tests.support.network import far_address
from tests.support.process import start_prewarm

UPSTREAM = "upstream-hunter2-7c1e"
MIRROR = "mirror-hunter2-93ab"


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def write_auth(folder: Path, logins: Mapping[str, tuple[str, str]], mode: int = 0o600) -> Path:
    """Write an authfile as skopeo does: URL or host of a registry -> user and password."""
    folder.mkdir(parents=True, exist_ok=True)
    auths = {
        url.rpartition("/")[2]: {"auth": basic(user, password)}
        for url, (user, password) in logins.items()
    }
    file = folder / "auth.json"
    file.touch(mode)
    file.chmod(mode)
    file.write_text(json.dumps({"auths": auths}))
    return file


def spellings(*secrets: str) -> list[bytes]:
    """Return each secret as itself and in base64, whatever stood before it."""
    found = []
    for secret in secrets:
        found.append(secret.encode())
        for shift in range(3):
            encoded = base64.b64encode(b"x" * shift + secret.encode())
            # The first and the last letters depend on what stands beside it.
            found.append(encoded[4 : len(encoded) // 4 * 4 - 4])
    return found


def assert_none(secrets: list[bytes], texts: Mapping[str, bytes]) -> None:
    for name, text in texts.items():
        for secret in secrets:
            assert secret not in text, f"{secret!r} is in {name}"


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tree(root: int) -> dict[int, bytes]:
    """Return pid -> command line and environment of a process and of all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    ours, size = {root}, 0
    while size != len(ours):
        size = len(ours)
        ours |= {pid for pid, parent in parents.items() if parent in ours}
    found = {}
    for pid in ours:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            found[pid] = words + b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
    return found


class Locked:
    """A private image upstream, and a mirror that wants a password; both are in the authfile."""

    def __init__(self, host: Host, box: Sandbox, folder: Path) -> None:
        self.box = box
        self.image = box.push("acme/secret", "1", single=True)
        box.hub.rules.accounts = {"acme": UPSTREAM}
        box.hub.rules.private = {"acme/*": ["acme"]}
        self.mirror: Registry = box.registry("locked", users={"pusher": MIRROR})
        self.authfile = write_auth(
            folder, {box.hub.url: ("acme", UPSTREAM), self.mirror.url: ("pusher", MIRROR)}
        )
        host.configure(["acme/secret:1"], mirrors=[self.mirror.url], authfile=str(self.authfile))

    def secrets(self) -> list[bytes]:
        """Passwords, the tokens that were given out, and the signatures of blob URLs."""
        tokens = {
            entry.secret.split(" ", 1)[1]
            for entry in list(self.box.hub.access)
            if entry.authorization == "Bearer"
        }
        signed = {
            entry.path.partition("verify=")[2]
            for entry in list(self.box.hub.cdn.access)
            if "verify=" in entry.path
        }
        assert tokens
        return [*spellings(UPSTREAM, MIRROR), *(text.encode() for text in tokens | signed)]


@pytest.mark.parametrize("options", [["-v", "--log-format", "json"], ["-v"]])
def test_sync_shows_no_secret_in_processes_output_and_state(
    host: Host, box: Sandbox, tmp_path: Path, options: list[str]
) -> None:
    locked = Locked(host, box, tmp_path / "keys")
    box.hub.cdn.faults.add(Fault(hang=0.4, count=None))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    seen: dict[str, bytes] = {}
    with start_prewarm(
        [*options, "sync", "--json"],
        host.folder,
        config=host.config,
        env={"TMPDIR": str(temporary)},
    ) as process:
        while process.poll() is None:
            for pid, words in tree(process.pid).items():
                seen[f"process {pid}: {words[:200]!r}"] = words
            for path, content in private_files(temporary, host.state.parent).items():
                seen[f"file {path}"] = content
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout + stderr
    assert locked.mirror.tags("acme/secret") == ["1"]
    assert len(box.hub.cdn.access) >= 2
    # Without these the test would have watched nothing.
    assert [name for name in seen if "skopeo" in name]
    assert [name for name in seen if name.startswith("file")]

    texts = seen | {"stdout": stdout.encode(), "stderr": stderr.encode()}
    state = files_below(host.state.parent)
    assert str(host.state) in state
    assert_none(locked.secrets(), texts | state)
    assert list(temporary.iterdir()) == []
    assert box.hub.cdn.leaks == []


def private_files(*folders: Path) -> dict[Path, bytes]:
    """Whatever a running sync has on disk: its logins are in memory alone."""
    found = {}
    # os.walk, unlike rglob, does not mind a folder that the run removes meanwhile.
    for path in (
        Path(at, name) for top in folders for at, _, names in os.walk(top) for name in names
    ):
        try:
            found[path] = path.read_bytes()
        except OSError:
            continue
    return found


@pytest.mark.parametrize("wrong", ["upstream", "mirror"])
def test_sync_wrong_password_is_not_in_what_it_says(
    host: Host, box: Sandbox, tmp_path: Path, wrong: str
) -> None:
    locked = Locked(host, box, tmp_path / "keys")
    passwords = {"upstream": UPSTREAM, "mirror": MIRROR, wrong: "mistyped-hunter2-55"}
    write_auth(
        tmp_path / "keys",
        {
            box.hub.url: ("acme", passwords["upstream"]),
            locked.mirror.url: ("pusher", passwords["mirror"]),
        },
    )
    finished = host.run("-v", "sync")
    assert finished.returncode == 1
    assert box.hub.access.gets() == []
    secrets = spellings(UPSTREAM, MIRROR, "mistyped-hunter2-55")
    texts = {"stdout": finished.stdout.encode(), "stderr": finished.stderr.encode()}
    assert_none(secrets, texts | files_below(host.state.parent))


@pytest.mark.parametrize(
    "content",
    [
        f'{{"auths": {{"docker.io": {UPSTREAM}',
        f'{{"auths": {{"docker.io": {{"auth": "{UPSTREAM}"}}}}}}',
    ],
)
def test_sync_broken_authfile_is_an_error_without_its_content(
    host: Host, box: Sandbox, tmp_path: Path, content: str
) -> None:
    authfile = tmp_path / "auth.json"
    authfile.write_text(content)
    host.configure(["app:1"], authfile=str(authfile))
    finished = host.run("-v", "sync")
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert str(authfile) in finished.stderr
    assert_none(spellings(UPSTREAM), {"stderr": finished.stderr.encode()})
    assert list(box.hub.access) == []


def test_check_password_in_a_url_is_refused_and_not_repeated(host: Host, box: Sandbox) -> None:
    host.configure(["app:1"], mirrors=[f"http://user:{MIRROR}@127.0.0.1:5000"])
    for command in (["check"], ["sync"], ["status"]):
        finished = host.run(*command)
        assert finished.returncode == 2
        assert_none(spellings(MIRROR), {"out": (finished.stdout + finished.stderr).encode()})


def test_sync_authfile_that_others_may_read_is_a_warning(
    host: Host, box: Sandbox, tmp_path: Path
) -> None:
    box.push("library/app", "1", single=True)
    authfile = write_auth(tmp_path / "keys", {box.hub.url: ("acme", "sesame")}, mode=0o644)
    host.configure(["app:1"], authfile=str(authfile))
    done = host.sync()
    (problem,) = done.report["problems"]
    assert (problem["severity"], problem["where"]) == ("warning", str(authfile))
    assert "0644" in problem["problem"]
    assert problem["cure"] == f"chmod 600 {authfile}"
    assert done.named("copy") == ["app:1"]
    host.sync("--strict", code=1)
    authfile.chmod(0o600)
    assert host.sync("--strict").report["problems"] == []


# --- to no other host ---


class Evil(Site):
    """Somebody else's server, which answers whatever it is asked with a token."""

    def respond(self, request: Request) -> Response:
        return Response(200, {"Content-Type": "application/json"}, b'{"token": "evil"}')


def secrets_at(*sites: Site) -> list[Access]:
    return [entry for site in sites for entry in list(site.access) if entry.secret]


def basics_at(*sites: Site) -> list[Access]:
    return [entry for entry in secrets_at(*sites) if entry.authorization == "Basic"]


def private_host(host: Host, box: Sandbox, tmp_path: Path, **registry: str) -> None:
    """Configure a public image and a private one, and credentials for the Hub."""
    box.push("library/app", "1", single=True)
    box.push("acme/secret", "1", single=True)
    box.hub.rules.private = {"acme/*": ["acme"]}
    authfile = write_auth(tmp_path / "keys", {box.hub.url: ("acme", "sesame")})
    host.configure(
        ["acme/secret:1", "app:1"],
        registries={"docker.io": {"endpoint": box.hub.url, **registry}},
        authfile=str(authfile),
    )


def test_sync_token_realm_on_another_host_gets_no_credentials(
    host: Host, box: Sandbox, tmp_path: Path
) -> None:
    private_host(host, box, tmp_path)
    evil = Evil()
    with Server(evil, host="127.0.0.9") as server:
        box.hub.rules.realm = f"{server.url}/token"
        done = host.sync(code=1)
        assert evil.access.of("token")
        assert secrets_at(evil) == []
        assert basics_at(box.hub) == []
    assert done.gets == ()
    assert done.image("acme/secret:1")["error"]["code"] == "unauthorized"
    assert "realm: 127.0.0.9" in done.image("acme/secret:1")["error"]["cure"]


@pytest.mark.parametrize("trusted", [False, True])
def test_sync_token_server_on_another_host_is_shown_credentials_where_realm_names_it(
    tmp_path: Path, trusted: bool
) -> None:
    with Sandbox(token_host="127.0.0.3") as box:
        host = Host(tmp_path, box)
        more = {"realm": box.hub.token_url.split("/")[2]} if trusted else {}
        private_host(host, box, tmp_path, **more)
        done = host.sync(code=0 if trusted else 1)
        assert bool(basics_at(box.hub)) == trusted
        assert done.image("app:1")["action"] == "copy"
        expected = "copy" if trusted else "fail"
        assert done.image("acme/secret:1")["action"] == expected
        assert box.hub.cdn.leaks == []


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_sync_redirect_to_another_host_takes_no_credentials_along(
    host: Host, box: Sandbox, tmp_path: Path, method: str, kind: str
) -> None:
    private_host(host, box, tmp_path)
    evil = Evil()
    with Server(evil, host="127.0.0.9") as server:
        box.hub.faults.add(
            Fault(
                method,
                f"/v2/acme/secret/{kind}/*",
                status=307,
                headers={"Location": f"{server.url}/v2/acme/secret/x", "Set-Cookie": "a=b"},
                count=None,
            )
        )
        done = host.sync(code=0 if (method, kind) == ("HEAD", "blobs") else 1)
        asked = list(evil.access)
    # Nobody asks for the head of a blob upstream; all else goes where the redirect says.
    assert bool(asked) == ((method, kind) != ("HEAD", "blobs"))
    assert secrets_at(evil) == []
    assert [entry for entry in asked if entry.cookie] == []
    assert done.image("app:1")["action"] == "copy"


# --- not over plain http ---


@pytest.mark.parametrize("auth", ["token", "basic"])
def test_sync_upstream_over_plain_http_gets_no_credentials(
    host: Host, box: Sandbox, tmp_path: Path, auth: str
) -> None:
    box.push("library/app", "1", single=True)
    box.push("acme/secret", "1", single=True)
    rules = Rules(private={"acme/*": ["acme"]}, auth="basic" if auth == "basic" else "token")
    with far_address() as address, Hub(box.upstream, rules, host=address) as hub:
        authfile = write_auth(tmp_path / "keys", {hub.url: ("acme", "sesame")})
        host.configure(
            ["acme/secret:1", "app:1"],
            registries={"docker.io": {"endpoint": hub.url}},
            authfile=str(authfile),
        )
        done = host.sync(code=1)
        assert len(hub.access) >= 1
        assert basics_at(hub) == []
        assert {entry.account for entry in hub.access} <= {""}
    secret = done.image("acme/secret:1")
    assert secret["error"]["code"] == "plain-http-credentials"
    assert "https://" in secret["error"]["cure"]


@pytest.mark.parametrize("challenged", ["", "/blobs/sha256:", "/library/app/blobs/uploads/"])
def test_sync_mirror_over_plain_http_gets_no_credentials(
    host: Host, box: Sandbox, tmp_path: Path, challenged: str
) -> None:
    box.push("library/app", "1", single=True)
    site = Challenging(box.mirrors[0], challenged)
    with far_address() as address, Server(site, host=address) as server:
        authfile = write_auth(tmp_path / "keys", {server.url: ("pusher", MIRROR)})
        host.configure(["app:1"], mirrors=[server.url], authfile=str(authfile))
        done = host.sync(code=1)
        assert len(site.access) >= 1
        assert secrets_at(site) == []
    (problem,) = done.report["problems"]
    assert problem["where"] == server.url
    assert problem["cure"]


class Challenging(Site):
    """A mirror that wants a password for some of its paths."""

    def __init__(self, registry: Registry, challenged: str) -> None:
        super().__init__()
        self._registry = registry
        self._challenged = challenged

    def respond(self, request: Request) -> Response:
        if self._challenged in request.path:
            return Response(401, {"WWW-Authenticate": 'Basic realm="mirror"'}, b"")
        body = request.body if request.method not in ("GET", "HEAD", "DELETE") else None
        kept = ("accept", "content-type")
        headers = {name: value for name, value in request.headers.items() if name in kept}
        answer = self._registry.pool.request(request.method, request.target, headers, body)
        passed = ("content-type", "docker-content-digest", "location")
        told = {name.title(): answer.headers[name] for name in passed if name in answer.headers}
        return Response(answer.status, told, answer.body)
