"""An explanation in words: what `prewarm explain` prints for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from prewarm.core.reference import parse
from prewarm.core.text import counted, size_words, when

_PROJECTS: Final = 5
_OPEN_NAMES: Final = 3
_WIDTH: Final = 11
_LONGEST: Final = 200
"""Characters of a line that CI's authors write."""
STATE_WORDS: Final = {
    "fresh": "warm",
    "stale": "stale",
    "missing": "missing",
    "unknown": "no answer",
}
_BESIDE: Final = {
    "present": "",
    "stale": " (older)",
    "missing": " (missing)",
    "not-upstream": " (upstream has none)",
}
_ACTIONS: Final = {
    "copy": "copies it",
    "tag": "makes it from what the mirrors hold, no pull",
    "skip": "skips it",
    "fail": "cannot copy it either",
}


def lines(told: dict[str, Any], *, verbose: bool) -> Iterator[str]:
    """Yield an explanation line by line: the answer first, what makes it warm last."""
    yield headline(told)
    for name, texts in _sections(told, verbose=verbose):
        for number, text in enumerate(texts):
            yield f"  {name if number == 0 else '':{_WIDTH}}{text}"
    yield from _ending(told)


def headline(told: dict[str, Any]) -> str:
    """Return whether the image is warm, and where, in one line."""
    name = parse(told["image"]).familiar
    states = Counter(mirror["state"] for mirror in told["mirrors"].values())
    where = _where(states["fresh"], len(told["mirrors"]))
    remembered = "" if told["asked"] else _remembered(told)
    if told["warm"]:
        return f"{name} is warm {where}{remembered}"
    if told["hidden"]:
        return f"{name} is not mirrored: {told['hidden']['text']}"
    if not told["mirrors"]:
        return f"{name} is not warm"
    if (error := told["upstream"]["error"]) and not error["transient"]:
        return f"{name} cannot be copied: {_about(told, error)}"
    parts = [
        _state(state, number, told) for state, number in states.most_common() if state != "fresh"
    ]
    verdict = f"is warm only {where}:" if states["fresh"] else "is not warm:"
    return f"{name} {verdict} {', '.join(parts)}{remembered}"


def _state(state: str, number: int, told: dict[str, Any]) -> str:
    """Return what a state means for jobs, on so many of the mirrors."""
    mirrors = len(told["mirrors"])
    if state == "unknown":
        return "the mirror did not answer" if mirrors == 1 else f"{number} did not answer"
    where = "on the mirror" if mirrors == 1 else f"on {number}"
    if state == "stale":
        return f"stale {where} (jobs get an older one)"
    return f"missing {where} (jobs pull it from {parse(told['image']).registry})"


def _remembered(told: dict[str, Any]) -> str:
    seen = [mirror["last_seen"] for mirror in told["mirrors"].values() if mirror["last_seen"]]
    return f", as of {_time(min(seen))}" if seen else "; it was in no sync yet"


def _about(told: dict[str, Any], error: dict[str, Any]) -> str:
    """The text of an error, without the image's name, which stands in the first line."""
    return str(error["text"]).removeprefix(f"{told['image']}: ")


def _where(number: int, mirrors: int) -> str:
    return "on the mirror" if mirrors == 1 else f"on {number} of {mirrors} mirrors"


def _sections(told: dict[str, Any], *, verbose: bool) -> Iterator[tuple[str, list[str]]]:
    if told["image"] != parse(told["image"]).familiar:
        yield "image", [told["image"]]
    if told["warm"] and told["hidden"]:
        yield "not kept", [f"{told['hidden']['text']}; {told['hidden']['cure']}"]
    yield "pinned", [f"{pin['where']}, for {', '.join(pin['platforms'])}" for pin in told["pins"]]
    yield "used by", list(_uses(told))
    yield "perhaps", list(_open_names(told))
    if told["rank"]:
        rank = f"{told['rank']['rank']} of {told['rank']['of']}"
        why = f": {told['rank']['why'].partition(': ')[2]}" if verbose else ""
        last = told["next"] and told["next"]["action"] == "fresh" and not told["pins"]
        yield "rank", [rank + why + (", behind all that is not warm" if last else "")]
    yield "upstream", list(_upstream(told, verbose=verbose))
    yield "mirror", [text for url in told["mirrors"] for text in _mirror(told, url, verbose)]
    if told["last_copy"]:
        last = told["last_copy"]
        spent = f"{counted(last['pulls'], 'pull')}, {size_words(last['bytes'])}"
        yield "last copy", [f"{_time(last['at'])}: {spent}"]
    yield "next", list(_next(told))


