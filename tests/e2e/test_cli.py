"""The command line as people and scripts meet it: exit codes, output, and the JSON documents."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from prewarm import __version__
from prewarm.cli.main import cli
from tests.e2e.host import Host
from tests.sandbox import Sandbox
from tests.support.process import Finished, run_on_terminal, run_prewarm, start_prewarm

AMD, ARM = "linux/amd64", "linux/arm64"
WRONG = """\
version: 1
mirrors: [http://127.0.0.1:5000]
platfroms: [linux/amd64]
images:
  - golang:bullseye
  - image: "Bad Name"
  - python:3.12:slim
limits: {parallel: 0}
recheck: 5 parsecs
"""


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


def assert_untouched(host: Host) -> None:
    """Nobody was asked for anything, and no state was made."""
    box = host.box
    assert [*box.hub.access, *box.hub.cdn.access, *box.taps[0].access] == []
    assert not host.state.parent.exists()
    assert not (host.folder / "home/state").exists()


def assert_refused(finished: Finished) -> None:
    """Exit 2, and the reason on stderr without a traceback."""
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert finished.stdout == ""
    assert finished.stderr.strip()
    assert "Traceback" not in finished.stderr


# --- images.yml ---


def test_check_wrong_file_tells_every_problem_with_line_key_and_cure(tmp_path: Path) -> None:
    finished = run_prewarm(["check"], tmp_path, config=WRONG)
    assert finished.returncode == 2
    assert finished.stderr == ""
    lines = finished.stdout.splitlines()
    found = [
        re.fullmatch(r"images\.yml:(\d+): ([\w.\[\]]+): ([^,;]+.*), ([^,]+.*)", x) for x in lines
    ]
    assert None not in found, lines
    assert [(m[1], m[2]) for m in found if m] == [
        ("3", "platfroms"),
        ("6", "images[1].image"),
        ("7", "images[2]"),
        ("8", "limits.parallel"),
        ("9", "recheck"),
    ]
    assert lines[0] == "images.yml:3: platfroms: unknown key, did you mean platforms?"
    assert ";" not in finished.stdout


def test_check_named_file_is_checked_instead_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "other.yml").write_text(WRONG)
    good = tmp_path / "good.yml"
    good.write_text("version: 1\nmirrors: [http://127.0.0.1:5000]\nimages: [alpine]\n")
    assert run_prewarm(["check"], tmp_path, config=good).returncode == 0
    finished = run_prewarm(["check", "other.yml"], tmp_path, config=good)
    assert finished.returncode == 2
    assert finished.stdout.startswith("other.yml:3: ")


@pytest.mark.parametrize(
    "command", [["sync"], ["sync", "--json"], ["sync", "--dry-run"], ["status"]]
)
def test_command_with_a_wrong_file_does_nothing(
    host: Host, tmp_path: Path, command: list[str]
) -> None:
    host.config.write_text(WRONG + f"registries: {{docker.io: {{endpoint: {host.box.hub.url}}}}}\n")
    finished = host.run(*command)
    assert_refused(finished)
    lines = finished.stderr.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("images.yml:") for line in lines)
    assert_untouched(host)


@pytest.mark.parametrize("content", [None, "", "- a\n", "{", "a: &a [*a]\n", "\0"])
def test_sync_unreadable_file_does_nothing(host: Host, content: str | None) -> None:
    if content is not None:
        host.config.write_text(content)
    finished = host.run("sync")
    assert_refused(finished)
    assert "images.yml" in finished.stderr
    assert_untouched(host)


def test_config_option_counts_before_the_environment_before_the_folder(tmp_path: Path) -> None:
    text = "version: 1\nmirrors: [http://127.0.0.1:5000]\n"
    for name in ("option.yml", "environment.yml", "images.yml"):
        (tmp_path / name).write_text(text)
    env = {"PREWARM_CONFIG": str(tmp_path / "environment.yml")}

    def read(config: Path | None, env: dict[str, str] | None) -> str:
        finished = run_prewarm(["check"], tmp_path, config=config, env=env)
        assert finished.returncode == 0, finished.stdout
        return finished.stdout.partition(":")[0].rpartition("/")[2]

    assert read(tmp_path / "option.yml", env) == "option.yml"
    assert read(None, env) == "environment.yml"
    assert read(None, None) == "images.yml"
    missing = run_prewarm(["check"], tmp_path, env={"PREWARM_CONFIG": "/nowhere.yml"})
    assert missing.returncode == 2
    assert "/nowhere.yml" in missing.stdout + missing.stderr


def test_init_writes_a_file_that_passes_check_and_never_overwrites(tmp_path: Path) -> None:
    assert run_prewarm(["init"], tmp_path).returncode == 0
    written = (tmp_path / "images.yml").read_text()
    assert run_prewarm(["check"], tmp_path).returncode == 0

    to_stdout = run_prewarm(["init", "-"], tmp_path)
    assert (to_stdout.returncode, to_stdout.stdout) == (0, written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "images.yml"]

    (tmp_path / "images.yml").write_text("mine")
    (tmp_path / "link.yml").symlink_to(tmp_path / "nowhere")
    for name in ("images.yml", "link.yml", ".", "no/such/folder.yml"):
        assert_refused(run_prewarm(["init", name], tmp_path))
    assert (tmp_path / "images.yml").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


# --- arguments ---


@pytest.mark.parametrize("command", [[], *([name] for name in sorted(cli.commands))])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_every_command_needs_no_configuration(
    tmp_path: Path, command: list[str], flag: str
) -> None:
    finished = run_prewarm([*command, flag], tmp_path, env={"PREWARM_CONFIG": "/nowhere.yml"})
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith(" ".join(["Usage: prewarm", *command]))


def test_version_is_the_package_s(tmp_path: Path) -> None:
    finished = run_prewarm(["--version"], tmp_path)
    assert (finished.returncode, finished.stdout) == (0, f"prewarm {__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_has_a_script_for_the_shell(tmp_path: Path, shell: str) -> None:
    finished = run_prewarm([], tmp_path, env={"_PREWARM_COMPLETE": f"{shell}_source"})
    assert (finished.returncode, finished.stderr) == (0, "")
    assert f"_PREWARM_COMPLETE={shell}_complete" in finished.stdout


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["sy"], ["sync"]),
        (["sync", "--dry"], ["--dry-run"]),
        (["client-config", "docker"], ["dockerd", "docker-machine"]),
        (["explain", "go"], []),
    ],
)
def test_completion_offers_words(tmp_path: Path, typed: list[str], words: list[str]) -> None:
    asked = {
        "_PREWARM_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["prewarm", *typed]),
        "COMP_CWORD": str(len(typed)),
    }
    finished = run_prewarm([], tmp_path, env=asked)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.split() == [f"plain,{word}" for word in words]


def test_completion_for_a_shell_that_nobody_knows_is_wrong_usage(tmp_path: Path) -> None:
    finished = run_prewarm([], tmp_path, env={"_PREWARM_COMPLETE": "csh_source"})
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, "", "")


@pytest.mark.parametrize(
    "args",
    [
        ["--nonsense"],
        ["sync", "--nonsense"],
        ["nonsense"],
        ["explain"],
        ["--log-format", "xml", "status"],
        ["sync", "--wait-for", "soon"],
        ["sync", "--use-reserve"],
        ["sync", "Bad Name"],
        ["sync", "UPPER/case"],
        ["sync", "app:1:2"],
        ["sync", "app@sha256:12"],
        ["sync", ""],
        ["sync", "quay.io/team/app:1"],
        ["sync", "--dry-run", "quay.io/team/app:1"],
        ["explain", "Bad Name"],
        ["sync", "app\x1b[2J"],
    ],
)
def test_wrong_usage_does_nothing(host: Host, args: list[str]) -> None:
    host.configure(["app:1"])
    finished = host.run(*args)
    assert_refused(finished)
    assert "\x1b" not in finished.stderr
    assert_untouched(host)


# --- output ---


def test_json_on_stdout_is_only_json(host: Host, box: Sandbox) -> None:
    box.push("library/app", "1", single=True)
    host.configure(["app:1", "nope:1"])
    for command in (
        ["sync", "--dry-run"],
        ["sync"],
        ["status"],
        ["verify"],
        ["explain", "app:1"],
        ["explain", "--offline", "app:1"],
    ):
        finished = host.run("-v", *command, "--json")
        assert isinstance(finished.json, dict)
        assert "Traceback" not in finished.stderr


def test_log_format_json_writes_one_object_a_line(host: Host, box: Sandbox) -> None:
    box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    finished = host.run("--log-format", "json", "sync")
    lines = finished.stderr.splitlines()
    assert lines
    for line in lines:
        assert {"time", "level", "message"} <= set(json.loads(line))


def test_global_options_after_the_command_mean_the_same(host: Host, box: Sandbox) -> None:
    box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    before = host.run("-v", "sync", "--dry-run")
    assert "rank 1: pinned at" in before.stdout
    assert re.search(r"^HEAD http\S+/v2/library/app/manifests/1: 200$", before.stderr, re.MULTILINE)
    assert host.run("sync", "--dry-run", "-v").stdout == before.stdout
    assert "rank" not in host.run("sync", "--dry-run").stdout
    assert host.run("sync", "--version").stdout == host.run("--version").stdout
    other = host.run("check", "--config", str(host.folder / "none.yml"))
    assert (other.returncode, "none.yml" in other.stderr) == (2, True)


@pytest.mark.parametrize("words", [["-q", "sync"], ["sync", "-q"]])
def test_quiet_leaves_only_the_result(host: Host, box: Sandbox, words: list[str]) -> None:
    box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    finished = host.run(*words)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "1 copied" in finished.stdout


def on_a_terminal(host: Host, *args: str, env: dict[str, str] | None = None) -> str:
    """Run prewarm with a terminal as stdout and return what it shows there."""
    return run_on_terminal(["--config", str(host.config), *args], host.folder, env=env).stdout


def test_sync_on_a_terminal_is_coloured_unless_no_color_is_set(host: Host) -> None:
    host.configure(["nope:1"])
    assert "\x1b[31m" in on_a_terminal(host, "sync")
    plain = on_a_terminal(host, "sync", env={"NO_COLOR": "1"})
    assert "nope" in plain
    assert "\x1b" not in plain
    dumb = on_a_terminal(host, "sync", env={"TERM": "dumb"})
    assert "nope" in dumb
    assert "\x1b" not in dumb
    assert "\x1b" not in host.run("sync").stdout


@pytest.mark.parametrize(
    "args",
    [
        ["--nonsense"],
        ["nonsense"],
        ["sync", "--nonsense"],
        ["explain"],
        ["sync", "--wait-for", "soon"],
    ],
)
@pytest.mark.parametrize("option", [["--log-format", "json"], ["--log-format=json"]])
def test_log_format_json_holds_for_wrong_usage_too(
    tmp_path: Path, option: list[str], args: list[str]
) -> None:
    finished = run_prewarm([*option, *args], tmp_path)
    assert_refused(finished)
    (line,) = finished.stderr.splitlines()
    told = json.loads(line)
    assert told["level"] == "error"
    assert told["message"].startswith("prewarm: ")
    assert told["message"].endswith("--help")


def test_json_of_a_command_that_cannot_begin_is_nothing(host: Host) -> None:
    host.configure(["app:1"], state=str(host.config / "prewarm.db"))
    for command in (
        ["sync", "--json"],
        ["sync", "--dry-run", "--json"],
        ["status", "--json"],
        ["verify", "--json"],
        ["explain", "app:1", "--json"],
    ):
        assert_refused(host.run(*command))


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["init", "-"], 0),
        (["sync"], 0),
        (["sync", "--json"], 0),
        (["status"], 0),
        (["--help"], 0),
        (["sync", "nope:1"], 1),
        (["sync", "--json", "nope:1"], 1),
        (["explain", "nope:1"], 1),
    ],
)
def test_reader_that_has_gone_changes_no_exit_code(
    host: Host, box: Sandbox, args: list[str], code: int
) -> None:
    box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    with start_prewarm(["-q", *args], host.folder, config=host.config) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        stderr = process.stderr.read()
        process.wait(30)
    assert stderr == ""
    assert process.returncode == code


# --- the state ---


def test_state_of_a_newer_version_is_refused_and_kept(host: Host, box: Sandbox) -> None:
    box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    host.sync()
    with closing(sqlite3.connect(host.state)) as sql, sql:
        sql.execute("INSERT INTO schema_version (version) VALUES (999)")
    host.forget_requests()
    for command in (["sync"], ["sync", "--dry-run"], ["status"], ["verify"], ["explain", "app:1"]):
        finished = host.run(*command)
        assert_refused(finished)
        assert "newer prewarm" in finished.stderr
        assert str(host.state) in finished.stderr
    assert [*box.hub.access, *box.taps[0].access] == []
    assert host.charged() == 1


@pytest.mark.parametrize("exists", [True, False])
def test_state_of_another_user_is_refused_with_the_command(
    host: Host, box: Sandbox, exists: bool
) -> None:
    host.configure(["app:1"])
    if exists:
        host.sync(code=1)
        os.chown(host.state, 12345, 12345)
    else:
        host.state.parent.mkdir()
        os.chown(host.state.parent, 12345, 12345)
    host.forget_requests()
    for command in (["sync", "--dry-run"], ["sync", "--json"], ["status"], ["explain", "app:1"]):
        finished = host.run(*command)
        assert_refused(finished)
        assert str(host.state) in finished.stderr
        assert "run: sudo -u '#12345' " in finished.stderr
        assert finished.stderr.rstrip().endswith(" ".join(command))
    assert [*box.hub.access, *box.taps[0].access] == []
    assert host.state.exists() == exists


def test_status_before_any_run_is_empty_and_makes_no_state(host: Host) -> None:
    host.configure(["app:1"])
    finished = host.run("status", "--json")
    assert finished.returncode == 0
    assert finished.json["last_sync"] is None
    assert finished.json["budgets"] == {}
    assert finished.json["images"] == {"tracked": 0, "fresh": 0, "stale": 0, "missing": 0}
    assert finished.json["coverage"] is None
    assert host.run("status").returncode == 0
    assert_untouched(host)


# --- the documents of CONTRACT.md, 3 ---


class Values:
    """A JSON object with any keys, whose values are all of one shape."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
NUMBER = (int, float)
NONE = type(None)
FAILURE = {"code": str, "text": str, "cure": str}
PROBLEM = {
    "severity": re.compile("error|warning"),
    "code": re.compile("[a-z-]+"),
    "where": str,
    "problem": str,
    "cure": str,
}
SUMMARY = dict.fromkeys(
    ("copied", "tagged", "fresh", "deferred", "skipped", "failed", "pulls", "gets", "bytes"), int
)
BUDGETS = Values(
    {
        "account": str,
        "pulls": (int, NONE),
        "window_seconds": int,
        "reserve": int,
        "used": int,
        "remaining": (int, NONE),
        "reported_limit": (int, NONE),
        "reported_remaining": (int, NONE),
        "source": str,
        "next_free": (TIME, NONE),
    }
)
IMAGE = {
    "image": re.compile(r"docker\.io/library/.+"),
    "sources": [re.compile("pin")],
    "jobs": int,
    "projects": int,
    "last_used": (TIME, NONE),
    "action": re.compile("copy|tag|fresh|defer|skip|fail"),
    "code": re.compile("[a-z-]+"),
    "reason": str,
    "digest": (DIGEST, NONE),
    "platforms": [str],
    "pulls": int,
    "gets": int,
    "bytes": int,
    "seconds": NUMBER,
    "until": (TIME, NONE),
    "mirrors": Values(
        {
            "name": str,
            "digest": (DIGEST, NONE),
            "state": re.compile("fresh|stale|missing|unknown"),
            "bytes": (int, NONE),
            "error": (str, NONE),
        }
    ),
    "error": (FAILURE, NONE),
}
SYNC = {
    "version": int,
    "run": str,
    "dry_run": bool,
    "started": TIME,
    "finished": TIME,
    "budgets": BUDGETS,
    "images": [IMAGE],
    "problems": [PROBLEM],
    "summary": SUMMARY,
}
POINT = {"at": TIME, "coverage": NUMBER}
STATUS = {
    "version": int,
    "budgets": BUDGETS,
    "images": {"tracked": int, "fresh": int, "stale": int, "missing": int},
    "coverage": NUMBER,
    "coverage_series": [POINT],
    "uses_unresolved": NUMBER,
    "pull_failures_per_day": [NUMBER],
    "last_sync": {**SUMMARY, "exit": int},
    "mirrors": [
        {
            "url": str,
            "mode": str,
            "coverage": NUMBER,
            "coverage_series": [POINT],
            "bytes": int,
            "state": str,
        }
    ],
}


def mismatch(value: Any, shape: Any, more: bool = False, at: str = "$") -> str | None:
    """Return where and how a value is not of the shape; `more` allows further keys."""
    match shape:
        case dict():
            if not isinstance(value, dict):
                return f"{at}: {value!r} is no object"
            if set(shape) - set(value) or (not more and set(value) - set(shape)):
                return f"{at}: has the keys {sorted(value)}, not {sorted(shape)}"
            parts = [(value[key], one, f"{at}.{key}") for key, one in shape.items()]
        case Values():
            if not isinstance(value, dict):
                return f"{at}: {value!r} is no object"
            parts = [(one, shape.shape, f"{at}[{key}]") for key, one in value.items()]
        case [one]:
            if not isinstance(value, list):
                return f"{at}: {value!r} is no list"
            parts = [(item, one, f"{at}[{n}]") for n, item in enumerate(value)]
        case tuple():
            found = [mismatch(value, one, more, at) for one in shape]
            return None if None in found else found[0]
        case re.Pattern():
            good = isinstance(value, str) and shape.fullmatch(value)
            return None if good else f"{at}: {value!r} is not {shape.pattern}"
        case _:
            # A bool is an int in Python, not in JSON.
            if isinstance(value, shape) and (shape is bool or not isinstance(value, bool)):
                return None
            return f"{at}: {value!r} is no {shape.__name__}"
    return next(filter(None, (mismatch(*part[:2], more, part[2]) for part in parts)), None)


@pytest.mark.parametrize(
    ("value", "shape", "wrong"),
    [
        ({"a": 1}, {"a": int}, False),
        ({"a": True}, {"a": int}, True),
        ({"a": 1, "b": 1}, {"a": int}, True),
        ({}, {"a": int}, True),
        ([{"a": None}], [{"a": (str, NONE)}], False),
        ([{"a": 3}], [{"a": (str, NONE)}], True),
        ({"x": {"a": 3}}, Values({"a": str}), True),
        ("2024-01-01T00:00:00+00:00", TIME, True),
    ],
)
def test_mismatch_tells_what_is_wrong(value: Any, shape: Any, wrong: bool) -> None:
    assert (mismatch(value, shape) is not None) == wrong


def every_action(host: Host, box: Sandbox) -> list[str]:
    """Prepare a sync in which each action happens once; return the actions in their order."""
    for name in ("warm", "app", "late"):
        box.push(f"library/{name}", "1", "2", single=True)
    box.push("library/big", "1", single=True, size=2_000_000)
    registries = {
        "docker.io": {"endpoint": box.hub.url, "budget": {"pulls": 4, "window": "6h", "reserve": 1}}
    }
    more = {"registries": registries, "limits": {"image_size": "1MiB"}}
    host.configure(["warm:1"], **more)
    host.sync()
    pins = ["warm:1", "app:1", "app:2", "big:1", "nope:1", "late:1"]
    host.configure(pins, **more)
    return ["fresh", "copy", "tag", "skip", "fail", "defer"]


def test_sync_json_has_exactly_the_keys_and_types_of_the_contract(host: Host, box: Sandbox) -> None:
    expected = every_action(host, box)
    planned = host.sync("--dry-run", code=1).report
    done = host.sync(code=1)
    for report in (planned, done.report):
        assert mismatch(report, SYNC) is None
        assert report["version"] == 1
    assert [planned["dry_run"], done.report["dry_run"]] == [True, False]
    assert [action for _, action in done.actions] == expected
    by_action = {image["action"]: image for image in done.report["images"]}
    assert by_action["defer"]["code"] == "budget"
    assert by_action["defer"]["until"] is not None
    assert by_action["fail"]["error"]["code"] == by_action["fail"]["code"] == "not-found"
    assert [by_action[name]["error"] for name in ("copy", "tag", "fresh", "defer")] == [None] * 4
    assert done.summary == {
        **dict.fromkeys(("copied", "tagged", "fresh", "deferred", "skipped", "failed"), 1),
        **{
            name: sum(image[name] for image in done.report["images"])
            for name in ("pulls", "gets", "bytes")
        },
    }
    budget = done.report["budgets"]["docker.io"]
    used = (budget["pulls"], budget["reserve"], budget["used"], budget["remaining"])
    assert used == (4, 1, 3, 0)
    assert len(done.gets) == done.summary["gets"] == 2


def test_sync_dry_run_json_leaves_the_pulls_of_an_unread_index_open(
    host: Host, box: Sandbox
) -> None:
    box.push("library/app", "1", platforms=[AMD, ARM])
    host.configure([{"image": "app:1", "platforms": "all"}])
    (image,) = host.sync("--dry-run").report["images"]
    assert (image["action"], image["pulls"], image["gets"]) == ("copy", None, None)
    assert mismatch({**image, "pulls": 0, "gets": 0}, IMAGE) is None


def test_status_json_has_the_keys_of_the_contract(host: Host, box: Sandbox) -> None:
    every_action(host, box)
    host.sync(code=1)
    told = host.run("status", "--json").json
    assert mismatch(told, STATUS, more=True) is None
    assert told["last_sync"]["exit"] == 1
    assert told["last_sync"]["failed"] == 1
    assert told["images"]["fresh"] == 3
    assert len(told["coverage_series"]) == 2
    # Nothing tells of jobs here.
    assert told["pull_failures_per_day"] == []
    assert told["mirrors"][0]["url"] == box.taps[0].url
    assert (told["config"], told["state"]) == (str(host.config), str(host.state))


def test_explain_json_tells_where_the_image_stands(host: Host, box: Sandbox) -> None:
    image = box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    cold = host.run("explain", "--json", "app:1")
    assert cold.returncode == 1
    assert cold.json["command"] == "prewarm sync app:1"
    assert cold.json["next"]["action"] == "copy"
    assert box.hub.access.gets() == []
    host.sync()
    warm = host.run("explain", "--json", "app:1")
    assert warm.returncode == 0
    told = warm.json
    assert (told["image"], told["warm"]) == ("docker.io/library/app:1", True)
    assert told["upstream"]["digest"] == image.digest
    assert told["mirrors"][box.taps[0].url]["name"] == "library/app:1"
    assert told["mirrors"][box.taps[0].url]["state"] == "fresh"
    assert (told["last_copy"]["pulls"], told["last_copy"]["gets"]) == (1, 1)
    assert told["pins"][0]["where"] == "images.yml:10"

    hidden = host.run("explain", "--json", "quay.io/team/app:1")
    assert hidden.returncode == 1
    assert mismatch(hidden.json["hidden"], FAILURE) is None
