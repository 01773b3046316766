"""Any life of a site: runs of several workers and processes, crashes at any step, lying clocks.

Looking, ranking, planning, buying and the ledger are the real ones; registries are in memory. The
model keeps true time and counts the manifest GETs that upstream sees.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from prewarm.core.budget import Limit, Moment, Window
from prewarm.core.errors import RegistryError
from prewarm.core.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, digest_of
from prewarm.core.platforms import Platform, Wanted
from prewarm.core.reference import Reference, parse
from prewarm.core.settings import Limits, Mirror, Upstream
from prewarm.core.shares import only_project
from prewarm.planning.demand import Want
from prewarm.planning.plan import Copy, Defer, Fail, Fresh, Quota, Skip, Step, Tag, plan
from prewarm.planning.ranking import ranked
from prewarm.registry.client import Head, Registry
from prewarm.state.ledger import Ledger
from prewarm.sync.fetch import EndedError, Purchasing
from prewarm.sync.inspect import MirrorSite, Observer, UpstreamSite
from prewarm.sync.task import Image
from tests.contract.stores import SqliteStore, Store, new_database

HUB, QUAY = "docker.io", "quay.io"
LENGTHS: Final = {HUB: 300, QUAY: 180}
SHARE: Final = 3
PLATFORMS: Final = tuple(Platform("linux", f"cpu{n}") for n in range(5))
NO_GET_HANGS_LONGER: Final = 60
"""Seconds; below a step's STEP_SECONDS, as the read timeout of a registry is."""


class KilledError(BaseException):
    """The process of a worker is no more; nothing of it may run on."""


def manifest(name: str) -> Manifest:
    """Return a single manifest that is like no other."""
    blob = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": digest_of(name.encode()),
        "size": 10,
    }
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": []}
    return Manifest(OCI_MANIFEST, json.dumps(document).encode())


def index(children: Sequence[Manifest]) -> Manifest:
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": child.digest,
            "size": len(child.content),
            "platform": {"os": platform.os, "architecture": platform.architecture},
        }
        for child, platform in zip(children, PLATFORMS, strict=False)
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return Manifest(OCI_INDEX, json.dumps(document).encode())


class Contents:
    """A registry in memory, as far as prewarm asks one; `on_get` is told of each manifest GET."""

    def __init__(self, on_get: Callable[[Manifest], None] | None = None) -> None:
        self.by_digest: dict[tuple[str, str], Manifest] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self._on_get = on_get

    def put(self, repository: str, content: Manifest, tag: str | None = None) -> None:
        self.by_digest[repository, content.digest] = content
        if tag is not None:
            self.tags[repository, tag] = content.digest

    def head(self, repository: str, selector: str) -> Head:
        return Head(self._find(repository, selector).descriptor, None)

    def manifest(self, repository: str, selector: str) -> tuple[Manifest, Limit | None]:
        found = self._find(repository, selector)
        if self._on_get is not None:
            self._on_get(found)
        return found, None

    def _find(self, repository: str, selector: str) -> Manifest:
        digest = self.tags.get((repository, selector), selector)
        if (repository, digest) not in self.by_digest:
            raise RegistryError("not-found", f"{repository} has no {selector}", "", status=404)
        return self.by_digest[repository, digest]


@dataclass(frozen=True)
class Kind:
    """An image of the site."""

    reference: Reference
    children: int
    """0: a single manifest."""
    wanted: Wanted
    project: str | None
    pinned: bool
    weight: float

    @property
    def want(self) -> Want:
        source = "pin" if self.pinned else "history"
        payers = (self.project,) if self.project and not self.pinned else ()
        return Want(self.reference, self.wanted, (source,), "", weight=self.weight, payers=payers)


