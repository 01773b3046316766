"""The ledger: what was spent and what is remembered, durable and shared by threads and processes.

All SQL of the project is here and in `ci_usage`. Statements are portable (named parameters, INSERT
… ON CONFLICT): SQLite and PostgreSQL both run them. What only one of them has is in `sqlite` and
`postgresql`.

Ledger time. Ages are differences of one clock that never goes back: seconds that the boot clock
counted, plus, from the last moment that was noted in one boot to the first in the next, what the
wall clock says has passed, at least nothing. So within a boot the wall clock may be set at will;
across boots it is believed; and a row from the future starts to age at the first moment of the new
boot (DESIGN.md, 1.7). Where there is a server, several hosts write, and its clock alone counts.
"""

from __future__ import annotations

import json
import math
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

from prewarm.core.budget import (
    ANONYMOUS,
    Moment,
    Spend,
    Window,
    is_anonymous,
    next_free,
    upstream_allows,
)
from prewarm.core.errors import Failure, UsageError
from prewarm.core.manifest import Descriptor, Manifest
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
    SeenTag,
    TagMove,
    Told,
    Totals,
    Written,
)
from prewarm.core.shares import Shares, only_project, own_window
from prewarm.state.ci_usage import DEMAND_TABLES, SCHEMA, SCHEMA_DEMANDS, SCHEMA_PARTS, Uses
from prewarm.state.database import Database
from prewarm.state.sqlite import SqliteDatabase, opening
from prewarm.state.tenant import Site

MANIFESTS_MAX: Final = 256 << 20
"""Bytes of all kept manifests: a few times as many as those of 20,000 images have."""
MANIFEST_LIMIT: Final = 4 << 20
"""Bytes of a manifest, uncompressed: no registry gives more."""
_PACKED_FROM: Final = 1024
_ACCOUNT: Final = """(account = :account
    OR (account = 'anonymous' AND :account LIKE 'anonymous@%')
    OR (account LIKE 'anonymous@%' AND :account = 'anonymous'))"""
"""Rows of an account. Anonymous pulls count by the address that upstream reports; those of an
address that it has not reported may be of any, so they count for each. As `anonymous`, the rows of
every address."""

_WRITTEN: Final = """
    INSERT INTO written (mirror, image, repository, tag, digest, upstream_digest, platforms, bytes,
                         wall, wanted)
    VALUES (:mirror, :image, :repository, :tag, :digest, :upstream_digest, :platforms, :bytes,
            :wall, :wall)
    ON CONFLICT (mirror, image) DO UPDATE SET
        repository = excluded.repository, tag = excluded.tag, digest = excluded.digest,
        upstream_digest = excluded.upstream_digest, platforms = excluded.platforms,
        bytes = excluded.bytes, wall = excluded.wall"""
_PUSHED: Final = """
    INSERT INTO pushed (mirror, repository, digest, since)
    VALUES (:mirror, :repository, :digest, :since)
    ON CONFLICT (mirror, repository, digest) DO UPDATE SET since = excluded.since"""

_Row = TypeVar("_Row")
_OnMirror = TypeVar("_OnMirror", "Written", "Known")

