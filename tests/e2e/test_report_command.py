"""`prewarm report --html` as people see it: real commands, and a real browser."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prewarm.state import clock
from prewarm.state.ledger import Ledger
from tests.e2e.host import Host
from tests.sandbox import Sandbox
from tests.sandbox.gitlab import TOKEN, Gitlab
from tests.support.browser import Scheme, Tab, chromium
from tests.support.process import Finished, run_prewarm
from tests.support.weeks import IMAGES_YML, fill

VIEWS: tuple[tuple[int, Scheme], ...] = (
    (360, "light"),
    (360, "dark"),
    (1280, "light"),
    (1280, "dark"),
)
LOUD = "<script>window.hacked = 1</script><img src=http://127.0.0.1:9/x onerror='window.hacked=1'>"

# The contrast of each text with what lies behind it (WCAG 2.2, 1.4.3), for what is below 4.5.
PALE = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, below) => below.map((b, i) => (top[i] * top[3] + b * (255 - top[3])) / 255);
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    const own = rgba(getComputedStyle(one).backgroundColor);
    if (own[3] === 255) return own.slice(0, 3);
    return over(own, one.parentElement ? ground(one.parentElement) : [255, 255, 255]);
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const text = [...one.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
    if (!text.length || one.closest("title")) continue;
    const style = getComputedStyle(one);
    const behind = ground(one.closest("svg")?.parentElement ?? one);
    const ink = over(rgba(one.namespaceURI.includes("svg") ? style.fill : style.color), behind);
    const [a, b] = [light(ink), light(behind)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([one.tagName, text[0].data.slice(0, 30), ratio]);
  }
  return found;
})()
"""
OVERLAPS = """
[...document.querySelectorAll("svg.chart")].flatMap((chart) => {
  const boxes = [...chart.querySelectorAll(":scope > text")]
    .map((text) => [text.textContent, text.getBoundingClientRect()]).filter(([, box]) => box.width);
  return boxes.flatMap(([name, a], place) => boxes.slice(place + 1)
    .filter(([, b]) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
    .map(([other]) => [name, other]));
})
"""
CELLS = """
(name) => [...document.querySelectorAll(`#${name} table`)].map((table) =>
  [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.innerText.trim())))
"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium() as running:
        yield running


def write(folder: Path, *, config: Path | None = None) -> Path:
    file = folder / "report.html"
    done = run_prewarm(["report", "--html", str(file)], folder, config=config)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return file


def configured(folder: Path, text: str = IMAGES_YML) -> Path:
    """Write images.yml with a state of its own, and return where that is."""
    folder.mkdir(exist_ok=True)
    state = folder / "prewarm.db"
    (folder / "images.yml").write_text(f"{text}state: {state}\n")
    return state


@pytest.fixture(scope="module")
def weeks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the state of four weeks, and a page of it."""
    folder = tmp_path_factory.mktemp("weeks")
    with Ledger.open(configured(folder)) as ledger:
        fill(ledger, clock.now())
    write(folder)
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same where names and texts are made to break out of the page."""
    folder = tmp_path_factory.mktemp("hostile")
    long = f"docker.io/{'team/' * 40}tool:{'v' * 120}"
    with Ledger.open(configured(folder)) as ledger:
        fill(ledger, clock.now(), 60, extra=[long])
        (run,) = ledger.runs(1)
        report = json.loads(run.report or "")
        bad = dict.fromkeys(("where", "problem", "cure"), f"{LOUD}\u202e\x1b[31m{'y' * 500}")
        report["problems"] = [{"severity": "error", "code": LOUD, **bad}]
        for entry in report["images"]:
            entry["reason"] = f"{'z' * 300} {LOUD}"
        ledger.finish_run(run.id, 1, json.dumps(report), clock.now())
    write(folder)
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    configured(folder)
    write(folder)
    return folder


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("state", ["weeks", "hostile", "empty"])
def test_page_is_quiet_alone_and_fits_the_screen(
    tab: Tab, request: pytest.FixtureRequest, state: str, width: int, scheme: Scheme
) -> None:
    url = (request.getfixturevalue(state) / "report.html").as_uri()
    tab.open(url, width=width, scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("document.fonts.status") == "loaded"
    assert tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    assert tab.evaluate(PALE) == []
    assert tab.evaluate("window.hacked === undefined && document.scripts.length === 0")
    # A caption is read without scrolling.
    right = "[...document.querySelectorAll('caption')].map((c) => c.getBoundingClientRect().right)"
    assert max(tab.evaluate(right)) <= width
    # Text of a chart lies within the page.
    assert (
        tab.evaluate(
            "[...document.querySelectorAll('svg text')].filter((text) => {"
            "const box = text.getBoundingClientRect();"
            f"return box.width && (box.left < 0 || box.right > {width}) }}).length"
        )
        == 0
    )
    assert tab.evaluate(OVERLAPS) == []
    assert (tab.requests, tab.complaints) == ([url], [])


def test_page_numbers_in_the_browser_are_those_of_status_json(tab: Tab, weeks: Path) -> None:
    told = run_prewarm(["status", "--json"], weeks).json
    tab.open((weeks / "report.html").as_uri())
    assert tab.evaluate("document.querySelector('h1 data').value") == str(told["coverage"])
    assert tab.evaluate("document.querySelector('h1').innerText").replace("\n", " ") == (
        f"{told['coverage'] * 100:.1f}% of CI's image uses are served locally"
    )
    assert told["coverage"] < 1
    budget = told["budgets"]["docker.io"]
    used = tab.evaluate("document.querySelector('.tiles a[href=\"#pulls\"] strong').innerText")
    assert used == f"{budget['used']} of {budget['pulls']}"
    failures = tab.evaluate("document.querySelector('.tiles a[href=\"#failures\"] data').value")
    assert failures == str(sum(told["pull_failures_per_day"]))
    problems = tab.evaluate("document.querySelectorAll('#problems li').length")
    assert problems == len(told["last_sync"]["problems"]) == 2
    shares = tab.evaluate(
        "[...document.querySelectorAll('#mirrors td data')].map((one) => one.value)"
    )
    assert shares == [str(one["coverage"]) for one in told["mirrors"]]
    (runs,) = tab.evaluate(f"({CELLS})('runs')")
    last = told["last_sync"]
    names = ("copied", "tagged", "fresh", "deferred", "skipped", "failed", "pulls")
    assert runs[0][3:10] == [str(last[name]) for name in names]
    assert len(runs) == len(told["runs"])
    assert tab.evaluate("document.querySelector('#runs time').dateTime") == last["started"]


def test_page_images_in_the_browser_have_the_states_of_the_ledger(tab: Tab, weeks: Path) -> None:
    tab.open((weeks / "report.html").as_uri())
    (images,) = tab.evaluate(f"({CELLS})('images')")
    with Ledger.open(weeks / "prewarm.db", read_only=True) as ledger:
        known = {(one.image, one.mirror): one.state for one in ledger.states()}
    words = {"fresh": "warm", "stale": "stale", "missing": "missing"}
    hosts = tab.evaluate(
        "[...document.querySelectorAll('#images thead th')].map((t) => t.innerText)"
    )
    assert hosts[1:3] == ["127.0.0.1:5000", "mirror.example.org"]
    for name, near, far, *_ in images:
        (image,) = {one for one, _ in known if one.endswith(f"/{name}") or one == name}
        told = [words[state] for (one, _), state in sorted(known.items()) if one == image]
        assert [near, far] == told


def test_page_in_the_dark_is_dark_and_a_chart_is_told_to_screen_readers(
    tab: Tab, weeks: Path
) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        tab.open((weeks / "report.html").as_uri(), scheme=scheme)
        grounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(19, 22, 27)"]
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    names: dict[str, list[str]] = {}
    for node in tree:
        if not node.get("ignored"):
            names.setdefault(node["role"]["value"], []).append(
                node.get("name", {}).get("value", "")
            )
    images = names["image"]
    assert sum(name.startswith("From ") for name in images) == 1
    assert (
        sum(name.startswith("The most in any 6h of the last 7 days was ") for name in images) == 1
    )
    assert sum(name.startswith("In 29 days ") for name in images) == 1
    assert all(images)
    assert all(names["table"])
    assert names["main"]


def test_page_on_paper_unfolds_what_is_folded(tab: Tab, weeks: Path) -> None:
    tab.open((weeks / "report.html").as_uri())
    visible = "[...document.querySelectorAll('details table')].map((t) => t.checkVisibility())"
    assert tab.evaluate(visible) == [False] * 4
    tab.call("Emulation.setEmulatedMedia", media="print")
    shown = tab.evaluate(visible)
    tab.call("Emulation.setEmulatedMedia", media="")
    assert shown == [True] * 4


def test_page_on_paper_is_light_also_where_the_screen_is_dark(tab: Tab, weeks: Path) -> None:
    tab.open((weeks / "report.html").as_uri(), scheme="dark")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    tab.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate(PALE) == []
    tab.call("Emulation.setEmulatedMedia", media="")


# The command


def test_report_after_a_real_sync_tells_what_waits_and_what_is_warm(
    tab: Tab, box: Sandbox, tmp_path: Path
) -> None:
    host = Host(tmp_path, box)
    with Gitlab() as site:
        for number, (name, jobs) in enumerate({"a": 6, "b": 3, "gone": 2}.items()):
            if name != "gone":
                box.push(f"library/{name}", "1")
            text = f"x:\n  image: {name}:1\n  script: [x]\n"
            project = site.add_project(f"team/p{number}", text)
            for _ in range(jobs):
                site.add_job(project, "x")
        (tmp_path / "token").write_text(TOKEN)
        budget = {"pulls": 1, "window": "6h", "reserve": 0}
        host.configure(
            [],
            gitlab={"url": site.url, "token_file": str(tmp_path / "token"), "history": "3d"},
            registries={"docker.io": {"endpoint": box.hub.url, "budget": budget}},
        )
        done = host.sync()
    assert done.named("copy") == ["a:1"]
    # Neither GitLab nor a registry is asked.
    host.forget_requests()
    told = host.run("status", "--json").json
    tab.open(write(tmp_path, config=host.config).as_uri())
    assert [tap.access.writes() for tap in box.taps] == [[]]
    assert list(box.hub.access) == []
    assert tab.evaluate("document.querySelector('h1 data').value") == str(told["coverage"])
    (images,) = tab.evaluate(f"({CELLS})('images')")
    assert [row[:4] for row in images] == [
        ["a:1", "warm", "6", "1"],
        ["b:1", "missing", "3", "1"],
        ["gone:1", "missing", "2", "1"],
    ]
    (waiting,) = tab.evaluate(f"({CELLS})('waiting')")
    (until,) = [one["until"] for one in done.report["images"] if one["action"] == "defer"]
    assert [row[0] for row in waiting] == ["b:1"]
    assert tab.evaluate("document.querySelector('#waiting td time').dateTime") == until
    (problem,) = done.report["problems"]
    text = tab.evaluate("document.querySelector('#problems li').innerText")
    assert all(part in text for part in (problem["where"], problem["problem"], problem["cure"]))
    assert images[2][-1] == done.image("gone:1")["error"]["text"]
    assert (len(tab.requests), tab.complaints) == (1, [])


def report(folder: Path, *args: str) -> Finished:
    return run_prewarm(["report", *args], folder)


def test_report_to_stdout_is_the_page_alone(weeks: Path) -> None:
    done = report(weeks, "--html", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("<!doctype html>\n")
    assert done.stdout.endswith("</html>\n")


def test_report_replaces_an_older_page_for_all_to_read(empty: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")
    file.chmod(0o600)
    assert report(empty, "--html", str(file)).returncode == 0
    assert file.read_text().startswith("<!doctype html>")
    assert stat.S_IMODE(file.stat().st_mode) & 0o600 == 0o600
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--html", "{}/missing/report.html"], "No such file or directory; name another file"),
        (["--html", "{}"], "Is a directory; name another file"),
        ([], "Missing option '--html'"),
    ],
)
def test_report_where_it_cannot_write_is_one_line_and_exit_2(
    empty: Path, tmp_path: Path, args: list[str], told: str
) -> None:
    done = report(empty, *(word.format(tmp_path) for word in args))
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_report_of_no_state_makes_none(tmp_path: Path) -> None:
    state = configured(tmp_path)
    text: Any = report(tmp_path, "--html", "-").stdout
    assert "Nothing has been synced yet" in text
    assert not state.exists()
