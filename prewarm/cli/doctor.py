"""Looks at everything that a sync needs, each by itself, and says how to cure what is wrong.

Nothing is spent or changed: upstreams are asked by HEAD, a push mirror has an upload begun and
cancelled, and is asked to delete what cannot exist. No lock is taken. Only the proof that a client
asks a mirror, on request, writes to it: a kilobyte, and takes it away again.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from prewarm.clients.engines import Engine, find_engine
from prewarm.clients.files import ClientMirror, client_mirrors, mirrors_of
from prewarm.clients.proof import Proof, prove
from prewarm.core.budget import window_for, window_problem
from prewarm.core.errors import PrewarmError, RegistryError
from prewarm.core.net import is_loopback
from prewarm.core.ownership import changed_by_others, user_name
from prewarm.core.reference import PROBE_REPOSITORY, Reference, parse
from prewarm.core.settings import DOCKER_HUB, Gitlab, Mirror, Settings, Upstream
from prewarm.core.text import counted, duration_words, size_words
from prewarm.core.usage import UsedImage
from prewarm.planning.demand import Want, patterns, skipped_by, wants, with_uses
from prewarm.registry.client import Registry
from prewarm.registry.credentials import load as load_credentials
from prewarm.registry.policy_json import read_policy
from prewarm.registry.registries_conf import File, read_files
from prewarm.reports.coverage import used_of_late
from prewarm.state.clock import Clock
from prewarm.state.ledger import MIGRATIONS, Ledger, schema_version
from prewarm.state.location import MirrorLock, Shared, StatePlace, check_owner, place_of, site_here
from prewarm.sync import skopeo
from prewarm.sync.connections import open_edges
from prewarm.sync.executor import too_little_space
from prewarm.sync.inspect import MirrorSite, UpstreamSite
from prewarm.sync.resolve import is_cache, platform_problems, wrong_mode

if TYPE_CHECKING:
    from prewarm.discovery.gitlab_client import Client

log = logging.getLogger("prewarm")

State = Literal["ok", "warning", "failed"]
NAMES: Final = (
    "images.yml",
    "skopeo",
    "policy",
    "authfile",
    "gitlab",
    "upstream",
    "mirror",
    "mirror-delete",
    "mirror-tls",
    "mirror-space",
    "platforms",
    "registries.conf",
    "state",
    "client",
    "clock",
)
"""The checks in their order; the ones of a registry come once for each."""
_EXPIRY_DAYS: Final = 14
_SKEW: Final = 60.0
"""Seconds by which a server's clock may differ."""
_TRIED: Final = 3
"""Wanted images by which an upstream is asked until it has one of them."""
_ABOUT_ONE: Final = frozenset({"not-found", "unsupported-manifest"})
"""What an upstream answers about one image, and so is well itself."""
_NOWHERE: Final = f"sha256:{'0' * 64}"
"""A digest that no content has."""
_GITLAB_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found; `cure` says what to do where not all is well."""

    name: str
    state: State
    text: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Checkup:
    """All that was found, in the order of NAMES."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.state != "failed" for check in self.checks)

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    def count(self, state: State) -> int:
        return sum(check.state == state for check in self.checks)

    def document(self) -> dict[str, Any]:
        """Return it as `doctor --json` prints it."""
        checks = [
            {"check": check.name, "state": check.state, "text": check.text, "cure": check.cure}
            for check in self.checks
        ]
        return {"version": 1, "checks": checks, "ok": self.ok}


@dataclass(frozen=True)
class Place:
    """Where prewarm runs: what the checks look at."""

    settings: Settings
    environ: Mapping[str, str]
    home: Path | None
    user: int
    """The effective user's id."""
    argv: Sequence[str]
    """The command as it was typed, for the cure of a state of another owner."""
    clock: Clock
    clients: Sequence[str] = ()
    """Kinds of clients on this host that are to prove that they ask the mirrors."""
    stop: Event = field(default_factory=Event)
    """Set when the look is to end."""

    def state(self) -> StatePlace:
        """Return where the state lies; UsageError where it has no place."""
        settings = self.settings
        return place_of(settings.state, settings.path, self.environ, self.home)


