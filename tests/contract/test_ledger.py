"""The ledger on real SQLite files: the budget holds whatever happens, and memory is kept."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from prewarm.core.budget import Moment, Spend, Window
from prewarm.core.errors import PrewarmError, UsageError
from prewarm.core.manifest import OCI_MANIFEST, Descriptor, Manifest
from prewarm.core.records import (
    REPORTS_KEPT,
    SERIES_SECONDS,
    STEP_SECONDS,
    Copied,
    Covered,
    Known,
    Pushed,
    Refusal,
    Reservation,
    Run,
    TagMove,
    Written,
)
from prewarm.state import ledger as ledger_module
from prewarm.state.clock import now as host_clock
from prewarm.state.ledger import MIGRATIONS, Ledger
from tests.contract.stores import (
    PostgresqlStore,
    SqliteStore,
    Store,
    manifest_of,
    new_database,
    opened,
    sql,
)
from tests.support.postgres import Postgres
from tests.support.threads import failures_at_once

ROOT = Path(__file__).parents[2]
HOUR = 3600
TEN = Window(12, 6 * HOUR, 2)


def at(seconds: float, boot_id: str = "boot") -> Moment:
    return Moment(1_700_000_000.0 + seconds, boot_id, 100.0 + seconds)


@pytest.fixture
def file_ledger(tmp_path: Path) -> Iterator[Ledger]:
    """One that keeps the time by itself, as no server does it."""
    with Ledger.open(tmp_path / "prewarm.db") as opened:
        yield opened


def reserve(
    ledger: Ledger,
    pulls: int,
    now: Moment,
    *,
    gets: int | None = None,
    window: Window = TEN,
    reported: tuple[int, Moment] | None = None,
    registry: str = "docker.io",
    account: str = "acme",
) -> Reservation | Refusal:
    gets = pulls if gets is None else gets
    return ledger.reserve(
        "run", registry, account, "library/x", "sha256:0", pulls, gets, window, now, reported
    )


def reserved(ledger: Ledger, pulls: int, now: Moment, **more: Any) -> Reservation:
    reservation = reserve(ledger, pulls, now, **more)
    assert isinstance(reservation, Reservation)
    return reservation


def spends(ledger: Ledger, now: Moment) -> tuple[Spend, ...]:
    return ledger.spends("docker.io", "acme", now, 6 * HOUR)


# The own budget


def test_reserve_up_to_the_capacity_is_granted_and_no_further(ledger: Ledger) -> None:
    reserved(ledger, 7, at(0))
    reserved(ledger, 3, at(0))
    assert reserve(ledger, 1, at(0)) == Refusal("budget", 6 * HOUR, in_flight=True)


def test_reserve_refused_charges_nothing(ledger: Ledger) -> None:
    reserve(ledger, 11, at(0))
    reserved(ledger, 10, at(0))


def test_reserve_larger_than_any_window_has_no_time(ledger: Ledger) -> None:
    assert reserve(ledger, 11, at(0)) == Refusal("budget", None, in_flight=False)


def test_reserve_no_pulls_fit_into_an_overdrawn_window(ledger: Ledger) -> None:
    reserved(ledger, 10, at(0))
    reserved(ledger, 0, at(0), window=Window(5))


def test_reserve_no_limit_is_granted_and_recorded(ledger: Ledger) -> None:
    reserved(ledger, 1000, at(0), window=Window(None))
    assert spends(ledger, at(0)) == (Spend(0.0, 1000, in_flight=True),)


def test_reserve_registries_and_accounts_are_counted_apart(ledger: Ledger) -> None:
    reserved(ledger, 10, at(0))
    reserved(ledger, 10, at(0), account="192.0.2.7")
    reserved(ledger, 10, at(0), registry="quay.io")
    assert ledger.accounts("docker.io") == ("192.0.2.7", "acme")


def test_reserve_age_counts_from_settlement(file_ledger: Ledger) -> None:
    reservation = reserved(file_ledger, 10, at(0))
    # In flight for longer than a window: its GETs may still come.
    assert reserve(file_ledger, 1, at(7 * HOUR)) == Refusal("budget", 6 * HOUR, in_flight=True)
    file_ledger.settle(reservation, 10, 11, "copied", at(7 * HOUR))
    assert reserve(file_ledger, 1, at(13 * HOUR - 1)) == Refusal("budget", 1.0, in_flight=False)
    reserved(file_ledger, 1, at(13 * HOUR))


def test_reserve_on_a_server_takes_a_silent_step_for_dead_and_it_may_come_back(
    postgres: Postgres,
) -> None:
    """No lock tells that its host is gone; what it may have sent counts from when it had to end."""
    with PostgresqlStore(postgres.database()).open() as ledger:
        first = reserved(ledger, 7, at(0))
        silent = at(STEP_SECONDS)
        assert reserve(ledger, 4, silent) == Refusal("budget", 6 * HOUR, in_flight=True)
        late = at(STEP_SECONDS + 1)
        assert reserve(ledger, 4, late) == Refusal("budget", 6 * HOUR - 1.0, in_flight=False)
        second = reserved(ledger, 3, at(6 * HOUR))
        assert ledger.recover(at(6 * HOUR)) == 0
        # It was only slow: what it goes on with needs room as if it had nothing.
        refused = Refusal("budget", 6 * HOUR, in_flight=True)
        assert ledger.extend(first, 8, 8, TEN, at(6 * HOUR), None) == refused
        assert ledger.extend(first, 7, 7, TEN, at(6 * HOUR), None) is True
        ledger.settle(first, 5, 6, "copied", at(6 * HOUR + 1))
        ledger.settle(second, 3, 3, "copied", at(6 * HOUR + 1))
        assert [one.pulls for one in spends(ledger, at(7 * HOUR))] == [5, 3]
        # A step that was taken for dead can be settled late, too.
        third = reserved(ledger, 2, at(7 * HOUR))
        assert ledger.recover(at(8 * HOUR)) == 1
        ledger.settle(third, 1, 1, "copied", at(8 * HOUR))
        assert sum(one.pulls for one in spends(ledger, at(8 * HOUR))) == 9


def test_settle_less_than_reserved_frees_the_rest(ledger: Ledger) -> None:
    ledger.settle(reserved(ledger, 10, at(0)), 4, 5, "copied", at(1))
    assert spends(ledger, at(2)) == (Spend(1.0, 4),)
    reserved(ledger, 6, at(2))


def test_release_frees_all(ledger: Ledger) -> None:
    ledger.release(reserved(ledger, 10, at(0)), at(1))
    assert spends(ledger, at(1)) == ()


@pytest.mark.parametrize(
    "end",
    [
        lambda ledger, row: ledger.settle(row, 1, 1, "copied", at(2)),
        lambda ledger, row: ledger.release(row, at(2)),
        lambda ledger, row: ledger.extend(row, 2, 2, TEN, at(2)),
    ],
)
def test_settle_twice_is_a_bug_that_changes_nothing(
    ledger: Ledger, end: Callable[[Ledger, Reservation], object]
) -> None:
    reservation = reserved(ledger, 5, at(0))
    ledger.settle(reservation, 3, 3, "copied", at(1))
    with pytest.raises(LookupError):
        end(ledger, reservation)
    assert spends(ledger, at(1)) == (Spend(0.0, 3),)


@pytest.mark.parametrize(
    ("pulls", "granted", "held"),
    [(10, True, 10), (1, True, 1), (11, Refusal("budget", None, in_flight=False), 3)],
)
def test_extend_own_budget_is_checked_without_itself(
    ledger: Ledger, pulls: int, granted: object, held: int
) -> None:
    reservation = reserved(ledger, 3, at(0))
    assert ledger.extend(reservation, pulls, pulls, TEN, at(1)) == granted
    assert [spend.pulls for spend in spends(ledger, at(1))] == [held]


def test_extend_others_in_flight_count(ledger: Ledger) -> None:
    reservation = reserved(ledger, 1, at(0))
    reserved(ledger, 6, at(0))
    refused = Refusal("budget", 6 * HOUR, in_flight=True)
    assert ledger.extend(reservation, 5, 6, TEN, at(1)) == refused
    assert ledger.extend(reservation, 4, 5, TEN, at(1)) is True


def test_extend_lower_is_granted_in_a_window_that_shrank(ledger: Ledger) -> None:
    reservation = reserved(ledger, 8, at(0))
    assert ledger.extend(reservation, 5, 5, Window(1), at(1), (0, at(1))) is True


@pytest.mark.parametrize(
    ("before", "pulls", "granted"), [(0, 9, True), (2, 1, True), (2, 2, False), (9, 1, False)]
)
def test_reserve_and_extend_give_a_project_its_share_or_one_image(
    ledger: Ledger, before: int, pulls: int, granted: bool
) -> None:
    share = ("docker.io", "acme", "library/x", "sha256:0")

    def take(number: int, project: str) -> Reservation | Refusal:
        return ledger.reserve("run", *share, number, number, Window(99), at(0), None, (project,), 3)

    first = take(before, "team/a")
    assert isinstance(first, Reservation)
    assert isinstance(take(20, "team/b"), Reservation)
    refused = Refusal("project-share", 6 * HOUR, in_flight=True)
    answer = take(pulls, "team/a")
    assert isinstance(answer, Reservation) if granted else answer == refused
    if not isinstance(answer, Reservation):
        answer = reserved(ledger, 0, at(0), window=Window(99))
    more = ledger.extend(answer, pulls, pulls, Window(99), at(0), None, ("team/a",), 3)
    assert more == (True if granted else refused)


@pytest.mark.parametrize(
    "filling",
    ["", "b" * 2000, "x" * 4_000_000, "x\u009c" * 9, random.Random(2).randbytes(99).hex()],
)
def test_keep_manifest_of_any_content_is_given_back(ledger: Ledger, filling: str) -> None:
    manifest = manifest_of(filling)
    ledger.keep_manifest(manifest, at(0))
    assert ledger.manifest(manifest.digest) == manifest


def test_shrink_manifests_forgets_the_unused_and_then_the_largest(ledger: Ledger) -> None:
    """A few giants of one project cost no other image its manifest, and so a pull."""
    chance = random.Random(1)
    small = [manifest_of(chance.randbytes(900).hex()) for _ in range(50)]
    giants = [manifest_of(chance.randbytes(1 << 20).hex()) for _ in range(8)]
    old = manifest_of(chance.randbytes(5000).hex())
    ledger.keep_manifest(old, at(0))
    for manifest in (*giants, *small):
        ledger.keep_manifest(manifest, at(3 * 86400))
    now = at(3 * 86400).wall
    assert ledger.shrink_manifests(now, 100 << 20) == 0
    assert ledger.shrink_manifests(now, 3 << 20) == 1 + 6
    assert ledger.manifest(old.digest) is None
    assert all(ledger.manifest(one.digest) for one in small)
    assert ledger.shrink_manifests(now, 3 << 20) == 0


def test_reserve_charges_those_of_several_users_who_have_room(ledger: Ledger) -> None:
    def take(number: int, *payers: str) -> object:
        image = ("docker.io", "acme", "library/x", "sha256:0")
        return ledger.reserve("run", *image, number, number, Window(99), at(0), None, payers, 4)

    taken = [take(4, "eve/a"), take(2, "eve/a", "team/b"), take(2, "eve/a", "team/c")]
    # Those of several users are never refused here: the plan gives each its turn.
    taken += [take(6, "eve/a", "team/b", "team/c")]
    assert all(isinstance(one, Reservation) for one in taken)
    spends = ledger.spends("docker.io", "acme", at(0), 6 * HOUR)
    assert [spend.payers for spend in spends] == [
        ("eve/a",),
        ("team/b",),
        ("team/c",),
        ("team/b", "team/c"),
    ]
    assert take(1, "team/b") == Refusal("project-share", 6 * HOUR, in_flight=True)


# What upstream reports


@pytest.mark.parametrize(
    ("left", "gets", "granted"), [(12, 2, False), (14, 2, False), (15, 2, True), (-3, 1, False)]
)
def test_reserve_reported_remaining_keeps_the_reserve(
    ledger: Ledger, left: int, gets: int, granted: bool
) -> None:
    window = Window(None, 6 * HOUR, 10)
    reserved(ledger, 1, at(0), gets=3, window=window)
    answer = reserve(ledger, 1, at(2), gets=gets, window=window, reported=(left, at(1)))
    assert isinstance(answer, Reservation) == granted
    if not granted:
        assert answer == Refusal("upstream-quota", None, in_flight=True)


@pytest.mark.parametrize(
    ("settled", "granted"),
    [
        pytest.param(4, True, id="before the HEAD was sent: it is in the report"),
        pytest.param(5, False, id="at that moment"),
        pytest.param(6, False, id="after: the report may not hold it"),
    ],
)
def test_reserve_gets_settled_since_the_head_count(
    ledger: Ledger, settled: float, granted: bool
) -> None:
    ledger.settle(reserved(ledger, 1, at(0), gets=3), 1, 3, "copied", at(settled))
    answer = reserve(ledger, 1, at(9), gets=2, reported=(4, at(5)))
    if granted:
        assert isinstance(answer, Reservation)
    else:
        assert answer == Refusal("upstream-quota", None, in_flight=False, stale=True)


def test_reserve_other_accounts_gets_do_not_count(ledger: Ledger) -> None:
    reserved(ledger, 5, at(0), account="other")
    reserved(ledger, 1, at(2), reported=(3, at(1)))


def test_extend_reported_remaining_counts_the_whole_step(ledger: Ledger) -> None:
    reservation = reserved(ledger, 1, at(1), gets=1, reported=(6, at(0)))
    refused = ledger.extend(reservation, 4, 5, TEN, at(2), (6, at(0)))
    assert refused == Refusal("upstream-quota", None, in_flight=False)
    assert ledger.extend(reservation, 3, 4, TEN, at(2), (6, at(0))) is True


# Clocks


@pytest.mark.parametrize("step", [-(10**8), 10**8])
def test_reserve_wall_clock_stepped_within_a_boot_changes_nothing(
    file_ledger: Ledger, step: float
) -> None:
    file_ledger.settle(reserved(file_ledger, 10, at(0)), 10, 10, "copied", at(0))
    early, late = at(6 * HOUR - 1), at(6 * HOUR)
    stepped = [Moment(moment.wall + step, "boot", moment.boot) for moment in (early, late)]
    assert reserve(file_ledger, 1, stepped[0]) == Refusal("budget", 1.0, in_flight=False)
    reserved(file_ledger, 1, stepped[1])


def test_reserve_after_a_reboot_the_wall_clock_tells(file_ledger: Ledger) -> None:
    file_ledger.settle(reserved(file_ledger, 10, at(0)), 10, 10, "copied", at(0))
    early = Moment(at(6 * HOUR - 1).wall, "second boot", 7.0)
    late = Moment(at(6 * HOUR).wall, "second boot", 8.0)
    assert reserve(file_ledger, 1, early) == Refusal("budget", 1.0, in_flight=False)
    reserved(file_ledger, 1, late)


def test_reserve_row_from_the_future_counts_for_one_window(file_ledger: Ledger) -> None:
    file_ledger.settle(reserved(file_ledger, 10, at(0)), 10, 10, "copied", at(0))
    back = at(0).wall - 10**7
    assert spends(file_ledger, Moment(back, "second boot", 7.0)) == (Spend(0.0, 10),)
    assert isinstance(reserve(file_ledger, 1, Moment(back, "second boot", 7.0)), Refusal)
    almost = Moment(back, "second boot", 6.0 + 6 * HOUR)
    assert isinstance(reserve(file_ledger, 1, almost), Refusal)
    reserved(file_ledger, 1, Moment(back, "second boot", 7.0 + 6 * HOUR))


def test_reserve_wall_set_forward_and_then_rebooted_is_noticed(file_ledger: Ledger) -> None:
    """A machine that boots with a wrong date, spends, is set right and boots again."""
    file_ledger.settle(reserved(file_ledger, 10, at(0)), 10, 10, "copied", at(0))
    forward = 10**8
    file_ledger.recover(Moment(at(60).wall + forward, "boot", at(60).boot))
    rebooted = Moment(at(90).wall + forward, "second boot", 5.0)
    assert spends(file_ledger, rebooted) == (Spend(90.0, 10),)


def test_reserve_late_moment_of_a_slow_thread_is_not_the_last(file_ledger: Ledger) -> None:
    file_ledger.settle(reserved(file_ledger, 8, at(0)), 8, 8, "copied", at(0))
    forward = 10**8
    file_ledger.recover(Moment(at(60).wall + forward, "boot", at(60).boot))
    # Read before the wall clock was set, noted after it.
    file_ledger.release(reserved(file_ledger, 1, at(50)), at(50))
    rebooted = Moment(at(90).wall + forward, "second boot", 5.0)
    assert spends(file_ledger, rebooted) == (Spend(90.0, 8),)


def test_recover_settles_when_a_step_must_have_ended(file_ledger: Ledger) -> None:
    reserved(file_ledger, 3, at(0))
    reserved(file_ledger, 4, at(900))
    assert file_ledger.recover(at(910)) == 2
    assert spends(file_ledger, at(910)) == (Spend(910.0 - STEP_SECONDS, 3), Spend(0.0, 4))
    assert file_ledger.recover(at(920)) == 0


def test_recover_extension_counts_as_the_start(ledger: Ledger) -> None:
    reservation = reserved(ledger, 1, at(0))
    assert ledger.extend(reservation, 2, 3, TEN, at(500)) is True
    ledger.recover(at(1000))
    assert spends(ledger, at(1000)) == (Spend(500.0 - STEP_SECONDS, 2),)


def test_tidy_forgets_only_what_no_window_holds(ledger: Ledger) -> None:
    ledger.settle(reserved(ledger, 1, at(0)), 1, 1, "copied", at(0))
    ledger.settle(reserved(ledger, 2, at(50)), 2, 2, "copied", at(50))
    reserved(ledger, 3, at(60))
    old, new = ledger.start_run(at(0)), ledger.start_run(at(60))
    ledger.note_copy(old, "x", "copy", "missing", 1, 1, 5, 0.1, at(0))
    ledger.tidy(100, at(120))
    assert [spend.pulls for spend in spends(ledger, at(120))] == [2, 3]
    assert [run.id for run in ledger.runs(9)] == [new]
    assert ledger.copies(old) == ()
    # The wall clock set forward by years frees nothing.
    ledger.tidy(100, Moment(at(130).wall + 10**9, "boot", at(130).boot))
    assert [spend.pulls for spend in spends(ledger, at(130))] == [2, 3]


def test_tidy_keeps_of_older_runs_only_what_they_copied(ledger: Ledger) -> None:
    runs = [ledger.start_run(at(number)) for number in range(REPORTS_KEPT + 1)]
    for number, run in enumerate(runs):
        ledger.note_copy(run, "x", "copy", "missing", 1, 1, 5, 0.1, at(number))
        ledger.note_copy(run, "y", "fresh", "fresh", 0, 0, 0, 0.1, at(number))
        ledger.finish_run(run, 1, '{"whole": true}', at(number))
    ledger.tidy(10_000, at(100))
    *newer, oldest = ledger.runs(100)
    assert (oldest.id, oldest.exit_code, oldest.report) == (runs[0], 1, "{}")
    assert {run.report for run in newer} == {'{"whole": true}'}
    assert [one.image for one in ledger.copies(runs[0])] == ["x"]
    assert [one.image for one in ledger.copies(runs[1])] == ["x", "y"]


def test_tidy_keeps_series_for_their_time_whatever_else_is_forgotten(ledger: Ledger) -> None:
    digests = [Descriptor(OCI_MANIFEST, f"sha256:{n}", n) for n in range(3)]
    for seconds, descriptor in zip((0, 50, SERIES_SECONDS), digests, strict=True):
        ledger.note_coverage("", seconds, SERIES_SECONDS, at(seconds))
        ledger.note_coverage("http://a", seconds, SERIES_SECONDS, at(seconds))
        ledger.note_tag("docker.io", "library/x", "1", descriptor, at(seconds))
    ledger.tidy(1, at(SERIES_SECONDS + 50))
    for mirror in ("", "http://a"):
        assert [one.served for one in ledger.covered(0, mirror)] == [50, SERIES_SECONDS]
    assert [move.digest for move in ledger.tag_moves(0)] == ["sha256:1", "sha256:2"]
    # What the tag is now is not forgotten with its moves.
    ledger.tidy(1, at(3 * SERIES_SECONDS))
    assert ledger.tag_moves(0) == ()
    seen = ledger.tag("docker.io", "library/x", "1")
    assert seen is not None
    assert (seen.descriptor, seen.moves) == (digests[2], 2)


HUB_LIMIT, HUB_SECONDS = 8, 200
STEP = ("run", "docker.io", "acme", "library/x", "sha256:0")
costs = st.sampled_from([1, 3, 4, 7])
ends = st.sampled_from(["", "sent", "settled", "killed"])
ADDRESSES = ("anonymous", "anonymous@192.0.2.7", "anonymous@2001:db8::7")
waits = st.sampled_from([0, 60, STEP_SECONDS])


class Budget(RuleBasedStateMachine):
    """Any life of a state: true time passes, clocks lie, processes die, machines boot.

    A spend is one pull and one GET. The model keeps true time. Steps send their GETs whenever they
    like, no later than STEP_SECONDS after they were allowed to.
    """

    window = Window(9, 300, 2)
    account = "acme"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = self.new_store()
        self.time, self.booted, self.boot = 1000, 0, 0
        self.offset = self.noted_offset = 0
        self.sent: list[int] = []
        self.alive: dict[Reservation, list[int]] = {}
        """Of each step in flight: pulls reserved, pulls spent, when it was allowed them."""
        self.report: tuple[int, Moment] | None = None
        self.ledger = self.store.open(self.moment, lambda: 1e9 + self.time)

    def new_store(self) -> Store:
        return SqliteStore(Path(self.folder.name) / "prewarm.db")

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    def moment(self) -> Moment:
        wall = 1e9 + self.time + self.offset
        return Moment(wall, f"boot {self.boot}", float(self.time - self.booted))

    def now(self) -> Moment:
        """This moment as the machine's clocks tell it, for the ledger to note."""
        self.noted_offset = self.offset
        return self.moment()

    def sent_within(self, seconds: int) -> int:
        return sum(1 for sent in self.sent if sent > self.time - seconds)

    def any_step(self, data: st.DataObject) -> Reservation:
        return data.draw(st.sampled_from(list(self.alive)))

    @rule(seconds=st.sampled_from([1, 90, 180, 200, 299, 300]))
    def time_passes(self, seconds: int) -> None:
        self.time += seconds

    @rule(pulls=costs, wait=waits, ends=ends, tries=st.sampled_from([1, 12]))
    def reserve(self, pulls: int, wait: int, ends: str, tries: int) -> None:
        for _ in range(tries):
            answer = self.ledger.reserve(
                *("run", "docker.io", self.account, "library/a", "sha256:1"),
                *(pulls, pulls, self.window, self.now(), self.report),
            )
            if isinstance(answer, Reservation):
                self.alive[answer] = [pulls, 0, self.time]
                self.go_on(answer, wait, ends)
                return
            self.time += 30 if tries > 1 else 0

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), pulls=costs, wait=waits, ends=ends)
    def extend(self, data: st.DataObject, pulls: int, wait: int, ends: str) -> None:
        step = self.any_step(data)
        pulls = max(pulls, self.alive[step][1])
        if self.ledger.extend(step, pulls, pulls, self.window, self.now(), self.report) is True:
            self.alive[step] = [pulls, self.alive[step][1], self.time]
            self.go_on(step, wait, ends)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), ends=st.sampled_from(["sent", "settled", "given up"]))
    def finish(self, data: st.DataObject, ends: str) -> None:
        self.go_on(self.any_step(data), 0, ends)

    def go_on(self, step: Reservation, wait: int, ends: str) -> None:
        self.time += wait
        allowed, spent, since = self.alive[step]
        if ends in ("sent", "settled", "killed") and self.time - since <= STEP_SECONDS:
            self.alive[step][1] = allowed
            self.send(allowed - spent)
        if ends == "killed":
            self.process_dies()
        elif ends in ("settled", "given up"):
            spent = self.alive.pop(step)[1]
            if spent:
                self.ledger.settle(step, spent, spent, "copied", self.now())
            else:
                self.ledger.release(step, self.now())

    def send(self, gets: int) -> None:
        self.sent += [self.time] * gets
        held = self.sent_within(self.window.seconds)
        assert self.window.capacity is not None
        assert held <= self.window.capacity, f"{held} pulls in the window that ends at {self.time}"

    @rule(seconds=st.sampled_from([-(10**6), -300, 300, 10**6]))
    def wall_clock_is_set(self, seconds: int) -> None:
        self.offset += seconds

    @rule()
    def process_dies(self) -> None:
        self.alive.clear()
        self.report = None
        self.ledger.close()
        self.ledger = self.store.open(self.moment, lambda: 1e9 + self.time)
        self.ledger.recover(self.now())

    @rule(seconds=st.sampled_from([1, 100, 180, 299]))
    def machine_boots(self, seconds: int) -> None:
        # What nobody can tell is believed: a clock set forward since the ledger last looked.
        self.offset = min(self.offset, self.noted_offset)
        self.time += seconds
        self.booted = self.time - 1
        self.boot += 1
        self.process_dies()

    @precondition(lambda self: not self.alive)
    @rule()
    def an_idle_window_frees_everything(self) -> None:
        # A server is told of no death: it is inferred from silence.
        self.time += self.window.seconds + (STEP_SECONDS if self.store.shared else 0)
        capacity = self.window.capacity
        assert capacity is not None
        answer = self.ledger.reserve(*STEP, capacity, 0, self.window, self.now())
        assert isinstance(answer, Reservation)
        self.ledger.release(answer, self.now())


