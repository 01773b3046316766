"""Starts a program shut in as a unit shuts it in: `confined.py WALLS PROGRAM ARG…`.

WALLS is JSON, as `units.walls` makes it from a unit file. The system-call filters are loaded as
systemd loads them, through libseccomp. As root there are also a mount namespace in which all but
the writable folders is read-only and /proc is what the unit leaves of it, and another user without
any right but to read.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_MASKED_EQ: Final = 7
_CLONE_NEWNS: Final = 0x00020000
_MS_BIND: Final = 4096
_MS_PRIVATE: Final = 1 << 18
_RDONLY: Final = 1
_RECURSIVE: Final = 0x8000
_MOUNT_SETATTR: Final = 442


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_uint),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user"))


def _mount_anew(writable: Iterable[str], proc: str) -> None:
    """Make every mount read-only but the folders, and mount /proc with its options.

    Outside of this process and its children all stays as it is.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(failed: int, what: str) -> None:
        if failed:
            raise OSError(ctypes.get_errno(), what)

    def change(path: str, flags: int, **attributes: int) -> None:
        wanted = _MountAttributes(**attributes)
        size = ctypes.sizeof(wanted)
        at = (-100, path.encode(), flags, ctypes.byref(wanted), size)
        call(libc.syscall(_MOUNT_SETATTR, *at), path)

    call(libc.unshare(_CLONE_NEWNS), "unshare")
    change("/", _RECURSIVE, propagation=_MS_PRIVATE)
    for folder in writable:
        call(libc.mount(folder.encode(), folder.encode(), None, _MS_BIND, None), folder)
    call(libc.mount(b"proc", b"/proc", b"proc", 0, proc.encode()), "/proc")
    change("/", _RECURSIVE, set=_RDONLY)
    for folder in writable:
        change(folder, 0, clear=_RDONLY)


def _filtered(calls: Sequence[tuple[str, Sequence[int], int]], default: int, action: int) -> None:
    """Load a filter: `action` for the calls, `default` for all others.

    A call is its name, perhaps an argument's number with mask and value, and an errno.
    """
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    for name, argument, errno in calls:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue  # Another architecture's.
        wanted = [_Comparison(argument[0], _MASKED_EQ, *argument[1:])] if argument else []
        rules = (_Comparison * len(wanted))(*wanted)
        does = ctypes.c_uint32(action | errno)
        failed = library.seccomp_rule_add_array(context, does, number, len(wanted), rules)
        if failed:
            raise OSError(-failed, f"seccomp rule for {name}")
    if failed := library.seccomp_load(context):
        raise OSError(-failed, "seccomp_load")


def main(arguments: list[str]) -> None:
    walls: Any = json.loads(arguments[0])
    if os.geteuid() == 0:
        _mount_anew(walls["writable"], walls["proc"])
        # To read whatever lies on the way to the program stands for its place under /usr.
        rights = [f"--{of}=-all,+dac_read_search" for of in ("inh-caps", "ambient-caps")]
        user = [f"--reuid={walls['user']}", f"--regid={walls['user']}", "--clear-groups"]
        again = [sys.executable, __file__, *arguments]
        os.execvp("setpriv", ["setpriv", *user, "--no-new-privs", *rights, *again])
    # In this order: the second refuses to load another.
    _filtered(walls["refused"], _ALLOW, _ERRNO)
    _filtered([(name, (), 0) for name in walls["allowed"]], _ERRNO | walls["errno"], _ALLOW)
    os.execv(arguments[1], arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
