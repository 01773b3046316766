"""A real browser: Chromium without a screen, told what to do through a pair of pipes.

It speaks the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/): messages of
JSON, each ended by a NUL. What it asks of the network and what it complains about is recorded.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

_SECONDS = 60
Scheme = Literal["light", "dark"]


@dataclass
class Tab:
    """One page; `requests` and `complaints` since it was opened."""

    _read: int
    _write: int
    _session: str | None = None
    _number: int = 0
    _buffer: bytes = b""
    requests: list[str] = field(default_factory=list)
    """URLs, the page's own among them."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, of the policy and of the network."""

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result; RuntimeError where the browser refuses it."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, url: str, *, width: int = 1280, scheme: Scheme = "light") -> None:
        """Show a page as on a screen so many pixels wide, and wait until it is loaded."""
        self.requests.clear()
        self.complaints.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=url)
        while (message := self._next()).get("method") != "Page.loadEventFired":
            self._note(message)

    def evaluate(self, script: str) -> Any:
        """Return what an expression of JavaScript is in the page, as JSON."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in told:
            raise RuntimeError(str(told["exceptionDetails"]))
        return told["result"].get("value")

    def picture(self, height: int) -> bytes:
        """Return the first `height` pixels of the page as a PNG."""
        width = self.evaluate("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def attach(self) -> None:
        """Open the tab itself and let it tell what happens."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            self.call(f"{domain}.enable")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], _SECONDS)
            piece = os.read(self._read, 1 << 20) if ready else b""
            if not ready:
                raise RuntimeError(f"the browser has said nothing for {_SECONDS} s")
            if not piece:
                raise RuntimeError("the browser has ended")
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Audits.issueAdded":
                self.complaints.append(json.dumps(told))


@contextmanager
def chromium() -> Iterator[Tab]:
    """Start the browser with a profile of its own, and end it with the block."""
    with tempfile.TemporaryDirectory(prefix="prewarm-browser-", ignore_cleanup_errors=True) as home:
        command = [
            "chromium",
            "--headless",
            "--remote-debugging-pipe",
            f"--user-data-dir={home}/profile",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            # By itself it would ask its maker for updates.
            "--disable-background-networking",
            "--disable-component-update",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--hide-scrollbars",
            "--font-render-hinting=none",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        to_it, ours = os.pipe()
        theirs, from_it = os.pipe()
        # It reads commands from its descriptor 3 and writes answers to 4.
        line = f"exec 3<&{to_it} 4>&{from_it}; exec {shlex.join(command)}"
        with (Path(home) / "log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", line],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(to_it, from_it),
                env={"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        os.close(to_it)
        os.close(from_it)
        tab = Tab(theirs, ours)
        try:
            tab.attach()
            yield tab
        finally:
            os.close(ours)
            os.close(theirs)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_SECONDS)