@dataclass(frozen=True)
class _Memory:
    """What the state remembers of CI, and what is wanted by that."""

    demand: tuple[Want, ...] = ()
    used: tuple[UsedImage, ...] = ()


Checks = tuple[Check, ...]
Skews = dict[str, float | None]
"""By which a server's clock is ahead of ours, in seconds, by its name; None: it did not say."""


def examine(place: Place) -> Checkup:
    """Do every check, those of servers at once; one that fails never stops another."""
    memory = _remembered(place)
    # A broken authfile is one failure; the other checks go on with the logins of other places.
    asking = _with_good_authfile(place)
    skews: Skews = {}
    looks: list[tuple[str, Callable[[], Checks]]] = [
        ("images.yml", partial(_check_settings, place)),
        ("skopeo", partial(_check_skopeo, place)),
        ("policy", partial(_check_policy, place, memory.demand)),
        ("authfile", partial(_check_logins, place)),
        ("gitlab", partial(_check_gitlab, place, skews)),
    ]
    for upstream in place.settings.registries:
        look = partial(_check_upstream, asking, upstream, memory.demand, skews)
        looks.append(("upstream", look))
    looks += [
        ("mirror", partial(_check_mirror, asking, mirror, skews))
        for mirror in place.settings.mirrors
    ]
    looks += [
        ("platforms", partial(_check_platforms, memory)),
        ("registries.conf", partial(_check_redirects, place)),
        ("state", partial(_check_state, place, skews)),
    ]
    looks += [("client", partial(_check_client, asking, kind)) for kind in place.clients]
    with ThreadPoolExecutor(8, "doctor") as pool:
        found = list(pool.map(lambda look: _guarded(*look), looks))
    return Checkup((*(check for part in found for check in part), *clocks(skews)))


def _guarded(name: str, look: Callable[[], Checks]) -> Checks:
    try:
        return look()
    except PrewarmError as error:
        return (Check(name, "failed", error.text, error.cure),)
    except Exception:
        log.exception("a bug met the check %s", name)
        cure = "please report it with the lines of the log"
        return (Check(name, "failed", "a bug of prewarm ended this check", cure),)


def _remembered(place: Place) -> _Memory:
    """Return what the state tells; what is wrong with it is told by its own check."""
    settings = place.settings
    pinned = wants(settings, settings.pins, {})
    try:
        state = place.state()
        if settings.gitlab is None or (isinstance(state, Path) and not state.exists()):
            return _Memory(pinned)
        with _opened(place, state) as ledger:
            used = used_of_late(settings, ledger, place.clock().wall)
    except (PrewarmError, OSError):
        return _Memory(pinned)
    demand = with_uses(settings, pinned, used)
    return _Memory(tuple(w for w in demand if skipped_by(w, settings.skip) is None), used)


def _opened(place: Place, state: StatePlace) -> Ledger:
    if isinstance(state, Path):
        return Ledger.open(state, read_only=True)
    from prewarm.state.shared import read

    return read(state.url, site_here(place.settings), place.environ)


def _with_good_authfile(place: Place) -> Place:
    try:
        load_credentials(place.settings.authfile, place.environ)
    except PrewarmError:
        return replace(place, settings=replace(place.settings, authfile=None))
    return place


# -- this machine -----------------------------------------------------------------------------


def _check_settings(place: Place) -> Checks:
    problems = place.settings.problems
    if problems:
        return tuple(
            Check("images.yml", "failed", f"{p.where}: {p.problem}", p.cure) for p in problems
        )
    return _check_writers(place) or (Check("images.yml", "ok", f"{place.settings.path} is good"),)


def _check_writers(place: Place) -> Checks:
    """Warn of files through which another user could run commands, or be sent secrets."""
    settings = place.settings
    gitlab, command = settings.gitlab, settings.notify.command if settings.notify else ()
    files = [settings.path, settings.authfile, *(Path(word) for word in command[:1])]
    files += [gitlab.token_file, gitlab.ca] if gitlab else []
    files += [upstream.ca for upstream in settings.registries]
    files += [mirror.ca for mirror in settings.mirrors]
    found = []
    for file in dict.fromkeys(file for file in files if file is not None and file.is_absolute()):
        with suppress(OSError):
            if cause := changed_by_others(file):
                text = f"{file}: {cause}, and prewarm believes what it says"
                cure = f"check it, then run: chown root {file}; chmod go-w {file}"
                found.append(Check("images.yml", "warning", text, cure))
    return tuple(found)


