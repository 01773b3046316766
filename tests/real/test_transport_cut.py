"""Cutting connections: whoever waits for an answer wakes, however the server is reached."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from prewarm.core.errors import RegistryError
from prewarm.registry.client import Registry
from tests.real.scripted import Scripted, reply
from tests.sandbox.authority import Authority
from tests.sandbox.wire import Request, Response


@contextmanager
def tls_proxy(context: ssl.SSLContext, port: int) -> Iterator[int]:
    """A CONNECT proxy that is reached by TLS, for one tunnel, which leads to the port."""

    def serve() -> None:
        with suppress(OSError):
            plain, _ = listener.accept()
            with (
                context.wrap_socket(plain, server_side=True) as near,
                socket.create_connection(("127.0.0.1", port)) as far,
            ):
                asked = b""
                while not asked.endswith(b"\r\n\r\n"):
                    asked += near.recv(1)
                near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=pump, args=(far, near))
                back.start()
                pump(near, far)
                back.join()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            socket.socket.shutdown(target, socket.SHUT_RDWR)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("proxied", [False, True], ids=["directly", "through a proxy by TLS"])
def test_cut_while_an_answer_by_tls_is_waited_for_is_interrupted(
    tmp_path: Path, proxied: bool
) -> None:
    authority = Authority(tmp_path)
    context = authority.server_context(["127.0.0.1", "registry.example"])
    asked, over = threading.Event(), threading.Event()
    codes: list[str] = []

    def never(_: Request) -> Response:
        asked.set()
        over.wait(60)
        return reply(200)

    def ask(own: Registry) -> None:
        with pytest.raises(RegistryError) as caught:
            own.head("app", "1")
        codes.append(caught.value.code)

    with Scripted(never, tls=context) as site, tls_proxy(context, site.port) as port:
        url, environ = site.url, {}
        if proxied:
            url, environ = "https://registry.example", {"https_proxy": f"https://127.0.0.1:{port}"}
        with Registry("example", url, ca=authority.ca, environ=environ) as own:
            thread = threading.Thread(target=ask, args=(own,))
            thread.start()
            assert asked.wait(60)
            own.cut()
            thread.join(30)
            was_waiting = thread.is_alive()
            over.set()
            thread.join()
    assert not was_waiting
    assert codes == ["interrupted"]
