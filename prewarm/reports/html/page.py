"""The page that `prewarm report --html` writes: one file that asks for nothing else.

Names of images, jobs and projects, problems and cures are anybody's text: all of it goes through
`element`, which escapes it.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from prewarm import __version__
from prewarm.core.reference import parse
from prewarm.core.text import duration_words, iso, size_words, when
from prewarm.core.usage import DAY
from prewarm.reports.explanation import STATE_WORDS
from prewarm.reports.html import charts
from prewarm.reports.html.markup import Markup, element, joined
from prewarm.reports.html.style import STYLE
from prewarm.reports.overview import Overview, Shown, Spending

IMAGES_SHOWN: Final = 40
WAITING_SHOWN: Final = 20
_WAITING_MOST: Final = 300
PROBLEMS_SHOWN: Final = 20
_FALL: Final = 0.05
"""Of the coverage: one that is told."""
_LONGEST: Final = 160
"""Characters of a name or a reason that others write."""
_ENDINGS: Final = {
    None: "not ended",
    0: "well",
    1: "with problems",
    3: "by a bug",
    129: "hung up",
    130: "interrupted",
    143: "terminated",
}
_SUMMARY: Final = ("copied", "tagged", "fresh", "deferred", "skipped", "failed")
Row = Sequence[str]


def page(seen: Overview) -> str:
    """Return the page as HTML."""
    told = seen.status.document
    style = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", _title(seen)),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("header", *_header(seen)),
        element(
            "main",
            _tiles(seen),
            _problems(seen),
            _coverage(seen),
            _failures(seen),
            _spending(seen),
            _mirrors(seen),
            _images(seen),
            _waiting(seen),
            _runs(seen),
        ),
        element(
            "footer",
            element("p", f"prewarm {__version__} read ", _code(told["config"] or "no images.yml"),
                    " and ", _code(told["state"]), ". All times are UTC."),
        ),
    )  # fmt: skip
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


# --- the answer first ---


def _title(seen: Overview) -> str:
    coverage = seen.status.document["coverage"]
    return "prewarm" if coverage is None else f"prewarm: {percent(coverage)} served locally"


def _header(seen: Overview) -> Iterator[Markup]:
    told = seen.status.document
    day, clock = when(seen.now).removesuffix(" UTC").rsplit(" ", 1)
    written = iso(seen.now) or ""
    as_of = element("time", f"{day} {written[:4]}, {clock} UTC", datetime=written)
    yield element("p", "prewarm, as of ", as_of, class_="eyebrow")
    coverage = told["coverage"]
    if coverage is None:
        yield element("h1", _nothing_yet(seen))
        yield element(
            "p",
            "prewarm sync --dry-run shows the plan, prewarm sync carries it out.",
            class_="lead",
        )
        return
    share = element("data", percent(coverage), value=coverage)
    if _has_uses(seen):
        yield element("h1", share, " of CI's image uses are served locally")
    else:
        several = len(told["mirrors"]) > 1
        yield element(
            "h1", share, f" of the wanted images are on {'every' if several else 'the'} mirror"
        )
    yield element("p", *_lead(seen), class_="lead")


def _nothing_yet(seen: Overview) -> str:
    if not seen.status.document["mirrors"]:
        return "images.yml names no mirror yet"
    if seen.status.document["last_sync"] is None:
        return "Nothing has been synced yet"
    return "Nothing is wanted yet: no pin, and no image that CI uses"


def _lead(seen: Overview) -> Iterator[str]:
    told, images = seen.status.document, seen.status.document["images"]
    if seen.status.earlier is not None:
        days, before = seen.status.earlier
        yield f"{_counted(days, 'day')} ago: {percent(before)}. "
    yield (
        f"Of {_counted(images['tracked'], 'image')} {images['fresh']:,} are warm, "
        f"{images['stale']:,} stale (jobs get an older one) and {images['missing']:,} missing."
    )
    if told["uses_unresolved"]:
        yield (
            f" {percent(told['uses_unresolved'])} of CI's uses name an image that nobody knows, "
            "and are not counted."
        )
    if _has_uses(seen) and seen.scanned is not None:
        yield joined([" CI's jobs are those of the scan of ", _at(seen.scanned, seen.now), "."])
    if len(told["mirrors"]) > 1:
        failing = any(one["state"] not in ("ok", "unknown") for one in told["mirrors"])
        rest = ", less those with a problem" if failing else ""
        yield f" An image counts as served where every mirror holds it{rest}."


def _tiles(seen: Overview) -> Markup:
    tiles: list[Markup] = []
    told = seen.status.document
    for number, spent in enumerate(_metered(seen)):
        budget = told["budgets"][spent.registry]
        tiles.append(_budget_tile(spent, budget, f"m{number}", seen.now))
    tiles.append(_waiting_tile(seen))
    errors, warnings = _severities(seen)
    some = errors + warnings
    tiles.append(
        _tile(
            "problems",
            _datum(some),
            f"{'problem' if some == 1 else 'problems'}: {_counted(errors, 'error')}, "
            f"{_counted(warnings, 'warning')}"
            if some
            else "problems: nothing needs you",
            alarm=errors > 0,
        )
    )
    failures = told["pull_failures_per_day"]
    if failures and seen.scanned is not None:
        tiles.append(
            _tile(
                "failures",
                _datum(sum(failures)),
                f"CI jobs failed on a pull in {_counted(len(failures), 'day')}, "
                f"{failures[-1]:,} today",
            )
        )
    tiles.append(_last_sync_tile(seen))
    return element("ul", *tiles, class_="tiles")


def _tile(
    target: str, figure: str, below: str, drawn: Markup | None = None, *, alarm: bool = False
) -> Markup:
    link = element(
        "a",
        element("strong", figure),
        drawn or Markup(),
        element("small", below),
        href=f"#{target}",
        class_="alarm" if alarm else None,
    )
    return element("li", link)


def _budget_tile(spent: Spending, budget: Mapping[str, Any], name: str, now: float) -> Markup:
    used, pulls = budget["used"], budget["pulls"]
    window = duration_words(budget["window_seconds"])
    if pulls is None:
        return _tile("pulls", _datum(used), f"pulls from {spent.registry} in {window}, no limit")
    left = f"{budget['remaining']:,} left, {budget['reserve']:,} more reserved for the jobs"
    free = budget["next_free"]
    after = joined(["; next free ", _time(free, now)]) if free else ""
    return _tile(
        "pulls",
        joined([_datum(used), f" of {pulls:,}"]),
        joined([f"pulls from {spent.registry} used in {window}: {left}", after]),
        charts.meter(used, pulls, budget["reserve"], name),
    )


def _waiting_tile(seen: Overview) -> Markup:
    dates = _dates(seen)
    if not seen.waiting:
        return _tile("waiting", _datum(0), "images wait for the budget")
    first = joined(["; the first until ", _time(min(dates), seen.now)]) if dates else ""
    noun = "image waits" if len(seen.waiting) == 1 else "images wait"
    return _tile("waiting", _datum(len(seen.waiting)), joined([noun, first]))


def _last_sync_tile(seen: Overview) -> Markup:
    last = seen.status.document["last_sync"]
    if last is None:
        return _tile("runs", "never", "No sync has ended yet: run prewarm sync")
    ended = _ending(last["exit"])
    return _tile(
        "runs",
        _time(last["finished"], seen.now),
        f"last sync ended {ended}: {last.get('copied', 0):,} copied, "
        f"{_counted(last.get('pulls', 0), 'pull')}",
    )


# --- sections ---


def _problems(seen: Overview) -> Markup:
    shown = [_problem(one) for one in seen.problems]
    if not shown:
        synced = seen.status.document["last_sync"] is not None
        text = (
            "None: the last sync met nothing that needs you."
            if synced
            else "No sync has ended yet."
        )
        return _section("problems", "Problems", element("p", text))
    rest = shown[PROBLEMS_SHOWN:]
    return _section(
        "problems",
        "Problems",
        element("ul", *shown[:PROBLEMS_SHOWN], class_="problems"),
        _details(f"{len(rest):,} more", element("ul", *rest, class_="problems")) if rest else "",
    )


def _problem(one: Mapping[str, Any]) -> Markup:
    return element(
        "li",
        element("p", element("strong", one["severity"]), " ", _code(_cut(one["where"])),
                " ", element("span", one["code"], class_="dim")),
        element("p", _cut(one["problem"], 1000)),
        element("p", _cut(one["cure"], 1000), class_="cure"),
        class_=one["severity"],
    )  # fmt: skip


def _coverage(seen: Overview) -> Markup:
    told = seen.status.document
    series = _series(told["coverage_series"])
    if not series:
        return _section(
            "coverage", "Coverage over time", element("p", "The first whole sync notes it.")
        )
    present = series[-1][1] if told["coverage"] is None else told["coverage"]
    says = _coverage_sentence(series, present)
    start = _start(series, seen.now)
    by_day: dict[float, list[str]] = {}
    columns = [told["coverage_series"], *(one["coverage_series"] for one in told["mirrors"])]
    for place, column in enumerate(columns):
        for at, value in _series(column):
            row = by_day.setdefault(at // DAY * DAY, [""] * len(columns))
            row[place] = percent(value)  # the last of the day stays
    rows = [(_day(day, seen.now), *by_day[day]) for day in sorted(by_day, reverse=True)]
    heads = ["all mirrors", *(_host(one["url"]) for one in told["mirrors"])]
    several = len(told["mirrors"]) > 1
    if not several:
        heads, rows = ["served"], [row[:2] for row in rows]
    return _section(
        "coverage",
        "Coverage over time",
        element("p", says, " Each mirror on its own is told under Mirrors." if several else ""),
        charts.share([*series, (seen.now, present)], start, seen.now, says),
        _details(
            "The same in numbers",
            _table(
                "Coverage after the last sync of each day", ["day", *heads], rows,
                numbers=range(1, len(heads) + 1),
            ),
        ),
    )  # fmt: skip


def _coverage_sentence(series: Sequence[tuple[float, float]], present: float) -> str:
    first = series[0]
    if len(series) == 1:
        return f"The first sync, on {_date(first[0])}, noted {percent(first[1])}."
    says = f"From {percent(first[1])} on {_date(first[0])} to {percent(present)} now."
    high, (at, low) = _deepest_fall(series)
    if high - low < _FALL:
        return says
    return f"{says} On {_date(at)} it had fallen from {percent(high)} to {percent(low)}."


def _deepest_fall(series: Sequence[tuple[float, float]]) -> tuple[float, tuple[float, float]]:
    """Return how high it was, and the point to which it fell furthest from there."""
    high = series[0][1]
    falls = []
    for point in series:
        high = max(high, point[1])
        falls.append((high, point))
    return max(falls, key=lambda fall: fall[0] - fall[1][1])


def _failures(seen: Overview) -> Markup:
    values = seen.status.document["pull_failures_per_day"]
    if not values:
        return Markup("")
    if seen.scanned is None:
        text = "No scan has told of jobs yet: run prewarm scan."
        return _section("failures", "CI jobs that failed on a pull", element("p", text))
    total, late = sum(values), sum(values[-7:])
    days = _counted(len(values), "day")
    if not total:
        says = f"No job has failed on a pull in {days}."
    elif len(values) > 7:
        says = (
            f"In {days} {_counted(total, 'job')} failed because an image could not be pulled, "
            f"{late:,} of them in the last 7."
        )
    else:
        says = f"In {days} {_counted(total, 'job')} failed because an image could not be pulled."
    today = seen.now // DAY
    rows = [
        (_day((today - ago) * DAY, seen.now), f"{values[-1 - ago]:,}") for ago in range(len(values))
    ]
    return _section(
        "failures",
        "CI jobs that failed on a pull",
        element("p", says),
        charts.bars(values, seen.now, says) if total else "",
        _details(
            "The same in numbers",
            _table("Jobs that failed on a pull, by day", ["day", "jobs"], rows, numbers=[1]),
        )
        if total
        else "",
    )


def _spending(seen: Overview) -> Markup:
    metered = _metered(seen)
    if not metered:
        return _section(
            "pulls",
            "Pulls against the budget",
            element("p", "No pull has been spent, and no budget is known yet."),
        )
    parts = [
        part for number, spent in enumerate(metered) for part in _budget(seen, spent, f"b{number}")
    ]
    return _section("pulls", "Pulls against the budget", *parts)


def _budget(seen: Overview, spent: Spending, name: str) -> Iterator[Markup]:
    budget = seen.status.document["budgets"][spent.registry]
    window, pulls = duration_words(budget["window_seconds"]), budget["pulls"]
    days = len(spent.days) - 1
    says = (
        f"The most in any {window} of the last {_counted(days, 'day')} was "
        f"{_counted(spent.most, 'pull')}; now it is {budget['used']:,}."
    )
    if pulls is not None:
        most = max(0, pulls - budget["reserve"])
        says += f" prewarm may spend {most:,} of {pulls:,} ({budget['source']})."
        if spent.most > most:
            says += " It was more when the budget was another, or by --use-reserve."
    yield element("h3", f"{spent.registry}, ", _account(budget["account"]))
    yield element("p", says)
    yield charts.load(spent.steps, spent.start, seen.now, pulls, budget["reserve"], says, name)
    if pulls is not None:
        hatched = element("rect", width="100%", height="100%", fill=f"url(#{name})")
        yield element(
            "p",
            element("svg", hatched, class_="key", aria_hidden="true"),
            f"the reserve of {budget['reserve']:,}, left to the jobs themselves",
            class_="dim",
        )
    rows = [
        (_day(day.at, seen.now), f"{day.pulls:,}", f"{day.most:,}") for day in reversed(spent.days)
    ]
    yield _details(
        "The same in numbers",
        _table(
            f"Pulls from {spent.registry} by day",
            ["day", "pulls", f"most in any {window}"],
            rows,
            numbers=[1, 2],
        ),
    )


def _account(account: str) -> str:
    return account if account.startswith("anonymous") else f"account {account}"


def _mirrors(seen: Overview) -> Markup:
    mirrors = seen.status.document["mirrors"]
    rows = []
    for one in mirrors:
        series, coverage = _series(one["coverage_series"]), one["coverage"]
        drawn = Markup()
        if series:
            present = series[-1][1] if coverage is None else coverage
            says = f"from {percent(series[0][1])} to {percent(present)}"
            points = [*series, (seen.now, present)]
            drawn = charts.spark(points, _start(series, seen.now), seen.now, says)
        share = "" if coverage is None else element("data", percent(coverage), value=coverage)
        rows.append((_code(one["url"]), one["state"], share, drawn, one["mode"]))
    what = "CI's uses" if _has_uses(seen) else "the wanted images"
    heads = ["mirror", "state", "serves", "over time", "mode"]
    return _section(
        "mirrors",
        "Mirrors",
        _table(f"What each mirror serves of {what}", heads, rows, numbers=[2])
        if rows
        else element("p", "images.yml names no mirror."),
    )


def _images(seen: Overview) -> Markup:
    uses = _has_uses(seen)
    title = "Most used images" if uses else "Wanted images"
    if not seen.images:
        text = "None is known yet: run prewarm scan, or prewarm sync."
        return _section("images", title, element("p", text))
    hosts = [_host(one["url"]) for one in seen.status.document["mirrors"]]
    if len(hosts) == 1:
        hosts = ["state"]
    heads = ["image", *hosts, *(("jobs", "projects") if uses else ()), "what is next"]
    rows = []
    for shown in seen.images[:IMAGES_SHOWN]:
        use = shown.used
        numbers = (f"{use.jobs:,}", f"{use.projects:,}") if use else ()
        states = map(_state, shown.states)
        rows.append((_image(shown.image), *states, *numbers, _next(shown, seen.now)))
    after = len(hosts) + 1
    return _section(
        "images",
        title,
        _table(
            _images_caption(seen, uses=uses),
            heads,
            rows,
            numbers=[after, after + 1] if uses else [],
            classes={len(heads) - 1: "why"},
        ),
    )


def _images_caption(seen: Overview, *, uses: bool) -> str:
    number = _counted(len(seen.images), "image")
    more = len(seen.images) > IMAGES_SHOWN
    if not uses:
        return f"The first {IMAGES_SHOWN} of {number}" if more else f"All {number}, by rank"
    of = f"The {IMAGES_SHOWN} most used of {number}" if more else f"All {number}"
    return f"{of} that CI used in {duration_words(seen.history or 0)}"


def _next(shown: Shown, now: float) -> str:
    """What will become of an image that is not on every mirror, or why nothing will."""
    if not {"missing", "stale", "unknown"}.intersection(filter(None, shown.states)):
        return ""
    told = shown.told
    match told.get("action"):
        case "defer":
            wait = _until(told, now)
            return joined(["waits until ", wait] if told["until"] else ["waits, ", wait])
        case "skip":
            return _cut(f"left out: {told['reason']}")
        case "fail":
            return _cut(told["error"]["text"] if told.get("error") else told["reason"])
        case None:
            return "in no sync yet"
        case _:
            error = told.get("error")
            return _cut(error["text"]) if error else "the next sync looks again"


def _until(told: Mapping[str, Any], now: float) -> Markup:
    until = told["until"]
    if until is None:
        return Markup("nobody can know")
    time = _time(until, now)
    if datetime.fromisoformat(until).timestamp() <= now:
        return joined([time, ", so the next sync"])
    return time


def _waiting(seen: Overview) -> Markup:
    if not seen.waiting:
        return _section("waiting", "What waits", element("p", "Nothing waits for the budget."))
    dates = _dates(seen)
    number = len(seen.waiting)
    says: list[str] = [f"{_counted(number, 'image')} {'waits' if number == 1 else 'wait'}"]
    if dates:
        says += [", the first until ", _time(min(dates), seen.now)]
        if max(dates) != min(dates):
            says += [", the last until ", _time(max(dates), seen.now)]
    if (unknown := number - len(dates)) > 0:
        says += [f"; of {unknown:,} nobody can know until when"]
    heads = ["image", "until", "why"]
    rows = [
        (_image(one["image"]), _until(one, seen.now), _cut(one["reason"]))
        for one in seen.waiting[:_WAITING_MOST]
    ]
    first, others = rows[:WAITING_SHOWN], rows[WAITING_SHOWN:]
    caption = f"The first {len(first)}, in the order of the plan" if others else "By rank"
    parts = [_table(caption, heads, first, classes={2: "why"})]
    if others:
        told = f"The next {len(others)} of {number - len(first):,}"
        parts.append(_details(told, _table(told, heads, others, classes={2: "why"})))
    return _section(
        "waiting",
        "What waits",
        element("p", *says, ". A waiting image is no failure: jobs get it from upstream."),
        *parts,
    )


def _runs(seen: Overview) -> Markup:
    if not seen.runs:
        return _section("runs", "Last syncs", element("p", "None yet: run prewarm sync."))
    heads = ["started", "took", "ended", *_SUMMARY, "pulls", "moved", "problems"]
    rows = []
    for run in seen.runs:
        known = "copied" in run
        figures = [f"{run[name]:,}" if known else "" for name in (*_SUMMARY, "pulls")]
        moved = size_words(run["bytes"]) if known else ""
        problems = f"{run['problems']:,}" if known else ""
        rows.append(
            (_time(run["started"], seen.now), _took(run), _ending(run["exit"]), *figures, moved,
             problems)
        )  # fmt: skip
    return _section(
        "runs",
        "Last syncs",
        _table("The newest first", heads, rows, numbers=[1, *range(3, len(heads))]),
    )


# --- words and parts ---


def percent(ratio: float) -> str:
    """Return a share from 0 to 1 in percent, to one digit; 100 only where nothing lacks."""
    tenths = min(round(ratio * 1000), 999 if ratio < 1 else 1000)
    whole, tenth = divmod(tenths, 10)
    return f"{whole}.{tenth}%" if tenth else f"{whole}%"


def _has_uses(seen: Overview) -> bool:
    return any(shown.used for shown in seen.images[:1])


def _metered(seen: Overview) -> list[Spending]:
    """The budgets that have a limit, or of which something was spent."""
    budgets = seen.status.document["budgets"]
    return [
        spent
        for spent in seen.spending
        if budgets[spent.registry]["pulls"] is not None or spent.most
    ]


def _severities(seen: Overview) -> tuple[int, int]:
    counted = Counter(one["severity"] for one in seen.problems)
    return counted["error"], counted.total() - counted["error"]


def _dates(seen: Overview) -> list[str]:
    return [one["until"] for one in seen.waiting if one["until"] is not None]


def _series(points: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [
        (datetime.fromisoformat(one["at"]).timestamp(), one["coverage"])
        for one in points
        if one["coverage"] is not None
    ]


def _start(series: Sequence[tuple[float, float]], now: float) -> float:
    """When a chart of the series begins: with it, but a day ago at the latest."""
    return min(series[0][0], now - DAY)


def _section(name: str, title: str, *children: str) -> Markup:
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def _details(summary: str, *children: str) -> Markup:
    return element("details", element("summary", summary), *children)


def _table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Row],
    numbers: Iterable[int] = (),
    classes: Mapping[int, str] | None = None,
) -> Markup:
    """A table whose first column names its rows; it scrolls in a box of its own."""
    kinds = {**dict.fromkeys(numbers, "num"), **(classes or {})}
    head = [
        element("th", text, scope="col", class_="num" if kinds.get(place) == "num" else None)
        for place, text in enumerate(heads)
    ]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(
                element("td", cell, class_=kinds.get(place))
                for place, cell in enumerate(row[1:], 1)
            ),
        )
        for row in rows
    ]
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return element("div", table, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _image(reference: str) -> Markup:
    name = parse(reference).familiar
    shown = _cut(name)
    # Where it is narrow a name breaks between its parts first.
    parts = joined(re.split("(?<=[/:])", shown), Markup("<wbr>"))
    return element("code", parts, title=name if shown != name else None)


def _state(state: str | None) -> Markup:
    if state is None:
        return element("span", "not for it", class_="dim")
    mark = element("i", class_=f"mark {state}", aria_hidden="true")
    return element("span", mark, STATE_WORDS[state], class_="state")


def _code(text: str) -> Markup:
    return element("code", text)


def _datum(number: int) -> Markup:
    return element("data", f"{number:,}", value=number)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _time(text: str, now: float) -> Markup:
    """A time of the JSON for people."""
    return _at(datetime.fromisoformat(text).timestamp(), now)


def _at(at: float, now: float) -> Markup:
    """A time for people; the day is left out where it is today."""
    words = when(at).removesuffix(" UTC")
    if at // DAY == now // DAY:
        words = f"today {words[-5:]}"
    return element("time", words, datetime=iso(at))


def _day(at: float, now: float) -> Markup:
    words = when(at).removesuffix(" 00:00 UTC")
    today = at // DAY == now // DAY
    return element("time", "today" if today else words, datetime=(iso(at) or "")[:10])


def _date(at: float) -> str:
    _, day, month, *_ = when(at).split()
    return f"{day.lstrip('0')} {month}"


def _ending(code: int | None) -> str:
    return _ENDINGS.get(code, f"with exit {code}")


def _took(run: Mapping[str, Any]) -> str:
    if run["finished"] is None:
        return ""
    start, end = (datetime.fromisoformat(run[name]).timestamp() for name in ("started", "finished"))
    minutes, seconds = divmod(int(max(0.0, end - start)), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _host(url: str) -> str:
    return url.partition("://")[2]


def _cut(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