def _uses(told: dict[str, Any]) -> Iterator[str]:
    uses = told["uses"]
    if not uses:
        if not told["pins"]:
            yield "nobody: no pin names it, and no job that was seen"
        return
    jobs = f"{counted(uses['jobs'], 'job')} of {counted(uses['projects'], 'project')}"
    last = f", last {_time(uses['last_used'])}" if uses["last_used"] else ", only named, never run"
    failed = f", {uses['pull_failures']} failed to pull it" if uses["pull_failures"] else ""
    yield jobs + last + failed + _through(uses["via"])
    shown = uses["by_project"][:_PROJECTS]
    paths = max((len(one["project"]) for one in shown), default=0)
    for one in shown:
        path, number = one["project"].ljust(paths), counted(one["jobs"], "job").rjust(8)
        names = ", ".join(one["job_names"][:_OPEN_NAMES])
        more = ", …" if len(one["job_names"]) > _OPEN_NAMES else ""
        yield _cut(f"  {path}  {number}  {names}{more}{_through(one['via'])}".rstrip())
    if (others := max(uses["projects"], len(uses["by_project"])) - len(shown)) > 0:
        yield f"  and {counted(others, 'other project')}: --json"


def _through(via: str | None) -> str:
    return f" (through the {via.replace('-', ' ')}: asks GitLab, not the mirror)" if via else ""


def _open_names(told: dict[str, Any]) -> Iterator[str]:
    found = told["unresolved"]
    for one in found[:_OPEN_NAMES]:
        yield _cut(f"{one['project']}, job {one['job']}: {one['text']} {one['why']}")
    if (others := told["unresolved_names"] - len(found[:_OPEN_NAMES])) > 0:
        yield f"and {counted(others, 'other name')} that variables keep open: --json"


def _upstream(told: dict[str, Any], *, verbose: bool) -> Iterator[str]:
    upstream = told["upstream"]
    error, digest = upstream["error"], upstream["digest"]
    if error:
        yield _about(told, error)
    if digest is None:
        if not error and not told["hidden"]:
            yield "not asked yet"
        return
    text = digest if verbose else digest[: len("sha256:") + 12]
    if upstream["changed"]:
        text += f", the same since {_time(upstream['changed'])}"
    elif upstream["moves"]:
        text += ", new since the last sync"
    if upstream["moves"]:
        text += f", {counted(upstream['moves'], 'move')} seen"
    if upstream["checked"] and (error or not told["asked"]):
        text += f" (asked {_time(upstream['checked'])})"
    yield text


def _mirror(told: dict[str, Any], url: str, verbose: bool) -> Iterator[str]:
    mirror = told["mirrors"][url]
    width = max(map(len, told["mirrors"]))
    state = STATE_WORDS[mirror["state"]]
    alike = set(mirror["platforms"].values()) == {mirror["state"]}
    platforms = ", ".join(
        name if alike else name + _BESIDE[has] for name, has in mirror["platforms"].items()
    )
    if mirror["state"] == "unknown" and mirror["last_state"]:
        platforms = f"{STATE_WORDS[mirror['last_state']]} on {_time(mirror['last_seen'])}"
    digest = f"  {mirror['digest']}" if verbose and mirror["digest"] else ""
    yield f"{url:{width}}  {state:9}  {platforms}{digest}".rstrip()
    if mirror["error"]:
        yield f"  {mirror['error']['text']}; {mirror['error']['cure']}"


def _next(told: dict[str, Any]) -> Iterator[str]:
    coming = told["next"]
    if coming is None:
        if not told["hidden"]:
            why = "its jobs ask GitLab for it" if told["uses"] else "nobody wants it"
            yield f"nothing: {why}"
        return
    action = coming["action"]
    if action == "fresh":
        yield "nothing to do"
        return
    if action == "fail" and coming["transient"]:
        yield "the next sync looks again"
    elif action == "defer":
        until = f"not before {_time(coming['until'])}" if coming["until"] else "not yet"
        yield f"{until}: {coming['reason']}"
    else:
        sync = f"the sync of {_time(coming['at'])}" if coming["at"] else "the next sync"
        pulls = f", at most {counted(coming['pulls'], 'pull')}" if coming["pulls"] else ""
        yield f"{sync} {_ACTIONS[action]}{pulls}"
    if coming["ahead"]:
        yield f"after {counted(coming['ahead'], 'image')} of a better rank"


def _ending(told: dict[str, Any]) -> Iterator[str]:
    obstacle = told["obstacle"]
    if told["warm"]:
        return
    if told["hidden"]:
        yield f"to have it mirrored: {told['hidden']['cure']}"
        return
    if not told["pins"] and not told["uses"] and not (obstacle and obstacle["code"] == "not-found"):
        yield "to keep it warm: pin it, under images: in images.yml"
    if told["command"]:
        yield f"to warm it now: {told['command']}"
    elif obstacle:
        yield f"nothing warms it now: {_about(told, obstacle)}; {obstacle['cure']}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _time(text: str) -> str:
    return when(datetime.fromisoformat(text).timestamp())
