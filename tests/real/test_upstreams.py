"""Registries of every flavour: tokens, logins and refusals as each documents them.

Each is asked by TLS under its real name, through a proxy behind which the stand-in has it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.budget import Moment
from prewarm.core.errors import RegistryError
from prewarm.core.platforms import ALL
from prewarm.core.reference import parse
from prewarm.core.settings import Upstream
from prewarm.planning.demand import Want
from prewarm.registry.client import Registry
from prewarm.registry.login import Login
from prewarm.state.ledger import Ledger
from prewarm.sync.inspect import Observer, UpstreamSite
from tests.e2e.host import Host
from tests.sandbox import Access, Sandbox
from tests.sandbox.flavours import Flavour, FlavouredRegistry

AMD, ARM = "linux/amd64", "linux/arm64"
DECOY = ("somebody", "decoy-hunter2")
"""A login that is for none of the hosts that are asked."""
_KEY = json.dumps({"type": "service_account", "private_key": "-----BEGIN\n:+/=\n"}, indent=1)


@dataclass(frozen=True, slots=True)
class Row:
    """A registry as images.yml names it, its login, and where its images land."""

    flavour: Flavour
    user: str
    secret: str
    public: str
    private: str
    name: str = ""
    """As in references; the flavour's host where it is empty."""
    mirror: str = ""
    """The folder on the mirror; the name where it is empty."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of the registry in images.yml; `ca` is filled in."""

    @property
    def registry(self) -> str:
        return self.name or self.flavour.host

    @property
    def own_ca(self) -> bool:
        return "ca" in self.keys


ROWS = {
    "docker-hub": Row(
        Flavour("registry-1.docker.io", "https://auth.docker.io/token", "registry.docker.io"),
        *("acme", "dckr_pat_sesame"),
        *("library/app", "acme/secret"),
        name="docker.io",
        mirror="/",
    ),
    "quay": Row(
        Flavour("quay.io", "https://quay.io/v2/auth", "quay.io", fields=("token",)),
        *("acme+ci", "QUAYROBOTSESAME"),
        *("prometheus/app", "acme/secret"),
    ),
    "ghcr": Row(
        Flavour(
            *("ghcr.io", "https://ghcr.io/token", "ghcr.io"),
            scope="repository:user/image:pull",
            fields=("token",),
            denies="token",
            denial=403,
            wrong=403,
        ),
        *("acme", "ghp_sesame"),
        *("acme/app", "acme/secret"),
    ),
    "gcr": Row(
        Flavour("gcr.io", "https://gcr.io/v2/token", "gcr.io", denies="token"),
        *("_json_key", _KEY),
        *("google-containers/app", "acme/secret"),
    ),
    "artifact-registry": Row(
        Flavour(
            *("us-docker.pkg.dev", "https://us-docker.pkg.dev/v2/token"),
            denies="token",
            denial=403,
        ),
        *("oauth2accesstoken", "ya29.sesame_-"),
        *("acme/public/app", "acme/private/secret"),
    ),
    "gitlab-com": Row(
        Flavour(
            *("registry.gitlab.com", "https://gitlab.com/jwt/auth", "container_registry"),
            fields=("token",),
            denies="token",
            denial=403,
        ),
        *("gitlab+deploy-token-7", "gldt-sesame"),
        *("acme/tools/builder/app", "acme/tools/builder/cache/secret"),
    ),
    "gitlab-self-managed": Row(
        Flavour(
            "registry.example.org:5050",
            "https://gitlab.example.org/jwt/auth",
            "container_registry",
            fields=("token",),
            denies="token",
            denial=403,
        ),
        *("ci", "glpat-sesame"),
        *("acme/tools/app", "acme/tools/secret"),
        mirror="registry.example.org_5050/",
        keys={"realm": "gitlab.example.org", "ca": ""},
    ),
    "distribution-htpasswd": Row(
        Flavour("registry.example.org:5000", basic="Registry Realm"),
        *("ci", "plain-sesame"),
        *("team/app", "team/secret"),
        mirror="registry.example.org_5000/",
        keys={"ca": ""},
    ),
    "harbor": Row(
        Flavour(
            *("harbor.example.org", "https://harbor.example.org/service/token"),
            "harbor-registry",
        ),
        *("robot$ci", "harbor-sesame"),
        *("tools/app", "internal/secret"),
        keys={"ca": ""},
    ),
    "harbor-proxy-cache": Row(
        Flavour(
            *("harbor.example.org", "https://harbor.example.org/service/token"),
            "harbor-registry",
        ),
        *("robot$dockerhub+ci", "harbor-sesame"),
        *("library/app", "acme/secret"),
        name="docker.io",
        mirror="/",
        keys={"endpoint": "https://harbor.example.org/dockerhub", "ca": ""},
    ),
    "artifactory": Row(
        Flavour(
            *("art.example.org", "https://art.example.org/v2/token", "art.example.org"),
            basic="Artifactory Realm",
            denies="token",
        ),
        *("ci", "cmVmdGtu-sesame"),
        *("docker-local/app", "docker-local/secret"),
    ),
}

table = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@dataclass(frozen=True)
class Stage:
    """The stand-in of a row under its real names, holding a public and a private image."""

    row: Row
    box: Sandbox
    site: FlavouredRegistry
    ca: Path
    env: Mapping[str, str]

    @property
    def prefix(self) -> str:
        """The path of the endpoint, under which all its repositories lie."""
        path = self.row.keys.get("endpoint", "").partition("://")[2].partition("/")[2]
        return f"{path}/" if path else ""

    @property
    def keys(self) -> dict[str, str]:
        """The row's keys for images.yml."""
        return {**self.row.keys, **({"ca": str(self.ca)} if self.row.own_ca else {})}

    @contextmanager
    def client(self, login: Login | None = None) -> Iterator[Registry]:
        row = self.row
        with Registry(
            row.registry,
            row.keys.get("endpoint", f"https://{row.flavour.host}"),
            ca=self.ca if row.own_ca else None,
            realm=row.keys.get("realm"),
            credentials=lambda _: login,
            environ=self.env,
        ) as opened:
            yield opened

    def basics(self) -> list[Access]:
        """Return the requests that showed a password."""
        return [entry for entry in self.site.access if entry.authorization == "Basic"]

    def assert_told_to_the_entitled_alone(self) -> None:
        """The row's own login reached the host that checks it, and nothing reached another."""
        row = self.row
        entitled = self.site.token_host or row.flavour.host
        pair = base64.b64encode(f"{row.user}:{row.secret}".encode()).decode()
        assert {entry.host for entry in self.basics()} == {entitled}
        assert {entry.secret for entry in self.basics()} == {f"Basic {pair}"}
        if row.flavour.realm:
            assert {entry.kind for entry in self.basics()} == {"token"}
        assert self.box.hub.access == []
        assert self.box.names.nobody.access == []


@contextmanager
def staged(row: Row) -> Iterator[Stage]:
    accounts = {row.user: row.secret, "other": "other-sesame"}
    private = {"*/secret": (row.user,), "*/hidden": ("other",)}
    with Sandbox() as box, FlavouredRegistry(box.upstream, row.flavour, accounts, private) as site:
        sites = dict.fromkeys(site.hosts, site)
        names = box.under_real_names(**{"private" if row.own_ca else "others": sites})
        box._names = names
        ca = names.private_ca if row.own_ca else names.ca
        stage = Stage(row, box, site, ca, names.env())
        box.push(stage.prefix + row.public, "1", "1.1", "2", platforms=[AMD, ARM])
        box.push(stage.prefix + row.private, "1", single=True)
        box.push(f"{stage.prefix}{row.private.rpartition('/')[0]}/hidden", "1", single=True)
        yield stage


def failure(ask: Callable[[], object]) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        ask()
    assert "sesame" not in f"{caught.value}{caught.value.text}{caught.value.cure}"
    return caught.value