def _check_skopeo(place: Place) -> Checks:
    program, version = skopeo.find_version(place.environ)
    return (Check("skopeo", "ok", f"{program} is version {'.'.join(map(str, version))}"),)


def _check_policy(place: Place, demand: Sequence[Want]) -> Checks:
    """Whether policy.json lets the wanted images in: it must for pins."""
    policy = read_policy(place.home)
    refused = [(want, why) for want in demand if (why := policy.refusal(want.reference))]
    if not refused:
        return (Check("policy", "ok", f"{policy.path} lets in all wanted images"),)
    want, why = next((pair for pair in refused if pair[0].pinned), refused[0])
    more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
    state: State = "failed" if want.pinned else "warning"
    return (Check("policy", state, why.text + more, why.cure),)


def _check_logins(place: Place) -> Checks:
    """Which files hold logins, what is wrong with them, and which upstreams have one."""
    # A CA that cannot be read is told with its registry.
    registries = tuple(replace(one, ca=None) for one in place.settings.registries)
    settings = replace(place.settings, mirrors=(), registries=registries)
    with open_edges(settings, place.environ) as edges:
        files = ", ".join(map(str, edges.auth.paths))
        logins = ", ".join(
            text
            for name, site in edges.upstreams.items()
            for text in (
                f"{name} as {site.account}" if site.account else f"{name} anonymously",
                *(f"{key} as {user}" for key, user in sorted(edges.auth.scopes(name).items())),
            )
        )
        found = Check("authfile", "ok", f"asks {logins}, by {files or 'no file with logins'}")
        states: dict[str, State] = {"warning": "warning", "error": "failed"}
        wrong = [
            Check("authfile", states[p.severity], f"{p.where}: {p.problem}", p.cure)
            for p in edges.problems
        ]
    return (found, *wrong)


def _check_platforms(memory: _Memory) -> Checks:
    found = tuple(
        Check("platforms", "failed" if p.severity == "error" else "warning", p.problem, p.cure)
        for p in platform_problems(memory.demand, memory.used)
    )
    if found:
        return found
    if not memory.used:
        return (Check("platforms", "ok", "no scan has seen yet on which runners jobs run"),)
    return (Check("platforms", "ok", "every platform that history shows is mirrored"),)


def _check_redirects(place: Place) -> Checks:
    return redirected(read_files(place.home, place.environ), place.settings)


def redirected(files: Sequence[File], settings: Settings) -> Checks:
    """Return what registries.conf does to skopeo: to prewarm's own, and to one started by hand.

    prewarm reads and writes through its gate, so a redirect is a warning: skopeo and podman on this
    host do not show what upstream has.
    """
    mirrors = {urlsplit(mirror.url).netloc.lower() for mirror in settings.mirrors}
    found: list[Check] = []
    for file in files:
        if file.broken:
            state: State = "failed" if file.system else "warning"
            text, cure = f"{file.path} {file.broken}", "correct it: skopeo starts no copy with it"
            found.append(Check("registries.conf", state, text, cure))
        found += [
            _redirect(file, entry.prefix, entry.targets, mirrors)
            for entry in file.entries
            if entry.targets and any(entry.concerns(one.name) for one in settings.registries)
        ]
    if found:
        return tuple(found)
    return (Check("registries.conf", "ok", "no registries.conf redirects an upstream"),)


def _redirect(file: File, prefix: str, targets: Sequence[str], mirrors: set[str]) -> Check:
    ours = any(target.partition("/")[0] in mirrors for target in targets)
    whither = f"{', '.join(targets)}{', a mirror of ours' if ours else ''}"
    text = f"{file.path} sends skopeo and podman for {prefix} to {whither}; prewarm itself is safe"
    cure = f"wanted for podman; to see upstream by hand, ask without it, or take {prefix} out"
    return Check("registries.conf", "warning", text, cure)


