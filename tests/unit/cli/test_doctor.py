"""The judgements of doctor: of tokens, limits, clocks, redirects and addresses."""

from __future__ import annotations

import threading
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prewarm.cli.doctor import (
    NAMES,
    Check,
    Checkup,
    Place,
    client_verdict,
    clocks,
    examine,
    plain_http,
    redirected,
    skew_of,
    token_verdict,
    upstream_verdict,
)
from prewarm.clients.proof import Proof, Served
from prewarm.core.budget import Limit, Moment
from prewarm.core.errors import Problem
from prewarm.core.platforms import DEFAULT
from prewarm.core.settings import Allowance, Mirror, Settings, Upstream
from prewarm.registry.client import Registry
from prewarm.registry.registries_conf import Entry, File, entries, read_files
from prewarm.sync.inspect import UpstreamSite
from tests.support.docs import DOCS

TODAY = date(2026, 11, 24)
SYSTEM = Path("/etc/containers/registries.conf")
SETTINGS = Settings(
    None,
    mirrors=(Mirror("http://127.0.0.1:5000", "http://127.0.0.1:5000"),),
    registries=(
        Upstream("docker.io", "https://registry-1.docker.io"),
        Upstream("quay.io", "https://quay.io"),
    ),
)


def states(checks: tuple[Check, ...]) -> list[str]:
    return [check.state for check in checks]


# --- the result ---


def test_checkup_with_warnings_alone_is_ok() -> None:
    checkup = Checkup((Check("skopeo", "ok", "a"), Check("state", "warning", "b", "c")))
    assert checkup.exit_code == 0
    assert checkup.document() == {
        "version": 1,
        "checks": [
            {"check": "skopeo", "state": "ok", "text": "a", "cure": ""},
            {"check": "state", "state": "warning", "text": "b", "cure": "c"},
        ],
        "ok": True,
    }


def test_checkup_with_a_failure_exits_with_1() -> None:
    checkup = Checkup((Check("skopeo", "failed", "a", "b"), Check("state", "ok", "c")))
    assert (checkup.exit_code, checkup.document()["ok"]) == (1, False)


def test_every_check_is_described_in_the_docs() -> None:
    page = (DOCS / "doctor.md").read_text()
    assert [name for name in NAMES if f"| `{name}` |" not in page] == []


# --- the token of GitLab ---


def told(**fields: Any) -> dict[str, Any]:
    good = {"active": True, "revoked": False, "scopes": ["read_api"], "expires_at": "2099-12-31"}
    return good | fields


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        (told(), "ok", "until 2099-12-31"),
        (told(scopes=["api"]), "ok", "may api"),
        (told(expires_at=None), "ok", "never expires"),
        (told(expires_at="2026-12-09"), "ok", "until 2026-12-09"),
        (told(expires_at="2026-12-08"), "warning", "in 14 days"),
        (told(expires_at="2026-11-25"), "warning", "in 1 day"),
        (told(expires_at="2026-11-24"), "failed", "expired on 2026-11-24"),
        (told(expires_at="2020-01-01"), "failed", "expired on 2020-01-01"),
        (told(revoked=True), "failed", "revoked"),
        (told(active=False), "failed", "no longer active"),
        (told(scopes=["read_user", "read_registry"]), "failed", "lacks the scope read_api"),
        (told(expires_at="soon"), "warning", "is not told"),
        ({}, "warning", "is not told"),
        (None, "warning", "is not told"),
        ([1], "warning", "is not told"),
    ],
)
def test_token_verdict_by_what_gitlab_tells(answer: object, state: str, words: str) -> None:
    found = token_verdict(answer, TODAY, "the token")
    assert found.state == state
    assert found.text.startswith("the token ")
    assert words in found.text
    assert bool(found.cure) == (state != "ok")


@given(
    st.dictionaries(
        st.sampled_from(["scopes", "expires_at", "active", "revoked"]),
        st.none()
        | st.text(max_size=20)
        | st.integers()
        | st.booleans()
        | st.lists(st.integers(), max_size=3),
    )
)
# Under load even small examples can come slowly, which says nothing about the verdict.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_token_verdict_of_anything_never_raises(answer: dict[str, Any]) -> None:
    assert token_verdict(answer, TODAY, "it").state in {"ok", "warning", "failed"}


# --- upstreams ---


def site(limit: Limit | None, budget: Allowance | None = None) -> UpstreamSite:
    settings = Upstream("docker.io", "https://registry-1.docker.io", budget=budget)
    client = Registry("docker.io", settings.endpoint, environ={})
    return UpstreamSite(settings, client, "acme", limit=limit)


