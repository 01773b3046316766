"""A state that several hosts share, on a real PostgreSQL: what is one host's own, what is not."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from prewarm.core.budget import Window
from prewarm.core.errors import AlreadyRunningError, PrewarmError, UsageError
from prewarm.core.records import PastScan, Refusal, Reservation, Told
from prewarm.core.settings import Gitlab, Mirror, Runners, Settings
from prewarm.core.usage import DAY, Count, Key, Mark, Row
from prewarm.state import postgresql, shared
from prewarm.state.clock import now
from prewarm.state.database import LostError, UnreachableError
from prewarm.state.ledger import MIGRATIONS, Ledger
from prewarm.state.location import exclusive
from prewarm.state.postgresql import PostgresqlDatabase
from prewarm.state.shared import SharedLedger, examine, look, read
from prewarm.state.tenant import Site, demand_of, mirror_name, site_of
from tests.contract.stores import manifest_of, sql
from tests.support.postgres import Postgres
from tests.support.threads import failures_at_once

ROOT = Path(__file__).parents[2]
LOCAL, COMMON = "http://127.0.0.1:5000", "https://mirror.example.org"
SESSIONS = """SELECT pid FROM pg_stat_activity
              WHERE application_name LIKE 'prewarm on east%' AND datname = current_database()"""
ALPINE = "docker.io/library/alpine:3"
GITLAB = Gitlab("https://gitlab.example.org", groups=("team",))


def settings(*mirrors: str, gitlab: Gitlab | None = GITLAB) -> Settings:
    return Settings(path=None, mirrors=tuple(Mirror(url, url) for url in mirrors), gitlab=gitlab)


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.database()


def host(url: str, name: str, gitlab: Gitlab | None = GITLAB) -> SharedLedger:
    return SharedLedger.connect(url, site_of(settings(LOCAL, COMMON, gitlab=gitlab), name), {})


@pytest.fixture
def east(url: str) -> Iterator[SharedLedger]:
    with host(url, "east") as ledger:
        yield ledger


@pytest.fixture
def west(url: str) -> Iterator[SharedLedger]:
    with host(url, "west") as ledger:
        yield ledger


def write(ledger: SharedLedger, mirror: str, image: str = ALPINE, digest: str = "d") -> None:
    ledger.note_written(mirror, image, "library/alpine", "3", digest, "u", "all", 1, now())
    ledger.note_state(image, mirror, "fresh", digest, now())
    ledger.note_cached(mirror, "library/alpine", digest, now())
    ledger.note_coverage(mirror, 1, 2, now())


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Mirrors


@pytest.mark.parametrize(
    ("mirror", "name"),
    [
        ("http://127.0.0.1:5000", "http://localhost:5000@east"),
        ("http://localhost:5000/", "http://localhost:5000@east"),
        ("http://[::1]:5000", "http://localhost:5000@east"),
        ("https://mirror.example.org", "https://mirror.example.org:443"),
        ("https://MIRROR.example.org:443/", "https://mirror.example.org:443"),
    ],
)
def test_mirror_name_tells_a_host_apart_only_on_loopback(mirror: str, name: str) -> None:
    assert mirror_name(mirror, "east") == name


def test_a_mirror_on_loopback_is_another_one_on_each_host(
    east: SharedLedger, west: SharedLedger
) -> None:
    write(east, LOCAL)
    write(east, COMMON, "docker.io/library/common:1")
    assert sorted(one.mirror for one in east.written()) == [LOCAL, COMMON]
    assert [(one.mirror, one.image) for one in west.written()] == [
        (COMMON, "docker.io/library/common:1")
    ]
    assert west.written(LOCAL) == ()
    assert west.pushed(LOCAL) == ()
    assert west.cached(LOCAL, "library/alpine") == {}
    assert west.covered(0, LOCAL) == ()
    assert len(east.covered(0, LOCAL)) == len(west.covered(0, COMMON)) == 1
    assert [one.mirror for one in west.states()] == [COMMON]
    # Nor does a host forget what is another's.
    write(west, LOCAL)
    west.forget_written(LOCAL, ALPINE)
    west.forget_pushed(LOCAL, "library/alpine", ("d",))
    assert west.forget_states(now().wall + 9) == 1
    assert [one.mirror for one in east.states()] == [LOCAL]
    assert len(east.written(LOCAL)) == len(east.pushed(LOCAL)) == 1


def test_a_mirror_that_a_host_only_reads_is_not_its_to_forget(url: str, east: SharedLedger) -> None:
    write(east, COMMON)
    source = replace(settings(COMMON), mirrors=(Mirror(COMMON, COMMON, role="source"),))
    with SharedLedger.connect(url, site_of(source, "reader"), {}) as reader:
        assert reader.states() == ()
        assert reader.written() == ()
        assert reader.forget_states(now().wall + 9) == 0
        reader.note_wanted([ALPINE], now())
    assert [one.mirror for one in east.states()] == [COMMON]
    assert east.wanted_elsewhere(COMMON, 0.0) == {}


def test_wanted_elsewhere_is_what_other_hosts_want_on_the_same_mirror(
    east: SharedLedger, west: SharedLedger
) -> None:
    for mirror in (LOCAL, COMMON):
        write(east, mirror)
    write(west, LOCAL)
    began = now().wall
    east.note_wanted([ALPINE], now())
    assert west.wanted_elsewhere(COMMON, began) == {ALPINE: "east"}
    assert west.wanted_elsewhere(COMMON, began + 99) == {}
    assert west.wanted_elsewhere(LOCAL, began) == {}
    assert east.wanted_elsewhere(COMMON, began) == {}
    (told,) = west.written(LOCAL)
    assert told.wanted < began


def test_coverage_and_runs_and_totals_and_notices_are_each_hosts_own(
    east: SharedLedger, west: SharedLedger
) -> None:
    for ledger, pulls in ((east, 2), (west, 5)):
        run = ledger.start_run(now())
        ledger.note_copy(run, ALPINE, "copy", "missing", pulls, pulls, pulls, 1.0, now())
        step = ledger.reserve(run, "docker.io", "acme", "x", "d", pulls, 1, Window(9), now())
        assert isinstance(step, Reservation)
        ledger.settle(step, pulls, 1, "spent", now())
        ledger.finish_run(run, 0, f'{{"pulls": {pulls}}}', now())
        ledger.note_coverage("", pulls, 9, now())
        ledger.note_told(Told("failure", "command", frozenset({str(pulls)}), 1.0))
    for ledger, pulls in ((east, 2), (west, 5)):
        (run_told,) = ledger.runs(9)
        assert run_told.report == f'{{"pulls": {pulls}}}'
        assert ledger.last_whole_run() == run_told
        totals = ledger.totals()
        assert (totals.actions, totals.pulls, totals.bytes) == ({"copy": 1}, pulls, pulls)
        assert [one.served for one in ledger.covered(0)] == [pulls]
        told = ledger.told("failure", "command")
        assert told is not None
        assert told.about == {str(pulls)}
        # The budget is one.
        assert sum(one.pulls for one in ledger.spends("docker.io", "acme", now(), 60)) == 7
    later = replace(now(), wall=now().wall + 10)
    east.tidy(1, later)
    assert east.totals().pulls == 2
    assert west.totals().pulls == 5


def test_totals_count_once_what_two_of_one_host_tidy_at_once(
    postgres: Postgres, url: str, east: SharedLedger
) -> None:
    step = east.reserve("r", "docker.io", "acme", "x", "d", 3, 1, Window(9), now())
    assert isinstance(step, Reservation)
    east.settle(step, 3, 1, "spent", now())
    later = replace(now(), wall=now().wall + 10)
    with host(url, "east") as other:
        tidying = threading.Thread(target=other.tidy, args=(-60, later))
        with east._transaction(alone="tidy"):
            east.tidy(-60, later)
            tidying.start()
            wait_until(
                lambda: bool(postgres.sql("SELECT 1 FROM pg_locks WHERE NOT granted", url=url))
            )
        tidying.join()
    assert sql(east, "SELECT * FROM pulls").fetchall() == []
    assert east.totals().pulls == 3


# Demand


def used(ledger: SharedLedger, job: str = "build", runs: int = 3) -> None:
    today = int(now().wall // DAY)
    key = Key(1, job, 12, "linux/amd64", today)
    ledger.add_history({key: Count(runs, 0, now().wall, 7)}, {1: Mark(7, 1.0)}, {}, {1: "team/p"})
    ledger.save_definition(
        1, [Row(job, "image", "alpine:3", ALPINE, None, "definition")], (), "c", (), 1.0
    )


def jobs(ledger: Ledger) -> list[int]:
    return [one.jobs for one in ledger.used_images(now().wall - 14 * DAY, now=now().wall)]


def test_hosts_of_one_scope_have_one_demand_and_one_history(
    east: SharedLedger, west: SharedLedger
) -> None:
    used(east)
    east.save_scan(PastScan(1.0, 2.0, True, 9, "scope", (), frozenset(), frozenset()))
    assert jobs(west) == [3]
    assert west.known_projects()[1].mark == Mark(7, 1.0)
    scan = west.last_scan(complete=True)
    assert scan is not None
    assert scan.scope == "scope"


@pytest.mark.parametrize(
    "other",
    [
        replace(GITLAB, runners=Runners(ids=(34,))),
        replace(GITLAB, runners=Runners(tags=("arm",))),
        replace(GITLAB, groups=("other",)),
        replace(GITLAB, url="https://gitlab.example.com"),
        replace(GITLAB, history=28 * DAY),
    ],
)
def test_hosts_of_other_scopes_do_not_touch_each_others_demand(
    url: str, east: SharedLedger, other: Gitlab
) -> None:
    with host(url, "west", other) as west:
        used(east, runs=3)
        used(west, runs=5)
        west.save_trace(1, "question", [], 1.0)
        assert (jobs(east), jobs(west)) == ([3], [5])
        assert east.asked(1) == {}
        west.keep_answers(1, ())
        west.forget_uses(now().wall + 9 * DAY, [1])
        assert (jobs(east), jobs(west)) == ([3], [])
        assert west.known_projects() == {}
        with east.scanning() as one, west.scanning() as two:
            assert one
            assert two


def test_demand_of_a_host_that_reads_logs_of_runners_is_its_own() -> None:
    logs = replace(GITLAB, runner_logs=("journal:gitlab-runner",))
    assert demand_of(GITLAB, "east") == demand_of(GITLAB, "west")
    assert demand_of(logs, "east") != demand_of(logs, "west")


def test_demand_that_nobody_scans_for_is_forgotten(url: str, east: SharedLedger) -> None:
    with host(url, "west", replace(GITLAB, groups=("other",))) as west:
        for ledger in (east, west):
            used(ledger)
        old = now().wall - 200 * DAY
        scan = PastScan(old, old, True, 9, "scope", (), frozenset(), frozenset())
        west.save_scan(scan)
        east.save_scan(replace(scan, started=now().wall))
        east.forget_uses(now().wall - 28 * DAY)
        assert (jobs(east), jobs(west)) == ([3], [])


SCAN = """
import sys, time
from prewarm.state.shared import SharedLedger
from prewarm.state.tenant import Site
with SharedLedger.connect(sys.argv[1], Site("east", {}, "demand"), {}) as ledger:
    with ledger.scanning() as alone:
        print(alone, flush=True)
        time.sleep(60)
