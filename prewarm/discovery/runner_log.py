"""Reads what runners log of their jobs' images, from files and the journal: no API request.

With `FF_LOG_IMAGES_CONFIGURED_FOR_JOB=true` gitlab-runner 16.7 and later log the expanded name of
each job's image and services (common/build.go, logUsedImages), in any of its three log formats
(log/configuration.go): `runner`, the default; `text`; `json`. Parsing is pure; `LogReader` reads a
file, or the journal through a `journalctl` child.

The format `runner` quotes nothing, so the author of a job could forge whole lines by an image name
with a line break in it. `Claims` limits what such lines count: a job is of one project, which the
scan knows, and has one image; where authors are not trusted, `log_format = "json"` in config.toml
leaves no gap. Names are
not masked in these logs: of a line only what is a valid reference is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Final, Literal

from prewarm.core.child_env import chosen
from prewarm.core.errors import PrewarmError
from prewarm.core.reference import InvalidReference, parse

JOURNAL: Final = "journal:"
"""What an entry of `runner_logs` begins with that names a unit instead of a file."""
_LINE_MAX: Final = 16 << 10
"""Bytes of a line in a file; the runner's are shorter, others are skipped."""
_LATEST: Final = 32503680000.0
"""The year 3000: datetime knows no time far beyond it."""
_RECENT: Final = 4096
"""How many uses are remembered, to see one again that syslog and stderr both brought."""


@dataclass(frozen=True, slots=True)
class Use:
    """A job's use of an image, as its runner logged it before the job began."""

    text: str
    """The name of the image, expanded; always a valid reference."""
    kind: Literal["image", "service"]
    time: float | None
    """Seconds since the epoch; None where the line does not tell."""
    job: int
    project: int
    project_path: str | None = None
    """The project's full path; newer runners log it."""
    runner: str | None = None
    """The first characters of the runner's token, as CI_RUNNER_SHORT_TOKEN."""
    platform: str | None = None
    """What `docker: platform` asks for."""
    quoted: bool = field(default=True, compare=False)
    """Whether the line's format quotes its values: no author of a job can have written the line."""


# --- lines (pure) ---

_MESSAGES: Final[Mapping[object, Literal["image", "service"]]] = {
    "Image configured for job": "image",
    "Service image configured for job": "service",
}
_HINT: Final = "mage configured for job"
_HINT_BYTES: Final = ",".join(str(byte) for byte in _HINT.encode())
"""The same in a message that journalctl prints as an array, since it holds colours."""
_QUOTES = re.compile(r'msg\\*"?[:=] ?\\*"(?:Service i|I)$')
_CURSOR = re.compile(r'"__CURSOR":"([^"\\]{1,512})"')
_COLOUR = re.compile(r"(?:\x1b|#033)\[[0-9;]{0,16}[A-Za-z]")
_ISO: Final = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
_CLASSIC: Final = r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"
# rsyslog and journald in front, or docker's and the kubelet's stamps, or nothing.
_PREFIX = re.compile(
    rf"(?:(?P<time>{_ISO}|{_CLASSIC}) )?(?:std(?:out|err) [FP] )?"
    r"(?:[A-Za-z0-9_.-]{1,128} [A-Za-z0-9_./-]{1,128}(?:\[\d{1,10}\])?: )?(?:INFO\[\d{1,10}\] )?"
    r"(?P<message>(?:Service i|I)mage configured for job) {1,60}(?P<fields>\S.*)"
)
_RUNNER_FIELD = re.compile(r"(?:^|(?<= ))([a-z][a-z0-9_]{0,40})=")
_TEXT_FIELD = re.compile(r'([a-z][a-z0-9_]{0,40})=("(?:[^"\\]|\\.)*"|[^\s"]*)(?: |$)')