def authfile(folder: Path, logins: Mapping[str, tuple[str, str]]) -> Path:
    file = folder / "auth.json"
    file.touch(0o600)
    auths = {
        key: {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}
        for key, (user, secret) in logins.items()
    }
    file.write_text(json.dumps({"auths": auths}))
    return file


# --- the whole way ---


@table
def test_sync_from_a_registry_copies_public_and_private_images(row: Row, tmp_path: Path) -> None:
    with staged(row) as stage:
        host = Host(tmp_path, stage.box)
        full = f"{row.registry}/"
        # Another host that stands for Docker Hub is not shown Docker Hub's login.
        key = row.flavour.host if "endpoint" in row.keys else row.registry
        decoys = {"docker.io", "quay.io", "example.org", "gitlab.com"} - {key}
        logins = {**dict.fromkeys(decoys, DECOY), key: (row.user, row.secret)}
        host.configure(
            [
                {"image": full + row.public, "tags": {"match": "1*"}},
                f"{full}{row.private}:1",
                f"{full}{row.public}:9",
                f"{full}nobody/nothing:1",
            ],
            registries={row.registry: stage.keys},
            authfile=str(authfile(tmp_path, logins)),
        )
        report = host.sync(code=1, env=dict(stage.env)).report
        images = {one["image"].removeprefix(full): one for one in report["images"]}
        done = {name: one["action"] for name, one in images.items()}
        # Two tags of one digest: the first brings it, the other finds it.
        tags = [done.pop(f"{row.public}:{tag}") for tag in ("1", "1.1")]
        assert sorted(tags) == ["copy", "tag"]
        assert done == {
            f"{row.private}:1": "copy",
            f"{row.public}:9": "fail",
            "nobody/nothing:1": "fail",
        }
        failed = [one["error"]["code"] for one in images.values() if one["error"]]
        assert failed == ["not-found", "not-found"]

        mirror, upstream = stage.box.mirrors[0].storage, stage.box.upstream.storage
        folder = (row.mirror or f"{row.registry}/").lstrip("/")
        assert stage.box.mirrors[0].tags(folder + row.public) == ["1", "1.1"]
        assert images[f"{row.public}:1"]["digest"] == upstream.digest(
            stage.prefix + row.public, "1"
        )
        copied = mirror.digest(folder + row.private, "1")
        assert copied == upstream.digest(stage.prefix + row.private, "1") is not None
        assert {entry.repository for entry in stage.site.access.gets()} == {
            stage.prefix + row.public,
            stage.prefix + row.private,
        }
        assert len(stage.site.access.gets()) == 3
        assert {entry.account for entry in stage.site.access.gets()} == {row.user}
        # Nothing but the Hub reports a quota: there is no limit where none is written.
        assert {one["pulls"] for one in report["budgets"].values()} == {None}
        stage.assert_told_to_the_entitled_alone()


# --- what CI names ---


HIDING = replace(ROWS["quay"].flavour, denial=404)


@pytest.mark.parametrize(
    "row", [*ROWS.values(), replace(ROWS["quay"], flavour=HIDING)], ids=[*ROWS, "hiding"]
)
def test_image_that_only_a_login_shows_is_private_to_ci(row: Row) -> None:
    login = Login(row.user, row.secret)
    with (
        staged(row) as stage,
        stage.client() as public,
        stage.client(login) as own,
        Ledger.memory() as ledger,
    ):
        settings = Upstream(row.registry, f"https://{row.flavour.host}")
        site = UpstreamSite(settings, own, row.user, public)
        observer = Observer({row.registry: site}, (), ledger, lambda: Moment(0, "b", 0))
        found = []
        for named in (f"{row.private}:1", f"{row.public}:1", f"{row.public}:9"):
            reference = parse(f"{row.registry}/{named}")
            failed = observer.see(Want(reference, ALL, ("history",), "")).failure
            found.append(failed.code if failed else None)
    if row.flavour.realm:
        assert found == ["private", None, "not-found"]
    else:
        # Where nobody is shown anything without a login, nothing is known to be public.
        assert set(found) == {"private"}


