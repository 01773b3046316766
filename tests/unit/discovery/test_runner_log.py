"""Runner logs: what a job's runner says of its images, in files and in the journal."""

from __future__ import annotations

import base64
import json
import lzma
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.errors import PrewarmError
from prewarm.discovery.runner_log import Claims, LogReader, Use, read_entry, read_line

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC).timestamp()
AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC).timestamp()
FIELDS = "job=12 namespace_id=5 project=3 project_full_path=team/app runner=t1_AbCdEf"
RUNNER = f"Image configured for job                            image_name=node:22 {FIELDS}"
SERVICE = (
    "Service image configured for job                    "
    f"image_name=quay.io/a/db:9 image_platform=linux/arm64 {FIELDS}"
)
COLOURED = RUNNER.replace("=", "\x1b[0;m=").replace("  image", "\x1b[0;m  image", 1)
TEXT = (
    'time="2026-03-04T05:06:07Z" level=info msg="Image configured for job" '
    'image_name="node:22" job=12 project=3 project_full_path=team/app runner=t1_AbCdEf'
)
JSON = json.dumps(
    {
        "image_name": "node:22",
        "job": 12,
        "level": "info",
        "msg": "Image configured for job",
        "project": 3,
        "project_full_path": "team/app",
        "runner": "t1_AbCdEf",
        "time": "2026-03-04T06:06:07.123456789+01:00",
    }
)
DOCKER = json.dumps({"log": COLOURED + "\n", "stream": "stderr", "time": "2026-03-04T05:06:07Z"})


@pytest.mark.parametrize(
    ("line", "at"),
    [
        (RUNNER, None),
        (COLOURED, None),
        (COLOURED.replace("\x1b", "#033"), None),
        (f"Mar  4 05:06:07 host gitlab-runner[871]: {RUNNER}", AT),
        (f"2026-03-04T05:06:07.000000+00:00 host gitlab-runner[871]: {COLOURED}", AT),
        (f"2026-03-04T05:06:07.000000000Z stderr F {RUNNER}", AT),
        (f"2026-03-04T05:06:07Z {RUNNER}", AT),
        (f"INFO[0012] {RUNNER}", None),
        ('INFO[0012] Image configured for job      image_name="node:22" job=12 project=3 '
         "project_full_path=team/app runner=t1_AbCdEf", None),
        (TEXT, AT),
        (JSON, AT + 0.123456),
        (DOCKER, AT),
    ],
)  # fmt: skip
def test_read_line_in_any_format_is_the_use(line: str, at: float | None) -> None:
    use = Use("node:22", "image", at, 12, 3, "team/app", "t1_AbCdEf")
    assert read_line(line, NOW, UTC) == use


def test_read_line_of_a_service_tells_its_platform() -> None:
    use = read_line(SERVICE, NOW, UTC)
    assert use == Use(
        "quay.io/a/db:9", "service", None, 12, 3, "team/app", "t1_AbCdEf", "linux/arm64"
    )


def test_read_line_of_an_older_runner_has_no_path() -> None:
    line = "Image configured for job   image_name=node:22 job=12 project=3 runner=abc"
    assert read_line(line, NOW, UTC) == Use("node:22", "image", None, 12, 3, None, "abc")


