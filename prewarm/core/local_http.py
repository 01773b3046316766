"""The server on loopback that the gate and `prewarm run --listen` are made of."""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
import threading
from contextlib import suppress
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, ClassVar, Final

log = logging.getLogger("prewarm")

PATIENCE: Final = 10.0
"""Seconds that a client may take to send its request."""
_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG of linux/netlink.h
_ASK: Final = 20  # SOCK_DIAG_BY_FAMILY of linux/sock_diag.h, of the question and of the answer


class LoopbackServer(ThreadingHTTPServer):
    """Answers each request in a thread of its own, which holds up no exit.

    A client that has not proved who it is can hold one of `at_once` connections only: for a further
    one, the oldest of them is closed. So no other user takes the threads and the descriptors.
    """

    daemon_threads = True
    request_queue_size = 128  # of five, a crowd fills it, and who comes then waits for seconds
    what: str
    """What it is to people."""
    at_once: ClassVar[int] = 16
    own_user_only: ClassVar[bool] = False
    """Whether connections of other users are reset, where the kernel says whose they are."""

    def __init__(self, *arguments: Any) -> None:
        self._unproved: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Bind; HTTPServer would ask a name server for a name that nobody needs."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own; where there are too many, the oldest has to go."""
        user = peer_uid(request) if self.own_user_only else None
        if user is None:
            self._admit(request)
        elif user != os.geteuid():
            # With a reset nothing of it remains in the kernel.
            with suppress(OSError):
                request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return request.close()  # type: ignore[no-any-return]
        return super().process_request(request, client_address)

    def _admit(self, request: socket.socket) -> None:
        with self._lock:
            if len(self._unproved) >= self.at_once:
                oldest = next(iter(self._unproved))
                del self._unproved[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._unproved[request] = None

    def prove(self, request: Any) -> None:
        """Keep the connection from now on: its client has shown who it is."""
        with self._lock:
            self._unproved.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        self.prove(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A client that goes away, or is killed, is no news; all else is a bug."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("%s failed to answer a request: this is a bug of prewarm", self.what)


def peer_uid(connection: socket.socket) -> int | None:
    """Return the user id of the process that opened an IPv4 connection from this machine.

    Asked of the kernel by sock_diag(7), one question for one socket; None where it does not say:
    the client has left, or netlink sockets are not permitted here.
    """
    try:
        ours, theirs = connection.getsockname(), connection.getpeername()
        body = struct.pack(
            "=BBBxI2s2s16s16sIII",
            socket.AF_INET,
            socket.IPPROTO_TCP,
            0,
            0xFFFFFFFF,
            theirs[1].to_bytes(2, "big"),
            ours[1].to_bytes(2, "big"),
            socket.inet_aton(theirs[0]),
            socket.inet_aton(ours[0]),
            0,
            0xFFFFFFFF,
            0xFFFFFFFF,
        )
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            kernel.settimeout(1)
            kernel.send(struct.pack("=IHHII", 16 + len(body), _ASK, 1, 1, 0) + body)
            answer = kernel.recv(4096)
    except OSError:
        return None
    if len(answer) < 88 or struct.unpack_from("=H", answer, 4)[0] != _ASK:
        return None
    # After the header (16), four bytes of state, the addresses (48), a timer and two queues.
    uid, inode = struct.unpack_from("=II", answer, 80)
    # Without an inode no process has the socket any more, and the user would be 0.
    return int(uid) if inode else None