class MovingBudget(Budget):
    """The same without a login: the address that upstream reports changes at any time."""

    window = Window(9, 300, 2, every_address=True)
    account = ADDRESSES[0]

    @rule(account=st.sampled_from(ADDRESSES))
    def address_changes(self, account: str) -> None:
        self.account = account


class Quota(Budget):
    """The same where the Hub allows fewer GETs than the own budget and reports what is left.

    Reports may be old when they are used; whoever starts asks first.
    """

    window = Window(30, 300, 2)

    def left(self) -> int:
        return HUB_LIMIT - self.sent_within(HUB_SECONDS)

    @initialize()
    def head_first(self) -> None:
        self.head()

    @rule()
    def head(self) -> None:
        self.report = (self.left(), self.moment())

    @rule()
    def process_dies(self) -> None:
        super().process_dies()
        self.head()

    def send(self, gets: int) -> None:
        super().send(gets)
        assert self.left() >= self.window.reserve or not gets, f"{self.left()} left at {self.time}"


class SharedBudget(Budget):
    """The same on a server, whose clock counts."""

    def new_store(self) -> Store:
        return new_database()


class SharedMovingBudget(MovingBudget):
    """The same on a server, whose clock counts."""

    def new_store(self) -> Store:
        return new_database()


class SharedQuota(Quota):
    """The same on a server, whose clock counts."""

    def new_store(self) -> Store:
        return new_database()