@pytest.mark.parametrize(
    ("stamp", "now", "wanted"),
    [
        ("Dec 31 23:00:00", "2026-01-01T01:00:00", "2025-12-31T23:00:00"),
        ("Jan  1 00:30:00", "2025-12-31T23:59:00", "2026-01-01T00:30:00"),
        ("Feb 29 10:00:00", "2024-03-01T00:00:00", "2024-02-29T10:00:00"),
        ("Mar  4 05:06:07", "2026-03-04T05:06:08", "2026-03-04T05:06:07"),
    ],
)
def test_read_line_classic_time_gets_the_nearest_year(stamp: str, now: str, wanted: str) -> None:
    zone = timezone(timedelta(hours=2))
    given_now, at = (datetime.fromisoformat(text).replace(tzinfo=zone) for text in (now, wanted))
    use = read_line(f"{stamp} host gitlab-runner[1]: {RUNNER}", given_now.timestamp(), zone)
    assert use is not None
    assert use.time == at.timestamp()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Image configured for job",
        "Image configured for job no field at all",
        "Service image configured for job                   job=12 project=3 runner=abc",
        "Checking for jobs... received                       job=12 repo_url=https://x runner=abc",
        # Not the message, only part of one.
        f"ERROR: Job failed: {RUNNER}",
        f"WARNING: x y: {RUNNER}",
        TEXT.replace("msg=", 'msg="x" error='),
        JSON.replace('"msg"', '"error"'),
        # No image's name, or one that holds a secret or a variable.
        RUNNER.replace("node:22", "$IMAGE"),
        RUNNER.replace("node:22", "[MASKED]/a:1"),
        RUNNER.replace("node:22", "registry.example.com/Hunter2"),
        JSON.replace("node:22", "node:22\\nImage configured for job"),
        # A name that holds what looks like fields.
        RUNNER.replace("node:22", "node:22 job=99 project=77 runner=abc"),
        RUNNER.replace("node:22", "node:22 project_full_path=other/app"),
        RUNNER.replace("node:22", "node:22 evil"),
        TEXT.replace('"node:22"', '"node:22" job=99'),
        # Cut by a line break in the name.
        "Image configured for job                            image_name=node:22",
        '{"log": "{\\"log\\": \\"Image configured for job\\"}"}',
        '{"msg": "Image configured for job", "image_name": ["node"], "job": {}, "project": 1}',
        "{" * 5000 + "Image configured for job",
        '{"a":' * 5000 + '"Image configured for job"',
    ],
)
def test_read_line_that_names_no_use_is_none(line: str) -> None:
    assert read_line(line, NOW, UTC) is None


@given(st.text(max_size=80), st.sampled_from([RUNNER, TEXT, JSON, DOCKER]), st.integers(0, 200))
def test_read_line_broken_anywhere_never_fails(noise: str, line: str, at: int) -> None:
    use = read_line(line[:at] + noise + line[at:], NOW, UTC)
    assert use is None or use.kind == "image"


@given(st.text(max_size=60))
def test_read_entry_of_any_text_never_fails(text: str) -> None:
    assert read_entry(text, UTC)[1] is None


def test_read_entry_of_hostile_message_keeps_the_true_cursor() -> None:
    entry = {"MESSAGE": '{"__CURSOR":"forged"}', "__CURSOR": "s=1", "__REALTIME_TIMESTAMP": "1"}
    assert read_entry(json.dumps(entry, separators=(",", ":")), UTC) == ("s=1", None)


def test_read_entry_of_a_time_beyond_all_years_is_no_use() -> None:
    entry = {"MESSAGE": RUNNER, "__CURSOR": "s=1", "__REALTIME_TIMESTAMP": 9 * 10**24}
    assert read_entry(json.dumps(entry), UTC) == ("s=1", None)


def test_read_line_long_is_quick() -> None:
    started = time.process_time()
    for line in (RUNNER + " a=" * 300_000, TEXT + ' a="' + "\\" * 900_000, RUNNER + "x" * 900_000):
        read_line(line, NOW, UTC)
    assert time.process_time() - started < 5


# --- files ---


def job(number: int, image: str = "node:22") -> str:
    return f"Image configured for job   image_name={image} job={number} project=3 runner=abc\n"


