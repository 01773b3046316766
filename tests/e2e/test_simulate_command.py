"""`prewarm simulate` as people and scripts run it, on a state that a scan has filled."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml

from prewarm.core.usage import DAY
from tests.sandbox.gitlab import TOKEN, Gitlab
from tests.support.process import Finished, run_on_terminal, run_prewarm


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an images.yml and a state: three images, used on each of four days."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "token").write_text(TOKEN)
    now = time.time()
    with Gitlab() as site:
        for name, jobs in (("golang:1.22", 8), ("node:22", 4), ("redis:7", 2)):
            text = f"build:\n  image: {name}\n  script: [make]\n"
            project = site.add_project(f"team/{name.partition(':')[0]}", text)
            for age in (3, 2, 1, 0):
                for _ in range(jobs):
                    site.add_job(project, "build", started=now - age * DAY)
        document = {
            "version": 1,
            "mirrors": ["http://127.0.0.1:5000"],
            "registries": {"docker.io": {"budget": {"pulls": 3, "window": "6h", "reserve": 1}}},
            "gitlab": {"url": site.url, "token_file": str(folder / "token")},
            "state": str(folder / "state" / "prewarm.db"),
        }
        (folder / "images.yml").write_text(yaml.safe_dump(document))
        done = run_prewarm(["scan"], folder)
        assert done.returncode == 0, done.stderr
    # GitLab is gone now: all comes from the state.
    return folder


def simulate(folder: Path, *args: str) -> Finished:
    done = run_prewarm(["simulate", *args], folder)
    assert done.returncode == 0, done.stderr
    return done


def test_simulate_json_is_that_of_the_contract(host: Path) -> None:
    told = simulate(host, "--json", "--budget", "3", "--budget", "1").json
    assert told.keys() == {"version", "window_seconds", "budgets"}
    assert (told["version"], told["window_seconds"]) == (1, 21600)
    one, three = told["budgets"]
    # The scan shows two days to the first sync, and two are replayed in 8 windows.
    assert three == {"pulls": 3, "coverage": 1.0, "best": 1.0, "windows_to_full": 1}
    assert (one["pulls"], one["windows_to_full"]) == (1, 3)
    assert 0 < one["coverage"] < 1


def test_simulate_piped_is_a_plain_table_with_the_present_budget(host: Path) -> None:
    done = simulate(host)
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    head, *rows, told = done.stdout.splitlines()
    assert re.split(r"  +", head) == ["pulls per 6h", "coverage", "best", "all warm"]
    assert [re.split(r"  +", row)[0] for row in rows] == [
        "2 (now)", "25", "50", "100", "200", "400",
    ]  # fmt: skip
    assert re.split(r"  +", rows[1])[1:] == ["100.0%", "100.0%", "after 1 window (0.2 days)"]
    assert told.startswith("replayed 28 uses of 3 images in 2 days, with 2 days before them known")


def test_simulate_on_a_terminal_draws_a_curve_within_80_columns(host: Path) -> None:
    shown = on_a_terminal(["simulate", "--budget", "0", "--budget", "1"], host, NO_COLOR="1")
    assert "\x1b" not in shown
    *_, none, some, told = shown.splitlines()
    assert none == "0 \N{BOX DRAWINGS LIGHT VERTICAL}"
    assert re.fullmatch(r"1 \N{FULL BLOCK}+.?\s*\N{BOX DRAWINGS LIGHT VERTICAL}?", some)
    assert told.startswith("replayed")
    assert all(len(line) <= 80 for line in shown.splitlines()[:-1])
    assert "\x1b[" in on_a_terminal(["simulate", "--budget", "1"], host)


def on_a_terminal(args: list[str], folder: Path, **env: str) -> str:
    """Run prewarm with a terminal for its stdout and return what was drawn there."""
    done = run_on_terminal(args, folder, env=env)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize(
    ("gitlab", "cure"),
    [
        ({"url": "https://gitlab.example.org"}, "run prewarm scan"),
        (None, "write gitlab: in images.yml, run prewarm scan"),
    ],
)
def test_simulate_without_a_record_names_the_cure(
    tmp_path: Path, gitlab: dict[str, str] | None, cure: str
) -> None:
    document = {
        "version": 1,
        "mirrors": ["http://127.0.0.1:5000"],
        "images": ["golang:1.22"],
        "state": str(tmp_path / "prewarm.db"),
    } | ({"gitlab": gitlab} if gitlab else {})
    (tmp_path / "images.yml").write_text(yaml.safe_dump(document))
    text = f"no recorded use of a listed registry; {cure}\n"
    assert simulate(tmp_path).stdout == text
    done = simulate(tmp_path, "--json")
    assert done.json == {"version": 1, "window_seconds": 21600, "budgets": []}
    assert done.stderr == text
    assert not (tmp_path / "prewarm.db").exists()


def test_simulate_budget_below_nothing_is_refused(tmp_path: Path) -> None:
    done = run_prewarm(["simulate", "--budget", "-1"], tmp_path)
    assert done.returncode == 2
    assert "--budget" in done.stderr
