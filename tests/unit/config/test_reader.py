"""Reading `images.yml`: what it means, and every problem with its line and its cure."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.config import reader
from prewarm.core.errors import ConfigError, Problem, UsageError
from prewarm.core.platforms import Platform
from prewarm.core.settings import (
    Allowance,
    Gitlab,
    Limits,
    Mirror,
    Newest,
    Notify,
    Runners,
    Settings,
    Upstream,
)
from tests.support.stranger import UID, needs_root

ROOT = Path(__file__).parents[3]
TOP = "version: 1\nmirrors: [http://127.0.0.1:5000]\n"
AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")
DIGEST = "sha256:" + "a" * 64


def write(folder: Path, text: str | bytes, name: str = "images.yml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, text: str | bytes) -> Settings:
    return reader.load(write(folder, text), home=Path("/home/me"))


def refuse(folder: Path, text: str | bytes) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return caught.value.problems


def lines(problems: tuple[Problem, ...]) -> list[str]:
    return [str(problem) for problem in problems]


def pins(found: Settings) -> list[str]:
    return [str(pin.reference) for pin in found.pins]


# What a good file means


def test_load_of_the_smallest_file_fills_in_the_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, TOP)
    url = "http://127.0.0.1:5000"
    assert found == Settings(path=tmp_path / "images.yml", mirrors=(Mirror(url, url),))


CONTRACT = """\
version: 1
mirrors:
  - http://127.0.0.1:5000
  - url: https://Mirror.example.org/
    client_url: https://mirror.example.net
    mode: pull-through
    role: target
    ca: /etc/ssl/mirror-ca.pem
    storage: ~/registry
    min_free: 10GiB
    max_size: 400GiB
    keep: 60d
registries:
  docker.io:
    endpoint: https://harbor.example.org/dockerhub
    ca: ca.pem
    budget: {pulls: 200, window: 6h, reserve: 20}
    platforms: [linux/amd64, linux/arm64/v8, linux/arm64]
  Quay.IO: {}
  registry.example.org:5000: {budget: none, realm: GitLab.com}
platforms: all
gitlab:
  url: https://gitlab.example.org/sub/
  ca: ca.pem
  token_file: gitlab-token
  groups: [mediawiki, repos/releng, 42]
  projects: [infra/tools]
  scope: all
  runners: {ids: [12, 34], tags: [docker, 3.10], shared: no}
  exclude: ["sandbox/**"]
  history: 30d
  rescan: 6h
  traces: never
  variables: yes
  dependency_proxy: map
  runner_logs: [log/runner.log, "journal:gitlab-runner"]
skip: ["docker.io/library/*:*windowsservercore*"]
limits: {parallel: 2, checks: 8, image_size: 1GB, pulls_per_image: 5, pulls_per_project: 6,
         heads_per_minute: 7, run_time: 1h}