# --- what it refuses ---


@table
def test_registry_tells_a_refused_login_from_a_repository_that_is_not_shown(row: Row) -> None:
    login = Login(row.user, row.secret)
    hidden = f"{row.private.rpartition('/')[0]}/hidden"
    with staged(row) as stage, stage.client(login) as own:
        own.authorize([row.public, hidden, "nobody/nothing"])
        assert own.head(row.private, "1").descriptor.size > 0
        absent = failure(lambda: own.head(row.public, "9"))
        assert (absent.code, absent.status) == ("not-found", 404)
        for repository in (hidden, "nobody/nothing"):
            refused = failure(lambda r=repository: own.head(r, "1"))  # type: ignore[misc]
            assert refused.code == "not-found"
            if refused.status != 404:
                assert row.user in refused.text
        # One repository that is refused takes no other with it.
        assert own.head(row.public, "1").descriptor.is_index
        stage.assert_told_to_the_entitled_alone()


@table
def test_registry_that_refuses_a_login_says_where_to_log_in(row: Row) -> None:
    with staged(row) as stage, stage.client(Login(row.user, "stale-sesame")) as own:
        own.authorize([row.public, row.private])
        for repository in (row.public, row.private):
            refused = failure(lambda r=repository: own.head(r, "1"))  # type: ignore[misc]
            assert refused.code == "unauthorized"
        expected = row.flavour.host if row.keys.get("endpoint") else row.registry
        assert refused.cure == f"log in: skopeo login {expected}"
        # Not for each image: accounts are locked by that.
        assert len(stage.basics()) <= 2


@table
def test_registry_asked_without_a_login_shows_what_is_public(row: Row) -> None:
    with staged(row) as stage, stage.client() as own:
        if not row.flavour.realm:
            refused = failure(lambda: own.head(row.public, "1"))
            assert (refused.code, refused.cure) == (
                "unauthorized",
                f"log in: skopeo login {row.registry}",
            )
            return
        assert own.tags(row.public) == ("1", "1.1", "2")
        manifest, limit = own.manifest(row.public, "1")
        assert (manifest.is_index, limit) == (True, None)
        child, _ = own.manifest(row.public, manifest.children[0].descriptor.digest)
        with own.open_blob(row.public, child.blobs[-1].digest) as blob:
            assert sum(map(len, blob)) == child.blobs[-1].size
        for repository in (row.private, "nobody/nothing"):
            refused = failure(lambda r=repository: own.head(r, "1"))  # type: ignore[misc]
            assert refused.code == "not-found"
            assert "skopeo login" in refused.cure
        assert stage.basics() == []


def test_token_server_on_another_host_gets_no_login_unless_realm_names_it() -> None:
    row = ROWS["gitlab-self-managed"]
    login = Login(row.user, row.secret)
    with staged(row) as stage:
        options: dict[str, Any] = {"ca": stage.ca, "environ": stage.env}
        with Registry(
            row.registry,
            f"https://{row.flavour.host}",
            credentials=lambda _: login,
            **options,
        ) as own:
            assert own.head(row.public, "1").descriptor.is_index
            refused = failure(lambda: own.head(row.private, "1"))
        assert refused.code == "unauthorized"
        assert refused.cure.startswith("write realm: gitlab.example.org ")
        assert stage.basics() == []


def test_token_server_of_docker_hub_gets_no_login_of_a_host_that_stands_for_it() -> None:
    row = ROWS["docker-hub"]
    stands = Row(
        Flavour("harbor.example.org", "https://auth.docker.io/token", "registry.docker.io"),
        *(row.user, row.secret),
        *(row.public, row.private),
        name="docker.io",
        keys={"endpoint": "https://harbor.example.org"},
    )
    with staged(stands) as stage, stage.client(Login(row.user, row.secret)) as own:
        assert own.head(row.public, "1").descriptor.is_index
        refused = failure(lambda: own.head(row.private, "1"))
        assert refused.cure.startswith("write realm: auth.docker.io ")
        assert stage.basics() == []