@st.composite
def sites(draw: st.DrawFn) -> tuple[Kind, ...]:
    kinds: list[Kind] = []
    for number in range(draw(st.integers(2, 7))):
        registry = draw(st.sampled_from([HUB, HUB, QUAY]))
        children = draw(st.sampled_from([0, 1, 2, 2, 3, 5]))
        some = PLATFORMS[: draw(st.integers(1, max(1, children)))]
        # Two tags of a repository are one digest.
        name, tag = (number - 1, 2) if kinds and draw(st.integers(0, 4)) == 0 else (number, 1)
        kinds.append(
            Kind(
                parse(f"{registry}/team/app{name}:{tag}"),
                children,
                draw(st.sampled_from(["all", some, some])),
                draw(st.sampled_from([None, "team/a", "team/a", "team/b"])),
                draw(st.integers(0, 5)) == 0,
                draw(st.sampled_from([1.0, 2.0, 8.0])),
            )
        )
    return tuple({kind.reference: kind for kind in kinds}.values())


@dataclass(frozen=True)
class Get:
    """A manifest GET that upstream saw."""

    at: float
    registry: str
    project: str | None
    step: int
    """Which step of which run sent it."""
    digest: str
    """Of the image of the step."""
    is_index: bool


def pulls(gets: Sequence[Get]) -> int:
    """Return what the GETs count for: an index and one child of it are one pull."""
    steps = {get.step: 0 for get in gets}
    for get in gets:
        steps[get.step] += not get.is_index
    return sum(max(1, children) for children in steps.values())


class Worker:
    """A thread of a process that runs only while it is resumed, until it pauses or ends."""

    def __init__(self, process: Process, steps: Sequence[Copy | Tag], turn: int) -> None:
        self.process, self.steps, self.turn = process, steps, turn
        self.ended = self.killed = False
        self.paused_at = process.site.time
        self.number = 0
        self.image: Image | None = None
        self.error: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def resume(self) -> None:
        self._go.release()
        assert self._back.acquire(timeout=60)
        self.paused_at = self.process.site.time
        if self.ended:
            self._thread.join()
        if self.error is not None:
            raise self.error

    def pause(self) -> None:
        if threading.current_thread() is not self._thread or self.killed:
            return
        self._back.release()
        self._go.acquire()
        if self.killed:
            raise KilledError

    def _run(self) -> None:
        self._go.acquire()
        try:
            for step in self.steps:
                if self.killed:
                    break
                self.process.carry_out(step, self)
        except BaseException as error:
            # What the ledger says to a dead process is nobody's concern.
            self.error = None if self.killed else error
        finally:
            self.process.over.add(self.turn)
            self.ended = True
            self._back.release()


