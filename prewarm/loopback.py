"""The server on loopback that the gate and `prewarm run --listen` are made of."""

from __future__ import annotations

import logging
import sys
from http.server import ThreadingHTTPServer
from socketserver import TCPServer

log = logging.getLogger("prewarm")


class LoopbackServer(ThreadingHTTPServer):
    """Answers each request in a thread of its own, which holds up no exit."""

    daemon_threads = True
    request_queue_size = 128  # of five, a crowd fills it, and who comes then waits for seconds
    what: str
    """What it is to people."""

    def server_bind(self) -> None:
        """Bind; HTTPServer would ask a name server for a name that nobody needs."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A client that goes away, or is killed, is no news; all else is a bug."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("%s failed to answer a request: this is a bug of prewarm", self.what)
