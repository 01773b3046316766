"""Faults: what goes wrong at a stand-in, for which requests and how often."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(eq=False, slots=True)
class Fault:
    """One rule. Which requests: `method`, `path`, `nth`, `count`; what happens: the rest.

    Of what happens, `hang` comes first; `reset` cuts the connection before the request is looked
    at, `drop` after it was carried out; `status` answers instead of the server; `cut` sends that
    many bytes of the body and then cuts.
    """

    method: str = "*"
    path: str = "*"
    """A shell glob on the path without its query; `*` crosses `/`."""
    nth: int = 1
    """The first of the matching requests that is hit."""
    count: int | None = 1
    """How many are hit from there on; None for all."""
    status: int | None = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: float = 0.0
    """Seconds before the answer."""
    reset: bool = False
    drop: bool = False
    cut: int | None = None
    seen: int = 0
    """How many matching requests came so far."""

    def _hits(self, method: str, path: str) -> bool:
        if not (fnmatchcase(method, self.method) and fnmatchcase(path, self.path)):
            return False
        self.seen += 1
        after = self.seen - self.nth
        return after >= 0 and (self.count is None or after < self.count)


class Faults:
    """The rules of one stand-in; the first that hits decides, rules come and go at run time."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Add a rule and return it, so that it can be removed."""
        with self._lock:
            self._rules.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        with self._lock:
            self._rules.remove(fault)

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def match(self, method: str, path: str) -> Fault | None:
        """Return the rule that hits this request, counting it at every rule that it reaches."""
        if not self._rules:
            return None
        with self._lock:
            return next((rule for rule in self._rules if rule._hits(method, path)), None)


def disk_full(path: str = "*/blobs/uploads/*", count: int | None = None) -> Fault:
    """Return what registry:2 answers to an upload when its disk is full."""
    body = (
        b'{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":{"DriverName":'
        b'"filesystem","Enclosed":{"Op":"write","Path":"/data","Err":28}}}]}'
    )
    return Fault(method="P*", path=path, count=count, status=500, body=body, headers=JSON_HEADERS)


JSON_HEADERS: Mapping[str, str] = {"Content-Type": "application/json; charset=utf-8"}