class Log:
    """A log file and the position up to which it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position: str | None = None

    def jobs(self, since: float = 0) -> list[int]:
        """Return the jobs that a reader finds from the last position on."""
        reader = LogReader(
            str(self.path), self.position, since=since, now=time.time(), environ=os.environ
        )
        found = [use.job for use in reader]
        self.position = reader.position
        return found


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = Log(tmp_path / "runner.log")
    log.path.write_text("Starting multi-runner\n" + job(1) + job(2))
    return log


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(lines)


def test_reader_of_a_file_reads_only_what_is_new(log: Log) -> None:
    assert log.jobs() == [1, 2]
    assert log.jobs() == []
    append(log.path, job(3))
    assert log.jobs() == [3]


def test_reader_of_a_file_waits_for_the_end_of_a_line(log: Log) -> None:
    append(log.path, job(3)[:-5])
    assert log.jobs() == [1, 2]
    append(log.path, job(3)[-5:])
    assert log.jobs() == [3]


def test_reader_of_a_rotated_file_reads_its_rest_first(log: Log) -> None:
    assert log.jobs() == [1, 2]
    append(log.path, job(3))
    log.path.rename(log.path.with_name("runner.log.1"))
    log.path.write_text(job(4))
    assert log.jobs() == [3, 4]
    assert log.jobs() == []


def test_reader_of_a_file_that_began_anew_reads_all_of_it(log: Log) -> None:
    """As logrotate's copytruncate does: the inode stays, perhaps the size too."""
    assert log.jobs() == [1, 2]
    with log.path.open("r+") as file:
        file.truncate()
        file.write("Starting multi-runnex\n" + job(5) + job(6) + job(7))
    assert log.jobs() == [5, 6, 7]


def test_reader_of_a_file_that_began_anew_alike_reads_all_of_it(log: Log) -> None:
    log.path.write_text("Starting multi-runner " + "v" * 300 + "\n" + job(1) + job(2))
    assert log.jobs() == [1, 2]
    log.path.write_text("Starting multi-runner " + "v" * 300 + "\n" + job(3))
    assert log.jobs() == [3]


def test_reader_of_a_file_skips_endless_lines(log: Log) -> None:
    append(log.path, "x" * (4 << 14) + job(8), job(9))
    assert log.jobs() == [1, 2, 9]


@pytest.mark.parametrize("position", ["", "x", "1:2:3", "a:b", "s=1;i=2", "1:-5:x", "1:9999999:x"])
def test_reader_of_a_strange_position_starts_anew(log: Log, position: str) -> None:
    log.position = position
    assert log.jobs() == [1, 2]


def test_reader_drops_uses_from_before_the_window(log: Log) -> None:
    old = TEXT.replace("job=12", "job=7") + "\n"
    append(log.path, old)
    assert log.jobs(since=AT + 1) == [1, 2]
    os.utime(log.path, (AT, AT))
    log.position = None
    assert log.jobs(since=AT) == [1, 2, 7]
    log.position = None
    assert log.jobs(since=AT + 1) == []


def test_reader_counts_what_came_twice_once(log: Log) -> None:
    append(log.path, job(2), job(2, "redis:7"), job(2).replace("Image", "Service image"))
    assert log.jobs() == [1, 2, 2, 2]


def test_reader_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(PrewarmError, match=r"none\.log: .*No such file.*; set gitlab.runner_logs"):
        Log(tmp_path / "none.log").jobs()


def test_reader_ended_early_reads_the_rest_later(log: Log) -> None:
    reader = LogReader(str(log.path), None, since=0, now=NOW, environ={})
    uses = iter(reader)
    assert next(uses).job == 1
    del uses
    log.position = reader.position
    assert log.jobs() == [1, 2]


# --- the journal, read by the real journalctl ---

