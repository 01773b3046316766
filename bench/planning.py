"""Ranking and planning a very large demand, as a sync does it, in a process like prewarm's own."""

from __future__ import annotations

import gc
import random
import time
from typing import Final

from prewarm.cli.main import GARBAGE
from prewarm.core.budget import Spend, Window
from prewarm.core.manifest import OCI_INDEX, Descriptor, digest_of
from prewarm.core.platforms import DEFAULT
from prewarm.core.reference import parse
from prewarm.core.settings import DOCKER_HUB, Limits
from prewarm.core.shares import payers_of
from prewarm.planning.demand import Want
from prewarm.planning.plan import Holding, Quota, Seen, State, plan
from prewarm.planning.ranking import ranked

IMAGES: Final = 100_000
ROUNDS: Final = 3
_NOW: Final = 1_800_000_000.0
_STATES: Final[tuple[State, ...]] = ("fresh", "stale", "missing")


def seconds() -> float:
    """Return the seconds of the quickest of some rounds: the machine's other work is not ours."""
    demand = _demand(random.Random(1))
    window = Window(200, 6 * 3600, 20)
    quotas = {DOCKER_HUB: Quota("acme", window, "written", (Spend(60.0, 100),))}
    before = gc.get_threshold()
    gc.set_threshold(*GARBAGE)
    try:
        return min(_timed(demand, quotas) for _ in range(ROUNDS))
    finally:
        gc.set_threshold(*before)


def _timed(demand: list[tuple[Want, Seen]], quotas: dict[str, Quota]) -> float:
    started = time.perf_counter()
    found = plan(ranked(demand), quotas, Limits(), (), _NOW)
    took = time.perf_counter() - started
    if len(found.steps) != IMAGES:
        raise RuntimeError(f"{len(found.steps)} steps for {IMAGES} images")
    return took


def _demand(chance: random.Random) -> list[tuple[Want, Seen]]:
    """Return images of an index each: a third is on the mirror, a third is stale there."""
    return [_image(number, chance) for number in range(IMAGES)]


def _image(number: int, chance: random.Random) -> tuple[Want, Seen]:
    digest = digest_of(str(number).encode())
    state = chance.choice(_STATES)
    held = None if state == "missing" else digest
    jobs = chance.randint(1, 1000)
    want = Want(
        parse(f"team{number % 977}/app{number}:1"),
        DEFAULT,
        ("history",),
        "CI",
        jobs=jobs,
        projects=1 + number % 3,
        last_used=_NOW,
        weight=jobs * chance.random(),
        payers=payers_of(f"team{number % 97}/{(number + n) % 977}" for n in range(1 + number % 3)),
    )
    holding = Holding("http://127.0.0.1:5000", True, want.reference.repository, held, state)
    return want, Seen(Descriptor(OCI_INDEX, digest, 1000), holdings=(holding,))
