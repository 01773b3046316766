"""Charts as SVG: a share over time, the load of a window against its budget, sums by day.

A chart is as wide as its place and as high as is written here: what is drawn is stretched, text and
strokes are not, so that it reads alike on a phone. Colours are those of the page, by class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from prewarm.core.usage import DAY
from prewarm.reports.html.markup import Markup, element

Points = Sequence[tuple[float, float]]
"""Times in epoch seconds, with values; the oldest first."""

_WIDTH: Final = 1000
"""Units of the stretched drawing, whatever its width."""
_HEAD: Final = 8
_PLOT: Final = 150
_FOOT: Final = 24
"""Pixels above the drawing, of its own, and below it."""
_LINE: Final = 14
"""Of a line of text."""
_SPARK: Final = 28
_BINS: Final = 500
_STEPS: Final = (3600, 3 * 3600, 6 * 3600, 12 * 3600, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 28 * DAY)
_MARKS: Final = 7
"""Times at most below a chart; a narrow one leaves every other out."""
_MONDAY: Final = 4 * DAY
"""The epoch began on a Thursday."""


def share(points: Points, start: float, end: float, says: str) -> Markup:
    """Return a chart of shares from 0 to 1 over time; `says` tells it in a sentence."""
    return _framed(
        [
            *_grid([(0, "0%"), (0.5, "50%"), (1, "100%")], 1),
            _plot(*_area(_placed(points, start, end, 1, _PLOT), _PLOT)),
            _end(points, start, end),
            *_times(start, end),
        ],
        says,
    )


def spark(points: Points, start: float, end: float, says: str) -> Markup:
    """Return a share over time as small as a word."""
    drawn = _area(_placed(points, start, end, 1, _SPARK), _SPARK)
    return element(
        "svg",
        *drawn,
        class_="spark",
        role="img",
        aria_label=says,
        viewBox=f"0 0 {_WIDTH} {_SPARK}",
        preserveAspectRatio="none",
    )


def load(
    steps: Points, start: float, end: float, pulls: int | None, reserve: int, says: str, name: str
) -> Markup:
    """Return a chart of what each window held that ended at a time; a value holds until the next.

    The reserve, the upper part of the budget of `pulls`, is hatched. `name` is the chart's own.
    """
    binned = peaks(steps, start, end)
    top = max([pulls or 0, *(value for _, value in binned), 1])
    marks = [
        (value, f"{value:g}")
        for value in ticks(top, whole=True)
        if pulls is None or _PLOT * abs(value - pulls) / top > _LINE
    ]
    if pulls is not None:
        marks.append((pulls, f"{pulls}"))
    return _framed(
        [
            *_budget(pulls, reserve, top, name),
            *_grid(marks, top),
            _plot(*_stairs(_placed(binned, start, end, top, _PLOT))),
            *_times(start, end),
        ],
        says,
    )


def bars(values: Sequence[int], last: float, says: str) -> Markup:
    """Return a bar for each day; the last is the day (UTC) that holds the time `last`."""
    top = max(*values, 1)
    first = (last // DAY - len(values) + 1) * DAY
    width = 100 / len(values)
    drawn = [
        element(
            "rect",
            element("title", f"{_day(first + number * DAY)}: {value}"),
            class_="bar",
            x=f"{(number + 0.15) * width:.3f}%",
            width=f"{0.7 * width:.3f}%",
            y=f"{_HEAD + _PLOT * (1 - value / top):.1f}",
            height=f"{_PLOT * value / top:.1f}",
        )
        for number, value in enumerate(values)
        if value
    ]
    every = math.ceil(len(values) / _MARKS)
    # The last day has a mark always.
    marked = range((len(values) - 1) % every, len(values), every)
    return _framed(
        [
            *_grid([(value, f"{value:g}") for value in ticks(top, whole=True)], top),
            *drawn,
            *(
                _time((number + 0.5) * width, _day(first + number * DAY), minor=place % 2 == 1)
                for place, number in enumerate(reversed(marked))
            ),
        ],
        says,
    )


def meter(used: int, pulls: int, reserve: int, name: str) -> Markup:
    """Return a bar as long as what is used of a budget, the reserve hatched; for the eye alone."""
    top = max(used, pulls, 1)
    kept = min(reserve, pulls)
    return element(
        "svg",
        _hatch(name),
        _rect("track", 0, pulls / top),
        _rect("reserve", (pulls - kept) / top, kept / top, fill=f"url(#{name})"),
        _rect("bar", 0, used / top),
        class_="meter",
        aria_hidden="true",
    )


def _rect(class_: str, start: float, width: float, fill: str | None = None) -> Markup:
    sizes = {"x": f"{100 * start:.2f}%", "width": f"{100 * width:.2f}%", "height": "100%"}
    return element("rect", class_=class_, fill=fill, **sizes)


def peaks(steps: Points, start: float, end: float) -> list[tuple[float, float]]:
    """Return the highest value in each of many equal parts of the time, a value holding until the
    next; the last point is the end, with the last value."""
    length = (end - start) / _BINS
    found: dict[int, float] = {}
    for (since, value), (until, _) in pairwise([*steps, (end, 0.0)]):
        first = math.floor((max(since, start) - start) / length)
        last = math.ceil((min(until, end) - start) / length)
        # However short a value held, it is seen.
        for part in range(first, min(_BINS, max(first + 1, last))):
            found[part] = max(found.get(part, 0.0), value)
    levels = [found.get(part, 0.0) for part in range(_BINS)]
    changes = [
        (start + part * length, level)
        for part, level in enumerate(levels)
        if part == 0 or level != levels[part - 1]
    ]
    return [*changes, (end, steps[-1][1])] if steps else changes


def ticks(top: float, *, whole: bool = False) -> list[float]:
    """Return three to six round values from 0 to the top; of `whole` numbers perhaps fewer."""
    power = 10.0 ** math.floor(math.log10(top / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if top / (power * factor) <= 5)
    if whole:
        step = max(1.0, step)
    return [number * step for number in range(math.floor(top / step + 1e-9) + 1)]


# --- the parts ---


def _framed(parts: Iterable[Markup], says: str) -> Markup:
    height = _HEAD + _PLOT + _FOOT
    return element(
        "svg", *parts, class_="chart", role="img", aria_label=says, width="100%", height=height
    )


def _plot(*drawn: Markup) -> Markup:
    return element(
        "svg",
        *drawn,
        y=_HEAD,
        width="100%",
        height=_PLOT,
        viewBox=f"0 0 {_WIDTH} {_PLOT}",
        preserveAspectRatio="none",
    )


def _placed(
    points: Points, start: float, end: float, top: float, height: int
) -> list[tuple[str, str]]:
    return [
        (
            f"{_WIDTH * (at - start) / (end - start):.1f}".removesuffix(".0"),
            f"{height * (1 - value / top):.1f}".removesuffix(".0"),
        )
        for at, value in points
    ]


def _area(placed: Sequence[tuple[str, str]], height: int) -> list[Markup]:
    """A line from point to point, and what lies below it."""
    if not placed:
        return []
    line = "M" + "L".join(f"{x} {y}" for x, y in placed)
    return [
        element("path", class_="area", d=f"{line}V{height}H{placed[0][0]}Z"),
        element("path", class_="line", d=line),
    ]


def _stairs(placed: Sequence[tuple[str, str]]) -> list[Markup]:
    (x, y), *others = placed
    line = f"M{x} {y}" + "".join(f"H{x}V{y}" for x, y in others)
    return [
        element("path", class_="area", d=f"{line}V{_PLOT}H{x}Z"),
        element("path", class_="line", d=line),
    ]


def _end(points: Points, start: float, end: float) -> Markup:
    """A dot at the last point: a line of one point alone would not be seen."""
    if not points:
        return Markup("")
    at, value = points[-1]
    place = f"{100 * (at - start) / (end - start):.2f}%"
    return element("circle", class_="dot", cx=place, cy=f"{_HEAD + _PLOT * (1 - value):.1f}", r=4)


def _budget(pulls: int | None, reserve: int, top: float, name: str) -> list[Markup]:
    if pulls is None:
        return []
    high, low = (_HEAD + _PLOT * (1 - value / top) for value in (pulls, max(0, pulls - reserve)))
    return [
        _hatch(name),
        element(
            "rect",
            class_="reserve",
            fill=f"url(#{name})",
            y=f"{high:.1f}",
            width="100%",
            height=f"{low - high:.1f}",
        ),
        element("line", class_="limit", x2="100%", y1=f"{low:.1f}", y2=f"{low:.1f}"),
    ]


def _hatch(name: str) -> Markup:
    return element(
        "pattern",
        element("path", class_="hatch", d="M-1 7L7 -1M-1 1L1 -1M5 7L7 5"),
        id=name,
        width=6,
        height=6,
        patternUnits="userSpaceOnUse",
    )


def _grid(marks: Iterable[tuple[float, str]], top: float) -> list[Markup]:
    drawn = []
    for value, label in marks:
        y = f"{_HEAD + _PLOT * (1 - value / top):.1f}"
        drawn.append(element("line", class_="grid" if value else "base", x2="100%", y1=y, y2=y))
        drawn.append(element("text", label, x=-8, y=y, dy="0.35em", text_anchor="end"))
    return drawn


def _times(start: float, end: float) -> list[Markup]:
    step = next((step for step in _STEPS if (end - start) / step <= _MARKS), _STEPS[-1])
    shift = _MONDAY if step >= 7 * DAY else 0
    first = math.ceil((start - shift) / step)
    last = math.floor((end - shift) / step)
    # From the end, so that the same ones stay where the chart is narrow.
    return [
        _time(
            100 * (number * step + shift - start) / (end - start),
            _day(number * step + shift) if step >= DAY else _hour(number * step),
            minor=(last - number) % 2 == 1,
        )
        for number in range(first, last + 1)
    ]


def _time(percent: float, label: str, *, minor: bool) -> Markup:
    anchor = "start" if percent < 7 else "end" if percent > 93 else "middle"
    return element(
        "text",
        label,
        class_="minor" if minor else None,
        x=f"{min(100.0, max(0.0, percent)):.2f}%",
        y=_HEAD + _PLOT + _FOOT - 6,
        text_anchor=anchor,
    )


def _day(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment.day} {moment:%b}"


def _hour(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment:%H:%M}" if moment.hour else _day(at)