# What systemd-journal-remote 252 wrote of seven entries of two units, two of them the same.
JOURNAL = """
/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM//8mAjZdACYUBXm6/Sw7ZLtDV6xKZki0PLM8C/TjLdCMbfb0dshr3nfXazOqDjzG
78W4RfG5F7wVr5CGyltlR++BLZsCgmZWD38kZEB7qXNj6jgWpJOT9CeZ9O7DqbcDMeFcV3C2vgpYpypegJT7233+tgEUcn4b
zpoVLcOeLScg9FUURw//8mda0/d1/iMsXtXlG/xjdKwXmgxsBBo3EeyiA0msqND1E1LntGQlfWz25yg2PZhCC3nn2/eGcaTi
eJs8liH0/mRo3RO9c7okXkCZh93QoM6SPy5DzBFJl3/c3l8ZKSH4HZKVa7TgznUMjqMJKuyq/1omrHIMFpKnvjmPJOFwnqcj
X+woy4XRlZiKfiqR8id19xnABphNmP3Yr9WQD8QlU/j1kTYxBaWw7m/BcE1HC/5/PfUomlbgnSc5AGV1rfquoV9UFUz97wck
2Tr8NFrhkaUN/1IfFJiDaai8MG6n85+J5Eb2VPCIdSww28JQVJEilwYDX8lwOxTAMjeYpRUBpeijCSrsqv9aJqxyDBaSp745
jyThcJ6nI1/sKMuF0ZWPfa+3XLETi2Yy/v8lxwUr+n4uOmsDad6lQsuIP1wAj9BOryYolHEfPY8k4XCepyNf7CjLhdGVmIp+
KpHyJ3X3GcAGmE2Y/div1Yrp5HrMUITMRb5ZsnlRsnvRQzachfwps8iSxpgyTF0uXffzinXx3+vttPMhzLjVnX/ckKPjgLoj
qPhFr0BV+CPXi8qIP18x+8f4XwyMn//LBLIA7HNTp/2+rnwxGp+3jTFucJ6nI1/sKMuF0ZWYin4qkfIndfcZwAaYTZj92KyC
hxkLOpAihyzu56pb68vGY5PKCgQsK3TNHlsgQvnfLfPmvHPQ2/GUXZusW0lM/HVaYYzBpHahmSAbTkOXvByApc5xaBYBRWu6
NUMnuY7aZuFO6j2ZSRYrlflH+k7nUuKSBlYZnkSe4tLkRvZU8Ih1LDDbwlBUkSKXBgNfyXA7FMAyN5ilFQGl6KMJKuyq/1om
rHIMFpKnvjmPJN6yABuudrptEmfPfxxGfElxH+iIj6VbTWcKgsXi7oP9Z/y2Mgd8cSsM8ImebnCepyNf7CjLhdGVmIp+KvRa
2hy4dJzaAD6tJsBAAI+1GVpP5nODXGLTWxPn6izf3fxlbuXzD8x175IVcl56fu2MqhxBhAvWxlmkM2zDCxMENw4COXjQMbC2
egcHE7MlWmpAB46qao94VGD49CqVJzRNwtkypnemYvBVBMJ7mAsMac2+mABhHx5ncyWDeeUZwaT36seVFsRqF7saWX5bbZo5
TiuAtejx3SOYH6xW2s7EjBcORamuz1sYpKDXKpmin9Ev7837C27CxbcvPJmZraxNlOQ4+V4kXKuFlcK5th9MiK+mve+my6wG
j2m7ke0xPrmYk66X9lcqWp0gF3CMCtboc9bIYZ/w6Q4I3WQO+mN/atvj8zRqEX6bZdjoqMdSEWz6Nu4SDKi3bAca5K+xpgLb
cphpLJFdmgtlgrxcEoQtOMd99EbHwz5IrD+UV2uBmlMuNwfWr8MQhL+gs8faEuo9Em2sL/xMLzaBj6racW8MhQZuv+01pNc7
v66n+fjH9g1XZcz/eX+2ud67GHaY0aB2vv88Y13gFf6MrZ6TXYgDMRkbMK5vH7Wr6bCDrCaJ1hS/wBnMyINX5KEFNcIQq8bM
C0nBwOhyH1D17PHOiaF3WKLsRIvELEH6xWVt4nz2LZ8bQrJUFfbw7oRPpMYxRMe258pvPEzYPleGmqpP0Z8/Y8LOR3uAbdQe
GyxTnr+7DnsgCuutme7a1ZCDGLu943bGOF/ym4LKWx6WqhwxecfUsKfKo3OOUz7NSuV2kPMRaFwxR72UvvpXIXl2LqUzZ+Sl
O23+SapCcabeeG7sD0WeufulAf3N0evB2PWp3hPoVybrl4HX7HJo1HoFW/nO2Xb0PK3k9au2Nx89xBSSujP/W/Y05rVCcFFV
/xXPDpuPpuozAjbw9M8yQLEmhwMyPbRM+ovtptlYzlDJBmo5Tad49hFT5rBHQFbFAS7u1osWwyalgYSL2ZRmK27TkX6NhqkC
NFYC63mmzOayMOLZYWpQ492bujQ69/PEm2rxG/GJVt0Tts6W/6ORVEDuM4XGRpl1Mh7jKvjuDOzsWJDxe7ShXWcEaaDtx5vy
wuEQm11LSL31zL1Fa6xpMGGjp1eZNHnnWHxHBKyn6pBvoHgTw7jVcBL7CTOYzOqUu7+L3IqSr6l3qI52g8jw3bHEJox/97FB
Wr50Tgsv+WqMhALibsBvx23gKh+NRFu/Nrf5RPgka9K6o2+9ktpWycy92eiKrZct/y7rmh26zrEnGFxZhulmUli+6XasWeTl
WogX3ZGf/xABKwDsc1On/b6ufDEan7eNMW5wnqcjX+woy4XRlZiKfiqR8id19xnABphNmP3Yr9WQD8QlU/j1kTYxBaWw7m/B
cE1HDNGREaqtYB26zrEnGFxZhulmUli+6XasWeTlWwUI+cfarfz7Uit0zR5bIEL53VM9+ClkCTuAyyps37U78MS9Ll+qDz5L
ZkKQEw7/EJP4cXhZ+AvN/5UoRg+p/Hze+5owLlbAj4Xzg4HAZcQlU/j1kTYxBaWw7m/BcE1HDNGREaqtYB26zrEnGFxZhulm
Uli+6XasWeTlWwUI+cfarfz7Uit0zR5bIEL53VM9+ClkCTuAyyps37U78MS9Ll+qDz5LZkKQEw7/EJP4cXhZ+AvN/5UoRg+p
/Hze+5owLlbAj4Xzg4HAZcQlUQ8/sp//EAErAOxzU6f9vq58MRqft40xbnCepyNf7CjLhdGVmIp+KpHyJ3X3GcAGmE2Y/div
1ZAPxCVT+PWRNjEFpbDub8FwTUcM0ZERqq1gHbrOsScYXFmG6WZSWL7pdqxZ5OVbBQj5x9qt/PtSK3TNHlsgQvndUz34KWQJ
O4DLKmzftTvwxL0uX6oPPktmQpATDv8Qk/hxeFn4C83/lShGD6n8fN77mjAuVsCPhfODgcBlxCVT+PWRNjEFpbDub8FwTUcM
0ZERqq1gHbrOsScYXFmG6WZSWL7pdqxZ5OVbBQj5x9qt/PtSK3TNHlsgQvndUz34KWQJO4DLKmzftTvwxL0uX6oPPktmQpAT
Dv8Qk/hxeFn4C83/lShGD6n8fN77mjAuVsCPhfODgcBlxCVRDz+ygALqAAUAYp6ZJwAAAEt5ma0xCNUZAAH3EoCAgAR3yGDh
scRn+wIAAAAABFla
"""


