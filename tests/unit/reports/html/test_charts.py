"""Charts: what is drawn lies where its numbers say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.usage import DAY
from prewarm.reports.html import charts
from prewarm.reports.html.markup import Markup

NOW = 1_800_000_000.0  # 08:00 on Friday, 15 January 2027
PLOT = 150.0
HEAD = 8.0


def read(drawn: Markup) -> ET.Element:
    return ET.fromstring(drawn)


def line(root: ET.Element) -> str:
    (path,) = [one for one in root.iter("path") if one.get("class") == "line"]
    return path.attrib["d"]


def labels(root: ET.Element) -> list[str]:
    return [one.text or "" for one in root.iter("text")]


def test_share_is_a_line_from_the_first_point_to_the_end() -> None:
    points = [(NOW - 2 * DAY, 0.5), (NOW - DAY, 1.0), (NOW, 0.75)]
    root = read(charts.share(points, NOW - 2 * DAY, NOW, "it rose"))
    assert line(root) == "M0 75L500 0L1000 37.5"
    assert root.attrib["aria-label"] == "it rose"
    (dot,) = root.iter("circle")
    assert (dot.attrib["cx"], float(dot.attrib["cy"])) == ("100.00%", HEAD + PLOT / 4)
    assert labels(root)[:3] == ["0%", "50%", "100%"]
    assert labels(root)[3:] == ["12:00", "14 Jan", "12:00", "15 Jan"]


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (1, ["12:00", "18:00", "15 Jan", "06:00"]),
        (6, ["10 Jan", "11 Jan", "12 Jan", "13 Jan", "14 Jan", "15 Jan"]),
        (12, ["4 Jan", "6 Jan", "8 Jan", "10 Jan", "12 Jan", "14 Jan"]),
        (28, ["21 Dec", "28 Dec", "4 Jan", "11 Jan"]),
        (90, ["26 Oct", "9 Nov", "23 Nov", "7 Dec", "21 Dec", "4 Jan"]),
    ],
)
def test_times_below_are_round_and_few(days: int, expected: list[str]) -> None:
    told = labels(read(charts.share([(NOW, 1.0)], NOW - days * DAY, NOW, "")))[3:]
    assert told == expected


@given(st.integers(1, 10**9))
def test_ticks_are_few_and_round_and_reach_nearly_the_top(top: int) -> None:
    found = charts.ticks(top, whole=True)
    assert found[0] == 0
    assert found[-1] <= top < found[-1] + (found[1] if len(found) > 1 else 2)
    assert 2 <= len(found) <= 6
    assert all(value == int(value) for value in found)
    assert set(re.sub("0+$", "", f"{found[1]:.0f}")) <= {"1", "2", "5"}


STEPS = st.lists(
    st.tuples(st.floats(0, 999), st.integers(0, 300)), min_size=1, max_size=60,
    unique_by=lambda step: step[0],
).map(sorted)  # fmt: skip


@given(STEPS)
def test_peaks_hide_no_peak_and_make_none_up(steps: list[tuple[float, int]]) -> None:
    steps = [(0.0, steps[0][1]), *(step for step in steps if step[0] > 0)]
    found = charts.peaks(steps, 0.0, 1000.0)
    assert max(value for _, value in found) == max(value for _, value in steps)
    assert list(found[-1]) == [1000.0, steps[-1][1]]
    assert [at for at, _ in found] == sorted({at for at, _ in found})

    def level(at: float) -> float:
        return [value for since, value in found if since <= at][-1]

    for at, held in steps:
        assert level(at) >= held
    part = 1000.0 / 500
    for at, value in found[:-1]:
        # Somewhere in its part it is as high as that.
        inside = [held for since, held in steps if at - 1e-6 <= since < at + part]
        before = [held for since, held in steps if since <= at + 1e-6]
        assert value in (*inside, *before[-1:])


def test_load_draws_the_budget_and_hatches_its_reserve() -> None:
    steps = [(0.0, 0), (250.0, 100), (500.0, 0), (1000.0, 50)]
    root = read(charts.load(steps, 0.0, 1000.0, 200, 20, "so", "b0"))
    assert line(root) == "M0 150H250V75H500V150H1000V112.5"
    (hatched,) = [one for one in root.iter("rect") if one.get("class") == "reserve"]
    assert (float(hatched.attrib["y"]), float(hatched.attrib["height"])) == (HEAD, PLOT / 10)
    assert hatched.attrib["fill"] == "url(#b0)"
    assert [one.get("id") for one in root.iter("pattern")] == ["b0"]
    assert labels(root)[:5] == ["0", "50", "100", "150", "200"]


def test_load_above_the_budget_shows_both() -> None:
    root = read(charts.load([(0.0, 400), (1000.0, 0)], 0.0, 1000.0, 200, 50, "", "b0"))
    assert line(root) == "M0 0H1000V150"
    (limit,) = [one for one in root.iter("line") if one.get("class") == "limit"]
    assert float(limit.attrib["y1"]) == pytest.approx(HEAD + PLOT * (1 - 150 / 400), abs=0.1)


def test_load_without_a_limit_has_no_budget_line() -> None:
    drawn = charts.load([(0.0, 0), (1000.0, 0)], 0.0, 1000.0, None, 0, "", "b0")
    assert 'class="limit"' not in drawn
    assert labels(read(drawn))[:2] == ["0", "1"]


def test_bars_are_as_high_as_their_sums_and_the_last_day_is_marked() -> None:
    root = read(charts.bars([4, 0, 2, 1], NOW, "few"))
    bars = [one for one in root.iter("rect") if one.get("class") == "bar"]
    assert [float(one.attrib["height"]) for one in bars] == [PLOT, PLOT / 2, PLOT / 4]
    assert [one[0].text for one in bars] == ["12 Jan: 4", "14 Jan: 2", "15 Jan: 1"]
    assert "15 Jan" in labels(root)
    for days in range(1, 40):
        marks = [t for t in labels(read(charts.bars([1] * days, NOW, ""))) if " " in t]
        assert "15 Jan" in marks
        assert len(marks) <= 7


def test_meter_is_as_long_as_what_is_used() -> None:
    root = read(charts.meter(50, 200, 20, "m0"))
    track, reserve, bar = root.iter("rect")
    assert bar.attrib["width"] == "25.00%"
    assert (reserve.attrib["x"], reserve.attrib["width"]) == ("90.00%", "10.00%")
    assert track.attrib["width"] == "100.00%"
    assert read(charts.meter(0, 0, 0, "m0")) is not None