def _check_server(place: Place, state: Shared, skews: Skews) -> Checks:
    from prewarm.state.shared import examine

    before = place.clock().wall
    found = examine(state.url, place.environ)
    skews["PostgreSQL"] = skew_of(before, found.time, place.clock().wall)
    newest = MIGRATIONS[-1][0]
    schema = (
        f"schema {found.version}" if found.version else "no tables yet: the first sync makes them"
    )
    if 0 < found.version < newest:
        schema += f", brought to {newest} by the next sync"
    text = f"{state} answers, PostgreSQL {found.server}: {schema}"
    if not found.may_create:
        cure = f"as its owner: GRANT USAGE, CREATE ON SCHEMA public TO {found.user}"
        return (Check("state", "failed", f"{state}: {found.user} may make no tables there", cure),)
    return (Check("state", "ok", text),)


def _check_state(place: Place, skews: Skews) -> Checks:
    locks = (MirrorLock(one.url) for one in place.settings.mirrors if one.role == "target")
    held = [error for lock in locks if (error := lock.intruder()) is not None]
    failed = (Check("state", "failed", error.text, error.cure) for error in held)
    return (*failed, *_check_place(place, skews))


def _check_place(place: Place, skews: Skews) -> Checks:
    path = place.state()
    if isinstance(path, Shared):
        return _check_server(place, path, skews)
    check_owner(path, place.user, place.argv)
    if not path.exists():
        return (Check("state", "ok", f"{path} is not there yet; the first sync makes it"),)
    with Ledger.open(path, read_only=True):
        version, newest = schema_version(path), MIGRATIONS[-1][0]
    info = path.stat()
    schema = f"schema {version}"
    if version < newest:
        schema += f", brought to {newest} by the next sync"
    text = f"{path} of {user_name(info.st_uid)} opens: {schema}, {size_words(info.st_size)}"
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        cure = f"let {user_name(place.user)} write it and its folder"
        return (Check("state", "failed", f"{path} cannot be written", cure),)
    return (Check("state", "ok", text),)


def clocks(skews: Mapping[str, float | None]) -> Checks:
    """Return whether our clock agrees with those of the servers; a minute apart is a warning."""
    told = {name: skew for name, skew in skews.items() if skew is not None}
    far = {name: skew for name, skew in told.items() if abs(skew) > _SKEW}
    if not told:
        return (Check("clock", "ok", "no server told its time"),)
    if not far:
        return (Check("clock", "ok", f"agrees with {', '.join(sorted(told))}"),)
    # Where all are far off, it is ours that is wrong.
    cure = (
        "set this host's clock: timedatectl set-ntp true"
        if len(far) == len(told)
        else "set the clock of that server"
    )
    return tuple(
        Check(
            "clock",
            "warning",
            f"{name} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this host's clock",
            cure,
        )
        for name, skew in sorted(far.items())
    )


def skew_of(before: float, served: float, after: float) -> float:
    """Return by how many seconds a server's clock is ahead: 0 where both may agree.

    It was asked and answered at `before` and `after` by our clock; its `Date` has whole seconds.
    """
    if served > after:
        return served - after
    return min(0.0, served + 1 - before)


def _skew(registry: Registry, clock: Clock) -> float | None:
    before = clock().wall
    served = registry.date()
    return None if served is None else skew_of(before, served, clock().wall)


# -- GitLab -----------------------------------------------------------------------------------


def _check_gitlab(place: Place, skews: Skews) -> Checks:
    settings = place.settings.gitlab
    if settings is None:
        return (Check("gitlab", "ok", "images.yml names no GitLab: only pins are kept warm"),)
    from prewarm.discovery.gitlab_client import Client, find_token, token_place

    before = place.clock().wall
    token = find_token(settings, place.environ)
    where = token_place(settings, place.environ)
    with Client(settings, token, place.environ, Event(), timeout=_GITLAB_SECONDS) as client:
        found: Checks
        if token is None:
            client.get("/projects", per_page=1)
            text = f"{settings.url} is asked without a token, which shows what everybody may see"
            cure = "make a token with the scope read_api and name its file in gitlab.token_file"
            found = (Check("gitlab", "warning", text, cure),)
        else:
            found = (_ask_about_token(client, settings, where, place), *_token_rights(settings))
        if client.date is not None:
            skews[settings.url] = skew_of(before, client.date, place.clock().wall)
        if found[0].state == "failed":
            return found
        return (*found, *_scope_rights(client, settings))