@pytest.mark.parametrize(
    ("limit", "budget", "expected", "words"),
    [
        (None, None, ["ok"], "docker.io answers acme; no limit, docker.io reports none"),
        (Limit(200, 21600, 150, "x"), None, ["ok"], "150 of 200 pulls left in 6h"),
        (Limit(200, 21600, 41, "x"), None, ["ok"], "budget 200, reserve 40"),
        (Limit(200, 21600, 40, "x"), None, ["warning"], "nothing can be copied now"),
        (Limit(200, 21600, -3, "x"), None, ["warning"], "reports -3 of 200"),
        (Limit(None, None, 7, "x"), Allowance(9, 21600, 2), ["ok"], "reports 7 pulls left;"),
        (Limit(200, 21600, 150, "x"), Allowance(9, 3600), ["ok", "warning"], "budget 9"),
    ],
)
def test_upstream_verdict_by_what_a_head_reports(
    limit: Limit | None, budget: Allowance | None, expected: list[str], words: str
) -> None:
    checks = upstream_verdict(site(limit, budget))
    assert states(checks) == expected
    assert words in checks[0].text
    assert all(bool(check.cure) == (check.state != "ok") for check in checks)


# --- clocks ---


@pytest.mark.parametrize(
    ("before", "served", "after", "expected"),
    [
        (100.0, 100.0, 100.1, 0.0),
        (100.9, 100.0, 101.0, 0.0),
        (100.0, 100.0, 105.0, 0.0),
        (100.0, 170.0, 101.0, 69.0),
        (100.5, 40.0, 101.0, -59.5),
    ],
)
def test_skew_of_heeds_the_time_on_the_way_and_whole_seconds(
    before: float, served: float, after: float, expected: float
) -> None:
    assert skew_of(before, served, after) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("skews", "expected"),
    [
        ({}, [("ok", "")]),
        ({"a": None}, [("ok", "")]),
        ({"a": 0.0, "b": -60.0}, [("ok", "")]),
        ({"a": 61.0}, [("warning", "set this host's clock: timedatectl set-ntp true")]),
        ({"a": 0.0, "b": -61.0}, [("warning", "set the clock of that server")]),
    ],
)
def test_clocks_more_than_a_minute_apart_are_a_warning(
    skews: dict[str, float | None], expected: list[tuple[str, str]]
) -> None:
    assert [(check.state, check.cure) for check in clocks(skews)] == expected


# --- mirrors ---


@pytest.mark.parametrize(
    ("url", "client_url", "expected"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000", ["ok"]),
        ("http://localhost:5000", "https://mirror.example.org", ["ok"]),
        ("https://mirror.example.org", "https://mirror.example.org", ["ok"]),
        ("http://mirror.example.org", "http://mirror.example.org", ["warning"]),
        ("http://127.0.0.1:5000", "http://10.0.0.7:5000", ["warning"]),
        ("http://10.0.0.7:5000", "http://10.0.0.8:5000", ["warning", "warning"]),
    ],
)
def test_plain_http_beyond_this_host_is_a_warning(
    url: str, client_url: str, expected: list[str]
) -> None:
    assert states(plain_http(Mirror(url, client_url))) == expected


# --- clients ---


@pytest.mark.parametrize(
    ("served", "left", "state", "words"),
    [
        ("all", False, "ok", "podman asks http://m for docker.io: it got what only that has"),
        ("all", True, "ok", "the probe stays there"),
        ("content", False, "ok", "what a tag is, it asks docker.io itself"),
        ("nothing", False, "failed", "does not get docker.io's images from http://m"),
        ("nothing", False, "failed", "which has what it was asked for: denied"),
        ("nothing", True, "failed", "the probe stays there"),
    ],
)
@pytest.mark.parametrize("kind", ["dockerd", "containerd", "podman"])
def test_client_verdict_by_what_the_mirror_served(
    kind: str, served: Served, left: bool, state: str, words: str
) -> None:
    check = client_verdict(Proof(kind, "podman", "docker.io", "http://m", served, "denied", left))
    assert (check.name, check.state) == ("client", state)
    assert words in check.text
    assert ("the probe stays there" in check.text) is left
    assert (f"prewarm client-config {kind}" in check.cure) is (state == "failed")


# --- registries.conf ---


def test_entries_reads_mirrors_moved_locations_and_blocks() -> None:
    document = {
        "unqualified-search-registries": ["docker.io"],
        "registry": [
            {"prefix": "docker.io", "location": "Docker.io", "mirror": [{"location": "m:5000/"}]},
            {"prefix": "quay.io/team", "location": "harbor.example.org/quay"},
            {"location": "ghcr.io", "blocked": True},
            {"prefix": 7},
            "text",
        ],
    }
    assert entries(document) == (
        Entry("docker.io", ("m:5000",), False),
        Entry("quay.io/team", ("harbor.example.org/quay",), False),
        Entry("ghcr.io", (), True),
    )
    assert entries({"registry": {"a": 1}}) == ()