def read_line(line: str, now: float, zone: tzinfo) -> Use | None:
    """Return the use that a line of a log tells of, None for every other line.

    `now`, seconds since the epoch, and `zone` complete the times of the classic syslog format.
    """
    if _HINT not in line:
        return None
    line = _COLOUR.sub("", line).strip()
    if line.startswith("{"):
        return _read_json(line, now, zone)
    if line.startswith("time="):
        fields = _text_fields(line)
        return _use(fields.get("msg"), fields, _iso(fields.get("time"), zone))
    found = _PREFIX.fullmatch(line)
    if found is None:
        return None
    stamp = found["time"] or ""
    time = _iso(stamp, zone) if stamp[:1].isdigit() else _classic(stamp, now, zone)
    use = _use(found["message"], _fields(found["fields"]), time)
    return replace(use, quoted=False) if use else None


def is_bare(line: str) -> bool:
    """Whether a line of a file or of journalctl shows that its runner's format quotes nothing.

    The rest of such a line may follow as a line of its author's choice, of any format.
    """
    before, hint, _ = line.partition(_HINT)
    return _HINT_BYTES in line or (bool(hint) and _QUOTES.search(before) is None)


def read_entry(line: str, zone: tzinfo) -> tuple[str | None, Use | None]:
    """Return the cursor of an entry as `journalctl -o json` prints it, and the use it tells of."""
    found = _CURSOR.search(line)
    if found and _HINT not in line and _HINT_BYTES not in line:
        return found[1], None
    try:
        entry = json.loads(line)
        cursor, message = entry["__CURSOR"], entry.get("MESSAGE")
        time = int(entry["__REALTIME_TIMESTAMP"]) / 1_000_000
        if isinstance(message, list):
            message = bytes(message).decode("utf-8", "replace")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, None
    if not isinstance(cursor, str):
        return None, None
    if not isinstance(message, str) or not 0 <= time < _LATEST:
        return cursor, None
    use = read_line(message, time, zone)
    return cursor, replace(use, time=time) if use else None


def _read_json(line: str, now: float, zone: tzinfo) -> Use | None:
    try:
        fields = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    if "log" in fields and isinstance(fields["log"], str) and "msg" not in fields:
        # docker's json-file wraps what a runner in a container printed.
        inner = fields["log"].strip()
        use = None if inner.startswith('{"log"') else read_line(inner, now, zone)
        time = _iso(fields.get("time"), zone)
        return replace(use, time=time) if use and use.time is None else use
    return _use(fields.get("msg"), fields, _iso(fields.get("time"), zone))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; ValueError where a key comes twice, which no runner writes."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key comes twice")
    return fields


def _fields(text: str) -> dict[str, Any]:
    """Return the fields of the format `runner`, or of `text` on a terminal, which quotes.

    The runner sorts its fields. Where they are not sorted, or one comes twice, a value holds what
    looks like a field, and the line is worth nothing.
    """
    if re.match(r'[a-z_]+="', text):
        return _text_fields(text)
    found = list(_RUNNER_FIELD.finditer(text))
    names = [each[1] for each in found]
    if not names or names != sorted(set(names)):
        return {}
    ends = [each.start() for each in found[1:]] + [len(text)]
    return {each[1]: text[each.end() : end].strip() for each, end in zip(found, ends, strict=True)}


def _text_fields(text: str) -> dict[str, Any]:
    """Return the fields of the format `text`: `key=value`, quoted as Go does where needed."""
    fields: dict[str, Any] = {}
    position = 0
    while position < len(text):
        found = _TEXT_FIELD.match(text, position)
        if found is None or found[1] in fields:
            return {}
        value = found[2]
        if value.startswith('"'):
            try:
                value = json.loads(value)
            except ValueError:
                value = ""
        fields[found[1]] = value
        position = found.end()
    return fields


def _use(message: object, fields: Mapping[str, Any], time: float | None) -> Use | None:
    kind = _MESSAGES.get(message) if isinstance(message, str) else None
    text = fields.get("image_name")
    job, project = _number(fields.get("job")), _number(fields.get("project"))
    if kind is None or not isinstance(text, str) or job is None or project is None:
        return None
    if not _is_image(text):
        return None
    return Use(
        text,
        kind,
        time,
        job,
        project,
        _word(fields.get("project_full_path"), r"[\w.-]+(?:/[\w.-]+)+"),
        _word(fields.get("runner"), r"[\w-]{1,64}"),
        _word(fields.get("image_platform"), r"[\w.-]+(?:/[\w.-]+){1,2}"),
    )