def _scope_rights(client: Client, settings: Gitlab) -> Checks:
    """Whether groups and projects that are named can be read; as severe as a sync takes it."""
    from prewarm.discovery.gitlab_client import GitlabRefusal, group_path, project_path

    named: list[tuple[State, str]] = [
        *(("failed", group_path(group, "projects")) for group in settings.groups),
        *(("warning", project_path(project)) for project in settings.projects),
    ]
    found = []
    for state, path in named:
        try:
            client.get(path, per_page=1)
        except GitlabRefusal as refusal:
            if refusal.whole:
                raise
            found.append(Check("gitlab", state, refusal.text, refusal.cure))
    return tuple(found)


def _ask_about_token(client: Client, settings: Gitlab, where: str, place: Place) -> Check:
    from prewarm.discovery.gitlab_client import GitlabRefusal

    today = datetime.fromtimestamp(place.clock().wall, UTC).date()
    try:
        told = client.get("/personal_access_tokens/self")
    except GitlabRefusal as refusal:
        if refusal.status not in {403, 404}:
            raise
        client.get("/projects", per_page=1)
        text = (
            f"{settings.url} answers to the token of {where}, but does not tell its scopes and "
            "expiry, as for job and deploy tokens and before GitLab 15.5"
        )
        cure = "see for yourself when it expires, or use a personal, group or project access token"
        return Check("gitlab", "warning", text, cure)
    return token_verdict(told, today, f"{settings.url}: the token of {where}")


def token_verdict(told: object, today: date, token: str) -> Check:
    """Return what GitLab's answer about a token means (personal_access_tokens/self).

    It is dead from the day on that `expires_at` names, in UTC. `token` names it for people.
    """
    fresh = "make a new token with the scope read_api and put it there"
    fields = told if isinstance(told, dict) else {}
    if fields.get("revoked") is True or fields.get("active") is False:
        return Check("gitlab", "failed", f"{token} is revoked or no longer active", fresh)
    scopes = fields.get("scopes")
    named = [s for s in scopes if isinstance(s, str)] if isinstance(scopes, list) else []
    if named and not {"api", "read_api"} & set(named):
        text = f"{token} lacks the scope read_api, it has {', '.join(named)}"
        return Check("gitlab", "failed", text, fresh)
    rights = f"may {', '.join(named)}" if named else "has scopes that are not told"
    try:
        expires = date.fromisoformat(str(fields["expires_at"])) if fields["expires_at"] else None
    except (KeyError, ValueError):
        text = f"{token} {rights}; when it expires is not told"
        return Check("gitlab", "warning", text, "look at the token's page in GitLab")
    if expires is None:
        return Check("gitlab", "ok", f"{token} {rights} and never expires")
    days = (expires - today).days
    if days <= 0:
        return Check("gitlab", "failed", f"{token} expired on {expires}", fresh)
    if days <= _EXPIRY_DAYS:
        text = f"{token} {rights}, but expires on {expires}, in {counted(days, 'day')}"
        return Check("gitlab", "warning", text, fresh)
    return Check("gitlab", "ok", f"{token} {rights} until {expires}")


def _token_rights(settings: Gitlab) -> Checks:
    """Whether everybody on this host may read the token; a group may be prewarm's own."""
    file = settings.token_file
    if file is None or not file.stat().st_mode & 0o007:
        return ()
    return (Check("gitlab", "warning", f"{file} can be read by everybody", f"chmod o= {file}"),)


# -- registries -------------------------------------------------------------------------------


def _check_upstream(
    place: Place, upstream: Upstream, demand: Sequence[Want], skews: Skews
) -> Checks:
    settings = replace(place.settings, registries=(upstream,), mirrors=())
    with open_edges(settings, place.environ) as edges:
        site = edges.upstreams[upstream.name]
        skews[upstream.name] = _skew(site.registry, place.clock)
        missing: RegistryError | None = None
        for reference in _asked_by(place.settings, site, demand):
            try:
                account = site.of(reference.repository)
                account.head(reference.repository, reference.selector, place.clock)
            except RegistryError as error:
                if error.code not in _ABOUT_ONE:
                    raise
                missing = missing or error
            else:
                return upstream_verdict(account)
    if missing is not None:
        text = f"{upstream.name} answers, but not for what was asked: {missing.text}"
        return (Check("upstream", "warning", text, missing.cure),)
    return (Check("upstream", "ok", f"{upstream.name} answers; no image of it is wanted yet"),)