@pytest.mark.parametrize(
    ("prefix", "host", "expected"),
    [
        ("docker.io", "docker.io", True),
        ("docker.io/library", "docker.io", True),
        ("docker.io.example.org", "docker.io", False),
        ("docker", "docker.io", False),
        ("*.example.org", "a.example.org:5000", True),
        ("*.example.org", "example.org", False),
    ],
)
def test_entry_concerns_the_registry_of_its_prefix(prefix: str, host: str, expected: bool) -> None:
    assert Entry(prefix, (), False).concerns(host) == expected


def test_redirected_onto_our_mirror_is_a_warning_that_names_it() -> None:
    file = File(SYSTEM, True, (Entry("docker.io", ("127.0.0.1:5000",), False),))
    (check,) = redirected([file], SETTINGS)
    assert check.state == "warning"
    assert "docker.io to 127.0.0.1:5000, a mirror of ours" in check.text
    assert "prewarm itself is safe" in check.text


@pytest.mark.parametrize(
    ("entry", "system", "expected"),
    [
        (Entry("quay.io/team", ("harbor.example.org/quay",), False), True, "warning"),
        (Entry("docker.io", ("elsewhere.example.org",), False), False, "warning"),
        (Entry("ghcr.io", ("elsewhere.example.org",), False), True, "ok"),
        (Entry("docker.io", (), False), True, "ok"),
        # prewarm's skopeo asks the gate alone, so a blocked mirror is no matter.
        (Entry("127.0.0.1:5000", (), True), True, "ok"),
    ],
)
def test_redirected_judges_what_concerns_our_registries(
    entry: Entry, system: bool, expected: str
) -> None:
    assert states(redirected([File(SYSTEM, system, (entry,))], SETTINGS)) == [expected]


@pytest.mark.parametrize(("system", "expected"), [(True, "failed"), (False, "warning")])
def test_redirected_by_a_broken_file_stops_copies_where_it_is_the_systems(
    system: bool, expected: str
) -> None:
    (check,) = redirected([File(SYSTEM, system, broken="is not TOML")], SETTINGS)
    assert (check.state, check.text) == (expected, f"{SYSTEM} is not TOML")


def test_read_files_of_system_home_and_xdg_with_drop_ins(tmp_path: Path) -> None:
    text = '[[registry]]\nprefix = "docker.io"\nlocation = "m.example.org"\n'
    system, home = tmp_path / "etc", tmp_path / "home"
    written = [
        system / "registries.conf",
        system / "registries.conf.d/10-a.conf",
        home / ".config/containers/registries.conf",
        tmp_path / "xdg/containers/registries.conf.d/b.conf",
    ]
    for path in (*written, system / "registries.conf.d/ignored.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    written[1].write_text("[[registry\n")
    files = read_files(home, {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}, system)
    assert [file.path for file in files] == written
    assert [file.system for file in files] == [True, True, False, False]
    assert [file.broken for file in files] == ["", "is not TOML", "", ""]
    assert files[0].entries == (Entry("docker.io", ("m.example.org",), False),)


def test_read_files_where_there_are_none_is_empty(tmp_path: Path) -> None:
    assert read_files(None, {}, tmp_path) == ()


# --- the whole ---


def test_examine_with_everything_broken_still_does_every_check(tmp_path: Path) -> None:
    """No skopeo, no file of logins, no registry, no state: each is named, none hides another."""
    dead = "http://127.0.0.1:1"
    settings = Settings(
        tmp_path / "images.yml",
        mirrors=(Mirror(dead, dead, storage=tmp_path / "none", ca=tmp_path / "none.pem"),),
        registries=(Upstream("docker.io", dead),),
        platforms=DEFAULT,
        authfile=tmp_path / "none.json",
        state="postgresql://db/prewarm",
        problems=(Problem("error", "include", "images.d/a.yml:3", "wrong", "correct it"),),
    )
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    place = Place(
        settings, environ, tmp_path, 0, ["prewarm", "doctor"], lambda: Moment(1e9, "b", 1.0)
    )
    checkup = examine(place)
    assert {check.name for check in checkup.checks if check.state == "failed"} == {
        "images.yml",
        "skopeo",
        "authfile",
        "upstream",
        "mirror",
        "mirror-space",
        "state",
    }
    order = [NAMES.index(check.name) for check in checkup.checks]
    assert order == sorted(order)
    assert all(check.cure for check in checkup.checks if check.state == "failed")
    assert not [t for t in threading.enumerate() if t.name.startswith("doctor")]