@pytest.fixture
def journal(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose journalctl is the real one, on a journal of our own."""
    (tmp_path / "test.journal").write_bytes(lzma.decompress(base64.b64decode(JOURNAL)))
    program = tmp_path / "journalctl"
    real = shutil.which("journalctl")
    assert real is not None
    program.write_text(f'#!/bin/sh\nexec {real} --file={tmp_path}/test.journal "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PREWARM_GITLAB_TOKEN": "hunter2"}


def read_journal(
    environ: dict[str, str],
    position: str | None = None,
    since: float = 0,
    unit: str = "gitlab-runner",
) -> tuple[Sequence[Use], str | None]:
    source = f"journal:{unit}.service"
    reader = LogReader(source, position, since=since, now=NOW, environ=environ)
    return list(reader), reader.position


def test_reader_of_the_journal_reads_the_unit(journal: dict[str, str]) -> None:
    uses, position = read_journal(journal)
    at = 1_760_000_000.0
    assert uses == [
        Use("alpine:3.20", "image", at + 1, 12, 3, "team/app", "t1_AbCdEf"),
        Use("quay.io/team/db:9", "service", at + 2, 12, 3, "team/app", "t1_AbCdEf", "linux/arm64"),
        Use("node:22", "image", at + 4, 13, 4),
    ]
    assert position is not None
    assert ";i=6;" in position
    assert read_journal(journal, position) == ([], position)


def test_reader_of_the_journal_reads_on_from_its_cursor(journal: dict[str, str]) -> None:
    reader = LogReader("journal:gitlab-runner", None, since=0, now=NOW, environ=journal)
    uses = iter(reader)
    next(uses)
    position = reader.position
    del uses
    assert [use.text for use in read_journal(journal, position)[0]] == [
        "quay.io/team/db:9",
        "node:22",
    ]


def test_reader_of_the_journal_starts_at_the_window(journal: dict[str, str]) -> None:
    uses, _ = read_journal(journal, since=1_760_000_004)
    assert [use.text for use in uses] == ["node:22"]


def test_reader_of_a_journal_whose_cursor_is_gone_starts_anew(journal: dict[str, str]) -> None:
    uses, position = read_journal(journal, "not a cursor")
    assert len(uses) == 3
    assert position != "not a cursor"


def test_reader_of_a_unit_without_entries_finds_nothing(journal: dict[str, str]) -> None:
    assert read_journal(journal, unit="unknown") == ([], None)


def test_reader_of_a_broken_journal_says_what_journalctl_said(
    journal: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "test.journal").unlink()
    with pytest.raises(
        PrewarmError, match=r"journal:gitlab-runner\.service: journalctl failed: .+"
    ):
        read_journal(journal)


def test_reader_without_journalctl_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PrewarmError, match=r"journalctl does not start .*; install systemd"):
        read_journal({"PATH": str(tmp_path)})


def test_reader_of_the_journal_hands_no_secret_on(journal: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "journalctl").write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\n")
    assert read_journal(journal) == ([], None)
    seen = (tmp_path / "seen").read_text()
    assert "PATH=" in seen
    assert "hunter2" not in seen


def test_read_line_json_with_a_key_twice_is_no_use() -> None:
    assert read_line(JSON, NOW, UTC) is not None
    assert read_line(JSON.replace('"job"', '"project": 4, "job"'), NOW, UTC) is None


@pytest.mark.parametrize(("line", "quoted"), [(JSON, True), (TEXT, True), (RUNNER, False)])
def test_read_line_tells_whether_its_format_quotes(line: str, *, quoted: bool) -> None:
    use = read_line(line, NOW, UTC)
    assert use is not None
    assert use.quoted is quoted


def bare(job: int, project: int, image: str = "evil:1", path: str | None = None) -> Use:
    return Use(image, "image", NOW, job, project, path, quoted=False)


def test_claims_of_a_forger_count_little() -> None:
    claims = Claims({3: "team/app", 4: "team/other"})
    assert claims.believed(bare(1, 3, path="team/app"))
    # The lines that follow name the job again: for another image or another project.
    assert not claims.believed(bare(1, 3, "worse:1"))
    assert not claims.believed(bare(1, 4))
    # Invented projects, and a path that is not the project's.
    assert not any(claims.believed(bare(100 + n, 1000 + n)) for n in range(60))
    assert not claims.believed(bare(2, 4, path="team/app"))
    # What no author can write is believed all the same.
    assert claims.believed(replace(bare(1, 99), quoted=True))


def test_reader_believes_no_quoted_line_after_a_bare_one(tmp_path: Path) -> None:
    log = tmp_path / "runner.log"

    def quoted(*lines: str) -> list[bool]:
        log.write_text("".join(f"{line}\n" for line in lines))
        reader = LogReader(str(log), None, since=0.0, now=NOW, environ={})
        return [use.quoted for use in reader]

    assert quoted(JSON, DOCKER_JSON.replace("12", "13")) == [True, True]
    # An image named "x", a line break, and a line as a JSON runner writes it.
    assert quoted("Image configured for job      image_name=x", JSON) == [False]
    assert quoted(DOCKER.replace("node:22", "x"), JSON) == [False, False]


DOCKER_JSON = json.dumps({"log": JSON + "\n", "stream": "stderr", "time": "2026-03-04T05:06:07Z"})
