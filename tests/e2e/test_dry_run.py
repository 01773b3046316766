"""A dry run's plan is what the run then does, spending no more than the plan's bounds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host
from tests.sandbox import Sandbox

PLATFORMS = ["linux/amd64", "linux/arm64", "linux/s390x", "linux/ppc64le"]
HOURS_6 = 6 * 3600


def registries(box: Sandbox, pulls: int, reserve: int) -> dict[str, Any]:
    budget = {"pulls": pulls, "window": "6h", "reserve": reserve}
    return {"docker.io": {"endpoint": box.hub.url, "budget": budget}}


class RandomSite:
    """Images of all kinds in all states: fresh, stale, missing, in one digest with another."""

    def __init__(self, seed: int, box: Sandbox, host: Host, *, exact: bool) -> None:
        self.random, self.box, self.host = random.Random(seed), box, host
        self.exact = exact
        """Whether every index has every platform wanted of it, so that bounds are costs."""
        self.pins: list[dict[str, Any]] = []
        for number in range(8):
            wanted = self.random.sample(PLATFORMS, self.random.randint(1, 3))
            tags = ["1", "2"] if self.random.random() < 0.3 else ["1"]
            self.push(number, wanted, tags, "old")
            self.pins += [{"image": f"app{number}:{tag}", "platforms": wanted} for tag in tags]

    def push(self, number: int, wanted: list[str], tags: list[str], version: str) -> None:
        single = self.random.random() < 0.25
        lacks = not self.exact and self.random.random() < 0.6
        offered = wanted[:1] if single or lacks else wanted
        self.box.push(
            f"library/app{number}",
            *tags,
            platforms=offered,
            single=single,
            name=f"{version} {number}",
        )

    def grow_old(self) -> None:
        """Let some images be there, and some of these move upstream; then hours pass."""
        there = [pin for pin in self.pins if self.random.random() < 0.5] or self.pins[:1]
        self.host.configure(there)
        self.host.sync()
        for number in range(8):
            pins = [pin for pin in there if pin["image"].startswith(f"app{number}:")]
            if pins and self.random.random() < 0.6:
                tags = [pin["image"][-1] for pin in pins]
                self.push(number, pins[0]["platforms"], tags, "new")
        self.host.let_time_pass(self.random.choice([HOURS_6 + 1, HOURS_6 / 2]))
        self.random.shuffle(self.pins)
        spent = self.host.charged() if self.random.random() < 0.5 else 0
        pulls, reserve = spent + self.random.randint(3, 6), self.random.randint(0, 1)
        self.host.configure(self.pins, registries=registries(self.box, pulls, reserve))


@pytest.mark.parametrize(("seed", "exact"), [(1, True), (7, True), (5, False), (9, False)])
def test_dry_run_of_any_site_is_what_the_run_does(
    box: Sandbox, tmp_path: Path, seed: int, exact: bool
) -> None:
    host = Host(tmp_path, box)
    RandomSite(seed, box, host, exact=exact).grow_old()
    planned = host.sync("--dry-run")
    assert (planned.gets, planned.writes) == ((), ((),))
    done = host.sync()

    pairs = list(zip(planned.report["images"], done.report["images"], strict=True))
    assert [plan["image"] for plan, _ in pairs] == [one["image"] for _, one in pairs]
    further = [
        (plan["action"], one["action"])
        for plan, one in pairs
        if (plan["action"], plan["code"]) != (one["action"], one["code"])
    ]
    # Sites where nothing waits would prove little.
    assert {"copy", "defer"} <= {plan["action"] for plan, _ in pairs}
    assert further == [] if exact else set(further) <= {("defer", "copy"), ("defer", "tag")}
    bounds = {plan["image"]: plan["pulls"] for plan, _ in pairs if plan["action"] == "copy"}
    spent = {one["image"]: one["pulls"] for _, one in pairs}
    assert all(spent[image] <= bound for image, bound in bounds.items())
    assert sum(bounds.values()) == planned.summary["pulls"]
    budget = planned.report["budgets"]["docker.io"]
    assert done.summary["pulls"] <= budget["remaining"]
    if exact:
        assert {image: spent[image] for image in bounds} == bounds
        assert done.summary["pulls"] == planned.summary["pulls"]
    else:
        assert further, "a site whose bounds are costs: choose another seed"