TestBudgetHolds = Budget.TestCase
TestMovingBudgetHolds = MovingBudget.TestCase
TestQuotaIsLeft = Quota.TestCase
TestBudgetHolds.settings = TestMovingBudgetHolds.settings = TestQuotaIsLeft.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSharedBudgetHolds = pytest.mark.usefixtures("database_of_machines")(SharedBudget.TestCase)
TestSharedQuotaIsLeft = pytest.mark.usefixtures("database_of_machines")(SharedQuota.TestCase)
TestSharedMovingBudgetHolds = pytest.mark.usefixtures("database_of_machines")(
    SharedMovingBudget.TestCase
)
TestSharedBudgetHolds.settings = TestSharedQuotaIsLeft.settings = settings(
    TestBudgetHolds.settings, max_examples=30
)
TestSharedMovingBudgetHolds.settings = TestSharedBudgetHolds.settings


# Threads and processes


def test_reserve_many_threads_get_exactly_the_budget(ledger: Ledger) -> None:
    granted: list[Reservation] = []

    def take() -> None:
        while isinstance(step := reserve(ledger, 1, at(0), window=Window(40)), Reservation):
            granted.append(step)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 40


TAKE = """
import sys, time
from prewarm.core.budget import Window
from prewarm.state.clock import now
from prewarm.core.records import Reservation
from tests.contract.stores import opened
tries = taken = 0
with opened(sys.argv[1]) as ledger:
    print("open", flush=True)
    sys.stdin.readline()
    image = ("docker.io", sys.argv[2], "library/x", "sha256:0")
    while isinstance(
        step := ledger.reserve("run", *image, 1, 1, Window(100), now()), Reservation
    ):
        tries += 1
        time.sleep(0.001)  # each gets a turn, on a busy machine too
        if tries % 7 == 0:
            ledger.release(step, now())
            continue
        taken += 1
        if tries % 2:
            ledger.settle(step, 1, 1, "spent", now())
print(taken)
"""


