"""The page: its numbers are those of the state, and nobody's text becomes markup."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.core.budget import Moment
from prewarm.core.settings import Gitlab, Settings
from prewarm.core.text import printable
from prewarm.reports.html.page import IMAGES_SHOWN, PROBLEMS_SHOWN, WAITING_SHOWN, page, percent
from prewarm.reports.overview import Overview, Shown, overview_of
from prewarm.reports.status import Status
from prewarm.state.ledger import Ledger
from tests.support.weeks import FAR, NEAR, PROBLEMS, SETTINGS, fill

NOW = Moment(1_800_000_000.0, "boot", 1e7)
STATE = Path("/var/lib/prewarm/prewarm.db")
VOID = {"meta", "wbr"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title><h1>",
    "&lt;b&gt;&amp;#x3c;",
    "\u202egnp.exe\u2066",
    "\x00\x07\x1b[31m\r\n\ud800",
    "x" * 500,
)


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(one if isinstance(one, str) else one.text for one in self.children)

    def all(self, tag: str, **attributes: str) -> list[Node]:
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [
            one for one in self.walk()
            if one.tag == tag and wanted.items() <= one.attributes.items()
        ]  # fmt: skip

    def walk(self) -> Iterator[Node]:
        for one in self.children:
            if isinstance(one, Node):
                yield one
                yield from one.walk()


class Reader(HTMLParser):
    """Reads a page into nodes; each element must be ended by its own tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open = [Node("", {})]
        self.feed(text)
        self.close()
        (self.root,) = self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        assert len(node.attributes) == len(attrs), attrs
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(seen: Overview) -> Node:
    return Reader(page(seen)).root


def rows(node: Node, section: str) -> list[list[str]]:
    """Return the cells of the first table of a section."""
    (found,) = node.all("section", id=section)
    table = found.all("table")[0]
    return [
        [cell.text for cell in row.walk() if cell.tag in ("td", "th")]
        for row in table.all("tbody")[0].all("tr")
    ]


def shown(node: Node, section: str) -> str:
    (found,) = node.all("section", id=section)
    return found.text


def tile(node: Node, section: str) -> Node:
    (found,) = node.all("a", href=f"#{section}")
    return found


def empty(settings: Settings = SETTINGS) -> Overview:
    with Ledger.memory() as ledger:
        return overview_of(settings, ledger, NOW, STATE)


@pytest.fixture(scope="module")
def seen() -> Overview:
    with Ledger.memory() as ledger:
        fill(ledger, NOW)
        return overview_of(SETTINGS, ledger, NOW, STATE)


def with_status(seen: Overview, **fields: Any) -> Overview:
    return replace(seen, status=replace(seen.status, document=seen.status.document | fields))


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0, "0%"), (0.5, "50%"), (0.932, "93.2%"), (0.9325, "93.2%"), (0.9996, "99.9%"),
     (0.00004, "0%"), (1.0, "100%")],
)  # fmt: skip
def test_percent_is_full_only_where_nothing_lacks(ratio: float, text: str) -> None:
    assert percent(ratio) == text


def test_page_numbers_are_those_of_the_status(seen: Overview) -> None:
    root, told = read(seen), seen.status.document
    ((share,),) = [one.all("data") for one in root.all("h1")]
    assert share.attributes["value"] == str(told["coverage"])
    assert share.text == percent(told["coverage"])
    budget = told["budgets"]["docker.io"]
    assert tile(root, "pulls").all("strong")[0].text == f"{budget['used']} of {budget['pulls']}"
    assert f"{budget['remaining']} left, {budget['reserve']} more" in tile(root, "pulls").text
    assert budget["next_free"] in [one.attributes["datetime"] for one in root.all("time")]
    (failed,) = tile(root, "failures").all("data")
    assert failed.attributes["value"] == str(sum(told["pull_failures_per_day"]))
    assert [row[2] for row in rows(root, "mirrors")] == [
        percent(one["coverage"]) for one in told["mirrors"]
    ]
    images = told["images"]
    (lead,) = root.all("p", class_="lead")
    assert (
        f"Of {images['tracked']} images {images['fresh']} are warm, {images['stale']} stale "
        f"(jobs get an older one) and {images['missing']} missing" in lead.text
    )
    assert "CI's jobs are those of the scan of today 06:31." in lead.text
    last = told["last_sync"]
    assert tile(root, "runs").all("time")[0].attributes["datetime"] == last["finished"]
    newest = rows(root, "runs")[0]
    names = ("copied", "tagged", "fresh", "deferred", "skipped", "failed", "pulls")
    assert newest[3:10] == [str(last[name]) for name in names]
    assert len(rows(root, "runs")) == len(told["runs"]) == 10