MIGRATIONS: Final[tuple[tuple[int, tuple[str, ...]], ...]] = (
    (
        1,
        (
            # `base` + a boot clock = ledger time; `wall` and `boot` are the last moment noted.
            """CREATE TABLE boots (
                boot_id TEXT PRIMARY KEY, base DOUBLE PRECISION NOT NULL,
                wall DOUBLE PRECISION NOT NULL, boot DOUBLE PRECISION NOT NULL)""",
            # `reserved` and `settled` in ledger time; a row not settled is in flight.
            """CREATE TABLE pulls (
                id TEXT PRIMARY KEY, run TEXT NOT NULL, registry TEXT NOT NULL,
                account TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL,
                pulls BIGINT NOT NULL, gets BIGINT NOT NULL,
                wall DOUBLE PRECISION NOT NULL, boot_id TEXT NOT NULL,
                boot DOUBLE PRECISION NOT NULL, reserved DOUBLE PRECISION NOT NULL,
                settled DOUBLE PRECISION, outcome TEXT)""",
            "CREATE INDEX pulls_window ON pulls (registry, account, settled)",
        ),
    ),
    (
        2,
        (
            """CREATE TABLE manifests (
                digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, content BLOB NOT NULL,
                used DOUBLE PRECISION NOT NULL)""",
            """CREATE TABLE tags (
                registry TEXT NOT NULL, repository TEXT NOT NULL, tag TEXT NOT NULL,
                digest TEXT NOT NULL, media_type TEXT NOT NULL, size BIGINT NOT NULL,
                checked DOUBLE PRECISION NOT NULL, changed DOUBLE PRECISION NOT NULL,
                moves BIGINT NOT NULL, PRIMARY KEY (registry, repository, tag))""",
            """CREATE TABLE written (
                mirror TEXT NOT NULL, image TEXT NOT NULL, repository TEXT NOT NULL, tag TEXT,
                digest TEXT NOT NULL, upstream_digest TEXT NOT NULL, platforms TEXT NOT NULL,
                bytes BIGINT NOT NULL, wall DOUBLE PRECISION NOT NULL,
                PRIMARY KEY (mirror, image))""",
            """CREATE TABLE copies (
                run TEXT NOT NULL, image TEXT NOT NULL, action TEXT NOT NULL, code TEXT NOT NULL,
                pulls BIGINT NOT NULL, gets BIGINT NOT NULL, bytes BIGINT NOT NULL,
                seconds DOUBLE PRECISION NOT NULL, wall DOUBLE PRECISION NOT NULL,
                PRIMARY KEY (run, image))""",
            "CREATE INDEX copies_image ON copies (image, wall)",
            """CREATE TABLE states (
                image TEXT NOT NULL, mirror TEXT NOT NULL, state TEXT NOT NULL, digest TEXT,
                wall DOUBLE PRECISION NOT NULL, PRIMARY KEY (image, mirror))""",
            """CREATE TABLE runs (
                id TEXT PRIMARY KEY, started DOUBLE PRECISION NOT NULL,
                finished DOUBLE PRECISION, exit_code BIGINT, report TEXT)""",
        ),
    ),
    (3, SCHEMA),
    (
        4,
        (
            """CREATE TABLE visibility (
                registry TEXT NOT NULL, repository TEXT NOT NULL, public BIGINT NOT NULL,
                checked DOUBLE PRECISION NOT NULL, PRIMARY KEY (registry, repository))""",
        ),
    ),
    (5, SCHEMA_PARTS),
    (
        6,
        (
            # The project that alone uses the image: its share of a window is limited.
            "ALTER TABLE pulls ADD COLUMN project TEXT",
            # `mirror` is '' for all mirrors together.
            """CREATE TABLE coverage (
                at DOUBLE PRECISION NOT NULL, mirror TEXT NOT NULL, served BIGINT NOT NULL,
                total BIGINT NOT NULL, PRIMARY KEY (at, mirror))""",
            """CREATE TABLE tag_moves (
                registry TEXT NOT NULL, repository TEXT NOT NULL, tag TEXT NOT NULL,
                digest TEXT NOT NULL, at DOUBLE PRECISION NOT NULL,
                PRIMARY KEY (registry, repository, tag, at))""",
        ),
    ),
    (
        7,
        (
            # `since`: when it was pushed, or lost the last tag that prewarm had put on it.
            """CREATE TABLE pushed (
                mirror TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL,
                since DOUBLE PRECISION NOT NULL, PRIMARY KEY (mirror, repository, digest))""",
            """INSERT INTO pushed (mirror, repository, digest, since)
               SELECT mirror, repository, digest, MAX(wall) FROM written
               GROUP BY mirror, repository, digest""",
            "ALTER TABLE written ADD COLUMN wanted DOUBLE PRECISION NOT NULL DEFAULT 0",
            """UPDATE written SET wanted = COALESCE(
                (SELECT MAX(copies.wall) FROM copies WHERE copies.image = written.image), wall)""",
        ),
    ),
    (
        8,
        (
            # Manifests that a pull-through mirror fetched for us; `since` is in epoch seconds.
            """CREATE TABLE cached (
                mirror TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL,
                since DOUBLE PRECISION NOT NULL, PRIMARY KEY (mirror, repository, digest))""",
        ),
    ),
    (
        9,
        (
            # Counters: what `copies` held of runs that are over, kept when its rows are forgotten;
            # of `pulls` only what is forgotten.
            """CREATE TABLE totals (
                name TEXT NOT NULL, label TEXT NOT NULL, value BIGINT NOT NULL,
                PRIMARY KEY (name, label))""",
            """INSERT INTO totals (name, label, value)
               SELECT 'actions', action, COUNT(*) FROM copies GROUP BY action""",
            """INSERT INTO totals (name, label, value)
               SELECT 'bytes', '', COALESCE(SUM(bytes), 0) FROM copies""",
            # `told`: what the last notice of the event was about, as JSON.
            """CREATE TABLE notices (
                event TEXT NOT NULL, channel TEXT NOT NULL, told TEXT NOT NULL,
                at DOUBLE PRECISION NOT NULL, PRIMARY KEY (event, channel))""",
            # 0: a run of named images alone.
            "ALTER TABLE runs ADD COLUMN whole BIGINT NOT NULL DEFAULT 1",
            # Epoch seconds; infinite: it never expires.
            "ALTER TABLE scans ADD COLUMN token_expiry DOUBLE PRECISION",
        ),
    ),
    (
        10,
        (
            # Empty where no other host shares the state.
            "ALTER TABLE runs ADD COLUMN host TEXT NOT NULL DEFAULT ''",
            "ALTER TABLE pulls ADD COLUMN host TEXT NOT NULL DEFAULT ''",
            "CREATE INDEX pulls_in_flight ON pulls (reserved) WHERE settled IS NULL",
            # What a sync of each host wanted, and when one did last.
            """CREATE TABLE wants (
                mirror TEXT NOT NULL, image TEXT NOT NULL, host TEXT NOT NULL,
                at DOUBLE PRECISION NOT NULL, PRIMARY KEY (mirror, image, host))""",
            *SCHEMA_DEMANDS,
        ),
    ),
    (
        11,
        (
            # The bytes that were copied to the mirrors, and whose shares they are charged to. From
            # here on the content of `manifests` may be compressed.
            """CREATE TABLE filled (
                payers TEXT NOT NULL, bytes BIGINT NOT NULL, at DOUBLE PRECISION NOT NULL)""",
        ),
    ),
)
"""The schema's history, each step applied once, in order, in a transaction of its own."""