class Process:
    """One run: it looks, ranks and plans, and its workers carry out the plan."""

    def __init__(self, site: Site, mirror: Contents, windows: dict[str, Window], parallel: int):
        self.site, self.mirror, self.windows, self.parallel = site, mirror, windows, parallel
        self.ceilings = dict(windows)
        """By registry, the largest window of all processes that ran at the same time."""
        self.ledger = site.open()
        self.over: set[int] = set()
        self.upstreams = {
            name: UpstreamSite(Upstream(name, ""), registry, "acme", public=registry)
            for name in LENGTHS
            for registry in [cast(Registry, site.upstreams[name])]
        }
        mirrors = [MirrorSite(Mirror("http://mirror", "http://mirror"), cast(Registry, mirror))]
        self.observer = Observer(self.upstreams, mirrors, self.ledger, self.clock)
        self.limits = replace(Limits(), pulls_per_project=SHARE)
        self.purchasing = Purchasing(
            run="run",
            ledger=self.ledger,
            clock=self.clock,
            windows=lambda upstream: windows[upstream.settings.name],
            limits=self.limits,
            held_up=lambda image: None,
        )
        self.waiting: list[Worker] = []
        self.working: list[Worker] = []
        self.slept = False

    @property
    def alive(self) -> bool:
        return bool(self.working)

    def clock(self) -> Moment:
        moment = self.site.moment()
        self.site.pause()
        return moment

    def begin(self) -> tuple[Step, ...]:
        demand = [(kind.want, self.observer.see(kind.want)) for kind in self.site.kinds]
        order = ranked(demand)
        assert ranked(reversed(demand)) == [
            *[pair for pair in reversed(demand) if pair[0].pinned],
            *[pair for pair in order if not pair[0].pinned],
        ]
        quotas = {
            name: Quota(
                "acme",
                window,
                "",
                self.ledger.spends(name, "acme", self.site.moment(), window.seconds),
            )
            for name, window in self.windows.items()
        }
        steps = plan(order, quotas, self.limits, (), self.site.moment().wall).steps
        assert [(step.want, step.seen) for step in steps] == order
        groups: dict[tuple[str, str | None], list[Copy | Tag]] = {}
        for step in steps:
            assert not isinstance(step, Fail | Skip)
            if isinstance(step, Copy | Tag):
                groups.setdefault((step.want.reference.name, step.seen.key), []).append(step)
        self.waiting = [Worker(self, group, turn) for turn, group in enumerate(groups.values())]
        self.fill()
        return steps

    def fill(self) -> None:
        self.working = [worker for worker in self.working if not worker.ended]
        while self.waiting and len(self.working) < self.parallel:
            self.working.append(self.waiting.pop(0))

    def go(self, worker: Worker) -> None:
        self.site.running = worker
        worker.resume()
        self.site.running = None
        self.fill()

    def run_to_the_end(self) -> None:
        while self.working:
            for worker in self.working[:]:
                self.go(worker)
        self.ledger.close()

    def die(self) -> None:
        # A dead step's GETs are taken to have gone out within STEP_SECONDS: not so after a sleep.
        while self.slept and self.working:
            for worker in self.working[:]:
                self.go(worker)
        self.ledger.close()
        for worker in (*self.working, *self.waiting):
            worker.killed = True
            if not worker.ended:
                worker.resume()
        self.working, self.waiting = [], []

    def carry_out(self, step: Copy | Tag, worker: Worker) -> None:
        """What a run's carrier does with a step, the mirror being memory."""
        image = Image(step, step.seen.content, step.seen.required)
        image.holdings = {holding.mirror: holding for holding in step.seen.holdings}
        worker.number = next(self.site.numbers)
        worker.image = image
        ended: Step | None = None
        original = self.ledger.manifest(image.digest) if image.content is None else None
        if original is not None:
            image.use(original)
        if image.content is not None or not image.is_index:
            self._find(image)
        if image.content is None or image.due:

            def wait_for_turn() -> None:
                while not self.over.issuperset(range(worker.turn)):
                    worker.pause()

            try:
                ended = self.purchasing.buy(
                    image,
                    self.upstreams[image.want.reference.registry],
                    self._find,
                    wait_for_turn,
                    lambda: self.over.add(worker.turn),
                )
            except EndedError as early:
                ended = early.step
        self.over.add(worker.turn)
        if ended is not None:
            assert isinstance(ended, Defer)
            assert ended.code in {"budget", "project-share"}
        if image.content is None:
            return
        worker.pause()
        repository = image.want.reference.mirror_repository
        for digest in image.manifests:
            self.mirror.put(repository, image.manifests[digest])
        if ended is None:
            assert not [d for d in image.required if (repository, d) not in self.mirror.by_digest]
            self.mirror.put(repository, image.content, image.want.reference.tag)

    def _find(self, image: Image) -> None:
        (url,) = image.holdings
        repository = image.holdings[url].repository
        there = [d for d in image.required if (repository, d) in self.mirror.by_digest]
        image.note_present(url, there)
        for digest in image.due:
            if (known := self.ledger.manifest(digest)) is not None:
                image.manifests[digest] = known
                if digest == image.digest and image.content is None:
                    image.use(known)


def count_up() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