"""


def test_scanning_is_one_hosts_until_it_ends_or_dies(url: str) -> None:
    with SharedLedger.connect(url, Site("west", {}, "demand"), {}) as west:
        command = [sys.executable, "-c", SCAN, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "True\n"
            with west.scanning() as alone:
                assert not alone
            child.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while True:
            with west.scanning() as alone:
                if alone:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with west.scanning() as again:
            assert again


# Locks


def test_mirror_locks_hold_across_hosts_for_the_same_mirror_alone(
    east: SharedLedger, west: SharedLedger
) -> None:
    with exclusive(east.mirror_locks([COMMON, LOCAL]), now()):
        with exclusive(west.mirror_locks([LOCAL]), now()):
            pass
        with pytest.raises(AlreadyRunningError) as caught:
            exclusive(west.mirror_locks([COMMON, LOCAL]), now()).__enter__()
        assert caught.value.exit_code == 75
        assert caught.value.text.startswith(f"mirror {COMMON} is held by another prewarm, on east")
    with exclusive(west.mirror_locks([COMMON, LOCAL]), now()):
        pass


@pytest.fixture
def fragile() -> Iterator[Postgres]:
    """A server that may be stopped."""
    with Postgres() as server:
        yield server


def test_locks_survive_a_restart_of_the_server(fragile: Postgres) -> None:
    url = fragile.database()
    with host(url, "east") as east, host(url, "west") as west:
        with exclusive(east.mirror_locks([COMMON]), now()):
            fragile.stop()
            fragile.start()
            assert east.totals().pulls == 0
            (lock,) = west.mirror_locks([COMMON])
            assert not lock.try_acquire(0.0)
        assert lock.try_acquire(0.0)
        assert (east.lost, west.lost) == (None, None)


def test_lock_that_another_took_meanwhile_ends_what_may_be_written(
    fragile: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "PATIENCE", 0.5)
    url = fragile.database()
    with host(url, "east") as east, host(url, "west") as west:
        with exclusive(east.mirror_locks([COMMON]), now()):
            fragile.stop()
            fragile.start()
            (lock,) = west.mirror_locks([COMMON])
            assert lock.try_acquire(0.0)
            answer = east.reserve("r", "docker.io", "acme", "x", "d", 1, 1, Window(9), now())
            assert answer == Refusal("state", None, in_flight=False)
            assert east.lost is not None
            assert east.lost.code == "state-lost"
        assert west.spends("docker.io", "acme", now(), 60) == ()


def test_a_lost_connection_is_made_anew_and_nothing_is_forgotten(
    postgres: Postgres, url: str, east: SharedLedger
) -> None:
    """Whenever the server ends the session: between statements, or in a transaction."""

    def end_sessions() -> None:
        postgres.sql(
            SESSIONS.replace("pid", "pg_terminate_backend(pid)", 1),
            url=url,
        )

    over = threading.Event()

    def disturb() -> None:
        while not over.wait(0.15):
            end_sessions()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for number in range(300):
            step = east.reserve("r", "docker.io", "acme", "x", "d", 1, 1, Window(None), now())
            assert isinstance(step, Reservation)
            east.settle(step, 1, 1, "spent", now())
            east.note_public("docker.io", f"x{number}", True, now())
    finally:
        over.set()
        thread.join()
    assert east.lost is None
    spent = sum(one.pulls for one in east.spends("docker.io", "acme", now(), 60))
    # One that was reserved as the connection broke may have been reserved once more.
    assert 300 <= spent < 320
    assert all(east.is_public("docker.io", f"x{number}", 0.0) for number in range(300))


# Reading


def test_look_is_a_copy_with_the_servers_clock_and_read_is_not(
    url: str, east: SharedLedger
) -> None:
    east.keep_manifest(manifest_of("a"), now())
    write(east, LOCAL)
    used(east)
    step = east.reserve("r", "docker.io", "acme", "x", "d", 4, 4, Window(9), now())
    assert isinstance(step, Reservation)
    east.settle(step, 4, 4, "spent", now())
    east.start_run(now())
    with host(url, "west") as west:
        west.start_run(now())
    site = site_of(settings(LOCAL, COMMON), "east")
    with look(url, site, {}) as copy, read(url, site, {}) as live:
        for ledger in (copy, live):
            assert [one.image for one in ledger.written(LOCAL)] == [ALPINE]
            assert ledger.manifest(manifest_of("a").digest) is not None
            (spend,) = ledger.spends("docker.io", "acme", now(), 60)
            assert spend.pulls == 4
            assert 0 <= spend.age < 60
        assert copy.runs(9) == live.runs(9)
        assert sql(copy, "SELECT COUNT(*) FROM runs").fetchone() == (1,)
        copy.forget_written(LOCAL, ALPINE)
        copy.start_run(now())
        assert jobs(copy) == [3]
        assert len(live.written(LOCAL)) == 1
        assert len(live.runs(9)) == 1


def test_look_at_a_database_without_tables_makes_none(postgres: Postgres, url: str) -> None:
    for opened in (look, read):
        with opened(url, Site("east", {}, ""), {}) as ledger:
            assert ledger.runs(1) == ()
    assert examine(url, {}).version == 0
    assert postgres.sql("SELECT * FROM pg_tables WHERE schemaname = 'public'", url=url) == []


# Opening


def test_connect_at_once_by_many_makes_one_schema(postgres: Postgres, url: str) -> None:
    assert failures_at_once(lambda: host(url, "east").close()) == []
    found = postgres.sql("SELECT version FROM schema_version ORDER BY version", url=url)
    assert found == [(number,) for number, _ in MIGRATIONS]


def test_connect_state_of_a_newer_prewarm_or_another_program_is_refused(
    postgres: Postgres, url: str
) -> None:
    postgres.sql("CREATE TABLE pulls (x TEXT)", url=url)
    ways: tuple[Callable[[], Ledger], ...] = (
        lambda: host(url, "east"),
        lambda: look(url, Site("e", {}, ""), {}),
        lambda: read(url, Site("e", {}, ""), {}),
    )
    for opened in ways:
        with pytest.raises(UsageError, match="another program"):
            opened()
    postgres.sql("DROP TABLE pulls", url=url)
    host(url, "east").close()
    postgres.sql("INSERT INTO schema_version VALUES (999)", url=url)
    for opened in ways:
        with pytest.raises(UsageError, match="newer prewarm; upgrade prewarm") as caught:
            opened()
        assert caught.value.exit_code == 2


def test_connect_without_psycopg_says_what_to_type(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "psycopg", None)
    with pytest.raises(UsageError) as caught:
        host(url, "east")
    assert caught.value.code == "state-driver"
    assert "pipx inject prewarm 'psycopg[binary]'" in caught.value.cure


@pytest.mark.parametrize("place", ["credentials", "variable", "home"])
def test_connect_password_is_found_in_pgpass_alone(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    user, secret = f"user_{place}", "hunter\\:2"
    database = postgres.database()
    name = database.partition("@/")[2].partition("?")[0]
    postgres.sql(f"CREATE ROLE {user} LOGIN PASSWORD 'hunter:2'", url=database)
    postgres.sql(f"GRANT ALL ON SCHEMA public TO {user}", url=database)
    url = postgres.network_url(name, user)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    right, wrong = f"*:*:{name}:{user}:{secret}\n", f"*:*:*:{user}:wrong-secret\n"
    environ: dict[str, str] = {}
    file = home / ".pgpass"
    if place == "credentials":
        # As the service manager writes it: a group may seem to read it.
        file = tmp_path / "pgpass"
        environ["CREDENTIALS_DIRECTORY"] = str(tmp_path)
        (tmp_path / "wrong").write_text(wrong)
        (tmp_path / "wrong").chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(tmp_path / "wrong"))
    elif place == "variable":
        file = tmp_path / "named"
        monkeypatch.setenv("PGPASSFILE", str(file))
    mode = 0o440 if place == "credentials" else 0o600

    def connect(text: str) -> None:
        file.unlink(missing_ok=True)
        file.write_text(text)
        file.chmod(mode)
        with SharedLedger.connect(url, Site("east", {}, ""), environ) as ledger:
            if ledger.lost is not None:
                raise PrewarmError(ledger.lost.code, ledger.lost.text, ledger.lost.cure)

    connect(right)
    with pytest.raises(PrewarmError) as caught:
        connect(wrong)
    assert caught.value.code == "state-unreachable"
    assert "password authentication failed" in caught.value.text
    assert "secret" not in str(caught.value)
    assert "hunter" not in str(caught.value)


def test_connect_without_the_right_to_make_tables_says_so(postgres: Postgres) -> None:
    url = postgres.database()
    postgres.sql("CREATE ROLE guest LOGIN", url=url)
    postgres.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", url=url)
    guest = url.replace("owner@", "guest@")
    found = examine(guest, {})
    assert (found.user, found.may_create, found.version) == ("guest", False, 0)
    with pytest.raises(PrewarmError) as caught:
        SharedLedger.connect(guest, Site("east", {}, ""), {})
    assert (caught.value.code, caught.value.exit_code) == ("state", 1)
    assert "permission denied" in caught.value.text
    assert "\n" not in caught.value.text


@pytest.mark.parametrize("refused", ["no table", "no schema", "tables of another"])
def test_connect_without_rights_says_what_is_missing_and_whose_it_should_be(
    postgres: Postgres, refused: str
) -> None:
    url = postgres.database()
    if refused == "tables of another":
        host(url, "east").close()
    if refused == "no schema":
        postgres.sql("REVOKE ALL ON SCHEMA public FROM PUBLIC", url=url)
    user = refused.replace(" ", "_")
    postgres.sql(f"CREATE ROLE {user} LOGIN", url=url)
    with pytest.raises(PrewarmError) as caught:
        SharedLedger.connect(url.replace("owner@", f"{user}@"), Site("east", {}, ""), {})
    assert caught.value.code == "state"
    assert "LINE" not in caught.value.text
    assert caught.value.cure.startswith("make its user the owner")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_connect_to_a_database_that_cannot_hold_every_name_is_refused(
    postgres: Postgres, encoding: str
) -> None:
    name = f"in_{encoding.lower()}"
    postgres.sql(
        f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0",
        url=postgres.url("postgres"),
    )
    with pytest.raises(UsageError) as caught:
        SharedLedger.connect(postgres.url(name), Site("east", {}, ""), {})
    assert caught.value.exit_code == 2
    assert f"is encoded in {encoding}" in caught.value.text


@pytest.mark.parametrize("more", ["&sslmod=require", "&%zz", "&host=[::1"])
def test_connect_by_a_url_that_nobody_can_read_is_a_usage_error(url: str, more: str) -> None:
    if more == "&host=[::1":
        url, more = "postgresql://owner@[::1/prewarm", ""
    with pytest.raises(UsageError) as caught:
        SharedLedger.connect(url + more, Site("east", {}, ""), {})
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.text


def test_connect_to_a_server_that_only_reads_is_not_reached_but_read(
    postgres: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a standby does while nobody has promoted it."""
    host(url, "east").close()
    monkeypatch.setattr(postgresql, "FIRST_PATIENCE", 0.0)
    name = url.partition("@/")[2].partition("?")[0]
    postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only TO on", url=url)
    with host(url, "east") as ledger:
        assert ledger.lost is not None
        assert ledger.lost.code == "state-unreachable"
        assert "read-only" in ledger.lost.text
    with read(url, Site("east", {}, ""), {}) as reading:
        assert reading.runs(1) == ()