class Ledger(Uses):
    """The state in a database. Safe to share between threads; processes share the database.

    A failure of the database (a full disk, a damaged file) is a PrewarmError, `state` its code.
    """

    lost: Failure | None = None
    """Why the server of a shared state cannot be reached any more; None while it can."""

    def __init__(self, database: Database, site: Site | None = None) -> None:
        """`site`: whose part of a shared state is read and written; None where it has one host."""
        self._database = database
        self._site = site
        self._host = site.host if site is not None else ""
        self._demand = site.demand if site is not None else ""

    @classmethod
    def open(cls, path: Path, read_only: bool = False) -> Ledger:
        """Open the state in a file, made or brought up to this version's schema where need be.

        With `read_only` the file is not changed: what is opened is a copy of it in memory, so that
        a dry run may note what it likes. UsageError for a state that is missing then, or newer
        than this prewarm, damaged, not a state at all, or that cannot be opened.
        """
        if read_only and not path.exists():
            raise UsageError("no-state", f"state {path} does not exist", "run prewarm sync first")
        with opening(path):
            database = SqliteDatabase.copy(path) if read_only else SqliteDatabase.open(path)
            try:
                migrate(database)
                if not read_only:
                    database.use_wal()
            except BaseException:
                database.close()
                raise
        return cls(database)

    @classmethod
    def memory(cls) -> Ledger:
        """Return an empty ledger that is forgotten when it is closed."""
        database = SqliteDatabase.memory()
        migrate(database)
        return cls(database)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def scanning(self) -> Iterator[bool]:
        """Yield whether nobody else scans for the same demand: with one host, its lock tells."""
        yield True

    def together(self, work: Callable[[], None]) -> None:
        """Note much at once, at less cost where there is a server: it may be done twice there."""
        work()

    # Reservations

    def reserve(
        self,
        run: str,
        registry: str,
        account: str,
        repository: str,
        digest: str,
        pulls: int,
        gets: int,
        window: Window,
        now: Moment,
        reported: tuple[int, Moment] | None = None,
        payers: tuple[str, ...] = (),
        share: int | None = None,
    ) -> Reservation | Refusal:
        """Reserve pulls and GETs before a step starts, in one transaction with the sums.

        `reported` is what upstream says remains, and the moment before the HEAD that said so was
        sent. The pulls are charged to the `payers`; a project that is the only one may have
        `share` of a window, or one image. Nothing is charged where it is refused. A written budget
        holds for all anonymous addresses together (`Window.every_address`).
        """
        with self._transaction(durable=True, alone=f"pulls from {registry}"):
            at = self._note_moment(now)
            if self._database.clock is not None:
                self._abandon(at, at - STEP_SECONDS)
            account_rows = {
                "registry": registry,
                "account": window.counted_account(account),
                "own": "",
            }
            refusal = (
                self._own_refusal(account_rows, pulls, window, at)
                or self._share_refusal(account_rows, pulls, window, at, payers, share)
                or self._upstream_refusal(account_rows, gets, window, reported)
            )
            if refusal is not None:
                return refusal
            reservation = Reservation(uuid.uuid4().hex, registry, account)
            self._database.execute(
                """INSERT INTO pulls (id, run, registry, account, repository, digest, pulls, gets,
                                      wall, boot_id, boot, reserved, project, host)
                   VALUES (:id, :run, :registry, :account, :repository, :digest, :pulls, :gets,
                           :wall, :boot_id, :boot, :reserved, :project, :host)""",
                {
                    "host": self._host,
                    "id": reservation.id,
                    "run": run,
                    "registry": registry,
                    "account": account,
                    "repository": repository,
                    "digest": digest,
                    "pulls": pulls,
                    "gets": gets,
                    "wall": now.wall,
                    "boot_id": now.boot_id,
                    "boot": now.boot,
                    "reserved": at,
                    "project": self._paying(account_rows, pulls, window, at, payers, share),
                },
            )
            return reservation

    def extend(
        self,
        reservation: Reservation,
        pulls: int,
        gets: int,
        window: Window,
        now: Moment,
        reported: tuple[int, Moment] | None = None,
        payers: tuple[str, ...] = (),
        share: int | None = None,
    ) -> Literal[True] | Refusal:
        """Change a reservation to these totals, as when an index has told its children.

        What is lowered needs no room; what is raised is checked as a whole, the GETs already sent
        included. Where it is refused the reservation stays as it was. Else as for `reserve`.
        """
        with self._transaction(durable=True, alone=f"pulls from {reservation.registry}"):
            at = self._note_moment(now)
            held_pulls, held_gets = self._held(reservation)
            account_rows = {
                "registry": reservation.registry,
                "account": window.counted_account(reservation.account),
                "own": reservation.id,
            }
            refusal = None
            if pulls > held_pulls:
                refusal = self._own_refusal(account_rows, pulls, window, at) or self._share_refusal(
                    account_rows, pulls, window, at, payers, share
                )
            if gets > held_gets and refusal is None:
                refusal = self._upstream_refusal(account_rows, gets, window, reported)
            if refusal is not None:
                return refusal
            self._database.execute(
                """UPDATE pulls SET pulls = :pulls, gets = :gets, reserved = :at, settled = NULL,
                          outcome = NULL
                   WHERE id = :id""",
                {"pulls": pulls, "gets": gets, "at": at, "id": reservation.id},
            )
            return True

    def settle(
        self, reservation: Reservation, pulls: int, gets: int, outcome: str, now: Moment
    ) -> None:
        """Charge what a step really spent; `now` is a moment after its last GET was answered."""
        with self._transaction():
            at = self._note_moment(now)
            self._held(reservation)
            self._database.execute(
                """UPDATE pulls SET pulls = :pulls, gets = :gets, outcome = :outcome, settled = :at
                   WHERE id = :id""",
                {"pulls": pulls, "gets": gets, "outcome": outcome, "at": at, "id": reservation.id},
            )

    def release(self, reservation: Reservation, now: Moment) -> None:
        """Give a reservation back: no GET of its step was answered, so nothing was spent."""
        with self._transaction():
            self._note_moment(now)
            self._held(reservation)
            self._database.execute("DELETE FROM pulls WHERE id = :id", {"id": reservation.id})

    def recover(self, now: Moment) -> int:
        """Settle what dead processes left in flight, as spent, and return how many steps it was.

        To be called with the lock of the state held: whatever is in flight is then nobody's. Where
        several hosts share the state there is no such lock, and only those are taken for dead that
        have not extended their reservation for STEP_SECONDS. Their GETs ended with the process,
        and no later than a step may send them.
        """
        with self._transaction(durable=True):
            at = self._note_moment(now)
            alone = self._database.clock is None
            return self._abandon(at, math.inf if alone else at - STEP_SECONDS)

    def _abandon(self, at: float, before: float) -> int:
        """Settle the steps in flight that were reserved, or last extended, before then."""
        return self._database.execute(
            """UPDATE pulls SET outcome = 'abandoned',
                      settled = CASE WHEN reserved + :step < :at THEN reserved + :step
                                     ELSE :at END
               WHERE settled IS NULL AND reserved < :before""",
            {"step": STEP_SECONDS, "at": at, "before": before},
        ).rowcount

    def spends(self, registry: str, account: str, now: Moment, seconds: int) -> tuple[Spend, ...]:
        """Return what the account has in flight or settled in the last `seconds`."""
        with self._reading():
            return self._spends(
                {"registry": registry, "account": account, "own": ""}, self._time(now), seconds
            )

    def accounts(self, registry: str) -> tuple[str, ...]:
        """Return the accounts of a registry that the ledger has charged."""
        query = "SELECT DISTINCT account FROM pulls WHERE registry = :registry ORDER BY account"
        return self._rows(lambda account: str(account), query, {"registry": registry})

    def _own_refusal(
        self, account_rows: dict[str, str], pulls: int, window: Window, at: float
    ) -> Refusal | None:
        if window.capacity is None or pulls <= 0:
            return None
        (held,) = self._database.execute(
            f"""SELECT CAST(COALESCE(SUM(pulls), 0) AS BIGINT) FROM pulls
               WHERE registry = :registry AND {_ACCOUNT} AND id <> :own
                 AND (settled IS NULL OR settled > :since)""",
            {**account_rows, "since": at - window.seconds},
        ).fetchone()
        if held + pulls <= window.capacity:
            return None
        spends = self._spends(account_rows, at, window.seconds)
        in_flight = any(spend.in_flight for spend in spends)
        return Refusal("budget", next_free(spends, window, pulls), in_flight)

    def _share_refusal(
        self,
        account_rows: dict[str, str],
        pulls: int,
        window: Window,
        at: float,
        payers: tuple[str, ...],
        share: int | None,
    ) -> Refusal | None:
        project = only_project(payers)
        if project is None or share is None or window.capacity is None or pulls <= 0:
            return None
        spends = self._spends(account_rows, at, window.seconds)
        shares = Shares(share, window.capacity, spends)
        if shares.exceeded(payers, pulls) is None:
            return None
        own, its_window, parts = own_window(project, share, spends, window.seconds)
        until = next_free(own, its_window, min(pulls, share) * parts)
        return Refusal("project-share", until, any(spend.in_flight for spend in own))

    def _paying(
        self,
        account_rows: dict[str, str],
        pulls: int,
        window: Window,
        at: float,
        payers: tuple[str, ...],
        share: int | None,
    ) -> str | None:
        """Return those who pay, as the ledger keeps them: a line each."""
        if len(payers) > 1 and share is not None and window.capacity is not None:
            spends = self._spends(account_rows, at, window.seconds)
            shares = Shares(share, window.capacity, spends)
            payers = shares.able(payers, pulls) or payers
        return "\n".join(payers) or None

    def _upstream_refusal(
        self,
        account_rows: dict[str, str],
        gets: int,
        window: Window,
        reported: tuple[int, Moment] | None,
    ) -> Refusal | None:
        if reported is None or gets <= 0:
            return None
        left, head_sent = reported
        if is_anonymous(account_rows["account"]):
            # A GET may leave from another address than the HEAD did (NAT pool, IPv6).
            account_rows = {**account_rows, "account": ANONYMOUS}
        in_flight, settled_since = self._database.execute(
            f"""SELECT CAST(COALESCE(SUM(CASE WHEN settled IS NULL THEN gets ELSE 0 END), 0)
                           AS BIGINT),
                      CAST(COALESCE(SUM(CASE WHEN settled IS NULL THEN 0 ELSE gets END), 0)
                           AS BIGINT)
               FROM pulls
               WHERE registry = :registry AND {_ACCOUNT} AND id <> :own
                 AND (settled IS NULL OR settled >= :head_sent)""",
            {**account_rows, "head_sent": self._time(head_sent)},
        ).fetchone()
        if upstream_allows(left, in_flight + settled_since, gets, window.reserve):
            return None
        return Refusal("upstream-quota", None, in_flight > 0, settled_since > 0)

    def _spends(self, account_rows: dict[str, str], at: float, seconds: int) -> tuple[Spend, ...]:
        rows = self._database.execute(
            f"""SELECT settled, pulls, project FROM pulls
               WHERE registry = :registry AND {_ACCOUNT} AND id <> :own
                 AND (settled IS NULL OR settled > :since)
               ORDER BY reserved""",
            {**account_rows, "since": at - seconds},
        )
        return tuple(
            Spend(0.0, pulls, in_flight=True, payers=_payers(text))
            if settled is None
            else Spend(max(0.0, at - settled), pulls, payers=_payers(text))
            for settled, pulls, text in rows
        )

    def _held(self, reservation: Reservation) -> tuple[int, int]:
        """Return the pulls and GETs of a step in flight; LookupError where it has been settled.

        A step that another host took for dead lives on: but nothing is kept for it any more, so
        that whatever it wants has to be found anew.
        """
        row = self._database.execute(
            """SELECT pulls, gets, settled FROM pulls
               WHERE id = :id AND (settled IS NULL OR outcome = 'abandoned')""",
            {"id": reservation.id},
        ).fetchone()
        if row is None:
            raise LookupError(f"reservation {reservation.id} is not in flight")
        return (int(row[0]), int(row[1])) if row[2] is None else (0, 0)

    # Ledger time

    def _note_moment(self, now: Moment) -> float:
        """Return the moment in ledger time, and remember it as the last of its boot.

        Where there is a server, what its clock shows now.
        """
        if self._database.clock is not None:
            return self._database.clock.now()
        base = self._base(now)
        self._database.execute(
            """INSERT INTO boots (boot_id, base, wall, boot) VALUES (:boot_id, :base, :wall, :boot)
               ON CONFLICT (boot_id) DO UPDATE SET wall = excluded.wall, boot = excluded.boot
               WHERE excluded.boot >= boots.boot""",
            {"boot_id": now.boot_id, "base": base, "wall": now.wall, "boot": now.boot},
        )
        return base + now.boot

    def _time(self, moment: Moment) -> float:
        if self._database.clock is not None:
            return self._database.clock.at(moment)
        return self._base(moment) + moment.boot

    def _base(self, moment: Moment) -> float:
        """Return the ledger time at which the moment's boot began."""
        row = self._database.execute(
            "SELECT base FROM boots WHERE boot_id = :boot_id", {"boot_id": moment.boot_id}
        ).fetchone()
        if row is not None:
            return float(row[0])
        last = self._database.execute(
            "SELECT base + boot, wall FROM boots ORDER BY base + boot DESC LIMIT 1"
        ).fetchone()
        if last is None:
            return 0.0
        return float(last[0] + max(0.0, moment.wall - last[1]) - moment.boot)

    # Manifests and tags

    def keep_manifest(self, manifest: Manifest, now: Moment) -> None:
        """Keep a manifest by its digest, so that it is never fetched again."""
        self._write(
            """INSERT INTO manifests (digest, media_type, content, used)
               VALUES (:digest, :media_type, :content, :used)
               ON CONFLICT (digest) DO UPDATE SET used = excluded.used,
                   media_type = excluded.media_type, content = excluded.content""",
            digest=manifest.digest,
            media_type=manifest.media_type,
            content=_packed(manifest.content),
            used=now.wall,
        )

    def manifest(self, digest: str) -> Manifest | None:
        """Return a kept manifest, or None.

        Bytes that no longer have their digest (a damaged disk), or that an older version kept and
        this one refuses to read, are as good as not kept.
        """
        found = self._rows(
            lambda media_type, content: Manifest(media_type, _unpacked(content)),
            "SELECT media_type, content FROM manifests WHERE digest = :digest",
            {"digest": digest},
        )
        if not found or found[0].digest != digest or not found[0].is_readable:
            return None
        return found[0]

    def use_manifests(self, digests: Iterable[str], now: Moment) -> None:
        """Note that these manifests, where they are kept, are still in use."""
        with self._transaction():
            self._database.executemany(
                "UPDATE manifests SET used = :used WHERE digest = :digest",
                # In one order, lest two hosts wait for each other.
                [{"used": now.wall, "digest": digest} for digest in sorted(digests)],
            )

    def forget_manifests(self, unused_since: float) -> int:
        """Forget the manifests last used before this time (epoch seconds); return how many."""
        return self._write("DELETE FROM manifests WHERE used < :before", before=unused_since)

    def shrink_manifests(self, now: float, most: int = MANIFESTS_MAX) -> int:
        """Forget manifests until they have at most so many bytes, and return how many.

        Those that no sync used for two days go first, the oldest first; then the largest, so that
        a few giants cost no other its place.
        """
        query = "SELECT digest, used, LENGTH(content) FROM manifests"
        kept = self._rows(lambda *values: values, query, {})
        held = sum(size for _, _, size in kept)
        recent = now - 2 * 86400.0
        gone = []
        for digest, _, size in sorted(
            kept, key=lambda one: (one[1] >= recent, -one[2] if one[1] >= recent else one[1])
        ):
            if held <= most:
                break
            held -= size
            gone.append({"digest": digest})
        if gone:
            with self._transaction():
                self._database.executemany("DELETE FROM manifests WHERE digest = :digest", gone)
        return len(gone)

    def note_filled(self, payers: tuple[str, ...], size: int, now: Moment) -> None:
        """Note that bytes were copied to the mirrors, and whose shares they are charged to."""
        with self._transaction():
            at = self._note_moment(now)
            self._database.execute(
                "INSERT INTO filled (payers, bytes, at) VALUES (:payers, :bytes, :at)",
                {"payers": "\n".join(payers), "bytes": size, "at": at},
            )
            # Nothing asks for more than a window of it.
            self._database.execute("DELETE FROM filled WHERE at < :at", {"at": at - 86400})

    def filled(self, now: Moment, seconds: int) -> tuple[Spend, ...]:
        """Return the bytes that were copied in the last `seconds`."""
        with self._reading():
            at = self._time(now)
            rows = self._database.execute(
                "SELECT payers, bytes, at FROM filled WHERE at > :since", {"since": at - seconds}
            )
            return tuple(
                Spend(max(0.0, at - noted), int(size), payers=_payers(text))
                for text, size, noted in rows
            )

    def note_public(self, registry: str, repository: str, public: bool, now: Moment) -> None:
        """Remember whether everybody can see a repository."""
        self._write(
            """INSERT INTO visibility (registry, repository, public, checked)
               VALUES (:registry, :repository, :public, :checked)
               ON CONFLICT (registry, repository) DO UPDATE SET public = excluded.public,
                   checked = excluded.checked""",
            registry=registry,
            repository=repository,
            public=int(public),
            checked=now.wall,
        )

    def is_public(self, registry: str, repository: str, since: float) -> bool | None:
        """Return whether everybody could see a repository, None if not asked since then."""
        found = self._rows(
            bool,
            """SELECT public FROM visibility
               WHERE registry = :registry AND repository = :repository AND checked >= :since""",
            {"registry": registry, "repository": repository, "since": since},
        )
        return found[0] if found else None

    def note_tag(
        self, registry: str, repository: str, tag: str, descriptor: Descriptor, now: Moment
    ) -> None:
        """Remember what a tag upstream is now; a move (`TagMove`) where it was not so before."""
        values = {
            "registry": registry,
            "repository": repository,
            "tag": tag,
            "digest": descriptor.digest,
            "media_type": descriptor.media_type,
            "size": descriptor.size,
            "now": now.wall,
        }
        with self._transaction():
            self._database.execute(
                """INSERT INTO tag_moves (registry, repository, tag, digest, at)
                   SELECT :registry, :repository, :tag, :digest, :now WHERE NOT EXISTS (
                       SELECT 1 FROM tags WHERE registry = :registry
                       AND repository = :repository AND tag = :tag AND digest = :digest)
                   ON CONFLICT (registry, repository, tag, at) DO UPDATE SET
                       digest = excluded.digest""",
                values,
            )
            self._database.execute(
                """INSERT INTO tags (registry, repository, tag, digest, media_type, size, checked,
                                     changed, moves)
                   VALUES (:registry, :repository, :tag, :digest, :media_type, :size, :now, :now, 0)
                   ON CONFLICT (registry, repository, tag) DO UPDATE SET
                       changed = CASE WHEN tags.digest = excluded.digest THEN tags.changed
                                      ELSE excluded.changed END,
                       moves = tags.moves
                           + CASE WHEN tags.digest = excluded.digest THEN 0 ELSE 1 END,
                       digest = excluded.digest, media_type = excluded.media_type,
                       size = excluded.size, checked = excluded.checked""",
                values,
            )

    def tag_moves(self, since: float) -> tuple[TagMove, ...]:
        """Return what tags came to show since a time (epoch seconds), the oldest first.

        One that was seen before that time and has not moved since is not among them.
        """
        return self._rows(
            TagMove,
            """SELECT registry, repository, tag, digest, at FROM tag_moves WHERE at >= :since
               ORDER BY at, registry, repository, tag""",
            {"since": since},
        )

    def tag(self, registry: str, repository: str, tag: str) -> SeenTag | None:
        """Return what is remembered of a tag upstream."""

        def seen(digest: str, media_type: str, size: int, *times: Any) -> SeenTag:
            descriptor = Descriptor(media_type, digest, size)
            return SeenTag(registry, repository, tag, descriptor, *times)

        found = self._rows(
            seen,
            """SELECT digest, media_type, size, checked, changed, moves FROM tags
               WHERE registry = :registry AND repository = :repository AND tag = :tag""",
            {"registry": registry, "repository": repository, "tag": tag},
        )
        return found[0] if found else None

    # What is on the mirrors

    def note_written(
        self,
        mirror: str,
        image: str,
        repository: str,
        tag: str | None,
        digest: str,
        upstream_digest: str,
        platforms: str,
        size: int,
        now: Moment,
    ) -> None:
        """Remember that prewarm put an image of `size` bytes on a mirror: only that is pruned.

        What lay under its tag until now is remembered as pushed, so that it can be pruned, too.
        """
        values = {
            "mirror": self._name(mirror),
            "image": image,
            "repository": repository,
            "tag": tag,
            "digest": digest,
            "upstream_digest": upstream_digest,
            "platforms": platforms,
            "bytes": size,
            "wall": now.wall,
        }
        with self._transaction():
            before = self._database.execute(
                """SELECT digest FROM written
                   WHERE mirror = :mirror AND image = :image AND digest <> :digest""",
                values,
            ).fetchall()
            for one in {digest, *(found for (found,) in before)}:
                self._database.execute(_PUSHED, {**values, "digest": one, "since": now.wall})
            self._database.execute(_WRITTEN, values)

    def note_pushed(
        self, mirror: str, repository: str, digests: Iterable[str], since: float
    ) -> None:
        """Remember manifests, tagged or not, that are about to be pushed (epoch seconds)."""
        where = {"mirror": self._name(mirror), "repository": repository, "since": since}
        with self._transaction():
            self._database.executemany(_PUSHED, [{**where, "digest": one} for one in digests])

    def pushed(self, mirror: str) -> tuple[Pushed, ...]:
        """Return the manifests that prewarm pushed to the mirror, those that failed as well."""
        return self._rows(
            Pushed,
            """SELECT repository, digest, since FROM pushed WHERE mirror = :mirror
               ORDER BY repository, digest""",
            {"mirror": self._name(mirror)},
        )

    def forget_pushed(self, mirror: str, repository: str, digests: Iterable[str]) -> None:
        """Forget manifests that are no longer on the mirror."""
        where = {"mirror": self._name(mirror), "repository": repository}
        with self._transaction():
            self._database.executemany(
                """DELETE FROM pushed
                   WHERE mirror = :mirror AND repository = :repository AND digest = :digest""",
                [{**where, "digest": one} for one in digests],
            )

    def note_cached(self, mirror: str, repository: str, digest: str, now: Moment) -> None:
        """Remember that a pull-through mirror has fetched a manifest, at the latest now."""
        self._write(
            """INSERT INTO cached (mirror, repository, digest, since)
               VALUES (:mirror, :repository, :digest, :since)
               ON CONFLICT (mirror, repository, digest) DO UPDATE SET since = excluded.since""",
            mirror=self._name(mirror),
            repository=repository,
            digest=digest,
            since=now.wall,
        )

    def cached(self, mirror: str, repository: str) -> dict[str, float]:
        """Return when a pull-through mirror fetched the manifests of a repository, by digest.

        In epoch seconds. Those that it has forgotten since are among them until they are forgotten
        here, too (`forget_cached`).
        """
        rows: tuple[tuple[str, float], ...] = self._rows(
            lambda digest, since: (str(digest), float(since)),
            "SELECT digest, since FROM cached WHERE mirror = :mirror AND repository = :repository",
            {"mirror": self._name(mirror), "repository": repository},
        )
        return dict(rows)

    def forget_cached(self, before: float) -> int:
        """Forget what was fetched before this time (epoch seconds); return how many."""
        return self._write("DELETE FROM cached WHERE since < :before", before=before)

    def note_wanted(self, images: Iterable[str], now: Moment) -> None:
        """Note that a sync wants these images, on every mirror of the site where they lie."""
        wanted = sorted(set(images))
        with self._transaction():
            written = self._database.execute("SELECT DISTINCT mirror FROM written").fetchall()
            mirrors = sorted(mirror for (mirror,) in written if self._sees(mirror))
            # By mirror too, as the table's index needs it.
            rows = [
                {"mirror": mirror, "image": image, "now": now.wall, "host": self._host}
                for mirror in mirrors
                for image in wanted
            ]
            self._database.executemany(
                "UPDATE written SET wanted = :now WHERE mirror = :mirror AND image = :image", rows
            )
            if self._site is not None:
                self._database.executemany(
                    """INSERT INTO wants (mirror, image, host, at)
                       VALUES (:mirror, :image, :host, :now)
                       ON CONFLICT (mirror, image, host) DO UPDATE SET at = excluded.at""",
                    rows,
                )

    def wanted_elsewhere(self, mirror: str, since: float) -> dict[str, str]:
        """Return the images on a mirror that another host wanted since then, with such a host."""
        found = self._rows(
            lambda image, host: (str(image), str(host)),
            """SELECT image, MIN(host) FROM wants
               WHERE mirror = :mirror AND host <> :host AND at >= :since GROUP BY image""",
            {"mirror": self._name(mirror), "host": self._host, "since": since},
        )
        return dict(found)

    def written(self, mirror: str | None = None, image: str | None = None) -> tuple[Written, ...]:
        """Return what prewarm put on the mirror, of the image; None means any of the site."""
        name = None if mirror is None else self._name(mirror)
        found = self._rows(
            Written,
            """SELECT mirror, image, repository, tag, digest, upstream_digest, platforms, bytes,
                      wall, wanted
               FROM written
               WHERE mirror = COALESCE(:mirror, mirror) AND image = COALESCE(:image, image)
               ORDER BY mirror, image""",
            {"mirror": name, "image": image},
        )
        return self._seen(found)

    def forget_written(self, mirror: str, image: str) -> None:
        """Forget an image that is no longer on the mirror, and its state there."""
        with self._transaction():
            parameters = {"mirror": self._name(mirror), "image": image}
            for table in ("written", "states", "wants"):
                self._database.execute(
                    f"DELETE FROM {table} WHERE mirror = :mirror AND image = :image", parameters
                )

    def note_state(
        self, image: str, mirror: str, state: str, digest: str | None, now: Moment
    ) -> None:
        """Remember the state of an image on a mirror, for when there is no network."""
        self._write(
            """INSERT INTO states (image, mirror, state, digest, wall)
               VALUES (:image, :mirror, :state, :digest, :wall)
               ON CONFLICT (image, mirror) DO UPDATE SET state = excluded.state,
                   digest = excluded.digest, wall = excluded.wall""",
            image=image,
            mirror=self._name(mirror),
            state=state,
            digest=digest,
            wall=now.wall,
        )

    def states(self) -> tuple[Known, ...]:
        """Return the last known state of every image on every mirror of the site."""
        query = "SELECT image, mirror, state, digest, wall FROM states ORDER BY image, mirror"
        return self._seen(self._rows(Known, query, {}))

    def forget_states(self, before: float) -> int:
        """Forget the states last noted before this time (epoch seconds): nobody wants those."""
        if self._site is None:
            return self._write("DELETE FROM states WHERE wall < :before", before=before)
        return sum(
            self._write(
                "DELETE FROM states WHERE mirror = :mirror AND wall < :before",
                mirror=mirror,
                before=before,
            )
            for mirror in self._site.mirrors
        )

    def note_coverage(self, mirror: str, served: int, total: int, now: Moment) -> None:
        """Remember how many of CI's uses a mirror serves now; all mirrors together are ''."""
        self._write(
            """INSERT INTO coverage (at, mirror, served, total)
               VALUES (:at, :mirror, :served, :total)
               ON CONFLICT (at, mirror) DO UPDATE SET served = excluded.served,
                   total = excluded.total""",
            at=now.wall,
            mirror=self._name(mirror),
            served=served,
            total=total,
        )

    def covered(self, since: float, mirror: str = "") -> tuple[Covered, ...]:
        """Return the coverage noted since a time (epoch seconds), the oldest first."""
        return self._rows(
            lambda at, served, total: Covered(at, mirror, served, total),
            """SELECT at, served, total FROM coverage
               WHERE at >= :since AND mirror = :mirror ORDER BY at""",
            {"since": since, "mirror": self._name(mirror)},
        )

    def _name(self, mirror: str) -> str:
        """Return what the state calls a mirror; the one place where a host's own are told apart."""
        return mirror if self._site is None else self._site.name_of(mirror)

    def _sees(self, name: str) -> bool:
        return self._site is None or name in self._site.mirrors

    def _seen(self, rows: tuple[_OnMirror, ...]) -> tuple[_OnMirror, ...]:
        """Return the rows of the site's mirrors, under the URLs that the site knows these by."""
        if self._site is None:
            return rows
        urls = self._site.mirrors
        return tuple(replace(row, mirror=urls[row.mirror]) for row in rows if row.mirror in urls)

    # Runs and what they did

    def start_run(self, now: Moment) -> str:
        """Record that a run starts and return its id, which sorts by time."""
        started = datetime.fromtimestamp(now.wall, UTC).strftime("%Y%m%dT%H%M%SZ")
        run = f"{started}-{uuid.uuid4().hex[:8]}"
        self._write(
            """INSERT INTO runs (id, started, host) VALUES (:id, :started, :host)
               ON CONFLICT (id) DO NOTHING""",
            id=run,
            started=now.wall,
            host=self._host,
        )
        return run

    def finish_run(
        self, run: str, exit_code: int, report: str, now: Moment, *, whole: bool = True
    ) -> None:
        """Record how a run ended, once; what it did counts in the totals from now on.

        `whole`: it was of all that is wanted, not only of images that a person named.
        """
        unfinished = "EXISTS (SELECT 1 FROM runs WHERE id = :run AND finished IS NULL)"
        with self._transaction():
            for name, columns, group in (
                ("actions", "action, COUNT(*)", "GROUP BY action"),
                ("bytes", "'', COALESCE(SUM(bytes), 0)", ""),
            ):
                self._database.execute(
                    f"""INSERT INTO totals (name, label, value)
                        SELECT :name, {columns} FROM copies
                        WHERE run = :run AND {unfinished} {group}
                        ON CONFLICT (name, label) DO UPDATE
                            SET value = totals.value + excluded.value""",
                    {"run": run, "name": self._own(name)},
                )
            self._database.execute(
                """UPDATE runs SET finished = :finished, exit_code = :exit_code, report = :report,
                                   whole = :whole
                   WHERE id = :id""",
                {
                    "finished": now.wall,
                    "exit_code": exit_code,
                    "report": report,
                    "whole": int(whole),
                    "id": run,
                },
            )

    def last_whole_run(self) -> Run | None:
        """Return the last run of all that is wanted that has finished."""
        found = self._rows(
            _run,
            """SELECT id, started, finished, exit_code, report, whole FROM runs
               WHERE finished IS NOT NULL AND whole = 1 AND host = :host
               ORDER BY started DESC, id DESC LIMIT 1""",
            {"host": self._host},
        )
        return found[0] if found else None

    def last_success(self) -> float | None:
        """Return when a run of all that is wanted ended with exit 0 last, in epoch seconds."""
        query = """SELECT MAX(finished) FROM runs
                   WHERE exit_code = 0 AND whole = 1 AND host = :host"""
        (found,) = self._rows(lambda at: at, query, {"host": self._host})
        return None if found is None else float(found)

    def totals(self) -> Totals:
        """Return the sums since the state was made, of this host where several share it."""
        with self._reading():
            sums = {
                (name, label): int(value)
                for name, label, value in self._database.execute("SELECT * FROM totals")
            }
            (settled,) = self._database.execute(
                """SELECT COALESCE(SUM(pulls), 0) FROM pulls
                   WHERE settled IS NOT NULL AND host = :host""",
                {"host": self._host},
            ).fetchone()
        actions, pulls, moved = (self._own(name) for name in ("actions", "pulls", "bytes"))
        return Totals(
            {label: value for (name, label), value in sums.items() if name == actions},
            sums.get((pulls, ""), 0) + int(settled),
            sums.get((moved, ""), 0),
        )

    def _own(self, text: str) -> str:
        return text if self._site is None else self._site.own(text)

    def told(self, event: str, channel: str) -> Told | None:
        """Return the last notice of an event that a channel took, while the event lasts."""
        found = self._rows(
            lambda about, at: Told(event, channel, frozenset(json.loads(about)), at),
            "SELECT told, at FROM notices WHERE event = :event AND channel = :channel",
            {"event": event, "channel": self._own(channel)},
        )
        return found[0] if found else None

    def note_told(self, told: Told) -> None:
        """Remember that a channel took a notice."""
        self._write(
            """INSERT INTO notices (event, channel, told, at)
               VALUES (:event, :channel, :told, :at)
               ON CONFLICT (event, channel) DO UPDATE SET told = excluded.told, at = excluded.at""",
            event=told.event,
            channel=self._own(told.channel),
            told=json.dumps(sorted(told.about)),
            at=told.at,
        )

    def forget_told(self, event: str, channel: str) -> None:
        """Forget the last notice of an event that is over."""
        self._write(
            "DELETE FROM notices WHERE event = :event AND channel = :channel",
            event=event,
            channel=self._own(channel),
        )

    def runs(self, newest: int, skip: int = 0) -> tuple[Run, ...]:
        """Return this host's newest runs but the first `skip`, the newest first."""
        return self._rows(
            _run,
            """SELECT id, started, finished, exit_code, report, whole FROM runs WHERE host = :host
               ORDER BY started DESC, id DESC LIMIT :newest OFFSET :skip""",
            {"newest": newest, "skip": skip, "host": self._host},
        )

    def note_copy(
        self,
        run: str,
        image: str,
        action: str,
        code: str,
        pulls: int,
        gets: int,
        size: int,
        seconds: float,
        now: Moment,
    ) -> None:
        """Record what a run did with an image, copied or not; `size` in bytes."""
        self._write(
            """INSERT INTO copies (run, image, action, code, pulls, gets, bytes, seconds, wall)
               VALUES (:run, :image, :action, :code, :pulls, :gets, :bytes, :seconds, :wall)
               ON CONFLICT (run, image) DO UPDATE SET action = excluded.action,
                   code = excluded.code, pulls = excluded.pulls, gets = excluded.gets,
                   bytes = excluded.bytes, seconds = excluded.seconds, wall = excluded.wall""",
            run=run,
            image=image,
            action=action,
            code=code,
            pulls=pulls,
            gets=gets,
            bytes=size,
            seconds=seconds,
            wall=now.wall,
        )

    def last_copy(self, image: str) -> Copied | None:
        """Return the last time that the image was copied from upstream."""
        found = self._rows(
            Copied,
            """SELECT run, image, action, code, pulls, gets, bytes, seconds, wall FROM copies
               WHERE image = :image AND action = 'copy' ORDER BY wall DESC, run DESC LIMIT 1""",
            {"image": image},
        )
        return found[0] if found else None

    def copies(self, run: str) -> tuple[Copied, ...]:
        """Return what a run did, by image."""
        return self._rows(
            Copied,
            """SELECT run, image, action, code, pulls, gets, bytes, seconds, wall FROM copies
               WHERE run = :run ORDER BY image""",
            {"run": run},
        )

    def tidy(self, keep: float, now: Moment) -> None:
        """Forget runs, copies and settled pulls older than `keep` seconds, more than any window.

        Of older runs than the REPORTS_KEPT newest only what they copied and how they ended is kept.

        Coverage and the moves of tags are kept for SERIES_SECONDS. Pulls go by ledger time: a wall
        clock that was set forward frees no budget.
        """
        # What two of one host find at once must not count twice in the totals.
        with self._transaction(alone="tidy"):
            host = {"host": self._host}
            pulls_before = host | {"before": self._note_moment(now) - keep}
            self._database.execute(
                """INSERT INTO totals (name, label, value)
                   SELECT :name, '', COALESCE(SUM(pulls), 0) FROM pulls
                   WHERE settled < :before AND host = :host
                   ON CONFLICT (name, label) DO UPDATE SET value = totals.value + excluded.value""",
                pulls_before | {"name": self._own("pulls")},
            )
            self._database.execute(
                "DELETE FROM pulls WHERE settled < :before AND host = :host", pulls_before
            )
            wall_before = {"before": now.wall - keep}
            self._database.execute("DELETE FROM copies WHERE wall < :before", wall_before)
            self._database.execute("DELETE FROM runs WHERE started < :before", wall_before)
            self._database.execute("DELETE FROM wants WHERE at < :before", wall_before)
            mine = "SELECT id FROM runs WHERE host = :host"
            newest = f"{mine} ORDER BY started DESC, id DESC LIMIT :kept"
            kept = host | {"kept": REPORTS_KEPT}
            self._database.execute(
                f"""UPDATE runs SET report = '{{}}'
                    WHERE report <> '{{}}' AND host = :host AND id NOT IN ({newest})""",
                kept,
            )
            self._database.execute(
                f"""DELETE FROM copies
                    WHERE action <> 'copy' AND run IN ({mine}) AND run NOT IN ({newest})""",
                kept,
            )
            series_before = {"before": now.wall - SERIES_SECONDS}
            self._database.execute("DELETE FROM coverage WHERE at < :before", series_before)
            self._database.execute("DELETE FROM tag_moves WHERE at < :before", series_before)

    # The database

    def _transaction(
        self, *, durable: bool = False, alone: str = ""
    ) -> AbstractContextManager[None]:
        return self._database.transaction(durable=durable, alone=alone)

    def _reading(self) -> AbstractContextManager[None]:
        return self._database.reading()

    def _write(self, statement: str, **parameters: object) -> int:
        return self._database.write(statement, parameters)

    def _rows(
        self, row: Callable[..., _Row], query: str, parameters: dict[str, Any]
    ) -> tuple[_Row, ...]:
        with self._reading():
            return tuple(row(*values) for values in self._database.execute(query, parameters))