class Site(RuleBasedStateMachine):
    """True time passes, clocks lie, runs come and go, tags move, budgets are rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = self.new_store()
        self.time, self.booted, self.boot = 1000, 0, 0
        self.noted_boot = 0
        self.offset = self.noted_offset = 0
        self.gets: list[Get] = []
        self.numbers = count_up()
        self.running: Worker | None = None
        self.upstreams = {name: Contents(lambda m, n=name: self.on_get(n, m)) for name in LENGTHS}  # type: ignore[misc]
        self.mirrors = [Contents(), Contents()]
        self.windows = {HUB: Window(7, LENGTHS[HUB], 2), QUAY: Window(4, LENGTHS[QUAY], 1)}
        self.processes: dict[int, Process] = {}
        self.kinds: tuple[Kind, ...] = ()
        self.open().close()

    def new_store(self) -> Store:
        return SqliteStore(Path(self.folder.name) / "prewarm.db")

    def open(self) -> Ledger:
        return self.store.open(self.moment, lambda: 1e9 + self.time)

    def teardown(self) -> None:
        for number in list(self.processes):
            self.processes.pop(number).die()
        self.folder.cleanup()

    @initialize(kinds=sites())
    def images_are_wanted(self, kinds: tuple[Kind, ...]) -> None:
        self.kinds = kinds
        self.moves = {kind.reference.repository: 0 for kind in kinds}
        for kind in kinds:
            self.push(kind)

    def push(self, kind: Kind) -> None:
        repository = kind.reference.repository
        upstream = self.upstreams[kind.reference.registry]
        # The tags of a repository are one image, that of its first.
        first = next(one for one in self.kinds if one.reference.name == kind.reference.name)
        name = f"{repository} {self.moves[repository]}"
        children = [manifest(f"{name} {n}") for n in range(max(1, first.children))]
        for child in children:
            upstream.put(repository, child)
        upstream.put(
            repository, index(children) if first.children else children[0], kind.reference.tag
        )

    # Time

    def moment(self) -> Moment:
        wall = 1e9 + self.time + self.offset
        return Moment(wall, f"boot {self.boot}", float(self.time - self.booted))

    def pass_time(self, seconds: int) -> None:
        """Let time pass; no GET hangs for longer than it may."""
        for process in self.processes.values():
            for worker in process.working[:]:
                while (
                    not worker.ended
                    and worker.paused_at < self.time
                    and self.time + seconds - worker.paused_at > NO_GET_HANGS_LONGER
                ):
                    process.go(worker)
        self.reap()
        self.time += seconds

    @rule(seconds=st.sampled_from([1, 20, 45]))
    def time_passes(self, seconds: int) -> None:
        self.pass_time(seconds)

    @precondition(lambda self: not self.processes)
    @rule(seconds=st.sampled_from([90, 179, 180, 299, 300]))
    def long_time_passes(self, seconds: int) -> None:
        self.time += seconds

    @rule(seconds=st.sampled_from([179, 299, 10**4]))
    def machine_sleeps(self, seconds: int) -> None:
        self.time += seconds
        for process in self.processes.values():
            process.slept = True

    @rule(seconds=st.sampled_from([-(10**6), -300, 300, 10**6]))
    def wall_clock_is_set(self, seconds: int) -> None:
        self.noted_offset = min(self.noted_offset, self.offset)
        self.offset += seconds

    @rule(seconds=st.sampled_from([1, 100, 299]))
    def machine_boots(self, seconds: int) -> None:
        for number in list(self.processes):
            self.processes.pop(number).die()
        self.time += seconds
        self.booted = self.time - 1
        self.boot += 1

    # The world

    @precondition(lambda self: self.kinds)
    @rule(data=st.data())
    def tag_moves(self, data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(self.kinds))
        repository = kind.reference.repository
        self.moves[repository] += 1
        for one in self.kinds:
            if one.reference.name == kind.reference.name:
                self.push(one)

    @rule(hub=st.integers(1, 9), quay=st.integers(1, 5), reserve=st.integers(0, 2))
    def budget_is_rewritten(self, hub: int, quay: int, reserve: int) -> None:
        self.windows = {
            HUB: Window(hub + reserve, LENGTHS[HUB], reserve),
            QUAY: Window(quay, LENGTHS[QUAY]),
        }

    # Runs

    def start(self, number: int, parallel: int) -> tuple[Step, ...]:
        if not self.processes:
            if self.noted_boot != self.boot:
                # What nobody can tell is believed: a clock set forward between the ledger's last
                # look in one boot and its first in the next.
                self.offset = min(self.offset, self.noted_offset)
                self.noted_boot = self.boot
            with self.open() as ledger:
                ledger.recover(self.moment())
            self.noted_offset = self.offset
        process = Process(self, self.mirrors[number], dict(self.windows), parallel)
        for other in self.processes.values():
            for name in LENGTHS:
                both = (process.ceilings[name], other.ceilings[name])
                most = max(both, key=lambda window: window.capacity or 0)
                process.ceilings[name] = other.ceilings[name] = most
        steps = process.begin()
        self.processes[number] = process
        self.reap()
        return steps

    def reap(self) -> None:
        for number, process in list(self.processes.items()):
            if not process.alive:
                process.ledger.close()
                del self.processes[number]

    @rule(number=st.integers(0, 1), parallel=st.sampled_from([1, 2, 4]))
    def run_starts(self, number: int, parallel: int) -> None:
        if number not in self.processes:
            self.start(number, parallel)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), steps=st.integers(1, 12))
    def worker_goes_on(self, data: st.DataObject, steps: int) -> None:
        process = self.processes[data.draw(st.sampled_from(sorted(self.processes)))]
        worker = process.working[data.draw(st.integers(0, 9)) % len(process.working)]
        for _ in range(steps):
            if not worker.ended:
                process.go(worker)
        self.reap()

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def run_ends(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.processes)))
        process = self.processes[number]
        while process.working:
            for other in list(self.processes.values()):
                for worker in other.working[:]:
                    other.go(worker)
        self.reap()

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def process_dies(self, data: st.DataObject) -> None:
        self.processes.pop(data.draw(st.sampled_from(sorted(self.processes)))).die()

    @precondition(lambda self: self.kinds and not self.processes)
    @rule(number=st.integers(0, 1))
    def with_enough_windows_all_is_copied(self, number: int) -> None:
        for _ in range(60):
            self.start(number, 4)
            if number in self.processes:
                self.processes[number].run_to_the_end()
                self.reap()
            steps = self.start(number, 4)
            if all(isinstance(step, Fresh) for step in steps):
                return
            if number in self.processes:
                self.processes.pop(number).die()
            before = len(self.gets)
            self.time += max(LENGTHS.values())
        raise AssertionError(f"after 60 windows it waits for {steps}, {before} GETs")

    # What upstream sees

    def pause(self) -> None:
        if self.running is not None:
            self.running.pause()

    def on_get(self, registry: str, content: Manifest) -> None:
        worker = self.running
        assert worker is not None
        assert worker.image is not None
        worker.pause()
        self.note_get(registry, content, worker, worker.image)
        worker.pause()

    def note_get(self, registry: str, content: Manifest, worker: Worker, image: Image) -> None:
        project = only_project(image.want.payers)
        self.gets.append(
            Get(self.time, registry, project, worker.number, image.digest, content.is_index)
        )
        length = LENGTHS[registry]
        held = [g for g in self.gets if g.registry == registry and g.at > self.time - length]
        window = worker.process.ceilings[registry]
        assert window.pulls is not None
        capacity = window.pulls - window.reserve
        assert pulls(held) <= capacity, f"{pulls(held)} pulls in the window ending at {self.time}"
        own = [get for get in held if get.project == project]
        if project is not None and len({get.digest for get in own}) > 1:
            assert pulls(own) <= SHARE, f"{project} has {pulls(own)} pulls of a window"


class SharedSite(Site):
    """The same on a server, whose clock counts and which is told of no death.

    A machine that sleeps with a step in flight is taken for dead: what it sends when it wakes up,
    before it looks at the clock again, nobody can count.
    """

    def new_store(self) -> Store:
        return new_database()

    @precondition(lambda self: not self.processes)
    @rule(seconds=st.sampled_from([179, 299, 10**4]))
    def machine_sleeps(self, seconds: int) -> None:
        super().machine_sleeps(seconds)


TestWindowsHold = Site.TestCase
TestSharedWindowsHold = pytest.mark.usefixtures("database_of_machines")(SharedSite.TestCase)
TestWindowsHold.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSharedWindowsHold.settings = settings(TestWindowsHold.settings, max_examples=15)