def test_page_tables_hold_what_the_charts_draw(seen: Overview) -> None:
    root, told = read(seen), seen.status.document
    by_day = rows(root, "coverage")
    assert by_day[0] == ["today", percent(told["coverage"]), *(
        percent(one["coverage"]) for one in told["mirrors"]
    )]  # fmt: skip
    last = {point["at"][:10]: point["coverage"] for point in told["coverage_series"]}
    assert len(last) < len(told["coverage_series"])
    assert [row[1] for row in by_day] == [percent(share) for share in reversed(last.values())]
    assert [int(row[1]) for row in rows(root, "failures")] == told["pull_failures_per_day"][::-1]
    (spent,) = [one for one in seen.spending if one.registry == "docker.io"]
    assert [[int(cell) for cell in row[1:]] for row in rows(root, "pulls")] == [
        [day.pulls, day.most] for day in reversed(spent.days)
    ]


def test_page_images_have_their_state_on_each_mirror(seen: Overview) -> None:
    root = read(seen)
    words = {"fresh": "warm", "stale": "stale", "missing": "missing"}
    states = {(one.image, one.mirror): words[one.state] for one in seen.status.known}
    caption = root.all("section", id="images")[0].all("caption")[0].text
    assert caption == f"The {IMAGES_SHOWN} most used of 240 images that CI used in 28d"
    listed = rows(root, "images")
    assert len(listed) == IMAGES_SHOWN
    for row, one in zip(listed, seen.images, strict=False):
        assert one.image.endswith(row[0])
        assert row[1:3] == [states[one.image, NEAR], states[one.image, FAR]]
        assert row[3] == f"{one.used.jobs:,}" if one.used else False
    assert [int(row[3].replace(",", "")) for row in listed] == sorted(
        (int(row[3].replace(",", "")) for row in listed), reverse=True
    )


def test_page_tells_what_waits_and_until_when(seen: Overview) -> None:
    root = read(seen)
    assert tile(root, "waiting").all("data")[0].text == str(len(seen.waiting))
    first, others = (
        table.all("tbody")[0].all("tr")
        for section in root.all("section", id="waiting")
        for table in section.all("table")
    )
    assert len(first) == WAITING_SHOWN
    assert len(first) + len(others) == len(seen.waiting)
    for row, told in zip((*first, *others), seen.waiting, strict=True):
        assert told["image"].endswith(row.all("code")[0].text)
        assert row.all("time")[0].attributes["datetime"] == told["until"]


def test_page_waiting_that_nobody_can_date_or_whose_time_has_come(seen: Overview) -> None:
    waiting = tuple(
        {"image": "docker.io/library/a:1", "reason": "so", "until": until}
        for until in (None, "2027-01-15T07:00:00Z", "2027-01-16T07:00:00Z")
    )
    root = read(replace(seen, waiting=waiting))
    assert [row[1] for row in rows(root, "waiting")] == [
        "nobody can know",
        "today 07:00, so the next sync",
        "Sat 16 Jan 07:00",
    ]
    assert (
        "3 images wait, the first until today 07:00, the last until Sat 16 Jan 07:00; "
        "of 1 nobody can know until when." in shown(root, "waiting")
    )


def test_page_problems_have_their_cures_and_many_are_folded(seen: Overview) -> None:
    text = shown(read(seen), "problems")
    for one in PROBLEMS:
        assert one["where"] in text
        assert f"{one['problem']}{one['cure']}" in text
    assert tile(read(seen), "problems").attributes["class"] == "alarm"
    calm = read(replace(seen, problems=PROBLEMS[1:]))
    assert "class" not in tile(calm, "problems").attributes
    many = tuple({**PROBLEMS[1], "problem": f"number {n}"} for n in range(PROBLEMS_SHOWN + 5))
    (section,) = read(replace(seen, problems=many)).all("section", id="problems")
    (folded,) = section.all("details")
    assert len(section.all("li")) == len(many)
    assert len(folded.all("li")) == 5
    assert folded.all("summary")[0].text == "5 more"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"action": "defer", "until": None}, "waits, nobody can know"),
        ({"action": "defer", "until": "2027-01-15T09:30:00Z"}, "waits until today 09:30"),
        ({"action": "skip", "reason": "private"}, "left out: private"),
        ({"action": "fail", "reason": "", "error": {"text": "gone"}}, "gone"),
        ({"action": "copy", "error": {"text": "full"}}, "full"),
        ({"action": "copy", "error": None}, "the next sync looks again"),
        ({}, "in no sync yet"),
    ],
)
def test_page_tells_what_is_next_for_an_image_that_is_missing(
    seen: Overview, told: dict[str, Any], expected: str
) -> None:
    one = Shown("docker.io/library/a:1", ("missing", None), None, told)
    assert rows(read(replace(seen, images=(one,))), "images") == [
        ["a:1", "missing", "not for it", expected]
    ]
    warm = replace(one, states=("fresh", None))
    assert rows(read(replace(seen, images=(warm,))), "images")[0][3] == ""