def _run(
    name: str,
    started: float,
    finished: float | None,
    code: int | None,
    report: str | None,
    whole: int,
) -> Run:
    return Run(name, started, finished, code, report, bool(whole))


# The schema


def copy_state(source: Database, target: Database, site: Site) -> None:
    """Copy a site's view of a state into an empty database, and bring that up to date there.

    UsageError for a state of a newer prewarm, and for what is no state.
    """
    version = version_of(source)
    _refuse_newer(source, version)
    migrate(target, version)
    for table in sorted(target.tables() - {"schema_version"}):
        part = ""
        if version >= 10 and table in DEMAND_TABLES:
            part = "WHERE demand = :demand"
        elif version >= 10 and table == "runs":
            part = "WHERE host = :host"
        found = source.execute(
            f"SELECT * FROM {table} {part}", {"demand": site.demand, "host": site.host}
        )
        columns = [column[0] for column in found.description or ()]
        names = ", ".join(columns)
        values = ", ".join(f":{column}" for column in columns)
        with target.transaction():
            # Some that a new state has.
            target.execute(f"DELETE FROM {table}")
            target.executemany(
                f"INSERT INTO {table} ({names}) VALUES ({values})",
                (dict(zip(columns, row, strict=True)) for row in found),
            )
    migrate(target)