def test_reserve_many_processes_get_exactly_the_budget(store: Store) -> None:
    """Of an account, and of anonymous pulls, some of them at an address that is not known yet."""
    store.open().close()
    for accounts in (["acme"] * 4, ["anonymous", "anonymous@192.0.2.7"] * 2):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", TAKE, store.place, account],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for account in accounts
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        taken = [int(child.communicate(timeout=60)[0]) for child in children]
        assert sum(taken) == 100
        assert sum(one > 0 for one in taken) > 1


DIE = """
import sys, time
from prewarm.core.budget import Window
from prewarm.state.clock import now
from tests.contract.stores import opened
ledger = opened(sys.argv[1])
ledger.reserve("run", "docker.io", "acme", "library/x", "sha256:0", 4, 5, Window(10), now())
print("reserved", flush=True)
time.sleep(60)
"""


def test_recover_after_kill_nine_leaves_the_row_spent(store: Store) -> None:
    store.open().close()
    command = [sys.executable, "-c", DIE, store.place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reserved\n"
        child.kill()
    with opened(store.place) as ledger:
        (spend,) = ledger.spends("docker.io", "acme", host_clock(), 6 * HOUR)
        assert (spend.pulls, spend.in_flight) == (4, True)
        assert isinstance(reserve(ledger, 7, host_clock()), Refusal)
        reserved(ledger, 6, host_clock())
        if not store.shared:
            assert ledger.recover(host_clock()) == 2
            return
        # Nobody can tell yet that it is dead; once it has been silent for long it is.
        assert ledger.recover(host_clock()) == 0
        sql(ledger, "UPDATE pulls SET reserved = reserved - :s WHERE pulls = 4", s=STEP_SECONDS)
        assert ledger.recover(host_clock()) == 1
        held = ledger.spends("docker.io", "acme", host_clock(), 6 * HOUR)
        assert [(one.pulls, one.in_flight) for one in held] == [(4, False), (6, True)]


# Opening


def test_open_at_once_by_many_makes_one_state(tmp_path: Path) -> None:
    path = tmp_path / "prewarm.db"
    assert failures_at_once(lambda: Ledger.open(path).close()) == []
    assert _versions(path) == [number for number, _ in MIGRATIONS]


def _versions(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT version FROM schema_version ORDER BY version")
        return [version for (version,) in rows]


def _older_state(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE schema_version (version BIGINT PRIMARY KEY)")
        connection.execute("INSERT INTO schema_version VALUES (1)")
        for statement in MIGRATIONS[0][1]:
            connection.execute(statement)
        connection.execute("INSERT INTO boots VALUES ('boot', 0, 1700000000, 100)")
        connection.execute(
            """INSERT INTO pulls VALUES ('1', 'run', 'docker.io', 'acme', 'library/x', 'sha256:0',
                                         4, 5, 1700000000, 'boot', 100, 100, 100, 'copied')"""
        )


def test_open_older_schema_is_migrated_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "prewarm.db"
    _older_state(path)
    with Ledger.open(path) as ledger:
        assert spends(ledger, at(10)) == (Spend(10.0, 4),)
        assert ledger.states() == ()
    assert _versions(path) == [number for number, _ in MIGRATIONS]


def test_open_version_five_keeps_all_its_rows_and_gains_the_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prewarm.db"
    golang = ("docker.io", "library/golang", "1.22")
    first, second = (Descriptor(OCI_MANIFEST, f"sha256:{n}", n) for n in (1, 2))
    with monkeypatch.context() as older:
        older.setattr(ledger_module, "MIGRATIONS", MIGRATIONS[:5])
        with Ledger.open(path) as ledger:
            ledger.recover(at(0))
            ledger.keep_manifest(Manifest(OCI_MANIFEST, b"{}"), at(0))
            ledger.note_state("x", "http://a", "fresh", "d", at(0))
            ledger.note_public("docker.io", "library/x", True, at(0))
            ledger.note_copy("r", "x", "copy", "missing", 1, 2, 3, 0.5, at(0))
    with closing(sqlite3.connect(path)) as connection, connection:
        # As version 5 noted a run, a pull and a tag: it kept no hosts, projects and moves.
        connection.execute("INSERT INTO runs VALUES ('r', ?, NULL, NULL, NULL)", (at(0).wall,))
        (base,) = connection.execute("SELECT base FROM boots").fetchone()
        connection.execute(
            """INSERT INTO pulls VALUES ('p', 'run', 'docker.io', 'acme', 'library/x', 'sha256:0',
                                         3, 3, ?, ?, ?, ?, NULL, NULL)""",
            (at(0).wall, at(0).boot_id, at(0).boot, base + at(0).boot),
        )
        connection.execute(
            "INSERT INTO tags VALUES (?, ?, ?, ?, ?, 1, ?, ?, 4)",
            (*golang, first.digest, first.media_type, at(0).wall, at(0).wall),
        )
    before = _rows_of(path)
    assert {"pulls", "manifests", "tags", "states", "visibility", "runs", "copies"} <= {
        table for table, rows in before.items() if rows
    }
    Ledger.open(path).close()
    after = _rows_of(path)
    assert after.pop("schema_version") == [(number,) for number, _ in MIGRATIONS]
    del before["schema_version"]
    for table, rows in before.items():
        assert [row[: len(old)] for row, old in zip(after[table], rows, strict=True)] == rows
    assert after["coverage"] == after["tag_moves"] == []
    with Ledger.open(path) as ledger:
        assert spends(ledger, at(1)) == (Spend(0.0, 3, in_flight=True),)
        # A tag that stays as it was does not move; one that moves says so, and counts on.
        ledger.note_tag(*golang, first, at(1))
        assert ledger.tag_moves(0) == ()
        ledger.note_tag(*golang, second, at(2))
        assert ledger.tag_moves(0) == (TagMove(*golang, second.digest, at(2).wall),)
        seen = ledger.tag(*golang)
        assert seen is not None
        assert seen.moves == 5


def _rows_of(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
            for (table,) in tables.fetchall()
        }


def test_open_read_only_older_schema_is_read_and_left(tmp_path: Path) -> None:
    path = tmp_path / "prewarm.db"
    _older_state(path)
    with Ledger.open(path, read_only=True) as ledger:
        assert spends(ledger, at(10)) == (Spend(10.0, 4),)
        assert ledger.runs(1) == ()
    assert _versions(path) == [1]


def test_open_migration_that_fails_leaves_the_older_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prewarm.db"
    _older_state(path)
    broken = (MIGRATIONS[0], (2, ("CREATE TABLE half (x TEXT)", "CREATE NONSENSE")))
    monkeypatch.setattr(ledger_module, "MIGRATIONS", broken)
    with pytest.raises(UsageError):
        Ledger.open(path)
    monkeypatch.undo()
    assert _versions(path) == [1]
    with closing(sqlite3.connect(path)) as connection:
        assert (
            connection.execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall() == []
        )


@pytest.mark.parametrize("read_only", [False, True])
def test_open_newer_schema_is_refused_and_untouched(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "prewarm.db"
    Ledger.open(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO schema_version VALUES (999)")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="written by a newer prewarm; upgrade prewarm") as caught:
        Ledger.open(path, read_only=read_only)
    assert caught.value.exit_code == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
def test_open_file_that_is_no_database_is_refused_with_a_cure(
    tmp_path: Path, read_only: bool
) -> None:
    path = tmp_path / "prewarm.db"
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(UsageError, match=r"not a SQLite database; move it aside"):
        Ledger.open(path, read_only=read_only)
    assert path.read_bytes() == b"not a database " * 100


def test_open_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE pulls (x TEXT)")
    with pytest.raises(UsageError, match="another program"):
        Ledger.open(path)


def test_open_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be opened"):
        Ledger.open(tmp_path / "missing" / "prewarm.db")


def test_open_read_only_without_a_state_says_so_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Ledger.open(tmp_path / "prewarm.db", read_only=True)
    assert caught.value.code == "no-state"
    assert list(tmp_path.iterdir()) == []


def test_open_read_only_sees_a_running_writer_and_writes_nothing(
    tmp_path: Path, file_ledger: Ledger
) -> None:
    reserved(file_ledger, 3, at(0))
    with Ledger.open(tmp_path / "prewarm.db", read_only=True) as copy:
        assert spends(copy, at(0)) == (Spend(0.0, 3, in_flight=True),)
        reserved(copy, 7, at(0))
        copy.start_run(at(0))
    assert spends(file_ledger, at(0)) == (Spend(0.0, 3, in_flight=True),)
    assert file_ledger.runs(1) == ()


def test_memory_is_a_ledger_of_its_own() -> None:
    with Ledger.memory() as first, Ledger.memory() as second:
        reserved(first, 10, at(0))
        reserved(second, 10, at(0))


def test_reserve_full_disk_is_an_error_with_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "prewarm.db"
    with Ledger.open(path) as ledger:
        pages = ledger._database.execute("PRAGMA page_count").fetchone()[0]
        ledger._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(PrewarmError, match=r"prewarm\.db cannot be used: .*full"):
            ledger.keep_manifest(manifest_of(random.Random(3).randbytes(100_000).hex()), at(0))
        # What fits is still done, and nothing of what did not is left.
        reserved(ledger, 1, at(0))
        assert ledger.forget_manifests(unused_since=1e12) == 0


# Memory


def test_manifest_kept_is_returned_until_unused(ledger: Ledger) -> None:
    old, used = manifest_of("a"), manifest_of("b")
    ledger.keep_manifest(old, at(0))
    ledger.keep_manifest(used, at(0))
    ledger.use_manifests((used.digest, "sha256:" + "0" * 64), at(100))
    assert ledger.manifest(old.digest) == old
    assert ledger.forget_manifests(unused_since=at(50).wall) == 1
    assert ledger.manifest(old.digest) is None
    assert ledger.manifest(used.digest) == used


def test_manifest_damaged_content_is_none(ledger: Ledger) -> None:
    manifest = manifest_of("")
    ledger.keep_manifest(manifest, at(0))
    sql(ledger, "UPDATE manifests SET content = :content", content=b"\0")
    assert ledger.manifest(manifest.digest) is None
    ledger.keep_manifest(manifest, at(1))
    assert ledger.manifest(manifest.digest) == manifest


def test_note_tag_moves_are_counted_with_their_times(ledger: Ledger) -> None:
    tag = ("docker.io", "library/golang", "1.22")
    first, second = (Descriptor(OCI_MANIFEST, f"sha256:{n}", n) for n in (1, 2))
    assert ledger.tag(*tag) is None
    seen = []
    for descriptor, seconds in [(first, 0), (first, 10), (second, 20), (second, 30)]:
        ledger.note_tag(*tag, descriptor, at(seconds))
        found = ledger.tag(*tag)
        assert found is not None
        assert found.descriptor == descriptor
        seen.append((found.checked - at(0).wall, found.changed - at(0).wall, found.moves))
    assert seen == [(0, 0, 0), (10, 0, 0), (20, 20, 1), (30, 20, 1)]


def test_tag_moves_are_every_digest_that_a_tag_came_to_show(ledger: Ledger) -> None:
    golang, other = ("docker.io", "library/golang", "1"), ("quay.io", "library/golang", "1")
    a, b = (Descriptor(OCI_MANIFEST, f"sha256:{n}", 7) for n in "ab")
    for tag, descriptor, seconds in [
        (golang, a, 0),  # the first sighting
        (golang, a, 10),
        (other, a, 20),
        (golang, b, 30),
        (golang, a, 40),  # back again
        (golang, a, 50),
    ]:
        ledger.note_tag(*tag, descriptor, at(seconds))
    moves = (
        TagMove(*golang, a.digest, at(0).wall),
        TagMove(*other, a.digest, at(20).wall),
        TagMove(*golang, b.digest, at(30).wall),
        TagMove(*golang, a.digest, at(40).wall),
    )
    assert ledger.tag_moves(at(0).wall) == moves
    assert ledger.tag_moves(at(30).wall) == moves[2:]


def test_tag_moves_of_one_moment_keep_the_last(ledger: Ledger) -> None:
    tag = ("docker.io", "library/golang", "1")
    for digest in ("sha256:a", "sha256:b"):
        ledger.note_tag(*tag, Descriptor(OCI_MANIFEST, digest, 7), at(0))
    assert ledger.tag_moves(0) == (TagMove(*tag, "sha256:b", at(0).wall),)


def test_covered_tells_each_mirror_apart_the_oldest_first(ledger: Ledger) -> None:
    for mirror, served, seconds in [("", 3, 20), ("", 1, 0), ("http://a", 4, 0), ("", 2, 10)]:
        ledger.note_coverage(mirror, served, 4, at(seconds))
    assert ledger.covered(at(10).wall) == (
        Covered(at(10).wall, "", 2, 4),
        Covered(at(20).wall, "", 3, 4),
    )
    assert ledger.covered(0, "http://a") == (Covered(at(0).wall, "http://a", 4, 4),)
    assert ledger.covered(0, "http://b") == ()
    # Noted again at the same moment it is put right.
    ledger.note_coverage("http://a", 5, 6, at(0))
    assert ledger.covered(0, "http://a") == (Covered(at(0).wall, "http://a", 5, 6),)


@pytest.mark.parametrize(
    ("served", "total", "ratio"), [(0, 0, None), (0, 3, 0.0), (2, 3, 0.6667), (3, 3, 1.0)]
)
def test_covered_ratio_is_a_share_to_four_digits(
    served: int, total: int, ratio: float | None
) -> None:
    assert Covered(0.0, "", served, total).ratio == ratio


def test_written_is_selected_by_mirror_and_image(ledger: Ledger) -> None:
    def note(mirror: str, image: str, tag: str | None, size: int) -> Written:
        ledger.note_written(mirror, image, "library/x", tag, "d", "u", "linux/amd64", size, at(0))
        times = (at(0).wall, at(0).wall)
        return Written(mirror, image, "library/x", tag, "d", "u", "linux/amd64", size, *times)

    note("http://a", "docker.io/library/x:1", "1", 1)
    one = note("http://a", "docker.io/library/x:1", "1", 2)
    two = note("http://a", "docker.io/library/x@sha256:0", None, 3)
    three = note("http://b", "docker.io/library/x:1", "1", 4)
    assert ledger.written() == (one, two, three)
    assert ledger.written(mirror="http://a") == (one, two)
    assert ledger.written(image="docker.io/library/x:1") == (one, three)
    ledger.note_state(one.image, "http://a", "fresh", "d", at(0))
    ledger.forget_written("http://a", one.image)
    assert ledger.written() == (two, three)
    assert ledger.states() == ()


def test_note_wanted_is_for_the_image_on_every_mirror(ledger: Ledger) -> None:
    for mirror, image in (("http://a", "x:1"), ("http://b", "x:1"), ("http://a", "y:1")):
        ledger.note_written(mirror, image, "x", "1", "d", "u", "linux/amd64", 1, at(0))
    ledger.note_wanted(("x:1", "never written"), at(9))
    found = [(one.mirror, one.image, one.wanted - at(0).wall) for one in ledger.written()]
    assert found == [("http://a", "x:1", 9), ("http://a", "y:1", 0), ("http://b", "x:1", 9)]
    # What is copied anew was not wanted by that alone: a repair copies what nobody wants.
    ledger.note_written("http://a", "y:1", "x", "1", "e", "u", "linux/amd64", 1, at(20))
    assert [one.wanted - at(0).wall for one in ledger.written(image="y:1")] == [0]


def test_pushed_tells_since_when_a_manifest_may_have_no_tag(ledger: Ledger) -> None:
    def note(digest: str, seconds: float) -> None:
        ledger.note_written("http://a", "x:1", "x", "1", digest, "u", "all", 1, at(seconds))

    def pushed() -> dict[str, float]:
        return {one.digest: one.since - at(0).wall for one in ledger.pushed("http://a")}

    ledger.note_pushed("http://a", "x", ("child",), at(0).wall)
    note("one", 1)
    note("one", 5)
    assert pushed() == {"child": 0, "one": 5}
    # The tag moves: what it left counts from now.
    note("two", 100)
    assert pushed() == {"child": 0, "one": 100, "two": 100}
    assert ledger.pushed("http://b") == ()
    ledger.forget_pushed("http://a", "x", ("one", "never"))
    ledger.forget_pushed("http://a", "other", ("two",))
    assert pushed() == {"child": 0, "two": 100}


def test_open_state_of_before_pruning_knows_what_was_pushed_and_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prewarm.db"
    monkeypatch.setattr(ledger_module, "MIGRATIONS", MIGRATIONS[:6])
    Ledger.open(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        for tag, wall in (("1", 5.0), ("2", 7.0)):
            row = ("http://a", f"x:{tag}", "x", tag, "d", "u", "all", 1, wall)
            connection.execute(f"INSERT INTO written VALUES ({', '.join('?' * 9)})", row)
        for run, wall in (("r1", 8.0), ("r2", 9.0)):
            copy = (run, "x:1", "fresh", "fresh", 0, 0, 0, 0.0, wall)
            connection.execute(f"INSERT INTO copies VALUES ({', '.join('?' * 9)})", copy)
    monkeypatch.undo()
    with Ledger.open(path) as ledger:
        assert ledger.pushed("http://a") == (Pushed("x", "d", 7.0),)
        assert [one.wanted for one in ledger.written()] == [9.0, 7.0]


def test_states_are_the_last_noted_until_forgotten(ledger: Ledger) -> None:
    ledger.note_state("x", "http://a", "missing", None, at(0))
    ledger.note_state("x", "http://a", "fresh", "d", at(9))
    ledger.note_state("y", "http://a", "stale", "e", at(1))
    x, y = (
        Known("x", "http://a", "fresh", "d", at(9).wall),
        Known("y", "http://a", "stale", "e", at(1).wall),
    )
    assert ledger.states() == (x, y)
    assert ledger.forget_states(before=at(5).wall) == 1
    assert ledger.states() == (x,)


def test_runs_newest_come_first_with_their_end(ledger: Ledger) -> None:
    first, second, third = (ledger.start_run(at(seconds)) for seconds in (0, 1, 2))
    ledger.finish_run(second, 1, '{"version": 1}', at(5))
    assert ledger.runs(2) == (
        Run(third, at(2).wall, None, None, None),
        Run(second, at(1).wall, at(5).wall, 1, '{"version": 1}'),
    )
    assert first < second < third


def test_last_copy_is_the_newest_from_upstream(ledger: Ledger) -> None:
    ledger.note_copy("r1", "x", "copy", "missing", 1, 2, 100, 0.5, at(0))
    ledger.note_copy("r2", "x", "copy", "stale", 2, 3, 200, 1.5, at(10))
    ledger.note_copy("r3", "x", "fresh", "fresh", 0, 0, 0, 0.0, at(20))
    assert ledger.last_copy("x") == Copied("r2", "x", "copy", "stale", 2, 3, 200, 1.5, at(10).wall)
    assert ledger.last_copy("y") is None
    assert [copied.action for copied in ledger.copies("r3")] == ["fresh"]


# Anonymous pulls


@pytest.mark.parametrize(
    ("spent_as", "asked_as", "counts"),
    [
        ("anonymous", "anonymous@1.2.3.4", True),
        ("anonymous@1.2.3.4", "anonymous", True),
        ("anonymous@1.2.3.4", "anonymous@1.2.3.4", True),
        ("anonymous@1.2.3.4", "anonymous@5.6.7.8", False),
        ("anonymous", "acme", False),
        ("acme", "anonymous", False),
        ("acme", "anonymous@1.2.3.4", False),
    ],
)
def test_reserve_counts_anonymous_pulls_of_an_unknown_address_for_every_address(
    ledger: Ledger, spent_as: str, asked_as: str, counts: bool
) -> None:
    window = Window(3, 6 * HOUR)
    spent = ledger.reserve("r", "docker.io", spent_as, "a", "d", 3, 3, window, at(0))
    assert isinstance(spent, Reservation)
    ledger.settle(spent, 3, 3, "spent", at(1))
    assert bool(ledger.spends("docker.io", asked_as, at(2), 6 * HOUR)) == counts
    answer = ledger.reserve("r", "docker.io", asked_as, "a", "d", 1, 1, window, at(2))
    assert isinstance(answer, Refusal) == counts


ADDRESS, OTHER = "anonymous@192.0.2.7", "anonymous@2001:db8::7"


def reserve_one(ledger: Ledger, account: str, window: Window, *payers: str) -> object:
    step = ("r", "docker.io", account, "a", "d", 1, 1)
    return ledger.reserve(*step, window, at(0), None, payers, 2)


def test_reserve_written_budget_holds_for_all_anonymous_addresses(store: Store) -> None:
    window = Window(3, 6 * HOUR, every_address=True)
    # Two hosts, or one before and after an upgrade: rows of one address each.
    with store.open() as one, store.open() as other:
        assert isinstance(reserve_one(one, ADDRESS, Window(3, 6 * HOUR)), Reservation)
        assert isinstance(reserve_one(other, OTHER, window), Reservation)
        assert isinstance(reserve_one(one, "anonymous", window), Reservation)
        for account in ADDRESSES:
            for ledger in (one, other):
                refusal = reserve_one(ledger, account, window)
                assert isinstance(refusal, Refusal)
                assert (refusal.kind, refusal.in_flight) == ("budget", True)
        assert isinstance(reserve_one(other, "acme", window), Reservation)


def test_reserve_reported_limit_holds_for_each_address(ledger: Ledger) -> None:
    window = Window(1, 6 * HOUR)
    assert isinstance(reserve_one(ledger, ADDRESS, window), Reservation)
    assert isinstance(reserve_one(ledger, ADDRESS, window), Refusal)
    assert isinstance(reserve_one(ledger, OTHER, window), Reservation)


def test_extend_written_budget_holds_for_all_anonymous_addresses(ledger: Ledger) -> None:
    window = Window(3, 6 * HOUR, every_address=True)
    steps = [reserve_one(ledger, account, window) for account in (ADDRESS, OTHER)]
    first, second = [step for step in steps if isinstance(step, Reservation)]
    assert ledger.extend(first, 2, 2, window, at(1)) is True
    assert isinstance(ledger.extend(second, 2, 2, window, at(1)), Refusal)


def test_reserve_project_share_of_a_written_budget_holds_for_all_anonymous_addresses(
    ledger: Ledger,
) -> None:
    window = Window(9, 6 * HOUR, every_address=True)
    assert isinstance(reserve_one(ledger, ADDRESS, window, "team/a"), Reservation)
    assert isinstance(reserve_one(ledger, OTHER, window, "team/a"), Reservation)
    refusal = reserve_one(ledger, ADDRESS, window, "team/a")
    assert isinstance(refusal, Refusal)
    assert refusal.kind == "project-share"


@pytest.mark.parametrize("every_address", [False, True])
def test_reserve_gets_in_flight_from_another_address_count_against_what_is_reported(
    ledger: Ledger, every_address: bool
) -> None:
    # The HEAD left by one address of a NAT pool; the GETs may leave by any of them.
    window = Window(100, 6 * HOUR, 2, every_address)
    step = ("r", "docker.io", ADDRESS, "a", "d", 3, 3)
    assert isinstance(ledger.reserve(*step, window, at(0)), Reservation)
    step = ("r", "docker.io", OTHER, "a", "d", 3, 3)
    refusal = ledger.reserve(*step, window, at(2), (7, at(1)))
    assert isinstance(refusal, Refusal)
    assert (refusal.kind, refusal.in_flight) == ("upstream-quota", True)
    assert isinstance(ledger.reserve(*step, window, at(2), (8, at(1))), Reservation)