@lru_cache(_RECENT)
def _is_image(text: str) -> bool:
    try:
        parse(text)
    except InvalidReference:
        return False
    return True


def _number(value: object) -> int | None:
    text = str(value)
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _word(value: object, pattern: str) -> str | None:
    known = isinstance(value, str) and len(value) < 1024 and re.fullmatch(pattern, value)
    return str(value) if known else None


def _iso(value: object, zone: tzinfo) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        # Go writes nanoseconds, datetime knows microseconds.
        time = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value))
        return (time if time.tzinfo else time.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError):
        return None


def _classic(value: str, now: float, zone: tzinfo) -> float | None:
    """Return the time of `Jan  2 03:04:05`: the last one that is not after tomorrow."""
    today = datetime.fromtimestamp(now, zone)
    for year in (today.year + 1, today.year, today.year - 1):
        try:
            time = datetime.strptime(f"{year} {value}", "%Y %b %d %H:%M:%S").replace(tzinfo=zone)
        except ValueError:
            continue
        if time.timestamp() <= now + 86400:
            return time.timestamp()
    return None


class Claims:
    """Which uses are believed of lines that the author of a job could have written."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        """`paths`: the projects that GitLab listed before, by id; none before the first scan."""
        self._paths = paths
        self._jobs: dict[int, tuple[int, Counter[str]]] = {}

    def believed(self, use: Use) -> bool:
        """Whether the use counts; what does not is counted from the history of jobs instead."""
        if use.quoted:
            return True
        if self._paths and use.project not in self._paths:
            return False
        path = self._paths.get(use.project)
        if None not in (path, use.project_path) and path != use.project_path:
            return False
        project, named = self._jobs.setdefault(use.job, (use.project, Counter()))
        named[use.kind] += 1
        return project == use.project and named[use.kind] <= _OF_ONE_JOB[use.kind]


_OF_ONE_JOB: Final = {"image": 1, "service": 20}


# --- files and the journal (the edge) ---


class LogReader:
    """One source of `runner_logs`, read on from where the last reader ended.

    Iterate over it once, to its end, for the uses; then `position` is what to give to the next
    reader. Uses from before `since` are left out, and so is what two ways brought twice. A line
    without a time counts as of the file's last change. PrewarmError: the source cannot be read;
    `position` then stands after what was.
    """

    def __init__(
        self,
        source: str,
        position: str | None,
        *,
        since: float,
        now: float,
        environ: Mapping[str, str],
    ) -> None:
        self.position = position
        self._source = source
        self._since, self._now = since, now
        self._environ = environ
        self._bare = False
        self._zone = datetime.fromtimestamp(now, UTC).astimezone().tzinfo or UTC

    def __iter__(self) -> Iterator[Use]:
        recent: OrderedDict[tuple[int, str, str], None] = OrderedDict()
        unit = self._source.removeprefix(JOURNAL)
        for use in self._file() if unit == self._source else self._journal(unit):
            key = (use.job, use.kind, use.text)
            if (use.time or 0) < self._since or key in recent:
                continue
            recent[key] = None
            if len(recent) > _RECENT:
                recent.popitem(last=False)
            yield replace(use, quoted=use.quoted and not self._bare)

    # A position in a file is `inode:offset:print`, the print being of the file's first bytes: so a
    # rotated file is found under its new name, and one that began anew is not taken for the old.

    def _file(self) -> Iterator[Use]:
        path = Path(self._source)
        try:
            with path.open("rb") as file:
                if not _continues(file, self.position):
                    yield from self._rotated(path)
                yield from self._lines(file)
        except OSError as error:
            raise PrewarmError(
                "runner-log",
                f"{path}: the runner's log cannot be read ({error.strerror})",
                "set gitlab.runner_logs to the file's path, or let prewarm's user read it",
            ) from error

    def _rotated(self, path: Path) -> Iterator[Use]:
        """Yield the rest of the file that stood here before, if it was only moved aside."""
        for other in sorted(path.parent.glob(f"{path.name}.*")) if self.position else ():
            try:
                with other.open("rb") as file:
                    if _continues(file, self.position):
                        yield from self._lines(file)
                        break
            except OSError:
                continue
        self.position = None

    def _lines(self, file: IO[bytes]) -> Iterator[Use]:
        status = os.fstat(file.fileno())
        offset = int(self.position.split(":")[1]) if self.position else 0
        file.seek(offset)
        skipping = False
        try:
            while line := file.readline(_LINE_MAX):
                if not line.endswith(b"\n"):
                    if len(line) < _LINE_MAX:
                        break  # still being written
                    skipping = True
                elif skipping:
                    skipping = False
                elif use := self._read(line.decode("utf-8", "replace")):
                    time = status.st_mtime if use.time is None else use.time
                    yield replace(use, time=time)
                offset += len(line)
        finally:
            self.position = f"{status.st_ino}:{offset}:{_print(file, offset)}"

    def _read(self, line: str) -> Use | None:
        self._bare = self._bare or is_bare(line)
        return read_line(line, self._now, self._zone)

    def _journal(self, unit: str) -> Iterator[Use]:
        before = self.position
        try:
            yield from self._entries(unit, before)
        except PrewarmError:
            if before is None or self.position != before:
                raise
            # The cursor may be of a journal that is gone: everything is read again.
            yield from self._entries(unit, None)

    def _entries(self, unit: str, after: str | None) -> Iterator[Use]:
        """Yield the uses that journalctl prints, moving the position along."""
        with (
            tempfile.TemporaryFile() as words,
            _start(journal_command(unit, after, self._since), self._environ, words) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    self._bare = self._bare or is_bare(line)
                    cursor, use = read_entry(line, self._zone)
                    self.position = cursor or self.position
                    if use is not None:
                        yield use
            except BaseException:
                process.kill()
                raise
            process.stdout.close()
            if process.wait() != 0 and (told := _told(words)):
                raise PrewarmError(
                    "runner-log",
                    f"{JOURNAL}{unit}: journalctl failed: {told}",
                    "let prewarm's user read the journal (group systemd-journal)",
                )


def journal_command(unit: str, cursor: str | None, since: float) -> tuple[str, ...]:
    """Return the command that prints a unit's entries, from a cursor on or else from a time on.

    journalctl takes only one of the two, prints messages with colours as arrays of bytes and
    those longer than 4096 bytes as null (systemd 252).
    """
    start = f"--after-cursor={cursor}" if cursor else f"--since=@{max(0, int(since))}"
    return (
        "journalctl",
        "--output=json",
        "--output-fields=MESSAGE",
        "--no-pager",
        "--quiet",
        f"--unit={unit}",
        start,
    )


def _start(
    command: tuple[str, ...], environ: Mapping[str, str], words: IO[bytes]
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            encoding="utf-8",
            errors="replace",
            env={**chosen(environ), "LC_ALL": "C.UTF-8"},
        )
    except OSError as error:
        raise PrewarmError(
            "runner-log",
            f"{command[0]} does not start ({error.strerror})",
            "install systemd, or name the runner's log file in gitlab.runner_logs",
        ) from error


def _told(words: IO[bytes]) -> str:
    """Return the last line that a child wrote to stderr."""
    words.seek(0)
    lines = words.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def _continues(file: IO[bytes], position: str | None) -> bool:
    """Whether the position is one in this file."""
    parts = (position or "").split(":")
    if len(parts) != 3 or not parts[1].isdigit():
        return False
    status = os.fstat(file.fileno())
    offset = int(parts[1])
    same = str(status.st_ino) == parts[0] and status.st_size >= offset
    return same and _print(file, offset) == parts[2]


def _print(file: IO[bytes], offset: int) -> str:
    file.seek(0)
    return hashlib.sha256(file.read(min(offset, 256))).hexdigest()[:16]