def test_page_says_that_a_mirror_with_a_problem_is_left_out(seen: Overview) -> None:
    near, far = seen.status.document["mirrors"]
    rest = ", less those with a problem."
    assert rest not in read(seen).all("p", class_="lead")[0].text
    broken = with_status(seen, mirrors=[near, {**far, "state": "mirror-full"}])
    assert rest in read(broken).all("p", class_="lead")[0].text


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.5, 0.6, 0.58, 0.9), "From 50% on 11 Jan to 90% now."),
        ((0.5, 0.9, 0.8, 0.4, 0.6), "From 50% on 10 Jan to 60% now. "
         "On 13 Jan it had fallen from 90% to 40%."),
        ((0.9, 0.8), "From 90% on 13 Jan to 80% now. On 14 Jan it had fallen from 90% to 80%."),
    ],
)  # fmt: skip
def test_page_coverage_is_told_in_a_sentence_with_its_deepest_fall(
    seen: Overview, shares: tuple[float, ...], expected: str
) -> None:
    points = [
        {"at": f"2027-01-{15 - ago:02}T07:00:00Z", "coverage": share}
        for ago, share in zip(range(len(shares), 0, -1), shares, strict=True)
    ]
    root = read(with_status(seen, coverage_series=points, coverage=shares[-1]))
    (section,) = root.all("section", id="coverage")
    assert section.all("p")[0].text == f"{expected} Each mirror on its own is told under Mirrors."
    assert section.all("svg", role="img")[0].attributes["aria-label"] == expected


def test_page_coverage_chart_ends_with_what_is_served_now(seen: Overview) -> None:
    # CI's uses have changed since the last sync.
    root = read(with_status(seen, coverage=0.25))
    (section,) = root.all("section", id="coverage")
    assert "to 25% now." in section.all("p")[0].text
    (line,) = section.all("path", class_="line")
    assert str(line.attributes["d"]).endswith("L1000 112.5")


# Little or nothing is known


@pytest.mark.parametrize(
    ("settings", "headline"),
    [
        (SETTINGS, "Nothing has been synced yet"),
        (replace(SETTINGS, gitlab=None), "Nothing has been synced yet"),
        (Settings(None), "images.yml names no mirror yet"),
    ],
)
def test_page_of_an_empty_state_says_what_to_do(settings: Settings, headline: str) -> None:
    root = read(empty(settings))
    assert root.all("h1")[0].text == headline
    assert root.all("title")[0].text == "prewarm"
    assert "run prewarm sync" in tile(root, "runs").text
    assert "run prewarm sync" in shown(root, "runs")
    assert "run prewarm scan" in shown(root, "images")
    assert "prewarm sync --dry-run" in root.all("p", class_="lead")[0].text
    # Nobody has told of jobs, so that none failed is not known either.
    assert not root.all("a", href="#failures")
    if settings.gitlab is not None:
        assert "run prewarm scan" in shown(root, "failures")
    else:
        assert not root.all("section", id="failures")
    for section in ("problems", "coverage", "pulls", "mirrors", "images", "waiting"):
        assert shown(root, section)
    links = {one.attributes["href"] for one in root.all("a")}
    assert links <= {f"#{one.attributes['id']}" for one in root.all("section")}


def test_page_where_no_job_failed_says_so_without_a_chart(seen: Overview) -> None:
    root = read(with_status(seen, pull_failures_per_day=[0] * 15))
    (section,) = root.all("section", id="failures")
    assert section.text.endswith("No job has failed on a pull in 15 days.")
    assert not section.all("svg")
    assert not section.all("details")


def test_page_without_uses_speaks_of_wanted_images(seen: Overview) -> None:
    images = tuple(replace(one, used=None) for one in seen.images)
    root = read(replace(seen, images=images))
    assert root.all("h1")[0].text.endswith("of the wanted images are on every mirror")
    assert len(rows(root, "images")[0]) == 4


def test_page_of_a_budget_without_limit_has_no_reserve(seen: Overview) -> None:
    budget = {**seen.status.document["budgets"]["docker.io"], "pulls": None, "remaining": None}
    seen = with_status(seen, budgets={**seen.status.document["budgets"], "docker.io": budget})
    root = read(seen)
    assert "no limit" in tile(root, "pulls").text
    assert not root.all("section", id="pulls")[0].all("rect", class_="reserve")