@pytest.mark.parametrize(("hours", "told"), [(30, "30 h ahead of"), (-800, "800 h behind")])
def test_connect_with_a_clock_that_is_far_off_is_refused(
    url: str, east: SharedLedger, monkeypatch: pytest.MonkeyPatch, hours: int, told: str
) -> None:
    """It would forget, as too old, what the other hosts need."""
    right = now()
    monkeypatch.setattr(
        shared, "host_clock", lambda: replace(right, wall=right.wall + hours * 3600)
    )
    with pytest.raises(UsageError) as caught:
        host(url, "west")
    assert (caught.value.code, caught.value.exit_code) == ("clock", 2)
    assert told in caught.value.text


# The session


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_whoever_waited_counts_what_was_reserved_meanwhile(
    postgres: Postgres, url: str, isolation: str
) -> None:
    """Whatever the server's default is: a snapshot taken before the wait would not show it."""
    name = url.partition("@/")[2].partition("?")[0]
    postgres.sql(
        f"ALTER DATABASE {name} SET default_transaction_isolation TO '{isolation}'", url=url
    )
    answers: list[Reservation | Refusal] = []
    with host(url, "east") as east, host(url, "west") as west:

        def reserve(ledger: SharedLedger) -> None:
            answers.append(
                ledger.reserve("r", "docker.io", "acme", "x", "d", 1, 1, Window(1), now())
            )

        waiting = threading.Thread(target=reserve, args=(west,))
        with east._transaction(alone="pulls from docker.io"):
            reserve(east)
            waiting.start()
            held_up = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            wait_until(lambda: bool(postgres.sql(held_up, url=url)))
        waiting.join()
    assert [type(answer) for answer in answers] == [Reservation, Refusal]


