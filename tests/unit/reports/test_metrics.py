"""Metrics: what a state tells, in a format that Prometheus reads, and the docs that name them."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import stat
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from prewarm.core.budget import Limit, Moment, Window
from prewarm.core.errors import PrewarmError, Problem
from prewarm.core.records import PastScan, Reservation
from prewarm.core.settings import Gitlab, Mirror, Settings
from prewarm.core.usage import Count, Key, Mark
from prewarm.daemon.prometheus import text_of, write
from prewarm.discovery.scan import token_expiry
from prewarm.planning.plan import Quota
from prewarm.reports.metrics import METRICS, PROBLEMS, PULLS, Sample, samples_of
from prewarm.reports.report import Report, to_json
from prewarm.state.ledger import Ledger

DOCS = Path(__file__).parents[3] / "docs"
WALL = 1_800_000_000.0
URL = 'http://127.0.0.1:5000/a"b'
SETTINGS = Settings(Path("/etc/prewarm/images.yml"), mirrors=(Mirror(URL, URL),))
STATE = Path("/var/lib/prewarm/prewarm.db")
FULL = Problem("error", "mirror-full", URL, "is full", "free disk")
FIRST_SAMPLES = {
    "prewarm_images",
    "prewarm_actions_total",
    "prewarm_pulls_total",
    "prewarm_bytes_total",
}

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def moment(seconds: float = 0.0) -> Moment:
    return Moment(WALL + seconds, "boot", 1000.0 + seconds)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.memory() as opened:
        yield opened


def finish(ledger: Ledger, at: float, exit_code: int, *problems: Problem, **more: Any) -> str:
    """Record a run of 7 seconds that copied one image and skipped one."""
    run = ledger.start_run(moment(at - 7))
    ledger.note_copy(run, "a:1", "copy", "missing", 1, 2, 500, 1.0, moment(at))
    ledger.note_copy(run, "b:1", "skip", "private", 0, 0, 0, 0.0, moment(at))
    quota = Quota("acme", Window(10, 21600, 2), "written", (), Limit(100, 21600, 40, ""))
    report = Report(run, False, WALL, WALL + at, {"docker.io": quota}, (), problems)
    ledger.finish_run(run, exit_code, json.dumps(to_json(report)), moment(at), **more)
    return run


def spend(ledger: Ledger, at: float, pulls: int) -> None:
    window = Window(None, 21600)
    reserved = ledger.reserve("r", "docker.io", "acme", "x", "d", pulls, pulls, window, moment(at))
    assert isinstance(reserved, Reservation)
    ledger.settle(reserved, pulls, pulls, "done", moment(at + 1))


def values(
    ledger: Ledger, at: float = 100, settings: Settings = SETTINGS, failure: Problem | None = None
) -> Values:
    """Return what a Prometheus reads, by name and sorted labels."""
    text = text_of(samples_of(settings, ledger, moment(at), STATE, failure)).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def promtool(*args: str, text: bytes = b"") -> None:
    done = subprocess.run(["promtool", *args], input=text, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_metrics_of_an_empty_state_are_zero_or_absent(ledger: Ledger) -> None:
    found = values(ledger)
    assert set(found.values()) == {0.0}
    assert {name for name, _ in found} == FIRST_SAMPLES
    text = text_of(samples_of(SETTINGS, ledger, moment(), STATE)).decode()
    assert set(re.findall("^# TYPE (\\w+)", text, re.MULTILINE)) == FIRST_SAMPLES


def test_metrics_tell_budget_runs_problems_and_mirrors(ledger: Ledger) -> None:
    spend(ledger, 0, 3)
    finish(ledger, 20, 0)
    finish(ledger, 30, 1, FULL, FULL)
    ledger.note_state("docker.io/library/a:1", URL, "fresh", "sha256:0", moment())
    ledger.note_state("docker.io/library/b:1", URL, "missing", None, moment())
    found = values(ledger)
    account = (("account", "acme"), ("registry", "docker.io"))
    expected = {
        ("prewarm_budget_pulls", account): 10,
        ("prewarm_budget_used", account): 3,
        ("prewarm_reported_remaining", account): 40,
        # Of a mirror at which the last run failed its own line still tells.
        ("prewarm_coverage_ratio", (("mirror", URL),)): 0.5,
        ("prewarm_images", (("state", "missing"),)): 1,
        ("prewarm_actions_total", (("action", "copy"),)): 2,
        ("prewarm_actions_total", (("action", "skip"),)): 2,
        ("prewarm_pulls_total", ()): 3,
        ("prewarm_bytes_total", ()): 1000,
        ("prewarm_last_success_timestamp_seconds", ()): WALL + 20,
        ("prewarm_run_duration_seconds", ()): 7,
        ("prewarm_problems", (("code", "mirror-full"), ("severity", "error"))): 2,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_metrics_of_a_named_image_change_neither_problems_nor_success(ledger: Ledger) -> None:
    finish(ledger, 20, 1, FULL)
    before = values(ledger)
    finish(ledger, 30, 0, whole=False)
    after = values(ledger)
    for name in ("prewarm_problems", "prewarm_last_success_timestamp_seconds"):
        assert [(k, v) for k, v in before.items() if k[0] == name] == [
            (k, v) for k, v in after.items() if k[0] == name
        ]
    assert after[("prewarm_bytes_total", ())] == 1000


def test_metrics_of_a_sync_that_broke_off_show_what_broke_it(ledger: Ledger) -> None:
    finish(ledger, 20, 1, FULL)
    failure = Problem("error", "state", "sync", "the disk is full", "free it")
    found = values(ledger, failure=failure)
    problems = {labels: value for (name, labels), value in found.items() if "problems" in name}
    assert problems == {(("code", "state"), ("severity", "error")): 1}


def test_totals_never_fall_when_the_state_forgets(ledger: Ledger) -> None:
    seen = [values(ledger)]
    for day in range(0, 300, 20):
        at = day * 86400.0
        spend(ledger, at, 2)
        finish(ledger, at + 10, 0)
        seen.append(values(ledger, at + 20))
        ledger.tidy(90 * 86400.0, moment(at + 20))
        seen.append(values(ledger, at + 20))
    for before, after in pairwise(seen):
        for key, value in before.items():
            assert not key[0].endswith("_total") or after[key] >= value
    assert len(ledger.runs(100)) < 15
    assert seen[-1][("prewarm_pulls_total", ())] == 30
    assert seen[-1][("prewarm_bytes_total", ())] == 15 * 500
    assert seen[-1][("prewarm_actions_total", (("action", "copy"),))] == 15


def test_totals_count_a_run_that_is_finished_twice_once(ledger: Ledger) -> None:
    run = finish(ledger, 20, 0)
    ledger.finish_run(run, 0, "{}", moment(21))
    assert ledger.totals().actions == {"copy": 1, "skip": 1}
    assert ledger.totals().bytes == 500


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"expires_at": "2027-01-15"}, 1_799_971_200.0),
        ({"expires_at": None}, math.inf),
        ({"expires_at": "soon"}, None),
        ({}, None),
        ([], None),
    ],
)
def test_token_expiry_of_an_answer(told: object, expected: float | None) -> None:
    assert token_expiry(told) == expected


def test_metrics_tell_the_tokens_expiry_with_a_gitlab_only(ledger: Ledger) -> None:
    scan = PastScan(WALL, WALL, True, 1, "", (), frozenset(), frozenset(), WALL + 86400)
    ledger.save_scan(scan)
    assert ledger.last_scan() == scan
    with_gitlab = Settings(SETTINGS.path, SETTINGS.mirrors, gitlab=Gitlab("https://gitlab.test"))
    key = ("prewarm_gitlab_token_expiry_timestamp_seconds", ())
    assert values(ledger, settings=with_gitlab)[key] == WALL + 86400
    assert values(ledger, settings=with_gitlab)[("prewarm_pull_failures", ())] == 0
    for days_ago, failures in ((0, 1), (3, 4), (20, 50)):
        key_of_day = Key(1, "build", 1, "linux/amd64", int(WALL // 86400) - days_ago)
        ran = Count(9, failures, WALL, 7)
        ledger.add_history({key_of_day: ran}, {1: Mark(9, WALL)}, {}, {1: "team/app"})
    assert values(ledger, settings=with_gitlab)[("prewarm_pull_failures", ())] == 5
    assert key not in values(ledger)


def test_text_passes_promtool(ledger: Ledger) -> None:
    finish(ledger, 20, 0)
    finish(ledger, 30, 1, FULL)
    ledger.note_state("docker.io/library/a:1", URL, "fresh", "sha256:0", moment())
    promtool("check", "metrics", text=text_of(samples_of(SETTINGS, ledger, moment(40), STATE)))


@given(st.text(), st.text())
def test_text_holds_any_label_on_one_line(severity: str, code: str) -> None:
    text = text_of((Sample(PULLS, (), 2), Sample(PROBLEMS, (severity, code), 1)))
    families = text_string_to_metric_families(text.decode())
    told = [(one.name, one.labels, one.value) for family in families for one in family.samples]
    assert told == [
        ("prewarm_pulls_total", {}, 2),
        ("prewarm_problems", {"severity": severity, "code": code}, 1),
    ]


def test_write_replaces_the_file_for_everybody_to_read(tmp_path: Path) -> None:
    file = tmp_path / "prewarm.prom"
    file.write_text("old")
    file.chmod(0o600)
    write(file, b"new")
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("place", ["missing/prewarm.prom", "file/prewarm.prom", "folder"])
def test_write_where_it_cannot_leaves_nothing_and_tells_the_cure(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(PrewarmError, match="cannot be written") as caught:
        write(tmp_path / place, b"new")
    assert caught.value.code == "metrics"
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder"}


def test_write_replaces_nothing_but_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "prewarm.prom"
    os.mkfifo(pipe)
    with pytest.raises(PrewarmError, match="cannot be written: it is no file"):
        write(pipe, b"new")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_write_where_it_does_not_fit_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "prewarm.prom"
    file.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(PrewarmError, match="cannot be written: File too large"):
            write(file, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_alert_rules_pass_promtool() -> None:
    promtool("check", "rules", str(DOCS / "prewarm.rules.yml"))


DAY_MINUTES = 24 * 60
ERROR = 'prewarm_problems{instance="a",severity="error",code="tls"}'
TELLS = 'prewarm_pulls_total{instance="a"}'


@pytest.mark.parametrize(
    ("series", "minutes", "firing"),
    [
        # A sync at night, a night without one, and the morning after the second.
        ({"prewarm_last_success_timestamp_seconds": "0x700"}, 2 * DAY_MINUTES, ()),
        ({"prewarm_last_success_timestamp_seconds": "0x700"}, 2900, ("PrewarmNoSuccess",)),
        ({TELLS: "0x700"}, DAY_MINUTES - 5, ()),
        ({TELLS: "0x700"}, DAY_MINUTES + 5, ("PrewarmNeverSucceeded",)),
        (
            {TELLS: "0x700", 'prewarm_last_success_timestamp_seconds{instance="a"}': "0x700"},
            DAY_MINUTES + 5,
            (),
        ),
        (
            {TELLS: "0x100", 'prewarm_pulls_total{instance="b"}': "0x700"},
            100 * 5 + 75,
            ("PrewarmMetricsGone",),
        ),
        ({ERROR: "1x100"}, 55, ()),
        ({ERROR: "1x100"}, 65, ("PrewarmProblem",)),
        ({ERROR: "1x2 _x9 1x100"}, 65, ()),
        ({ERROR.replace("error", "warning"): "1x100"}, 65, ()),
        (
            {'prewarm_problems{severity="error",code="mirror-full"}': "1x9"},
            5,
            ("PrewarmMirrorFull",),
        ),
        ({'prewarm_coverage_ratio{mirror="m"}': "0.79x700"}, DAY_MINUTES, ("PrewarmCoverageLow",)),
        ({'prewarm_coverage_ratio{mirror="m"}': "0.8x700"}, DAY_MINUTES, ()),
        ({"prewarm_pull_failures": "0x288 6x9"}, DAY_MINUTES + 10, ("PrewarmPullFailures",)),
        ({"prewarm_pull_failures": "90x288 95x9"}, DAY_MINUTES + 10, ()),
        ({"prewarm_pull_failures": "90x4600"}, 15 * DAY_MINUTES + 5, ("PrewarmPullFailuresStay",)),
        ({"prewarm_pull_failures": "90-0.01x4600"}, 15 * DAY_MINUTES + 5, ()),
        ({"prewarm_pull_failures": "20x4600"}, 15 * DAY_MINUTES + 5, ()),
        (
            {"prewarm_gitlab_token_expiry_timestamp_seconds": f"{15 * 86400}x700"},
            DAY_MINUTES + 70,
            ("PrewarmTokenExpires",),
        ),
        (
            {"prewarm_gitlab_token_expiry_timestamp_seconds": f"{16 * 86400}x700"},
            DAY_MINUTES + 70,
            (),
        ),
    ],
)
def test_alerts_fire_when_they_should(
    series: dict[str, str], minutes: int, firing: tuple[str, ...], tmp_path: Path
) -> None:
    """A value each five minutes; `minutes`: when Prometheus is asked which alerts fire."""
    case = {
        "interval": "5m",
        "input_series": [{"series": name, "values": text} for name, text in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minutes}m",
                "exp_samples": [
                    {"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing
                ],
            }
        ],
    }
    rules = str(DOCS / "prewarm.rules.yml")
    test = {"rule_files": [rules], "evaluation_interval": "5m", "tests": [case]}
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(test))
    promtool("test", "rules", str(file))


def test_rules_and_dashboard_name_only_metrics_that_exist() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = re.findall(r"expr: (.*)", (DOCS / "prewarm.rules.yml").read_text())
    known = {metric.name for metric in METRICS}
    used = set(re.findall(r"\bprewarm_\w+", " ".join(rules)))
    assert set(re.findall(r"\bprewarm_\w+", " ".join(queries))) == known
    assert used
    assert used <= known


def test_dashboard_asks_in_promql_and_tells_hosts_apart(tmp_path: Path) -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": "x", "expr": one["expr"], "labels": {"n": str(n)}}
        for n, one in enumerate(targets)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "x", "rules": rules}]}))
    promtool("check", "rules", str(file))
    # Every host calls its own mirror http://127.0.0.1:5000.
    assert all("{{instance}}" in one["legendFormat"] for one in targets if "sum" not in one["expr"])


def test_metrics_page_has_every_metric_as_it_is() -> None:
    rows = re.findall(
        r"^\| `(prewarm_\w+)` \| (\w+) \| (.*?) \| (.*) \|$",
        (DOCS / "metrics.md").read_text(),
        re.MULTILINE,
    )
    told = [
        (name, kind, tuple(re.findall(r"\w+", labels)), meaning)
        for name, kind, labels, meaning in rows
    ]
    assert told == [(one.name, one.kind, one.labels, one.meaning) for one in METRICS]