def _asked_by(settings: Settings, site: UpstreamSite, demand: Sequence[Want]) -> list[Reference]:
    """Return the images that an upstream is asked by: some wanted ones, else one that all know."""
    name = site.settings.name
    found = [want.reference for want in demand if want.reference.registry == name][:_TRIED]
    if found:
        return found
    for repository in (one for one in patterns(settings.pins) if one.registry == name):
        return [repository.with_tag(tag) for tag in site.registry.tags(repository.repository)[:1]]
    return [parse("alpine")] if name == DOCKER_HUB else []


def upstream_verdict(site: UpstreamSite) -> Checks:
    """Return what an upstream's answer to a HEAD tells: the account, the limit, what remains."""
    name, limit = site.settings.name, site.limit
    window, source = window_for(name, site.settings.budget, limit, reachable=True)
    text = f"{name} answers {site.account_name}"
    if limit is not None:
        of = f" of {limit.limit}" if limit.limit is not None else ""
        each = f" in {duration_words(limit.window)}" if limit.window else ""
        text += f", reports {limit.remaining}{of} pulls left{each}"
    allowed = (
        f"budget {window.pulls}, reserve {window.reserve}, " if window.pulls is not None else ""
    )
    checks = [Check("upstream", "ok", f"{text}; {allowed}{source}")]
    if limit is not None and limit.remaining <= window.reserve:
        cure = "wait for its window, log in, or see who else uses the account"
        lacking = f"{text}, which the reserve of {window.reserve} takes: nothing can be copied now"
        checks = [Check("upstream", "warning", lacking, cure)]
    if problem := window_problem(name, site.settings.budget, limit):
        text = f"{name}: {problem.problem}"
        checks.append(Check("upstream", "warning", text, problem.cure))
    return tuple(checks)


def _check_mirror(place: Place, mirror: Mirror, skews: Skews) -> Checks:
    settings = replace(place.settings, registries=(), mirrors=(mirror,))
    checks: list[Check] = []

    def reach() -> Checks:
        with open_edges(settings, place.environ) as edges:
            (site,) = edges.mirrors
            skews[mirror.url] = _skew(site.registry, place.clock)
            written = _check_writable(site)
            deleting: Checks = ()
            if written.state == "ok" and mirror.role == "target" and mirror.mode == "push":
                deleting = _guarded("mirror-delete", partial(_check_delete, site))
            return (written, *deleting)

    checks += _guarded("mirror", reach)
    largest = place.settings.limits.image_size
    checks += _guarded("mirror-space", partial(_check_space, mirror, largest))
    return tuple(sorted((*checks, *plain_http(mirror)), key=lambda check: NAMES.index(check.name)))


def _check_writable(site: MirrorSite) -> Check:
    """Whether the mirror is what images.yml says: an upload is begun and cancelled."""
    mirror = site.settings
    if mirror.role == "source":
        site.registry.blob_size(PROBE_REPOSITORY, _NOWHERE)
        return Check("mirror", "ok", f"{mirror.url} answers, and is only read (role: source)")
    try:
        site.registry.probe_upload(PROBE_REPOSITORY)
    except RegistryError as error:
        if not is_cache(error):
            raise
        if site.through:
            return Check("mirror", "ok", f"{mirror.url} is a pull-through proxy, as written")
        wrong = wrong_mode(site)
        return Check("mirror", "failed", wrong.text, wrong.cure)
    if site.through:
        wrong = wrong_mode(site)
        return Check("mirror", "failed", wrong.text, wrong.cure)
    return Check("mirror", "ok", f"{mirror.url} takes uploads")


def _check_delete(site: MirrorSite) -> Checks:
    """Whether the mirror deletes manifests, as pruning needs; it is asked for one that is none."""
    try:
        site.registry.delete_manifest(PROBE_REPOSITORY, _NOWHERE)
    except RegistryError as error:
        if error.status in {401, 403, 405}:
            cure = f"{error.cure}; until then nothing on it can be pruned"
            return (Check("mirror-delete", "warning", error.text, cure),)
        if error.status != 404:
            raise
    return (Check("mirror-delete", "ok", f"{site.url} deletes manifests"),)