@pytest.mark.parametrize("last", [False, True])
def test_a_transaction_that_the_server_ended_while_its_host_slept_may_be_done_again(
    postgres: Postgres, url: str, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    monkeypatch.setitem(postgresql._SESSION, "idle_in_transaction_session_timeout", "50ms")

    def sleep(database: PostgresqlDatabase) -> None:
        with database.transaction():
            wait_until(lambda: not postgres.sql(SESSIONS, url=url))
            if not last:
                database.execute("SELECT 1")

    with closing(PostgresqlDatabase(url, {}, host="east")) as database:
        with pytest.raises(LostError):
            sleep(database)
        assert database.execute("SELECT 1").fetchone() == (1,)


def test_together_is_done_again_where_two_hosts_waited_for_each_other(
    east: SharedLedger, west: SharedLedger, caplog: pytest.LogCaptureFixture
) -> None:
    """What is sent without a wait for its answer learns of that late."""
    both_have_one = threading.Barrier(2, timeout=20)
    tries: list[str] = []

    def note(ledger: SharedLedger, first: str, second: str) -> None:
        def work() -> None:
            tries.append(first)
            ledger.note_public("r", first, True, now())
            assert ledger.is_public("r", first, 0.0)
            if tries.count(first) == 1:
                both_have_one.wait()
            ledger.note_public("r", second, True, now())
            for number in range(9):
                ledger.note_public("r", f"{first}{number}", True, now())

        ledger.together(work)

    other = threading.Thread(target=note, args=(west, "b", "a"))
    other.start()
    note(east, "a", "b")
    other.join()
    # The server ends one of the two; the one that is left may meet the retry once more.
    assert 3 <= len(tries) <= 5
    assert all(east.is_public("r", name, 0.0) for name in ("a", "b", "a8", "b8"))
    assert caplog.messages == []


def test_many_threads_that_lose_the_server_at_once_go_on_in_one_memory(
    east: SharedLedger, caplog: pytest.LogCaptureFixture
) -> None:
    lost = UnreachableError("state-unreachable", "state: connection refused", "start it")
    numbers = itertools.count()

    def lose_and_note() -> None:
        number = next(numbers)
        east.do_without(lost)
        east.note_public("r", f"repository{number}", True, now())

    assert failures_at_once(lose_and_note, 16) == []
    assert all(east.is_public("r", f"repository{number}", 0.0) for number in range(16))
    assert len(caplog.messages) == 1


def test_what_must_last_is_on_disk_when_it_is_committed(postgres: Postgres, url: str) -> None:
    with closing(PostgresqlDatabase(url, {})) as database:
        shown = []
        for durable in (True, False):
            with database.transaction(durable=durable):
                shown += database.execute("SHOW synchronous_commit").fetchall()
        assert shown == [("on",), ("off",)]


def test_a_moment_by_the_servers_clock_is_never_later_than_it_was(url: str) -> None:
    with closing(PostgresqlDatabase(url, {})) as database:
        for _ in range(20):
            before, moment, after = database.now(), now(), database.now()
            told = database.at(moment)
            assert told <= after
            # It is early by what it took to ask, at most.
            assert told > before - 5
            assert database.at(replace(moment, boot=moment.boot - 60)) <= told - 59


def test_a_session_over_the_network_is_noticed_when_its_host_dies(
    postgres: Postgres, tmp_path: Path
) -> None:
    database = postgres.database()
    name = database.partition("@/")[2].partition("?")[0]
    postgres.sql("CREATE ROLE distant LOGIN PASSWORD 'far'", url=database)
    (tmp_path / "pgpass").write_text("*:*:*:distant:far\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    with closing(PostgresqlDatabase(postgres.network_url(name, "distant"), environ)) as far:
        shown = [
            far.execute(f"SHOW {setting}").fetchone()
            for setting in ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_user_timeout")
        ]
        assert shown == [("20",), ("10",), ("50000",)]


# Values


@pytest.mark.parametrize(
    "text", ["a\0b", "%s %(x)s %%", ":name", "'; DROP TABLE pulls; --", "é\U0001f433"]
)
def test_hostile_names_are_kept_without_harm(east: SharedLedger, text: str) -> None:
    today = int(now().wall // DAY)
    key = Key(1, text, 12, "linux/amd64", today)
    east.add_history({key: Count(3, 1, now().wall, 7)}, {1: Mark(7, 1.0)}, {}, {1: text})
    east.save_definition(
        1, [Row(text, "image", text, ALPINE, None, "definition")], (text,), "c", (), 1.0
    )
    east.save_trace(1, text, [], 1.0)
    (image,) = east.used_images(now().wall - DAY, now=now().wall)
    assert (image.jobs, image.pull_failures) == (3, 1)
    shown = text.replace("\0", "\ufffd")
    assert [(one.project, one.job) for one in east.image_users(ALPINE, 0.0)] == [(shown, shown)]
    assert list(east.asked(1)) == [shown]


def test_texts_sort_by_their_bytes_in_a_database_of_any_language(
    postgres: Postgres, east: SharedLedger
) -> None:
    names = ["a", "B", "_", "Z", "é", "-"]
    for name in names:
        east.note_state(name, COMMON, "fresh", None, now())
    assert [one.image for one in east.states()] == sorted(names)


def test_sums_are_whole_numbers(east: SharedLedger) -> None:
    used(east)
    for one in east.used_images(0.0, now=now().wall):
        assert isinstance(one.jobs, int)
    sql(east, "UPDATE job_runs SET pull_failures = 2")
    assert {type(number) for number in east.pull_failures(0.0).values()} == {int}
    (days,) = east.daily_uses(0.0).values()
    assert {type(day.runs) for day in days} == {int}
