"""registry:2 as a mirror: its own configurations and units, for push and pull-through.

A push mirror is two processes over one storage. registry:2's own logins would guard reads, too, and
dockerd never sends one to a mirror: so prewarm writes on loopback, and the network only reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from prewarm.clients.files import ClientMirror, File, client_mirrors, quoted, remarks
from prewarm.core.errors import UsageError
from prewarm.core.net import is_loopback
from prewarm.core.settings import DOCKER_HUB, DOCKER_HUB_ENDPOINT, Mirror, Settings

_FOLDER: Final = "/etc/docker/registry"
_STORAGE: Final = "/var/lib/docker-registry"
_EXAMPLE: Final = Mirror("", "https://mirror.example.org:5443", "pull-through")
_NO_CACHE: Final = (
    "No cache of blob descriptors: it would vouch for blobs that the garbage collection removed, "
    "and pushes that rely on it break."
)


def registry(settings: Settings) -> tuple[File, ...]:
    """Return configurations and units for a push mirror and for a pull-through one.

    Addresses and storage are those of the first mirror of each mode in the file; another mirror of
    the same mode gets the same files on its own host, with its own addresses.
    """
    found = client_mirrors(settings)
    push = next((one for one in found if not one.through), None)
    through = next((one for one in found if one.through), None)
    purge = settings.limits.run_time // 3600 + 1
    files: list[File] = []
    if push is not None:
        files += _push(push, *_addresses(push), purge)
    files += _through(settings, through, purge)
    return tuple(files)


def _addresses(push: ClientMirror) -> tuple[str, str]:
    """Return where the writer and the reader listen: host:port and :port.

    Raises UsageError where both would listen on the same port.
    """
    url, client = urlsplit(push.settings.url), urlsplit(push.url)
    reader = 443 if push.local else client.port or (80 if push.plain else 443)
    if _writes_locally(push):
        writer = url.port or (443 if url.scheme == "https" else 80)
        host = url.netloc.removesuffix(f":{writer}")
    else:
        writer, host = (5001 if reader != 5001 else 5002), "127.0.0.1"
    if writer == reader:
        raise UsageError(
            "client-url",
            f"{push.settings.url} and {push.url} have one port for two registries",
            "give url: another one, such as http://127.0.0.1:5001",
        )
    return f"{host}:{writer}", f":{reader}"


def _writes_locally(push: ClientMirror) -> bool:
    """Whether prewarm reaches the mirror on loopback, as it does where it runs beside it."""
    return is_loopback(urlsplit(push.settings.url).hostname or "")


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


# -- push -------------------------------------------------------------------------------------


def _push(push: ClientMirror, writer: str, reader: str, purge: int) -> Iterator[File]:
    storage = str(push.settings.storage or _STORAGE)
    yield File("prewarm-writer.yml", _writer(push, writer, storage, purge))
    yield File("prewarm-reader.yml", _reader(push, reader, storage))
    yield _unit("prewarm-registry-writer", "that prewarm writes to", "prewarm-writer.yml", storage)
    yield _unit(
        "prewarm-registry-reader",
        "that runners read",
        "prewarm-reader.yml",
        low=_port(reader) < 1024,
    )
    yield File("prewarm-registry-gc.service", _gc_unit(storage))
    yield File("prewarm-registry-gc.timer", _GC_TIMER)


def _writer(push: ClientMirror, address: str, storage: str, purge: int) -> str:
    head = remarks(
        f"{_FOLDER}/prewarm-writer.yml: where prewarm writes, on loopback, for programs on this "
        "host alone. It has no login: whoever has an account here can write.",
        "delete: prewarm prune removes tags, the garbage collection then frees the space.",
        f"uploadpurging: a broken upload holds its bytes until {purge} h have passed, which is "
        "longer than a sync runs (limits.run_time), not a week as by default.",
        _NO_CACHE,
        ""
        if _writes_locally(push)
        else f"images.yml says url: {push.settings.url}. With these two processes it is url: "
        f"http://{address} and client_url: {push.url}, and prewarm runs on this host.",
    )
    return head + (
        "version: 0.1\nlog: {level: warn}\nstorage:\n"
        f"  filesystem: {{rootdirectory: {quoted(storage)}}}\n  delete: {{enabled: true}}\n"
        "  maintenance:\n"
        f"    uploadpurging: {{enabled: true, age: {purge}h, interval: 1h, dryrun: false}}\n"
        f"http:\n  addr: {quoted(address)}\n  relativeurls: true\n"
        + _TLS
        * (push.settings.url.startswith("https://") and _writes_locally(push))
    )


def _reader(push: ClientMirror, address: str, storage: str) -> str:
    head = remarks(
        f"{_FOLDER}/prewarm-reader.yml: where runners read, over the network. It is read-only and "
        "has no login: dockerd never sends one to a mirror.",
        f"{_NO_CACHE} The upload purge is the writer's.",
        *_about_tls(push),
    )
    return head + (
        "version: 0.1\nlog: {level: warn}\nstorage:\n"
        f"  filesystem: {{rootdirectory: {quoted(storage)}}}\n  delete: {{enabled: false}}\n"
        "  maintenance:\n    readonly: {enabled: true}\n    uploadpurging: {enabled: false}\n"
        f"http:\n  addr: {quoted(address)}\n  relativeurls: true\n" + _TLS * _has_tls(push)
    )


def _about_tls(mirror: ClientMirror) -> Iterator[str]:
    if not _has_tls(mirror):
        yield f"No TLS: runners are told {mirror.url}. With https:// there this file has it."
        return
    yield (
        "TLS: certificate and key for the name in client_url, readable for the user "
        f"docker-registry: chown root:docker-registry and chmod 640 {_FOLDER}/tls.key. After a "
        "renewal restart this registry. Where a private CA signs, name its certificate with ca: in "
        "images.yml: the other kinds of prewarm client-config then tell where it goes."
    )
    if mirror.local:
        yield (
            f"images.yml gives runners {mirror.url}, which is on loopback: write client_url: with "
            "https:// and the name of this host."
        )


def _has_tls(mirror: ClientMirror) -> bool:
    """Whether the network reads by TLS: unless images.yml says plain HTTP for a network address."""
    return mirror.local or not mirror.plain


_TLS: Final = (
    f"  tls:\n    certificate: {_FOLDER}/tls.crt\n    key: {_FOLDER}/tls.key\n"
    "    minimumtls: tls1.2\n"
)


# -- pull-through -----------------------------------------------------------------------------


def _through(settings: Settings, through: ClientMirror | None, purge: int) -> Iterator[File]:
    mirror = through or ClientMirror(_EXAMPLE)
    address = f":{urlsplit(mirror.url).port or (443 if _has_tls(mirror) else 80)}"
    storage = str(mirror.settings.storage or f"{_STORAGE}-proxy")
    remote = next((u.endpoint for u in settings.registries if u.name == DOCKER_HUB), None)
    head = remarks(
        f"{_FOLDER}/prewarm-proxy.yml: a pull-through cache of Docker Hub (mode: pull-through), "
        "where one that prewarm pushes to is not wanted. It can do no other registry.",
        ""
        if through
        else "images.yml has no such mirror yet: choose the port, and add the mirror there.",
        "Its pulls are counted for its own login, and prewarm must know whose: give it the "
        "one that prewarm's authfile has, in /etc/prewarm/registry-proxy.env, mode 600 and root's: "
        "REGISTRY_PROXY_USERNAME=... and REGISTRY_PROXY_PASSWORD=... Without one both are "
        "anonymous. Whoever reads this registry then reads what that account may.",
        "Never let it share its storage with a push mirror: when an entry expires, after 7 days, "
        "it deletes blobs that pushed images need.",
        "delete lets it forget what is older than those 7 days: without that it keeps all, and its "
        "disk fills. Clients can delete nothing here.",
        _NO_CACHE,
        *_about_tls(mirror),
    )
    text = (
        "version: 0.1\nlog: {level: warn}\nproxy:\n"
        f"  remoteurl: {quoted(remote or DOCKER_HUB_ENDPOINT)}\nstorage:\n"
        f"  filesystem: {{rootdirectory: {quoted(storage)}}}\n  delete: {{enabled: true}}\n"
        "  maintenance:\n"
        f"    uploadpurging: {{enabled: true, age: {purge}h, interval: 1h, dryrun: false}}\n"
        f"http:\n  addr: {quoted(address)}\n  relativeurls: true\n" + _TLS * _has_tls(mirror)
    )
    yield File("prewarm-proxy.yml", head + text)
    yield _unit(
        "prewarm-registry-proxy",
        "that caches Docker Hub",
        "prewarm-proxy.yml",
        storage,
        low=_port(address) < 1024,
        login=True,
    )


# -- units ------------------------------------------------------------------------------------


def _unit(
    name: str,
    what: str,
    config: str,
    storage: str | None = None,
    *,
    low: bool = False,
    login: bool = False,
) -> File:
    head = remarks(
        f"/etc/systemd/system/{name}.service; then systemctl daemon-reload and systemctl enable "
        "--now. Debian's own docker-registry.service is not needed beside it: systemctl disable "
        "--now docker-registry.",
        f"Make {storage} first: install -d -o docker-registry -g docker-registry -m 750."
        if storage
        else "",
        "It ends where Docker Hub is down at its start, and is then started again." * login,
    )
    rows = [
        f"[Unit]\nDescription=Container registry {what}",
        "Wants=network-online.target\nAfter=network-online.target",
        # A registry that starts before its disk or its upstream is there is tried again for ever.
        "StartLimitIntervalSec=0\n",
        "[Service]\nUser=docker-registry\nGroup=docker-registry",
        f"ExecStart=/usr/bin/docker-registry serve {_FOLDER}/{config}",
        "Restart=on-failure\nRestartSec=10",
    ]
    if login:
        rows.append("EnvironmentFile=-/etc/prewarm/registry-proxy.env")
    if low:
        rows.append("AmbientCapabilities=CAP_NET_BIND_SERVICE")
    rows.append(f"CapabilityBoundingSet={'CAP_NET_BIND_SERVICE' if low else ''}")
    rows.append(_HARDENING)
    if storage:
        rows.append(f"ReadWritePaths={_path(storage)}")
    rows.append("\n[Install]\nWantedBy=multi-user.target\n")
    return File(f"{name}.service", head + "\n".join(rows))


def _gc_unit(storage: str) -> str:
    head = remarks(
        "/etc/systemd/system/prewarm-registry-gc.service: gives the space of what prewarm prune "
        "removed back. Only the writer stops meanwhile: an upload during the collection would lose "
        "blobs; runners go on reading.",
        "Never with --delete-untagged: it deletes the platforms of every multi-platform image.",
        "After a sync that runs (After=); a sync that begins meanwhile finds no mirror and is told "
        "so, which is why the timer keeps away from the hours of prewarm.timer.",
    )
    return head + (
        "[Unit]\nDescription=Garbage collection of the registry that prewarm writes to\n"
        "After=prewarm.service\n\n"
        "[Service]\nType=oneshot\nUser=docker-registry\nGroup=docker-registry\n"
        "ExecStartPre=+/usr/bin/systemctl stop prewarm-registry-writer.service\n"
        f"ExecStart=/usr/bin/docker-registry garbage-collect {_FOLDER}/prewarm-writer.yml\n"
        "# Also after a failure: a mirror that nobody can fill is the worse end.\n"
        "ExecStopPost=+/usr/bin/systemctl start prewarm-registry-writer.service\n"
        f"CapabilityBoundingSet=\n{_HARDENING}\nReadWritePaths={_path(storage)}\n"
    )


def _path(path: str) -> str:
    """Return the path as a unit file takes it, whatever is in it."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


_HARDENING: Final = """\
NoNewPrivileges=true
RestrictSUIDSGID=true
ProtectSystem=strict
ProtectHome=true
PrivateTmp=true
PrivateDevices=true
ProtectProc=invisible
ProtectKernelTunables=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectControlGroups=true
ProtectClock=true
ProtectHostname=true
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=true
MemoryDenyWriteExecute=true
SystemCallArchitectures=native
LockPersonality=true
RestrictRealtime=true
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM"""
_GC_TIMER: Final = """\
# /etc/systemd/system/prewarm-registry-gc.timer; then systemctl enable --now with its name.
[Unit]
Description=Weekly garbage collection of the registry that prewarm writes to

[Timer]
# On a Sunday at noon: the night's sync is over, the evening's far.
OnCalendar=Sun *-*-* 12:00
Persistent=true
RandomizedDelaySec=15min

[Install]
WantedBy=timers.target
"""