recheck: 2d
schedule: [7:05, "19:00"]
timezone: Europe/Berlin
authfile: auth.json
state: prewarm.db
metrics: /var/lib/prewarm.prom
notify: {command: [/usr/local/bin/page, now], webhook: https://chat.example.org/h/1/, on: [budget]}
"""


def test_load_of_every_key_returns_every_setting(tmp_path: Path) -> None:
    assert read(tmp_path, CONTRACT) == Settings(
        path=tmp_path / "images.yml",
        mirrors=(
            Mirror("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
            Mirror(
                "https://mirror.example.org",
                "https://mirror.example.net",
                "pull-through",
                "target",
                Path("/etc/ssl/mirror-ca.pem"),
                Path("/home/me/registry"),
                10 * 2**30,
                400 * 2**30,
                60 * 86400,
            ),
        ),
        registries=(
            Upstream(
                "docker.io",
                "https://harbor.example.org/dockerhub",
                tmp_path / "ca.pem",
                Allowance(200, 21600, 20),
                (AMD64, ARM64),
            ),
            Upstream("quay.io", "https://quay.io"),
            Upstream(
                "registry.example.org:5000",
                "https://registry.example.org:5000",
                budget="none",
                realm="gitlab.com",
            ),
        ),
        platforms="all",
        gitlab=Gitlab(
            "https://gitlab.example.org/sub",
            tmp_path / "ca.pem",
            tmp_path / "gitlab-token",
            ("mediawiki", "repos/releng", "42"),
            ("infra/tools",),
            "all",
            Runners((12, 34), ("docker", "3.10"), False),
            ("sandbox/**",),
            30 * 86400,
            6 * 3600,
            "never",
            True,
            "map",
            (str(tmp_path / "log/runner.log"), "journal:gitlab-runner"),
        ),
        skip=("docker.io/library/*:*windowsservercore*",),
        limits=Limits(2, 8, 10**9, 5, 6, 7, 3600),
        recheck=2 * 86400,
        schedule=("07:05", "19:00"),
        timezone="Europe/Berlin",
        authfile=tmp_path / "auth.json",
        state=str(tmp_path / "prewarm.db"),
        metrics=Path("/var/lib/prewarm.prom"),
        notify=Notify(("/usr/local/bin/page", "now"), "https://chat.example.org/h/1/", ("budget",)),
    )


def test_load_of_each_form_of_a_pin_keeps_their_order_and_lines(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        TOP
        + f"""images:
  - golang:bullseye
  - alpine
  - alpine@{DIGEST}
  - image: python
    tags: [3.10, 3.9, no, 2024-01-01, "3.10"]
    platforms: [linux/arm64]
  - {{image: node, tags: {{match: "2*", newest: 3}}}}
  - {{image: node, tags: {{semver: ">=20"}}, platforms: all}}
  - {{image: "ruby:3"}}
  - image: perl
""",
    )
    assert [(str(pin.reference), pin.tags, pin.platforms, pin.where) for pin in found.pins] == [
        ("docker.io/library/golang:bullseye", None, None, "images.yml:4"),
        ("docker.io/library/alpine:latest", None, None, "images.yml:5"),
        (f"docker.io/library/alpine@{DIGEST}", None, None, "images.yml:6"),
        (
            "docker.io/library/python",
            ("3.10", "3.9", "no", "2024-01-01"),
            (ARM64,),
            "images.yml:7",
        ),
        ("docker.io/library/node", Newest(match="2*", newest=3), None, "images.yml:10"),
        ("docker.io/library/node", Newest(semver=">=20"), "all", "images.yml:11"),
        ("docker.io/library/ruby:3", None, None, "images.yml:12"),
        ("docker.io/library/perl:latest", None, None, "images.yml:13"),
    ]


@pytest.mark.parametrize("tag", ["null", "Null", "NULL", "3.10", "010", "true", "1e3"])
def test_load_of_a_tag_keeps_its_spelling(tag: str, tmp_path: Path) -> None:
    found = read(tmp_path, TOP + f"images: [{{image: python, tags: [{tag}]}}]\n")
    assert found.pins[0].tags == (tag,)


def test_load_without_a_home_folder_refuses_only_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)
    included = "include: [~/more.yml]\n"
    assert reader.load(write(tmp_path, TOP)).pins == ()
    (problem,) = reader.load(write(tmp_path, TOP + included)).problems
    assert str(problem) == (
        "images.yml:3: include[0]: begins with ~/, and this user has no home folder; "
        "write it in full"
    )
    with pytest.raises(ConfigError, match="authfile: begins with ~/, and this user has no home"):
        reader.load(write(tmp_path, TOP + "authfile: ~/auth.json\n"))


def test_load_of_a_pin_without_tag_below_an_alias_takes_the_line_of_the_alias(
    tmp_path: Path,
) -> None:
    text = TOP + "platforms: &two [linux/amd64, linux/arm64]\nimages:\n  - &go golang\n  - *go\n"
    text += "  - image: node\n    platforms: *two\n"
    found = read(tmp_path, text)
    assert [pin.line for pin in found.pins] == [5, 6, 7]
    assert found.pins[2].platforms == (AMD64, ARM64)


def test_load_of_history_longer_than_keep_keeps_that_long(tmp_path: Path) -> None:
    found = read(tmp_path, TOP + "gitlab: {url: https://g, history: 90d}\n")
    assert found.mirrors[0].keep == 90 * 86400


def test_load_of_a_postgresql_state_keeps_it_as_written(tmp_path: Path) -> None:
    assert read(tmp_path, TOP + "state: postgresql://prewarm@db/prewarm").state == (
        "postgresql://prewarm@db/prewarm"
    )


@pytest.mark.parametrize("written", ["every 6h", "[every 6h]", "[every  6h]"])
def test_load_of_schedule_every_is_one_entry(tmp_path: Path, written: str) -> None:
    assert read(tmp_path, TOP + f"schedule: {written}").schedule == ("every 6h",)


def test_load_of_lists_and_mappings_written_as_nothing_is_as_if_not_written(tmp_path: Path) -> None:
    found = read(
        tmp_path, TOP + "images:\nlimits:\ngitlab: ~\nnotify: null\nregistries:\ninclude:\n"
    )
    assert found == read(tmp_path, TOP)


def test_load_of_a_byte_order_mark_and_crlf_reads_the_same(tmp_path: Path) -> None:
    text = TOP + "images: [golang]\n"
    plain = read(tmp_path, text)
    assert read(tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()) == plain


def test_load_of_a_relative_path_makes_it_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, TOP + "authfile: auth.json")
    monkeypatch.chdir(tmp_path)
    found = reader.load(Path("images.yml"))
    assert (found.path, found.authfile) == (tmp_path / "images.yml", tmp_path / "auth.json")


def test_load_of_the_repositorys_own_file_has_no_problem() -> None:
    found = reader.load(ROOT / "images.yml")
    assert found.problems == ()
    assert len(found.pins) >= 30
    assert found.registries[0].budget == Allowance(200, 21600, 20)


def test_load_of_the_example_has_its_pins(tmp_path: Path) -> None:
    assert pins(read(tmp_path, reader.example())) == [
        "docker.io/library/golang:bullseye",
        "docker.io/library/python",
    ]


# What is wrong, where, and how it is cured

PROBLEMS = {
    "empty": ("", "1: the file is empty; see `prewarm init -` for an example"),
    "only comments": ("# a\n", "1: the file is empty; see `prewarm init -` for an example"),
    "a list": (
        "- golang\n",
        "1: must be a mapping, not a list; write keys below it: version, mirrors, images, "
        "registries, platforms, gitlab, include, skip, limits, recheck, schedule, timezone, "
        "authfile, state, host, metrics, notify",
    ),
    "no version": ("mirrors: [http://a]\n", "1: version: is missing; write version: 1"),
    "newer version": (
        "mirrors: [http://a]\nversion: 2\n",
        "2: version: is 2, and this prewarm reads version 1; it needs a newer prewarm",
    ),
    "no mirrors": (
        "version: 1\n",
        "1: mirrors: is missing; write mirrors: [http://127.0.0.1:5000]",
    ),
    "empty mirrors": (
        "version: 1\nmirrors: []\n",
        "2: mirrors: is an empty list; write at least one entry, or no list",
    ),
    "a source that pulls": (
        "version: 1\nmirrors:\n- http://a\n- {url: http://b, mode: pull-through, role: source}\n",
        "4: mirrors[1].role: is source, but to read a pull-through mirror may cost a pull; "
        "take the mirror out, or write role: target",
    ),
    "only sources": (
        "version: 1\nmirrors: [{url: http://a, role: source}]\n",
        "2: mirrors: all are sources, and none is there to be kept warm; "
        "add a mirror with role: target",
    ),
    "same mirror": (
        "version: 1\nmirrors:\n- http://a\n- url: http://A:80/\n",
        "4: mirrors[1].url: is the mirror of line 3 again; keep one of them",
    ),
    "unknown key": (TOP + "imagse: []\n", "3: imagse: unknown key; did you mean images?"),
    "unknown key, unlike any": (
        TOP + "limits:\n  bananas: 1\n",
        "4: limits.bananas: unknown key; the keys here are parallel, checks, image_size, "
        "pulls_per_image, pulls_per_project, heads_per_minute, run_time",
    ),
    "duplicate key": (
        TOP + "recheck: 1d\nskip: []\nrecheck: 2d\n",
        "5: recheck: is written twice, first in line 3; keep one of them",
    ),
    "duplicate registry": (
        TOP + "registries:\n  docker.io: {}\n  Index.Docker.io: {}\n",
        "5: registries: 'Index.Docker.io' is docker.io again (line 4); keep one of them",
    ),
    "duration in words": (
        TOP + "registries:\n  docker.io:\n    budget: {pulls: 1, window: 6 hours}\n",
        "5: registries.docker.io.budget.window: must be a duration such as 6h, not '6 hours'; "
        "write a number and one of s m h d w",
    ),
    "reserve above pulls": (
        TOP + "registries:\n  docker.io:\n    budget: {pulls: 10, reserve: 11}\n",
        "5: registries.docker.io.budget.reserve: is 11, more than the 10 pulls it is a part of; "
        "write at most 10",
    ),
    "octal": (
        TOP + "limits: {parallel: 010}\n",
        "3: limits.parallel: must be a whole number, not '010'; write digits only, such as 4",
    ),
    "out of range": (
        TOP + "limits: {parallel: 65}\n",
        "3: limits.parallel: must be at most 64, not 65; write from 1 to 64",
    ),
    "list for a text": (
        TOP + "recheck: [1d]\n",
        "3: recheck: must be a duration such as 6h, not a list; "
        "write a number and one of s m h d w",
    ),
    "text for a list": (
        TOP + "skip: a\n",
        "3: skip: must be a list, not a text; write each entry on a line of its own after `- `",
    ),
    "nothing for a text": (
        TOP + "recheck:\n",
        "3: recheck: has no value; write a number and one of s m h d w",
    ),
    "number for a budget": (
        TOP + "registries:\n  docker.io:\n    budget: 5\n",
        "5: registries.docker.io.budget: must be none, or pulls, window and reserve, not '5'; "
        "write budget: {pulls: 5, window: 6h}",
    ),
    "word for a budget": (
        TOP + "registries: {docker.io: {budget: unlimited}}\n",
        "3: registries.docker.io.budget: must be none, or pulls, window and reserve, not "
        "'unlimited'; write budget: {pulls: 200, window: 6h}",
    ),
    "nothing for a budget": (
        TOP + "registries:\n  docker.io:\n    budget:\n",
        "5: registries.docker.io.budget: has no value; write budget: {pulls: 200, window: 6h}",
    ),
    "text for platforms": (
        TOP + "platforms: linux/amd64\n",
        "3: platforms: must be all, or a list of platforms, not 'linux/amd64'; "
        "write platforms: [linux/amd64]",
    ),
    "texts for platforms": (
        TOP + "platforms: linux/amd64,linux/x86_64\n",
        "3: platforms: must be all, or a list of platforms, not 'linux/amd64,linux/x86_64'; "
        "write platforms: [linux/amd64, linux/amd64]",
    ),
    "no platform": (
        TOP + "platforms: everything\n",
        "3: platforms: must be all, or a list of platforms, not 'everything'; "
        "write platforms: [linux/amd64]",
    ),
    "text for tags": (
        TOP + "images: [{image: python, tags: 3.10}]\n",
        "3: images[0].tags: must be a list of tags, or match or semver, not '3.10'; "
        'write tags: ["3.10"]',
    ),
    "pattern for tags": (
        TOP + "images: [{image: python, tags: '3.*'}]\n",
        "3: images[0].tags: must be a list of tags, or match or semver, not '3.*'; "
        'write tags: {match: "3.*"} for a pattern, or a list such as ["3.12", "3.13"]',
    ),
    "no tag": (
        TOP + "images: [{image: python, tags: [~]}]\n",
        "3: images[0].tags[0]: has no value; write a literal tag; "
        'a pattern goes into tags: {match: "3.*"}',
    ),
    "keep below history": (
        "version: 1\nmirrors:\n- url: http://a\n  keep: 30d\n"
        "gitlab: {url: http://g, history: 31d}\n",
        "4: mirrors[0].keep: is shorter than gitlab.history, so that tags still in use would go; "
        "write keep: 31d or more",
    ),
    "unlisted registry by default": (
        TOP + "images:\n- golang\n- quay.io/a/b\n",
        "5: images[1]: quay.io is not listed under registries; "
        "add registries: with docker.io: {} and quay.io: {} below it",
    ),
    "unlisted registry": (
        TOP + "registries: {quay.io: {}}\nimages:\n- golang\n",
        "5: images[0]: docker.io is not listed under registries; "
        "add docker.io: {} under registries",
    ),
    "upper case": (
        TOP + "images: [Golang]\n",
        "3: images[0]: 'Golang' has upper-case letters in its repository; write 'golang'",
    ),
    "tag and tags": (
        TOP + "images:\n- image: python:3\n  tags: ['3.1']\n",
        "5: images[0].tags: is given although image has a tag or a digest; "
        "write image: python, or leave out tags",
    ),
    "match and semver": (
        TOP + "images:\n- image: python\n  tags: {match: a, semver: '1'}\n",
        '5: images[0].tags: needs one of match and semver; write {match: "3.*"} or '
        '{semver: ">=3.12"}',
    ),
    "notify nobody": (
        TOP + "notify: {on: [budget]}\n",
        "3: notify: says not whom to tell; write command or webhook",
    ),
    "timezone": (
        TOP + "timezone: Europe/Berln\n",
        "3: timezone: must be a time zone such as Europe/Berlin, not 'Europe/Berln'; "
        "write a name from the tz database, such as UTC",
    ),
    "another's home": (
        TOP + "authfile: ~root/auth.json\n",
        "3: authfile: names another user's home folder; write the path in full, or ~/…",
    ),
    "merge key": (
        TOP + "limits: {<<: {}}\n",
        "3: limits: merge keys (<<) are not supported; write the keys, or alias the whole value",
    ),
    "colon": (
        TOP + "authfile: a: b\n",
        "3: is not YAML: mapping values are not allowed in this context; "
        'put a text that holds ": " in quotes, and check the indentation',
    ),
    "tab": (
        TOP + "limits:\n\tparallel: 4\n",
        "4: is indented with a tab, which YAML refuses; use blanks",
    ),
    "two documents": (
        TOP + "---\nversion: 1\n",
        "3: begins a second document; keep one: take out the line ---",
    ),
    "undefined alias": (
        TOP + "skip: *a\n",
        "3: is an alias (*) of an anchor (&) that no line before has; write the value",
    ),
    "alias of itself": (
        TOP + "skip: &a [*a]\n",
        "3: is an alias (*) of what it stands in; write the value",
    ),
    "tag of YAML": (
        TOP + "skip: !!python/name:os.system\n",
        "3: has a YAML tag (!) that prewarm does not know; take it out",
    ),
    "NUL": (TOP + "skip: [\0]\n", "3: holds a control character; take it out"),
    "key that is a list": (
        TOP + "? [a]\n: b\n",
        "3: has a key that is no text; write a name before :",
    ),
}


@pytest.mark.parametrize(("text", "line"), PROBLEMS.values(), ids=PROBLEMS)
def test_load_of_a_bad_file_names_line_key_problem_and_cure(
    text: str, line: str, tmp_path: Path
) -> None:
    assert lines(refuse(tmp_path, text)) == [f"images.yml:{line}"]


BAD_VALUES = {
    "mirror without scheme": "mirrors: ['127.0.0.1:5000']",
    "mirror of another scheme": "mirrors: ['ftp://host']",
    "mirror with a path": "mirrors: [http://a/b]",
    "mirror with a query": "mirrors: ['http://a?b']",
    "mirror with a port too large": "mirrors: ['http://a:70000']",
    "mirror with port 0": "mirrors: ['http://a:0']",
    "mirror without host": "mirrors: ['http:///']",
    "mirror with half an IPv6": "mirrors: ['http://[::1']",
    "registry with a scheme": "registries: {'https://quay.io': {}}",
    "registry with IPv6": "registries: {'[::1]:5000': {}}",
    "registry without dot": "registries: {quay: {}}",
    "endpoint with a query": "registries: {quay.io: {endpoint: 'https://quay.io/?a=b'}}",
    "realm as URL": "registries: {gitlab.com: {realm: 'https://gitlab.com'}}",
    "platform": "platforms: [linux]",
    "image as URL": "images: ['https://quay.io/a']",
    "image that cannot lie on a mirror": "images: [docker.io/quay.io/a]",
    "image with a variable": "images: ['golang:$VERSION']",
    "tag": "images: [{image: a, tags: ['-x']}]",
    "range": "images: [{image: a, tags: {semver: nonsense}}]",
    "minute 60": "schedule: ['19:60']",
    "every second": "schedule: every 1s",
    "state of another database": "state: mysql://db/prewarm",
    "NUL by escape": 'authfile: "a\\0b"',
    "NUL by escape in state": 'state: "postgresql://a/\\0b"',
    "timezone that is a folder": "timezone: Europe",
    "timezone outside": "timezone: ../../etc/passwd",
    "long text": f"skip: ['{'a' * 5000}']",
    "group as URL": "gitlab: {url: https://g, groups: ['https://g/a']}",
    "runner log of another kind": "gitlab: {url: https://g, runner_logs: ['journal:']}",
    "runner ids as words": "gitlab: {url: https://g, runners: {ids: [one]}}",
}


@pytest.mark.parametrize("text", BAD_VALUES.values(), ids=BAD_VALUES)
def test_load_of_a_bad_value_has_one_problem_with_a_cure(text: str, tmp_path: Path) -> None:
    top = "version: 1\n" if text.startswith("mirrors") else TOP
    [problem] = refuse(tmp_path, top + text)
    assert problem.where == f"images.yml:{top.count(chr(10)) + 1}"
    assert problem.problem.startswith(text.partition(":")[0])
    assert problem.problem.isprintable()
    assert problem.cure
    assert (problem.severity, problem.code) == ("error", "config")


def test_load_of_many_problems_names_all_in_the_order_of_lines(tmp_path: Path) -> None:
    found = refuse(
        tmp_path,
        "mirrors: [a]\nrecheck: x\nimages:\n- A\n- quay.io/b\nplatforms: [c]\nfoo: 1\nversion: 3\n",
    )
    assert [problem.where.removeprefix("images.yml:") for problem in found] == list("1245678")
    assert [problem.problem.partition(":")[0] for problem in found] == [
        "mirrors[0]",
        "recheck",
        "images[0]",
        "images[1]",
        "platforms[0]",
        "foo",
        "version",
    ]


SECRETS = {
    "mirror": "mirrors: ['http://me:hunter2@a']",
    "mirror of another scheme": "mirrors: ['ftp://me:hunter2@a']",
    "mirror without scheme": "mirrors: ['me:hunter2@a:5000']",
    "mirror with a query": "mirrors: ['http://a?token=hunter2']",
    "endpoint": "registries: {docker.io: {endpoint: 'https://hunter2@a/b'}}",
    "registry": "registries: {'me:hunter2@quay.io': {}}",
    "registry as URL": "registries: {'https://me:hunter2@quay.io': {}}",
    "realm": "registries: {docker.io: {realm: 'me:hunter2@quay.io'}}",
    "gitlab": "gitlab: {url: 'https://oauth2:hunter2@gitlab'}",
    "webhook": "notify: {webhook: 'https://chat/?key=hunter2'}",
    "state": "state: postgresql://prewarm:hunter2@db/prewarm",
    "state by query": "state: postgresql://db/prewarm?password=hunter2",
    "state by escape": "state: postgresql://prewarm%3Ahunter2@db/prewarm",
    "state by query in HTML": "state: postgresql://db/prewarm?sslmode=require&amp;password=hunter2",
    "state of another database": "state: mysql://prewarm:hunter2@db/prewarm",
    "image": "images: ['me:hunter2@quay.io/a/b']",
    "image as URL": "images: ['https://me:hunter2@quay.io/a/b:1']",
    "key": "'https://me:hunter2@quay.io': 1",
    "password": "password: hunter2",
    "token": "gitlab: {url: https://g, token: hunter2}",
    "token as a list": "gitlab: {url: https://g, private_token: [hunter2]}",
    "command": 'notify: {command: ["hunter2\\0"]}',
    "path": "authfile: https://me:hunter2@host/auth.json",
    "duration": "recheck: https://me:hunter2@host",
    "YAML": "password: 'hunter2\n",
    "YAML, another way": "password: @hunter2\n",
}


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_load_of_a_secret_refuses_it_and_never_shows_it(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, TOP.partition("mirrors")[0] + text if "mirrors" in text else TOP + text)
    assert caught.value.problems
    assert "hunter2" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize("key", ["token", "password", "gitlab_token", "PASSWD", "client_secret"])
def test_load_of_a_key_for_a_secret_says_where_secrets_go(key: str, tmp_path: Path) -> None:
    [problem] = refuse(tmp_path, f"{TOP}gitlab: {{url: https://g, {key}: x}}")
    assert "secrets are never in this file" in problem.problem
    assert "token_file" in problem.cure


def test_load_of_a_misspelt_token_file_suggests_it(tmp_path: Path) -> None:
    [problem] = refuse(tmp_path, TOP + "gitlab: {url: https://g, token_fil: x}")
    assert problem.cure == "did you mean token_file?"


def test_load_of_bytes_that_are_not_utf8_names_their_line(tmp_path: Path) -> None:
    [problem] = refuse(tmp_path, TOP.encode() + b"# caf\xe9\n")
    assert str(problem) == "images.yml:3: is not UTF-8 text; save the file as UTF-8"


# Hostile files


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_load_of_deep_nesting_is_refused(opening: str, tmp_path: Path) -> None:
    [problem] = refuse(tmp_path, "a: [b]\nskip:\n  " + opening * 100_000)
    assert problem.where == "images.yml:3"
    assert "nested more than 50 deep" in problem.problem


def test_load_of_an_alias_bomb_is_refused_soon(tmp_path: Path) -> None:
    tags = ", ".join(f"t{number}" for number in range(1000))
    pins = "".join("- *pin\n" for _ in range(100_000))
    text = f"{TOP}images:\n- &pin {{image: python, tags: [{tags}]}}\n{pins}"
    began = time.monotonic()
    [problem] = refuse(tmp_path, text)
    assert "aliases" in problem.problem
    assert time.monotonic() - began < 20


def test_load_of_many_wrong_keys_by_alias_is_refused_soon(tmp_path: Path) -> None:
    wrong = ", ".join(f"wrong{number}: 1" for number in range(2000))
    text = f"{TOP}images:\n- &pin {{image: python, {wrong}}}\n" + "- *pin\n" * 50_000
    began = time.monotonic()
    assert "more than 1000 problems" in refuse(tmp_path, text)[-1].problem
    assert time.monotonic() - began < 20


def test_load_of_a_flood_of_directives_is_refused_before_libyaml_sees_it(tmp_path: Path) -> None:
    directives = "".join(f"%TAG !x{number}! y\n" for number in range(60))
    (problem,) = refuse(tmp_path, f"{directives}---\n{TOP}")
    assert problem.problem == "has too many lines that begin with %"


def test_load_of_a_key_of_a_million_colons_is_refused_soon(tmp_path: Path) -> None:
    began = time.monotonic()
    assert refuse(tmp_path, f"{TOP}? '{':' * 1_000_000}'\n: 1\n")
    assert time.monotonic() - began < 20


def test_load_of_a_billion_laughs_is_refused_soon(tmp_path: Path) -> None:
    levels = "".join(f"  - &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 30))
    text = f"{TOP}skip:\n  - &l0 lol\n{levels}"
    assert all("skip[" in problem.problem for problem in refuse(tmp_path, text))


def test_load_of_thousands_of_problems_stops_naming_them(tmp_path: Path) -> None:
    found = refuse(tmp_path, TOP + "images:\n" + "- A\n" * 5000)
    assert len(found) == 1001
    assert "more than 1000 problems" in found[-1].problem


def test_load_of_more_than_ten_megabytes_is_refused(tmp_path: Path) -> None:
    [problem] = refuse(tmp_path, TOP + "#" * 10_000_000)
    assert problem.problem == "the file is larger than 10 MB"


def test_load_of_a_large_file_without_aliases_reads_all_of_it(tmp_path: Path) -> None:
    found = read(tmp_path, TOP + "images:\n" + "".join(f"- a{n}\n" for n in range(110_000)))
    assert len(found.pins) == 110_000


YAML_PIECES = st.sampled_from(
    [
        *"\n:-[]{}&*!|>'\"%@`#,?~ ",
        "  ",
        "\n- ",
        ": ",
        "version: 1",
        "mirrors: ",
        "http://a",
        "images: ",
        "image: ",
        "tags: ",
        "registries: ",
        "docker.io: ",
        "budget: ",
        "gitlab: ",
        "<<",
        "&a ",
        "*a",
        "\t",
        "\x85",
        "é",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.lists(YAML_PIECES, max_size=40).map("".join)))
def test_load_of_any_text_is_read_or_refused_with_printable_problems(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    problems: tuple[Problem, ...] | None = None
    try:
        read(folder, text)
    except ConfigError as error:
        problems = error.problems
    assert problems is None or problems
    for problem in problems or ():
        assert str(problem).isprintable()
        assert problem.cure


# Files that are not there


def test_load_of_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file; write one with `prewarm init`") as caught:
        reader.load(tmp_path / "images.yml")
    assert caught.value.exit_code == 2
    assert str(tmp_path / "images.yml") in str(caught.value)


def test_load_of_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        reader.load(tmp_path)


def test_load_of_a_loop_of_links_says_so(tmp_path: Path) -> None:
    (tmp_path / "images.yml").symlink_to("images.yml")
    with pytest.raises(UsageError, match="too many levels of symbolic links"):
        reader.load(tmp_path / "images.yml")


def test_load_of_a_file_that_may_not_be_read_says_who_must(tmp_path: Path) -> None:
    path = tmp_path / "images.yml"
    with socket.socket(socket.AF_UNIX) as unreadable:  # root may read every file, but no socket
        unreadable.bind(os.path.relpath(path))
        with pytest.raises(UsageError, match="let the user who runs prewarm read it"):
            reader.load(path)


# Includes

INCLUDE = TOP + "images: [golang]\ninclude: [images.d/*.yml]\n"


def test_load_of_includes_adds_their_pins_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path, "images:\n- node\n", "images.d/b.yml")
    write(tmp_path, "version: 1\nimages: [golang]\n", "images.d/a.yml")
    write(tmp_path, "images: [hidden]\n", "images.d/.c.yml")
    write(tmp_path, "images: [other]\n", "images.d/c.yaml")
    found = read(tmp_path, INCLUDE)
    assert [(pin.reference.repository, pin.where) for pin in found.pins] == [
        ("library/golang", "images.yml:3"),
        ("library/golang", "images.d/a.yml:2"),
        ("library/node", "images.d/b.yml:2"),
    ]
    assert found.problems == ()


BAD_INCLUDES = {
    "YAML": ("images: [", "images.d/a.yml:1: "),
    "empty": ("", "images.d/a.yml:1: the file is empty; see `prewarm init -` for an example"),
    "bytes": (b"images: [\xff]", "images.d/a.yml:1: the file is not UTF-8 text"),
    "other key": (
        "recheck: 1d\nimages: [node]",
        "images.d/a.yml:1: recheck: is not read in an included file; write it into images.yml",
    ),
    "nested": (
        "images: [node]\ninclude: [b.yml]",
        "images.d/a.yml:2: include: is not read in an included file; write it into images.yml",
    ),
    "image": ("images:\n- node\n- Node", "images.d/a.yml:3: images[1]: 'Node' has upper-case"),
    "unlisted": ("images: [node, quay.io/a]", "images.d/a.yml:1: images[1]: quay.io is not listed"),
}


@pytest.mark.parametrize(("text", "start"), BAD_INCLUDES.values(), ids=BAD_INCLUDES)
def test_load_of_a_bad_include_is_a_problem_and_the_rest_is_read(
    text: str | bytes, start: str, tmp_path: Path
) -> None:
    write(tmp_path, text, "images.d/a.yml")
    write(tmp_path, "images: [ruby]", "images.d/b.yml")
    found = read(tmp_path, INCLUDE)
    [problem] = found.problems
    assert str(problem).startswith(start)
    assert problem.severity == "error"
    names = [pin.reference.repository for pin in found.pins]
    assert names[0] == "library/golang"
    assert names[-1] == "library/ruby"
    assert ("library/node" in names) == (
        b"node" in (text if isinstance(text, bytes) else text.encode())
    )


def test_load_of_an_include_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    found = read(tmp_path, TOP + "include: [more.yml, none.d/*.yml]\n")
    assert lines(found.problems) == [
        "images.yml:3: include[0]: 'more.yml' is not there; write the file, or take it out"
    ]


def test_load_of_an_include_whose_folder_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "gone.d").symlink_to("not-mounted")
    (tmp_path / "file.d").touch()
    found = read(tmp_path, TOP + "include: ['gone.d/*.yml', 'file.d/*.yml', 'none.d/*.yml']\n")
    assert lines(found.problems) == [
        "images.yml:3: include[0]: the folder of 'gone.d/*.yml': leads nowhere; "
        "let the user who runs prewarm read it, or take the line out",
        "images.yml:3: include[1]: the folder of 'file.d/*.yml': not a directory; "
        "let the user who runs prewarm read it, or take the line out",
    ]


def test_load_of_includes_that_are_no_readable_files_are_problems(tmp_path: Path) -> None:
    (tmp_path / "images.d/a.yml").mkdir(parents=True)
    (tmp_path / "images.d/b.yml").symlink_to("b.yml")
    os.mkfifo(tmp_path / "images.d/c.yml")
    write(tmp_path, "images: [ruby]", "images.d/d.yml")
    found = read(tmp_path, INCLUDE)
    assert [problem.where for problem in found.problems] == [
        "images.d/a.yml:1",
        "images.d/b.yml:1",
        "images.d/c.yml:1",
    ]
    assert pins(found)[-1] == "docker.io/library/ruby:latest"


def test_load_of_a_file_included_twice_or_by_itself_reads_it_once(tmp_path: Path) -> None:
    write(tmp_path, "images: [node]", "images.d/a.yml")
    text = TOP + "images: [golang]\ninclude: ['*.yml', images.d/*.yml, images.d/a.yml, ~/x.yml]\n"
    found = reader.load(write(tmp_path, text), home=tmp_path / "images.d")
    assert pins(found) == ["docker.io/library/golang:latest", "docker.io/library/node:latest"]
    assert [problem.where for problem in found.problems] == ["images.yml:4"]


def test_load_of_an_include_from_the_root_names_it_in_full(tmp_path: Path) -> None:
    other = write(tmp_path, "images: [node]", "other/a.yml")
    path = write(tmp_path, f"{TOP}include: ['{other}']\n", "here [1]/images.yml")
    assert [pin.where for pin in reader.load(path).pins] == [f"{other}:1"]


def test_load_below_a_folder_with_brackets_finds_its_includes(tmp_path: Path) -> None:
    folder = tmp_path / "here [1]"
    write(folder, "images: [node]", "images.d/a.yml")
    assert pins(read(folder, INCLUDE))[-1] == "docker.io/library/node:latest"


# Which file


def test_find_config_takes_the_first_that_is_named_or_there(tmp_path: Path) -> None:
    system = tmp_path / "etc/images.yml"
    environ = {"PREWARM_CONFIG": "b.yml"}
    with pytest.raises(UsageError, match="prewarm init"):
        reader.find_config(None, {}, tmp_path, system=system)
    write(tmp_path, TOP, "etc/images.yml")
    assert reader.find_config(None, {"PREWARM_CONFIG": ""}, tmp_path, system=system) == system
    here = write(tmp_path, TOP)
    assert reader.find_config(None, {}, tmp_path, system=system) == here
    assert reader.find_config(None, environ, tmp_path, system=system) == tmp_path / "b.yml"
    assert reader.find_config("a.yml", environ, tmp_path, system=system) == tmp_path / "a.yml"
    assert reader.find_config("/a.yml", environ, tmp_path, system=system) == Path("/a.yml")


def test_import_of_config_loads_no_heavy_module() -> None:
    heavy = "jsonschema zoneinfo gitlab requests urllib3 rich sqlite3"
    found = f"set({heavy.split()!r}) & set(sys.modules)"
    code = f"import sys, prewarm.config.reader; print(*sorted({found}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == ""


# Other users of the machine


@needs_root
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda file: os.chown(file, UID, UID), "it belongs to nobody"),
        (lambda file: file.chmod(0o666), "every user may write to it"),
        (lambda file: for_group_of_nobody(file), "group nogroup may write to it"),
        (lambda file: os.chown(file.parent, UID, UID), "its folder belongs to nobody"),
        (lambda file: file.parent.chmod(0o777), "every user may write to its folder"),
        (lambda file: by_link_of_nobody(file), "it belongs to nobody"),
    ],
)
def test_find_config_refuses_a_found_file_that_another_user_can_change(
    tmp_path: Path, change: Callable[[Path], object], cause: str
) -> None:
    file = write(tmp_path / "here", TOP)
    assert reader.find_config(None, {}, file.parent) == file
    change(file)
    with pytest.raises(UsageError, match=cause) as caught:
        reader.find_config(None, {}, file.parent)
    assert (caught.value.code, caught.value.exit_code) == ("config-owner", 2)
    assert str(file) in caught.value.text
    assert f"--config {file}" in caught.value.cure
    # Who names it has looked at it.
    assert reader.find_config("images.yml", {}, file.parent) == file
    assert reader.find_config(None, {"PREWARM_CONFIG": "images.yml"}, file.parent) == file


def for_group_of_nobody(file: Path) -> None:
    os.chown(file, 0, UID)
    file.chmod(0o664)


def by_link_of_nobody(file: Path) -> None:
    file.rename(file.with_name("other.yml"))
    file.symlink_to("other.yml")
    os.lchown(file, UID, UID)


@needs_root
@pytest.mark.parametrize("group", [0, os.getgid()])
def test_find_config_takes_a_file_that_a_private_group_may_write(
    tmp_path: Path, group: int
) -> None:
    file = write(tmp_path, TOP)
    os.chown(file, -1, group)
    file.chmod(0o664)
    tmp_path.chmod(0o775)
    assert reader.find_config(None, {}, tmp_path) == file


def test_find_config_takes_an_own_file_in_a_sticky_folder(tmp_path: Path) -> None:
    file = write(tmp_path, TOP)
    tmp_path.chmod(0o1777)
    assert reader.find_config(None, {}, tmp_path) == file


@needs_root
def test_included_file_of_another_user_is_a_problem_and_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, f"{TOP}include: [images.d/*.yml]\nimages: [golang]\n")
    planted = write(tmp_path, "images: [secret]\n", "images.d/planted.yml")
    os.chown(planted, UID, UID)
    found = reader.load(path)
    assert pins(found) == ["docker.io/library/golang:latest"]
    (problem,) = found.problems
    assert f"belongs to nobody, who is not the owner of {path}" in str(problem)
    os.chown(path, UID, UID)
    assert reader.load(path).problems == ()
