"""The unit files: valid, shut in, free of contradictions, and told of in the docs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from prewarm.clients.registry_units import registry
from prewarm.config.reader import load
from prewarm.core.settings import Limits
from prewarm.core.text import parse_duration
from prewarm.sync import executor
from tests.support.units import UNITS, assert_units_are_valid, read_unit

SYNC, RUN, REGISTRY = "prewarm.service", "prewarm-run.service", "prewarm-registry.service"
GUIDE = (UNITS.parent / "docs/systemd.md").read_text()
WINDOW = 6 * 60
"""Minutes of Docker Hub's window."""


@pytest.fixture
def printed(tmp_path: Path) -> dict[str, str]:
    """What client-config prints for a mirror on loopback: the texts by name."""
    config = tmp_path / "images.yml"
    config.write_text("version: 1\nmirrors: [http://127.0.0.1:5000]\n")
    return {file.name: file.text for file in registry(load(config))}


def keys(name: str) -> dict[str, list[str]]:
    return read_unit((UNITS / name).read_text())


def test_units_are_valid_to_systemd(tmp_path: Path) -> None:
    """All at once, so that what one names of the others is there."""
    program = Path(sys.executable).with_name("prewarm")
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("\nExecStart=prewarm ", f"\nExecStart={program} ")
        text = text.replace("ExecStart=/etc/prewarm/on-failure ", f"ExecStart={hook} ")
        name = unit.name.replace("@", f"@{SYNC}") if "@" in unit.name else unit.name
        (tmp_path / name).write_text(text)
    assert_units_are_valid(
        tmp_path,
        [file.name for file in tmp_path.iterdir() if file.suffix in {".service", ".timer"}],
    )


@pytest.mark.parametrize("name", [SYNC, RUN, REGISTRY])
def test_exposure_is_at_most_one_and_a_half(name: str) -> None:
    """systemd's own scale, from 0 to 10."""
    judge = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", "--no-pager"]
    unit = str(UNITS / name)
    done = subprocess.run([*judge, unit], capture_output=True, text=True, timeout=60)
    assert f"Overall exposure level for {name}" in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout


def test_daemon_is_shut_in_as_the_oneshot_is() -> None:
    """They do the same work; only what starts and ends them differs."""
    differing = {"ExecStart", "Type", "SuccessExitStatus", "ExecReload", "WatchdogSec", "Restart"}
    differing |= {"RestartSec", "RestartPreventExitStatus", "WantedBy", "TimeoutStartSec"}
    sync, run = keys(SYNC), keys(RUN)
    assert {key: sync[key] for key in sync.keys() - differing} == {
        key: run[key] for key in run.keys() - differing
    }


def test_sync_that_does_not_end_by_itself_is_ended_by_systemd_and_no_other() -> None:
    limits = Limits()
    longest = limits.run_time + executor._BASE_TIMEOUT + limits.image_size / executor._SLOWEST
    (allowed,) = keys(SYNC)["TimeoutStartSec"]
    assert longest < parse_duration(allowed) < 24 * 3600


def test_registry_is_the_writer_that_client_config_prints(printed: dict[str, str]) -> None:
    """And its collection of garbage stops and starts it by that name."""
    writer = "prewarm-registry-writer.service"
    ours = keys(REGISTRY)
    assert ours.pop("Alias") == [writer]
    assert ours == read_unit(printed[writer])
    assert ours["ExecStart"][0].rpartition("/")[2] in printed
    collection = read_unit(printed["prewarm-registry-gc.service"])
    assert {
        line.split()[-1] for key in ("ExecStartPre", "ExecStopPost") for line in collection[key]
    } == {writer}


def test_syncs_start_after_every_registry_on_the_host(printed: dict[str, str]) -> None:
    names = {name for name in printed if re.fullmatch(r".*-(writer|proxy)\.service", name)}
    for name in (SYNC, RUN):
        after = {*" ".join(keys(name)["After"]).split()}
        assert after == {"network-online.target", REGISTRY, "docker-registry.service", *names}


def test_failure_hook_is_the_unit_that_the_others_name() -> None:
    for name in (SYNC, RUN):
        (hook,) = keys(name)["OnFailure"]
        assert (UNITS / hook.replace("%n.", ".")).is_file()


def test_failure_hook_may_start_set_group_id_programs() -> None:
    """systemd.exec(5) names what implies NoNewPrivileges= for a user that is not root."""
    implying = re.compile(
        r"NoNewPrivileges|LockPersonality|MemoryDeny|PrivateDevices|ProtectClock|ProtectHostname|"
        r"ProtectKernel|Restrict|SystemCall|DynamicUser"
    )
    assert [key for key in keys("prewarm-failed@.service") if implying.match(key)] == []


def test_timer_uses_two_windows_and_leaves_both_free_by_the_morning() -> None:
    timer = keys("prewarm.timer")
    times = [re.fullmatch(r"\*-\*-\* (\d\d):(\d\d)", each) for each in timer["OnCalendar"]]
    minutes = [60 * int(each[1]) + int(each[2]) for each in times if each]
    evening, night = minutes
    delay = int(timer["RandomizedDelaySec"][0].removesuffix("min"))
    half_an_hour = 30
    assert timer["FixedRandomDelay"] == timer["Persistent"] == ["true"]
    assert 24 * 60 + night - evening >= WINDOW + half_an_hour
    assert night + delay + half_an_hour + WINDOW <= 8 * 60


def test_sysusers_makes_the_user_of_the_units(tmp_path: Path) -> None:
    file = UNITS / "prewarm.sysusers.conf"
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", file], check=True, timeout=60)
    ((name, *_, home, shell),) = [
        line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()
    ]
    (group,) = (tmp_path / "etc/group").read_text().splitlines()
    assert (name, home, shell.rpartition("/")[2]) == ("prewarm", "/var/lib/prewarm", "nologin")
    assert group.startswith("prewarm:")
    for unit in (SYNC, RUN):
        assert (keys(unit)["User"], keys(unit)["Group"]) == (["prewarm"], ["prewarm"])


@pytest.mark.parametrize("file", sorted(UNITS.iterdir()), ids=lambda path: path.name)
def test_guide_tells_of_every_file(file: Path) -> None:
    assert f"`{file.name}`" in GUIDE