def migrate(database: Database, to: int | None = None) -> None:
    """Bring the schema up to date, or to a version; each step and its record in one transaction.

    UsageError for a state of a newer prewarm, and for what is no state.
    """
    newest = MIGRATIONS[-1][0] if to is None else to
    while (version := version_of(database)) < newest:
        with database.transaction(alone="schema"):
            # Another process may have been faster.
            if version_of(database) != version:
                continue
            number, statements = next(step for step in MIGRATIONS if step[0] > version)
            database.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY)"
            )
            for statement in statements:
                database.execute(statement)
            database.execute(
                "INSERT INTO schema_version (version) VALUES (:version)", {"version": number}
            )
    _refuse_newer(database, version)


def is_current(database: Database) -> bool:
    """Whether the schema is this version's; UsageError as for `version_of`."""
    return version_of(database) == MIGRATIONS[-1][0]


def _refuse_newer(database: Database, version: int) -> None:
    if version > MIGRATIONS[-1][0]:
        name = database.name
        raise UsageError("state", f"{name} was written by a newer prewarm", "upgrade prewarm")


def version_of(database: Database) -> int:
    """Return the schema's version, 0 for an empty state; UsageError for another program's."""
    tables = database.tables()
    if not tables:
        return 0
    if "schema_version" not in tables:
        raise UsageError(
            "state",
            f"{database.name} is a database of another program",
            "write another state: in images.yml",
        )
    (version,) = database.execute("SELECT COALESCE(MAX(version), 0) FROM schema_version").fetchone()
    return int(version)


def schema_version(path: Path) -> int:
    """Return the version of the schema that a state has; UsageError as for Ledger.open."""
    with opening(path):
        database = SqliteDatabase.read_only(path)
        try:
            return version_of(database)
        finally:
            database.close()


def _packed(content: bytes) -> bytes:
    """Return a manifest as it is kept: compressed, where that is worth it."""
    packed = len(content) > _PACKED_FROM or content[:1] == b"x"
    return zlib.compress(content) if packed else content


def _unpacked(content: bytes) -> bytes:
    """Return a kept manifest; no JSON begins as what zlib writes does."""
    if content[:1] != b"x":
        return content
    try:
        return zlib.decompressobj().decompress(content, MANIFEST_LIMIT + 1)
    except zlib.error:
        return b""


def _payers(text: str | None) -> tuple[str, ...]:
    return tuple(text.split("\n")) if text else ()
