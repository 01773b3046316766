"""`prewarm scan` as people and scripts run it, against the GitLab stand-in and files on disk."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sandbox.ci_load import trace_text
from tests.sandbox.gitlab import TOKEN, Gitlab, Token, forbidden
from tests.support.process import Finished, run_on_terminal, run_prewarm, start_prewarm

PLAIN = "build:\n  image: golang:1.22\n  script: [make]\n"


@pytest.fixture
def site() -> Iterator[Gitlab]:
    with Gitlab() as running:
        yield running


def write(folder: Path, site: Gitlab, **gitlab: Any) -> Path:
    """Write an images.yml and a token for the stand-in."""
    (folder / "token").write_text(f"{TOKEN}\n")
    document = {
        "version": 1,
        "mirrors": ["http://127.0.0.1:5000"],
        "gitlab": {"url": site.url, "token_file": str(folder / "token"), **gitlab},
        "state": str(folder / "state" / "prewarm.db"),
    }
    file = folder / "images.yml"
    file.write_text(yaml.safe_dump(document))
    return file


def scan(folder: Path, site: Gitlab, *args: str, **gitlab: Any) -> Finished:
    return run_prewarm(["scan", *args], folder, config=write(folder, site, **gitlab))


def test_scan_json_has_exactly_the_fields_of_the_contract(site: Gitlab, tmp_path: Path) -> None:
    project = site.add_project("team/app", PLAIN + "open:\n  image: $X/a:1\n  script: [x]\n")
    site.add_job(project, "build", started=1_000_000_000.0 + 0.25)
    site.add_job(project, "build")
    site.add_job(project, "open")
    site.faults.add(forbidden(site.add_project("team/closed", PLAIN)))
    done = scan(tmp_path, site, "--json")
    assert done.returncode == 0, done.stderr
    told = done.json
    assert set(told) == {"version", "images", "unresolved", "problems", "requests"}
    (image,) = told["images"]
    last = image.pop("last_used")
    assert image == {
        "image": "docker.io/library/golang:1.22",
        "kinds": ["image"],
        "sources": ["definition", "history"],
        "jobs": 1,
        "projects": 1,
        "platforms": ["linux/amd64"],
        "via": None,
    }
    assert time.strptime(last, "%Y-%m-%dT%H:%M:%SZ")
    (open_,) = told["unresolved"]
    assert set(open_) == {"project", "job", "kind", "text", "why"}
    assert (open_["project"], open_["job"], open_["text"]) == ("team/app", "open", "$X/a:1")
    (problem,) = told["problems"]
    assert (problem["severity"], problem["where"]) == ("warning", "team/closed")
    assert told["requests"] == len(site.access)


def test_scan_of_200_projects_and_5000_jobs_tells_the_true_uses(
    site: Gitlab, tmp_path: Path
) -> None:
    site.populate(projects=200, active=120, jobs=5000, unresolved=40)
    project = site.add_project("team/open", "x:\n  image: $NOBODY_KNOWS:1\n  script: [x]\n")
    site.add_job(project, "x")
    told = scan(tmp_path, site, "--json").json
    found: Counter[tuple[str, str]] = Counter()
    for one in told["images"]:
        for kind in one["kinds"]:
            found[one["image"], "proxy" if one["via"] else kind] = one["jobs"]
    assert found == site.truth()
    assert [(one["job"], one["text"]) for one in told["unresolved"]] == [("x", "$NOBODY_KNOWS:1")]


def test_scan_for_people_is_a_table_and_one_sentence(site: Gitlab, tmp_path: Path) -> None:
    project = site.add_project("team/app", PLAIN + "open:\n  image: $X/a:1\n  script: [x]\n")
    for name in ("build", "build", "open"):
        site.add_job(project, name)
    done = scan(tmp_path, site)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image", "jobs", "projects", "last", "use", "source"]
    assert lines[1].split()[:3] == ["golang:1.22", "2", "1"]
    assert lines[1].endswith("definition, history")
    assert lines[4].startswith("$X/a:1")
    assert "$X" in lines[4].partition("open")[2]
    requests = len(site.access)
    assert lines[-1] == f"1 image, 1 name unresolved, {requests} requests to GitLab"
    assert "reading definitions of 1 project\n" in done.stderr


def test_scan_on_a_terminal_shows_a_bar_with_counts_and_leaves_none_behind(
    site: Gitlab, tmp_path: Path
) -> None:
    site.latency = 0.02
    for number in range(30):
        site.add_job(site.add_project(f"team/app-{number}", PLAIN), "build")
    config = str(write(tmp_path, site))
    shown = run_on_terminal(
        ["--config", config, "scan"], tmp_path, columns=100, env={"NO_COLOR": "1"}, together=True
    ).stdout
    counts = re.findall(r"definitions .*?\b([0-9]+)/30", shown)
    assert len(set(counts)) > 1, shown
    assert re.search(r"0:00:[0-9]{2}", shown), "no estimate"
    # The last thing on the screen is the answer; the bar above it was wiped out.
    assert "golang:1.22" in shown.rpartition("\x1b[2K")[2]
    assert shown.rstrip().endswith("requests to GitLab")
    quiet = run_on_terminal(["-q", "--config", config, "scan"], tmp_path, together=True)
    assert "\x1b[2K" not in quiet.stdout


def test_scan_again_reads_from_the_state_what_it_knows(site: Gitlab, tmp_path: Path) -> None:
    project = site.add_project("team/app", PLAIN)
    site.add_job(project, "build")
    first = scan(tmp_path, site, "--json").json
    site.access.clear()
    second = scan(tmp_path, site, "--json").json
    assert first["images"] == second["images"]
    assert site.requests() == {"token": 1, "projects": 1, "jobs": 1}


def test_scan_of_one_project_tells_that_alone(site: Gitlab, tmp_path: Path) -> None:
    for name in ("a", "b"):
        site.add_job(site.add_project(f"team/{name}", PLAIN), "build")
    scan(tmp_path, site)
    done = scan(tmp_path, site, "--project", "team/b", "--json")
    assert [(one["jobs"], one["projects"]) for one in done.json["images"]] == [(1, 1)]


def test_scan_takes_the_token_from_the_environment(site: Gitlab, tmp_path: Path) -> None:
    site.add_project("team/app", PLAIN)
    config = write(tmp_path, site, token_file=None)
    text = config.read_text().replace("  token_file: null\n", "")
    config.write_text(text)
    done = run_prewarm(["scan"], tmp_path, config=config, env={"PREWARM_GITLAB_TOKEN": TOKEN})
    assert done.returncode == 0, done.stderr
    done = run_prewarm(["scan"], tmp_path, config=config)
    assert done.returncode == 1
    assert "wants a token" in done.stderr


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, "refused the token"),
        (Token(scopes=("read_user",)), "scope read_api"),
        (Token(role="guest"), "role Reporter"),
    ],
)
def test_scan_with_a_useless_token_says_which_right_and_exits_1(
    site: Gitlab, tmp_path: Path, token: Token | None, words: str
) -> None:
    site.add_job(site.add_project("team/app", PLAIN), "build")
    site.tokens.clear()
    if token is not None:
        site.tokens[TOKEN] = token
    done = scan(tmp_path, site)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") <= 3
    assert TOKEN not in done.stderr + done.stdout


def test_scan_of_a_gitlab_that_is_down_exits_1(site: Gitlab, tmp_path: Path) -> None:
    config = write(tmp_path, site)
    site.close()
    done = run_prewarm(["scan"], tmp_path, config=config)
    assert done.returncode == 1
    assert "not reached" in done.stderr


def test_scan_of_an_unknown_group_exits_1_and_does_the_rest(site: Gitlab, tmp_path: Path) -> None:
    site.add_job(site.add_project("team/app", PLAIN), "build")
    done = scan(tmp_path, site, groups=["team", "nope"])
    assert done.returncode == 1
    assert "golang:1.22" in done.stdout
    assert "error: nope: " in done.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--file", "x.yml", "--project", "a/b"], "exclude each other"),
        (["--root", "."], "name the file"),
        (["--file", "images.yml", "--root", "nowhere"], "--root nowhere: no such folder"),
        (["--file", "none.yml"], "no such file"),
    ],
)
def test_scan_with_wrong_usage_exits_2(tmp_path: Path, args: list[str], words: str) -> None:
    done = run_prewarm(["scan", *args], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_scan_without_gitlab_in_the_file_exits_2(tmp_path: Path) -> None:
    done = run_prewarm(["scan"], tmp_path, config="version: 1\nmirrors: [http://127.0.0.1:5000]\n")
    assert done.returncode == 2
    assert "names no GitLab" in done.stderr
    assert "--file" in done.stderr


def test_scan_beside_another_is_told_to_wait(site: Gitlab, tmp_path: Path) -> None:
    site.latency = 0.5
    for number in range(20):
        site.add_project(f"team/app-{number}", PLAIN)
    config = write(tmp_path, site)
    with start_prewarm(["scan"], tmp_path, config=config) as first:
        deadline = time.monotonic() + 20
        while not site.access and time.monotonic() < deadline:
            time.sleep(0.02)
        done = run_prewarm(["scan"], tmp_path, config=config)
        first.communicate(timeout=60)
    assert (done.returncode, first.returncode) == (75, 0)


def test_scan_that_is_terminated_ends_cleanly_and_goes_on(site: Gitlab, tmp_path: Path) -> None:
    site.populate(projects=60, active=50, jobs=600, unresolved=0)
    site.latency = 0.05
    config = write(tmp_path, site)
    with start_prewarm(["scan"], tmp_path, config=config) as process:
        deadline = time.monotonic() + 30
        while site.requests()["lint"] < 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 143, told
    assert "Traceback" not in told
    before = site.requests()["lint"]
    assert before < 50
    done = run_prewarm(["scan", "--json"], tmp_path, config=config)
    assert site.requests()["lint"] == 50
    assert sum(one["jobs"] for one in done.json["images"]) == sum(site.truth().values())


def test_scan_shows_the_token_nowhere(site: Gitlab, tmp_path: Path) -> None:
    project = site.add_project("team/app", "x:\n  image: $X\n  script: [x]\n")
    site.add_job(project, "x", trace=trace_text([("golang:1.22", "image")]))
    config = write(tmp_path, site)
    done = run_prewarm(["-v", "scan", "--json"], tmp_path, config=config)
    assert done.returncode == 0
    assert TOKEN not in done.stdout + done.stderr
    for path in (tmp_path / "state").iterdir():
        assert TOKEN.encode() not in path.read_bytes(), path


# --- one file ---


def test_scan_file_needs_no_configuration_and_no_gitlab(tmp_path: Path) -> None:
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci/more.yml").write_text(
        "default:\n  services: [{name: 'redis:7'}]\n.base:\n  image: ruby:3\n"
    )
    (tmp_path / ".gitlab-ci.yml").write_text(
        "include: ci/more.yml\n"
        "a:\n  extends: .base\n  script: [x]\n"
        "b:\n  image: {name: 'ruby:3', docker: {platform: linux/arm64}}\n  script: [x]\n"
        "c:\n  image: $CI_REGISTRY/team/app:1\n  services: []\n  script: [x]\n"
    )
    done = run_prewarm(["scan", "--file", ".gitlab-ci.yml", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    told = done.json
    (open_,) = told.pop("unresolved")
    assert open_.pop("why")
    assert open_ == {
        "project": ".gitlab-ci.yml",
        "job": "c",
        "kind": "image",
        "text": "$CI_REGISTRY/team/app:1",
    }
    shared = {"sources": ["definition"], "projects": 1, "last_used": None, "via": None}
    assert told == {
        "version": 1,
        "images": [
            {"image": "docker.io/library/redis:7", "kinds": ["service"], "jobs": 2, **shared,
             "platforms": []},
            {"image": "docker.io/library/ruby:3", "kinds": ["image"], "jobs": 2, **shared,
             "platforms": ["linux/arm64"]},
        ],
        "problems": [],
        "requests": 0,
    }  # fmt: skip


def test_scan_file_finds_includes_from_the_root_that_is_named(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    (tmp_path / "jobs.yml").write_text(PLAIN)
    (deep / "ci.yml").write_text("include: jobs.yml\n")
    wrong = run_prewarm(["scan", "--file", "deep/ci.yml"], tmp_path)
    right = run_prewarm(["scan", "--file", "deep/ci.yml", "--root", "."], tmp_path)
    assert (wrong.returncode, right.returncode) == (0, 0)
    assert "does not exist" in wrong.stdout
    assert right.stdout.splitlines()[-1] == "1 image"


def test_scan_file_that_is_no_yaml_exits_1_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "ci.yml").write_text("a:\n  image: [\n")
    done = run_prewarm(["scan", "--file", "ci.yml"], tmp_path)
    assert done.returncode == 1
    assert "error: ci.yml:2: is not YAML" in done.stdout


def test_scan_file_for_people_leaves_out_what_no_file_can_tell(tmp_path: Path) -> None:
    (tmp_path / "ci.yml").write_text(
        PLAIN + "proxied:\n  image: g.io/team/dependency_proxy/containers/redis:7\n  script: [x]\n"
        "bare:\n  script: [x]\n"
    )
    done = run_prewarm(["scan", "--file", "ci.yml"], tmp_path)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["image", "jobs", "source"]
    assert lines[1] == ["golang:1.22", "1", "definition"]
    assert lines[2] == ["redis:7", "1", "definition", "(through", "the", "dependency", "proxy)"]
    assert "1 job names no image and uses the runner's default: bare" in done.stderr
    assert run_prewarm(["-q", "scan", "--file", "ci.yml"], tmp_path).stderr == ""