def test_page_first_point_of_the_series_is_a_sentence(seen: Overview) -> None:
    points = [{"at": "2027-01-15T08:00:00Z", "coverage": 0.9}]
    text = shown(read(with_status(seen, coverage_series=points)), "coverage")
    assert text.startswith("Coverage over timeThe first sync, on 15 Jan, noted 90%.")


# Safe, alone and accessible


def test_page_asks_for_nothing_and_runs_nothing(seen: Overview) -> None:
    text = page(seen)
    root = Reader(text).root
    (policy,) = root.all("meta", **{"http-equiv": "Content-Security-Policy"})
    (style,) = root.all("style")
    digest = b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    assert policy.attributes["content"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    tags = Counter(one.tag for one in root.walk())
    assert not tags.keys() & {"script", "link", "img", "iframe", "object", "form", "base"}
    for one in root.walk():
        assert not {key for key in one.attributes if key.startswith("on")} | {"style", "src"} & (
            one.attributes.keys()
        )
        assert (one.attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", style.text)


def test_page_is_told_without_eyes_too(seen: Overview) -> None:
    root = read(seen)
    for one in root.all("svg"):
        inner = any(one in other.all("svg") for other in root.all("svg"))
        named = one.attributes.get("role") == "img" and one.attributes.get("aria-label")
        assert inner or named or one.attributes.get("aria-hidden") == "true"
    for table in root.all("table"):
        assert table.all("caption")[0].text
        assert {one.attributes.get("scope") for one in table.all("th")} == {"col", "row"}
        widths = {len([c for c in row.children if isinstance(c, Node)]) for row in table.all("tr")}
        assert len(widths) == 1
    names = [one.attributes["id"] for one in root.walk() if "id" in one.attributes]
    assert len(names) == len(set(names))
    for one in root.all("section"):
        assert one.attributes["aria-labelledby"] in names
    assert [one.attributes["lang"] for one in root.all("html")] == ["en"]


def poisoned(seen: Overview, text: str) -> Overview:
    """Put the text wherever the state may hold one that somebody else has written."""
    told = seen.status.document
    bad = {"severity": "error", "code": text, "where": text, "problem": text, "cure": text}
    image = seen.images[-1].image
    entry = {"image": image, "action": "skip", "reason": text, "until": None, "error": None}
    failed = {**entry, "action": "fail", "error": {"text": text}}
    states = ("missing", "unknown")
    document = {
        **told,
        "config": text,
        "state": text,
        "budgets": {
            name: {**one, "account": text, "source": text} for name, one in told["budgets"].items()
        },
        "mirrors": [{**one, "url": text, "state": text, "mode": text} for one in told["mirrors"]],
    }
    return replace(
        seen,
        status=Status(document),
        images=(
            Shown(image, states, None, entry),
            Shown(image, states, None, failed),
        ),
        waiting=({**entry, "action": "defer"},),
        problems=(bad, {**bad, "severity": "warning"}),
    )


def shape(root: Node) -> list[tuple[str, frozenset[str]]]:
    return [(one.tag, frozenset(one.attributes)) for one in root.walk()]


@pytest.mark.parametrize("text", HOSTILE)
def test_page_hostile_text_stays_text(seen: Overview, text: str) -> None:
    root = read(poisoned(seen, text))
    assert shape(root) == shape(read(poisoned(seen, "harmless")))
    body = page(poisoned(seen, text))
    assert body.encode()
    assert all(letter == "\n" or letter.isprintable() for letter in body)
    (problem, _) = root.all("section", id="problems")[0].all("li")
    assert problem.all("p")[1].text == printable(text)


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=40))
def test_page_any_text_stays_text(text: str) -> None:
    seen = poisoned(FEW, text)
    assert shape(read(seen)) == shape(read(poisoned(FEW, "harmless")))


with Ledger.memory() as _ledger:
    fill(_ledger, NOW, 12)
    FEW = overview_of(SETTINGS, _ledger, NOW, STATE)


def test_page_long_names_are_cut_and_told_whole_on_hover(seen: Overview) -> None:
    name = f"docker.io/{'team/' * 40}tool:{'v' * 120}"
    one = Shown(name, ("fresh", "fresh"), None, {})
    (code,) = read(replace(seen, images=(one,))).all("section", id="images")[0].all("code")
    assert len(code.text) == 160
    assert code.attributes["title"] == name.removeprefix("docker.io/")


def test_page_of_two_thousand_images_is_small() -> None:
    with Ledger.memory() as ledger:
        fill(ledger, NOW, 2000)
        text = page(overview_of(replace(SETTINGS, gitlab=Gitlab("https://g")), ledger, NOW, STATE))
    assert len(text.encode()) < 250_000