def plain_http(mirror: Mirror) -> Checks:
    """Return a warning for each address of a mirror that is asked in the clear over a network."""
    found = []
    for url in dict.fromkeys((mirror.url, mirror.client_url)):
        parts = urlsplit(url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            text = f"{url} is plain http: whoever is on the way can change what jobs run"
            cure = "give it a certificate and write https://"
            found.append(Check("mirror-tls", "warning", text, cure))
    if found:
        return tuple(found)
    how = "over TLS" if mirror.url.startswith("https:") else "on this host alone"
    return (Check("mirror-tls", "ok", f"{mirror.url} is asked {how}"),)


def _check_space(mirror: Mirror, largest: int) -> Checks:
    """Whether the local disk of a mirror has space; nothing where it is not known to be local.

    `largest` is how large an image may be: less is a warning.
    """
    if mirror.storage is None:
        return ()
    short = too_little_space(mirror, 0)
    if short is not None:
        return (Check("mirror-space", "failed", short.text, short.cure),)
    free = shutil.disk_usage(mirror.storage).free
    if (low := too_little_space(mirror, largest)) is not None:
        text = f"{low.text}, as large as limits.image_size lets an image be"
        return (Check("mirror-space", "warning", text, low.cure),)
    return (Check("mirror-space", "ok", f"{mirror.url}: {size_words(free)} free"),)


# -- clients ----------------------------------------------------------------------------------

_SETTINGS_OF: Final = {
    "dockerd": "put what prewarm client-config dockerd prints into /etc/docker/daemon.json, "
    "then systemctl reload docker",
    "containerd": "prewarm client-config containerd --output /etc/containerd; it counts at once",
    "podman": "prewarm client-config podman --output /etc/containers; it counts at once",
}
_HUB_ALONE: Final = frozenset({"dockerd"})
"""Clients that ask mirrors for Docker Hub's images alone."""


def _check_client(place: Place, kind: str) -> Checks:
    """Let a client of this host prove, for each registry, that it asks each mirror for it."""
    settings = place.settings
    names = [one.name for one in settings.registries]
    if kind in _HUB_ALONE:
        names = [name for name in names if name == DOCKER_HUB]
    if not names:
        text = f"{kind} asks mirrors for docker.io alone, which is not under registries:"
        return (Check("client", "failed", text, "add it there, or use containerd or podman"),)
    engine = find_engine(kind, place.environ, place.stop, secrets.token_hex(8))
    found: list[Check] = []
    for mirror in client_mirrors(settings):
        if mirror.through:
            found.append(_unproved(kind, mirror))
            continue
        for name in (one for one in names if mirrors_of(one, (mirror,))):
            if not place.stop.is_set():
                found += _guarded("client", partial(_prove, place, engine, name, mirror))
    return tuple(found)


def _prove(place: Place, engine: Engine, registry: str, mirror: ClientMirror) -> Checks:
    settings = replace(place.settings, registries=(), mirrors=(mirror.settings,))
    with open_edges(settings, place.environ) as edges:
        (site,) = edges.mirrors
        proof = prove(engine, registry, mirror, site.registry, place.environ)
    return (client_verdict(proof),)


def _unproved(kind: str, mirror: ClientMirror) -> Check:
    text = f"{mirror.url} is a pull-through proxy, where nothing can be put for {kind} to find"
    return Check("client", "warning", text, f"pull an image by {kind} and look at the proxy's log")


def client_verdict(proof: Proof) -> Check:
    """Return what a client's pull of the probe tells."""
    left = "; the probe stays there, as the mirror deletes nothing" if proof.left else ""
    if proof.served == "nothing":
        text = (
            f"{proof.client} does not get {proof.registry}'s images from {proof.mirror}, "
            f"which has what it was asked for: {proof.words}"
        )
        return Check("client", "failed", text + left, _SETTINGS_OF[proof.kind])
    text = f"{proof.client} asks {proof.mirror} for {proof.registry}: it got what only that has"
    if proof.served == "content":
        text += f"; what a tag is, it asks {proof.registry} itself, as with --ask-upstream"
    return Check("client", "ok", text + left)
